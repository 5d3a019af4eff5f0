package postgres

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

// Each case applies changes to the tables that ddl makes and compares what a query shows then.
func TestChangesArriveEqual(t *testing.T) {
	kv := rel("t", "*k", "v", "w")
	fullT := full("t", "a", "b")
	hostile := `x"; DROP TABLE t; --`
	cases := []struct {
		name    string
		ddl     string
		changes []*decode.Change
		query   string
		want    [][]string
		missing uint64
	}{
		{
			name:    "insert overwrites a stale row",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY, v text, w text); INSERT INTO t VALUES (1, 'stale', 'stale')`,
			changes: []*decode.Change{insert(kv, "1", "new", nil), insert(kv, "2", "b", "c")},
			query:   `SELECT * FROM t ORDER BY k`, want: [][]string{is("1", "new", "NULL"), is("2", "b", "c")},
		}, {
			name:    "insert of a key alone",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY); INSERT INTO t VALUES (1)`,
			changes: []*decode.Change{insert(rel("t", "*k"), "1"), insert(rel("t", "*k"), "2")},
			query:   `SELECT * FROM t ORDER BY k`, want: [][]string{is("1"), is("2")},
		}, {
			name:    "unchanged TOAST stays",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY, v text, w text); INSERT INTO t VALUES (1, 'toast', 'x')`,
			changes: []*decode.Change{update(kv, "1", unchanged, "y"), update(kv, "1", unchanged, unchanged)},
			query:   `SELECT * FROM t`, want: [][]string{is("1", "toast", "y")},
		}, {
			name:    "key change, and key change with unchanged TOAST",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY, v text, w text); INSERT INTO t VALUES (1, 'a', 'x'), (5, 'toast', 'x')`,
			changes: []*decode.Change{updateFrom(kv, row("1", absent, absent), "2", "b", "y"), updateFrom(kv, row("5", absent, absent), "6", unchanged, "z")},
			query:   `SELECT * FROM t ORDER BY k`, want: [][]string{is("2", "b", "y"), is("6", "toast", "z")},
		}, {
			name:    "delete by key; a missing row is counted",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY, v text, w text); INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y')`,
			changes: []*decode.Change{remove(kv, "1", absent, absent), remove(kv, "9", absent, absent), update(kv, "8", "a", "b")},
			query:   `SELECT * FROM t`, want: [][]string{is("2", "b", "y")}, missing: 2,
		}, {
			name:    "identity by an index beside the primary key",
			ddl:     `CREATE TABLE t (id int PRIMARY KEY, u text NOT NULL UNIQUE, v text); INSERT INTO t VALUES (1, 'a', 'x'), (2, 'b', 'y')`,
			changes: []*decode.Change{updateFrom(rel("t", "id", "*u", "v"), row(absent, "a", absent), "3", "c", "z"), remove(rel("t", "id", "*u", "v"), absent, "b", absent)},
			query:   `SELECT * FROM t`, want: [][]string{is("3", "c", "z")},
		}, {
			name:    "FULL: one of two equal rows",
			ddl:     `CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'x'), (1, 'x'), (2, 'y'), (2, 'y'), (3, NULL)`,
			changes: []*decode.Change{remove(fullT, "1", "x"), updateFrom(fullT, row("2", "y"), "2", "z"), remove(fullT, "3", nil)},
			query:   `SELECT * FROM t ORDER BY a, b`, want: [][]string{is("1", "x"), is("2", "y"), is("2", "z")},
		}, {
			name:    "FULL: duplicates inserted stay two",
			ddl:     `CREATE TABLE t (a int, b text)`,
			changes: []*decode.Change{insert(fullT, "1", "x"), insert(fullT, "1", "x")},
			query:   `SELECT * FROM t`, want: [][]string{is("1", "x"), is("1", "x")},
		}, {
			name:    "FULL: 1.0 is not 1.00",
			ddl:     `CREATE TABLE t (a numeric, b text); CREATE INDEX ON t (a); INSERT INTO t VALUES (1.00, 'x'), (1.0, 'x')`,
			changes: []*decode.Change{remove(fullT, "1.0", "x")},
			query:   `SELECT * FROM t`, want: [][]string{is("1.00", "x")},
		}, {
			name:    "FULL: types without equality, and composites of NULLs",
			ddl:     `CREATE TYPE c AS (x int, y int); CREATE TABLE t (a json, b c, p point, x xml); INSERT INTO t VALUES ('{"a": 1}', NULL, '(1,2)', '<a/>'), ('{"a":1}', '(,)', '(1,2)', '<a/>'), ('{"a":1}', NULL, '(1,2)', '<a/>')`,
			changes: []*decode.Change{remove(full("t", "a", "b", "p", "x"), `{"a":1}`, nil, "(1,2)", "<a/>")},
			query:   `SELECT a, b FROM t`, want: [][]string{is(`{"a": 1}`, "NULL"), is(`{"a":1}`, "(,)")},
		}, {
			name: "FULL: bpchar, bool, inet, name, float, bit",
			ddl: `CREATE TABLE t (a char(5), b bool, i inet, n name, f float8, bt bit(3), ts timestamptz);
				INSERT INTO t SELECT 'ab', true, '10.0.0.1', 'n', 0.1, '101', '2024-02-29 12:00:00.123+02' FROM generate_series(1, 2)`,
			changes: []*decode.Change{remove(full("t", "a", "b", "i", "n", "f", "bt", "ts"), "ab   ", "t", "10.0.0.1", "n", "0.1", "101", "2024-02-29 10:00:00.123+00")},
			query:   `SELECT count(*) FROM t`, want: [][]string{is("1")},
		}, {
			name:    "FULL with a primary key: found by it",
			ddl:     `CREATE TABLE t (a int PRIMARY KEY, b text); INSERT INTO t VALUES (1, 'drifted'), (2, 'y')`,
			changes: []*decode.Change{updateFrom(fullT, row("1", "x"), "5", "z"), remove(fullT, "2", "other")},
			query:   `SELECT * FROM t`, want: [][]string{is("5", "z")},
		}, {
			name:    "a key without a unique index at the destination",
			ddl:     `CREATE TABLE t (k int, v text, w text); INSERT INTO t VALUES (1, 'a', 'x'), (1, 'a', 'x')`,
			changes: []*decode.Change{updateFrom(kv, row("1", absent, absent), "2", "b", "y"), remove(kv, "2", absent, absent)},
			query:   `SELECT * FROM t`, want: [][]string{is("1", "a", "x")},
		}, {
			name: "partitioned destination, whole-row identity: places repeat in each partition",
			ddl: `CREATE TABLE t (a int, b text) PARTITION BY LIST (a); CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1);
				CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2); INSERT INTO t VALUES (1, 'x'), (2, 'y')`,
			changes: []*decode.Change{updateFrom(fullT, row("1", "x"), "1", "z"), remove(fullT, "2", "y"), insert(fullT, "2", "n"), updateFrom(fullT, row("2", "n"), "1", "m")},
			query:   `SELECT * FROM t ORDER BY b`, want: [][]string{is("1", "m"), is("1", "z")},
		}, {
			name:    "inheritance children have their own changes",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY, v text, w text); CREATE TABLE child () INHERITS (t); INSERT INTO t VALUES (1, 'a', 'x'); INSERT INTO child VALUES (1, 'c', 'c'), (2, 'c', 'c')`,
			changes: []*decode.Change{update(kv, "1", "b", "y"), {Op: decode.OpTruncate, Truncate: &decode.Truncate{Relations: []*decode.Relation{kv}}}},
			query:   `SELECT * FROM t`, want: [][]string{is("1", "c", "c"), is("2", "c", "c")},
		}, {
			name:    "empty string and NULL, NULL in a column with a default",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY, v text DEFAULT 'd', w text DEFAULT 'e')`,
			changes: []*decode.Change{insert(kv, "1", "", nil), insert(kv, "2", "x", absent), update(kv, "2", nil, "")},
			query:   `SELECT k, v, w FROM t ORDER BY k`, want: [][]string{is("1", "", "NULL"), is("2", "NULL", "")},
		}, {
			name: "identity ALWAYS as the key",
			ddl:  `CREATE TABLE t (k int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, w text UNIQUE, extra text DEFAULT 'kept')`,
			changes: []*decode.Change{
				insert(kv, "10", "a", "x"), insert(kv, "10", "b", "x"), update(kv, "10", "c", unchanged),
				updateFrom(kv, row("10", absent, absent), "11", unchanged, "x"),
			},
			query: `SELECT * FROM t`, want: [][]string{is("11", "c", "x", "kept")},
		}, {
			name: "identity ALWAYS beside the key",
			ddl:  `CREATE TABLE t (k int PRIMARY KEY, v int GENERATED ALWAYS AS IDENTITY, w text, extra text DEFAULT 'kept'); INSERT INTO t (k, w) VALUES (1, 'stale')`,
			changes: []*decode.Change{
				insert(kv, "1", "100", "a"), update(kv, "1", "100", "b"), insert(kv, "2", "5", "x"), update(kv, "2", "6", unchanged),
				insert(kv, "3", "7", "x"), updateFrom(kv, row("3", absent, absent), "4", "8", "y"),
			},
			query: `SELECT k, v, w, extra FROM t ORDER BY k`, want: [][]string{is("1", "100", "b", "kept"), is("2", "6", "x", "kept"), is("4", "8", "y", "kept")},
		}, {
			name:    "identity BY DEFAULT",
			ddl:     `CREATE TABLE t (k int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text, w text)`,
			changes: []*decode.Change{insert(kv, "5", "a", "b"), updateFrom(kv, row("5", absent, absent), "6", "a", "b")},
			query:   `SELECT * FROM t`, want: [][]string{is("6", "a", "b")},
		}, {
			name:    "a column generated at the destination",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) STORED)`,
			changes: []*decode.Change{insert(kv, "1", "2", "999"), update(kv, "1", "3", "999")},
			query:   `SELECT * FROM t`, want: [][]string{is("1", "3", "6")},
		}, {
			name:    "deferrable key: a stale row is overwritten",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY DEFERRABLE, v text, w text); INSERT INTO t VALUES (1, 'stale', 'x')`,
			changes: []*decode.Change{insert(kv, "1", "a", "b"), insert(kv, "2", "a", "b"), update(kv, "2", "c", "d")},
			query:   `SELECT * FROM t ORDER BY k`, want: [][]string{is("1", "a", "b"), is("2", "c", "d")},
		}, {
			name: "deferrable key: two rows swap keys, one is replaced",
			ddl:  `CREATE TABLE t (k int PRIMARY KEY DEFERRABLE, v text, w text); INSERT INTO t VALUES (1, 'one', 'x'), (2, 'two', 'y'), (3, 'old', 'z')`,
			changes: []*decode.Change{
				update(kv, "2", "two!", "y"), // changed before, in the same destination transaction
				updateFrom(kv, row("1", absent, absent), "2", "one", "x"), updateFrom(kv, row("2", absent, absent), "1", "two!", "y"),
				insert(kv, "3", "new", "z"), remove(kv, "3", absent, absent),
			},
			query: `SELECT * FROM t ORDER BY k`, want: [][]string{is("1", "two!", "y"), is("2", "one", "x"), is("3", "new", "z")},
		}, {
			name: "reserved words, mixed case, hostile names",
			ddl:  `CREATE TABLE t (k int); CREATE TABLE "Sel.ect" ("order" int PRIMARY KEY, "User" text, "x""; DROP TABLE t; --" text, "größe" text)`,
			changes: []*decode.Change{
				insert(rel("Sel.ect", "*order", "User", hostile, "größe"), "1", "a", "b", "c"),
				update(rel("Sel.ect", "*order", "User", hostile, "größe"), "1", "d", "e", "f"),
			},
			query: `SELECT *, (SELECT count(*) FROM t) FROM "Sel.ect"`, want: [][]string{is("1", "d", "e", "f", "0")},
		}, {
			name: "key of an enum, a domain, text with a nondeterministic collation",
			ddl: `CREATE TYPE e AS ENUM ('a', 'b'); CREATE DOMAIN d AS varchar(5) CHECK (VALUE <> '');
				CREATE TABLE t (k e, v d, w text, PRIMARY KEY (k, v))`,
			changes: []*decode.Change{insert(rel("t", "*k", "*v", "w"), "a", "x", "1"), insert(rel("t", "*k", "*v", "w"), "a", "x", "2"), updateFrom(rel("t", "*k", "*v", "w"), row("a", "x", absent), "b", "y", "3")},
			query:   `SELECT * FROM t`, want: [][]string{is("b", "y", "3")},
		}, {
			name:    "values that the server's odd defaults would read otherwise",
			ddl:     `CREATE TABLE t (k int PRIMARY KEY, d date, i interval, x xml, a int[])`,
			changes: []*decode.Change{insert(rel("t", "*k", "d", "i", "x", "a"), "1", "2024-03-04", "-1 days +02:03:04", "a<b/>", "{1,NULL}")},
			query:   `SELECT * FROM t`, want: [][]string{is("1", "2024-03-04", "-1 days +02:03:04", "a<b/>", "{1,NULL}")},
		}, {
			name:    "messages are ignored",
			ddl:     `CREATE TABLE t (k int)`,
			changes: []*decode.Change{{Op: decode.OpMessage, Message: &decode.Message{Prefix: "p"}}},
			query:   `SELECT * FROM t`,
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.ddl)
			r.apply(c.changes...)
			r.want(c.query, c.want...)
			if got := r.sink.Stats().MissingRows; got != c.missing {
				t.Errorf("%d missing rows counted, want %d", got, c.missing)
			}
		})
	}
}

func TestTruncateOfSeveralTablesIsOneStatement(t *testing.T) {
	r := newRig(t, `CREATE TABLE a (k serial PRIMARY KEY); CREATE TABLE b (k int REFERENCES a); INSERT INTO a DEFAULT VALUES; INSERT INTO b VALUES (1)`, WithReplicaRole())
	a, b := rel("a", "*k"), rel("b", "k")
	both := &decode.Truncate{Relations: []*decode.Relation{a, b}, RestartIdentity: true}
	r.apply(&decode.Change{Op: decode.OpTruncate, Relation: a, Truncate: both})
	r.want("SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b), nextval('a_k_seq')", is("0", "0", "1"))
	r.db.Exec(t, "INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
	r.apply(&decode.Change{Op: decode.OpTruncate, Relation: a, Truncate: &decode.Truncate{Relations: []*decode.Relation{a}, Cascade: true}})
	r.want("SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)", is("0", "0"))
}

// The rejected change is named by its index, nothing of its batch stays, and the sink goes on after Open.
func TestPermanentErrorsNameTheChange(t *testing.T) {
	kv := rel("t", "*k", "v")
	good := func() *decode.Change { return insert(kv, "1", "1") }
	cases := []struct {
		name  string
		ddl   string
		bad   *decode.Change
		is    error
		says  string
		index int
	}{
		{name: "bad value", bad: insert(kv, "2", "x"), says: "22P02"},
		{name: "constraint", bad: insert(kv, "2", "-1"), says: "23514"},
		{name: "table missing", bad: insert(rel("none", "*k"), "1"), is: ErrTableMissing, says: "public.none"},
		{name: "columns missing", bad: insert(rel("t", "*k", "v", "no", "nor"), "1", "1", "1", "1"), is: ErrColumnsMissing, says: `"no", "nor"`},
		{name: "schema change", bad: &decode.Change{Op: decode.OpSchema, Schema: &decode.SchemaChange{Tag: "ALTER TABLE", Failed: "broken"}}, is: ErrDDL},
		{name: "no identity", bad: update(rel("t", "k", "v"), "1", "2"), is: ErrNoIdentity},
		{name: "short row", bad: insert(kv, "1"), says: "columns"},
		{name: "trigger", ddl: `CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TABLE tr (k int PRIMARY KEY); CREATE TRIGGER "My" BEFORE INSERT ON tr FOR EACH ROW EXECUTE FUNCTION f()`,
			bad: insert(rel("tr", "*k"), "1"), is: ErrTriggers, says: `trigger "My"`},
		{name: "foreign key", ddl: `CREATE TABLE p (k int PRIMARY KEY); CREATE TABLE fk (k int PRIMARY KEY, r int REFERENCES p)`, bad: insert(rel("fk", "*k", "r"), "1", "1"), is: ErrTriggers, says: "WithReplicaRole"},
		{name: "referenced", ddl: `CREATE TABLE p (k int PRIMARY KEY); CREATE TABLE fk (r int REFERENCES p)`, bad: insert(rel("p", "*k"), "1"), is: ErrTriggers, says: "foreign key"},
		{name: "a view", ddl: `CREATE VIEW v AS SELECT 1 AS k`, bad: insert(rel("v", "*k"), "1"), is: ErrTableMissing},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v int CHECK (v >= 0)); `+c.ddl)
			err := r.try(good(), c.bad, good())
			var rejected *sink.RejectError
			if !errors.As(err, &rejected) || rejected.Index != 1 || !sink.IsPermanent(err) {
				t.Fatalf("want change 1 rejected, got: %v", err)
			}
			if c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("want %v saying %q, got: %v", c.is, c.says, err)
			}
			if err := r.try(good()); !errors.Is(err, ErrNotOpen) {
				t.Fatalf("Write after an error without Open: %v", err)
			}
			if cp := r.open(); !cp.IsZero() {
				t.Fatalf("checkpoint %v after a batch that failed", cp)
			}
			r.want("SELECT * FROM t")
			r.apply(good())
			r.want("SELECT * FROM t", is("1", "1"))
		})
	}
}

func TestReplicaRole(t *testing.T) {
	ddl := `CREATE TABLE p (k int PRIMARY KEY, v text); CREATE TABLE c (k int PRIMARY KEY REFERENCES p, v text);
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''fired''; END';
		CREATE TRIGGER tr BEFORE INSERT ON c FOR EACH ROW EXECUTE FUNCTION f()`
	p, c := rel("p", "*k", "v"), rel("c", "*k", "v")
	r := newRig(t, ddl, WithReplicaRole())
	r.apply(insert(c, "1", "x"), insert(p, "1", "x"))
	for _, bad := range []*decode.Change{update(p, "9", "x"), remove(p, "9", absent)} {
		err := r.try(insert(p, "2", "x"), bad)
		var rejected *sink.RejectError
		if !errors.Is(err, ErrRowMissing) || !errors.As(err, &rejected) || rejected.Index != 1 {
			t.Fatalf("%s of no row: %v", bad.Op, err)
		}
		r.open()
	}
	r.want("SELECT * FROM p", is("1", "x"))

	r = newRig(t, ddl, WithReplicaRole(), WithMissingRowsCounted())
	r.apply(remove(p, "9", absent))
	if n := r.sink.Stats().MissingRows; n != 1 {
		t.Fatalf("%d missing rows counted, want 1", n)
	}
}

// What a session has looked up and prepared follows the destination's tables.
func TestDestinationTableChangesUnderWay(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v int)`)
	kv := rel("t", "*k", "v")
	r.apply(insert(kv, "1", "1"))
	r.db.Exec(t, "ALTER TABLE t ALTER v TYPE text; ALTER TABLE t ADD extra int")
	r.apply(insert(kv, "2", "b"))
	r.db.Exec(t, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD UNIQUE (k) DEFERRABLE")
	r.apply(insert(kv, "2", "c"))
	r.db.Exec(t, "DROP TABLE t; CREATE TABLE t (v text, k bigint PRIMARY KEY)")
	r.apply(insert(kv, "3", "d"))
	r.want("SELECT k, v FROM t", is("3", "d"))
	// In the middle of a transaction the error is one that the worker retries after Open.
	r.more(insert(kv, "4", "e"))
	other := rel("u", "*k")
	r.db.Exec(t, "CREATE TABLE u (k int PRIMARY KEY)")
	r.more(insert(other, "1"))
	r.apply(insert(other, "2"))
	r.db.Exec(t, "DROP TABLE u; CREATE TABLE u (k int UNIQUE, x int PRIMARY KEY DEFAULT 1)")
	r.more(insert(kv, "6", "f"))
	r.db.Exec(t, "ALTER TABLE u RENAME k TO k2")
	err := r.sink.Write(testContext(t), &sink.Batch{Changes: []*decode.Change{insert(other, "3")}, More: true, Epoch: 1})
	if err == nil || sink.IsPermanent(err) {
		t.Fatalf("want an error to retry, got: %v", err)
	}
	r.db.Exec(t, "ALTER TABLE u RENAME k2 TO k")
	r.open()
	r.apply(insert(other, "3"))
	r.want("SELECT k FROM u", is("3"))
	r.want("SELECT k FROM t ORDER BY k", is("3"), is("4"))
}

// More shapes than the cache holds: the oldest statements go, and all rows arrive.
func TestStatementCacheIsBounded(t *testing.T) {
	const columns = 10
	ddl, names := "CREATE TABLE t (k int PRIMARY KEY", []string{"*k"}
	for i := range columns {
		name := "c" + string(rune('a'+i))
		ddl += ", " + name + " int"
		names = append(names, name)
	}
	r := newRig(t, ddl+")")
	tr := rel("t", names...)
	var all []*decode.Change
	for shape := range 1 << columns {
		values := []any{numberText(shape)}
		for i := range columns {
			if shape>>i&1 == 1 {
				values = append(values, "1")
			} else {
				values = append(values, absent)
			}
		}
		all = append(all, insert(tr, values...))
	}
	r.apply(all...)
	r.apply(all[:10]...)
	r.want("SELECT count(*) FROM t", is("1024"))
	if n := len(r.sink.main.programs.all); n > maxPrograms {
		t.Fatalf("%d programs kept", n)
	}
	rows, err := query(testContext(t), r.sink.main.pg, "SELECT count(*) <= $1::int FROM pg_prepared_statements", numberText(maxPrograms+2))
	if err != nil || string(rows[0][0]) != "t" {
		t.Fatalf("prepared statements at the server: %q %v", rows, err)
	}
}

// Batches larger than the pipeline's windows, with values larger than a socket's buffers.
func TestLargeBatches(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v text)`)
	kv := rel("t", "*k", "v")
	var all []*decode.Change
	for i := range 5000 {
		all = append(all, insert(kv, numberText(i), "small"))
	}
	for i := range 20 {
		all = append(all, update(kv, numberText(i), strings.Repeat("x", 4<<20)))
	}
	r.apply(all...)
	r.want("SELECT count(*), sum(length(v)) FROM t", is("5000", numberText(4980*5+20*(4<<20))))
}

// A stale row that only the commit of a big transaction meets: it comes again from its start, and then
// overwrites the row.
func TestDeferrableKeyInABigTransaction(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text); INSERT INTO t VALUES (1, 'stale'); CREATE TABLE u (k int PRIMARY KEY)`)
	kv, u := rel("t", "*k", "v"), rel("u", "*k")
	for try := range 2 {
		r.more(insert(u, "1"))
		r.more(insert(kv, "1", "new"))
		err := r.try(insert(u, "2"))
		if (try == 0) != (err != nil) || sink.IsPermanent(err) {
			t.Fatalf("try %d: %v", try, err)
		}
		r.open()
	}
	r.want("SELECT * FROM t", is("1", "new"))
}

// A row that is found by its content is then changed by its place, not by a second scan of the table.
func TestWholeRowChangeScansOnce(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (a int, b text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 5000) i; ANALYZE t`)
	f := full("t", "a", "b")
	r.apply(remove(f, "4000", "x"))
	p := r.sink.main.programs.all[0]
	rows, err := query(testContext(t), r.sink.main.pg, "EXPLAIN EXECUTE "+p.steps[0].name+"('1', 'x')")
	if err != nil {
		t.Fatal(err)
	}
	plan := ""
	for _, line := range rows {
		plan += string(line[0]) + "\n"
	}
	if !strings.Contains(plan, "Tid Scan") || strings.Count(plan, "Seq Scan") != 1 {
		t.Fatal(plan)
	}
}

// Types of an extension have their equality in the extension's schema, which is not in the search path.
func TestKeysOfExtensionTypes(t *testing.T) {
	flotest.RequireOwnServer(t)
	r := newRig(t, "")
	if len(r.db.Query(t, "SELECT FROM pg_available_extensions WHERE name = 'citext'")) == 0 {
		t.Skip("this server has no citext")
	}
	r.db.Exec(t, `CREATE SCHEMA "My ext"; CREATE EXTENSION citext SCHEMA "My ext"; CREATE TABLE t (k "My ext".citext PRIMARY KEY, v text);
		CREATE TABLE f (a "My ext".citext, b int); CREATE INDEX ON f (a); INSERT INTO f VALUES ('x', 1), ('X', 1)`)
	kv, f := rel("t", "*k", "v"), full("f", "a", "b")
	r.apply(insert(kv, "a", "1"), insert(kv, "A", "2"), updateFrom(kv, row("a", absent), "B", "3"), remove(f, "X", "1"))
	r.want("SELECT * FROM t", is("B", "3"))
	r.want("SELECT a FROM f", is("x"))
}
