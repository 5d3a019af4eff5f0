package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// reader takes the backlog that stands behind its slot.
type reader struct {
	name   string
	ours   bool
	writes bool // the destination holds the rows afterwards
	goal   float64
	open   func(context.Context) error // makes the slot, before there is a backlog
	before func(context.Context) error // behind the backlog, not measured; nil: nothing
	read   func(context.Context) error
	end    func(context.Context) error // stops it and removes its slot: not measured either
}

// readers makes a slot for each.
func (b *bench) readers(ctx context.Context, all ...*reader) ([]*reader, error) {
	for _, r := range all {
		if err := r.open(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return all, nil
}

// native is a subscription with its defaults, made when the backlog is complete.
func (b *bench) native() *reader { return b.nativeFrom(b.sourceURL) }

func (b *bench) nativeFrom(source string) *reader {
	return &reader{
		name: "native subscription", writes: true,
		open: func(ctx context.Context) error {
			return execute(ctx, b.from,
				"DROP PUBLICATION IF EXISTS native",
				"CREATE PUBLICATION native FOR TABLE changes",
				"SELECT pg_create_logical_replication_slot('native', 'pgoutput')")
		},
		read: func(ctx context.Context) error {
			if err := b.subscribe(ctx, source); err != nil {
				return err
			}
			return b.arrived(ctx)
		},
		end: func(ctx context.Context) error { return execute(ctx, b.to, "DROP SUBSCRIPTION native") },
	}
}

func (b *bench) subscribe(ctx context.Context, source string) error {
	return execute(ctx, b.to, fmt.Sprintf(
		"CREATE SUBSCRIPTION native CONNECTION '%s' PUBLICATION native WITH (create_slot = false, slot_name = native, copy_data = false)",
		keywords(source)))
}

// keywords writes a URL as keywords and values, which libpq of all versions takes.
func keywords(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	password, _ := u.User.Password()
	return fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=%s", u.Hostname(), u.Port(), u.User.Username(), password, strings.TrimPrefix(u.Path, "/"))
}

// arrived waits for the last row: changes arrive in order.
func (b *bench) arrived(ctx context.Context) error {
	for {
		var there bool
		if err := b.to.QueryRow(ctx, "SELECT EXISTS (SELECT FROM changes WHERE id = $1)", b.last).Scan(&there); err != nil || there {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pollInterval is how often a wait looks again.
const pollInterval = 20 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollInterval):
		return nil
	}
}

// flo is both halves, from the source's backlog into PostgreSQL.
func (b *bench) flo(goal float64, opts ...flo.Option) *reader {
	r := b.pipeline(func() (sink.Sink, error) { return destination(b.targetURL) }, opts...)
	r.name, r.writes, r.goal = "flo", true, goal
	return r
}

// discard is both halves, into a sink that does nothing.
func (b *bench) discard() *reader {
	r := b.pipeline(func() (sink.Sink, error) {
		return sink.Func(func(context.Context, *sink.Batch) error { return nil }), nil
	})
	r.name = "flo, sink discards"
	return r
}

// pipeline makes its slot by running for a moment. A sink is closed when its worker stops, so each run has
// one of its own.
func (b *bench) pipeline(open func() (sink.Sink, error), opts ...flo.Option) *reader {
	group := b.newGroup()
	run := func(ctx context.Context) (stop func() error, err error) {
		f, err := b.streaming(group, open, opts...)
		if err != nil {
			return nil, err
		}
		end, err := b.position(ctx)
		if err != nil {
			return nil, err
		}
		return until(ctx, f.Run, func(ctx context.Context) error { return f.WaitFor(ctx, end) })
	}
	var stop func() error
	return &reader{
		ours: true,
		open: func(ctx context.Context) error {
			stop, err := run(ctx)
			if err != nil {
				return err
			}
			return stop()
		},
		read: func(ctx context.Context) (err error) {
			stop, err = run(ctx)
			return err
		},
		end: func(ctx context.Context) error { return errors.Join(stop(), b.dropper(group)(ctx)) },
	}
}

func (b *bench) streaming(group string, open func() (sink.Sink, error), opts ...flo.Option) (*flo.Flo, error) {
	s, err := open()
	if err != nil {
		return nil, err
	}
	return flo.New(append([]flo.Option{
		flo.WithSource(b.sourceURL), flo.WithNATSServer(b.nats), flo.WithGroup(group), flo.WithTables("changes"),
		flo.WithMode(flo.StreamOnly), flo.WithSink(s),
	}, opts...)...)
}

func (b *bench) dropper(group string) func(context.Context) error {
	return func(ctx context.Context) error {
		f, err := b.streaming(group, func() (sink.Sink, error) {
			return sink.Func(func(context.Context, *sink.Batch) error { return nil }), nil
		})
		if err != nil {
			return err
		}
		return f.Drop(ctx)
	}
}

// destination is flo's sink with a native subscription's durability.
func destination(url string, opts ...postgres.Option) (sink.Sink, error) {
	return postgres.New(url, append(opts, postgres.WithSynchronousCommit(postgres.CommitOff))...)
}

// stored is the worker alone, from a backlog that the replicator has put into JetStream before.
func (b *bench) stored(target string, goal float64, connections int) *reader {
	group := b.newGroup()
	open := func() (sink.Sink, error) { return destination(target, postgres.WithApplyConnections(connections)) }
	var end flo.LSN
	var stop func() error
	both := func(ctx context.Context) (err error) {
		f, err := b.streaming(group, open)
		if err != nil {
			return err
		}
		if end, err = b.position(ctx); err != nil {
			return err
		}
		return during(ctx, f.Run, func(ctx context.Context) error { return f.WaitFor(ctx, end) })
	}
	name := "flo's worker, from JetStream"
	if connections > 1 {
		name += fmt.Sprintf(", %d connections", connections)
	}
	return &reader{
		name: name, ours: true, writes: true, goal: goal,
		open: both, // both are known to the stream from then on
		before: func(ctx context.Context) (err error) {
			f, err := b.streaming(group, open)
			if err != nil {
				return err
			}
			if end, err = b.position(ctx); err != nil {
				return err
			}
			return during(ctx, f.Replicator().Run, func(ctx context.Context) error {
				for f.Replicator().Status().Published < end {
					if err := pause(ctx); err != nil {
						return err
					}
				}
				return nil
			})
		},
		read: func(ctx context.Context) error {
			f, err := b.streaming(group, open)
			if err != nil {
				return err
			}
			w := f.Workers()[0]
			stop, err = until(ctx, w.Run, func(ctx context.Context) error {
				for w.Status().Applied < end {
					if err := pause(ctx); err != nil {
						return err
					}
				}
				return nil
			})
			return err
		},
		end: func(ctx context.Context) error { return errors.Join(stop(), b.dropper(group)(ctx)) },
	}
}

// during runs something until the wait is over.
func during(ctx context.Context, run, wait func(context.Context) error) error {
	stop, err := until(ctx, run, wait)
	if err != nil {
		return err
	}
	return stop()
}

// until runs something, and returns when the wait is over; stop ends it.
func until(ctx context.Context, run, wait func(context.Context) error) (stop func() error, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() {
		err := run(ctx)
		if err != nil {
			cancel(err)
		}
		done <- err
	}()
	stop = func() error {
		cancel(nil)
		return <-done
	}
	if err := wait(ctx); err != nil {
		return nil, errors.Join(err, stop())
	}
	return stop, nil
}

// position is a position behind everything that the source has committed.
func (b *bench) position(ctx context.Context) (lsn flo.LSN, err error) {
	err = b.from.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()").Scan(&lsn)
	return lsn, err
}
