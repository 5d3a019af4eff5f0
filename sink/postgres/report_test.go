package postgres

import (
	"bytes"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// copyOf makes the CopyTable of a table as a database has it.
func copyOf(t testing.TB, db *flotest.DB, name string) sink.CopyTable {
	t.Helper()
	table := db.Query(t, "SELECT n.nspname, c.relname, c.relreplident, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::regclass", name)[0]
	oid, err := strconv.ParseUint(table[3], 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	r := &decode.Relation{OID: uint32(oid), Schema: table[0], Name: table[1], Identity: decode.Identity(table[2][0])}
	rows := db.Query(t, `SELECT a.attname, tn.nspname, t.typname, t.typtype, a.atttypmod,
			coalesce((SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid), ''),
			EXISTS (SELECT FROM pg_index x WHERE x.indrelid = a.attrelid AND x.indisprimary AND a.attnum = ANY (x.indkey))
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
		WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum`, name)
	for _, row := range rows {
		mod, err := strconv.ParseInt(row[4], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		typ := &decode.Type{Schema: row[1], Name: row[2]}
		if row[3] == "e" {
			typ.Kind, typ.Labels = decode.EnumType, strings.Split(row[5], ",")
		}
		r.Columns = append(r.Columns, decode.Column{Name: row[0], Type: typ, Modifier: int32(mod), Key: row[6] == "t" || r.Identity == decode.IdentityFull})
	}
	return sink.CopyTable{Relation: r, From: r, Source: r.OID, Attempt: 1, Point: 1}
}

// misfits gives what BeginCopy reports, as "table kind", and runs what mends it.
func misfits(t *testing.T, r *rig, tables ...sink.CopyTable) []string {
	t.Helper()
	err := r.sink.BeginCopy(testContext(t), tables)
	if err == nil {
		return nil
	}
	var fit *FitError
	if !errors.As(err, &fit) || !sink.IsPermanent(err) {
		t.Fatal(err)
	}
	var out []string
	for _, m := range fit.Misfits {
		if !strings.Contains(err.Error(), m.Mend) {
			t.Errorf("the text lacks %s", m.Mend)
		}
		out = append(out, m.Table.Name+" "+string(m.Kind))
		r.db.Exec(t, m.Mend)
	}
	return out
}

// Every kind of misfit of every table is in one error, and the SQL that it gives for each mends it.
func TestEveryMisfitIsReportedAtOnceWithWhatMendsIt(t *testing.T) {
	src := flotest.Postgres(t)
	src.Exec(t, `CREATE TABLE missing ("Id" int PRIMARY KEY, n numeric(7,2), a text[]); CREATE TABLE "Odd" (id int PRIMARY KEY, "a b" text, v varchar(9));
		CREATE TABLE full_rows (a int); ALTER TABLE full_rows REPLICA IDENTITY FULL; CREATE TABLE fine (id int PRIMARY KEY, v text)`)
	r := newRig(t, `CREATE TABLE "Odd" (id int, v varchar(8), need int NOT NULL); CREATE TABLE full_rows (a int); INSERT INTO full_rows VALUES (1);
		CREATE TABLE fine (id int PRIMARY KEY, v text); CREATE TABLE child (id int CONSTRAINT fk REFERENCES fine);
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER "T r" AFTER INSERT ON full_rows EXECUTE FUNCTION f()`)
	tables := []sink.CopyTable{copyOf(t, src, "missing"), copyOf(t, src, `"Odd"`), copyOf(t, src, "full_rows"), copyOf(t, src, "fine")}
	got := misfits(t, r, tables...)
	want := []string{"missing table", "Odd column", "Odd type", "Odd required", "Odd key", "full_rows triggers", "full_rows rows", "fine triggers"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if got := misfits(t, r, tables...); got != nil {
		t.Errorf("what mends it doesn't: %v", got)
	}
}

func TestMissingPrivilegesOfAllTablesAreReported(t *testing.T) {
	flotest.RequireOwnServer(t)
	src := flotest.Postgres(t)
	const ddl = `CREATE SCHEMA s; CREATE TABLE s.a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY); CREATE TABLE "No key" (v text);`
	src.Exec(t, ddl)
	r := newRig(t, ddl)
	role := "Poor " + r.db.Name
	quoted := ident(role)
	r.db.Exec(t, `CREATE ROLE `+quoted+` LOGIN PASSWORD 'pw'; GRANT SELECT, INSERT ON b, "No key" TO `+quoted+`; GRANT USAGE, CREATE ON SCHEMA flo TO `+quoted+`;
		GRANT ALL ON ALL TABLES IN SCHEMA flo TO `+quoted+`; GRANT ALL ON c TO `+quoted+`; ALTER TABLE c ENABLE ROW LEVEL SECURITY`)
	t.Cleanup(func() { r.db.Exec(t, `DROP OWNED BY `+quoted+`; DROP ROLE `+quoted) })
	u, err := url.Parse(r.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "pw")
	r.sink, r.st.Epoch = newSink(t, u.String()), 2
	r.open()
	tables := []sink.CopyTable{copyOf(t, src, "s.a"), copyOf(t, src, "b"), copyOf(t, src, "c"), copyOf(t, src, `"No key"`)}
	if got, want := misfits(t, r, tables...), []string{"a privilege", "a privilege", "b privilege", "c privilege"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	r.st.Epoch = 3
	r.open()
	if got := misfits(t, r, tables...); got != nil {
		t.Errorf("what mends it doesn't: %v", got)
	}
}

// A pair of types is a misfit exactly if the second can't hold the first's values.
func TestTypesThatHold(t *testing.T) {
	const types = `CREATE TYPE e2 AS ENUM ('a', 'b'); CREATE TYPE e3 AS ENUM ('a', 'c', 'b'); CREATE DOMAIN d5 AS varchar(5); CREATE TYPE comp AS (a int);`
	src := flotest.Postgres(t)
	src.Exec(t, types)
	r := newRig(t, types)
	for i, c := range []struct {
		from, to string
		holds    bool
	}{
		{"int4", "int8", true}, {"int8", "int4", false}, {"int4", "numeric", true}, {"int4", "numeric(10,0)", true}, {"int4", "numeric(9,0)", false},
		{"int8", "float8", false}, {"int4", "text", true}, {"text", "int4", false}, {"varchar(5)", "varchar(5)", true}, {"varchar(5)", "varchar(4)", false},
		{"varchar(5)", "varchar", true}, {"varchar", "varchar(5)", false}, {"varchar(5)", "text", true}, {"text", "varchar(100)", false}, {"varchar(5)", "bpchar(6)", true},
		{"varchar(5)", "d5", true}, {"varchar(6)", "d5", false}, {"numeric(10,2)", "numeric(12,4)", true}, {"numeric(10,2)", "numeric(10,3)", false},
		{"numeric(10,2)", "numeric", true}, {"numeric", "numeric(10,2)", false}, {"numeric(5,-2)", "numeric(5,-2)", true}, {"numeric(5,-2)", "numeric(7,0)", true}, {"numeric(5,2)", "numeric(5,-2)", false},
		{"e2", "e3", true}, {"e3", "e2", false}, {"e2", "text", true}, {"json", "jsonb", true}, {"uuid", "text", true}, {"text", "uuid", false},
		{"timestamp", "timestamptz", true}, {"timestamp(6)", "timestamp(3)", false}, {"timestamp", "timestamp(6)", true}, {"timestamp", "date", false}, {"date", "timestamp", true},
		{"int4[]", "int4[]", true}, {"comp", "comp", true}, {"bytea", "text", true}, {"bit(3)", "bit(4)", false}, {"bit(3)", "varbit(4)", true}, {"bool", "int4", false}, {"float4", "float8", true}, {"float8", "float4", false},
	} {
		if strings.Contains(c.from+c.to, "-2") && pgsession.Version(src.Conn(t).PgConn()) < 150000 {
			continue // a scale below 0
		}
		table := "t" + numberText(i)
		src.Exec(t, "CREATE TABLE "+table+" (c "+c.from+")")
		r.db.Exec(t, "CREATE TABLE "+table+" (c "+c.to+")")
		err := r.sink.BeginCopy(testContext(t), []sink.CopyTable{copyOf(t, src, table)})
		if errors.Is(err, ErrTypes) == c.holds || err != nil && !errors.Is(err, ErrTypes) {
			t.Errorf("%s into %s: %v", c.from, c.to, err)
		}
	}
}

func TestToleratedMisfitsAreLogged(t *testing.T) {
	src := flotest.Postgres(t)
	src.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	var log bytes.Buffer
	r := newRig(t, "CREATE TABLE t (id int, v varchar(100))", WithTolerated(MisfitType, MisfitKey), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	if got := misfits(t, r, copyOf(t, src, "t")); got != nil {
		t.Error(got)
	}
	if !strings.Contains(log.String(), "varchar(100)") && !strings.Contains(log.String(), "character varying(100)") || !strings.Contains(log.String(), "PRIMARY KEY") {
		t.Error(log.String())
	}
	if _, err := New("postgres://h/d", WithTolerated(MisfitTable)); !errors.Is(err, ErrInvalidOption) {
		t.Error(err)
	}
}
