package flo_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

const smallTable = `CREATE TABLE t (id bigint PRIMARY KEY, v text)`

// copied is a pipeline that has copied a small table and stopped.
func copied(t testing.TB, ctx context.Context, p *pipeline) {
	t.Helper()
	p.src.Exec(t, `INSERT INTO t SELECT i, 'copied ' || i FROM generate_series(1, 100) i`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	p.equal(ctx)
}

func TestASlotDroppedWhileDownStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	p.src.Exec(t, `SELECT pg_drop_replication_slot('flo_shop')`)
	p.src.Exec(t, `INSERT INTO t VALUES (1000, 'lost')`)
	for range 2 { // and the second start is no way around it
		err := p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
		wantStop(t, err, flo.ErrSlotLost, "flo_shop", "no longer exists", "Drop")
	}
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "100" {
		t.Errorf("the destination has %s rows, want the 100 it had", n)
	}
}

func TestASlotMadeAgainByHandStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	p.src.Exec(t, `SELECT pg_drop_replication_slot('flo_shop')`)
	p.src.Exec(t, `INSERT INTO t VALUES (1000, 'lost')`)
	p.src.Exec(t, `SELECT pg_create_logical_replication_slot('flo_shop', 'pgoutput')`)
	p.src.Exec(t, `INSERT INTO t VALUES (1001, 'not lost')`)
	for range 2 {
		err := p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
		wantStop(t, err, flo.ErrGap, "flo_shop", "made again", "Drop")
	}
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "100" {
		t.Errorf("the destination has %s rows, want the 100 it had", n)
	}
}

func TestASlotMovedByHandStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	p.src.Exec(t, `INSERT INTO t VALUES (1000, 'lost')`)
	p.src.Exec(t, `SELECT pg_replication_slot_advance('`+p.slot()+`', pg_current_wal_flush_lsn())`)
	p.src.Exec(t, `INSERT INTO t VALUES (1001, 'not lost')`)
	for range 2 {
		err := p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
		wantStop(t, err, flo.ErrGap, p.slot(), "the slot was moved", "WithResync")
	}
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "100" {
		t.Errorf("the destination has %s rows, want the 100 it had", n)
	}
}

func TestASlotOfAnotherPluginStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	p.src.Exec(t, `SELECT pg_drop_replication_slot('flo_shop')`)
	p.src.Exec(t, `SELECT pg_create_logical_replication_slot('flo_shop', 'test_decoding')`)
	err := p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
	wantStop(t, err, flo.ErrSlotLost, "test_decoding", "Drop")
}

// onLittleWAL is a pipeline whose source keeps 2 MB of WAL for a slot.
func onLittleWAL(t *testing.T) *pipeline {
	t.Helper()
	server := flotest.NewServer(t, flotest.WithInitdbArgs("--wal-segsize=1"), flotest.WithSetting("max_slot_wal_keep_size", "2MB"),
		flotest.WithSetting("max_wal_size", "4MB"), flotest.WithSetting("min_wal_size", "2MB"))
	p := newPipeline(t, smallTable)
	p.use(server.NewDB(t))
	p.src.Exec(t, smallTable)
	return p
}

func TestAnInvalidatedSlotStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := onLittleWAL(t)
	copied(t, ctx, p)
	p.src.Exec(t, `CREATE TABLE noise (x text)`)
	eventually(t, ctx, "the slot is lost", func() bool {
		p.src.Exec(t, `INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 4000)`)
		p.src.Exec(t, `CHECKPOINT`)
		return p.src.QueryString(t, `SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'flo_shop'`) == "lost"
	})
	for range 2 {
		err := p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
		wantStop(t, err, flo.ErrSlotLost, "flo_shop", "max_slot_wal_keep_size", "Drop")
	}
}

// password of a database's URL.
func password(t testing.TB, db *flotest.DB) (user, pass string) {
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	pass, _ = u.User.Password()
	return u.User.Username(), pass
}

func TestAnotherServerBehindTheSameAddressStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	one := flotest.NewServer(t)
	p := newPipeline(t, smallTable)
	p.use(one.NewDB(t))
	p.src.Exec(t, smallTable)
	copied(t, ctx, p)
	user, pass := password(t, p.src)
	if _, err := one.Stop(ctx, flotest.Fast); err != nil {
		t.Fatal(err)
	}
	other := flotest.NewServer(t, flotest.WithPort(one.Port()), flotest.WithInitdbArgs("--data-checksums")) // a cluster of its own
	db := other.NewDB(t)
	db.Exec(t, fmt.Sprintf(`ALTER ROLE %q PASSWORD '%s'`, user, pass))
	db.Exec(t, fmt.Sprintf(`CREATE DATABASE %q`, p.src.Name))
	wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), flo.ErrSourceChanged, "system", "another source")
	if _, err := other.Stop(ctx, flotest.Fast); err != nil {
		t.Fatal(err)
	}
	if err := one.Start(ctx); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1000, 'back')`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}

func TestASourceFromAnOlderBackupStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	server := flotest.NewServer(t, flotest.WithInitdbArgs("--wal-segsize=1"))
	p := newPipeline(t, smallTable)
	p.use(server.NewDB(t))
	p.src.Exec(t, smallTable)
	copied(t, ctx, p)
	cycle := func(down func()) {
		t.Helper()
		if _, err := server.Stop(ctx, flotest.Fast); err != nil {
			t.Fatal(err)
		}
		down()
		if err := server.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	backup := filepath.Join(t.TempDir(), "backup")
	restore := func() {
		t.Helper()
		entries, err := os.ReadDir(server.DataDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(server.DataDir(), e.Name())); err != nil {
				t.Fatal(err)
			}
		}
		copyTree(t, backup, server.DataDir())
	}
	cycle(func() { copyTree(t, server.DataDir(), backup) })
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1001, 3000) i`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	p.equal(ctx)

	cycle(restore)
	wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), flo.ErrSourceChanged, "restored from a backup", "Drop")

	// The same backup, promoted, and gone on beyond the position of the stream.
	if err := server.SetSetting("restore_command", "false"); err != nil {
		t.Fatal(err)
	}
	cycle(func() {
		restore()
		signal := filepath.Join(server.DataDir(), "recovery.signal")
		if err := os.WriteFile(signal, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(filepath.Join(server.DataDir(), "PG_VERSION"))
		if err != nil {
			t.Fatal(err)
		}
		if err := keepOwner(info, signal); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, ctx, "the server is promoted", func() bool { return p.src.QueryString(t, `SELECT pg_is_in_recovery()::text`) == "false" })
	tail := r.applied()
	p.src.Exec(t, `CREATE TABLE noise (x text)`)
	eventually(t, ctx, "the promoted server is beyond the stream", func() bool {
		p.src.Exec(t, `INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)`)
		return p.now() > tail
	})
	wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), flo.ErrSourceChanged, "timeline", "promoted", "Drop")
}

// applied is the highest position that the run's only worker had reached.
func (r *run) applied() flo.LSN {
	f, ok := r.of.(*flo.Flo)
	if !ok {
		r.t.Fatal("not a Flo")
	}
	return f.Status().Workers[0].Applied
}

func TestAStreamDeletedWhileDownStopsAndAFreshCopyMendsIt(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	if err := p.jetStream().DeleteStream(ctx, streamName); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err := p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
		wantStop(t, err, flo.ErrStreamLost, "the stream was deleted", "WithResync") // by the replicator or the worker, whoever sees it first
	}
	if err := p.f.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	// The stream is made again, but the destination still holds what came from the other one.
	p.src.Exec(t, `DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (1000, 'new')`)
	const remedy = `DELETE FROM flo.checkpoints WHERE group_name = 'shop' AND worker = 'default'`
	err := p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
	wantStop(t, err, flo.ErrStreamLost, "checkpoint", "deleted and made again", remedy)
	p.dst.Exec(t, remedy) // as the text says
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}

func TestAStreamDeletedWhileRunningStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	if err := p.jetStream().DeleteStream(ctx, streamName); err != nil {
		t.Fatal(err)
	}
	wantStop(t, r.ends(within(t, ctx, 30*time.Second)), flo.ErrStreamLost, "the stream was deleted", "WithResync")
}

func TestAStreamDeletedUnderALoneReplicatorStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	rep := p.replicator()
	r := launch(t, ctx, rep)
	p.published(ctx, rep)
	if err := p.jetStream().DeleteStream(ctx, streamName); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	wantStop(t, r.ends(within(t, ctx, 30*time.Second)), flo.ErrStreamLost, "the stream was deleted", "WithResync")
}

func TestAStateBucketDeletedWhileRunningStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	if err := p.jetStream().DeleteKeyValue(ctx, streamName); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	wantStop(t, r.ends(within(t, ctx, 30*time.Second)), flo.ErrStreamLost, "bucket", "WithResync")
	p.equal(ctx)
}

// purged waits until the stream doesn't begin with its first message any more.
func (p *pipeline) purged(ctx context.Context) {
	p.t.Helper()
	s := p.stream(ctx)
	eventually(p.t, ctx, "the stream is purged behind its workers", func() bool {
		info, err := s.Info(ctx)
		return err == nil && info.State.FirstSeq > 1
	})
}

func TestANewWorkerIsToldThatHistoryIsGoneAndHoldsNobodyBack(t *testing.T) {
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
	s, err := postgres.New(late.URL)
	if err != nil {
		t.Fatal(err)
	}
	err = launch(t, ctx, p.worker(flo.WithWorker("late", s))).ends(ctx)
	wantStop(t, err, flo.ErrHistoryGone, "late", "purged", "Drop")
	// It must not stay among those for which the stream is kept, nor among those that WaitFor waits for.
	p.src.Exec(t, `INSERT INTO t VALUES (1001, 'x')`)
	p.catchUp(within(t, ctx, 10*time.Second))
	p.equal(ctx)
}

func TestASecondWorkerOfTheSameNameStandsByAndTakesOver(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	launch(t, ctx, p.replicator())
	count := func() string { return p.dst.QueryString(t, `SELECT count(*) FROM t`) }
	first := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i`)
	eventually(t, ctx, "the first works", func() bool { return count() == "100" })
	w := p.worker(flo.WithSink(p.sink()))
	second := launch(t, ctx, w)
	eventually(t, ctx, "the second stands by", func() bool { return w.Status().Phase == flo.PhaseStandby })
	p.src.Exec(t, `INSERT INTO t VALUES (101, 'x')`)
	eventually(t, ctx, "the first goes on", func() bool { return count() == "101" })
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (102, 'x')`)
	eventually(t, ctx, "the second has taken over", func() bool { return count() == "102" })
	second.running()
	p.equal(ctx)
}

// A worker that believes itself alone, though another one has opened the sink, writes nothing more: its
// next write is refused, and it begins again from what the sink holds.
func TestAZombieWorkerIsFencedOutBySinkAndStandsBy(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	launch(t, ctx, p.replicator())
	w := p.worker(flo.WithSink(p.sink()))
	first := launch(t, ctx, w)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i`)
	eventually(t, ctx, "it works", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "100" })
	p.dst.Exec(t, `UPDATE flo.checkpoints SET epoch = epoch + 1`) // as a successor's Open does
	p.src.Exec(t, `INSERT INTO t VALUES (101, 'x')`)
	eventually(t, ctx, "it begins again", func() bool { return w.Status().Retries > 0 })
	eventually(t, ctx, "it goes on", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "101" })
	first.running()
	p.equal(ctx)
}

func TestAMessageMissingInTheStreamStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	rep := p.replicator()
	launch(t, ctx, rep)
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	eventually(t, ctx, "the worker works", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "1" })
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	for i := 2; i < 6; i++ {
		p.src.Exec(t, `INSERT INTO t VALUES ($1, 'x')`, i)
		p.published(ctx, rep)
	}
	// The message with the third row goes.
	deleted := false
	for _, m := range p.messages(ctx) {
		if m.changes() && m.has('I') && m.head.Parts == 1 {
			if err := p.stream(ctx).SecureDeleteMsg(ctx, m.seq+1); err != nil {
				t.Fatal(err)
			}
			deleted = true
			break
		}
	}
	if !deleted {
		t.Fatal("no message with a row")
	}
	for range 2 {
		err := launch(t, ctx, p.worker(flo.WithSink(p.sink()))).ends(within(t, ctx, 30*time.Second))
		wantStop(t, err, flo.ErrGap, "default", "Drop")
	}
	if got := p.dst.QueryString(t, `SELECT max(id) FROM t`); got > "3" {
		t.Errorf("row %s was applied behind the gap", got)
	}
}

func TestRowSecurityThatAppliesToTheRoleStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'seen'), (2, 'hidden')`)
	role := "flo_rls_" + p.src.Name
	p.src.Exec(t, fmt.Sprintf(`CREATE ROLE %[1]q LOGIN REPLICATION PASSWORD 'x'; GRANT CREATE ON DATABASE %[2]q TO %[1]q;
		GRANT SELECT ON t TO %[1]q; ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY half ON t USING (id = 1);
		CREATE PUBLICATION flo_shop FOR TABLE t; ALTER PUBLICATION flo_shop OWNER TO %[1]q`, role, p.src.Name))
	t.Cleanup(func() {
		p.src.Exec(t, fmt.Sprintf(`DROP PUBLICATION IF EXISTS flo_shop; DROP PUBLICATION IF EXISTS flo_shop_keyless; REVOKE ALL ON t FROM %[1]q; REVOKE ALL ON DATABASE %[2]q FROM %[1]q; DROP ROLE %[1]q`, role, p.src.Name))
	})
	u, err := url.Parse(p.src.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "x")
	err = p.launch(ctx, flo.WithSource(u.String()), flo.WithTables("t"), flo.WithSink(p.sink())).ends(ctx)
	if err == nil {
		t.Fatal("a table of which half can't be seen was copied")
	}
	t.Log(err)
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "0" {
		t.Errorf("the destination has %s rows", n)
	}
}

func TestASecondReplicatorWaitsAndTakesOver(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	first := p.replicator()
	one := launch(t, ctx, first)
	p.published(ctx, first)
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	second := p.replicator()
	two := launch(t, ctx, second)
	for range 50 {
		p.src.Exec(t, `INSERT INTO log (what) VALUES ('x'); INSERT INTO t SELECT count(*) FROM t`)
	}
	eventually(t, ctx, "the second one stands by", func() bool { return second.Status().Phase == flo.PhaseStandby })
	one.running()
	if st := second.Status(); st.Changes != 0 {
		t.Errorf("the second one published %d changes", st.Changes)
	}
	if err := one.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO log (what) VALUES ('last')`)
	eventually(t, ctx, "the second one goes on", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM log`) == "51" })
	two.running()
	w.running()
	p.equal(ctx)
}

func TestAStateBucketDeletedWhileDownStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.jetStream().DeleteKeyValue(ctx, "flo_shop"); err != nil {
		t.Fatal(err)
	}
	wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), flo.ErrStreamLost, "flo_shop", "Drop")
}

func TestAConnectionClosedByItsOwnerStops(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	nc, err := p.nats.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r, err := flo.NewReplicator(flo.WithGroup("shop"), flo.WithSource(p.src.URL), flo.WithNATS(nc))
	if err != nil {
		t.Fatal(err)
	}
	run := launch(t, ctx, r)
	p.published(ctx, r)
	nc.Close()
	wantStop(t, run.ends(ctx), flo.ErrNATSClosed, "close it after Run")
}

func TestARemovedWorkerHoldsNobodyUp(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithLeaseTime(time.Second))
	retired, err := flo.NewWorker(p.options(flo.WithWorker("retired", new(flotest.Recorder)), flo.WithLeaseTime(time.Second))...)
	if err != nil {
		t.Fatal(err)
	}
	run := launch(t, ctx, retired)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	if err := p.f.RemoveWorker(ctx, "retired"); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Fatalf("a worker that runs was removed: %v", err)
	}
	if err := p.f.RemoveWorker(ctx, "default"); err == nil || !strings.Contains(err.Error(), "is one of this Flo") {
		t.Fatalf("a worker of this Flo, which runs, was removed: %v", err)
	}
	if err := run.stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.f.RemoveWorker(ctx, "retired"); err != nil {
		t.Fatal(err)
	}
	wantStop(t, p.f.RemoveWorker(ctx, "retierd"), flo.ErrNoWorker, "retierd", "default")
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	p.catchUp(ctx) // waits for all registered workers
	p.equal(ctx)
}

func TestDropLeavesASlotThatIsAnotherApplications(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	name := "other_" + p.src.Name
	p.src.Exec(t, `SELECT pg_create_physical_replication_slot('`+name+`')`)
	t.Cleanup(func() { p.src.Exec(t, `SELECT pg_drop_replication_slot('`+name+`')`) })
	for range 2 {
		wantStop(t, p.launch(ctx, flo.WithSlot(name), flo.WithSink(p.sink())).ends(ctx), flo.ErrStreamLost, name, "another application", "pg_drop_replication_slot")
	}
	if err := p.f.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	if n := p.src.QueryString(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = '`+name+`'`); n != "1" {
		t.Errorf("%s slots are left of another application's one", n)
	}
}
