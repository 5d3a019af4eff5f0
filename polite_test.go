package flo_test

import (
	"context"

	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

// hasty is a source that ends a replication connection after 2 s without feedback.
func hasty(t testing.TB) *flotest.Server {
	return flotest.NewServer(t, flotest.WithSetting("wal_sender_timeout", "2s"), flotest.WithInitdbArgs("--wal-segsize=1"))
}

func TestARowLargerThanMaxPayloadPasses(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	const large = `INSERT INTO wide SELECT i, string_agg(md5((i * j)::text), '') FROM generate_series($1::int, $1::int + 1) i, generate_series(1, 100000) j GROUP BY i`
	p.src.Exec(t, large, 1)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
	p.src.Exec(t, large, 10)
	p.src.Exec(t, `UPDATE wide SET v = v || 'more' WHERE id IN (1, 10)`)
	p.src.Exec(t, `UPDATE wide SET id = id + 100 WHERE id = 2`) // the value itself is left unchanged
	p.catchUp(ctx)
	p.equal(ctx)
}

func TestAStalledSinkOrNATSKeepsTheReplicationConnection(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.use(hasty(t).NewDB(t))
	p.src.Exec(t, smallTable)
	store := p.withStore()
	var stalled atomic.Bool
	inner := p.sink()
	s := stalling{inner, &stalled}
	p.start(ctx, flo.WithSink(s))
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i`)
	p.catchUp(ctx)
	pid := p.src.QueryString(t, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`'`)
	stalled.Store(true)
	for began := time.Now(); time.Since(began) < 6*time.Second; {
		p.src.Exec(t, `UPDATE t SET v = v || 'y' WHERE id % 10 = 0; SELECT pg_sleep(0.1)`)
	}
	if now := p.src.QueryString(t, `SELECT active_pid FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`'`); now != pid {
		t.Errorf("a stalled sink cost the replication connection: walsender %s is %s now", pid, now)
	}
	stalled.Store(false)
	p.catchUp(ctx)
	p.equal(ctx)
	store.close()
	for began := time.Now(); time.Since(began) < 6*time.Second; {
		p.src.Exec(t, `UPDATE t SET v = v || 'z' WHERE id % 10 = 0; SELECT pg_sleep(0.1)`)
	}
	store.start()
	p.catchUp(ctx)
	p.equal(ctx)
	if st := p.f.Status().Replicator; st.Retries > 6 {
		t.Errorf("%d interruptions: %s", st.Retries, st.LastError)
	}
}

// stalling holds Write back while told to.
type stalling struct {
	sink.Sink
	stalled *atomic.Bool
}

func (s stalling) Unwrap() sink.Sink { return s.Sink }

func (s stalling) Write(ctx context.Context, b *sink.Batch) error {
	for s.stalled.Load() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return s.Sink.Write(ctx, b)
}

func TestAFastShutdownOfABusySourceIsNotHeldUpAndFloGoesOn(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	server := flotest.NewServer(t)
	p.use(server.NewDB(t))
	p.src.Exec(t, smallTable)
	p.src.Exec(t, keylessTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i`)
	p.start(ctx, flo.WithReplayWindow(time.Minute), flo.WithSink(p.sink())) // a confirmed position that trails must not matter
	p.catchUp(ctx)
	for range 2 {
		busy := make(chan struct{})
		go func() {
			defer close(busy)
			for p.src.TryExec(ctx, `UPDATE t SET v = left(v || 'y', 50); INSERT INTO log (what) VALUES ('x')`) == nil {
			}
		}()
		eventually(t, ctx, "the source to be busy", func() bool { return p.f.Status().Replicator.Changes > 3000 })
		took, err := server.Stop(within(t, ctx, 30*time.Second), flotest.Fast)
		if err != nil {
			t.Fatal(err)
		}
		if took > 15*time.Second {
			t.Errorf("the shutdown took %s", took)
		}
		<-busy
		if err := server.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	p.catchUp(ctx)
	p.equal(ctx)
}

func TestAnIdlePublicationBesideABusyTableHoldsNoWAL(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.use(hasty(t).NewDB(t))
	p.src.Exec(t, smallTable)
	p.src.Exec(t, `CREATE TABLE busy (x text)`)
	p.start(ctx, flo.WithTables("t"), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	before := p.confirmed()
	for range 10 {
		p.src.Exec(t, `INSERT INTO busy SELECT repeat('x', 1000) FROM generate_series(1, 1000)`)
	}
	at := p.now()
	eventually(t, within(t, ctx, 15*time.Second), "the slot moves on by itself", func() bool { return p.confirmed() >= at })
	if at < before+8<<20 {
		t.Fatalf("too little was written: %s to %s", before, at)
	}
	p.src.Exec(t, `CHECKPOINT`)
	eventually(t, within(t, ctx, 30*time.Second), "the WAL that the slot holds is small", func() bool {
		p.src.Exec(t, `INSERT INTO busy VALUES ('x')`)
		p.src.Exec(t, `CHECKPOINT`)
		n, err := strconv.Atoi(p.src.QueryString(t, `SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`'`))
		return err == nil && n < 4<<20
	})
}

func TestAFullStreamHoldsTheReplicatorBackUntilTheWorkerDrains(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	limit := flo.WithStreamMaxBytes(16 << 20)
	var stalled atomic.Bool
	p.src.Exec(t, `INSERT INTO t VALUES (0, 'x')`)
	p.start(ctx, limit, flo.WithSink(stalling{p.sink(), &stalled}))
	p.catchUp(ctx)
	stalled.Store(true)
	for i := range 40 {
		p.src.Exec(t, `INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series($1::int, $1::int + 999) i`, 1+i*1000)
	}
	s := p.stream(ctx)
	eventually(t, ctx, "the stream to fill", func() bool {
		info, err := s.Info(ctx)
		return err == nil && info.State.Bytes > 9<<20
	})
	info, err := s.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Bytes > 16<<20 {
		t.Errorf("the stream holds %d bytes", info.State.Bytes)
	}
	stalled.Store(false)
	p.catchUp(ctx)
	p.equal(ctx)
	if st := p.f.Status().Replicator; st.Retries > 0 {
		t.Errorf("%d interruptions: %s", st.Retries, st.LastError)
	}
}

// Changes that fill their part of the stream while a table's copy goes on keep back neither what says that the
// copy is whole, nor so the purge that makes room.
func TestChangesThatFillTheStreamDuringTheCopyDoNotKeepItsEndBack(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable+`; CREATE TABLE large (id bigint PRIMARY KEY, v text); CREATE TABLE late (id bigint PRIMARY KEY, v text)`)
	p.src.Exec(t, `INSERT INTO large SELECT i, repeat('x', 100) FROM generate_series(1, 200000) i; INSERT INTO late VALUES (1, 'x')`)
	p.start(ctx, flo.WithStreamMaxBytes(16<<20), flo.WithCopyConnections(1), flo.WithSink(p.sink()))
	ranges := func(table string) (done int, known bool) {
		for _, s := range p.f.Status().Replicator.Tables {
			if s.Table == table {
				return s.Done, true
			}
		}
		return 0, false
	}
	eventually(t, ctx, "the copy's beginning", func() bool { _, known := ranges(`"public"."late"`); return known })
	lock := p.src.Conn(t)
	if _, err := lock.Exec(ctx, "BEGIN; LOCK TABLE late IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	if done, _ := ranges(`"public"."late"`); done > 0 {
		t.Fatal("the small table was copied before the large one")
	}
	for i := range 20 {
		p.src.Exec(t, `INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series($1::int, $1::int + 999) i`, 1+i*1000)
	}
	s := p.stream(ctx)
	eventually(t, ctx, "changes to fill their part", func() bool {
		info, err := s.Info(ctx)
		return err == nil && info.State.Bytes > 9<<20
	})
	if _, err := lock.Exec(ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	p.catchUp(ctx)
	p.equal(ctx, "t", "large", "late")
}

func TestTheStreamIsPurgedBehindTheSlowestWorker(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 4000) i`)
	var stalled atomic.Bool
	rec := new(flotest.Recorder)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithWorker("slow", stalling{rec, &stalled}))
	p.catchUp(ctx)
	stalled.Store(true)
	for i := range 20 {
		p.src.Exec(t, `INSERT INTO t SELECT i, repeat('y', 500) FROM generate_series($1::int, $1::int + 499) i`, 10000+i*1000)
	}
	s := p.stream(ctx)
	size := func() uint64 {
		info, err := s.Info(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Bytes
	}
	eventually(t, ctx, "all is in the stream", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "14000" })
	full := size()
	p.purged(ctx) // the copy goes; what the slow one needs stays
	if n := size(); n < 4<<20 {
		t.Errorf("the stream shrank from %d to %d bytes under a worker that needs them", full, n)
	}
	stalled.Store(false)
	p.catchUp(ctx)
	if err := rec.WaitN(ctx, 14000); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "the stream shrinks behind all workers", func() bool { return size() < 1<<20 })
	p.equal(ctx)
}

func TestAStopIsBoundedWhileNATSIsAway(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	store := p.withStore()
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	store.close()
	p.src.Exec(t, `INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 20000) i`)
	eventually(t, ctx, "the source to be read", func() bool {
		return p.src.QueryString(t, `SELECT state FROM pg_stat_replication WHERE application_name LIKE 'flo%'`) == "streaming"
	})
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Logf("Run says what is left: %v", err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("the stop took %s", d)
	}
	store.start()
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}

func TestATransactionLargerThanTheStreamStopsAndGoesOnInALargerOne(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.ranOnce(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat(md5(i::text), 40) FROM generate_series(1, 20000) i`) // 25 MB
	err := p.launch(ctx, flo.WithStreamMaxBytes(16<<20), flo.WithSink(p.sink())).ends(ctx)
	wantStop(t, err, flo.ErrTransactionTooLarge, "WithStreamMaxBytes")
	p.start(ctx, flo.WithStreamMaxBytes(64<<20), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}
