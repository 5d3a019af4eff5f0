package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// floCopy copies the table through JetStream. Each time it is another group: the destination remembers
// which stream a group's worker has had.
func (b *bench) floCopy(ctx context.Context) error {
	b.groups++
	destination, err := postgres.New(b.targetURL, postgres.WithConnections(b.connections))
	if err != nil {
		return err
	}
	f, err := flo.New(
		flo.WithSource(b.sourceURL), flo.WithNATSServer(b.nats), flo.WithGroup(fmt.Sprintf("copy_%d", b.groups)), flo.WithTables("rows"),
		flo.WithMode(flo.CopyOnly), flo.WithCopyConnections(b.connections), flo.WithSink(destination),
	)
	if err != nil {
		return err
	}
	return errors.Join(f.Run(ctx), f.Drop(ctx))
}

// readers makes a slot for each way of streaming.
func (b *bench) readers(ctx context.Context, what string, run int) ([]reader, error) {
	native, err := b.subscription(ctx)
	if err != nil {
		return nil, err
	}
	applied, err := b.floReader(ctx, fmt.Sprintf("%s_%d", what, run), func() (sink.Sink, error) { return postgres.New(b.targetURL) })
	if err != nil {
		return nil, err
	}
	applied.name, applied.writes = "flo, backlog into PostgreSQL", true
	if what != "stream" {
		return []reader{native, applied}, nil
	}
	discarded, err := b.floReader(ctx, fmt.Sprintf("discard_%d", run), func() (sink.Sink, error) {
		return sink.Func(func(context.Context, *sink.Batch) error { return nil }), nil
	})
	if err != nil {
		return nil, err
	}
	discarded.name = "flo, backlog, sink discards"
	return []reader{native, applied, discarded}, nil
}

// floReader makes a group's slot by running it for a moment. A sink is closed when its worker stops,
// so each run has one of its own.
func (b *bench) floReader(ctx context.Context, group string, open func() (sink.Sink, error)) (reader, error) {
	pipeline := func() (*flo.Flo, error) {
		s, err := open()
		if err != nil {
			return nil, err
		}
		return flo.New(
			flo.WithSource(b.sourceURL), flo.WithNATSServer(b.nats), flo.WithGroup(group), flo.WithTables("changes"),
			flo.WithMode(flo.StreamOnly), flo.WithSink(s),
		)
	}
	first, err := pipeline()
	if err != nil {
		return reader{}, err
	}
	second, err := pipeline()
	if err != nil {
		return reader{}, err
	}
	r := reader{ours: true, end: second.Drop, read: func(ctx context.Context) error { return b.until(ctx, second) }}
	return r, b.until(ctx, first)
}

// until runs flo until all that the source has committed is applied.
func (b *bench) until(ctx context.Context, f *flo.Flo) error {
	end, err := b.position(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan error, 1)
	go func() {
		err := f.Run(ctx)
		if err != nil {
			cancel(err)
		}
		done <- err
	}()
	err = f.WaitFor(ctx, end)
	cancel(nil)
	return errors.Join(err, <-done)
}
