package flo_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

// lateWorker has a destination of its own with an empty table t, and starts at now.
func (p *pipeline) lateWorker(ctx context.Context, db *flotest.DB, opts ...flo.WorkerOption) (*run, *flo.Worker) {
	p.t.Helper()
	s, err := postgres.New(db.URL)
	if err != nil {
		p.t.Fatal(err)
	}
	w := p.worker(flo.WithWorker("late", s, append([]flo.WorkerOption{flo.WithStartAt(flo.StartAtNow)}, opts...)...))
	return launch(p.t, ctx, w), w
}

func TestALateWorkerStartsAtNowWhereTheStreamNoLongerHoldsTheCopy(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (1000, 'x')`)
	p.catchUp(ctx)
	p.purged(ctx)
	late := flotest.Postgres(t)
	late.Exec(t, smallTable)
	r, w := p.lateWorker(ctx, late)
	eventually(t, ctx, "the late worker's position", func() bool { return w.Status().Applied > 0 })
	p.src.Exec(t, `INSERT INTO t VALUES (1001, 'x'); INSERT INTO t VALUES (1002, 'x')`)
	p.catchUp(ctx) // waits for the late one too
	ids := func() string { return late.QueryString(t, `SELECT string_agg(id::text, ',' ORDER BY id) FROM t`) }
	if got := ids(); got != "1001,1002" {
		t.Errorf("it got %s", got)
	}
	// "Now" was decided once: what comes while it is away is not left out.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1003, 'x')`)
	p.lateWorker(ctx, late)
	p.catchUp(ctx)
	if got := ids(); got != "1001,1002,1003" {
		t.Errorf("it got %s", got)
	}
}

// The position is kept before the first change, so a worker that was killed at once has lost nothing either.
func TestALateWorkerThatHasWrittenNothingGoesOnFromItsFirstNow(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	rec := new(flotest.Recorder) // keeps no checkpoint of its own
	opt := flo.WithWorker("late", rec, flo.WithStartAt(flo.StartAtNow))
	w := p.worker(opt)
	r := launch(t, ctx, w)
	eventually(t, ctx, "its position", func() bool { return w.Status().Applied > 0 })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	launch(t, ctx, p.worker(opt))
	p.catchUp(ctx)
	if got := rec.Changes(); len(got) != 1 || got[0].New[0].String() != "2" {
		t.Errorf("it got %d changes: %v", len(got), got)
	}
}

func TestALateWorkerWaitsForTheEndOfTheCopy(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i`)
	late := flotest.Postgres(t)
	late.Exec(t, smallTable)
	_, w := p.lateWorker(ctx, late)
	eventually(t, ctx, "it waits", func() bool { return w.Status().Phase == flo.PhaseWaiting })
	p.start(ctx, flo.WithSink(p.sink()))
	eventually(t, ctx, "its position", func() bool { return w.Status().Applied > 0 })
	p.src.Exec(t, `INSERT INTO t VALUES (1000, 'x')`)
	p.catchUp(ctx)
	p.equal(ctx)
	if got := late.QueryString(t, `SELECT string_agg(id::text, ',') FROM t`); got != "1000" {
		t.Errorf("it got %s", got)
	}
}

// The stream's tail lies within a transaction: the late worker begins before it, and gets it whole.
func TestALateWorkerStartsAtTheBoundaryOfATransactionThatIsOpenInTheStream(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (0, 'x')`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat(md5(i::text), 40) FROM generate_series(1, 20000) i`) // 25 MB
	wantStop(t, p.launch(ctx, flo.WithStreamMaxBytes(16<<20), flo.WithSink(p.sink())).ends(ctx), flo.ErrTransactionTooLarge, "raise WithStreamMaxBytes")
	late := flotest.Postgres(t)
	late.Exec(t, smallTable)
	_, w := p.lateWorker(ctx, late)
	eventually(t, ctx, "its position", func() bool { return w.Status().Applied > 0 })
	p.start(ctx, flo.WithStreamMaxBytes(64<<20), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
	if got := late.QueryString(t, `SELECT count(*) || ' from ' || min(id) FROM t`); got != "20000 from 1" {
		t.Errorf("it got %s", got)
	}
}

func TestALateWorkerWhoseSinkLostItsCheckpointDoesNotSkipWhatCameSince(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	late := flotest.Postgres(t)
	late.Exec(t, smallTable)
	r, w := p.lateWorker(ctx, late)
	eventually(t, within(t, ctx, 20*time.Second), "its position", func() bool { return w.Status().Applied > 0 })
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	eventually(t, within(t, ctx, 20*time.Second), "it works", func() bool { return late.QueryString(t, `SELECT count(*) FROM t`) == "1" })
	p.catchUp(ctx)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	late.Exec(t, `DROP SCHEMA flo CASCADE; TRUNCATE t`)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	r, _ = p.lateWorker(ctx, late)
	wantStop(t, r.ends(ctx), flo.ErrGap, "late", "RemoveWorker")
	if err := p.f.RemoveWorker(ctx, "late"); err != nil { // as the text says
		t.Fatal(err)
	}
	_, w = p.lateWorker(ctx, late)
	eventually(t, ctx, "its position", func() bool { return w.Status().Applied > 0 })
	p.src.Exec(t, `INSERT INTO t VALUES (3, 'x')`)
	p.catchUp(ctx)
	if got := late.QueryString(t, `SELECT string_agg(id::text, ',') FROM t`); got != "3" {
		t.Errorf("it got %s", got)
	}
}

func TestAnIdleWorkerIsReportedUntilItIsRemoved(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithLeaseTime(time.Second))
	w := launch(t, ctx, p.worker(flo.WithWorker("vanished", new(flotest.Recorder)), flo.WithLeaseTime(time.Second)))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	if idle := p.f.Status().Replicator.Idle; len(idle) != 0 {
		t.Errorf("nobody is idle: %+v", idle)
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		p.src.Exec(t, `INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series($1::int, $1::int + 99) i`, 1000*(i+1))
	}
	eventually(t, ctx, "it is reported", func() bool {
		idle := p.f.Status().Replicator.Idle
		return len(idle) == 1 && idle[0].Name == "vanished" && idle[0].Messages > 0 && idle[0].Bytes > 1<<20 && time.Since(idle[0].Since) < time.Minute
	})
	eventually(t, ctx, "it is warned of", func() bool { return warned(p.f, `"vanished" is registered and has not run since`) })
	if warned(p.f, `"default" is registered`) {
		t.Errorf("the worker that runs is warned of: %q", p.f.Status().Replicator.Warnings)
	}
	if err := p.f.RemoveWorker(ctx, "vanished"); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "the report ends", func() bool {
		return len(p.f.Status().Replicator.Idle) == 0 && !strings.Contains(strings.Join(p.f.Status().Replicator.Warnings, ";"), "vanished")
	})
	p.catchUp(ctx)
	s := p.stream(ctx)
	eventually(t, ctx, "the stream shrinks", func() bool {
		info, err := s.Info(ctx)
		return err == nil && info.State.Bytes < 1<<20
	})
}
