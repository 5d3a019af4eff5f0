package decode_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/internal/source"
)

const oracleTypes = `
CREATE TYPE mood AS ENUM ('sad', 'o''k "x" \', ' ', '');
CREATE TYPE pair AS (a int, "B b" text);
CREATE TYPE nest AS (p pair, list int[], r tsrange, m mood, j jsonb, n numeric);
CREATE TYPE one AS ("only" text);
CREATE DOMAIN posint AS int CHECK (VALUE > 0);
CREATE DOMAIN posint2 AS posint;
CREATE DOMAIN intlist AS int[];
CREATE DOMAIN apair AS pair;
CREATE DOMAIN aspan AS numrange;
CREATE TYPE textspan AS RANGE (subtype = text);
CREATE TYPE floatspan AS RANGE (subtype = float8)`

// oracleValues are literals by type. What is not in pgx's default map is loaded by oracleConn.
var oracleValues = map[string][]string{
	"bool": {"t", "f"}, "int2": {"-32768", "0", "32767"}, "int4": {"-2147483648", "2147483647"}, "int8": {"-9223372036854775808", "9223372036854775807"},
	"float4": {"NaN", "Infinity", "-Infinity", "1.17549435e-38", "3.4028235e38", "-0", "0.1"}, "float8": {"NaN", "Infinity", "-Infinity", "5e-324", "1.7976931348623157e308", "-0", "0.1"},
	"numeric": {"NaN", "Infinity", "-Infinity", "0", "0.00", "-0.000", "1.50", "100", "-1e20", "1e-50", "123456789012345678901234567890.1234567890", "1e130"},
	"oid":     {"0", "4294967295"}, "xid": {"4294967295"}, "cid": {"7"}, "xid8": {"18446744073709551615"}, "regclass": {"pg_class"}, "regtype": {"int4"},
	"text": {"", " ", "NULL", "a\"b\\c'd\t\r\n", "é€😀"}, "varchar(5)": {"abc  "}, "bpchar": {"abc"}, "char(5)": {"ab"}, "name": {"a b"}, `"char"`: {"a"},
	"bytea": {"", `\x00ff5c22`}, "json": {"null", ` {"a" : 1.00, "a":2} `, `"x"`, "[]"}, "jsonb": {"null", `{"b":1e3,"a":[1, {"c":null}]}`},
	"date":        {"infinity", "-infinity", "4714-11-24 BC", "0001-12-31 BC", "0001-01-01", "2024-02-29", "5874897-12-31"},
	"timestamp":   {"infinity", "-infinity", "4714-11-24 00:00:00 BC", "0001-01-01 00:00:00", "2024-02-29 23:59:59.999999", "294276-12-31 23:59:59.999999"},
	"timestamptz": {"infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "2024-02-29 12:34:56.7+05:30", "294276-12-31 23:59:59.999999+00", "1900-01-01 00:00:00+00"},
	"time":        {"00:00:00", "24:00:00", "23:59:59.999999"},
	"interval": {"0", "1 year 2 mons -3 days 04:05:06.789", "-1 mons +2 days -00:00:00.000001", "178000000 years", "-178000000 years", "-2147483648 days",
		"9223372036854775807 microseconds", "-9223372036854775808 microseconds", "-1 year 11 mons"},
	"uuid": {"00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"},
	"inet": {"1.2.3.4", "1.2.3.4/8", "::1", "fe80::1/10", "::ffff:1.2.3.4", "0.0.0.0/0"}, "cidr": {"10.0.0.0/8", "2001:db8::/32", "::/0"},
	"macaddr": {"08:00:2b:01:02:03"}, "macaddr8": {"08:00:2b:01:02:03:04:05"}, "bit(3)": {"101"}, "varbit": {"", "1", "101010101"},
	"point": {"(1,2)", "(NaN,-Infinity)", "(1e-300,0.1)"}, "line": {"{1,-2,3.5}"}, "lseg": {"[(1,2),(3,4)]"}, "box": {"(3,4),(1,2)"},
	"path": {"[(1,2),(3,4)]", "((1,2),(3,4),(5,6))"}, "polygon": {"((1,2),(3,4),(5,6))"}, "circle": {"<(1,2),3.5>"},
	"pg_lsn": {"0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"}, "tid": {"(0,1)", "(4294967295,65535)"}, "xml": {"<a>&lt;</a>", ""}, "tsquery": {"'a' & 'b'"}, "jsonpath": {`$."a"`},
	"tsvector":   {"", "'a':1A,2B 'b c':3 'd''e':4C '\\\\':16383", "x y z"},
	"int4[]":     {"{}", "{1,NULL,3}", "{{1,2},{3,NULL}}", "[0:1]={5,6}", "[-5:-4][2:2][7:8]={{{1,2}},{{3,4}}}", "{{{{{{1}}}}}}"},
	"text[]":     {`{"",NULL,"NULL",null,"a,b","{}","x\"y\\z"," ","é"}`, `{{a},{b}}`},
	"box[]":      {"{(3,4),(1,2);(1,1),(0,0)}"},
	"numeric[]":  {"{NaN,1.50,Infinity,NULL}"},
	"date[]":     {`{infinity,"0044-03-15 BC"}`},
	"jsonb[]":    {`{null,NULL,"{\"a\": \"b\\\"\"}"}`},
	"bytea[]":    {`{"\\x00","\\x"}`},
	"int4range":  {"empty", "(,)", "[1,5)", "[1,)", "(,5)"},
	"numrange":   {"[1.50,2.00]", "(NaN,)", "[-Infinity,Infinity]", "empty"},
	"tsrange":    {`["2024-01-01 00:00:00",infinity)`, `("0044-03-15 00:00:00 BC",]`},
	"daterange":  {"[2024-01-01,infinity]", "[,2024-01-01)"},
	"tstzrange":  {`["2024-01-01 00:00:00+05",)`},
	"numrange[]": {`{empty,"[1,2)",NULL,"(,)"}`},
	"textspan":   {`["","a""b\\c,d)"]`, `[a,b]`, `["(","]"]`, `(,"NULL")`}, "floatspan": {"[-Infinity,NaN]", "[0.1,0.2)"}, "aspan": {"[1,2]"},
	"mood": {"sad", `o'k "x" \`, " ", ""}, "mood[]": {`{sad,"",NULL,"o'k \"x\" \\"}`},
	"pair": {`(1,"x""y")`, "(,)", `(5,"")`, `(5,"a,b) \\ (")`, `(-1," ")`}, "pair[]": {`{"(1,\"a\"\"b\")",NULL,"(,)"}`}, "one": {"()", `("")`, "(x)"},
	"nest":   {`("(1,""x"")","{1,NULL}","[2024-01-01,)",sad,"{""a"": ""b""}",1.50)`, "(,,,,,)"},
	"posint": {"5"}, "posint2": {"7"}, "posint2[]": {"{1,NULL}"}, "intlist": {"{1,2}", "{}"}, "apair": {"(1,x)"}, "apair[]": {`{"(1,x)"}`},
	"int4multirange": {"{}", "{[1,3),[5,)}", "{(,)}"}, "tsmultirange": {`{["2024-01-01 00:00:00",infinity)}`}, "textspan_multirange": {`{["a,","b}"],["c\"","d\\"]}`},
	"nummultirange": {"{[1.50,2.00],(3,NaN]}"}, "int4multirange[]": {`{"{[1,2),[3,4)}","{}",NULL}`},
	"hstore": {"", `"a"=>"1","b c"=>NULL,""=>"","q\"\\"=>"x,=>"`}, "hstore[]": {`{"\"a\"=>\"1\"",NULL}`}, "citext": {"MiXed"}, "citext[]": {"{A,b}"}, "ltree": {"a.b.c", ""},
	"cube": {"(1,2),(3,4)"},
}

func isTrue(t *testing.T, db *flotest.DB, sql string, args ...any) bool {
	t.Helper()
	return db.QueryString(t, sql, args...) == "t"
}

// oracleConn is a session that reads all of the types in binary, where they have it.
func oracleConn(t *testing.T, db *flotest.DB) *pgx.Conn {
	t.Helper()
	conn := db.Conn(t)
	raw := func(data []byte, v any) error {
		*v.(*any) = json.RawMessage(bytes.Clone(data))
		return nil
	}
	m := conn.TypeMap()
	m.RegisterType(&pgtype.Type{Name: "json", OID: pgtype.JSONOID, Codec: &pgtype.JSONCodec{Marshal: json.Marshal, Unmarshal: raw}})
	m.RegisterType(&pgtype.Type{Name: "jsonb", OID: pgtype.JSONBOID, Codec: &pgtype.JSONBCodec{Marshal: json.Marshal, Unmarshal: raw}})
	ranges, _ := m.TypeForOID(pgtype.Int4multirangeOID)
	m.RegisterType(&pgtype.Type{Name: "_int4multirange", OID: 6150, Codec: &pgtype.ArrayCodec{ElementType: ranges}})
	for _, oid := range []uint32{pgtype.JSONOID, pgtype.JSONBOID} {
		elem, _ := m.TypeForOID(oid)
		array := map[uint32]uint32{pgtype.JSONOID: pgtype.JSONArrayOID, pgtype.JSONBOID: pgtype.JSONBArrayOID}[oid]
		m.RegisterType(&pgtype.Type{Name: "_" + elem.Name, OID: array, Codec: &pgtype.ArrayCodec{ElementType: elem}})
	}
	names := []string{"mood", "_mood", "pair", "_pair", "one", "nest", "textspan", "floatspan", "textspan_multirange", "posint", "posint2", "_posint2", "apair", "_apair",
		"_hstore", "_citext"}
	for name, codec := range map[string]pgtype.Codec{"hstore": pgtype.HstoreCodec{}, "citext": pgtype.TextCodec{}, "ltree": pgtype.LtreeCodec{}} {
		var oid *uint32
		if err := conn.QueryRow(t.Context(), "SELECT to_regtype($1)::oid", name).Scan(&oid); err != nil {
			t.Fatal(err)
		}
		if oid != nil {
			m.RegisterType(&pgtype.Type{Name: name, OID: *oid, Codec: codec})
		}
	}
	for _, name := range names {
		if !isTrue(t, db, "SELECT to_regtype($1) IS NOT NULL", name) {
			continue
		}
		typ, err := conn.LoadType(t.Context(), name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		m.RegisterType(typ)
	}
	return conn
}

// describedType gives a type as a worker knows it: from what the replicator reads and sends.
func describedType(t *testing.T, conn *pgx.Conn, name string) *decode.Type {
	t.Helper()
	var oid uint32
	if err := conn.QueryRow(t.Context(), "SELECT $1::regtype::oid", name).Scan(&oid); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	d, err := source.Describe(t.Context(), conn, 0, []uint32{oid})
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	p := decode.NewParser()
	if err := p.DescribeJSON(data); err != nil {
		t.Fatal(err)
	}
	rel, err := p.Relation(decode.AppendRelation(nil, &decode.Relation{Schema: "s", Name: "t", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "c", Type: &decode.Type{OID: oid}}}}))
	if err != nil {
		t.Fatal(err)
	}
	return rel.Columns[0].Type
}

// TestAnyEqualsWhatPgxReadsInBinary proves that Value.Any of PostgreSQL's text is what pgx makes of
// the same value in binary.
func TestAnyEqualsWhatPgxReadsInBinary(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, oracleTypes)
	for _, name := range []string{"hstore", "citext", "ltree", "cube"} {
		if isTrue(t, db, "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = $1)", name) {
			db.Exec(t, "CREATE EXTENSION "+name)
		}
	}
	conn := oracleConn(t, db)
	for name, literals := range oracleValues {
		base := strings.TrimSuffix(name, "[]")
		if !isTrue(t, db, "SELECT to_regtype($1) IS NOT NULL", base) {
			t.Logf("%s: this server doesn't have it", name)
			continue
		}
		t.Run(name, func(t *testing.T) {
			typ := describedType(t, conn, name)
			for _, s := range literals {
				compareWithBinary(t, conn, typ, name, s)
			}
		})
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for name, random := range randomLiterals {
		t.Run("random "+name, func(t *testing.T) {
			typ := describedType(t, conn, name)
			for range 60 {
				compareWithBinary(t, conn, typ, name, random(rnd))
			}
		})
	}
}

// randomLiterals make literals that the type takes.
var randomLiterals = map[string]func(*rand.Rand) string{
	"numeric": randomNumeric,
	"float8":  func(r *rand.Rand) string { return strconv.FormatFloat(math.Float64frombits(r.Uint64()), 'g', -1, 64) },
	"float4": func(r *rand.Rand) string {
		return strconv.FormatFloat(float64(math.Float32frombits(r.Uint32())), 'g', -1, 32)
	},
	"int8":        func(r *rand.Rand) string { return strconv.FormatInt(int64(r.Uint64()), 10) },
	"date":        func(r *rand.Rand) string { return fmt.Sprintf("J%d", r.IntN(2147483494)) },
	"timestamptz": randomTimestamp,
	"timestamp":   randomTimestamp,
	"interval": func(r *rand.Rand) string {
		return fmt.Sprintf("%d mons %d days %d microseconds", int32(r.Uint32()), int32(r.Uint32()), int64(r.Uint64()))
	},
	"time": func(r *rand.Rand) string {
		return fmt.Sprintf("%02d:%02d:%02d.%06d", r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(1e6))
	},
	"bytea": func(r *rand.Rand) string { return fmt.Sprintf(`\x%x`, randomText(r)) },
	"varbit": func(r *rand.Rand) string {
		return strings.Repeat("0", r.IntN(9)) + strconv.FormatInt(int64(r.Uint32()), 2)
	},
	"text[]": func(r *rand.Rand) string { return randomArray(r, r.IntN(4)) },
	"pair": func(r *rand.Rand) string {
		return "(" + strconv.Itoa(r.IntN(9)) + "," + quoteLiteral(randomText(r)) + ")"
	},
	"textspan":  func(r *rand.Rand) string { return "[" + quoteLiteral(randomText(r)) + ",)" },
	"numrange":  func(r *rand.Rand) string { return "(" + randomNumeric(r) + ",Infinity]" },
	"inet":      randomInet,
	"pg_lsn":    func(r *rand.Rand) string { return decode.LSN(r.Uint64() >> r.IntN(64)).String() },
	"pair[]":    func(r *rand.Rand) string { return "{" + quoteLiteral("(1,"+quoteLiteral(randomText(r))+")") + ",NULL}" },
	"numeric[]": func(r *rand.Rand) string { return "{{" + randomNumeric(r) + "},{" + randomNumeric(r) + "}}" },
}

func randomNumeric(r *rand.Rand) string {
	digits := make([]byte, 1+r.IntN(60))
	for i := range digits {
		digits[i] = byte('0' + r.IntN(10)*r.IntN(2))
	}
	s := string(digits) + fmt.Sprintf("e%d", r.IntN(120)-60)
	if r.IntN(2) == 0 {
		s = "-" + s
	}
	return s
}

func randomTimestamp(r *rand.Rand) string {
	bc := ""
	year := 1 + r.IntN(294275)
	if r.IntN(2) == 0 {
		year, bc = 1+r.IntN(4712), " BC"
	}
	return fmt.Sprintf("%04d-%02d-%02d %02d:%02d:%02d.%06d%s", year, 1+r.IntN(12), 1+r.IntN(28), r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(2)*r.IntN(1e6), bc)
}

func randomInet(r *rand.Rand) string {
	if r.IntN(2) == 0 {
		return fmt.Sprintf("%d.%d.%d.%d/%d", r.IntN(256), r.IntN(256), r.IntN(256), r.IntN(256), r.IntN(33))
	}
	var b [16]byte
	for i := range b {
		b[i] = byte(r.IntN(256) * r.IntN(2))
	}
	return fmt.Sprintf("%s/%d", netip.AddrFrom16(b), r.IntN(129))
}

// randomText is full of what the text of nested types has to quote.
func randomText(r *rand.Rand) string {
	const alphabet = `"'\,;(){}[] =>NULaé€😀` + "\t\n\r\v"
	runes := []rune(alphabet)
	s := make([]rune, r.IntN(8))
	for i := range s {
		s[i] = runes[r.IntN(len(runes))]
	}
	return string(s)
}

func quoteLiteral(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

func randomArray(r *rand.Rand, depth int) string {
	parts := make([]string, 2)
	for i := range parts {
		switch {
		case depth > 0:
			parts[i] = randomArray(rand.New(rand.NewPCG(r.Uint64(), 0)), depth-1)
		case r.IntN(5) == 0:
			parts[i] = "NULL"
		default:
			parts[i] = quoteLiteral(randomText(r))
		}
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// compareWithBinary reads the literal's value in text and in binary.
func compareWithBinary(t *testing.T, conn *pgx.Conn, typ *decode.Type, name, literal string) {
	t.Helper()
	sql := "SELECT $1::text::" + name
	if name == "cid" || name == "xml" || name == "regtype" {
		sql = "SELECT CAST('" + strings.ReplaceAll(literal, "'", "''") + "' AS " + name + ")"
	}
	args := []any{literal}
	if !strings.Contains(sql, "$1") {
		args = nil
	}
	if name == "interval" && strings.HasSuffix(literal, "microseconds") {
		// PostgreSQL 14 reads units of time by way of a double, and refuses the largest that it can hold.
		if _, err := conn.Exec(t.Context(), sql, literal); pgsession.SQLState(err) == "22015" && pgsession.Version(conn.PgConn()) < 150000 {
			return
		}
	}
	text := readRaw(t, conn, sql, append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...))
	got, err := decode.TextValue(typ, text).Any()
	if err != nil {
		t.Errorf("%s %q (text %q): %v", name, literal, text, err)
		return
	}
	want, err := readBinary(conn, t, sql, args)
	if err != nil {
		t.Errorf("%s %q: oracle: %v", name, literal, err)
		return
	}
	if !equalToOracle(got, want) {
		t.Errorf("%s %q (text %q):\n%#v, oracle\n%#v", name, literal, text, got, want)
	}
}

func readRaw(t *testing.T, conn *pgx.Conn, sql string, args []any) []byte {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	if !rows.Next() {
		t.Fatalf("%s %q: %v", sql, args, rows.Err())
	}
	return append([]byte{}, rows.RawValues()[0]...)
}

// readBinary scans arrays with their dimensions, all else as pgx likes.
func readBinary(conn *pgx.Conn, t *testing.T, sql string, args []any) (any, error) {
	rows, err := conn.Query(t.Context(), sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	if !rows.Next() {
		return nil, rows.Err()
	}
	if typ, ok := conn.TypeMap().TypeForOID(rows.FieldDescriptions()[0].DataTypeOID); ok {
		if _, ok := typ.Codec.(*pgtype.ArrayCodec); ok {
			var a pgtype.Array[any]
			err := rows.Scan(&a)
			return a, err
		}
	}
	values, err := rows.Values()
	if err != nil {
		return nil, err
	}
	return values[0], nil
}

// equalToOracle compares by meaning: pgx has other Go types for some.
func equalToOracle(got, want any) bool {
	switch got := got.(type) {
	case pgtype.Numeric:
		want, ok := want.(pgtype.Numeric)
		return ok && equalNumeric(got, want)
	case float64:
		want, ok := want.(float64)
		return ok && math.Float64bits(got) == math.Float64bits(want) || ok && got != got && want != want
	case float32:
		want, ok := want.(float32)
		return ok && math.Float32bits(got) == math.Float32bits(want) || ok && got != got && want != want
	case time.Time:
		want, ok := want.(time.Time)
		return ok && got.Equal(want) && got.Location() == time.UTC
	case time.Duration:
		want, ok := want.(pgtype.Time)
		return ok && got == time.Duration(want.Microseconds)*time.Microsecond
	case decode.LSN:
		return want == got.String()
	case net.HardwareAddr:
		want, ok := want.(net.HardwareAddr)
		return ok && bytes.Equal(got, want)
	case pgtype.Array[any]:
		if flat, ok := want.([]any); ok { // inside a composite: dimensions are lost
			return slices.EqualFunc(got.Elements, flat, equalToOracle)
		}
		want, ok := want.(pgtype.Array[any])
		return ok && slices.EqualFunc(got.Elements, want.Elements, equalToOracle) && slices.Equal(got.Dims, want.Dims)
	case pgtype.Range[any]:
		want, ok := want.(pgtype.Range[any])
		return ok && got.LowerType == want.LowerType && got.UpperType == want.UpperType && got.Valid && want.Valid &&
			equalToOracle(got.Lower, want.Lower) && equalToOracle(got.Upper, want.Upper)
	case pgtype.Multirange[pgtype.Range[any]]:
		want, ok := want.(pgtype.Multirange[pgtype.Range[any]])
		return ok && slices.EqualFunc(got, want, func(a, b pgtype.Range[any]) bool { return equalToOracle(a, b) })
	case map[string]any:
		want, ok := want.(map[string]any)
		if !ok || len(got) != len(want) {
			return false
		}
		for k, v := range got {
			if w, ok := want[k]; !ok || !equalToOracle(v, w) {
				return false
			}
		}
		return true
	case string:
		switch want := want.(type) {
		case rune: // "char"
			return got == string(want)
		case []byte: // xml
			return got == string(want)
		}
	case pgtype.Point:
		want, ok := want.(pgtype.Point)
		return ok && equalToOracle(got.P.X, want.P.X) && equalToOracle(got.P.Y, want.P.Y)
	}
	return reflect.DeepEqual(got, want)
}

func equalNumeric(a, b pgtype.Numeric) bool {
	if a.NaN || b.NaN || a.InfinityModifier != 0 || b.InfinityModifier != 0 {
		return a.NaN == b.NaN && a.InfinityModifier == b.InfinityModifier
	}
	rat := func(n pgtype.Numeric) *big.Rat {
		r, _ := new(big.Rat).SetString(fmt.Sprintf("%se%d", n.Int, n.Exp))
		return r
	}
	return rat(a).Cmp(rat(b)) == 0
}
