package source

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/names"
)

// resolve gives the names of what the patterns mean.
func resolve(t testing.TB, c Config, include, exclude []names.Pattern) (found, warnings []string, err error) {
	t.Helper()
	tables, warnings, err := c.ResolveTables(t.Context(), connect(t, c), include, exclude)
	for i := range tables {
		found = append(found, tables[i].Qualified().String())
	}
	return found, warnings, err
}

const everyKind = `
	CREATE SCHEMA shop; CREATE SCHEMA flo; CREATE SCHEMA "a.b";
	CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE "Users" (id int); CREATE TABLE shop.orders (id int PRIMARY KEY);
	CREATE TABLE flo.own (id int); CREATE TABLE "a.b"."c""*; DROP TABLE users; --" (id int PRIMARY KEY);
	CREATE UNLOGGED TABLE quick (id int); CREATE VIEW seen AS SELECT 1 AS x; CREATE MATERIALIZED VIEW kept AS SELECT 1 AS x;
	CREATE TABLE events (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
	CREATE TABLE events_25 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY RANGE (at);
	CREATE TABLE shop.events_25_1 PARTITION OF events_25 FOR VALUES FROM ('2025-01-01') TO ('2025-07-01');
	CREATE TABLE events_26 PARTITION OF events DEFAULT;
	CREATE TABLE empty (id int) PARTITION BY HASH (id);
	CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);`

func TestResolveTables(t *testing.T) {
	db := flotest.Postgres(t)
	long := strings.Repeat("é", 31) + "x"
	db.Exec(t, everyKind+`CREATE TABLE `+names.Quote(long)+` (id int PRIMARY KEY)`)
	c := config(t, db.URL)
	hostile := `a.b.c"*; DROP TABLE users; --`
	for _, test := range []struct{ include, exclude, want []string }{
		{nil, nil, []string{hostile, "public.Users", "public.child", "public.events_26", "public.parent", "public.users", "public." + long, "shop.events_25_1", "shop.orders"}},
		{[]string{"users"}, nil, []string{"public.users"}},
		{[]string{`"Users"`, "public.users"}, nil, []string{"public.Users", "public.users"}},
		{[]string{"shop.*"}, nil, []string{"shop.events_25_1", "shop.orders"}},
		{[]string{"events"}, nil, []string{"public.events_26", "shop.events_25_1"}},
		{[]string{"events"}, []string{"events_25"}, []string{"public.events_26"}},
		{[]string{"events_25"}, nil, []string{"shop.events_25_1"}},
		{[]string{`"a.b".*`, long}, nil, []string{hostile, "public." + long}},
		{[]string{names.Qualified("a.b", `c"*; DROP TABLE users; --`)}, nil, []string{hostile}},
		{[]string{"parent"}, nil, []string{"public.parent"}},
		{[]string{"empty"}, nil, nil},
		{nil, []string{"*.*"}, nil},
	} {
		got, _, err := resolve(t, c, patterns(t, test.include...), patterns(t, test.exclude...))
		must(t, err)
		if !slices.Equal(got, test.want) {
			t.Errorf("%q without %q: %q, want %q", test.include, test.exclude, got, test.want)
		}
	}
	for _, bad := range []struct{ pattern, reason string }{
		{"nobody", "no such table"}, {"USERS", `"public"."users"`}, {"orders", `"shop"."orders"`}, {"no*body", "no table matches"},
		{"seen", "view"}, {"kept", "materialized"}, {"quick", "SET LOGGED"}, {"flo.own", "flo's own"}, {"pg_catalog.pg_class", "system"},
	} {
		_, _, err := resolve(t, c, patterns(t, "users", bad.pattern, "nothing"), nil)
		var table *TableError
		if !errors.Is(err, ErrTable) || !errors.As(err, &table) || !strings.Contains(err.Error(), bad.pattern+": ") ||
			!strings.Contains(err.Error(), bad.reason) || !strings.Contains(err.Error(), "nothing: ") {
			t.Errorf("%q: %v, want %q and both names", bad.pattern, err, bad.reason)
		}
	}
	_, warnings, err := resolve(t, c, nil, patterns(t, "misspelt"))
	must(t, err)
	if all := strings.Join(warnings, "\n"); !strings.Contains(all, "misspelt") || !strings.Contains(all, `"quick"`) || len(warnings) != 2 {
		t.Errorf("warnings: %q", warnings)
	}
}

func serverVersion(t *testing.T, c Config) int {
	sys, err := c.Identify(t.Context())
	must(t, err)
	return sys.Version
}

func TestTablesAreDescribed(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, everyKind+`
		CREATE DOMAIN d AS int; CREATE TYPE e AS ENUM ('a');
		CREATE TABLE k (gone int, a d, b e[], g int GENERATED ALWAYS AS (1) STORED, "C" varchar(7), PRIMARY KEY ("C") INCLUDE (a));
		ALTER TABLE k DROP COLUMN gone;
		CREATE TABLE f (a int); ALTER TABLE f REPLICA IDENTITY FULL;
		CREATE TABLE i (a int NOT NULL, b int PRIMARY KEY); CREATE UNIQUE INDEX ix ON i (a); ALTER TABLE i REPLICA IDENTITY USING INDEX ix;
		CREATE TABLE n (a int PRIMARY KEY); ALTER TABLE n REPLICA IDENTITY NOTHING;
		CREATE TABLE made (a int, g int GENERATED ALWAYS AS (a) STORED PRIMARY KEY);
		CREATE TABLE whole (a int, g int GENERATED ALWAYS AS (a) STORED); ALTER TABLE whole REPLICA IDENTITY FULL;
		CREATE TABLE late (a int PRIMARY KEY DEFERRABLE);
		CREATE TABLE dropped (a int NOT NULL); CREATE UNIQUE INDEX dx ON dropped (a); ALTER TABLE dropped REPLICA IDENTITY USING INDEX dx; DROP INDEX dx;
		INSERT INTO f SELECT generate_series(1, 10000)`)
	c := config(t, db.URL)
	tables, _, err := c.ResolveTables(t.Context(), connect(t, c), nil, nil)
	must(t, err)
	by := make(map[string]*Table)
	for i := range tables {
		by[tables[i].Qualified().String()] = &tables[i]
	}
	for name, want := range map[string]bool{"k": true, "f": true, "i": true, "n": false, "late": false, "dropped": false, "made": false,
		"whole": serverVersion(t, c) < fullWithoutGenerated, "Users": false, "users": true} {
		if got := by["public."+name].HasIdentity; got != want {
			t.Errorf("%s has identity: %v", name, got)
		}
	}
	var columns []string
	for _, col := range by["public.k"].Columns {
		columns = append(columns, fmt.Sprint(col.Name, " ", col.Key, " ", col.Type.Name, " ", col.Type.Kind, " ", col.Modifier))
	}
	want := []string{fmt.Sprint("a false d ", decode.DomainType, " -1"), fmt.Sprint("b false _e ", decode.ArrayType, " -1"), fmt.Sprint("C true varchar ", decode.BaseType, " 11")}
	if !slices.Equal(columns, want) {
		t.Errorf("columns %q, want %q", columns, want)
	}
	if i := by["public.i"]; !i.Columns[0].Key || i.Columns[1].Key || i.Identity != decode.IdentityIndex {
		t.Errorf("%+v", i)
	}
	if f := by["public.f"]; !f.Columns[0].Key || f.FileNode == 0 || f.Kind != 'r' {
		t.Errorf("%+v", f)
	}
	if got := by["shop.events_25_1"].Ancestors; !reflect.DeepEqual(got, []decode.Name{{Schema: "public", Name: "events_25"}, {Schema: "public", Name: "events"}}) {
		t.Errorf("ancestors: %v", got)
	}
}

func TestKeylessTablesStayWritable(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, `CREATE TABLE keyed (id int PRIMARY KEY); CREATE TABLE keyless (id int);
		CREATE TABLE part (id int) PARTITION BY LIST (id); CREATE TABLE leaf PARTITION OF part DEFAULT;
		CREATE TABLE leaf1 PARTITION OF part (PRIMARY KEY (id)) FOR VALUES IN (1)`)
	c := config(t, db.URL)
	p, point := publish(t, c, "*")
	if len(p.Warnings) != 2 || !strings.Contains(strings.Join(p.Warnings, "\n"), `ALTER TABLE "public"."keyless" REPLICA IDENTITY FULL`) {
		t.Errorf("warnings: %q", p.Warnings)
	}
	if !slices.Equal(p.Names, []string{"flo_test", "flo_test_keyless"}) || len(p.Tables) != 4 {
		t.Errorf("%q with %d tables", p.Names, len(p.Tables))
	}
	for _, table := range []string{"keyed", "keyless", "part"} {
		db.Exec(t, fmt.Sprintf("INSERT INTO %[1]s VALUES (1), (2), (3); UPDATE %[1]s SET id = id + 10; DELETE FROM %[1]s WHERE id = 11; TRUNCATE %[1]s", table))
	}
	s := start(t, t.Context(), c, p, point)
	var seen []string
	for commits := 0; commits < 3; {
		switch e := next(t, s); e.Data[0] {
		case 'C':
			commits++
		case 'R', 'B':
		default:
			seen = append(seen, string(e.Data[0]))
		}
	}
	// keyed: all; keyless: inserts and truncate; part: of leaf 1 the move is a delete, into a leaf an insert.
	if got := strings.Join(seen, ""); got != "IIIUUUDT"+"IIIT"+"IIIDIT" {
		t.Errorf("the stream shows %s", got)
	}
}

func TestPublicationIsReconciled(t *testing.T) {
	db := flotest.Postgres(t)
	flotest.RequireVersion(t, db, 15) // row filters and column lists
	db.Exec(t, `CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int); CREATE TABLE d (id int PRIMARY KEY)`)
	c := config(t, db.URL)
	conn := connect(t, c)
	ensure := func(texts ...string) Published {
		t.Helper()
		tables, _, err := c.ResolveTables(t.Context(), conn, patterns(t, texts...), nil)
		must(t, err)
		p, err := c.EnsurePublication(t.Context(), conn, PublicationSpec{Name: `My "group"`, Tables: tables})
		must(t, err)
		return p
	}
	state := func() string {
		return db.QueryString(t, `SELECT string_agg(pubname || ':' || tablename, ' ' ORDER BY pubname, tablename) FROM pg_publication_tables`)
	}
	ensure("a", "b", "c")
	if got := state(); got != `My "group":a My "group":b My "group"_keyless:c` {
		t.Error(got)
	}
	db.Exec(t, `ALTER PUBLICATION "My ""group""" SET TABLE public.a (id) WHERE (id > 5), public.d;
		ALTER PUBLICATION "My ""group""" SET (publish = 'insert', publish_via_partition_root = true);
		ALTER TABLE c ADD PRIMARY KEY (id); ALTER TABLE b DROP CONSTRAINT b_pkey`)
	p := ensure("a", "b", "c")
	if got := state(); got != `My "group":a My "group":c My "group"_keyless:b` {
		t.Error(got)
	}
	if len(p.Tables) != 3 || p.Tables[0].RowFilter != "(id > 5)" || len(p.Tables[0].Columns) != 1 || p.Tables[0].Columns[0].Name != "id" || p.Tables[1].RowFilter != "" {
		t.Errorf("%+v", p.Tables)
	}
	if got := db.QueryString(t, `SELECT string_agg(concat(pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot), ' ' ORDER BY pubname) FROM pg_publication`); got != "ttttf tfftf" {
		t.Error(got)
	}
	ids := `SELECT string_agg(xmin::text, ' ' ORDER BY oid) FROM pg_publication_rel`
	before := db.QueryString(t, ids)
	ensure("a", "b", "c")
	if after := db.QueryString(t, ids); after != before {
		t.Errorf("nothing to do, and yet it was done: %s, %s", before, after)
	}
	db.Exec(t, "ALTER TABLE a DROP CONSTRAINT a_pkey CASCADE; DROP TABLE b; DROP TABLE c; DROP TABLE d")
	if p := ensure("a"); len(p.Tables) != 1 || len(p.Names) != 2 {
		t.Errorf("only a keyless table: %+v", p)
	}
	p, err := c.EnsurePublication(t.Context(), conn, PublicationSpec{Name: `My "group"`})
	must(t, err)
	if len(p.Tables) != 0 || len(p.Names) != 2 {
		t.Errorf("nothing to publish: %+v", p)
	}
	must(t, c.DropPublications(t.Context(), conn, `My "group"`))
	must(t, c.DropPublications(t.Context(), conn, `My "group"`))
	if got := db.QueryString(t, "SELECT count(*) FROM pg_publication"); got != "0" {
		t.Errorf("%s publications are left", got)
	}
}

func TestAllTables(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE SCHEMA flo; CREATE TABLE flo.own (id int); CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int)")
	c := config(t, db.URL)
	for range 2 {
		p, err := c.EnsurePublication(t.Context(), connect(t, c), PublicationSpec{Name: "everything", AllTables: true})
		must(t, err)
		if len(p.Tables) != 2 || len(p.Names) != 1 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], `"public"."b"`) {
			t.Errorf("%+v", p)
		}
	}
	_, err := c.EnsurePublication(t.Context(), connect(t, c), PublicationSpec{Name: "everything"})
	if !errors.Is(err, ErrSource) {
		t.Errorf("a list in place of all tables: %v", err)
	}
}

func TestHostileNamesStream(t *testing.T) {
	db := flotest.Postgres(t)
	hostile := []string{`"; DROP TABLE x; --`, "a.b", "UPPER", strings.Repeat("ü", 31), "it's", `back\slash`, "*",
		strings.Repeat("ü", 31) + `"`, strings.Repeat("x", names.MaxLength)} // of 63 bytes: as long as a name can be
	for _, name := range hostile {
		if len(name) > names.MaxLength {
			t.Fatalf("PostgreSQL would cut %q off", name)
		}
		db.Exec(t, "CREATE TABLE "+names.Quote(name)+" (id int PRIMARY KEY)")
	}
	c := config(t, db.URL)
	var texts []string
	for _, name := range hostile {
		texts = append(texts, names.Qualified("public", name))
	}
	conn := connect(t, c)
	tables, _, err := c.ResolveTables(t.Context(), conn, patterns(t, texts...), nil)
	must(t, err)
	p, err := c.EnsurePublication(t.Context(), conn, PublicationSpec{Name: `flo's "pub", \x`, Tables: tables})
	must(t, err)
	slot, err := c.CreateSlot(t.Context(), slotName(c), false, nil)
	must(t, err)
	must(t, slot.Release(t.Context()))
	for _, name := range hostile {
		db.Exec(t, "INSERT INTO "+names.Quote(name)+" VALUES (1)")
	}
	s := start(t, t.Context(), c, p, slot.Point)
	for _, name := range hostile {
		for {
			e := next(t, s)
			if e.Data[0] == 'R' {
				if !strings.Contains(string(e.Data), "public\x00"+name+"\x00") {
					t.Errorf("%q came for %q", e.Data, name)
				}
				break
			}
		}
	}
}

func TestDescribe(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, `CREATE SCHEMA "S"; CREATE TYPE "S"."Mood" AS ENUM ('sad', 'ok'); ALTER TYPE "S"."Mood" ADD VALUE 'first' BEFORE 'sad';
		CREATE DOMAIN dom AS "S"."Mood"[]; CREATE TYPE comp AS (x int, "Y" dom, gone int); ALTER TYPE comp DROP ATTRIBUTE gone;
		CREATE TYPE span AS RANGE (subtype = float8);
		CREATE TABLE t (id int, a comp[], s span, m span_multirange) PARTITION BY LIST (id);
		CREATE TABLE leaf PARTITION OF t DEFAULT`)
	c := config(t, db.URL)
	conn := connect(t, c)
	tables, _, err := c.ResolveTables(t.Context(), conn, patterns(t, "leaf"), nil)
	must(t, err)
	var types []uint32
	for _, col := range tables[0].Columns {
		types = append(types, col.Type.OID)
	}
	d, err := Describe(t.Context(), conn, tables[0].OID, types)
	must(t, err)
	if !reflect.DeepEqual(d.Ancestors, []decode.Name{{Schema: "public", Name: "t"}}) || d.Relation != tables[0].OID {
		t.Errorf("%+v", d)
	}
	by := make(map[string]decode.TypeDescription)
	for _, typ := range d.Types {
		by[typ.Name] = typ
	}
	if len(by) != len(d.Types) || len(by) != 7 {
		t.Errorf("%d types: %+v", len(d.Types), d.Types)
	}
	mood := by["Mood"]
	if mood.Kind != decode.EnumType || mood.Schema != "S" || !slices.Equal(mood.Labels, []string{"first", "sad", "ok"}) {
		t.Errorf("%+v", mood)
	}
	if a := by["_comp"]; a.Kind != decode.ArrayType || a.Elem != by["comp"].OID {
		t.Errorf("%+v", a)
	}
	if f := by["comp"].Fields; len(f) != 2 || f[1] != (decode.FieldDescription{Name: "Y", Type: by["dom"].OID}) || f[0].Type != 23 {
		t.Errorf("%+v", f)
	}
	if by["dom"].Elem != by["_Mood"].OID || by["_Mood"].Elem != mood.OID || by["span"].Elem != 701 || by["span_multirange"].Elem != by["span"].OID {
		t.Errorf("%+v", by)
	}
	if d, err := Describe(t.Context(), conn, 0, []uint32{23, 4000000000}); err != nil || len(d.Types) != 0 || d.Ancestors != nil {
		t.Errorf("nothing to describe: %+v, %v", d, err)
	}
}

// TestDescribeKnowsWhatBuiltinTypeDoesNot proves that the row types of catalog tables, whose OIDs are below
// those of users' types but not fixed, are described, and a delimiter other than a comma.
func TestDescribeKnowsWhatBuiltinTypeDoesNot(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, `CREATE TYPE odd; CREATE FUNCTION odd_in(cstring) RETURNS odd LANGUAGE internal IMMUTABLE STRICT AS 'textin';
		CREATE FUNCTION odd_out(odd) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
		CREATE TYPE odd (INPUT = odd_in, OUTPUT = odd_out, LIKE = text, DELIMITER = ':');
		CREATE TABLE t (row pg_namespace, n information_schema.cardinal_number, odd odd[])`)
	c := config(t, db.URL)
	conn := connect(t, c)
	tables, _, err := c.ResolveTables(t.Context(), conn, patterns(t, "t"), nil)
	must(t, err)
	var types []uint32
	for _, col := range tables[0].Columns {
		types = append(types, col.Type.OID)
	}
	d, err := Describe(t.Context(), conn, tables[0].OID, types)
	must(t, err)
	p := decode.NewParser()
	must(t, p.Describe(d))
	rel, err := p.Relation(decode.AppendRelation(nil, &decode.Relation{OID: tables[0].OID, Schema: "public", Name: "t", Identity: decode.IdentityDefault, Columns: tables[0].Columns}))
	must(t, err)
	row := rel.Columns[0].Type
	if row.Kind != decode.CompositeType || row.Name != "pg_namespace" || len(row.Fields) < 4 || row.Fields[1].Name != "nspname" || row.Fields[1].Type != decode.BuiltinType(19) {
		t.Errorf("%+v", row)
	}
	if n := rel.Columns[1].Type; n.Kind != decode.DomainType || n.Base() != decode.BuiltinType(23) {
		t.Errorf("%+v", n)
	}
	if a := rel.Columns[2].Type; a.Kind != decode.ArrayType || a.Elem == nil || a.Elem.Name != "odd" || a.Elem.Delimiter != ':' {
		t.Errorf("%+v", a)
	}
}
