package flo_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/sink"
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
	s, conn := p.stream(ctx), p.src.Conn(p.t)
	eventually(p.t, ctx, "nothing is staged any more", func() bool {
		if _, err := conn.Exec(ctx, `SELECT txid_current()`); err != nil {
			p.t.Fatal(err)
		}
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
	w.steps(ctx, 250)
	w.finish(ctx)
	p.catchUp(ctx)
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	got := streamedChanges(t, rec)
	sameLines(t, "streamed", got, streamedChanges(t, want))
	eventually(t, ctx, "transactions were streamed", func() bool { return p.streamedTxns() != "0" })
	t.Logf("%d changes, %s transactions streamed", len(got), p.streamedTxns())
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
	workers := []*flo.Worker{p.worker(flo.WithSink(rec)), p.worker(flo.WithWorker("tables", p.sink()))}
	for _, w := range workers {
		launch(t, ctx, w)
	}
	early := true
	start := func() *run { return launch(t, ctx, p.replicator(flo.WithStreaming(early))) }
	rep := start()
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "the copy is done", func() bool { return rep.of.(*flo.Replicator).Status().CopyDone })
	w := newStreamedWriter(t, p.src, r)
	w.messages = true
	for range 6 {
		w.steps(ctx, 30)
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
	end := p.now()
	p.published(ctx, rep.of.(*flo.Replicator))
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	for _, w := range workers {
		eventually(t, ctx, "worker "+w.Name()+" has all", func() bool { return w.Status().Applied >= end })
	}
	sameLines(t, "streamed", streamedChanges(t, rec), streamedChanges(t, want))
	p.equal(ctx)
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
	const rows = 6_000
	p.interruptedTransaction(ctx, rows)
	again := launch(t, ctx, p.replicator(flo.WithStreaming(true)))
	eventually(t, ctx, "the end is in the stream", func() bool {
		all := p.messages(ctx)
		return slices.ContainsFunc(all, func(m stored) bool { return m.has(wire.RecStreamed) })
	})
	if !slices.ContainsFunc(p.messages(ctx), func(m stored) bool { return m.has(wire.RecAbort) }) {
		t.Error("the part that was published before was not aborted")
	}
	if err := again.stop(); err != nil {
		t.Fatal(err)
	}
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
	// A message that no event trigger wrote is not shown, but has its ordinal: here the one that was kept.
	changes := rec.Changes()
	for i, c := range changes {
		want := uint64(i + 1)
		if i >= 500 {
			want++
		}
		if c.Op != decode.OpInsert || c.Ordinal != want {
			t.Fatalf("change %d: %s with ordinal %d, want an insert with %d", i, c.Op, c.Ordinal, want)
		}
	}
	if len(changes) != 1000 {
		t.Errorf("%d changes", len(changes))
	}
	eventually(t, ctx, "the next one is streamed again", func() bool {
		p.src.Exec(t, `UPDATE t SET v = v || 'x'`)
		p.catchUp(ctx)
		return slices.ContainsFunc(p.messages(ctx), func(m stored) bool { return m.has(wire.RecStreamed) })
	})
}

// Neither types nor tables that a transaction makes are in the catalog that others see before it commits.
func TestAStreamedTransactionMakesAPartitionAndWritesToIt(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE parent (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)`,
		`CREATE TABLE zero PARTITION OF parent FOR VALUES FROM (-10) TO (0)`)
	p.dst.Exec(t, `CREATE TABLE one PARTITION OF parent FOR VALUES FROM (0) TO (10000); CREATE TYPE mood AS ENUM ('bad', 'good'); ALTER TABLE parent ADD COLUMN m mood`)
	p.src.Exec(t, `CREATE PUBLICATION adopted FOR TABLE parent`)
	streamEarly(t, p.src)
	p.start(ctx, flo.WithPublication("adopted"), flo.WithStreaming(true), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	conn := p.src.Conn(t)
	for _, sql := range []string{
		`BEGIN`, `CREATE TABLE one PARTITION OF parent FOR VALUES FROM (0) TO (10000)`,
		`INSERT INTO parent SELECT i, repeat('x', 500) FROM generate_series(1, 1000) i`,
		`SAVEPOINT s`, `CREATE TABLE two PARTITION OF parent FOR VALUES FROM (10000) TO (20000)`,
		`INSERT INTO parent SELECT i, repeat('x', 500) FROM generate_series(9001, 11000) i`, `ROLLBACK TO s`,
		`CREATE TYPE mood AS ENUM ('bad', 'good')`, `ALTER TABLE parent ADD COLUMN m mood`,
		`INSERT INTO parent SELECT i, repeat('x', 500), 'good' FROM generate_series(2001, 3000) i`, `COMMIT`,
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	p.src.Exec(t, `INSERT INTO parent VALUES (5000, 'behind it', 'bad')`)
	p.catchUp(ctx)
	p.equal(ctx, "public.one", "public.zero")
	eventually(t, ctx, "it was streamed", func() bool { return p.streamedTxns() != "0" })
}

// What is staged may be lost with a part of the stream, or deleted by somebody.
func TestAStreamedTransactionWhoseChangesAreGoneIsAGap(t *testing.T) {
	stagedMessageIsGone(t, 1)
}

func TestAStreamedTransactionWithAHoleIsAGap(t *testing.T) { stagedMessageIsGone(t, 4) }

// stagedMessageIsGone deletes the nth staged message of a transaction before a worker comes.
func stagedMessageIsGone(t *testing.T, nth int) {
	t.Helper()
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	streamEarly(t, p.src)
	rep := p.replicator(flo.WithStreaming(true))
	r := launch(t, ctx, rep)
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	p.src.Exec(t, `INSERT INTO t VALUES (0, 'x')`)
	eventually(t, ctx, "the first row", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "1" })
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 10000) i`)
	p.published(ctx, rep)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	s := p.stream(ctx)
	info, err := s.Info(ctx, withSubjects(p, "staged.*.*"))
	if err != nil || len(info.State.Subjects) != 1 {
		t.Fatalf("%v %v", info.State.Subjects, err)
	}
	for _, m := range p.messages(ctx) {
		if info.State.Subjects[m.subject] == 0 {
			continue
		}
		if nth--; nth == 0 {
			if err := s.DeleteMsg(ctx, m.seq); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	wantStop(t, launch(t, ctx, p.worker(flo.WithSink(p.sink()))).ends(ctx), flo.ErrGap, "staged", "Drop")
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "1" {
		t.Errorf("%s rows: a part of the transaction is at the destination", n)
	}
}

// Large transactions come one behind the other, with nothing between: what is staged of one must not keep out the next
// when its record is the last message of the stream.
func TestStreamedTransactionsFollowEachOtherThroughALimitedStream(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	streamEarly(t, p.src)
	p.start(ctx, flo.WithStreaming(true), flo.WithStreamMaxBytes(16<<20), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	for i := range 4 {
		p.src.Exec(t, `INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series($1::int + 1, $1 + 6000) i`, i*6000)
	}
	p.catchUp(within(t, ctx, time.Minute))
	p.equal(ctx)
	if w := p.f.Status().Replicator.Warnings; len(w) > 0 {
		t.Errorf("the transactions are to be streamed: %q", w)
	}
}

// The stream is rolled back to where a transaction was staged in part; the slot sends it again.
func TestAStreamRolledBackIntoAStagedTransactionIsFilledUp(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	streamEarly(t, p.src)
	store, window := lazyStore(p)
	r := p.launch(ctx, window, flo.WithStreaming(true), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	conn := p.src.Conn(t)
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`BEGIN`)
	exec(`INSERT INTO log SELECT now(), repeat('x', 500) FROM generate_series(1, 5000)`)
	eventually(t, ctx, "a part is staged", func() bool {
		return slices.ContainsFunc(p.messages(ctx), func(m stored) bool { return m.head.Kind == wire.Staged })
	})
	backup := store.save()
	exec(`INSERT INTO log SELECT now(), repeat('y', 500) FROM generate_series(1, 5000)`)
	exec(`COMMIT`)
	p.src.Exec(t, `INSERT INTO log VALUES (now(), 'behind it')`)
	p.catchUp(ctx)
	store.close()
	store.restore(backup)
	store.start()
	p.src.Exec(t, `INSERT INTO log VALUES (now(), 'last')`)
	p.src.Exec(t, `INSERT INTO log SELECT now(), repeat('z', 500) FROM generate_series(1, 5000)`)
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()
}

// What a sink refuses of a streamed transaction is found, and lies under the position that it has without streaming.
func TestAStreamedTransactionsDeadLettersHaveItsPositions(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	streamEarly(t, p.src)
	whole, want := p.whole(ctx)
	rec := &flotest.Recorder{}
	refused := map[string]bool{"7": true, "700": true}
	id := func(c *decode.Change) string { return string(c.New[0].Bytes()) }
	p.start(ctx, flo.WithStreaming(true), flo.WithErrorPolicy(flo.DeadLetter), flo.WithBatchSize(500), flo.WithSink(sink.Func(func(ctx context.Context, b *sink.Batch) error {
		for _, c := range b.Changes {
			if refused[id(c)] {
				return sink.Permanent(errors.New("no"))
			}
		}
		return rec.Write(ctx, b)
	})))
	p.catchUp(ctx)
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `DO $$ BEGIN
		INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 600) i;
		BEGIN
			INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(601, 1200) i;
			RAISE 'no';
		EXCEPTION WHEN others THEN NULL;
		END;
		INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(601, 1500) i;
	END $$`)
	p.catchUp(ctx)
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	positions := map[decode.Position]bool{}
	for _, c := range want.Changes() {
		if refused[id(c)] {
			positions[c.Position()] = true
		}
	}
	letters := 0
	for l, err := range p.f.DeadLetters(ctx, "default") {
		if err != nil {
			t.Fatal(err)
		}
		letters++
		if !positions[l.Position] {
			t.Errorf("a letter at %s, want %v", l.Position, positions)
		}
	}
	if letters != len(refused) || len(positions) != len(refused) {
		t.Errorf("%d letters, %d changes without streaming, want %d", letters, len(positions), len(refused))
	}
	eventually(t, ctx, "it was streamed", func() bool { return p.streamedTxns() != "0" })
}

// Open transactions may take a part of the stream only; one that takes more is read whole.
func TestStreamedTransactionsLeaveRoomInALimitedStream(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	streamEarly(t, p.src)
	p.start(ctx, flo.WithStreaming(true), flo.WithStreamMaxBytes(16<<20), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	for _, rows := range []int{3000, 3000, 3000, 10_000, 3000} {
		p.src.Exec(t, `INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, $1::int) i`, rows)
		p.src.Exec(t, `DELETE FROM wide`)
	}
	p.catchUp(within(t, ctx, time.Minute))
	p.equal(ctx)
	if warnings := strings.Join(p.f.Status().Replicator.Warnings, "\n"); !strings.Contains(warnings, "WithStreaming has no effect") {
		t.Errorf("the large one was staged: %q", warnings)
	}
}
