package flo_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/wire"
)

// whole runs a second group on the same source, whose changes are read without streaming, and gives its recorder.
func (p *pipeline) whole(ctx context.Context, opts ...flo.Option) (*flo.Flo, *flotest.Recorder) {
	p.t.Helper()
	rec := &flotest.Recorder{}
	f, err := flo.New(p.options(append([]flo.Option{flo.WithGroup("whole"), flo.WithSlot("whole_" + p.src.Name), flo.WithSink(rec)}, opts...)...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	launch(p.t, ctx, f)
	return f, rec
}

// streamedTxns is how many transactions the source has streamed to the group's slot.
func (p *pipeline) streamedTxns() string {
	p.t.Helper()
	return p.src.QueryString(p.t, `SELECT coalesce(sum(stream_txns), 0) FROM pg_stat_replication_slots WHERE slot_name = '`+p.slot()+`'`)
}

// noneStaged waits until nothing is staged any more. The checkpoints have to move for that.
func (p *pipeline) noneStaged(ctx context.Context) {
	p.t.Helper()
	s := p.stream(ctx)
	n := 0
	eventually(p.t, ctx, "nothing is staged any more", func() bool {
		n++
		p.src.Exec(p.t, `SELECT txid_current()`)
		info, err := s.Info(ctx, withSubjects(p, "staged.>"))
		return err == nil && len(info.State.Subjects) == 0
	})
}

func TestStreamedTransactionsAreTheSameChangesAsWholeOnes(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	p := newPipeline(t, streamedSchema()...)
	streamEarly(t, p.src)
	rec := &flotest.Recorder{}
	whole, want := p.whole(ctx)
	p.start(ctx, flo.WithStreaming(true), flo.WithSink(rec))
	p.catchUp(ctx)
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	w := newStreamedWriter(t, p.src, rand.New(rand.NewPCG(seed, 0)))
	w.ddl = true
	w.steps(ctx, 400)
	w.finish(ctx)
	p.catchUp(ctx)
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	got := streamedChanges(t, rec)
	sameLines(t, "streamed", got, streamedChanges(t, want))
	t.Logf("%d changes, %s transactions streamed", len(got), p.streamedTxns())
	eventually(t, ctx, "transactions were streamed", func() bool { return p.streamedTxns() != "0" })
	p.noneStaged(ctx)
}

func TestStreamedTransactionsOverRestartsOfTheReplicator(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	p := newPipeline(t, streamedSchema()...)
	streamEarly(t, p.src)
	rec := &flotest.Recorder{}
	whole, want := p.whole(ctx)
	launch(t, ctx, p.worker(flo.WithSink(rec)))
	launch(t, ctx, p.worker(flo.WithWorker("tables", p.sink())))
	early := true
	start := func() *run { return launch(t, ctx, p.replicator(flo.WithStreaming(early))) }
	rep := start()
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "the copy is done", func() bool { return rep.of.(*flo.Replicator).Status().CopyDone })
	w := newStreamedWriter(t, p.src, r)
	w.messages = true
	for range 8 {
		w.steps(ctx, 40)
		switch r.IntN(3) {
		case 0:
			if err := rep.stop(); err != nil {
				t.Fatal(err)
			}
			early = r.IntN(4) > 0 // a transaction that was streamed comes whole, and the other way round
			rep = start()
		case 1:
			p.endWalsender(ctx)
		}
	}
	w.finish(ctx)
	if !early {
		if err := rep.stop(); err != nil {
			t.Fatal(err)
		}
		early = true
		rep = start()
	}
	p.published(ctx, rep.of.(*flo.Replicator))
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	lines := streamedChanges(t, want)
	eventually(t, ctx, "all is recorded", func() bool { return len(streamedChanges(t, rec)) >= len(lines) })
	sameLines(t, "streamed", streamedChanges(t, rec), lines)
	eventually(t, ctx, "the tables are equal", func() bool { return p.same(ctx) })
	p.equal(ctx)
	p.noneStaged(ctx)
}

// same reports whether both sides have as much.
func (p *pipeline) same(ctx context.Context) bool {
	const sum = `SELECT string_agg(x, ' ') FROM (
		SELECT count(*) || '/' || sum(v) || '/' || sum(id) AS x FROM shared UNION ALL SELECT count(*) || '/' || sum(id) FROM own0
		UNION ALL SELECT count(*) || '/' || sum(id) FROM own1 UNION ALL SELECT count(*) || '/' || sum(id) FROM own2) s`
	return p.src.QueryString(p.t, sum) == p.dst.QueryString(p.t, sum)
}

// A transaction's changes are in the stream while it is open, and no worker sees any of it before the commit, nor
// of what is rolled back, ever.
func TestWhatIsStreamedIsSeenAtItsCommit(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	streamEarly(t, p.src)
	p.start(ctx, flo.WithStreaming(true), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	conn := p.src.Conn(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	staged := func() (n int) {
		for _, m := range p.messages(ctx) {
			if m.head.Kind == wire.Staged {
				n++
			}
		}
		return n
	}
	for _, end := range []string{"ROLLBACK", "COMMIT"} {
		exec("BEGIN")
		exec(`INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 5000) i`)
		exec(`SAVEPOINT s; INSERT INTO t SELECT i, repeat('y', 500) FROM generate_series(10001, 15000) i; ROLLBACK TO s`)
		eventually(t, ctx, "a part of it is in the stream", func() bool { return staged() > 2 })
		p.src.Exec(t, `INSERT INTO t VALUES ($1, 'beside it')`, 100_000+len(end))
		p.catchUp(ctx)
		if n := p.dst.QueryString(t, `SELECT count(*) FROM t WHERE id < 100000`); n != "0" {
			t.Fatalf("%s rows of an open transaction are at the destination", n)
		}
		exec(end)
	}
	p.catchUp(ctx)
	p.equal(ctx)
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t WHERE id < 100000`); n != "5000" {
		t.Errorf("%s rows", n)
	}
	p.noneStaged(ctx)
}

// A part of a transaction that stands on `changes` is forgotten when the same transaction comes streamed.
func TestATransactionThatWasBegunWholeComesStreamed(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	streamEarly(t, p.src)
	const rows = 20_000
	p.interruptedTransaction(ctx, rows)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithStreaming(true), flo.WithWorker("default", rec), flo.WithWorker("tables", p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
	var last uint64
	for _, c := range rec.Changes() {
		if c.Ordinal != last+1 {
			t.Fatalf("ordinal %d comes after %d", c.Ordinal, last)
		}
		last = c.Ordinal
	}
	if last != rows {
		t.Errorf("%d rows", last)
	}
}

// A message within a savepoint that is rolled back can't be told from others: the transaction is read whole.
func TestAMessageThatMayHaveBeenRolledBackIsReadWhole(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	streamEarly(t, p.src)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithStreaming(true), flo.WithSink(rec))
	p.catchUp(ctx)
	p.src.Exec(t, `DO $$ BEGIN
		INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 500) i;
		BEGIN
			PERFORM pg_logical_emit_message(true, 'flo', 'rolled back');
			INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1001, 1500) i;
			RAISE 'no';
		EXCEPTION WHEN others THEN NULL;
		END;
		PERFORM pg_logical_emit_message(true, 'flo', 'kept');
		INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(2001, 2500) i;
	END $$`)
	p.catchUp(ctx)
	var messages []string
	n := 0
	for _, c := range rec.Changes() {
		if c.Op == decode.OpMessage {
			messages = append(messages, string(c.Message.Content))
		}
		n++
	}
	if !slices.Equal(messages, []string{"kept"}) || n != 1001 {
		t.Errorf("%d changes, messages %q", n, messages)
	}
	eventually(t, ctx, "the next one is streamed again", func() bool {
		p.src.Exec(t, `UPDATE t SET v = v || 'x'`)
		p.catchUp(ctx)
		return slices.ContainsFunc(p.messages(ctx), func(m stored) bool { return m.has(wire.RecStreamed) })
	})
}

// Open transactions may take a part of the stream only; one that takes more is read whole.
func TestStreamedTransactionsLeaveRoomInALimitedStream(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	streamEarly(t, p.src)
	p.start(ctx, flo.WithStreaming(true), flo.WithStreamMaxBytes(16<<20), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	for _, rows := range []int{4000, 4000, 4000, 4000, 10_000, 4000} {
		p.src.Exec(t, `INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, $1::int) i`, rows)
		p.src.Exec(t, `DELETE FROM wide`)
	}
	p.catchUp(within(t, ctx, time.Minute))
	p.equal(ctx)
}
