package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo"
)

// tickInterval is that of 200 transactions a second.
const tickInterval = 5 * time.Millisecond

// latency measures from a commit at the source, by its commit timestamp, until a client of the destination that
// asks all the time sees the row. Both clocks are the machine's.
func (b *bench) latency(ctx context.Context) error {
	native := func(ctx context.Context) error {
		if err := execute(ctx, b.from, "DROP PUBLICATION IF EXISTS native", "CREATE PUBLICATION native FOR TABLE ticks"); err != nil {
			return err
		}
		if err := execute(ctx, b.to, fmt.Sprintf("CREATE SUBSCRIPTION native CONNECTION '%s' PUBLICATION native WITH (copy_data = false)", keywords(b.sourceURL))); err != nil {
			return err
		}
		return errors.Join(b.tick(ctx), execute(ctx, b.to, "DROP SUBSCRIPTION native"))
	}
	ours := func(ctx context.Context) error {
		destination, err := destination(b.targetURL)
		if err != nil {
			return err
		}
		f, err := flo.New(
			flo.WithSource(b.sourceURL), flo.WithNATSServer(b.nats), flo.WithGroup(b.newGroup()), flo.WithTables("ticks"),
			flo.WithMode(flo.StreamOnly), flo.WithSink(destination),
		)
		if err != nil {
			return err
		}
		return errors.Join(during(ctx, f.Run, b.tick), f.Drop(ctx))
	}
	for _, s := range []subject{{name: "native subscription", run: native}, {name: "flo", ours: true, goal: 1, run: ours}} {
		s.group, s.changes = "latency", b.ticks
		for _, c := range b.conns() {
			if err := execute(ctx, c, "TRUNCATE ticks"); err != nil {
				return err
			}
		}
		if err := b.measure(ctx, s); err != nil {
			return err
		}
		seen, err := b.latencies(ctx)
		if err != nil {
			return err
		}
		r := b.result(s)
		r.latencies = append(r.latencies, seen...)
	}
	return nil
}

// warmup is how many ticks aren't counted.
const warmup = 50

// tick commits a row every tickInterval, when the first ones have arrived, and waits for the last one.
func (b *bench) tick(ctx context.Context) error {
	b.seen = make([]time.Time, b.ticks+warmup+1)
	for id := -1_000_000; ; id++ { // the slot may not be there yet: these are not counted
		if err := execute(ctx, b.from, fmt.Sprintf("INSERT INTO ticks VALUES (%d)", id)); err != nil {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
		var there bool
		if err := b.to.QueryRow(ctx, "SELECT EXISTS (SELECT FROM ticks)").Scan(&there); err != nil {
			return err
		}
		if there {
			break
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		ticker := time.NewTicker(tickInterval)
		defer ticker.Stop()
		for id := 1; id < len(b.seen); id++ {
			if _, err := b.from.Exec(ctx, "INSERT INTO ticks VALUES ($1)", id); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
			}
		}
		return nil
	})
	g.Go(func() error { return b.watch(ctx) })
	return g.Wait()
}

// watchInterval is how often the destination is asked.
const watchInterval = 200 * time.Microsecond

// watch notes when each tick is seen at the destination.
func (b *bench) watch(ctx context.Context) error {
	for last := 0; last < len(b.seen)-1; {
		var id int
		if err := b.to.QueryRow(ctx, "SELECT COALESCE(max(id), 0) FROM ticks WHERE id > 0").Scan(&id); err != nil {
			return err
		}
		now := time.Now()
		for ; last < id; last++ {
			b.seen[last+1] = now
		}
		time.Sleep(watchInterval)
	}
	return nil
}

// latencies joins when they were seen with the source's commit timestamps.
func (b *bench) latencies(ctx context.Context) ([]time.Duration, error) {
	rows, err := b.from.Query(ctx, "SELECT id, pg_xact_commit_timestamp(xmin) FROM ticks WHERE id > $1", warmup)
	if err != nil {
		return nil, err
	}
	var all []time.Duration
	for rows.Next() {
		var id int
		var at time.Time
		if err := rows.Scan(&id, &at); err != nil {
			return nil, err
		}
		all = append(all, b.seen[id].Sub(at))
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if len(all) != b.ticks {
		return nil, fmt.Errorf("%d of %d ticks arrived", len(all), b.ticks)
	}
	return all, nil
}
