package flo_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// cold stops the pipeline's own server, lets down see its data folder, and starts it again.
func (p *pipeline) cold(ctx context.Context, down func(dir string)) {
	p.t.Helper()
	s := p.src.Server
	if _, err := s.Stop(ctx, flotest.Fast); err != nil {
		p.t.Fatal(err)
	}
	down(s.DataDir())
	if err := s.Start(ctx); err != nil {
		p.t.Fatal(err)
	}
}

// replaceTree puts a copy of a folder in another one's place.
func replaceTree(t testing.TB, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(to)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(to, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	copyTree(t, from, to)
}

// A cold copy of the data folder comes back as the same server: same system identifier, same timeline, and
// a slot that stands below the stream. Once it has written beyond the stream's position no number tells the two
// histories apart.
func TestASourceRestoredFromAColdCopyThatHasGoneOnStops(t *testing.T) {
	long(t)
	parallel(t)
	const first, again = `INSERT INTO t VALUES (1000, 'in the stream')`, `INSERT INTO t VALUES (1000, 'not in the strm')`
	for _, c := range []struct {
		name   string
		behind string // what the restored server does first
		idle   bool   // the stream ends with an idle position
	}{
		{"by other transactions", `INSERT INTO t SELECT i, 'elsewhere' FROM generate_series(2000, 2100) i`, false},
		{"by the same number of bytes, idle", again, true},
		{"by what is not published, idle", `SELECT 1`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && c.behind != again {
				t.Skip("takes long")
			}
			ctx := testContext(t)
			server := flotest.NewServer(t, flotest.WithInitdbArgs("--wal-segsize=1"))
			p := newPipeline(t, smallTable)
			p.use(server.NewDB(t))
			p.src.Exec(t, smallTable)
			p.src.Exec(t, `CREATE TABLE noise (x text)`)
			launch := func() *run {
				opts := []flo.Option{flo.WithExcludeTables("noise"), flo.WithSink(p.sink())}
				if !c.idle {
					opts = append(opts, flo.WithIdleInterval(time.Hour))
				}
				return p.launch(ctx, opts...)
			}
			arrives := func(r *run, rows string) {
				eventually(t, ctx, rows+" rows", func() bool { r.running(); return p.dst.QueryString(t, `SELECT count(*) FROM t`) == rows })
			}
			launched := launch()
			p.src.Exec(t, `INSERT INTO t SELECT i, 'copied ' || i FROM generate_series(1, 100) i`)
			arrives(launched, "100")
			if err := launched.stop(); err != nil {
				t.Fatal(err)
			}
			backup := filepath.Join(t.TempDir(), "backup")
			p.cold(ctx, func(dir string) { copyTree(t, dir, backup) })
			p.src.Exec(t, first)
			launched = launch()
			arrives(launched, "101")
			if c.idle {
				p.catchUp(ctx)
			}
			if err := launched.stop(); err != nil {
				t.Fatal(err)
			}
			at := launched.applied()
			p.cold(ctx, func(dir string) { replaceTree(t, backup, dir) })
			p.src.Exec(t, c.behind)
			eventually(t, ctx, "the restored server is beyond the stream", func() bool {
				p.src.Exec(t, `INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)`)
				return p.now() > at
			})
			for range 2 {
				wantStop(t, launch().ends(within(t, ctx, 20*time.Second)), flo.ErrSourceChanged, "restored", "Drop")
			}
			if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "101" {
				t.Errorf("the destination has %s rows, want the 101 it had", n)
			}
		})
	}
}

func TestASlotDroppedWhileRunningStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	eventually(t, ctx, "the slot is dropped", func() bool { // it is in use until its walsender has ended
		p.src.Exec(t, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`' AND active`)
		return p.src.TryExec(ctx, `SELECT pg_drop_replication_slot('`+p.slot()+`')`) == nil
	})
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'lost')`)
	wantStop(t, r.ends(ctx), flo.ErrSlotLost, p.slot(), "no longer exists", "Drop")
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "1" {
		t.Errorf("the destination has %s rows, want the one it had", n)
	}
}

func TestASlotMadeAgainWhileRunningStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	again := `SELECT pg_drop_replication_slot('` + p.slot() + `'), pg_create_logical_replication_slot('` + p.slot() + `', 'pgoutput')`
	eventually(t, ctx, "the slot is another one", func() bool {
		p.src.Exec(t, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`' AND active`)
		return p.src.TryExec(ctx, again) == nil
	})
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'behind it')`)
	err := r.ends(ctx)
	if errors.Is(err, flo.ErrSlotLost) { // it came back between the one slot and the other, and finds the other at its next start
		wantStop(t, err, flo.ErrSlotLost, p.slot(), "no longer exists", "WithResync")
		err = p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
	}
	wantStop(t, err, flo.ErrGap, p.slot(), "made again", "Drop")
}

// The server ends the walsender of a slot that has to go, and flo finds out why when it comes back.
func TestASlotInvalidatedWhileRunningStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := onLittleWAL(t)
	p.src.Exec(t, `CREATE TABLE noise (x text)`)
	r := p.launch(ctx, flo.WithExcludeTables("noise"), flo.WithReplayWindow(time.Hour), flo.WithSink(p.sink())) // so that the slot stays where it is
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	eventually(t, ctx, "the slot is lost", func() bool {
		p.src.Exec(t, `INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 4000)`)
		p.src.Exec(t, `CHECKPOINT`)
		return p.src.QueryString(t, `SELECT wal_status FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`'`) == "lost"
	})
	wantStop(t, r.ends(ctx), flo.ErrSlotLost, p.slot(), "Drop")
	p.equal(ctx, "public.t")
}

// NATS comes back with an older folder, once in mid-copy and several times in mid-stream, while writers go on:
// what it lost is sent again, what the sink has is not applied twice.
func TestNATSRolledBackInMidCopyAndInMidStreamUnderLoadIsHealed(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	parallel(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	p := newPipeline(t, twoLarge, keylessTable)
	p.src.Exec(t, fillTwo)
	store, window := lazyStore(p)
	writing, stop := context.WithCancel(ctx)
	defer stop()
	written := make(chan int, 1)
	go func() {
		conn := p.src
		n := 0
		for ; writing.Err() == nil; n++ {
			err := conn.TryExec(ctx, `BEGIN; INSERT INTO log (what) VALUES ('line `+strconv.Itoa(n)+`'); UPDATE first SET v = v || '.' WHERE id = 1 + `+strconv.Itoa(n%1000)+
				`; SAVEPOINT s; DELETE FROM second; ROLLBACK TO s; UPDATE second SET v = 'x' || v WHERE id = 1 + `+strconv.Itoa(n%1000)+`; COMMIT`)
			if err != nil {
				t.Error(err)
				break
			}
		}
		written <- n
	}()
	f, err := flo.New(p.options(window, flo.WithLeaseTime(2*time.Second), flo.WithCopyConnections(1), flo.WithSink(p.sink()))...)
	if err != nil {
		t.Fatal(err)
	}
	p.f = f
	r := launch(t, ctx, f)
	copiedRows := func() (n uint64) {
		for _, table := range f.Status().Replicator.Tables {
			n += table.Rows
		}
		return n
	}
	eventually(t, ctx, "rows are copied", func() bool { r.running(); return copiedRows() > 0 })
	backup := store.save()
	before := copiedRows()
	eventually(t, ctx, "more are copied behind the backup", func() bool { r.running(); return copiedRows() > before || f.Status().Replicator.CopyDone })
	store.close()
	store.restore(backup)
	store.start()
	eventually(t, ctx, "the copy is whole", func() bool { r.running(); return f.Status().Replicator.CopyDone })
	for range 3 {
		backup := store.save()
		lines := p.src.QueryString(t, `SELECT count(*) FROM log`)
		eventually(t, ctx, "lines behind the backup arrive", func() bool {
			r.running()
			return p.dst.QueryString(t, `SELECT count(*) > $1::bigint + 50 FROM log`, lines) == "t"
		})
		store.close()
		store.restore(backup)
		store.start()
	}
	stop()
	t.Logf("%d transactions", <-written)
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()
}

// The worker stands at an idle position that NATS then lost, and the first transaction behind it travels in several
// messages: the worker finds the one with its beginning.
func TestAWorkerAtALostIdlePositionTakesTheNextTransactionFromItsBeginning(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, wideTable)
	store, window := lazyStore(p)
	opts := []flo.Option{window, flo.WithLeaseTime(time.Second), flo.WithIdleInterval(time.Hour)}
	p.src.Exec(t, `CREATE TABLE noise (x text)`)
	opts = append(opts, flo.WithExcludeTables("noise"))
	rep := launch(t, ctx, p.replicator(opts...))
	w := launch(t, ctx, p.worker(append(opts, flo.WithSink(p.sink()))...))
	p.src.Exec(t, `INSERT INTO wide VALUES (0, 'first')`)
	eventually(t, ctx, "the first row", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM wide`) == "1" })
	backup := store.save()
	p.src.Exec(t, `INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 100)`)
	f, err := flo.New(p.options(append(opts, flo.WithSink(p.sink()))...)...)
	if err != nil {
		t.Fatal(err)
	}
	p.f = f
	p.catchUp(ctx) // by an idle position that it asks for
	for _, r := range []*run{w, rep} {
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
	store.close()
	store.restore(backup)
	store.start()
	p.src.Exec(t, `INSERT INTO wide SELECT i, repeat(md5(i::text), 32) FROM generate_series(1, 5000) i`)
	again := p.replicator(opts...)
	launch(t, ctx, again)
	p.published(ctx, again)
	w = launch(t, ctx, p.worker(append(opts, flo.WithSink(p.sink()))...))
	eventually(t, ctx, "all rows", func() bool { w.running(); return p.dst.QueryString(t, `SELECT count(*) FROM wide`) == "5001" })
	p.equal(ctx, "wide")
}
