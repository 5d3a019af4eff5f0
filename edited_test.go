package flo_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

const editedTables = `CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE u (id bigint PRIMARY KEY, v text); CREATE TABLE log (what text)`

// edits are what somebody may do to flo's own publications so that changes are not published for a while, and how many of the
// tables it concerns. WHERE takes PostgreSQL 15.
var edits = []struct{ name, sql, tables string }{
	{"publishes inserts only", `ALTER PUBLICATION flo_shop SET (publish = 'insert'); UPDATE t SET v = 'unseen' WHERE id < 5; DELETE FROM u WHERE id = 9`, "t u"},
	{"and back", `ALTER PUBLICATION flo_shop SET (publish = 'insert'); DELETE FROM t WHERE id = 9;
		ALTER PUBLICATION flo_shop SET (publish = 'insert, update, delete, truncate')`, "t u"},
	{"out and in", `ALTER PUBLICATION flo_shop DROP TABLE t; INSERT INTO t VALUES (1000, 'unseen'); ALTER PUBLICATION flo_shop ADD TABLE t`, "t"},
	{"a row filter comes", `ALTER PUBLICATION flo_shop SET TABLE t WHERE (id < 8), u; INSERT INTO t VALUES (2000, 'unseen')`, ""},
	{"and goes", `ALTER PUBLICATION flo_shop SET TABLE t, u`, "t"},
	{"the keyless one", `ALTER PUBLICATION flo_shop_keyless SET (publish = 'truncate'); INSERT INTO log VALUES ('unseen');
		ALTER PUBLICATION flo_shop_keyless SET (publish = 'insert, truncate')`, "log"},
}

// oneByOne executes statements in transactions of their own.
func oneByOne(t testing.TB, db *flotest.DB, sql string) {
	t.Helper()
	for _, statement := range strings.Split(sql, ";") {
		db.Exec(t, statement)
	}
}

// What somebody else changes in flo's own publications is healed by a copy, and no other table is copied.
func TestWhatOthersChangeInFlosPublicationsIsCopiedAfresh(t *testing.T) {
	parallel(t)
	for _, running := range []bool{false, true} {
		t.Run(map[bool]string{false: "while stopped", true: "while running"}[running], func(t *testing.T) {
			if running {
				long(t) // the looks are a second apart
			}
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t, editedTables)
			flotest.RequireVersion(t, p.src, 15) // row filters
			p.src.Exec(t, `INSERT INTO t SELECT i, 'a' FROM generate_series(1, 10) i; INSERT INTO u SELECT i, 'a' FROM generate_series(1, 10) i; INSERT INTO log VALUES ('a')`)
			start := func() *run {
				return p.launch(ctx, flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink()))
			}
			r := start()
			p.catchUp(ctx)
			for _, e := range edits {
				before := p.attempts()
				if !running {
					if err := r.stop(); err != nil {
						t.Fatal(e.name, err)
					}
				}
				oneByOne(t, p.src, e.sql)
				if !running {
					r = start()
				}
				eventually(t, ctx, e.name+": a fresh copy", func() bool {
					r.running()
					for table, attempt := range p.attempts() {
						if attempt != before[table] {
							return true
						}
					}
					return false
				})
				p.src.Exec(t, `INSERT INTO u SELECT max(id) + 1, 'seen' FROM u; UPDATE t SET v = 'seen' WHERE id = 1`)
				p.catchUp(ctx)
				if e.tables == "" { // the filter holds for the copy
					if got := p.dst.QueryString(t, `SELECT count(*) FROM t WHERE id >= 8`); got != "0" {
						t.Errorf("%s: %s rows that the filter leaves out", e.name, got)
					}
					continue
				}
				p.equal(ctx)
				for table, attempt := range p.attempts() {
					if want := slices.Contains(strings.Fields(e.tables), table); want != (attempt != before[table]) {
						t.Errorf("%s: %s was copied by %s, before by %s", e.name, table, attempt, before[table])
					}
				}
			}
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			if got := p.src.QueryString(t, `SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate FROM pg_publication WHERE pubname = 'flo_shop'`); got != "t" {
				t.Errorf("all is published: %s", got)
			}
		})
	}
}

// What flo does to its publications itself, and what loses nothing, has nothing copied; nor does a group that an older version
// has made, which has no record.
func TestWhatFloChangesInItsPublicationsIsNoEditOfOthers(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, editedTables, `CREATE TABLE more (id bigint PRIMARY KEY)`)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'); INSERT INTO more VALUES (1)`)
	start := func(opts ...flo.Option) *run {
		return p.launch(ctx, append(opts, flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink()))...)
	}
	want := func(r *run, attempts map[string]string) {
		t.Helper()
		p.src.Exec(t, `INSERT INTO t SELECT max(id) + 1, 'seen' FROM t`)
		p.catchUp(ctx)
		for table, attempt := range p.attempts() {
			if attempts[table] != attempt {
				t.Errorf("%s was copied by %s, want %v", table, attempt, attempts)
			}
		}
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
	want(start(flo.WithExcludeTables("more")), map[string]string{"t": "1", "u": "1", "log": "1"})
	all := map[string]string{"t": "1", "u": "1", "log": "1", "more": "2"}
	want(start(), all) // a table joins

	r := start() // one loses its identity, while flo runs
	p.catchUp(ctx)
	p.src.Exec(t, `ALTER TABLE u REPLICA IDENTITY NOTHING`)
	eventually(t, ctx, "it is moved", func() bool {
		return p.src.QueryString(t, `SELECT count(*) FROM pg_publication_tables WHERE pubname = 'flo_shop_keyless'`) == "2"
	})
	want(r, all)
	owner := p.src.Name + "_owner"
	p.src.Exec(t, `CREATE ROLE `+owner+` SUPERUSER; ALTER PUBLICATION flo_shop OWNER TO `+owner+``)
	p.src.Exec(t, `VACUUM FULL pg_publication`)
	t.Cleanup(func() { p.src.Exec(t, `ALTER PUBLICATION flo_shop OWNER TO current_user; DROP ROLE `+owner) })
	want(start(), all)

	kv, err := p.jetStream().KeyValue(ctx, "flo_shop")
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Purge(ctx, "adopted"); err != nil {
		t.Fatal(err)
	}
	want(start(), all)
}

// Where nothing can be copied flo stops, at a look and at each start, until the group starts over.
func TestStreamOnlyStopsWhereOthersHaveChangedFlosPublication(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, editedTables)
	start := func(opts ...flo.Option) *run {
		return p.launch(ctx, append(opts, flo.WithMode(flo.StreamOnly), flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink()))...)
	}
	r := start()
	p.catchUp(ctx)
	oneByOne(t, p.src, `ALTER PUBLICATION flo_shop DROP TABLE t; INSERT INTO t VALUES (1, 'unseen'); ALTER PUBLICATION flo_shop ADD TABLE t`)
	wantStop(t, r.ends(ctx), flo.ErrTables, "flo_shop", `"t" may be missing`, "WithResync")
	wantStop(t, start().ends(ctx), flo.ErrTables, `"t" may be missing`)
	for i, sql := range []string{
		`ALTER PUBLICATION flo_shop DROP TABLE t`,
		`ALTER PUBLICATION flo_shop SET (publish = 'insert'); ALTER PUBLICATION flo_shop SET (publish = 'insert, update, delete, truncate')`,
	} {
		r = start(flo.WithResync(strconv.Itoa(i)))
		p.src.Exec(t, `INSERT INTO u SELECT count(*), 'seen' FROM u`)
		eventually(t, ctx, "it streams", func() bool { r.running(); return p.f.Status().Replicator.Phase == flo.PhaseStreaming })
		p.catchUp(ctx)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		oneByOne(t, p.src, sql)
		wantStop(t, start(flo.WithResync(strconv.Itoa(i))).ends(ctx), flo.ErrTables, `"public"."t"`)
	}
}

// An owner's publication that lacks an event for a moment, between two looks or while flo is down, has its tables copied.
func TestAnOwnersPublicationThatLacksAnEventForAMomentIsCopiedAfresh(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE u (id bigint PRIMARY KEY, v text)`)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'a' FROM generate_series(1, 10) i; CREATE PUBLICATION one FOR TABLE t; CREATE PUBLICATION two FOR TABLE u`)
	start := func() *run {
		return p.launch(ctx, flo.WithPublication("one", "two"), flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink()))
	}
	const less, more = `ALTER PUBLICATION one SET (publish = 'insert'); DELETE FROM t WHERE id = (SELECT max(id) FROM t);`,
		`ALTER PUBLICATION one SET (publish = 'insert, update, delete, truncate')`
	r := start()
	p.catchUp(ctx)
	copied := func(attempt string) {
		t.Helper()
		eventually(t, ctx, "a fresh copy", func() bool { r.running(); return p.attempts()["t"] == attempt })
		p.src.Exec(t, `UPDATE t SET v = 'seen' WHERE id = 1`)
		p.catchUp(ctx)
		p.equal(ctx)
		if got := p.attempts()["u"]; got != "1" {
			t.Errorf("the other publication's table was copied by %s", got)
		}
	}
	oneByOne(t, p.src, less+more)
	copied("2")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	oneByOne(t, p.src, less+more)
	r = start()
	copied("3")
	oneByOne(t, p.src, less) // it stays so: the owner is told
	wantStop(t, r.ends(ctx), flo.ErrTables, "does not publish update", "start again")
	p.src.Exec(t, more)
	r = start()
	copied("4")
}

// What others change between flo's look at its publications and the moment it makes sure of them.
func TestWhatIsChangedWhileFloStartsIsCopiedAfresh(t *testing.T) {
	parallel(t)
	for name, c := range map[string]struct{ sql, other string }{
		"a table": {`ALTER PUBLICATION flo_shop DROP TABLE t; INSERT INTO t VALUES (1, 'unseen'); ALTER PUBLICATION flo_shop ADD TABLE t`, "1"},
		"options": {`ALTER PUBLICATION flo_shop SET (publish = 'truncate'); INSERT INTO t VALUES (1, 'unseen'); ALTER PUBLICATION flo_shop SET (publish = 'insert, update, delete, truncate')`, "2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t, editedTables)
			p.ranOnce(ctx, flo.WithSink(p.sink()))
			lock, watch := p.src.Conn(t), p.src.Conn(t)
			if _, err := lock.Exec(ctx, `BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('flo publication flo_shop', 0))`); err != nil {
				t.Fatal(err)
			}
			r := p.launch(ctx, flo.WithSink(p.sink()))
			waitsForPublications(t, ctx, r, watch)
			oneByOne(t, p.src, c.sql)
			if _, err := lock.Exec(ctx, `COMMIT`); err != nil {
				t.Fatal(err)
			}
			eventually(t, ctx, "a fresh copy", func() bool { r.running(); return p.attempts()["t"] == "2" })
			p.catchUp(ctx)
			p.equal(ctx)
			if got := p.attempts()["u"]; got != c.other {
				t.Errorf("the other table was copied by %s", got)
			}
		})
	}
}

// A table that becomes unlogged between the look at the catalog and its joining the publication is left out by the next look.
func TestATableThatBecomesUnloggedWhileItJoinsStopsNothing(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.ranOnce(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `CREATE TABLE brief (id int PRIMARY KEY)`)
	p.dst.Exec(t, `CREATE TABLE brief (id int PRIMARY KEY)`)
	lock, watch := p.src.Conn(t), p.src.Conn(t)
	if _, err := lock.Exec(ctx, `BEGIN; SELECT pg_advisory_xact_lock(hashtextextended('flo publication flo_shop', 0))`); err != nil {
		t.Fatal(err)
	}
	r := p.launch(ctx, flo.WithSink(p.sink()))
	waitsForPublications(t, ctx, r, watch)
	p.src.Exec(t, `ALTER TABLE brief SET UNLOGGED`)
	if _, err := lock.Exec(ctx, `COMMIT`); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a')`)
	p.catchUp(ctx)
	p.equal(ctx, "t")
	r.running()
}

// waitsForPublications waits until flo waits for the lock under which it changes its publications.
func waitsForPublications(t *testing.T, ctx context.Context, r *run, watch *pgx.Conn) {
	t.Helper()
	eventually(t, ctx, "flo waits for the lock", func() (waits bool) {
		r.running()
		err := watch.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waits)
		return err == nil && waits
	})
}

// A publication that was dropped and made again can't be used for what was written before. From 18 on PostgreSQL reads changes of
// that time without it ("skipped loading publication"), so its tables are copied afresh; and while it runs, flo stops at its next look.
func TestAPublicationMadeAgainIsSaidToBe(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	oneByOne(t, p.src, `DROP PUBLICATION flo_shop; INSERT INTO t VALUES (1, 'a'); CREATE PUBLICATION flo_shop FOR TABLE t`)
	r = p.launch(ctx, flo.WithSink(p.sink()))
	if p.src.QueryString(t, `SELECT current_setting('server_version_num')::int < 180000`) == "t" {
		wantStop(t, r.ends(ctx), flo.ErrTables, "was made again", "WithResync")
		return
	}
	eventually(t, ctx, "a fresh copy", func() bool { r.running(); return p.attempts()["t"] == "2" })
	p.catchUp(ctx)
	p.equal(ctx)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = p.launch(ctx, flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink()))
	eventually(t, ctx, "it streams", func() bool { r.running(); return p.f.Status().Replicator.Phase == flo.PhaseStreaming })
	oneByOne(t, p.src, `DROP PUBLICATION flo_shop; INSERT INTO t VALUES (2, 'b')`)
	wantStop(t, r.ends(ctx), flo.ErrTables, "flo_shop", "does not exist any more", "WithResync")
}

// The last table of all is dropped, or another one takes its place.
func TestTheLastTableMayBeReplaced(t *testing.T) {
	parallel(t)
	for name, c := range map[string]struct{ first, then, table string }{
		"another one later": {`DROP TABLE t`, `CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b VALUES (1, 'b')`, "b"},
		"made again":        {`BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, w text); INSERT INTO t VALUES (1, 'b'); COMMIT`, ``, "t"},
		"swapped": {`BEGIN; CREATE TABLE n (LIKE t INCLUDING ALL); INSERT INTO n SELECT * FROM t; ALTER TABLE n ADD w int DEFAULT 3;
			ALTER TABLE t RENAME TO o; ALTER TABLE n RENAME TO t; DROP TABLE o; INSERT INTO t VALUES (2, 'q', 5); COMMIT`, ``, "t"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t, smallTable)
			p.src.Exec(t, `INSERT INTO t VALUES (1, 'a')`)
			r := p.launch(ctx, flo.WithDDL(), flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink()))
			p.catchUp(ctx)
			p.src.Exec(t, c.first)
			if c.then != "" {
				p.catchUp(ctx)
				p.src.Exec(t, c.then)
			}
			eventually(t, ctx, "the table is copied", func() bool {
				r.running()
				return p.attempts()[c.table] >= "2" && p.f.Status().Replicator.CopyDone
			})
			p.src.Exec(t, `INSERT INTO `+c.table+` VALUES (3, 'seen')`)
			p.catchUp(ctx)
			p.equal(ctx, c.table)
		})
	}
}

// A name that means a published table by the time that it is added to the publication.
func TestATableWhoseNameIsSwappedWhileItJoinsStopsNothing(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.ranOnce(ctx, flo.WithSink(p.sink()))
	for _, db := range []*flotest.DB{p.src, p.dst} {
		db.Exec(t, `CREATE TABLE n (LIKE t INCLUDING ALL)`)
	}
	swapping, watch := p.src.Conn(t), p.src.Conn(t)
	if _, err := swapping.Exec(ctx, `BEGIN; LOCK TABLE n IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithSink(p.sink()))
	eventually(t, ctx, "the publication waits for the lock", func() (waits bool) {
		err := watch.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'n'::regclass AND NOT granted AND mode = 'ShareUpdateExclusiveLock')`).Scan(&waits)
		return err == nil && waits
	})
	const swap = `ALTER TABLE n RENAME TO o; ALTER TABLE t RENAME TO n; ALTER TABLE o RENAME TO t; `
	p.dst.Exec(t, swap) // or ErrMoved stops the worker
	if _, err := swapping.Exec(ctx, swap+`COMMIT`); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'); INSERT INTO n VALUES (2, 'b')`)
	p.catchUp(ctx)
	p.equal(ctx)
}
