package flo_test

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink/postgres"
)

// everyKind is a schema with an object of every kind that WithSchemaSync makes, under hostile names, and
// with others that it must leave alone.
const everyKind = `
CREATE SCHEMA other; CREATE SCHEMA "TABLE ATTACH"; CREATE SCHEMA "sch ""em';--";
CREATE EXTENSION citext WITH SCHEMA other;
CREATE TYPE other.mood AS ENUM ('sad', 'it''s ok', 'happy');
CREATE DOMAIN other.positive AS int CHECK (VALUE > 0);
COMMENT ON DOMAIN other.positive IS 'more than none';
CREATE TYPE other.pair AS (a int, b text);
CREATE TYPE other.span AS RANGE (subtype = float8);
CREATE TYPE "sch ""em';--"."Ty""pe" AS ENUM ('x');
CREATE FUNCTION other.seven() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 7';
CREATE FUNCTION other.touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
	-- looks like pg_restore's own:
--
-- TOC entry 1 (class 2 OID 3)
-- Name: x
--
	NEW.touched := 'yes'; RETURN NEW; END $$;
CREATE FUNCTION other.helper(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT $1 < 1000';
CREATE FUNCTION other.is_ok(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN other.helper($1); END';
CREATE COLLATION other."my Coll" (locale = 'C');
CREATE TEXT SEARCH CONFIGURATION other.words (COPY = pg_catalog.simple);
CREATE FUNCTION other.backwards(int, int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $2 - $1';
CREATE OPERATOR CLASS other.int_backwards FOR TYPE int USING btree AS OPERATOR 1 >, OPERATOR 2 >=, OPERATOR 3 =, OPERATOR 4 <=, OPERATOR 5 <, FUNCTION 1 other.backwards(int, int);
CREATE TABLE kinds (id int PRIMARY KEY CHECK (other.is_ok(id)), c text COLLATE other."my Coll", b int GENERATED ALWAYS AS (other.backwards(id, 1)) STORED);
CREATE INDEX kinds_words ON kinds USING gin (to_tsvector('other.words', c)); CREATE INDEX kinds_back ON kinds (id other.int_backwards);
CREATE SEQUENCE other.free START 100 INCREMENT 5;
CREATE TABLE other.not_copied (id serial PRIMARY KEY, big text);
CREATE TABLE other.customers (
	id bigint GENERATED ALWAYS AS IDENTITY (START WITH 10) PRIMARY KEY,
	name other.citext NOT NULL UNIQUE, mood other.mood DEFAULT 'happy', n other.positive DEFAULT other.seven(), p other.pair, s other.span,
	picture bytea, touched text);
ALTER TABLE other.customers ALTER COLUMN picture SET STORAGE EXTERNAL;
COMMENT ON TABLE other.customers IS E'two\nlines; -- and more''';
COMMENT ON COLUMN other.customers.name IS 'a name';
CREATE TABLE orders (
	id serial PRIMARY KEY, customer bigint NOT NULL, parent int,
	code int DEFAULT nextval('other.free'), foreign_code int DEFAULT nextval('other.not_copied_id_seq'),
	net numeric(10,2) CHECK (net >= 0), gross numeric GENERATED ALWAYS AS (net * 1.2) STORED, at timestamptz DEFAULT now(), touched text,
	CONSTRAINT a_customer FOREIGN KEY (customer) REFERENCES other.customers DEFERRABLE INITIALLY DEFERRED,
	CONSTRAINT itself FOREIGN KEY (parent) REFERENCES orders, CONSTRAINT "later" UNIQUE (code) DEFERRABLE,
	CONSTRAINT no_overlap EXCLUDE USING btree (code WITH =));
CREATE INDEX orders_at ON orders (at DESC NULLS LAST) WHERE parent IS NULL;
CREATE INDEX orders_lower ON orders (lower(touched) text_pattern_ops) INCLUDE (net) WITH (fillfactor = 70);
COMMENT ON INDEX orders_at IS 'of roots';
COMMENT ON CONSTRAINT itself ON orders IS 'a tree';
CREATE STATISTICS orders_stats ON customer, parent FROM orders;
ALTER TABLE orders ADD CONSTRAINT unchecked CHECK (id < 1000000) NOT VALID;
CREATE TRIGGER touch BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION other.touch();
CREATE TABLE "sch ""em';--"."Ta ""b';le" (";" "sch ""em';--"."Ty""pe", "k y" int, "DROP TABLE" text, PRIMARY KEY ("k y"));
CREATE INDEX "in""dex;" ON "sch ""em';--"."Ta ""b';le" ("DROP TABLE");
CREATE TABLE "TABLE ATTACH"."FK CONSTRAINT" (k int PRIMARY KEY REFERENCES orders ON DELETE CASCADE);
CREATE TABLE parts (id int, d date, customer bigint REFERENCES other.customers, PRIMARY KEY (id, d)) PARTITION BY RANGE (d);
CREATE TABLE other.parts_old PARTITION OF parts FOR VALUES FROM (MINVALUE) TO ('2020-01-01');
CREATE TABLE parts_new PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO (MAXVALUE) PARTITION BY LIST (id);
CREATE TABLE parts_new_1 PARTITION OF parts_new FOR VALUES IN (1, 2, 3);
CREATE TABLE parts_rest PARTITION OF parts_new DEFAULT;
CREATE INDEX parts_customer ON parts (customer);
CREATE TABLE nokey (a int, b text); ALTER TABLE nokey REPLICA IDENTITY FULL;
CREATE TABLE byindex (a int NOT NULL, b text); CREATE UNIQUE INDEX byindex_a ON byindex (a); ALTER TABLE byindex REPLICA IDENTITY USING INDEX byindex_a;
CREATE TABLE base (id int PRIMARY KEY, v text); CREATE TABLE derived (w text, PRIMARY KEY (id)) INHERITS (base);
CREATE VIEW a_view AS SELECT o.id, c.name FROM orders o JOIN other.customers c ON c.id = o.customer;
CREATE MATERIALIZED VIEW a_matview AS SELECT count(*) FROM orders;
CREATE FUNCTION uses_view() RETURNS SETOF a_view LANGUAGE sql AS 'SELECT * FROM a_view';
CREATE TABLE secured (id int PRIMARY KEY); ALTER TABLE secured ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON secured USING (true);
`

const everyRow = `
INSERT INTO other.customers (name, p, s) SELECT 'Customer ' || i, ROW(i, 'x')::other.pair, '[1,2)'::other.span FROM generate_series(1, 500) i;
INSERT INTO orders (customer, net) SELECT 10 + i % 500, i::numeric FROM generate_series(1, 2000) i;
UPDATE orders SET parent = 1 WHERE id > 1500;
INSERT INTO "sch ""em';--"."Ta ""b';le" SELECT 'x'::"sch ""em';--"."Ty""pe", i, 'y' FROM generate_series(1, 50) i;
INSERT INTO "TABLE ATTACH"."FK CONSTRAINT" SELECT i FROM generate_series(1, 20) i;
INSERT INTO parts SELECT i % 7, date '2019-01-01' + i, 10 FROM generate_series(1, 1000) i;
INSERT INTO nokey SELECT i, 'n' FROM generate_series(1, 10) i;
INSERT INTO byindex SELECT i, 'n' FROM generate_series(1, 10) i;
INSERT INTO base VALUES (1, 'b'); INSERT INTO derived VALUES (2, 'd', 'w'); INSERT INTO secured VALUES (1); INSERT INTO kinds SELECT i, 'word ' || i FROM generate_series(1, 30) i`

// catalogOf describes tables, columns, indexes, constraints, triggers, statistics, sequences, types and comments.
var catalogOf = map[string]string{
	"columns": `SELECT a.attrelid::regclass, c.relkind, c.relreplident, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attstorage,
		pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p')
		JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
		WHERE a.attnum > 0 AND NOT a.attisdropped AND @ ORDER BY 1::text, a.attnum`,
	"tables": `SELECT c.oid::regclass, obj_description(c.oid, 'pg_class'), pg_get_partkeydef(c.oid), pg_get_expr(c.relpartbound, c.oid), i.inhparent::regclass
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_inherits i ON i.inhrelid = c.oid WHERE c.relkind IN ('r', 'p') AND @ ORDER BY 1::text`,
	"indexes": `SELECT pg_get_indexdef(x.indexrelid), x.indisprimary, x.indisreplident, x.indisvalid, obj_description(x.indexrelid, 'pg_class'), i.inhparent::regclass
		FROM pg_index x JOIN pg_class c ON c.oid = x.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_inherits i ON i.inhrelid = x.indexrelid
		WHERE c.relkind IN ('r', 'p') AND @ ORDER BY 1`,
	"constraints": `SELECT k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid), k.convalidated, obj_description(k.oid, 'pg_constraint')
		FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace WHERE @ AND k.contype <> 't' AND (k.conrelid <> 0 OR k.contypid <> 0) ORDER BY 1::text, 2`,
	"triggers":   `SELECT pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT t.tgisinternal AND @ ORDER BY 1`,
	"statistics": `SELECT pg_get_statisticsobjdef(s.oid) FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE @ ORDER BY 1`,
	"sequences": `SELECT c.oid::regclass, s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcycle, d.refobjid::regclass, d.refobjsubid
		FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_depend d ON d.classid = 1259 AND d.objid = c.oid AND d.deptype IN ('a', 'i') WHERE c.relname <> 'not_copied_id_seq' AND @ ORDER BY 1::text`,
	"types": `SELECT t.oid::regtype, t.typtype, (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid), obj_description(t.oid, 'pg_type')
		FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.typtype IN ('e', 'd', 'r') AND @ ORDER BY 1::text`,
}

// sameCatalog compares both databases' catalogs, schema flo and left out tables aside.
func sameCatalog(t testing.TB, src, dst *flotest.DB, leave string) {
	t.Helper()
	read := func(db *flotest.DB, sql string) map[string]bool {
		out := map[string]bool{}
		db.Exec(t, "SET search_path = ''")
		where := `n.nspname NOT IN ('flo', 'information_schema') AND n.nspname !~ '^pg_'`
		for _, row := range db.Query(t, strings.Replace(sql, "@", where, 1)) {
			line := strings.Join(row, " | ")
			if leave == "" || !strings.Contains(line, leave) {
				out[line] = true
			}
		}
		db.Exec(t, "RESET search_path")
		return out
	}
	for what, sql := range catalogOf {
		a, b := read(src, sql), read(dst, sql)
		for line := range a {
			if !b[line] {
				t.Errorf("%s: the destination lacks %s", what, line)
			}
		}
		for line := range b {
			if !a[line] {
				t.Errorf("%s: the destination has %s", what, line)
			}
		}
	}
}

// everyTable is the tables of everyKind that the pipeline copies.
func everyTable() flo.Option { return flo.WithExcludeTables("other.not_copied") }

func TestSchemaSyncMakesTheDestination(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	p.src.Exec(t, everyKind)
	p.src.Exec(t, everyRow)
	s := p.sink(postgres.WithReplicaRole(), postgres.WithSchemaSync(p.src.URL))
	p.start(ctx, flo.WithSink(s), everyTable())
	p.catchUp(ctx)
	if st := s.SchemaStatus(); st.Phase != "done" || len(st.LeftOut) != 0 {
		t.Errorf("status %+v", st)
	}
	sameCatalog(t, p.src, p.dst, "not_copied")
	p.src.Exec(t, `UPDATE orders SET net = net + 1 WHERE id % 3 = 0; DELETE FROM "TABLE ATTACH"."FK CONSTRAINT" WHERE k < 5; UPDATE parts SET id = id + 1; DELETE FROM nokey WHERE a = 3;
		UPDATE byindex SET a = a + 100; UPDATE base SET v = 'new'; DELETE FROM "sch ""em';--"."Ta ""b';le" WHERE "k y" > 7; UPDATE other.customers SET name = name || '!'`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"orders", "other.customers", "parts", "nokey", "byindex", "base", "derived", "secured", "kinds", `"sch ""em';--"."Ta ""b';le"`, `"TABLE ATTACH"."FK CONSTRAINT"`} {
		flotest.Equal(t, ctx, p.src.URL, p.dst.URL, name)
	}
	if n := p.dst.QueryString(t, "SELECT count(*) FROM pg_class WHERE relname IN ('not_copied', 'a_view', 'a_matview')"); n != "0" {
		t.Errorf("%s objects that nobody needs were made", n)
	}
}

// A second start, over a destination that is whole, and a third one after the group was dropped, change nothing.
func TestSchemaSyncTwiceChangesNothing(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	p.src.Exec(t, everyKind)
	p.src.Exec(t, everyRow)
	identities := func() string {
		return p.dst.QueryString(t, `SELECT string_agg(c.oid || ' ' || c.relname || ' ' || c.xmin, ', ' ORDER BY c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname NOT IN ('flo', 'information_schema') AND n.nspname !~ '^pg_' AND c.relkind <> 'S'`)
	}
	var before string
	for i := range 2 {
		s := p.sink(postgres.WithReplicaRole(), postgres.WithSchemaSync(p.src.URL))
		p.start(ctx, flo.WithSink(s), everyTable())
		p.catchUp(ctx)
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			// ANALYZE and the like rewrite pg_class rows in place; a second TRUNCATE would not.
			before = identities()
			if err := p.f.Drop(ctx); err != nil {
				t.Fatal(err)
			}
			p.dst.Exec(t, "DELETE FROM flo.checkpoints; DELETE FROM flo.copies; DELETE FROM flo.copy_chunks")
			p.dst.Exec(t, `SET session_replication_role = replica; DELETE FROM orders; DELETE FROM other.customers; DELETE FROM "sch ""em';--"."Ta ""b';le";
				DELETE FROM "TABLE ATTACH"."FK CONSTRAINT"; DELETE FROM parts; DELETE FROM nokey; DELETE FROM byindex; DELETE FROM base; DELETE FROM secured; DELETE FROM kinds`)
		}
		if st := s.SchemaStatus(); i == 1 && (st.Phase != "done" || len(st.LeftOut) != 0) {
			t.Errorf("status %+v", st)
		}
	}
	if after := identities(); after != before {
		t.Errorf("the second run changed the catalog:\n%s\n%s", before, after)
	}
	sameCatalog(t, p.src, p.dst, "not_copied")
}

// The destination's sessions are ended again and again while the schema is made, and once flo is stopped and
// started: it goes on, and ends whole.
func TestSchemaSyncGoesOnWhereItWasInterrupted(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	seed := flotest.Seed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	p.src.Exec(t, everyKind)
	p.src.Exec(t, everyRow)
	start := func() *postgres.Sink {
		s := p.sink(postgres.WithReplicaRole(), postgres.WithSchemaSync(p.src.URL, postgres.SchemaJobs(2)))
		p.start(ctx, flo.WithSink(s), everyTable())
		return s
	}
	s := start()
	for i, phase := range []string{"making tables", "making tables", "stop", "making indexes", "stop", "making indexes"} {
		stop := phase == "stop"
		if stop {
			phase = []string{"making tables", "making indexes"}[i/4]
		}
		past := random.IntN(12)
		for hit := false; !hit && s.SchemaStatus().Phase != "done"; {
			st := s.SchemaStatus()
			hit = st.Phase == phase && st.Done >= past
			if ctx.Err() != nil {
				t.Fatalf("%v; %+v", ctx.Err(), p.f.Status())
			}
			runtime.Gosched()
		}
		if stop {
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			s = start()
			continue
		}
		p.dst.Exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'flo %'")
	}
	p.catchUp(ctx)
	sameCatalog(t, p.src, p.dst, "not_copied")
	flotest.Equal(t, ctx, p.src.URL, p.dst.URL, "orders", "other.customers", "parts")
}

// Routed tables have routed names and columns, with keys, indexes and foreign keys; tables of the source's
// names that the destination has for itself stay as they are.
func TestSchemaSyncMakesRoutedTables(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	p.src.Exec(t, `CREATE SCHEMA shop;
		CREATE TYPE shop.state AS ENUM ('new', 'old');
		CREATE TABLE shop.users (id serial PRIMARY KEY, a text, b text, ssn text NOT NULL, state shop.state DEFAULT 'new', CHECK (a <> b));
		COMMENT ON COLUMN shop.users.a IS 'was a';
		CREATE INDEX users_a ON shop.users (a, lower(b));
		CREATE TABLE shop.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, usr int REFERENCES shop.users, twice int GENERATED ALWAYS AS (usr * 2) STORED);
		CREATE TABLE tenant_1 (id int PRIMARY KEY, v text); CREATE TABLE tenant_2 (id int PRIMARY KEY, v text);
		CREATE TABLE log (d date, v text, PRIMARY KEY (d, v)) PARTITION BY RANGE (d);
		CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
		CREATE TABLE log_2 PARTITION OF log FOR VALUES FROM ('2021-01-01') TO ('2022-01-01');
		INSERT INTO shop.users (a, b, ssn) SELECT i, -i, 'secret' FROM generate_series(1, 100) i;
		INSERT INTO shop.orders (usr) SELECT i FROM generate_series(1, 100) i;
		INSERT INTO tenant_1 VALUES (1, 'one'); INSERT INTO tenant_2 VALUES (2, 'two');
		INSERT INTO log VALUES ('2020-02-02', 'x'), ('2021-02-02', 'y')`)
	p.dst.Exec(t, `CREATE SCHEMA shop; CREATE TABLE shop.users (mine int); CREATE TABLE log (mine int)`)
	s := p.sink(postgres.WithReplicaRole(), postgres.WithSchemaSync(p.src.URL))
	p.start(ctx, flo.WithSink(s), flo.WithRules(
		rules.Table("shop.orders"), rules.Table("shop.users", rules.Exclude("ssn")),
		rules.Route("shop.users", "crm.customers"),
		rules.Route("shop.orders", "crm.orders", rules.RenameColumn("id", "usr"), rules.RenameColumn("usr", "customer")),
		rules.Route("tenant_(.*)", "all.tenants", rules.DropTruncate()),
		rules.Route("log", "public.lines", rules.DropTruncate()),
	))
	p.catchUp(ctx)
	p.src.Exec(t, "UPDATE shop.users SET a = 'new' WHERE id = 7; UPDATE shop.orders SET usr = 3 WHERE id = 9; DELETE FROM tenant_2; UPDATE log SET v = 'z' WHERE v = 'y'")
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	want := func(sql, want string) {
		t.Helper()
		if got := p.dst.QueryString(t, sql); got != want {
			t.Errorf("%s\n got %s\nwant %s", sql, got, want)
		}
	}
	want("SELECT string_agg(pg_get_indexdef(indexrelid), '; ' ORDER BY indexrelid::regclass::text) FROM pg_index WHERE indrelid IN ('crm.customers'::regclass, 'crm.orders'::regclass)",
		"CREATE UNIQUE INDEX orders_pkey ON crm.orders USING btree (usr); CREATE INDEX users_a ON crm.customers USING btree (a, lower(b)); CREATE UNIQUE INDEX users_pkey ON crm.customers USING btree (id)")
	want("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f'", "FOREIGN KEY (customer) REFERENCES crm.customers(id)")
	want("SELECT pg_get_serial_sequence('crm.customers', 'id') || ' ' || pg_get_serial_sequence('crm.orders', 'usr')", "crm.users_id_seq crm.orders_id_seq")
	want("SELECT count(*) || ' ' || count(ssn) || ' ' || min(a) FILTER (WHERE id = 7) || ' ' || min(state) FROM crm.customers", "100 0 new new")
	want("SELECT customer || ' ' || twice FROM crm.orders WHERE usr = 9", "3 6")
	want(`SELECT string_agg(v, ',') FROM "all".tenants`, "one")
	want("SELECT string_agg(v, ',' ORDER BY v) FROM lines", "x,z")
	want("SELECT string_agg(c.oid::regclass::text, ', ' ORDER BY c.oid::regclass::text) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'r' AND nspname NOT IN ('flo', 'information_schema') AND nspname !~ '^pg_'",
		`"all".tenants, crm.customers, crm.orders, lines, log, shop.users`)
	want("SELECT string_agg(attname, ',') FROM pg_attribute WHERE attrelid = 'shop.users'::regclass AND attnum > 0", "mine")
}

// What rules make of a table that it can't be made from the source's is said of all such tables at once.
func TestSchemaSyncRefusesWhatItCannotRoute(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	p.src.Exec(t, `CREATE TABLE a (id int PRIMARY KEY, x text, y text); CREATE TABLE b (id int PRIMARY KEY, n int)`)
	r := p.launch(ctx, flo.WithSink(p.sink(postgres.WithSchemaSync(p.src.URL))), flo.WithRules(
		rules.Table("a", rules.Exclude("y")), rules.Table("b", rules.Cast("n", "text")),
		rules.Route("a", "c", rules.RenameColumn("x", "z"))))
	err := r.ends(ctx)
	wantStop(t, err, postgres.ErrSchemaRoute, "public.c", `"z"`, "public.b", `"n"`)
}

// All that doesn't fit, of all tables, is one error, and no row was written.
func TestWhatDoesNotFitIsOneReport(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, `CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE gone (id int PRIMARY KEY, v varchar(7)); CREATE TABLE narrow (id bigint PRIMARY KEY, v varchar(20), extra text);
		CREATE TABLE keyless (id int PRIMARY KEY); INSERT INTO good VALUES (1); INSERT INTO keyless VALUES (1)`)
	p.dst.Exec(t, `CREATE TABLE good (id int PRIMARY KEY); CREATE TABLE narrow (id int PRIMARY KEY, v varchar(10)); CREATE TABLE keyless (id int)`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	err := r.ends(ctx)
	wantStop(t, err, postgres.ErrTableMissing,
		"public.gone", "CREATE TABLE \"public\".\"gone\" (\"id\" integer, \"v\" character varying(7), PRIMARY KEY (\"id\"));",
		"public.narrow", `ADD COLUMN "extra" text;`, `"id" is integer, the source's bigint`, `"v" is character varying(10)`,
		"public.keyless", `ADD PRIMARY KEY ("id")`)
	var fit *postgres.FitError
	if !errors.As(err, &fit) || len(fit.Misfits) != 5 {
		t.Fatalf("%v", err)
	}
	for _, class := range []error{postgres.ErrTypes, postgres.ErrColumnsMissing, postgres.ErrKeyMissing} {
		if !errors.Is(err, class) {
			t.Errorf("%v is not found", class)
		}
	}
	if n := p.dst.QueryString(t, "SELECT count(*) FROM good"); n != "0" {
		t.Errorf("%s rows were written", n)
	}
	// What the report says mends it.
	for _, m := range fit.Misfits {
		p.dst.Exec(t, m.Mend)
	}
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}
