package flo_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink"
)

// A copy that is cut short leaves parts of large rows in the stream, which the next attempt purges but for
// the last: a worker that is still at the old attempt must not take that for a gap.
func TestACopyOfRowsLargerThanMessagesIsCutShortAgainAndAgain(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE big (id int PRIMARY KEY, w text)`)
	p.src.Exec(t, `ALTER TABLE big ALTER w SET STORAGE EXTERNAL; INSERT INTO big SELECT i, repeat(md5(i::text), 100000) FROM generate_series(1, 40) i`)
	for _, after := range []time.Duration{300, 500, 700, 400, 600, 800} {
		p.start(ctx, flo.WithSink(p.sink()))
		if err := pause(ctx, after*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
	}
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}

// pause is a moment of a schedule, not a wait for something.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func TestAModeThatDoesNotGoOnWithTheGroupsIsRefused(t *testing.T) {
	for _, c := range []struct{ first, then flo.Mode }{
		{flo.StreamOnly, flo.CopyAndStream}, {flo.StreamOnly, flo.CopyOnly}, {flo.CopyAndStream, flo.CopyOnly},
	} {
		t.Run(string(c.first)+" then "+string(c.then), func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, smallTable)
			p.start(ctx, flo.WithMode(c.first), flo.WithSink(p.sink()))
			p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
			p.catchUp(ctx)
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			err := p.launch(ctx, flo.WithMode(c.then), flo.WithSink(p.sink())).ends(ctx)
			wantStop(t, err, flo.ErrMode, "shop", "Drop")
		})
	}
}

func TestDropBesideARunningPipelineRemovesNothing(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithLeaseTime(time.Second))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	other, err := flo.New(p.options(flo.WithSink(p.sink()), flo.WithLeaseTime(time.Second))...)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Drop(ctx); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Fatalf("%v", err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	p.catchUp(ctx)
	p.equal(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if err := other.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	if n := p.src.QueryString(t, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); n != "0" {
		t.Errorf("%s slots are left", n)
	}
}

func TestASinkThatIgnoresItsContextDoesNotHoldUpAStop(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	release, called := make(chan struct{}), make(chan struct{}, 1)
	defer close(release)
	r := p.launch(ctx, flo.WithSink(sink.Func(func(context.Context, *sink.Batch) error {
		select {
		case called <- struct{}{}:
		default:
		}
		<-release
		return nil
	})))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	select {
	case <-called:
	case <-ctx.Done():
		t.Fatal("the sink was not called")
	}
	began := time.Now()
	if err := r.stop(); !errors.Is(err, flo.ErrNotDrained) {
		t.Fatalf("%v", err)
	}
	t.Logf("Run returned %s after its context ended", time.Since(began).Round(time.Second))
}

func TestACopyOnlyGroupEndsFinished(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	f, err := flo.New(p.options(flo.WithMode(flo.CopyOnly), flo.WithSink(p.sink()))...)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Run(ctx); err != nil {
		t.Fatal(err)
	}
	st := f.Status()
	if st.Replicator.Phase != flo.PhaseFinished || st.Workers[0].Phase != flo.PhaseFinished {
		t.Errorf("phases %s and %s", st.Replicator.Phase, st.Workers[0].Phase)
	}
	p.equal(ctx)
}

func TestATableThatLosesItsKeyOrIsNewIsNoticedWhileRunning(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	p.src.Exec(t, `ALTER TABLE t DROP CONSTRAINT t_pkey; CREATE TABLE late (id int PRIMARY KEY)`)
	eventually(t, ctx, "the host can delete again", func() bool { return p.src.TryExec(ctx, `DELETE FROM t WHERE id = 1`) == nil })
	warned := func(what string) func() bool {
		return func() bool { return strings.Contains(strings.Join(p.f.Status().Replicator.Warnings, "\n"), what) }
	}
	eventually(t, ctx, "a warning of the new table", warned(`"late" is not replicated`))
	eventually(t, ctx, "a warning of the lost key", warned(`"t" has no replica identity`))
}
