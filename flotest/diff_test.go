package flotest_test

import (
	"context"
	"runtime"
	"strings"
	"testing"

	"github.com/pgflo/flo/flotest"
)

// fidelity is a table of values whose text depends on session settings, and odd names.
const fidelity = `CREATE SCHEMA "Odd s";
	CREATE TYPE "Odd s".mood AS ENUM ('sad', 'ok');
	CREATE TABLE "Odd s"."T.a ""b""" (t timestamptz, d date, i interval, f float8, b bytea, x text, m "Odd s".mood, "Ä" xml, "t t" int[]);
	INSERT INTO "Odd s"."T.a ""b""" VALUES
	('2024-02-03 04:05:06.789+00', '0001-02-03 BC', '1 year -2 days 03:04:05', 0.1::float8 + 0.2, '\x00ff', E'tab\t"q" \\ ä', 'ok', 'a', '{1,NULL}'),
	('infinity', '-infinity', NULL, 'NaN', '', '', NULL, NULL, '{}');
	INSERT INTO "Odd s"."T.a ""b""" (t) VALUES (NULL), (NULL)`

func TestDiffSeesEqualRowsUnderUnlikeSettings(t *testing.T) {
	a, b := flotest.Postgres(t), flotest.Postgres(t)
	a.Exec(t, fidelity)
	b.Exec(t, fidelity)
	b.Exec(t, `ALTER DATABASE `+b.Name+` SET TimeZone = 'America/New_York'`)
	b.Exec(t, `ALTER DATABASE `+b.Name+` SET DateStyle = 'German'`)
	// Another order of columns, and of rows.
	b.Exec(t, `ALTER TABLE "Odd s"."T.a ""b""" RENAME x TO y; ALTER TABLE "Odd s"."T.a ""b""" ADD x text;
		UPDATE "Odd s"."T.a ""b""" SET x = y; ALTER TABLE "Odd s"."T.a ""b""" DROP y`)
	flotest.Equal(t, t.Context(), a.URL, b.URL, `"Odd s"."T.a ""b"""`)
	report, err := flotest.Diff(t.Context(), a.URL, b.URL)
	must(t, err)
	if !report.Equal() || report.Rows() != 4 || len(report.Tables) != 1 {
		t.Errorf("all tables: %s", report)
	}
}

func TestDiffCountsMultisets(t *testing.T) {
	a, b := flotest.Postgres(t), flotest.Postgres(t)
	a.Exec(t, "CREATE TABLE m (v numeric); INSERT INTO m VALUES (1), (1), (1.0), (2), (3); CREATE TABLE only_a (); CREATE TABLE c (a int)")
	b.Exec(t, "CREATE TABLE m (v numeric); INSERT INTO m VALUES (1), (1.00), (2), (2), (3); CREATE TABLE c (b int)")
	report, err := flotest.Diff(t.Context(), a.URL, b.URL)
	must(t, err)
	byName := map[string]flotest.TableReport{}
	for _, r := range report.Tables {
		byName[r.Table] = r
	}
	m := byName[`"public"."m"`]
	if m.RowsA != 5 || m.RowsB != 5 || m.OnlyA != 2 || m.OnlyB != 2 {
		t.Errorf("m: %+v", m)
	}
	if got, want := strings.Join(m.Samples, " "), "- (1) - (1.0) + (1.00) + (2)"; got != want {
		t.Errorf("samples %q, want %q", got, want)
	}
	if p := byName[`"public"."only_a"`].Problem; p != "missing in b" {
		t.Errorf("only_a: %q", p)
	}
	if p := byName[`"public"."c"`].Problem; !strings.HasPrefix(p, "columns differ") {
		t.Errorf("c: %q", p)
	}
	if report.Differences() != 6 {
		t.Errorf("differences %d:\n%s", report.Differences(), report)
	}
}

func TestDiffOfUnlikeEncodings(t *testing.T) {
	ctx := t.Context()
	a := flotest.Postgres(t)
	a.Exec(t, "CREATE TABLE e (x text); INSERT INTO e VALUES ('é'), ('z'), ('Œuvre')")
	flotest.RequireOwnServer(t)
	a.Exec(t, `CREATE DATABASE `+a.Name+`_l TEMPLATE template0 ENCODING 'LATIN9'`)
	t.Cleanup(func() { must(t, a.Server.DropDatabase(context.Background(), a.Name+"_l")) })
	other := a.Server.URL(a.Name + "_l")
	conn := &flotest.DB{URL: other}
	conn.Exec(t, "CREATE TABLE e (x text); INSERT INTO e VALUES ('é'), ('z'), ('Œuvre')")
	flotest.Equal(t, ctx, a.URL, other, "e")
}

func TestDiffRefusesBadNames(t *testing.T) {
	db := flotest.Postgres(t)
	for _, name := range []string{"", "a.b.c", `"a`, ".x", "x."} {
		if _, err := flotest.Diff(t.Context(), db.URL, db.URL, name); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
}

func TestDiffMemoryIsFlat(t *testing.T) {
	a := flotest.Postgres(t)
	a.Exec(t, "CREATE TABLE big AS SELECT g AS id, repeat('x', 900) AS pad FROM generate_series(1, 50000) g")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	report, err := flotest.Diff(t.Context(), a.URL, a.URL, "big")
	must(t, err)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if !report.Equal() || report.Rows() != 50000 {
		t.Fatal(report)
	}
	// HeapSys only grows: it bounds what was held at once. The table's text is 45 MB a side.
	if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 24<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}
