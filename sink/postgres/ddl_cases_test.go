package postgres

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/ddlcases"
)

// restart replaces the sink by another one, as a worker's restart does.
func (m *mirror) restart(opts ...Option) {
	m.t.Helper()
	m.sink = newSink(m.t, m.db.URL, append([]Option{WithReplicaRole()}, opts...)...)
	m.st.Epoch++
	m.open()
}

// Every kind of schema change, with rows before, between and behind: in one transaction of the source, which is cut into
// batches of three changes, begun, cut off by a restart, and begun again; and each step by itself, with a restart before it.
func TestEverySchemaChange(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long, and is no matter of races")
	}
	whole, apart := newMirror(t), newMirror(t)
	for _, c := range ddlcases.All() {
		if c.Early {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			whole.t, whole.rig.t, apart.t, apart.rig.t = t, t, t, t
			if !c.Apart {
				inOneTransaction(whole, &c)
			}
			apart.restart()
			apart.do(c.Begin())
			for i := range c.Steps {
				apart.restart()
				apart.do(c.Step(i))
			}
			apart.do(c.End())
		})
		if t.Failed() {
			break // the others would be compared with what this one has left
		}
	}
}

func inOneTransaction(m *mirror, c *ddlcases.Case) {
	m.t.Helper()
	m.restart()
	m.do(c.Begin())
	m.src.Exec(m.t, c.Whole())
	var tx []*decode.Change
	for _, part := range m.taken() {
		tx = append(tx, part...)
	}
	const size = 3
	give := func(upTo int) int {
		at := 0
		for ; at+size < upTo; at += size {
			m.more(tx[at : at+size]...)
		}
		return at
	}
	give(len(tx) * 2 / 3)
	if err := m.sink.Abort(testContext(m.t)); err != nil {
		m.t.Fatal(err)
	}
	m.restart()
	m.apply(tx[give(len(tx)):]...)
	m.copyAll()
	m.equal(c.Whole())
	m.do(c.End())
}

// A worker that hears of renames by rows alone, in whatever order these come: tables that have swapped their names keep
// their rows.
func TestTablesThatSwapNamesUnseen(t *testing.T) {
	m := newMirror(t)
	m.same(`CREATE TABLE public.a (id int PRIMARY KEY, v text); CREATE TABLE public.b (id int PRIMARY KEY, v text); INSERT INTO public.a VALUES (1, 'a'); INSERT INTO public.b VALUES (1, 'b')`)
	m.edit = func(s *decode.SchemaChange) {
		s.Observed, s.Types, s.Dropped = true, nil, nil
		for i := range s.Tables {
			o := &s.Tables[i]
			*o = decode.TableShape{OID: o.OID, Schema: o.Schema, Name: o.Name, Identity: o.Identity, Columns: o.Columns}
			for k, c := range o.Columns {
				o.Columns[k] = decode.ColumnShape{Name: c.Name, Type: c.Type}
			}
		}
	}
	look := func(table, rows string) { // what a row's Relation message tells
		t.Helper()
		if err := m.bring("COMMENT ON TABLE public." + table + " IS '" + rows + "'; " + rows); err != nil {
			t.Fatal(err)
		}
	}
	look("a", "DELETE FROM public.a WHERE id = 0")
	look("b", "DELETE FROM public.b WHERE id = 0")
	edit := m.edit
	m.edit = func(s *decode.SchemaChange) { *s = decode.SchemaChange{} }
	if err := m.bring("ALTER TABLE public.a RENAME TO tmp; ALTER TABLE public.b RENAME TO a; ALTER TABLE public.tmp RENAME TO b"); err != nil {
		t.Fatal(err)
	}
	m.edit = edit
	look("b", "INSERT INTO public.b VALUES (2, $$was a$$)")
	m.want("SELECT string_agg(v, ',' ORDER BY id) FROM public.b", is("a,was a"))
	look("a", "INSERT INTO public.a VALUES (3, $$was b$$)")
	m.want("SELECT string_agg(v, ',' ORDER BY id) FROM public.a", is("b,was b"))
	m.want("SELECT string_agg(tablename, ',' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'", is("a,b"))
}

// A right that is missing at the destination is an error that says what to grant; granted, the change is applied.
func TestSchemaChangesWithoutTheRight(t *testing.T) {
	m := newMirror(t)
	flotest.RequireVersion(t, m.db, 15) // GRANT SET ON PARAMETER
	role := "ddl_" + m.db.Name
	m.db.Exec(t, fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD 'x'; GRANT CREATE ON DATABASE %q TO %[1]s; GRANT SET ON PARAMETER session_replication_role TO %[1]s`, role, m.db.Name))
	t.Cleanup(func() { m.db.Exec(t, fmt.Sprintf(`DROP OWNED BY %s CASCADE; DROP ROLE %[1]s`, role)) })
	m.same(`CREATE SCHEMA s; CREATE TABLE public.t (id int PRIMARY KEY, v text); CREATE TABLE public.p (id int PRIMARY KEY); CREATE TABLE s.t (id int PRIMARY KEY)`)
	m.db.Exec(t, fmt.Sprintf(`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, s TO %s; GRANT USAGE ON SCHEMA public, s TO %[1]s; REVOKE CREATE ON DATABASE %q FROM %[1]s; ALTER SCHEMA flo OWNER TO %[1]s; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA flo TO %[1]s`, role, m.db.Name))
	url := strings.Replace(m.db.URL, m.db.URL[strings.Index(m.db.URL, "//")+2:strings.Index(m.db.URL, "@")], role+":x", 1)
	m.sink = newSink(t, url, WithReplicaRole())
	m.st.Epoch++
	m.open()
	var kept []*decode.Change
	m.edited = func(c []*decode.Change) { kept = c }
	for _, test := range []struct{ do, grant string }{
		{`ALTER TABLE public.t ADD COLUMN n int; INSERT INTO public.t VALUES (1, 'a', 1)`, `ALTER TABLE "public"."t" OWNER TO ` + `"` + role + `"`},
		{`CREATE INDEX i ON public.t (v)`, `GRANT USAGE, CREATE ON SCHEMA "public" TO "` + role + `"`},
		{`CREATE TABLE s.made (id int PRIMARY KEY)`, `GRANT USAGE, CREATE ON SCHEMA "s" TO "` + role + `"`},
		{`CREATE SCHEMA fresh`, `GRANT CREATE ON DATABASE "` + m.db.Name + `" TO "` + role + `"`},
		{`INSERT INTO public.p VALUES (1); ALTER TABLE public.t ADD FOREIGN KEY (id) REFERENCES public.p`, `GRANT REFERENCES ON "public"."p" TO "` + role + `"`},
		{`DROP TABLE s.t`, `ALTER TABLE "s"."t" OWNER TO "` + role + `"`},
	} {
		e := m.refused(test.do, test.grant, "42501")
		if !strings.Contains(e.Remedy, test.grant) {
			t.Errorf("%s: %s", test.do, e.Remedy)
		}
		m.db.Exec(t, test.grant)
		m.again(kept)
	}
	// A type that could not be created is what a column then lacks.
	m.db.Exec(t, `REVOKE CREATE ON SCHEMA s FROM `+role)
	e := m.refused(`CREATE TYPE s.mood AS ENUM ('a'); ALTER TABLE public.t ADD COLUMN m s.mood`, `GRANT USAGE, CREATE ON SCHEMA "s"`, "s.mood")
	m.db.Exec(t, `GRANT USAGE, CREATE ON SCHEMA s TO `+role)
	if e.Object.Name != "t" {
		t.Errorf("%+v", e)
	}
	m.again(kept)
	m.want("SELECT count(*) FROM public.t", is("1"))
}

// A foreign key to a table that the destination doesn't have is left out until it has it.
func TestForeignKeysFollowTheirTable(t *testing.T) {
	m := newMirror(t)
	m.routes, m.column = map[string]string{"c": "kinder"}, map[string]string{"p": "elter"}
	m.src.Exec(t, `CREATE TABLE public.old (id int PRIMARY KEY)`)
	m.read()
	m.db.Exec(t, `CREATE TABLE public.old (id int PRIMARY KEY)`)
	if err := m.bring("SELECT flo.ddl_baseline(ARRAY['public.old'::regclass::oid])"); err != nil {
		t.Fatal(err)
	}
	edit := func(s *decode.SchemaChange) { // as if a copy of the one had come ahead of the other's new name
		if len(s.Tables) > 0 && s.Tables[0].Name == "new" {
			*s = decode.SchemaChange{}
		}
	}
	m.edit = edit
	if err := m.bring(`ALTER TABLE public.old RENAME TO new; CREATE TABLE public.c (id int PRIMARY KEY, p int CONSTRAINT fk REFERENCES public.new)`); err != nil {
		t.Fatal(err)
	}
	if out := m.sink.SchemaStatus().LeftOut; len(out) != 1 || !strings.Contains(out[0].Reason, "public.new") {
		t.Fatalf("%+v", out)
	}
	m.edit = nil
	if err := m.bring(`COMMENT ON TABLE public.new IS 'renamed'`); err != nil {
		t.Fatal(err)
	}
	m.want("SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f'", is("fk", "FOREIGN KEY (elter) REFERENCES new(id)"))
	if out := m.sink.SchemaStatus().LeftOut; len(out) != 0 {
		t.Errorf("%+v", out)
	}
}

// A copy finds what flo has brought to a table under the names that it had: it is emptied, and others are not.
func TestTablesThatWereRenamedAreCopiedAgain(t *testing.T) {
	m := newMirror(t)
	m.routes = map[string]string{} // fresh copies are the test's
	m.same(`CREATE TABLE public.a (id int PRIMARY KEY); CREATE TABLE public.b (id int PRIMARY KEY)`)
	m.src.Exec(t, `SELECT flo.ddl_baseline(ARRAY['public.a'::regclass, 'public.b'::regclass]::oid[])`)
	if err := m.deliver(); err != nil {
		t.Fatal(err)
	}
	m.src.Exec(t, `INSERT INTO public.a VALUES (1), (2); INSERT INTO public.b VALUES (3)`)
	m.read()
	m.copied("a", 1)
	m.copied("b", 1)
	if err := m.bring(`ALTER TABLE public.a RENAME TO tmp; ALTER TABLE public.b RENAME TO a; ALTER TABLE public.tmp RENAME TO b`); err != nil {
		t.Fatal(err)
	}
	m.src.Exec(t, `INSERT INTO public.b VALUES (7)`)
	m.read()
	m.copied("b", 2)
	m.equal("a copy of one")
	if err := m.bring(`CREATE SCHEMA s; ALTER TABLE public.a SET SCHEMA s; ALTER TABLE s.a RENAME TO c; ALTER TABLE s.c SET SCHEMA public`); err != nil {
		t.Fatal(err)
	}
	m.src.Exec(t, `DELETE FROM public.c`)
	m.read()
	m.copied("c", 3)
	m.equal("a copy of the other one")
}

// A copy is ahead of what the stream has still to tell: names that tables have given up, and that others have, or will have
// for a while. Each row goes where it belongs.
func TestNamesThatACopyIsAheadOf(t *testing.T) {
	m := newMirror(t)
	m.routes = map[string]string{} // fresh copies are the test's
	m.ahead = true
	m.same(`CREATE SCHEMA s; CREATE TABLE public.log (id int PRIMARY KEY, v text); CREATE TABLE public.other (id int PRIMARY KEY)`)
	m.src.Exec(t, `INSERT INTO public.log VALUES (1, 'a'); INSERT INTO public.other VALUES (1)`)
	m.read()
	m.copied("log", 1)
	m.copied("other", 1)
	// The log is rotated, twice, and another table has its name in between, while nobody looks.
	m.src.Exec(t, `INSERT INTO public.log VALUES (2, 'b')`)
	m.src.Exec(t, `ALTER TABLE public.log RENAME TO log_1; CREATE TABLE public.log (id int PRIMARY KEY, n int, at date); INSERT INTO public.log_1 VALUES (3, 'c'); INSERT INTO public.log VALUES (1, 1)`)
	m.src.Exec(t, `DROP TABLE public.log; ALTER TABLE public.other RENAME TO log; INSERT INTO public.log VALUES (2); ALTER TABLE public.log ADD COLUMN x int DEFAULT 5; INSERT INTO public.log VALUES (3, 3);
		ALTER TABLE public.log RENAME TO other; CREATE TABLE public.log (id int PRIMARY KEY, t text DEFAULT 'x'); INSERT INTO public.log VALUES (7)`)
	var oid uint32
	if err := m.src.Conn(t).QueryRow(t.Context(), "SELECT 'public.log'::regclass::oid").Scan(&oid); err != nil {
		t.Fatal(err)
	}
	m.copied("log", 2)
	m.want("SELECT * FROM log", is("7", "x"))
	// What the copy has is not told again.
	var kept [][]*decode.Change
	for _, tx := range m.taken() {
		tx = slices.DeleteFunc(tx, func(c *decode.Change) bool {
			if c.Schema != nil {
				c.Schema.Tables = slices.DeleteFunc(c.Schema.Tables, func(s decode.TableShape) bool { return s.OID == oid })
			}
			return c.Relation != nil && c.Relation.OID == oid
		})
		if len(tx) > 0 {
			kept = append(kept, tx)
		}
	}
	for i, tx := range kept {
		if i%2 == 1 {
			m.restart()
		}
		for n := range tx { // a transaction for each, as if they had been so
			m.apply(tx[n])
		}
	}
	m.equal("what the stream has told")
	m.want("SELECT count(*) FROM pg_class WHERE relname LIKE 'aside%'", is("0"))
	if err := m.bring(`INSERT INTO public.log VALUES (8, 'y'); INSERT INTO public.log_1 VALUES (9, 'z'); UPDATE public.other SET x = 6`); err != nil {
		t.Fatal(err)
	}
	m.equal("what came behind it")
}
