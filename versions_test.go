package flo_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// A publication of PostgreSQL 18 may send stored generated columns. They are copied and streamed like others, into
// ordinary columns, also where they are part of what identifies a row.
func TestPublishedGeneratedColumnsAreReplicated(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireVersion(t, p.src, 18) // publish_generated_columns
	p.src.Exec(t, `CREATE TABLE made (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, seen int GENERATED ALWAYS AS (a + 1) VIRTUAL, b text);
		CREATE TABLE keyed (a int, key text GENERATED ALWAYS AS ('k' || a) STORED NOT NULL PRIMARY KEY, b text);
		CREATE TABLE whole (a numeric, twice numeric GENERATED ALWAYS AS (a * 2) STORED); ALTER TABLE whole REPLICA IDENTITY FULL;
		CREATE TABLE listed (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED, thrice int GENERATED ALWAYS AS (a * 3) STORED)`)
	p.dst.Exec(t, `CREATE TABLE made (id int PRIMARY KEY, a int, twice int, b text); CREATE TABLE keyed (a int, key text NOT NULL PRIMARY KEY, b text);
		CREATE TABLE whole (a numeric, twice numeric); CREATE TABLE listed (id int PRIMARY KEY, a int, twice int)`)
	p.src.Exec(t, `CREATE PUBLICATION made_pub FOR TABLE made, keyed, whole WITH (publish_generated_columns = stored); CREATE PUBLICATION list_pub FOR TABLE listed (id, a, twice)`)
	const fill = `INSERT INTO made (id, a, b) SELECT i, i, 'b' FROM generate_series(%[1]d, %[1]d + 20) i; INSERT INTO keyed (a, b) SELECT i, 'b' FROM generate_series(%[1]d, %[1]d + 20) i;
		INSERT INTO whole SELECT i FROM generate_series(%[1]d, %[1]d + 20) i; INSERT INTO listed (id, a) SELECT i, i FROM generate_series(%[1]d, %[1]d + 20) i`
	p.src.Exec(t, fmt.Sprintf(fill, 1))
	same := func() {
		t.Helper()
		p.catchUp(ctx)
		for table, columns := range map[string]string{"made": "id, a, twice, b", "keyed": "a, key, b", "whole": "a, twice", "listed": "id, a, twice"} {
			sql := fmt.Sprintf(`SELECT %s FROM %s ORDER BY 1, 2`, columns, table)
			if want, got := fmt.Sprint(p.src.Query(t, sql)), fmt.Sprint(p.dst.Query(t, sql)); got != want {
				t.Errorf("%s: the destination has\n%s\nwant\n%s", table, got, want)
			}
		}
	}
	r := p.launch(ctx, flo.WithPublication("made_pub", "list_pub"), flo.WithSink(p.sink()))
	same()
	p.src.Exec(t, fmt.Sprintf(fill, 101))
	p.src.Exec(t, `UPDATE made SET a = a + 1 WHERE id % 3 = 0; UPDATE made SET b = 'c' WHERE id % 5 = 0; DELETE FROM made WHERE id % 7 = 0;
		UPDATE keyed SET a = a + 1000 WHERE a % 3 = 0; UPDATE keyed SET b = 'c' WHERE a % 5 = 0; DELETE FROM keyed WHERE a % 7 = 0;
		UPDATE whole SET a = a + 1000 WHERE a % 3 = 0; DELETE FROM whole WHERE a % 7 = 0; UPDATE listed SET a = a * 2 WHERE id % 2 = 0`)
	same()
	r.running()
}

// Virtual generated columns are computed where they are read: the destination's own do that.
func TestVirtualGeneratedColumnsAreEqual(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireVersion(t, p.src, 18) // virtual generated columns
	for _, db := range []*flotest.DB{p.src, p.dst} {
		db.Exec(t, `CREATE TABLE virtual (id int PRIMARY KEY, seen int GENERATED ALWAYS AS (a + 1), a int, b text, joined text GENERATED ALWAYS AS (b || a::text) VIRTUAL);
			CREATE TABLE whole (a int, seen int GENERATED ALWAYS AS (a + 1) VIRTUAL); ALTER TABLE whole REPLICA IDENTITY FULL`)
	}
	p.src.Exec(t, `INSERT INTO virtual (id, a, b) SELECT i, i, 'b' FROM generate_series(1, 100) i; INSERT INTO whole SELECT generate_series(1, 10)`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
	p.src.Exec(t, `UPDATE virtual SET a = a * 2 WHERE id % 3 = 0; DELETE FROM virtual WHERE id % 7 = 0; UPDATE virtual SET id = id + 1000 WHERE id % 11 = 0; INSERT INTO whole VALUES (11)`)
	p.catchUp(ctx)
	p.equal(ctx)
	// FULL with a generated column that no publication sends is no replica identity from 18 on: its owner's writes
	// don't fail, and there is a warning.
	p.src.Exec(t, `UPDATE whole SET a = 0 WHERE a = 1`)
	if w := strings.Join(p.f.Status().Replicator.Warnings, "\n"); !strings.Contains(w, `"whole" has no replica identity`) {
		t.Errorf("no warning of the table without replica identity: %q", w)
	}
	r.running()
}

// invalidated waits until a slot is, and gives the server's reason for it.
func invalidated(t testing.TB, ctx context.Context, server *flotest.DB, slot string, nudge func()) (reason string) {
	t.Helper()
	eventually(t, ctx, "the slot is invalidated", func() bool {
		nudge()
		return server.QueryString(t, `SELECT wal_status FROM pg_replication_slots WHERE slot_name = '`+slot+`'`) == "lost"
	})
	if server.QueryString(t, `SELECT current_setting('server_version_num')::int >= 170000`) == "t" {
		reason = server.QueryString(t, `SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = '`+slot+`'`)
	}
	return reason
}

// idle_replication_slot_timeout of PostgreSQL 18 takes a slot that nobody reads. A group that runs keeps its slot however
// idle it is; one that was down for too long is told why it stops.
func TestASlotThatWasIdleForTooLongStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	flotest.RequireVersion(t, p.src, 18) // idle_replication_slot_timeout
	server := flotest.NewServer(t, flotest.WithSetting("idle_replication_slot_timeout", "1s"))
	p.use(server.NewDB(t))
	p.src.Exec(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	for range 5 {
		p.src.Exec(t, `SELECT pg_sleep(0.5)`)
		p.src.Exec(t, `CHECKPOINT`)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1000, 'behind an idle time')`)
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if reason := invalidated(t, ctx, p.src, p.slot(), func() { p.src.Exec(t, `CHECKPOINT`) }); reason != "idle_timeout" {
		t.Errorf("the slot is invalidated for %q", reason)
	}
	for range 2 {
		err := p.launch(ctx, flo.WithSink(p.sink())).ends(ctx)
		wantStop(t, err, flo.ErrSlotLost, p.slot(), "idle_replication_slot_timeout", "Drop")
		if strings.Contains(err.Error(), "max_slot_wal_keep_size") {
			t.Errorf("the text blames another setting: %v", err)
		}
	}
}

// A standby without hot_standby_feedback: the primary removes rows of its catalog that the slot needs.
func TestAStandbysSlotThatThePrimaryInvalidatesStops(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, standby := fromStandby(t, ctx, flotest.WithSetting("hot_standby_feedback", "off"))
	r := p.streamStandby(ctx, standby)
	p.src.Exec(t, `INSERT INTO t VALUES (1001, 'streamed')`)
	p.catchUp(ctx)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	reason := invalidated(t, ctx, standby, p.slot(), func() {
		p.src.Exec(t, `CREATE TABLE noise (x text)`)
		p.src.Exec(t, `DROP TABLE noise`) // rows that one transaction makes and removes are in nobody's way
		p.src.Exec(t, `VACUUM pg_class`)
		p.src.Exec(t, `VACUUM pg_attribute`)
	})
	if reason != "" && reason != "rows_removed" {
		t.Errorf("the slot is invalidated for %q", reason)
	}
	err := p.launch(ctx, flo.WithSource(standby.URL), flo.WithPublication("everything"), flo.WithSink(p.sink())).ends(ctx)
	wantStop(t, err, flo.ErrSlotLost, p.slot(), "hot_standby_feedback", "Drop")
}

// The standby that is the source is promoted: its slot stays, and flo goes on with what is written there.
func TestAStandbyThatIsTheSourceIsPromoted(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, standby := fromStandby(t, ctx, flotest.WithSetting("hot_standby_feedback", "on"))
	r := p.streamStandby(ctx, standby)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'on the primary' FROM generate_series(1001, 2000) i`)
	p.catchUp(ctx)
	p.replayed(ctx, standby)
	if _, err := p.src.Server.Stop(ctx, flotest.Immediate); err != nil {
		t.Fatal(err)
	}
	standby.Exec(t, `SELECT pg_promote()`)
	p.use(standby)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'on the promoted one' FROM generate_series(2001, 3000) i; UPDATE t SET v = v || '.' WHERE id % 7 = 0; DELETE FROM t WHERE id % 11 = 0`)
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `UPDATE t SET v = v || '!' WHERE id % 3 = 0`)
	r = p.launch(ctx, flo.WithSource(standby.URL), flo.WithPublication("everything"), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
	r.running()
}

// A transaction with savepoints that is larger than logical_decoding_work_mem and was rolled back before it is read: from
// PostgreSQL 18 on the server sends nothing of it but the aborts of its subtransactions, asked for streaming or not.
func TestARolledBackTransactionOfWhichOnlyAbortsAreSent(t *testing.T) {
	long(t)
	for _, early := range []bool{false, true} {
		t.Run(fmt.Sprint("streaming=", early), func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, smallTable)
			streamEarly(t, p.src)
			start := func() *run { return p.launch(ctx, flo.WithStreaming(early), flo.WithSink(p.sink())) }
			conn := p.src.Conn(t)
			exec := func(sql string) {
				t.Helper()
				if _, err := conn.Exec(ctx, sql); err != nil {
					t.Fatal(err)
				}
			}
			for n := range 3 {
				r := start()
				p.catchUp(ctx)
				exec(`BEGIN; SAVEPOINT a; ALTER TABLE t ADD COLUMN c int; INSERT INTO t SELECT i, repeat('x', 300) FROM generate_series(1, 1500) i`)
				p.catchUp(ctx)
				if err := r.stop(); err != nil {
					t.Fatal(err)
				}
				exec(`ROLLBACK TO a; INSERT INTO t SELECT i, repeat('y', 300) FROM generate_series(1, 800) i; ROLLBACK`)
				p.src.Exec(t, `INSERT INTO t VALUES ($1, 'between')`, 10_000+n)
			}
			r := start()
			p.catchUp(ctx)
			p.equal(ctx, "public.t")
			r.running()
		})
	}
}
