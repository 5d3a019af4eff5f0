package flo_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

// slack is what a busy machine may add to a bound.
const slack = 4 * time.Second

// stopsWithin stops a run, and checks that it took no longer than the bound, and that nothing is left: no
// goroutine, no session at either database, no temporary slot.
func (p *pipeline) stopsWithin(ctx context.Context, r *run, bound time.Duration, lasting string) error {
	p.t.Helper()
	began := time.Now()
	err := r.stop()
	if d := time.Since(began); d > bound+slack {
		p.t.Errorf("the stop took %s, the bound is %s", d, bound)
	}
	if err != nil && !errors.Is(err, flo.ErrNotDrained) {
		p.t.Errorf("Run: %v", err)
	}
	p.t.Logf("stopped after %s: %v", time.Since(began), err)
	noGoroutines(p.t, ctx)
	p.nothingLeft(ctx, lasting)
	return err
}

// nothingLeft checks the servers: sessions of flo end within a moment of their socket's end, and of slots only
// the lasting one stays, if there is one.
func (p *pipeline) nothingLeft(ctx context.Context, slots string) {
	p.t.Helper()
	for _, db := range []*flotest.DB{p.src, p.dst} {
		left := ""
		eventually(p.t, within(p.t, ctx, 10*time.Second), "the sessions of flo to end", func() bool {
			left = db.QueryString(p.t, `SELECT coalesce(string_agg(application_name || ': ' || query, E'\n'), '') FROM pg_stat_activity
				WHERE application_name LIKE 'flo%' AND datname = current_database()`)
			return left == ""
		})
	}
	if got := p.src.QueryString(p.t, `SELECT coalesce(string_agg(slot_name || CASE WHEN temporary THEN ' (temporary)' ELSE '' END, ','), '')
		FROM pg_replication_slots WHERE database = current_database()`); got != slots {
		p.t.Errorf("slots %q are left, want %q", got, slots)
	}
}

func TestAStopIsBoundedInMidCopyWithAHungSink(t *testing.T) {
	const bound = 2 * time.Second
	for name, mode := range map[string]struct {
		mode flo.Mode
		slot string
	}{"lasting slot": {flo.CopyAndStream, "flo_shop"}, "temporary slot": {flo.CopyOnly, ""}} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, smallTable)
			p.src.Exec(t, `INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(1, 40000) i`)
			var hung atomic.Int64
			s := sink.Func(func(ctx context.Context, _ *sink.Batch) error {
				hung.Add(1)
				<-ctx.Done()
				return ctx.Err()
			})
			// The stream's limit keeps the copy from getting ahead of the sink.
			r := p.launch(ctx, flo.WithMode(mode.mode), flo.WithStopTimeout(bound), flo.WithStreamMaxBytes(16<<20), flo.WithSink(s))
			eventually(t, ctx, "the sink to hang", func() bool { return hung.Load() > 0 })
			eventually(t, within(t, ctx, 20*time.Second), "the copy to be under way", func() bool {
				return p.src.QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'flo%' AND query LIKE 'COPY%'`) != "0"
			})
			p.stopsWithin(ctx, r, bound, mode.slot)
		})
	}
}

func TestAStopIsBoundedInMidTransactionWithADestinationThatWaits(t *testing.T) {
	ctx := testContext(t)
	const bound = 2 * time.Second
	p := newPipeline(t, smallTable)
	r := p.launch(ctx, flo.WithStopTimeout(bound), flo.WithBatchSize(100), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	lock := p.dst.Conn(t)
	if _, err := lock.Exec(ctx, `BEGIN; LOCK TABLE t`); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 20000) i`)
	eventually(t, ctx, "the sink to wait for the lock", func() bool {
		return p.dst.QueryString(t, `SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name LIKE 'flo%' AND wait_event_type = 'Lock'`) == "t"
	})
	p.stopsWithin(ctx, r, bound, "flo_shop")
	if _, err := lock.Exec(ctx, `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}

// stuck never returns from Write until it is released.
type stuck struct{ called, release, closed chan struct{} }

func (s *stuck) Write(context.Context, *sink.Batch) error {
	close(s.called)
	<-s.release
	return nil
}

func (s *stuck) Close(context.Context) error {
	close(s.closed)
	return nil
}

// A sink that ignores its context can't be ended; Run returns all the same, and says so.
func TestAStopIsBoundedWithASinkThatNeverReturns(t *testing.T) {
	ctx := testContext(t)
	const bound = time.Second
	p := newPipeline(t, smallTable)
	s := &stuck{called: make(chan struct{}), release: make(chan struct{}), closed: make(chan struct{})}
	r := p.launch(ctx, flo.WithMode(flo.StreamOnly), flo.WithStopTimeout(bound), flo.WithSink(s))
	eventually(t, ctx, "the slot", func() bool { return p.f.Status().Replicator.Phase == flo.PhaseStreaming })
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	<-s.called
	began := time.Now()
	err := r.stop()
	if d := time.Since(began); d > bound+slack {
		t.Errorf("the stop took %s, the bound is %s", d, bound)
	}
	wantStop(t, err, flo.ErrNotDrained, "the sink has not returned")
	select {
	case <-s.closed:
		t.Error("the sink was closed under its Write")
	default:
	}
	close(s.release) // when it does return, it is closed after all
	<-s.closed
	noGoroutines(t, ctx)
	p.nothingLeft(ctx, "flo_shop")
}

func TestAStopIsBoundedAndLeavesNothingWhileNATSIsAway(t *testing.T) {
	ctx := testContext(t)
	const bound = 2 * time.Second
	p := newPipeline(t, wideTable)
	store := p.withStore()
	r := p.launch(ctx, flo.WithStopTimeout(bound), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	store.close()
	p.src.Exec(t, `INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 20000) i`)
	eventually(t, ctx, "the source to be read", func() bool {
		return p.src.QueryString(t, `SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'flo%' AND state = 'streaming'
			AND sent_lsn > write_lsn - 1`) != "0"
	})
	p.stopsWithin(ctx, r, bound, "flo_shop")
	store.start()
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}

// While PostgreSQL makes a slot it waits for transactions that are open; a stop then leaves no slot.
func TestAStopIsBoundedWhileTheSlotIsMade(t *testing.T) {
	ctx := testContext(t)
	const bound = 2 * time.Second
	p := newPipeline(t, smallTable)
	old := p.src.Conn(t)
	if _, err := old.Exec(ctx, `BEGIN; INSERT INTO t VALUES (1, 'x')`); err != nil {
		t.Fatal(err)
	}
	r := p.launch(ctx, flo.WithStopTimeout(bound), flo.WithSink(p.sink()))
	eventually(t, ctx, "the slot to be made", func() bool { return p.f.Status().Replicator.Phase == flo.PhaseCreatingSlot })
	p.stopsWithin(ctx, r, bound, "")
}
