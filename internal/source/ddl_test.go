package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
)

// ddlRig is a database with the event triggers, and a slot that sees what they write.
type ddlRig struct {
	t      testing.TB
	db     *flotest.DB
	c      Config
	slot   string
	secret string
}

func newDDLRig(t testing.TB) *ddlRig {
	t.Helper()
	db := flotest.Postgres(t)
	c := config(t, db.URL)
	conn := connect(t, c)
	installed, err := c.EnsureDDL(t.Context(), conn, "shop")
	must(t, err)
	if !installed {
		t.Fatal("nothing was installed")
	}
	r := &ddlRig{t: t, db: db, c: c, slot: slotName(c)}
	r.secret, err = c.DDLSecret(t.Context(), conn)
	must(t, err)
	if b, err := hex.DecodeString(r.secret); err != nil || len(b) != 16 {
		t.Fatalf("the secret is %q", r.secret)
	}
	db.Exec(t, "CREATE PUBLICATION everything FOR ALL TABLES")
	db.Exec(t, "SELECT pg_create_logical_replication_slot('"+r.slot+"', 'pgoutput')")
	return r
}

// read gives the schema changes since the last call, in order; rows are "I" and so on in letters.
func (r *ddlRig) read() (changes []decode.SchemaChange, letters string) {
	r.t.Helper()
	for _, row := range r.db.Query(r.t, `SELECT encode(data, 'hex') FROM pg_logical_slot_get_binary_changes('`+r.slot+`', NULL, NULL,
		'proto_version', '1', 'publication_names', 'everything', 'messages', 'true')`) {
		frame, err := hex.DecodeString(row[0])
		must(r.t, err)
		prefix := []byte("flo\x00")
		ours := frame[0] == 'M' && bytes.HasPrefix(frame[10:], prefix)
		if frame[0] != 'M' || ours {
			letters += string(frame[0])
		}
		if !ours {
			continue
		}
		content := frame[10+len(prefix):]
		if n := binary.BigEndian.Uint32(content); int(n) != len(content)-4 {
			r.t.Fatalf("%d bytes are said to be %d", len(content)-4, n)
		}
		if frame[1] != 1 {
			r.t.Error("a message is not transactional")
		}
		text, ok := strings.CutPrefix(string(content[4:]), r.secret)
		if !ok {
			r.t.Fatalf("a message without the secret: %s", content[4:])
		}
		var s decode.SchemaChange
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			r.t.Fatalf("%v: %s", err, text)
		}
		if s.Failed != "" {
			r.t.Errorf("the trigger failed: %s %s", s.Tag, s.Failed)
		}
		changes = append(changes, s)
	}
	return changes, letters
}

// do runs SQL and gives its schema changes in short.
func (r *ddlRig) do(sql string) []string {
	r.t.Helper()
	r.db.Exec(r.t, sql)
	changes, _ := r.read()
	var out []string
	for i := range changes {
		out = append(out, brief(&changes[i]))
	}
	return out
}

// one runs SQL and gives its only schema change.
func (r *ddlRig) one(sql string) decode.SchemaChange {
	r.t.Helper()
	r.db.Exec(r.t, sql)
	changes, _ := r.read()
	if len(changes) != 1 {
		r.t.Fatalf("%s: %d schema changes: %+v", sql, len(changes), changes)
	}
	return changes[0]
}

// brief is a schema change in short: tag, tables with columns, types, what was dropped.
func brief(s *decode.SchemaChange) string {
	parts := []string{s.Tag}
	if s.Baseline {
		parts = append(parts, "baseline")
	}
	for i := range s.Tables {
		t := &s.Tables[i]
		text := t.Qualified().String()
		if t.Made {
			text += "!"
		}
		if t.Rewritten {
			text += "~"
		}
		var columns []string
		for _, c := range t.Columns {
			columns = append(columns, fmt.Sprintf("%d %s %s", c.Num, c.Name, c.Type))
		}
		parts = append(parts, text+"("+strings.Join(columns, ", ")+")")
	}
	for _, t := range s.Types {
		parts = append(parts, "type "+t.Qualified().String()+strings.Join(t.Labels, ","))
	}
	for _, n := range s.Schemas {
		parts = append(parts, "schema "+n)
	}
	for _, d := range s.Dropped {
		if d.Kind == "table constraint" && strings.HasSuffix(d.Address[len(d.Address)-1], "_not_null") { // from PostgreSQL 18 on
			continue
		}
		parts = append(parts, fmt.Sprintf("-%s %s", d.Kind, strings.Join(d.Address, ".")))
	}
	return strings.Join(parts, "; ")
}

// What each command's messages hold, in short. Each line is run behind those before it.
func TestDDLMessages(t *testing.T) {
	r := newDDLRig(t)
	for _, test := range []struct {
		sql  string
		want []string
	}{
		{`CREATE TABLE t (id int PRIMARY KEY, v text)`, []string{`CREATE TABLE; public.t!(1 id integer, 2 v text)`}},
		{`ALTER TABLE t ADD COLUMN n numeric(10,2), ADD COLUMN at timestamptz(3)`, []string{`ALTER TABLE; public.t(1 id integer, 2 v text, 3 n numeric(10,2), 4 at timestamp(3) with time zone)`}},
		{`ALTER TABLE t DROP COLUMN v`, []string{`ALTER TABLE; -table column public.t.v`, `ALTER TABLE; public.t(1 id integer, 3 n numeric(10,2), 4 at timestamp(3) with time zone)`}},
		{`ALTER TABLE t RENAME COLUMN n TO "The N"`, []string{`ALTER TABLE; public.t(1 id integer, 3 The N numeric(10,2), 4 at timestamp(3) with time zone)`}},
		{`ALTER TABLE t DROP COLUMN at, ALTER COLUMN id TYPE bigint`, []string{
			`ALTER TABLE; public.t~(1 id bigint, 3 The N numeric(10,2))`, `ALTER TABLE; -table column public.t.at`, `ALTER TABLE; public.t(1 id bigint, 3 The N numeric(10,2))`}},
		{`ALTER TABLE t ADD COLUMN r float8 DEFAULT random()`, []string{
			`ALTER TABLE; public.t~(1 id bigint, 3 The N numeric(10,2), 5 r double precision)`, `ALTER TABLE; public.t(1 id bigint, 3 The N numeric(10,2), 5 r double precision)`}},
		{`ALTER TABLE t DROP COLUMN r, DROP COLUMN "The N"`, []string{`ALTER TABLE; -table column public.t.The N; -table column public.t.r; -default value public.t.r`, `ALTER TABLE; public.t(1 id bigint)`}},
		{`ALTER TABLE t RENAME TO u`, []string{`ALTER TABLE; public.u(1 id bigint)`}},
		{`CREATE SCHEMA s; ALTER TABLE u SET SCHEMA s`, []string{`CREATE SCHEMA; schema s`, `ALTER TABLE; s.u(1 id bigint)`}},
		{`ALTER SCHEMA s RENAME TO s2`, []string{`ALTER SCHEMA; s2.u(1 id bigint); schema s2`}},
		{`CREATE TYPE mood AS ENUM ('sad', 'ok')`, nil},
		{`CREATE DOMAIN d AS mood[]; CREATE TYPE pair AS (a d, b int)`, nil},
		{`ALTER TABLE s2.u ADD p pair`, []string{`ALTER TABLE; s2.u(1 id bigint, 6 p public.pair); type public.moodsad,ok; type public.d; type public.pair`}},
		{`ALTER TYPE mood ADD VALUE 'happy' AFTER 'sad'`, []string{`ALTER TYPE; s2.u(1 id bigint, 6 p public.pair); type public.moodsad,happy,ok; type public.d; type public.pair`}},
		{`ALTER DOMAIN d SET DEFAULT '{}'`, []string{`ALTER DOMAIN; s2.u(1 id bigint, 6 p public.pair); type public.moodsad,happy,ok; type public.d; type public.pair`}},
		{`CREATE SCHEMA s3; ALTER TYPE mood SET SCHEMA s3`, []string{`CREATE SCHEMA; schema s3`, `ALTER TYPE; s2.u(1 id bigint, 6 p public.pair); type s3.moodsad,happy,ok; type public.d; type public.pair`}},
		{`ALTER SCHEMA s3 RENAME TO s4`, []string{`ALTER SCHEMA; s2.u(1 id bigint, 6 p public.pair); type s4.moodsad,happy,ok; type public.d; type public.pair; schema s4`}},
		{`ALTER TYPE s4.mood SET SCHEMA public; DROP SCHEMA s4`, []string{`ALTER TYPE; s2.u(1 id bigint, 6 p public.pair); type public.moodsad,happy,ok; type public.d; type public.pair`, `DROP SCHEMA; -schema s4`}},
		{`ALTER TYPE pair ADD ATTRIBUTE c text CASCADE`, []string{`ALTER TYPE; s2.u(1 id bigint, 6 p public.pair); type public.moodsad,happy,ok; type public.d; type public.pair`}},
		{`DROP TYPE pair CASCADE`, []string{`DROP TYPE; -type public.pair; -table column s2.u.p`}},
		{`DROP TABLE s2.u`, []string{`DROP TABLE; -table s2.u; -table constraint s2.u.t_pkey; -index s2.t_pkey`}},
		{`DROP SCHEMA s2`, []string{`DROP SCHEMA; -schema s2`}},
		{`CREATE TEMP TABLE x (id int); ALTER TABLE x ADD y int; DROP TABLE x; CREATE VIEW w AS SELECT 1 AS a; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; CREATE SEQUENCE q; GRANT SELECT ON w TO PUBLIC`, nil},
		{`CREATE TABLE c AS SELECT 1 AS a`, []string{`CREATE TABLE AS; public.c!(1 a integer)`}},
		{`SELECT 1 AS a INTO c2`, []string{`SELECT INTO; public.c2!(1 a integer)`}},
		{`CREATE TABLE IF NOT EXISTS c (b int)`, nil},
		{`CREATE EXTENSION hstore; CREATE EXTENSION citext`, nil},
		{`ALTER TABLE c ADD h citext`, []string{`ALTER TABLE; public.c(1 a integer, 2 h public.citext)`}},
		{`DROP EXTENSION citext CASCADE`, []string{`DROP EXTENSION; -table column public.c.h`}},
	} {
		if got := r.do(test.sql); !slices.Equal(got, test.want) {
			t.Errorf("%s:\n got %q\nwant %q", test.sql, got, test.want)
		}
	}
}

func TestDDLColumnsSayAllOfThem(t *testing.T) {
	r := newDDLRig(t)
	r.do(`CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, v varchar(7) COLLATE "C" NOT NULL DEFAULT 'x', g int GENERATED ALWAYS AS (length('abc')) STORED)`)
	r.db.Exec(t, `SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'`)
	s := r.one(`ALTER TABLE t ADD at timestamptz DEFAULT '2024-02-29 12:00:00+00', ADD b box DEFAULT '(1,2),(0,0)', ADD arr text[] DEFAULT '{a,NULL,"b c"}', ADD empty text DEFAULT '', ADD j jsonb DEFAULT '{"a": "{\"}"}'`)
	text := func(p *string) string {
		if p == nil {
			return "none"
		}
		return *p
	}
	var got []string
	for _, c := range s.Tables[0].Columns {
		collation := ""
		if c.Collation != nil {
			collation = c.Collation.String()
		}
		got = append(got, fmt.Sprintf("%s|%s|%s|%v|%s|%s%s|%s|%v", c.Name, c.Type, collation, c.NotNull, text(c.Default), c.Identity, c.Generated, text(c.Missing), c.Local))
	}
	want := []string{
		`id|integer||true|none|a|none|true`,
		`v|character varying(7)|pg_catalog.C|true|'x'::character varying||none|true`,
		`g|integer||false|length('abc'::text)|s|none|true`,
		`at|timestamp with time zone||false|'2024-02-29 12:00:00+00'::timestamp with time zone||2024-02-29 12:00:00+00|true`,
		`b|box||false|'(1,2),(0,0)'::box||(1,2),(0,0)|true`,
		`arr|text[]||false|'{a,NULL,"b c"}'::text[]||{a,NULL,"b c"}|true`,
		`empty|text||false|''::text|||true`,
		`j|jsonb||false|'{"a": "{\"}"}'::jsonb||{"a": "{\"}"}|true`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %s\nwant %s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for sql, check := range map[string]func(*decode.ColumnShape) bool{
		`ALTER TABLE t ALTER v DROP NOT NULL`: func(c *decode.ColumnShape) bool { return !c.NotNull },
		`ALTER TABLE t ALTER v DROP DEFAULT`:  func(c *decode.ColumnShape) bool { return c.Default == nil },
		`COMMENT ON COLUMN t.v IS 'say'`:      func(c *decode.ColumnShape) bool { return text(c.Comment) == "say" },
	} {
		r.db.Exec(t, sql)
		changes, _ := r.read()
		if s := changes[len(changes)-1]; !check(&s.Tables[0].Columns[1]) || s.Query != sql {
			t.Errorf("%s: %+v, query %q", sql, s.Tables[0].Columns[1], s.Query)
		}
	}
}

func TestDDLIndexesAndConstraints(t *testing.T) {
	r := newDDLRig(t)
	r.do(`CREATE TABLE t (id int PRIMARY KEY, a int, b text); CREATE TABLE o (id int PRIMARY KEY, t int)`)
	index := func(s decode.SchemaChange) string {
		var out []string
		for _, i := range s.Tables[0].Indexes {
			out = append(out, fmt.Sprintf("%s %v %v", i.Definition, i.Columns, i.Valid))
		}
		return strings.Join(out, "; ")
	}
	if got, want := index(r.one(`CREATE INDEX i ON t (lower(b), id) WHERE a > 0`)), `CREATE INDEX i ON public.t USING btree (lower(b), id) WHERE (a > 0) [1 2 3] true`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	// In the transaction that makes it valid.
	if got, want := index(r.one(`CREATE INDEX CONCURRENTLY j ON t (a)`)), `CREATE INDEX i ON public.t USING btree (lower(b), id) WHERE (a > 0) [1 2 3] true; CREATE INDEX j ON public.t USING btree (a) [2] true`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := r.do(`DROP INDEX CONCURRENTLY j`); !slices.Equal(got, []string{"DROP INDEX; -index public.j"}) {
		t.Errorf("dropping concurrently: %q", got)
	}
	if got := r.one(`COMMENT ON INDEX i IS 'x'`); got.Tables[0].Indexes[0].Comment == nil {
		t.Error("an index's comment")
	}
	constraint := func(s decode.SchemaChange) string {
		var out []string
		for _, k := range s.Tables[0].Constraints {
			if k.Kind == "n" { // of each column that is not null, from 18 on
				continue
			}
			out = append(out, fmt.Sprintf("%s %s %s %v", k.Kind, k.Name, k.Definition, k.Columns))
		}
		return strings.Join(out, "; ")
	}
	if got, want := constraint(r.one(`ALTER TABLE o ADD CONSTRAINT fk FOREIGN KEY (t) REFERENCES t, ADD CHECK (id + t > 0), ADD UNIQUE (t)`)),
		`p o_pkey PRIMARY KEY (id) [1]; u o_t_key UNIQUE (t) [2]; f fk FOREIGN KEY (t) REFERENCES public.t(id) [2]; c o_check CHECK (((id + t) > 0)) [1 2]`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := r.do(`ALTER TABLE o DROP CONSTRAINT fk`); len(got) != 2 || got[0] != "ALTER TABLE; -table constraint public.o.fk" {
		t.Errorf("dropping a constraint: %q", got)
	}
	if got := r.one(`ALTER TABLE o RENAME CONSTRAINT o_check TO c`); !strings.Contains(constraint(got), "c c CHECK") {
		t.Errorf("renaming a constraint: %+v", got)
	}
	s := r.one(`ALTER TABLE o REPLICA IDENTITY USING INDEX o_pkey`)
	if s.Tables[0].Identity != "i" || s.Tables[0].IdentityIndex != "o_pkey" {
		t.Errorf("%+v", s.Tables[0])
	}
}

func TestDDLPartitions(t *testing.T) {
	r := newDDLRig(t)
	r.do(`CREATE TABLE p (id int, at date) PARTITION BY RANGE (at)`)
	s := r.one(`CREATE TABLE p24 PARTITION OF p FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')`)
	p24 := s.Tables[0]
	if p24.Bound != `FOR VALUES FROM ('2024-01-01') TO ('2025-01-01')` || len(p24.Ancestors) != 1 || len(p24.Parents) != 1 || !p24.Made {
		t.Errorf("%+v", p24)
	}
	r.do(`CREATE TABLE p25 (at date, id int)`)
	names := func(s decode.SchemaChange) string {
		var out []string
		for i := range s.Tables {
			out = append(out, fmt.Sprintf("%s%d", s.Tables[i].Name, len(s.Tables[i].Ancestors)))
		}
		return strings.Join(out, " ")
	}
	if got := names(r.one(`ALTER TABLE p ATTACH PARTITION p25 FOR VALUES FROM ('2025-01-01') TO ('2026-01-01')`)); got != "p0 p241 p251" {
		t.Error(got)
	}
	if got := names(r.one(`ALTER TABLE p ADD x int`)); got != "p0 p241 p251" {
		t.Error(got)
	}
	if got := names(r.one(`ALTER TABLE p DETACH PARTITION p24`)); got != "p0 p240 p251" {
		t.Error(got)
	}
	if got := names(r.one(`ALTER TABLE p DETACH PARTITION p25 CONCURRENTLY`)); got != "p0 p250" {
		t.Error(got)
	}
	r.do(`ALTER TABLE p ATTACH PARTITION p24 DEFAULT`)
	if got := r.do(`ALTER TABLE p ALTER id TYPE bigint`); len(got) != 2 || !strings.HasPrefix(got[0], "ALTER TABLE; public.p24~(1 id bigint") {
		t.Errorf("%q", got)
	}
	if got := names(r.one(`CREATE INDEX ON p (id)`)); got != "p0 p241" {
		t.Error(got)
	}
	if got := r.do(`DROP TABLE p`); len(got) != 1 || !strings.Contains(got[0], "-table public.p24") {
		t.Errorf("%q", got)
	}
}

// Order within a transaction, savepoints, and what is rolled back.
func TestDDLStandsInOrderWithTheRows(t *testing.T) {
	r := newDDLRig(t)
	r.db.Exec(t, `BEGIN; CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); SAVEPOINT a; ALTER TABLE t ADD x int; INSERT INTO t VALUES (2, 2); ROLLBACK TO a;
		ALTER TABLE t ADD y int; INSERT INTO t VALUES (3, 3); COMMIT`)
	changes, letters := r.read()
	if letters != "BMRIMRIC" {
		t.Errorf("messages %s", letters)
	}
	if len(changes) != 2 || brief(&changes[1]) != "ALTER TABLE; public.t(1 id integer, 2 y integer)" {
		t.Errorf("%+v", changes)
	}
	r.db.Exec(t, `BEGIN; ALTER TABLE t ADD z int; ROLLBACK`)
	if _, letters := r.read(); letters != "" {
		t.Errorf("rolled back, and yet %s", letters)
	}
	r.db.Exec(t, `CREATE TABLE made AS SELECT i FROM generate_series(1, 3) i`)
	if _, letters := r.read(); letters != "BRIIIMC" { // the rows come before the command's end
		t.Errorf("CREATE TABLE AS: %s", letters)
	}
}

// The query is the command's text or nothing.
func TestDDLQueryIsTheCommandAlone(t *testing.T) {
	r := newDDLRig(t)
	r.do(`CREATE TABLE t (id int)`)
	for sql, want := range map[string]string{
		"\n-- a comment\n/* and * another */ ALTER TABLE t ADD a int; ": "ALTER TABLE t ADD a int; ",
		"alter table t ADD b int":                                                 "alter table t ADD b int",
		"ALTER TABLE t ADD c int; INSERT INTO t VALUES (1)":                       "",
		"INSERT INTO t VALUES (1); ALTER TABLE t ADD d int":                       "",
		"DO $$ BEGIN EXECUTE 'ALTER TABLE t ADD e int'; PERFORM 'secret'; END $$": "",
		"ALTER TABLE t ADD f text DEFAULT ';x'":                                   "",
		"ALTER TABLE t ADD g text DEFAULT '" + strings.Repeat("x", 70_000) + "'":  "ALTER TABLE t ADD g text DEFAULT '" + strings.Repeat("x", 65536-len("ALTER TABLE t ADD g text DEFAULT '")),
	} {
		if s := r.one(sql); s.Query != want {
			t.Errorf("%.80s: query %.80q", sql, s.Query)
		}
	}
}

// Whatever becomes of flo's objects, the user's commands work.
func TestDDLNeverFailsTheUsersCommand(t *testing.T) {
	r := newDDLRig(t)
	r.do(`CREATE TABLE t (id int)`)
	for i, sabotage := range []string{
		`CREATE OR REPLACE FUNCTION flo.ddl_types(classes oid[]) RETURNS json LANGUAGE sql AS $$ SELECT (1/0)::text::json $$`,
		`DROP FUNCTION flo.ddl_touched() CASCADE`,
		`DROP SEQUENCE flo.ddl_secret_a CASCADE`,
		`ALTER SCHEMA flo RENAME TO florian`,
		`ALTER SCHEMA florian RENAME TO flo; DROP SCHEMA flo CASCADE`,
	} {
		r.db.Exec(t, sabotage)
		r.db.Exec(t, fmt.Sprintf(`ALTER TABLE t ADD c%d int; ALTER TABLE t ALTER c%[1]d TYPE text; ALTER TABLE t DROP c%[1]d; CREATE TABLE n%[1]d (id int); DROP TABLE n%[1]d`, i))
	}
	// It is mended at the next start.
	conn := connect(t, r.c)
	installed, err := r.c.EnsureDDL(t.Context(), conn, "shop")
	must(t, err)
	if !installed {
		t.Error("not installed again")
	}
	r.secret, err = r.c.DDLSecret(t.Context(), conn)
	must(t, err)
}

func TestDDLFailureLeavesAMarker(t *testing.T) {
	r := newDDLRig(t)
	r.do(`CREATE TABLE t (id int)`)
	r.db.Exec(t, `CREATE OR REPLACE FUNCTION flo.ddl_types(classes oid[]) RETURNS json LANGUAGE sql AS $$ SELECT (1/0)::text::json $$`)
	r.db.Exec(t, `ALTER TABLE t ADD x int`)
	found := r.db.QueryString(t, `SELECT count(*) FROM pg_logical_slot_get_binary_changes('`+r.slot+`', NULL, NULL,
		'proto_version', '1', 'publication_names', 'everything', 'messages', 'true') WHERE position('"failed":"22012'::bytea IN data) > 0`)
	if found != "1" {
		t.Errorf("%s markers", found)
	}
}

func TestDDLBaseline(t *testing.T) {
	r := newDDLRig(t)
	r.do(`CREATE TABLE t (id int); CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p DEFAULT; CREATE TABLE other (id int)`)
	conn := connect(t, r.c)
	var oids []uint32
	must(t, conn.QueryRow(t.Context(), `SELECT array_agg(oid) FROM pg_class WHERE relname IN ('t', 'p1')`).Scan(&oids))
	must(t, r.c.Baseline(t.Context(), conn, append(oids, 1)))
	changes, _ := r.read()
	if len(changes) != 1 || brief(&changes[0]) != "; baseline; public.t(1 id integer); public.p(1 id integer); public.p1(1 id integer)" {
		t.Fatalf("%+v", changes)
	}
	// A table that somebody alters is described behind that, the other one meanwhile.
	r.db.Exec(t, `BEGIN; ALTER TABLE t ADD x int`)
	other := connect(t, r.c)
	done := make(chan error, 1)
	go func() { done <- r.c.Baseline(t.Context(), other, oids) }()
	eventually(t, "the lock is waited for", nil, func() bool {
		var n int
		must(t, conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'public.t'::regclass`).Scan(&n))
		return n > 0
	})
	r.db.Exec(t, `COMMIT`)
	must(t, <-done)
	changes, _ = r.read()
	if len(changes) < 2 || !strings.Contains(brief(&changes[len(changes)-1]), "public.t(1 id integer, 2 x integer)") || changes[0].Baseline {
		t.Errorf("%+v", changes)
	}
}

func TestDDLInstallsOnceAndGoesWithTheLastGroup(t *testing.T) {
	r := newDDLRig(t)
	ctx := t.Context()
	conn := connect(t, r.c)
	installed, err := r.c.EnsureDDL(ctx, conn, "other")
	must(t, err)
	if installed {
		t.Error("installed twice")
	}
	secret, err := r.c.DDLSecret(ctx, conn)
	must(t, err)
	// An earlier version and a disabled trigger are mended, a later version stays; the secret stays.
	for _, sql := range []string{`COMMENT ON EVENT TRIGGER flo_ddl_command_end IS 'flo DDL 0'`, `ALTER EVENT TRIGGER flo_sql_drop DISABLE`, `DROP EVENT TRIGGER flo_table_rewrite`} {
		r.db.Exec(t, sql)
		if installed, err = r.c.EnsureDDL(ctx, conn, "shop"); err != nil || !installed {
			t.Errorf("%s: %v %v", sql, installed, err)
		}
	}
	again, err := r.c.DDLSecret(ctx, conn)
	must(t, err)
	if again != secret {
		t.Error("another secret")
	}
	r.db.Exec(t, `COMMENT ON EVENT TRIGGER flo_ddl_command_end IS 'flo DDL 99'`)
	if installed, err = r.c.EnsureDDL(ctx, conn, "shop"); err != nil || installed {
		t.Error("a later version was replaced", err)
	}
	if err := r.db.TryExec(ctx, DDLSetup()); pgsession.SQLState(err) != sqlPrerequisite {
		t.Error("a later version was replaced", err)
	}
	r.db.Exec(t, `ROLLBACK`)
	must(t, r.c.DropDDL(ctx, conn, "shop"))
	if n := r.db.QueryString(t, `SELECT count(*) FROM pg_event_trigger`); n != "3" {
		t.Errorf("%s triggers are left to the other group", n)
	}
	must(t, r.c.DropDDL(ctx, conn, "other"))
	must(t, r.c.DropDDL(ctx, conn, "other"))
	if n := r.db.QueryString(t, `SELECT (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_namespace WHERE nspname = 'flo')`); n != "0" {
		t.Errorf("%s things are left", n)
	}
	// What else stands in the schema stays.
	r.db.Exec(t, `CREATE SCHEMA flo; CREATE TABLE flo.checkpoints (id int)`)
	_, err = r.c.EnsureDDL(ctx, conn, "shop")
	must(t, err)
	must(t, r.c.DropDDL(ctx, conn, "shop"))
	if n := r.db.QueryString(t, `SELECT count(*) FROM flo.checkpoints`); n != "0" {
		t.Error("the table went")
	}
}

// A role without superuser's rights is told what to do, can use what an administrator has installed, and nobody else
// may read the secret.
func TestDDLPrivileges(t *testing.T) {
	db := flotest.Postgres(t)
	ctx := t.Context()
	role := "flo_ddl_" + db.Name
	db.Exec(t, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'x'; CREATE TABLE t (id int)`, role))
	t.Cleanup(func() { db.Exec(t, fmt.Sprintf(`DROP OWNED BY %[1]s; DROP ROLE %[1]s`, role)) })
	c := config(t, db.URL)
	c.Conn.User, c.Conn.Password = role, "x"
	conn := connect(t, c)
	_, err := c.EnsureDDL(ctx, conn, "shop")
	if !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), "DDLSetupSQL") {
		t.Fatal(err)
	}
	db.Exec(t, DDLSetup())
	_, err = c.EnsureDDL(ctx, conn, "shop")
	if !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), "GRANT EXECUTE") {
		t.Fatal(err)
	}
	for _, sql := range []string{`SELECT flo.ddl_secret()`, `SELECT last_value FROM flo.ddl_secret_a`, `SELECT flo.ddl_baseline('{}')`, `SELECT flo.ddl_emit('{}')`} {
		if _, err := conn.Exec(ctx, sql); pgsession.SQLState(err) != sqlPrivilege {
			t.Errorf("%s: %v", sql, err)
		}
	}
	db.Exec(t, DDLSetup(role))
	installed, err := c.EnsureDDL(ctx, conn, "shop")
	must(t, err)
	if installed {
		t.Error("installed by a role that can't")
	}
	_, err = c.DDLSecret(ctx, conn)
	must(t, err)
	var oid uint32
	must(t, conn.QueryRow(ctx, `SELECT 'public.t'::regclass::oid`).Scan(&oid))
	must(t, c.Baseline(ctx, conn, []uint32{oid}))
	must(t, c.DropDDL(ctx, conn, "shop"))
	if n := db.QueryString(t, `SELECT count(*) FROM pg_event_trigger`); n != "3" {
		t.Errorf("%s triggers", n)
	}
	db.Exec(t, DDLRemoval)
	// Whose schema it is may put other functions into it.
	db.Exec(t, fmt.Sprintf(`CREATE SCHEMA flo AUTHORIZATION %s`, role))
	admin := config(t, db.URL)
	if _, err := admin.EnsureDDL(context.Background(), connect(t, admin), "shop"); !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), "ALTER SCHEMA flo OWNER") {
		t.Error(err)
	}
	db.Exec(t, `DROP SCHEMA flo`)
}
