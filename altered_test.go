package flo_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink/postgres"
)

// Tables are altered while the source makes the slot and their copy begins. A destination that flo makes has what the
// source has in the end: the source's values of defaults, and nothing of a column that came and went.
func TestTablesAlteredWhileTheirCopyBegins(t *testing.T) {
	long(t)
	parallel(t)
	const tables = 12
	for name, alter := range map[string]string{
		"added": `ALTER TABLE t%[1]d ADD COLUMN at timestamptz DEFAULT clock_timestamp(); INSERT INTO t%[1]d VALUES (100, 'between');
			ALTER TABLE f%[1]d ADD COLUMN at timestamptz DEFAULT now(); UPDATE f%[1]d SET v = 'updated' WHERE id < 5; DELETE FROM f%[1]d WHERE id > 18`,
		"added and dropped": `ALTER TABLE t%[1]d ADD COLUMN x int DEFAULT 7; INSERT INTO t%[1]d VALUES (100, 'between', 8);
			ALTER TABLE t%[1]d DROP COLUMN x; INSERT INTO t%[1]d VALUES (101, 'behind')`,
		"renamed": `INSERT INTO t%[1]d VALUES (100, 'before'); ALTER TABLE t%[1]d RENAME v TO w; INSERT INTO t%[1]d VALUES (101, 'behind');
			ALTER TABLE t%[1]d ALTER w TYPE varchar(20); UPDATE t%[1]d SET w = w || '.' WHERE id < 5`,
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t)
			for i := range tables {
				p.src.Exec(t, fmt.Sprintf(`CREATE TABLE t%[1]d (id int PRIMARY KEY, v text); INSERT INTO t%[1]d SELECT i, 'x' FROM generate_series(1, 20) i;
					CREATE TABLE f%[1]d (id int, v text); ALTER TABLE f%[1]d REPLICA IDENTITY FULL; INSERT INTO f%[1]d SELECT i, 'x' FROM generate_series(1, 20) i`, i))
			}
			r := p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
			eventually(t, ctx, "the slot is being made", func() bool {
				r.running()
				return p.src.QueryString(t, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = '`+p.slot()+`'`) == "1"
			})
			for i := range tables {
				for sql := range strings.SplitSeq(fmt.Sprintf(alter, i), ";") { // a transaction each
					p.src.Exec(t, sql)
				}
			}
			p.catchUp(ctx)
			p.equal(ctx)
		})
	}
}

// A type that is altered behind the making of a table, both while flo is down: the copy brings the rows with the type as it is in
// the end, and the stream still tells how it was before.
func TestATypeThatACopyHasBroughtIsNotTakenBack(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.ranOnce(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	for _, sql := range []string{
		`CREATE TYPE ct AS (p int, q int)`, `CREATE TYPE mood AS ENUM ('a', 'b')`, `CREATE DOMAIN small AS int CHECK (VALUE < 10)`,
		`CREATE TABLE uses (id int PRIMARY KEY, c ct, m mood, s small)`, `INSERT INTO uses VALUES (1, ROW(1, 2), 'a', 1)`,
		`ALTER TYPE ct ADD ATTRIBUTE z text`, `ALTER TYPE mood RENAME VALUE 'b' TO 'c'`, `ALTER DOMAIN small DROP CONSTRAINT small_check`,
		`UPDATE uses SET c = ROW(3, 4, 'z'), m = 'c', s = 100`, `ALTER TYPE ct RENAME ATTRIBUTE p TO first`,
	} {
		p.src.Exec(t, sql)
	}
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx, "uses")
	p.src.Exec(t, `ALTER TYPE ct DROP ATTRIBUTE q; INSERT INTO uses VALUES (2, ROW(5, 'y'), 'a', 1000)`)
	p.catchUp(ctx)
	p.equal(ctx, "uses")
	if got := p.dst.QueryString(t, `SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'ct'::regclass AND NOT attisdropped`); got != "first z" {
		t.Errorf("the type has %q", got)
	}
}

// What comes for a table that waits for its fresh copy is part of what that copy brings: constraints that its old rows don't keep.
func TestATableThatWaitsForItsCopyGetsItsConstraintsWithIt(t *testing.T) {
	long(t)
	parallel(t)
	const fresh = `ALTER TABLE t%[1]d ADD r float8 DEFAULT random();`
	alter := []string{
		`BEGIN; ALTER TABLE t%[1]d ADD q int; UPDATE t%[1]d SET q = id; ALTER TABLE t%[1]d ALTER q SET NOT NULL; COMMIT`,
		`UPDATE t%[1]d SET v = '' WHERE v IS NULL; ALTER TABLE t%[1]d ALTER v SET NOT NULL`,
		`UPDATE t%[1]d SET v = 'y'; ALTER TABLE t%[1]d ADD CHECK (v = 'y')`,
		`UPDATE t%[1]d SET v = id::text; CREATE UNIQUE INDEX ON t%[1]d (v)`,
		`UPDATE t%[1]d SET w = 2; ALTER TABLE parts ADD r float8; ALTER TABLE parts ATTACH PARTITION t%[1]d FOR VALUES IN (2)`,
		`ALTER TABLE t%[1]d RENAME v TO x; ALTER TABLE t%[1]d RENAME TO renamed; UPDATE renamed SET x = 'y', w = 9; ALTER TABLE renamed DROP w, ADD CHECK (x <> '')`,
	}
	for _, running := range []bool{true, false} {
		t.Run(map[bool]string{true: "while running", false: "while stopped"}[running], func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t)
			p.src.Exec(t, `CREATE TABLE parts (id int NOT NULL, v text, w int) PARTITION BY LIST (w)`)
			for i := range alter {
				p.src.Exec(t, fmt.Sprintf(`CREATE TABLE t%[1]d (id int NOT NULL, v text, w int DEFAULT 1); ALTER TABLE t%[1]d REPLICA IDENTITY FULL; INSERT INTO t%[1]d SELECT i, CASE WHEN i %% 2 = 0 THEN 'x' END FROM generate_series(1, 300) i`, i))
			}
			r := p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
			p.catchUp(ctx)
			if !running {
				if err := r.stop(); err != nil {
					t.Fatal(err)
				}
			}
			for i, sql := range alter {
				p.src.Exec(t, fmt.Sprintf(fresh, i))
				p.src.Exec(t, fmt.Sprintf(sql, i))
			}
			if !running {
				r = p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
			}
			p.catchUp(ctx)
			r.running()
			tables := []string{"parts", "renamed"}
			for i := range len(alter) - 1 {
				tables = append(tables, fmt.Sprint("t", i))
			}
			p.equal(ctx, tables...)
		})
	}
}

// A generated column goes in the command that gives the column that it is made of another type.
func TestAGeneratedColumnGoesAsItsBaseIsRetyped(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v text, g int GENERATED ALWAYS AS (length(v)) STORED); INSERT INTO t VALUES (1, 'a');
		CREATE TABLE u (id int PRIMARY KEY, v text, g int GENERATED ALWAYS AS (length(v)) STORED); INSERT INTO u VALUES (1, 'a')`)
	r := p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.src.Exec(t, `ALTER TABLE t DROP g, ALTER v TYPE varchar(40); INSERT INTO t VALUES (2, 'b')`)
	p.src.Exec(t, `ALTER TABLE u DROP g, ALTER v TYPE varchar(40), ADD g text; INSERT INTO u VALUES (2, 'b', 'c')`)
	p.catchUp(ctx)
	r.running()
	p.equal(ctx, "t", "u")
	const columns = `SELECT string_agg(concat(attrelid::regclass, '.', attname, ' ', format_type(atttypid, atttypmod), attgenerated), ', ' ORDER BY attrelid::regclass::text, attname)
		FROM pg_attribute WHERE attrelid IN ('t'::regclass, 'u'::regclass) AND attnum > 0 AND NOT attisdropped`
	if want, got := p.src.QueryString(t, columns), p.dst.QueryString(t, columns); got != want {
		t.Errorf("the destination has %s, want %s", got, want)
	}
}

// A group that doesn't copy never takes rows out of the destination, whatever of the source's new structure they don't keep.
func TestWithoutCopiesNoTableIsEmptied(t *testing.T) {
	parallel(t)
	for name, alter := range map[string]string{
		"a constraint": `ALTER TABLE t ADD r float8 DEFAULT random(); ALTER TABLE t ALTER v SET NOT NULL`,
		"a type":       `ALTER TABLE t ALTER v TYPE int USING length(v)`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t, smallTable)
			p.dst.Exec(t, `INSERT INTO t VALUES (1, NULL), (2, 'kept')`)
			r := p.launch(ctx, flo.WithMode(flo.StreamOnly), flo.WithDDL(), flo.WithSink(p.sink()))
			p.catchUp(ctx)
			p.src.Exec(t, `INSERT INTO t VALUES (3, 'streamed')`)
			p.catchUp(ctx)
			p.src.Exec(t, `BEGIN; `+alter+`; COMMIT`)
			wantStop(t, r.ends(ctx), postgres.ErrDDL, `column "v"`)
			if got := p.dst.QueryString(t, `SELECT string_agg(id || coalesce(v, ''), ' ' ORDER BY id) FROM t`); got != "1 2kept 3streamed" {
				t.Errorf("the destination has %q", got)
			}
		})
	}
}

// Types that are altered behind the making of a table that uses them, all while flo is down: rows of others that use them are still to
// come, written for the types as they were before.
func TestATableThatSharesAlteredTypesIsCopiedBehindThem(t *testing.T) {
	parallel(t)
	for _, sync := range []bool{false, true} {
		t.Run(fmt.Sprintf("schema sync %v", sync), func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t)
			var opts []postgres.Option
			if sync {
				flotest.RequireDump(t, p.src)
				opts = append(opts, postgres.WithSchemaSync(p.src.URL))
			}
			const base = `CREATE SCHEMA s2; CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TYPE mood2 AS ENUM ('c'); CREATE TYPE pair AS (m mood, n int);
				CREATE TABLE t (id int PRIMARY KEY, m mood, ms mood[], p pair, m2 mood2); CREATE TABLE s2.x (id int PRIMARY KEY);
				CREATE TYPE one AS ENUM ('a'); CREATE TYPE two AS ENUM ('x', 'y'); CREATE TABLE swapped (id int PRIMARY KEY, o one, t two);
				CREATE TYPE onlymore AS ENUM ('one'); CREATE DOMAIN loose AS int CHECK (VALUE > 0); CREATE TABLE more (id int PRIMARY KEY, m onlymore, d loose)`
			p.src.Exec(t, base+`; INSERT INTO t VALUES (1, 'a', '{a,b}', ROW('a', 1), 'c')`)
			if !sync {
				p.dst.Exec(t, base)
			}
			p.ranOnce(ctx, flo.WithDDL(), flo.WithSink(p.sink(opts...)))
			for _, sql := range []string{
				`INSERT INTO t VALUES (2, 'b', '{b}', ROW('b', 2), 'c')`,
				`ALTER TABLE t ADD d mood DEFAULT 'a', ADD CHECK (d <> 'b'::mood OR m2 = 'c'::mood2)`,
				`CREATE TABLE uses (id int PRIMARY KEY, m mood DEFAULT 'b', p pair)`,
				`ALTER TYPE mood SET SCHEMA s2`, `INSERT INTO t VALUES (3, 'b', '{}', NULL)`,
				`ALTER TABLE t ADD d2 s2.mood DEFAULT 'b'; CREATE INDEX ti ON t (id) WHERE m = 'a'::s2.mood`,
				`ALTER TYPE s2.mood RENAME TO "Mo od"`, `ALTER TYPE s2."Mo od" RENAME VALUE 'a' TO 'A!'`, `ALTER TYPE pair ADD ATTRIBUTE x text`,
				`INSERT INTO t VALUES (4, 'A!', '{A!}', ROW('A!', 4, 'y')); INSERT INTO uses VALUES (1, 'A!', ROW('A!', 1, 'y'))`,
				`INSERT INTO swapped VALUES (1, 'a', 'x')`, `ALTER TYPE one RENAME TO three; ALTER TYPE two RENAME TO one; ALTER TYPE three RENAME TO two`,
				`CREATE TABLE swapped2 (id int PRIMARY KEY, o one, t two); INSERT INTO swapped2 VALUES (1, 'y', 'a'); INSERT INTO swapped VALUES (2, 'a', 'y')`,
				`ALTER TYPE mood2 RENAME TO mood3; CREATE TYPE mood2 AS ENUM ('new'); CREATE TABLE news (id int PRIMARY KEY, m mood2); INSERT INTO news VALUES (1, 'new')`,
				`ALTER TYPE onlymore ADD VALUE 'more'`, `CREATE TABLE mores (id int PRIMARY KEY, m onlymore, d loose)`, `ALTER DOMAIN loose DROP CONSTRAINT loose_check`,
				`INSERT INTO mores VALUES (1, 'more', -1)`, `INSERT INTO more VALUES (2, 'more', -1)`,
				`ALTER SCHEMA s2 RENAME TO "S 2"`, `ALTER TABLE t ADD d3 "S 2"."Mo od"[]; INSERT INTO t (id, m, d3) VALUES (5, 'b', '{b}'); INSERT INTO "S 2".x VALUES (1)`,
			} {
				p.src.Exec(t, sql)
			}
			p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink(opts...)))
			p.catchUp(ctx)
			p.src.Exec(t, `ALTER TYPE "S 2"."Mo od" ADD VALUE 'z'`)
			p.src.Exec(t, `INSERT INTO t (id, m) VALUES (6, 'z')`)
			p.catchUp(ctx)
			p.equal(ctx, "t", "uses", `"S 2".x`, "swapped", "swapped2", "news", "more", "mores")
			const types = `SELECT string_agg(n.nspname || '.' || typname, ' ' ORDER BY n.nspname, typname) FROM pg_type t JOIN pg_namespace n ON n.oid = typnamespace WHERE typtype = 'e'`
			if got, want := p.dst.QueryString(t, types), p.src.QueryString(t, types); got != want {
				t.Errorf("the destination has the types %s, want %s", got, want)
			}
			if got := p.dst.QueryString(t, `SELECT count(*) FROM pg_namespace WHERE nspname = 's2'`); got != "0" {
				t.Error("the schema's old name is still there")
			}
		})
	}
}

// An alteration that no event trigger has told of never comes: the copy is put off a few times, and no more.
func TestACopyWaitsForNoAlterationThatIsNotTold(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	const base = `CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, m mood)`
	p.src.Exec(t, base+`; INSERT INTO t VALUES (1, 'a')`)
	p.dst.Exec(t, base)
	p.ranOnce(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.src.Exec(t, `CREATE TABLE uses (id int PRIMARY KEY, m mood)`)
	p.src.Exec(t, `BEGIN; ALTER EVENT TRIGGER flo_ddl_command_end DISABLE; ALTER TYPE mood RENAME VALUE 'a' TO 'A'; ALTER EVENT TRIGGER flo_ddl_command_end ENABLE ALWAYS; COMMIT`)
	p.src.Exec(t, `INSERT INTO uses VALUES (1, 'A')`)
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx, "t", "uses")
}

// A partition that is made behind an alteration of its parent, all while flo is down: rows of the other partitions are still to come,
// written as they were before.
func TestAPartitionIsCopiedBehindItsParentsAlteration(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	const base = `CREATE TABLE parts (id int PRIMARY KEY, v text, w text) PARTITION BY RANGE (id); CREATE TABLE parts0 PARTITION OF parts FOR VALUES FROM (0) TO (100)`
	p.src.Exec(t, base+`; INSERT INTO parts VALUES (1, 'a', 'b')`)
	p.dst.Exec(t, base)
	p.ranOnce(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	for _, sql := range []string{
		`INSERT INTO parts VALUES (2, 'a', 'before')`, `ALTER TABLE parts DROP v, ADD at timestamptz DEFAULT now()`, `UPDATE parts SET at = '2020-01-01' WHERE id = 2`,
		`INSERT INTO parts VALUES (3, '', NULL), (4, 'checked', now())`, `UPDATE parts SET w = 'x' WHERE w = ''`, `ALTER TABLE parts ADD CHECK (w <> '')`,
		`CREATE TABLE parts1 PARTITION OF parts FOR VALUES FROM (100) TO (200)`, `INSERT INTO parts VALUES (100, 'new', now())`,
	} {
		p.src.Exec(t, sql)
	}
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx, "parts0", "parts1")
}

// What is made while a table waits for its fresh copy, and that only its old rows at the destination are in the way of: beside its own
// constraints an index, a check of a domain, a partition that takes rows from the default one.
func TestOldRowsOfATableThatWaitsForItsCopyAreInNothingsWay(t *testing.T) {
	long(t)
	parallel(t)
	const base = `CREATE TABLE wide (id int PRIMARY KEY, v text); INSERT INTO wide SELECT 1, string_agg(md5(i::text), '') FROM generate_series(1, 300) i;
		CREATE TABLE divided (id int PRIMARY KEY, v int); INSERT INTO divided VALUES (1, 0);
		CREATE DOMAIN d AS int; CREATE TABLE checked (id int PRIMARY KEY, v d); INSERT INTO checked VALUES (1, 5);
		CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE rest PARTITION OF parts DEFAULT; INSERT INTO parts VALUES (5), (50);
		CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1);
		CREATE TABLE "Key" (id int PRIMARY KEY); INSERT INTO "Key" VALUES (1); CREATE TABLE refers (id int PRIMARY KEY, k int CONSTRAINT "to Key" REFERENCES "Key"); INSERT INTO refers VALUES (1, 1)`
	for _, running := range []bool{true, false} {
		for _, sync := range []bool{true, false} {
			t.Run(fmt.Sprintf("running %v schema sync %v", running, sync), func(t *testing.T) {
				t.Parallel()
				ctx := testContext(t)
				p := newPipeline(t)
				p.src.Exec(t, base)
				opts := []postgres.Option{postgres.WithReplicaRole()}
				if sync {
					opts = append(opts, postgres.WithSchemaSync(p.src.URL))
				}
				r := p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink(opts...)))
				p.catchUp(ctx)
				if !running {
					if err := r.stop(); err != nil {
						t.Fatal(err)
					}
				}
				for _, sql := range []string{
					`ALTER TABLE wide ADD r float8 DEFAULT random(); ALTER TABLE divided ADD r float8 DEFAULT random();
						ALTER TABLE checked ADD r float8 DEFAULT random(); ALTER TABLE parts ADD r float8 DEFAULT random(); ALTER TABLE "Key" ADD r float8 DEFAULT random()`,
					`INSERT INTO "Key" VALUES (10, 0); INSERT INTO refers VALUES (10, 10)`, `ALTER TABLE "Key" ALTER id TYPE numeric`,
					`ALTER TABLE "Key" ADD k2 int; UPDATE "Key" SET k2 = id; ALTER TABLE "Key" ADD UNIQUE (k2)`, `ALTER TABLE refers ADD CONSTRAINT "to k2" FOREIGN KEY (k) REFERENCES "Key" (k2)`,
					`UPDATE wide SET v = 'x'; UPDATE divided SET v = 1; UPDATE checked SET v = -5; DELETE FROM parts WHERE id = 5`,
					`CREATE INDEX ON wide (v)`, `CREATE INDEX ON divided ((1 / v))`, `ALTER DOMAIN d ADD CHECK (VALUE < 0)`, `CREATE TABLE p1 PARTITION OF parts FOR VALUES FROM (0) TO (10)`,
					`INSERT INTO parts VALUES (7, 'new', 1); INSERT INTO other VALUES (2)`,
				} {
					p.src.Exec(t, sql)
				}
				if !running {
					r = p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink(opts...)))
				}
				p.catchUp(ctx)
				r.running()
				p.equal(ctx, "wide", "divided", "checked", "rest", "p1", "other", "Key", "refers")
				if got := p.dst.QueryString(t, `SELECT count(*) FROM pg_constraint WHERE conname IN ('to Key', 'to k2') AND contype = 'f'`); got != "2" {
					t.Errorf("%s foreign keys of 2", got)
				}
			})
		}
	}
}

// A command that writes a table anew and drops columns: its fresh copy finds the destination without them, whatever the columns are called later.
func TestColumnsGoInACommandThatWritesTheTableAnew(t *testing.T) {
	parallel(t)
	for _, running := range []bool{true, false} {
		t.Run(fmt.Sprintf("running %v", running), func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t)
			p.src.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, c int NOT NULL, g int GENERATED ALWAYS AS (c + 1) STORED); INSERT INTO t (id, c) VALUES (1, 1);
				CREATE TABLE u (id int PRIMARY KEY, a text, b int, c text); INSERT INTO u VALUES (1, 'a', 2, 'c')`)
			r := p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
			p.catchUp(ctx)
			if !running {
				if err := r.stop(); err != nil {
					t.Fatal(err)
				}
			}
			for _, sql := range []string{
				`ALTER TABLE t DROP COLUMN g, DROP COLUMN c, ADD COLUMN o float8 DEFAULT random()`, `INSERT INTO t VALUES (2)`,
				`ALTER TABLE u DROP COLUMN c; ALTER TABLE u ADD c bigint GENERATED ALWAYS AS (b * 2) STORED`, `ALTER TABLE u RENAME c TO sw; ALTER TABLE u RENAME a TO c`,
				`INSERT INTO u VALUES (2, 'b', 3)`,
			} {
				p.src.Exec(t, sql)
			}
			if !running {
				r = p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
			}
			p.catchUp(ctx)
			r.running()
			p.equal(ctx, "t", "u")
			const columns = `SELECT string_agg(attrelid::regclass || '.' || attname, ' ' ORDER BY attrelid::regclass::text, attnum) FROM pg_attribute WHERE attrelid IN ('t'::regclass, 'u'::regclass) AND attnum > 0 AND NOT attisdropped`
			if got, want := p.dst.QueryString(t, columns), p.src.QueryString(t, columns); got != want {
				t.Errorf("the destination has %s, want %s", got, want)
			}
		})
	}
}

// A column that gets the name of one that the destination has of its own.
func TestAColumnIsNotRenamedOntoTheDestinationsOwn(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a')`)
	r := p.launch(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.dst.Exec(t, `ALTER TABLE t ADD n text DEFAULT 'own'`)
	p.src.Exec(t, `ALTER TABLE t RENAME v TO n; INSERT INTO t VALUES (2, 'b')`)
	wantStop(t, r.ends(ctx), postgres.ErrDDL, `renaming column "v" to "n"`, "the destination has both")
	p.dst.Exec(t, `ALTER TABLE t DROP n`)
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx, "t")
}

// Columns change names, and one of them is what a rule leaves out: the destination's column has values of the other one.
func TestAColumnThatARuleLeftOutIsNotTakenForAnother(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, c text, d text); INSERT INTO t VALUES (1, 'secret', 'd')`)
	r := p.launch(ctx, flo.WithDDL(), flo.WithRules(rules.Exclude("c")), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.src.Exec(t, `BEGIN; ALTER TABLE t RENAME c TO x; ALTER TABLE t RENAME d TO c; ALTER TABLE t RENAME x TO d; COMMIT`)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'new secret', 'e')`)
	wantStop(t, r.ends(ctx), postgres.ErrDDL, `column "x" to "d"`, "the destination has both")
}

// The same where the group has copied before it started over without copies.
func TestAGroupThatCopiesNoMoreEmptiesNoTable(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE t (id int PRIMARY KEY, v int)`)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 0)`)
	p.ranOnce(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	r := p.launch(ctx, flo.WithMode(flo.StreamOnly), flo.WithResync("again"), flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.src.Exec(t, `ALTER TABLE t ADD r float8 DEFAULT random(); UPDATE t SET v = 1`)
	p.catchUp(ctx)
	p.dst.Exec(t, `INSERT INTO t VALUES (2, 0)`)
	p.src.Exec(t, `CREATE INDEX ON t ((1 / v))`)
	wantStop(t, r.ends(ctx), postgres.ErrDDL, "division by zero")
	if got := p.dst.QueryString(t, `SELECT count(*) FROM t`); got != "2" {
		t.Errorf("the destination has %s rows", got)
	}
}
