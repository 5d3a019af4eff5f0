package flo_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/sink"
)

const keylessTable = `CREATE TABLE log (at timestamptz DEFAULT now(), what text)`

// lazyStore is a NATS server that may lose what it has acknowledged, and the window that flo needs then.
func lazyStore(p *pipeline) (*store, flo.Option) {
	return p.withStore(embednats.WithSyncInterval(time.Minute)), flo.WithReplayWindow(10 * time.Minute)
}

func TestAStreamRolledBackWhileRunningIsFilledUpAndAppliedOnce(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	store, window := lazyStore(p)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i; INSERT INTO log (what) VALUES ('copied')`)
	r := p.launch(ctx, window, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	backup := store.save()
	for i := range 20 { // behind the backup, in transactions of their own; a repeat would show in the table without a key
		p.src.Exec(t, `INSERT INTO t SELECT i, 'streamed' FROM generate_series($1::int, $1::int + 9) i`, 1000+10*i)
		p.src.Exec(t, `INSERT INTO log (what) VALUES ($1::text)`, "line "+strconv.Itoa(i))
	}
	p.catchUp(ctx)
	store.close()
	store.restore(backup)
	store.start()
	p.src.Exec(t, `UPDATE t SET v = 'changed' WHERE id % 3 = 0; INSERT INTO log (what) VALUES ('last')`)
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()
}

func TestAWorkerAheadOfARolledBackStreamWaitsAndSaysSo(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	store, window := lazyStore(p)
	rep := p.replicator(window)
	first := launch(t, ctx, rep)
	worker := p.worker(flo.WithSink(p.sink()))
	w := launch(t, ctx, worker)
	p.src.Exec(t, `INSERT INTO log (what) VALUES ('one')`)
	eventually(t, ctx, "the first row", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM log`) == "1" })
	backup := store.save()
	p.src.Exec(t, `INSERT INTO log (what) VALUES ('two')`)
	eventually(t, ctx, "the second row", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM log`) == "2" })
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	store.close()
	store.restore(backup)
	store.start()
	eventually(t, ctx, "the worker says that it is ahead", func() bool { return worker.Status().Phase == flo.PhaseAhead })
	p.src.Exec(t, `INSERT INTO log (what) VALUES ('three')`)
	launch(t, ctx, p.replicator(window))
	eventually(t, ctx, "the third row", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM log`) == "3" })
	w.running()
	p.equal(ctx)
}

func TestAStreamRolledBackFurtherThanTheSlotReachesStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	store, window := lazyStore(p)
	r := p.launch(ctx, window, flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	backup := store.save()
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	p.catchUp(ctx)
	if err := p.f.Replicator().Settle(ctx); err != nil { // the window is given up
		t.Fatal(err)
	}
	store.close()
	store.restore(backup)
	store.start()
	wantStop(t, r.ends(ctx), flo.ErrGap, "flo_shop", "replay window", "Drop")
	p.equal(ctx)
}

func TestSettleConfirmsAtOnceAndTheWindowHoldsAgain(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithReplayWindow(10*time.Minute), flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	before := p.now()
	if st := p.f.Status().Replicator; st.Confirmed >= before {
		t.Fatalf("confirmed %s within the window", st.Confirmed)
	}
	if err := p.f.Replicator().Settle(ctx); err != nil {
		t.Fatal(err)
	}
	settled := p.f.Status().Replicator.Confirmed
	if got := p.confirmed(); got < settled || settled == 0 {
		t.Fatalf("the slot is at %s, Settle said %s", got, settled)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	p.catchUp(ctx)
	p.endWalsender(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (3, 'x')`)
	p.catchUp(ctx)
	if got := p.f.Status().Replicator.Confirmed; got != settled {
		t.Errorf("a new session confirmed %s, within the window; settled was %s", got, settled)
	}
	p.equal(ctx)
}

// confirmed is where the source's slot stands.
func (p *pipeline) confirmed() flo.LSN {
	p.t.Helper()
	lsn, err := decode.ParseLSN(p.src.QueryString(p.t, `SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`'`))
	if err != nil {
		p.t.Fatal(err)
	}
	return lsn
}

// endWalsender breaks the replication connection.
func (p *pipeline) endWalsender(ctx context.Context) {
	p.t.Helper()
	end := `SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE slot_name = '` + p.slot() + `' AND active`
	eventually(p.t, ctx, "a walsender to end", func() bool { return p.src.QueryString(p.t, end) == "1" })
}

const wideTable = `CREATE TABLE wide (id bigint PRIMARY KEY, v text)`

// limit makes the server refuse what goes beyond n bytes in the stream; -1: nothing.
func (p *pipeline) limit(ctx context.Context, n int64) {
	p.t.Helper()
	js := p.jetStream()
	s, err := js.Stream(ctx, streamName)
	if err != nil {
		p.t.Fatal(err)
	}
	c := s.CachedInfo().Config
	c.MaxBytes = n
	if n > 0 {
		c.MaxBytes += int64(s.CachedInfo().State.Bytes)
	}
	if _, err := js.UpdateStream(ctx, c); err != nil {
		p.t.Fatal(err)
	}
}

// interruptedTransaction runs a replicator until it has published a part of a transaction of rows × 1 KB, and
// cuts it off there.
func (p *pipeline) interruptedTransaction(ctx context.Context, rows int) {
	p.t.Helper()
	nc, err := p.nats.Conn(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	link := p.link
	p.link = flo.WithNATS(nc)
	rep := p.replicator()
	p.link = link
	r := launch(p.t, ctx, rep)
	eventually(p.t, ctx, "the copy is whole", func() bool { return rep.Status().CopyDone })
	p.published(ctx, rep)
	p.limit(ctx, 4<<20)
	p.src.Exec(p.t, `INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, $1::int) i`, rows)
	eventually(p.t, ctx, "a part of the transaction is in the stream", func() bool {
		all := p.messages(ctx)
		return all[len(all)-1].head.To.Ordinal > 1000
	})
	nc.Close()
	if err := r.stop(); err != nil {
		p.t.Fatal(err)
	}
	p.limit(ctx, -1)
}

func TestAnInterruptedTransactionGoesOnBehindItsLastChange(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	const rows = 20_000
	p.interruptedTransaction(ctx, rows)
	again := launch(t, ctx, p.replicator()) // and once more, by a cut connection
	p.endWalsender(ctx)
	eventually(t, ctx, "the end is in the stream", func() bool {
		all := p.messages(ctx)
		return !all[len(all)-1].head.To.Open
	})
	if err := again.stop(); err != nil {
		t.Fatal(err)
	}
	var at wire.Point
	sessions, changes := map[uint64]bool{}, 0
	for _, m := range p.messages(ctx) {
		if !m.changes() {
			continue
		}
		if m.has(wire.RecAbort) {
			t.Error("the published part was aborted")
		}
		if m.head.From != at {
			t.Fatalf("message %d continues %+v, the one before it reached %+v", m.seq, m.head.From, at)
		}
		at = m.head.To
		if err := wire.Walk(m.body, func(r wire.Record) error {
			if r.Type == 'I' {
				changes++
				sessions[m.head.Session] = true
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if changes != rows || len(sessions) < 2 {
		t.Errorf("the stream holds %d rows of %d, from %d sessions", changes, rows, len(sessions))
	}
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}

// tamper publishes, as the writer that the stream waits for, a change that the source never made: the prefix
// of the open transaction then is another one than the source decodes.
func (p *pipeline) tamper(ctx context.Context) {
	p.t.Helper()
	all := p.messages(ctx)
	tail := all[len(all)-1]
	body := []byte{}
	done := errors.New("done")
	err := wire.Walk(tail.body, func(r wire.Record) error {
		switch {
		case r.Type < 0x40:
			body = wire.AppendRecord(body, r.Type, r.Data)
		default:
			body = wire.AppendFrame(body, r.Data)
		}
		if r.Type == 'I' {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		p.t.Fatalf("the tail has no row: %v", err)
	}
	h := tail.head
	h.Session++
	h.From = tail.head.To
	h.To.Ordinal++
	h.To.Hash ^= 0xbad
	_, err = p.jetStream().Publish(ctx, tail.subject, append(wire.AppendHeader(nil, &h), body...), jetstream.WithExpectLastSequence(tail.seq))
	if err != nil {
		p.t.Fatal(err)
	}
}

func TestATransactionDecodedDifferentlyIsForgottenAndSentWhole(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	const rows = 20_000
	p.interruptedTransaction(ctx, rows)
	p.tamper(ctx)
	rec := new(flotest.Recorder)
	// A worker that has applied nothing keeps the purge from the marker that is looked for at the end.
	idle := p.worker(flo.WithWorker("idle", sink.Func(func(ctx context.Context, _ *sink.Batch) error { <-ctx.Done(); return ctx.Err() })))
	launch(t, ctx, idle)
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink()), flo.WithBatchSize(500)))
	o := launch(t, ctx, p.worker(flo.WithWorker("other", rec)))
	// The transactional sink has taken the part, and would keep it if it weren't told.
	eventually(t, ctx, "the part is in the sink's hands", func() bool {
		return p.dst.QueryString(t, `SELECT count(*) FROM pg_locks WHERE relation = 'wide'::regclass AND mode = 'RowExclusiveLock'`) != "0"
	})
	launch(t, ctx, p.replicator())
	eventually(t, ctx, "all rows", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM wide`) == strconv.Itoa(rows) })
	p.equal(ctx)
	if err := rec.WaitN(ctx, rows); err != nil {
		t.Fatal(err)
	}
	for i, c := range rec.Changes() {
		if c.Ordinal != uint64(i+1) {
			t.Fatalf("change %d of the transaction has ordinal %d", i+1, c.Ordinal)
		}
	}
	aborted := false
	for _, m := range p.messages(ctx) {
		aborted = aborted || m.has(wire.RecAbort)
	}
	if !aborted {
		t.Error("no abort marker in the stream: the difference was not forced")
	}
	w.running()
	o.running()
}

func TestANonTransactionalSinkSeesATransactionOnlyOnceItsEndIsStored(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	const rows = 20_000
	p.interruptedTransaction(ctx, rows)
	rec := new(flotest.Recorder)
	worker := p.worker(flo.WithSink(rec))
	launch(t, ctx, worker)
	eventually(t, ctx, "the worker to be at the transaction", func() bool { return worker.Status().Applied > 0 })
	if n := len(rec.Changes()); n != 0 {
		t.Fatalf("the sink was given %d changes of a transaction without an end", n)
	}
	launch(t, ctx, p.replicator())
	if err := rec.WaitN(ctx, rows); err != nil {
		t.Fatal(err)
	}
}

func TestAMessageThatACheckpointLiesWithinIsNotPurgedInParts(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable, wideTable)
	// One message with the end of a small transaction and the beginning of one whose row is larger than
	// max_payload: it travels in parts.
	rep := p.replicator()
	launch(t, ctx, rep)
	p.published(ctx, rep)
	p.limit(ctx, 1) // so that messages pile up, and all that comes shares one
	for i := range 50 {
		p.src.Exec(t, `INSERT INTO t VALUES ($1, 'small')`, i)
	}
	p.src.Exec(t, `INSERT INTO wide VALUES (1, repeat('x', 3 << 20))`)
	p.src.Exec(t, `SELECT pg_sleep(1)`) // the replicator packs it meanwhile
	p.limit(ctx, -1)
	var broken atomic.Bool
	stuck := errors.New("not now")
	s := sink.Func(func(ctx context.Context, b *sink.Batch) error {
		for _, c := range b.Changes {
			if c.Relation.Name == "wide" {
				if broken.Load() {
					return sink.Permanent(stuck)
				}
				return stuck
			}
		}
		return nil
	})
	worker := p.worker(flo.WithSink(s))
	w := launch(t, ctx, worker)
	eventually(t, ctx, "the sink to refuse the large row", func() bool { return worker.Status().Phase == flo.PhaseRetrying })
	p.purged(ctx)
	broken.Store(true)
	if err := w.ends(ctx); !errors.Is(err, stuck) {
		t.Fatal(err)
	}
	within := false
	for _, m := range p.messages(ctx) {
		within = within || m.head.Parts > 1 && m.head.From.End < worker.Status().Applied
	}
	if !within {
		t.Skip("the case was not met: the checkpoint lies within no message that travelled in parts")
	}
	rec := new(flotest.Recorder)
	again := launch(t, ctx, p.worker(flo.WithSink(rec)))
	done := make(chan error, 1)
	go func() {
		done <- rec.Wait(ctx, func(cs []*decode.Change) bool { return len(cs) > 0 && cs[len(cs)-1].Relation.Name == "wide" })
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-again.done:
		t.Fatalf("the rest is not there any more: %v", again.err)
	}
}

// The stream is rolled back behind the marker of a round that a worker waits for, and the round that follows has a lower
// number: its replicator runs on a machine whose clock is behind.
func TestAWorkerThatDrainsARoundNoticesThatItsMarkerIsGone(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	store, window := lazyStore(p)
	var number atomic.Uint32
	number.Store(1)
	opts := func(tables ...string) []flo.Option {
		return []flo.Option{window, flo.WithTables(tables...), flo.WithSink(p.sink()), flo.WithAttempts(func(uint32) uint32 { return number.Load() })}
	}
	p.start(ctx, opts("t")...)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'); INSERT INTO log (what) VALUES ('copied')`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	backup := store.save()
	open := p.begin(ctx, 0) // the round's snapshot waits for it
	number.Store(100)
	p.start(ctx, opts("t", "log")...)
	eventually(t, ctx, "the worker waits for the round's copy", func() bool {
		return p.f.Status().Workers[0].Phase == flo.PhaseCopying
	})
	open.holdsUp()
	store.close()
	store.restore(backup)
	number.Store(50)
	store.start()
	p.nats = store.server
	p.src.Exec(t, `INSERT INTO t VALUES (3, 'by which the replicator notices')`)
	eventually(t, ctx, "the other round has begun", func() bool {
		return slices.ContainsFunc(p.messages(ctx), func(m stored) bool { return m.has(wire.RecRound) && m.head.Attempt == 50 })
	})
	open.exec(`COMMIT`)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'b'); INSERT INTO log (what) VALUES ('streamed')`)
	p.catchUp(ctx)
	p.equal(ctx)
}

// The stream is rolled back behind the round through which a table joined. At the source the table is in the publication
// all the same, and the message that says which tables the stream has had was purged long ago.
func TestATableThatJoinedBehindARollbackIsCopiedAgain(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	store, window := lazyStore(p)
	p.start(ctx, window, flo.WithTables("t"), flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'); INSERT INTO log (what) VALUES ('copied')`)
	p.catchUp(ctx)
	eventually(t, ctx, "the marker of the copy is purged", func() bool {
		return !slices.ContainsFunc(p.messages(ctx), func(m stored) bool { return m.has(wire.RecStart) })
	})
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	backup := store.save()
	alone := launch(t, ctx, p.replicator(window, flo.WithTables("t", "log")))
	eventually(t, ctx, "the table has joined", func() bool {
		alone.running()
		st := alone.of.(*flo.Replicator).Status()
		return st.Phase == flo.PhaseStreaming && st.CopyDone && len(st.Tables) > 0
	})
	if err := alone.stop(); err != nil {
		t.Fatal(err)
	}
	store.close()
	store.restore(backup)
	store.start()
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'b'); INSERT INTO log (what) VALUES ('streamed')`)
	p.start(ctx, window, flo.WithTables("t", "log"), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}
