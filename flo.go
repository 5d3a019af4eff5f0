package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/state"
)

// The types that users touch most.
type (
	// LSN is a position in PostgreSQL's write-ahead log.
	LSN = decode.LSN
	// Position identifies a streamed change.
	Position = decode.Position
	// Change is one change.
	Change = decode.Change
	// Value is one column of a row.
	Value = decode.Value
)

// Flo is a replicator and its workers in one process.
type Flo struct {
	cfg        *config
	replicator *Replicator
	workers    []*Worker
	running    atomic.Bool
	ended      atomic.Pointer[error] // how the last Run ended; nil while it runs, or before
}

// New makes both halves: a replicator, and a worker for each sink. It validates all options, reports
// all bad ones at once (each wrapping ErrInvalidOption), and does no I/O.
func New(opts ...Option) (*Flo, error) {
	c := newConfig(opts)
	c.validateCommon()
	c.validateReplicator()
	c.validateWorkers()
	if len(c.workers) == 0 {
		c.bad("WithSink: give a sink, or use NewReplicator where there is none")
	}
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	f := &Flo{cfg: c, replicator: newReplicator(c)}
	for i := range c.workers {
		f.workers = append(f.workers, newWorker(c, &c.workers[i]))
	}
	return f, nil
}

// Replicator gives the half that reads PostgreSQL, to be run apart.
func (f *Flo) Replicator() *Replicator { return f.replicator }

// Workers gives the halves that write to sinks, to be run apart.
func (f *Flo) Workers() []*Worker { return f.workers }

// Run runs both halves until ctx ends, or (CopyOnly) all is applied, or one of them meets an error
// that it can't retry; the others then stop too. When it returns, everything is drained and closed.
func (f *Flo) Run(ctx context.Context) error {
	if !f.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer f.running.Store(false)
	f.ended.Store(nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return f.replicator.Run(ctx) })
	for _, w := range f.workers {
		g.Go(func() error { return w.Run(ctx) })
	}
	err := g.Wait()
	f.ended.Store(&err)
	return err
}

// WaitFor returns when all registered workers of the group, in whatever process, have applied every
// transaction that ended at or before lsn. It asks the replicator for an idle marker at once, so that it returns soon
// on an idle source too. For lsn take the source's pg_current_wal_flush_lsn() after the commit. With WithDDL it asks the source,
// and waits for tables that were made meanwhile and have not joined the group yet, too. If Run of this Flo
// has ended before that, so does WaitFor, with Run's error or ErrStopped.
func (f *Flo) WaitFor(ctx context.Context, lsn LSN) error {
	var link *link
	defer func() {
		if link != nil {
			link.close()
		}
	}()
	backoff := pgsession.Backoff{}
	var asked time.Time
	var stream *bus.Stream
	var store state.Store
	for {
		done, err := func() (_ bool, err error) {
			if link == nil {
				if link, err = f.cfg.connectNATS(ctx); err != nil {
					return false, err
				}
			}
			if stream == nil || time.Since(asked) > markInterval { // the group may be dropped and made again meanwhile
				if stream, err = bus.Open(ctx, f.cfg.bus(link)); err != nil {
					return false, err
				}
				if store, err = state.NewNATS(ctx, link.state, f.cfg.group, f.cfg.replicas, false); err != nil {
					return false, err
				}
				asked = time.Now()
				if err := link.nc.Publish(markSubject(f.cfg.group), []byte(lsn.String())); err != nil {
					return false, err
				}
			}
			done, err := applied(ctx, store, stream.Incarnation(), lsn)
			if err != nil || !done {
				return false, err
			}
			if done, err = f.joined(ctx, stream, store); err == nil && !done {
				err = pollWait(ctx, joinPoll)
			}
			return done, err
		}()
		if done {
			return nil
		}
		if err != nil && ctx.Err() == nil && !transient(err) && !errors.Is(err, bus.ErrNoStream) && !errors.Is(err, state.ErrNotFound) && !f.replaces(err) {
			return named(err)
		}
		if ended := f.ended.Load(); ended != nil {
			if *ended != nil {
				return fmt.Errorf("flo: waiting for %s: %w", lsn, *ended)
			}
			return fmt.Errorf("flo: waiting for %s: %w", lsn, ErrStopped)
		}
		if err == nil {
			backoff.Reset()
			err = pollWait(ctx, waitForPoll)
		} else if werr := backoff.Wait(ctx); werr != nil {
			err = errors.Join(werr, err)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("flo: waiting for %s: %w", lsn, err)
		}
	}
}

// replaces reports whether an error is about a stream that WithResync is about to replace.
func (f *Flo) replaces(err error) bool {
	var settings *bus.ConfigError
	return f.cfg.resync != "" && errors.As(err, &settings)
}

const (
	// waitForPoll is how often WaitFor looks at the workers' checkpoints.
	waitForPoll = 20 * time.Millisecond
	// joinPoll is how often it asks the source for tables that have not joined.
	joinPoll = 200 * time.Millisecond
	// markInterval is how often WaitFor repeats its request for an idle marker.
	markInterval = 500 * time.Millisecond
)

// markSubject is where a replicator listens for requests to publish its idle position. It lies
// outside the stream.
func markSubject(group string) string { return "flo-ask." + group + ".mark" }

func applied(ctx context.Context, store state.Store, incarnation string, lsn LSN) (bool, error) {
	ws, err := store.Workers(ctx)
	if err != nil || len(ws) == 0 {
		return false, err
	}
	for _, w := range ws {
		// A table that waits for its copy has nothing of what lies behind.
		if cp := &w.Checkpoint; cp.Incarnation != incarnation || cp.End < lsn || awaitsCopy(cp) {
			return false, nil
		}
	}
	return true, nil
}

func pollWait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// RemoveWorker frees what a worker that will not come back holds, see Replicator.RemoveWorker.
func (f *Flo) RemoveWorker(ctx context.Context, name string) error {
	if f.running.Load() && slices.ContainsFunc(f.workers, func(w *Worker) bool { return w.opt.name == name }) {
		return fmt.Errorf("flo: worker %q is one of this Flo, which runs: stop it first", name)
	}
	return f.replicator.RemoveWorker(ctx, name)
}

// Drop removes what flo made for the group: slot, publications, streams, state. Nothing may run. Sinks
// keep what they hold, and their checkpoints: to begin again with the same group takes WithResync (see
// Replicator.Drop). What is gone already is no error.
func (f *Flo) Drop(ctx context.Context) error { return f.replicator.Drop(ctx) }

// link is a way to JetStream, and how to give it up.
type link struct {
	nc    *nats.Conn
	js    jetstream.JetStream
	state jetstream.JetStream // for the group's records: of a session by URL, a connection of its own
	close func()
}

// sessionNATS connects for a session. Where flo opens the connection itself it opens a second one for the group's records:
// the renewals of a lease don't stand in line behind what is published or fetched on a slow link.
func (c *config) sessionNATS(ctx context.Context) (*link, error) {
	l, err := c.connectNATS(ctx)
	if err != nil || c.nats.url == "" {
		return l, err
	}
	beside, err := c.connectNATS(ctx)
	if err != nil {
		l.close()
		return nil, err
	}
	first := l.close
	l.state, l.close = beside.js, func() {
		first()
		beside.close()
	}
	return l, nil
}

// connectNATS opens, or borrows, the connection.
func (c *config) connectNATS(ctx context.Context) (*link, error) {
	n := &c.nats
	if n.js != nil && n.js.Conn().IsClosed() || n.conn != nil && n.conn.IsClosed() {
		return nil, fmt.Errorf("%w: the NATS connection that flo was given is closed; close it after Run has returned", ErrNATSClosed)
	}
	if n.js != nil {
		return &link{nc: n.js.Conn(), js: n.js, state: n.js, close: func() {}}, nil
	}
	nc, own := n.conn, false
	var err error
	switch {
	case n.server != nil:
		own = true
		nc, err = n.server.Conn(ctx, nats.MaxReconnects(-1))
	case n.url != "":
		own = true
		nc, err = dialNATS(ctx, n.url, append([]nats.Option{nats.ErrorHandler(c.natsSays)}, n.opts...))
	}
	if err != nil {
		return nil, fmt.Errorf("flo: connecting to NATS: %w", err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		if own {
			nc.Close()
		}
		return nil, fmt.Errorf("flo: JetStream: %w", err)
	}
	l := &link{nc: nc, js: js, state: js, close: func() {}}
	if own {
		l.close = nc.Close
	}
	return l, nil
}

// natsSays logs what the server says of its own accord: above all a permission that is missing, which a request
// meets with silence.
func (c *config) natsSays(_ *nats.Conn, _ *nats.Subscription, err error) {
	if err != nil {
		c.logger.Warn("NATS says", slog.String("group", c.group), slog.Any("error", err))
	}
}

// writeTimeout bounds a write to a NATS server that no longer reads.
const writeTimeout = 10 * time.Second

// dialNATS connects within ctx: nats.Connect itself knows only timeouts.
func dialNATS(ctx context.Context, url string, opts []nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{nats.MaxReconnects(-1), nats.Name("flo"), nats.FlusherTimeout(writeTimeout)}, opts...)
	type result struct {
		nc  *nats.Conn
		err error
	}
	ch := make(chan result, 1)
	go func() {
		nc, err := nats.Connect(url, opts...)
		ch <- result{nc, err}
	}()
	select {
	case r := <-ch:
		return r.nc, r.err
	case <-ctx.Done():
		go func() { // the dial ends by nats.Timeout (2 s by default)
			if r := <-ch; r.nc != nil {
				r.nc.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

const (
	// publishWindow is how many bytes may be unacknowledged: 16 full batches, enough for full speed.
	publishWindow = 8 << 20
	// prefetchBytes is how many bytes a reader fetches ahead.
	prefetchBytes = 4 << 20
)

// bus gives the stream's configuration.
func (c *config) bus(l *link) bus.Config {
	return bus.Config{JS: l.js, Group: c.group, Replicas: c.replicas, MaxBytes: c.maxBytes, Logger: c.logger, WindowBytes: publishWindow}
}
