package flo_test

import (
	"context"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink/postgres"
)

const walLimit = 16 << 20

// awayFromNATS is a pipeline with a small limit that has copied, and whose NATS is away then while the source
// writes more WAL than that.
func awayFromNATS(t testing.TB, ctx context.Context, action flo.WALAction) (p *pipeline, nats *store, r *run) {
	t.Helper()
	p = newPipeline(t, smallTable)
	p.use(hasty(t).NewDB(t))
	p.src.Exec(t, smallTable)
	nats = p.withStore()
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i`)
	r = p.launch(ctx, flo.WithWALLimit(walLimit, action), flo.WithReplayWindow(0), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	nats.close()
	p.tooMuch()
	return p, nats, r
}

// tooMuch writes more WAL than the limit allows.
func (p *pipeline) tooMuch() {
	p.t.Helper()
	p.src.Exec(p.t, `INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series((SELECT max(id) + 1 FROM t), (SELECT max(id) + 22000 FROM t)) i`)
}

func warned(f *flo.Flo, words string) bool {
	for _, w := range f.Status().Replicator.Warnings {
		if strings.Contains(w, words) {
			return true
		}
	}
	return false
}

func TestASlotThatKeepsTooMuchWALIsShownAndWarnedOfUntilItIsDrained(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, nats, r := awayFromNATS(t, ctx, flo.WarnOnWAL)
	eventually(t, ctx, "the warning", func() bool { return warned(p.f, "keeps more than 16777216 bytes") })
	if st := p.f.Status().Replicator; st.WALKept <= walLimit || st.WALStatus == "" {
		t.Errorf("kept %d, status %q", st.WALKept, st.WALStatus)
	}
	r.running()
	nats.start()
	p.catchUp(ctx)
	p.equal(ctx)
	eventually(t, ctx, "the warning to go", func() bool {
		p.src.Exec(t, `INSERT INTO t SELECT max(id) + 1 FROM t; CHECKPOINT`) // lets the slot's restart_lsn move
		return !warned(p.f, "keeps more than") && p.f.Status().Replicator.WALKept < walLimit
	})
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

func TestASlotThatKeepsTooMuchWALStopsRunAndTheNextStartDrainsIt(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, nats, r := awayFromNATS(t, ctx, flo.StopOnWAL)
	wantStop(t, r.ends(ctx), flo.ErrWALLimit, p.slot(), "16777216", "Start again", "Drop")
	if n := p.src.QueryString(t, `SELECT count(*) FROM pg_replication_slots`); n != "1" {
		t.Fatalf("%s slots, want 1", n)
	}
	// More than the limit is kept at the start: without NATS only what comes on top counts.
	r = p.launch(ctx, flo.WithWALLimit(walLimit, flo.StopOnWAL), flo.WithReplayWindow(0), flo.WithSink(p.sink()))
	eventually(t, ctx, "the slot is seen", func() bool { return p.f.Status().Replicator.WALKept > walLimit })
	r.running()
	p.tooMuch()
	wantStop(t, r.ends(ctx), flo.ErrWALLimit, p.slot(), "16777216", "Start again", "Drop")
	nats.start()
	p.start(ctx, flo.WithWALLimit(walLimit, flo.StopOnWAL), flo.WithReplayWindow(0), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}

func TestASlotThatKeepsTooMuchWALIsDroppedWhereThatWasAskedFor(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, nats, r := awayFromNATS(t, ctx, flo.DropSlotOnWAL)
	wantStop(t, r.ends(ctx), flo.ErrWALLimit, "was dropped", "WithResync")
	if n := p.src.QueryString(t, `SELECT count(*) FROM pg_replication_slots`); n != "0" {
		t.Fatalf("%s slots, want none", n)
	}
	if st := p.f.Status().Replicator; st.WALKept != 0 || !strings.Contains(st.LastError, "WAL") {
		t.Errorf("%+v", st)
	}
	nats.start()
	wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), flo.ErrSlotLost, "no longer exists")
	if err := p.f.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	p.dst.Exec(t, `DELETE FROM flo.checkpoints; DELETE FROM flo.copy_chunks; DELETE FROM flo.copies`)
	p.start(ctx, flo.WithSink(p.sink(postgres.WithTruncateBeforeCopy())))
	p.catchUp(ctx)
	p.equal(ctx)
}
