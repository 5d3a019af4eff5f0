package flo_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// ownFile writes a file into a server's data folder, owned as the folder is.
func ownFile(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, "PG_VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	if err := keepOwner(info, path); err != nil {
		t.Fatal(err)
	}
}

// standbyOf makes a streaming standby of a server, as pg_basebackup would: from a copy of its data folder,
// without slots.
func standbyOf(t testing.TB, ctx context.Context, primary *flotest.Server, opts ...flotest.ServerOption) *flotest.Server {
	t.Helper()
	if _, err := primary.Stop(ctx, flotest.Fast); err != nil {
		t.Fatal(err)
	}
	base, err := os.MkdirTemp("", "flo-standby-") // the test's own folder is closed to the server's user
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	if err := os.Chmod(base, 0o711); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "data")
	copyTree(t, primary.DataDir(), dir)
	slots, err := filepath.Glob(filepath.Join(dir, "pg_replslot", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range slots {
		if err := os.RemoveAll(slot); err != nil {
			t.Fatal(err)
		}
	}
	ownFile(t, dir, "standby.signal", "")
	if err := primary.Start(ctx); err != nil {
		t.Fatal(err)
	}
	user, pass := password(t, &flotest.DB{URL: primary.URL("postgres")})
	link := fmt.Sprintf("host=127.0.0.1 port=%d user=%s password=%s dbname=postgres sslmode=disable", primary.Port(), user, pass)
	return flotest.NewServer(t, append([]flotest.ServerOption{flotest.WithData(dir), flotest.WithSetting("primary_conninfo", link)}, opts...)...)
}

// on is the pipeline's source database on another server.
func (p *pipeline) on(s *flotest.Server) *flotest.DB {
	return &flotest.DB{Name: p.src.Name, URL: s.URL(p.src.Name), Server: s}
}

// replayed waits until the standby has what the pipeline's source has by now.
func (p *pipeline) replayed(ctx context.Context, standby *flotest.DB) {
	p.t.Helper()
	lsn := p.now()
	eventually(p.t, ctx, "the standby has replayed all", func() bool {
		return standby.QueryString(p.t, `SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn`, lsn.String()) == "t"
	})
}

// failedOver is a pipeline that has copied and streamed from a primary which then died, and its standby, promoted,
// that had replayed everything.
func failedOver(t *testing.T, ctx context.Context) (p *pipeline, promoted *flotest.DB) {
	t.Helper()
	primary := flotest.NewServer(t)
	p = newPipeline(t, smallTable)
	p.use(primary.NewDB(t))
	p.src.Exec(t, smallTable)
	standby := standbyOf(t, ctx, primary)
	copied(t, ctx, p)
	promoted = p.on(standby)
	p.replayed(ctx, promoted)
	if _, err := primary.Stop(ctx, flotest.Immediate); err != nil {
		t.Fatal(err)
	}
	promoted.Exec(t, `SELECT pg_promote()`)
	return p, promoted
}

func TestAPromotedStandbyWithoutTheSlotStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, promoted := failedOver(t, ctx)
	promoted.Exec(t, `INSERT INTO t VALUES (1000, 'behind the failover')`)
	p.stopsOn(ctx, promoted, flo.ErrSlotLost, p.slot(), "no longer exists", "Drop")
}

// stopsOn starts the pipeline twice on a promoted standby: it stops, and the destination stays with the 100 rows it had.
func (p *pipeline) stopsOn(ctx context.Context, promoted *flotest.DB, want error, texts ...string) {
	p.t.Helper()
	for range 2 {
		wantStop(p.t, p.launch(ctx, flo.WithSource(promoted.URL), flo.WithSink(p.sink())).ends(ctx), want, texts...)
	}
	if n := p.dst.QueryString(p.t, `SELECT count(*) FROM t`); n != "100" {
		p.t.Errorf("the destination has %s rows, want the 100 it had", n)
	}
}

func TestASlotMadeAgainOnAPromotedStandbyStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, promoted := failedOver(t, ctx)
	promoted.Exec(t, `INSERT INTO t VALUES (1000, 'before the slot')`)
	promoted.Exec(t, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, p.slot()))
	promoted.Exec(t, `INSERT INTO t VALUES (1001, 'behind it')`)
	p.stopsOn(ctx, promoted, flo.ErrGap, p.slot(), "made again", "Drop")
}

// The standby was cut off before the last transactions that flo has streamed, was promoted, got a slot
// below flo's position, and wrote beyond it.
func TestAPromotedStandbyThatLacksTransactionsStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	primary := flotest.NewServer(t)
	p := newPipeline(t, smallTable)
	p.use(primary.NewDB(t))
	p.src.Exec(t, smallTable)
	standby := standbyOf(t, ctx, primary)
	copied(t, ctx, p)
	promoted := p.on(standby)
	p.replayed(ctx, promoted)
	if err := standby.SetSetting("primary_conninfo", ""); err != nil {
		t.Fatal(err)
	}
	if err := standby.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "the standby is cut off", func() bool {
		return promoted.QueryString(t, `SELECT count(*) FROM pg_stat_wal_receiver`) == "0"
	})
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1001, 3000) i`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	tail := r.applied()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := primary.Stop(ctx, flotest.Immediate); err != nil {
		t.Fatal(err)
	}
	promoted.Exec(t, `SELECT pg_promote()`)
	promoted.Exec(t, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, p.slot()))
	err := p.launch(ctx, flo.WithSource(promoted.URL), flo.WithSink(p.sink())).ends(ctx)
	wantStop(t, err, flo.ErrSourceChanged, "Drop") // its position is below the stream's
	promoted.Exec(t, `CREATE TABLE noise (x text)`)
	eventually(t, ctx, "the promoted server is beyond the stream", func() bool {
		promoted.Exec(t, `INSERT INTO noise SELECT repeat('x', 1000) FROM generate_series(1, 1000)`)
		return promoted.QueryString(t, `SELECT pg_current_wal_flush_lsn() > $1::text::pg_lsn`, tail.String()) == "t"
	})
	err = p.launch(ctx, flo.WithSource(promoted.URL), flo.WithSink(p.sink())).ends(ctx)
	wantStop(t, err, flo.ErrSourceChanged, "timeline", "promoted", "Drop")
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "2100" {
		t.Errorf("the destination has %s rows, want the 2100 it had", n)
	}
}

func TestSlotFailoverOnAnOlderServerIsRefused(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	if v := p.src.QueryString(t, `SHOW server_version_num`); v >= "170000" {
		t.Skip("the server knows failover slots")
	}
	wantStop(t, p.launch(ctx, flo.WithSlotFailover(), flo.WithSink(p.sink())).ends(ctx), flo.ErrSourceSettings, "WithSlotFailover", "17")
}

// The primary dies under load. On the standby, promoted, the synchronized slot stands where flo can go on.
func TestAFailoverSlotGoesOnOnThePromotedStandby(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	primary := flotest.NewServer(t)
	p := newPipeline(t, smallTable)
	p.use(primary.NewDB(t))
	flotest.RequireVersion(t, p.src, 17) // failover slots
	p.src.Exec(t, smallTable)
	copied(t, ctx, p) // with an ordinary slot, which becomes another one
	standby := standbyOf(t, ctx, primary, flotest.WithSetting("primary_slot_name", "standby"), flotest.WithSetting("hot_standby_feedback", "on"))
	p.src.Exec(t, `SELECT pg_create_physical_replication_slot('standby')`)
	if err := primary.SetSetting("synchronized_standby_slots", "standby"); err != nil {
		t.Fatal(err)
	}
	if err := primary.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	r := p.launch(ctx, flo.WithSlotFailover(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	other := p.on(standby)
	n := 0
	eventually(t, ctx, "the slot is on the standby", func() bool {
		n++
		p.src.Exec(t, `INSERT INTO t VALUES ($1, 'while the slot is synchronized'); `, 1000+n)
		p.src.Exec(t, `SELECT pg_log_standby_snapshot()`)
		other.Exec(t, `SELECT pg_sync_replication_slots()`)
		return other.QueryString(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`' AND synced AND NOT temporary`) == "1"
	})
	p.src.Exec(t, `INSERT INTO t SELECT i, 'the last ones' FROM generate_series(5000, 6000) i`)
	p.catchUp(ctx)
	if _, err := primary.Stop(ctx, flotest.Immediate); err != nil {
		t.Fatal(err)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	other.Exec(t, `SELECT pg_promote()`)
	p.use(other)
	p.src.Exec(t, `INSERT INTO t VALUES (7000, 'behind the failover'); UPDATE t SET v = v || '.' WHERE id % 3 = 0`)
	// The promoted server waits for no standby of its own.
	p.src.Exec(t, `ALTER SYSTEM SET synchronized_standby_slots = ''`)
	p.src.Exec(t, `SELECT pg_reload_conf()`)
	r = p.launch(ctx, flo.WithSlotFailover(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()
}

// fromStandby is a pipeline with a table, a publication of it, and a standby that has both.
func fromStandby(t *testing.T, ctx context.Context, opts ...flotest.ServerOption) (p *pipeline, standby *flotest.DB) {
	t.Helper()
	primary := flotest.NewServer(t)
	p = newPipeline(t, smallTable)
	p.use(primary.NewDB(t))
	flotest.RequireVersion(t, p.src, 16) // logical decoding on a standby
	p.src.Exec(t, smallTable)
	p.src.Exec(t, `CREATE PUBLICATION everything FOR TABLE t; INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 1000) i`)
	standby = p.on(standbyOf(t, ctx, primary, opts...))
	p.replayed(ctx, standby)
	return p, standby
}

// streamStandby runs flo on the standby until it has its slot there.
func (p *pipeline) streamStandby(ctx context.Context, standby *flotest.DB) *run {
	p.t.Helper()
	r := p.launch(ctx, flo.WithSource(standby.URL), flo.WithPublication("everything"), flo.WithSink(p.sink()))
	eventually(p.t, ctx, "the slot is made", func() bool { // it waits for what a primary logs every 15 s, or now
		r.running()
		p.src.Exec(p.t, `SELECT pg_log_standby_snapshot()`)
		return standby.QueryString(p.t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`' AND active AND confirmed_flush_lsn IS NOT NULL`) == "1"
	})
	return r
}

// The source is a standby, on which nothing can be written: the publication is made on the primary.
func TestAStandbyIsCopiedAndStreamed(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, standby := fromStandby(t, ctx, flotest.WithSetting("hot_standby_feedback", "on"))
	for range 2 {
		r := p.streamStandby(ctx, standby)
		p.src.Exec(t, `INSERT INTO t SELECT max(id) + 1, 'streamed' FROM t; UPDATE t SET v = v || '.' WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0`)
		p.catchUp(ctx)
		p.equal(ctx)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
}
