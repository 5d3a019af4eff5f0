package flo_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// ownTypes are made in both databases. Their names are as hostile as names can be.
var ownTypes = []string{
	`CREATE SCHEMA "S ""p"`,
	`CREATE TYPE "S ""p"."Mood, (é)" AS ENUM ('sad', 'o''k "x" \', ' ', '', '{a,b}', 'NULL')`,
	`CREATE TYPE pair AS (a int, "B b" text)`,
	`CREATE TYPE nest AS (p pair, list int[], r tsrange, m "S ""p"."Mood, (é)", j jsonb, pairs pair[])`,
	`CREATE TYPE "one" AS ("only" text)`,
	`CREATE TYPE nothing AS ()`,
	`CREATE DOMAIN posint AS int CHECK (VALUE > 0)`,
	`CREATE DOMAIN posint2 AS posint`,
	`CREATE DOMAIN intlist AS int[]`,
	`CREATE DOMAIN apair AS pair`,
	`CREATE DOMAIN aspan AS numrange`,
	`CREATE DOMAIN adoc AS jsonb`,
	`CREATE DOMAIN amood AS "S ""p"."Mood, (é)"`,
	`CREATE TYPE deep AS (i intlist, p apair, d posint2, s aspan)`,
	`CREATE TYPE textspan AS RANGE (subtype = text)`,
	`CREATE TYPE floatspan AS RANGE (subtype = float8)`,
	`CREATE TABLE other (x int, y text)`,
	`CREATE TYPE t` + strings.Repeat("63", 31) + ` AS ENUM ('x')`,
}

// column is one type of the table of all types, and values of it as PostgreSQL reads them.
type column struct {
	typ    string
	values []string
	random func(*rand.Rand) string // nil: one of values
}

// The interval of the fewest microseconds (-2^63) is not among them: PostgreSQL itself can't read what it
// writes of it.
var allColumns = []column{
	{"bool", []string{"t", "f"}, nil},
	{"int2", []string{"-32768", "32767", "0"}, nil},
	{"int4", []string{"-2147483648", "2147483647"}, nil},
	{"int8", []string{"-9223372036854775808", "9223372036854775807"}, func(r *rand.Rand) string { return strconv.FormatInt(int64(r.Uint64()), 10) }},
	{"float4", []string{"NaN", "Infinity", "-Infinity", "-0", "1.17549435e-38", "0.1"}, func(r *rand.Rand) string {
		return strconv.FormatFloat(float64(math.Float32frombits(r.Uint32())), 'g', -1, 32)
	}},
	{"float8", []string{"NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "0.1"}, func(r *rand.Rand) string {
		return strconv.FormatFloat(math.Float64frombits(r.Uint64()), 'g', -1, 64)
	}},
	{"numeric", []string{"NaN", "Infinity", "-Infinity", "0.00", "1.0", "1.00", "-1e-50", "123456789012345678901234567890.1234567890"}, randomDecimal},
	{"numeric(12,3)", []string{"NaN", "-123456789.125", "0"}, nil},
	{"money", []string{"-92233720368547758.08", "92233720368547758.07", "0"}, nil},
	{"oid", []string{"0", "4294967295"}, nil}, {"xid", []string{"4294967295"}, nil}, {"cid", []string{"5"}, nil}, {"xid8", []string{"18446744073709551615"}, nil},
	{"tid", []string{"(0,1)", "(4294967295,65535)"}, nil},
	{"regclass", []string{"pg_class", `other`, "-"}, nil}, {"regtype", []string{"int4", `pair`, `"S ""p"."Mood, (é)"[]`}, nil}, {"regproc", []string{"pg_catalog.version"}, nil},
	{"regprocedure", []string{"abs(int4)"}, nil}, {"regoperator", []string{"+(int4,int4)"}, nil}, {"regnamespace", []string{"pg_catalog", `"S ""p"`}, nil},
	{"regconfig", []string{"english"}, nil}, {"regdictionary", []string{"simple"}, nil}, {"regcollation", []string{`"C"`}, nil},
	{"text", []string{"", " ", `\N`, `\.`, "NULL", "a\"b\\c'd\te\nf\rg\v\f\b", "é€😀", strings.Repeat("long", 1000)}, randomWord},
	{"varchar(9)", []string{"", "abc  "}, nil}, {"bpchar", []string{"a "}, nil}, {"char(5)", []string{"", "ab"}, nil}, {"name", []string{"", strings.Repeat("n", 63)}, nil}, {`"char"`, []string{"", "a", `\`, `\377`}, nil},
	{"bytea", []string{"", `\x00ff5c0a22`}, func(r *rand.Rand) string { return fmt.Sprintf(`\x%x`, randomWord(r)) }},
	{"json", []string{"null", ` {"a" : 1.00, "a":2,"b" : [ ] } `, `"x"`, "{}", "1e400", "{\n\t\"é\": \"\\u0000\"}"}, func(r *rand.Rand) string {
		b, _ := json.Marshal(map[string]any{randomWord(r): randomWord(r), "n": r.Float64()})
		return " " + string(b)
	}},
	{"jsonb", []string{"null", `{"b":1.00,"a":[1, {"c":null}]}`, `"\"\\"`, "[]"}, nil},
	{"jsonpath", []string{`$."a"[*] ? (@ > 1)`}, nil},
	{"xml", []string{"", "<a b=\"c\">&lt;x\n</a>", "text <b/>"}, nil},
	{"date", []string{"infinity", "-infinity", "4714-11-24 BC", "0001-12-31 BC", "2024-02-29", "5874897-12-31"}, func(r *rand.Rand) string { return fmt.Sprintf("J%d", r.IntN(2147483494)) }},
	{"timestamp", []string{"infinity", "-infinity", "4714-11-24 00:00:00 BC", "0001-01-01 00:00:00", "294276-12-31 23:59:59.999999"}, nil},
	{"timestamp(3)", []string{"2024-02-29 23:59:59.123"}, nil},
	{"timestamptz", []string{"infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "2024-02-29 12:34:56.7+05:30", "294276-12-31 23:59:59.999999+00", "1883-11-18 12:00:00 America/New_York"}, func(r *rand.Rand) string {
		return fmt.Sprintf("%04d-%02d-%02d %02d:00:00.%06d+00%s", 1+r.IntN(4000), 1+r.IntN(12), 1+r.IntN(28), r.IntN(24), r.IntN(1e6), []string{"", " BC"}[r.IntN(2)])
	}},
	{"time", []string{"00:00:00", "24:00:00", "23:59:59.999999"}, nil}, {"timetz", []string{"00:00:00-15:59:59", "24:00:00+15:59", "12:34:56.789+00"}, nil},
	{"interval", []string{"0", "1 year 2 mons -3 days 04:05:06.789", "178000000 years", "-2147483648 days", "-2147483647 seconds", "-1 mons +2 days -00:00:00.000001"}, func(r *rand.Rand) string {
		// Up to PostgreSQL 14 each number has to fit into 32 bits.
		return fmt.Sprintf("%d mons %d days %d hours %d microseconds", int32(r.Uint32()), int32(r.Uint32()), int32(r.Uint32()), int32(r.Uint32()))
	}},
	{"interval day to second(2)", []string{"3 days 04:05:06.78"}, nil},
	{"uuid", []string{"00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}, nil},
	{"inet", []string{"1.2.3.4", "1.2.3.4/8", "::1", "fe80::1/10", "::ffff:1.2.3.4"}, nil}, {"cidr", []string{"10.0.0.0/8", "::/0"}, nil},
	{"macaddr", []string{"08:00:2b:01:02:03"}, nil}, {"macaddr8", []string{"08:00:2b:01:02:03:04:05"}, nil},
	{"bit(3)", []string{"101", "000"}, nil}, {"varbit", []string{"", "1", "101010101"}, nil}, {"varbit(4)", []string{"", "1010"}, nil},
	{"point", []string{"(1,2)", "(NaN,-Infinity)", "(-0,1e-300)"}, nil}, {"line", []string{"{1,-2,3.5}"}, nil}, {"lseg", []string{"[(1,2),(3,4)]"}, nil}, {"box", []string{"(3,4),(1,2)"}, nil},
	{"path", []string{"[(1,2),(3,4)]", "((1,2),(3,4),(5,6))"}, nil}, {"polygon", []string{"((1,2),(3,4),(5,6))"}, nil}, {"circle", []string{"<(1,2),3.5>"}, nil},
	{"pg_lsn", []string{"0/0", "FFFFFFFF/FFFFFFFF"}, nil}, {"pg_snapshot", []string{"10:20:10,14,15"}, nil}, {"txid_snapshot", []string{"10:20:10,14,15"}, nil}, {"refcursor", []string{"", "c"}, nil},
	{"tsvector", []string{"", `'a':1A,2B 'b c':3 'd''e':4C '\\':16383`}, nil}, {"tsquery", []string{"", "'a' & !'b c':*A <2> 'd'"}, nil},
	{"int2vector", []string{"", "1 2 -3"}, nil}, {"oidvector", []string{"", "1 4294967295"}, nil}, {"aclitem", []string{"=r/postgres"}, nil},
	{"int4range", []string{"empty", "(,)", "[1,5)", "[1,)", "(,5)"}, nil}, {"int8range", []string{"[-9223372036854775808,9223372036854775807)"}, nil}, {"numrange", []string{"[1.50,2.00]", "(NaN,)", "[-Infinity,Infinity]", "empty"}, nil},
	{"tsrange", []string{`["2024-01-01 00:00:00",infinity)`, `("0044-03-15 00:00:00 BC",]`}, nil}, {"tstzrange", []string{`["2024-01-01 00:00:00+05",)`}, nil}, {"daterange", []string{"[2024-01-01,infinity]", "empty"}, nil},
	{"textspan", []string{`["","a""b\\c,d)"]`, `["(","]"]`, `(,"NULL")`}, nil}, {"floatspan", []string{"[-Infinity,NaN]", "[0.1,0.2)"}, nil},
	{"int4multirange", []string{"{}", "{[1,3),[5,)}", "{(,)}"}, nil}, {"int8multirange", []string{"{[1,2)}"}, nil}, {"nummultirange", []string{"{[1.50,2.00],(3,NaN]}"}, nil},
	{"tsmultirange", []string{`{["2024-01-01 00:00:00",infinity)}`}, nil}, {"tstzmultirange", []string{`{(,"2024-01-01 00:00:00+05")}`}, nil}, {"datemultirange", []string{"{[2024-01-01,2024-01-03)}"}, nil},
	{"textspan_multirange", []string{`{["a,","b}"],["c\"","d\\"]}`}, nil},
	{`"S ""p"."Mood, (é)"`, []string{"sad", `o'k "x" \`, " ", "", "{a,b}", "NULL"}, nil}, {"t" + strings.Repeat("63", 31), []string{"x"}, nil},
	{"pair", []string{`(1,"x""y")`, "(,)", `(5,"")`, `(5,"a,b) \\ (")`}, nil}, {`"one"`, []string{"()", `("")`}, nil}, {"nothing", []string{"()"}, nil}, {"other", []string{"(1,x)"}, nil},
	{"nest", []string{`("(1,""x"")","{1,NULL}","[2024-01-01,)","o'k ""x"" \\","{""a"": ""b""}","{""(1,a)"",NULL}")`, "(,,,,,)"}, nil},
	{"deep", []string{`("{1,2}","(1,""a """"b"""""")",5,"[1.0,2]")`}, nil}, {"pg_namespace", []string{"(1,abc,10,)"}, nil}, {"information_schema.cardinal_number", []string{"5"}, nil},
	{"posint", []string{"5"}, nil}, {"posint2", []string{"7"}, nil}, {"intlist", []string{"{1,NULL}", "{}", "[5:6]={1,2}"}, nil}, {"apair", []string{"(1,x)"}, nil}, {"aspan", []string{"[1.0,2]"}, nil}, {"adoc", []string{"null", `{"a":1.0}`}, nil}, {"amood", []string{"", "sad"}, nil},
	{"hstore", []string{"", `"a"=>"1","b c"=>NULL,""=>"","q\"\\"=>"x,=>"`}, nil}, {"citext", []string{"", "MiXed"}, nil}, {"ltree", []string{"", "a.b.c"}, nil}, {"lquery", []string{"*.a"}, nil}, {"cube", []string{"(1,2),(3,4)"}, nil}, {"isbn", []string{"1-937294-28-5"}, nil}, {"vector", []string{"[1,2.5]"}, nil},
}

// typeExtensions own the types that a server may lack.
var typeExtensions = map[string]string{"hstore": "hstore", "citext": "citext", "ltree": "ltree", "lquery": "ltree", "cube": "cube", "isbn": "isn", "vector": "vector"}

func randomDecimal(r *rand.Rand) string {
	digits := make([]byte, 1+r.IntN(60))
	for i := range digits {
		digits[i] = byte('0' + r.IntN(10)*r.IntN(2))
	}
	return []string{"", "-"}[r.IntN(2)] + string(digits) + fmt.Sprintf("e%d", r.IntN(120)-60)
}

// randomWord is full of what COPY, arrays, composites and ranges have to quote.
func randomWord(r *rand.Rand) string {
	runes := []rune(`"'\,;(){}[] =>NULaé€😀.:` + "\t\n\r\v\f\b\x7f\x01")
	s := make([]rune, r.IntN(12))
	for i := range s {
		s[i] = runes[r.IntN(len(runes))]
	}
	return string(s)
}

// allTypes makes statements for tables that have a column of every type and of every array.
type allTypes struct {
	names   []string
	columns []column
	rnd     *rand.Rand
}

// newAllTypes leaves out, with a word, the types that the server doesn't have.
func newAllTypes(t *testing.T, rnd *rand.Rand, dbs ...*flotest.DB) *allTypes {
	t.Helper()
	missing := map[string]bool{}
	for _, ext := range typeExtensions {
		missing[ext] = dbs[0].QueryString(t, `SELECT NOT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)`, ext) == "t"
	}
	for _, db := range dbs {
		for ext, m := range missing {
			if !m {
				db.Exec(t, `CREATE EXTENSION IF NOT EXISTS `+ext)
			}
		}
		for _, sql := range ownTypes {
			db.Exec(t, sql)
		}
	}
	a := &allTypes{rnd: rnd}
	for _, c := range allColumns {
		if ext, ok := typeExtensions[c.typ]; ok && missing[ext] {
			t.Logf("no column of type %s: the server doesn't have the extension %s", c.typ, ext)
			continue
		}
		if dbs[0].QueryString(t, `SELECT to_regtype($1) IS NULL`, c.typ) == "t" {
			t.Logf("no column of type %s: the server doesn't know it", c.typ)
			continue
		}
		a.columns = append(a.columns, c)
	}
	for i, c := range a.columns {
		a.names = append(a.names, quoted(fmt.Sprintf(`%d "%s`, i, c.typ)))
	}
	return a
}

// quoted is a name of at most 63 bytes as SQL.
func quoted(name string) string {
	return `"` + strings.ReplaceAll(strings.ToValidUTF8(name[:min(len(name), 63)], ""), `"`, `""`) + `"`
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// hasArray: catalog tables' row types and information_schema's domains are tested once.
func (c column) hasArray() bool {
	return c.typ != "pg_namespace" && !strings.HasPrefix(c.typ, "information_schema")
}

func (a *allTypes) table(name, id, rest string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `CREATE TABLE %s (id bigint %s, n int, big text, masked text, ident bigint GENERATED ALWAYS AS IDENTITY,
		"%s" bigint GENERATED BY DEFAULT AS IDENTITY, gen text GENERATED ALWAYS AS ('g' || n) STORED`, name, id, strings.Repeat("ñ", 31))
	for i, c := range a.columns {
		fmt.Fprintf(&b, ", %s %s", a.names[i], c.typ)
		if c.hasArray() {
			fmt.Fprintf(&b, `, "a%d" %s[]`, i, c.typ)
		}
	}
	fmt.Fprintf(&b, "); ALTER TABLE %s ALTER big SET STORAGE EXTERNAL %s", name, rest)
	return b.String()
}

// insert of row k: the fixed values in turn, then random ones, and now and then NULL.
func (a *allTypes) insert(table string, id int64, k int) string {
	names := []string{"id", "n", "big"}
	values := []string{strconv.FormatInt(id, 10), strconv.Itoa(k), fmt.Sprintf("repeat('%d', 20000)", id)}
	for i, c := range a.columns {
		cast := "::" + c.typ
		value := func(k int) string {
			switch {
			case k > len(c.values) && c.random != nil:
				return literal(c.random(a.rnd)) + cast
			case k%(len(c.values)+1) == len(c.values):
				return "NULL" + cast
			}
			return literal(c.values[k%(len(c.values)+1)]) + cast
		}
		names, values = append(names, a.names[i]), append(values, value(k))
		if !c.hasArray() {
			continue
		}
		var all []string
		for j := range c.values {
			all = append(all, value(j))
		}
		names = append(names, fmt.Sprintf(`"a%d"`, i))
		switch k % 6 {
		case 0:
			values = append(values, "ARRAY["+strings.Join(append(all, "NULL"), ",")+"]::"+c.typ+"[]")
		case 1:
			values = append(values, "'{}'::"+c.typ+"[]")
		case 2:
			values = append(values, fmt.Sprintf("ARRAY[[%s],[NULL]]::%s[]", value(k), c.typ))
		case 3:
			values = append(values, "NULL")
		case 4:
			values = append(values, fmt.Sprintf("array_fill(%s, ARRAY[2,1,2], ARRAY[-3,5,0])::%s[]", value(0), c.typ))
		default:
			values = append(values, fmt.Sprintf("ARRAY[%s,%s]::%s[]", value(k), value(k+1), c.typ))
		}
	}
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table, strings.Join(names, ","), strings.Join(values, ","))
}

// shift gives every row between two ids the values of the one behind it.
func (a *allTypes) shift(table string, from, to int64) string {
	var set, get []string
	for i, c := range a.columns {
		set, get = append(set, a.names[i]), append(get, "s."+a.names[i])
		if c.hasArray() {
			set, get = append(set, fmt.Sprintf(`"a%d"`, i)), append(get, fmt.Sprintf(`s."a%d"`, i))
		}
	}
	return fmt.Sprintf("UPDATE %s t SET (%s) = ROW(%s) FROM %s s WHERE s.id = t.id + 1 AND t.id BETWEEN %d AND %d",
		table, strings.Join(set, ","), strings.Join(get, ","), table, from, to)
}

// typedSink fails on a value that can't be read as its type, or on a change that can't be written as JSON.
func typedSink(copied, streamed, unchanged *atomic.Int64) sink.Func {
	encoders := []decode.Encoder{decode.JSON, decode.Debezium("all", decode.DebeziumDatabase("types"))}
	return func(_ context.Context, b *sink.Batch) error {
		for _, c := range b.Changes {
			if c.Copy != nil {
				copied.Add(1)
			} else {
				streamed.Add(1)
			}
			for _, row := range []decode.Row{c.Old, c.New} {
				for i, v := range row {
					if v.Presence() == decode.Unchanged {
						unchanged.Add(1)
					}
					if v.Presence() != decode.Present {
						continue
					}
					name := c.Relation.Columns[i].Name
					if v.Type().Name == "" || v.Type().Base() == nil {
						return sink.Permanent(fmt.Errorf("column %q: the type is not known: %+v", name, v.Type()))
					}
					if _, err := v.Any(); err != nil {
						return sink.Permanent(fmt.Errorf("column %q %q: %w", name, v, err))
					}
				}
			}
			for _, encode := range encoders {
				line, err := encode(nil, c)
				if err != nil || slices.ContainsFunc(strings.Split(string(line), "\n"), func(s string) bool { return !json.Valid([]byte(s)) }) {
					return sink.Permanent(fmt.Errorf("no JSON: %s, %w", line, err))
				}
			}
		}
		return nil
	}
}

// TestEveryTypeArrivesEqual proves that a column of every type, and an array of every type, arrive equal by
// row::text: copied as raw bytes, copied through rules, and streamed, under a key and under REPLICA IDENTITY FULL.
func TestEveryTypeArrivesEqual(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	p := newPipeline(t)
	ruled := flotest.Postgres(t)
	a := newAllTypes(t, rand.New(rand.NewPCG(seed, 0)), p.src, p.dst, ruled)
	keyed, full := `public.keyed`, `"S ""p"."Full ""Table"" é"`
	for _, db := range []*flotest.DB{p.src, p.dst, ruled} {
		db.Exec(t, a.table(keyed, "PRIMARY KEY", ""))
		db.Exec(t, a.table(full, "NOT NULL", ", REPLICA IDENTITY FULL"))
		// From PostgreSQL 18 on such a table can't be updated while it is published without them.
		db.Exec(t, fmt.Sprintf("ALTER TABLE %s DROP COLUMN gen", full))
		db.Exec(t, `CREATE TABLE secret (masked text)`)
	}
	const fixed, random = 9, 15
	fill := func(first int64) {
		for _, table := range []string{keyed, full} {
			for k := range fixed + random {
				if err := p.src.TryExec(ctx, a.insert(table, first+int64(k), k)); err != nil {
					t.Fatalf("row %d: %v", k, err) // the statement is long
				}
			}
		}
	}
	fill(1)
	p.src.Exec(t, `INSERT INTO secret VALUES ('secret')`)
	second, err := postgres.New(ruled.URL)
	if err != nil {
		t.Fatal(err)
	}
	var copied, streamed, unchanged atomic.Int64
	p.start(ctx, flo.WithSink(p.sink()),
		flo.WithWorker("ruled", second, flo.WithRules(rules.Table("*.*", rules.Mask("masked")))),
		flo.WithWorker("typed", typedSink(&copied, &streamed, &unchanged)))
	compare := func(what string) {
		t.Helper()
		p.catchUp(ctx)
		flotest.Equal(t, ctx, p.src.URL, p.dst.URL)
		flotest.Equal(t, ctx, p.src.URL, ruled.URL, keyed, full)
		if t.Failed() {
			t.Fatalf("%s differ", what)
		}
	}
	compare("copied rows")
	if got := ruled.QueryString(t, `SELECT masked FROM secret`); got != "s****t" {
		t.Errorf("rows were not copied through the rules: %q", got)
	}
	fill(1001)
	compare("inserted rows")
	for _, table := range []string{keyed, full} {
		p.src.Exec(t, a.shift(table, 1, fixed+random-1))
		p.src.Exec(t, fmt.Sprintf("UPDATE %s SET n = n + 100 WHERE id %% 3 = 0", table)) // big stays where it is
	}
	compare("updated rows")
	for _, table := range []string{keyed, full} {
		p.src.Exec(t, fmt.Sprintf("UPDATE %s SET id = id + 5000 WHERE id %% 4 = 1", table))
		p.src.Exec(t, fmt.Sprintf("DELETE FROM %s WHERE id %% 4 = 2", table))
	}
	compare("changed keys and deleted rows")
	if copied.Load() != 2*(fixed+random)+1 || streamed.Load() < 4*(fixed+random) || unchanged.Load() == 0 {
		t.Errorf("typed: %d copied, %d streamed, %d unchanged", copied.Load(), streamed.Load(), unchanged.Load())
	}
}
