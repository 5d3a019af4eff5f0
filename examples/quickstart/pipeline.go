package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink/postgres"
)

// pipeline is all that it takes to set flo up.
func pipeline(s settings, source, target string, nats flo.Option) (*flo.Flo, error) {
	var opts []postgres.Option
	if s.replicaRole {
		opts = append(opts, postgres.WithReplicaRole())
	}
	destination, err := postgres.New(target, opts...)
	if err != nil {
		return nil, err
	}
	return flo.New(
		flo.WithSource(source),
		nats,
		flo.WithGroup(s.group),
		flo.WithTables(s.tables...),
		flo.WithMode(flo.CopyAndStream),
		flo.WithSink(destination),
	)
}

// between replicates between the user's servers until ctx ends.
func between(ctx context.Context, s settings, d *display) error {
	f, err := pipeline(s, s.source, s.target, flo.WithNATSURL(s.nats))
	if err != nil {
		return err
	}
	if s.drop {
		if err := f.Drop(ctx); err != nil {
			return err
		}
		d.line("removed slot, publications, stream and state of group %q; the target keeps its rows", s.group)
		return nil
	}
	d.line("replicating, group %q; Ctrl-C stops, and the same command goes on from there", s.group)
	r := start(ctx, f, d)
	defer r.stop()
	err = r.watch(ctx, func() bool { return false })
	if ctx.Err() != nil {
		err = r.stop()
	}
	switch {
	case errors.Is(err, postgres.ErrTableMissing) || errors.Is(err, postgres.ErrColumnsMissing):
		return fmt.Errorf("%w\nto make the tables at the target: pg_dump --schema-only \"$SOURCE\" | psql \"$TARGET\"", err)
	case err != nil:
		return err
	}
	d.line("%s", r.summary())
	return nil
}

// running is a pipeline that runs on a goroutine of its own.
type running struct {
	f       *flo.Flo
	d       *display
	cancel  context.CancelFunc
	done    chan struct{}
	err     error // set when done is closed
	meter   meter
	notes   map[string]note
	stopped bool
}

func start(ctx context.Context, f *flo.Flo, d *display) *running {
	ctx, cancel := context.WithCancel(ctx)
	r := &running{f: f, d: d, cancel: cancel, done: make(chan struct{}), notes: map[string]note{}}
	r.meter.began = time.Now()
	go func() {
		r.err = f.Run(ctx)
		close(r.done)
	}()
	return r
}

// stop ends the pipeline, which drains what it has read, and gives Run's error.
func (r *running) stop() error {
	r.cancel()
	<-r.done
	if !r.stopped {
		r.stopped = true
		r.meter.take(r.f.Status(), time.Now())
	}
	return r.err
}

// watchInterval is how often the status is read.
const watchInterval = 100 * time.Millisecond

// watch shows what happens until enough says so (nil), Run ends (its error), or ctx ends.
func (r *running) watch(ctx context.Context, enough func() bool) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		st := r.f.Status()
		r.meter.take(st, time.Now())
		r.warn(st)
		r.d.progress(&r.meter)
		if enough() {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.done:
			if r.err == nil && ctx.Err() == nil {
				return errors.New("flo ended without an error, though nobody asked it to")
			}
			return r.err
		case <-tick.C:
		}
	}
}

// note is something to tell the user, once.
type note struct {
	since time.Time // when it was first seen
	said  bool
}

// interruptionGrace is how long an interruption must last to be worth a note.
const interruptionGrace = time.Second

// warn shows each warning once, and each interruption that lasts.
func (r *running) warn(st flo.Status) {
	now := time.Now()
	say := func(text string, grace time.Duration) {
		n, seen := r.notes[text]
		if !seen {
			n.since = now
		}
		if text != "" && !n.said && now.Sub(n.since) >= grace {
			n.said = true
			r.d.line("note: %s", text)
		}
		r.notes[text] = n
	}
	for _, w := range st.Replicator.Warnings {
		say(w, 0)
	}
	say(st.Replicator.LastError, interruptionGrace)
	for _, w := range st.Workers {
		say(w.LastError, interruptionGrace)
	}
}
