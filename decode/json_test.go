package decode_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
)

func tx() *decode.Tx {
	return &decode.Tx{XID: 7, CommitLSN: 0x16B3748, EndLSN: 0x16B3800, CommitTime: time.Date(2024, 2, 29, 12, 0, 0, 123456000, time.FixedZone("", 3600))}
}

const position = `"lsn":"0/16B3748","ordinal":3,"xid":7,"commit_time":"2024-02-29T11:00:00.123456Z"`

func row(values ...any) decode.Row {
	rel, r := users(), decode.Row{}
	for i, v := range values {
		typ := rel.Columns[i].Type
		switch v := v.(type) {
		case string:
			r = append(r, decode.TextValue(typ, []byte(v)))
		case nil:
			r = append(r, decode.NullValue(typ))
		case decode.Value:
			r = append(r, v)
		}
	}
	return r
}

func TestChangeJSON(t *testing.T) {
	unchanged := decode.UnchangedValue(decode.BuiltinType(25))
	full := users()
	full.Identity = decode.IdentityFull
	for i := range full.Columns {
		full.Columns[i].Key = true
	}
	odd := &decode.Relation{Schema: `a"b`, Name: "c\nd\\é", Columns: []decode.Column{{Name: "\x01\xff"}}}
	withOrigin := tx()
	withOrigin.Origin = "else"
	for _, c := range []struct {
		name   string
		change decode.Change
		want   string
	}{
		{"insert", decode.Change{Op: decode.OpInsert, Tx: tx(), Ordinal: 3, Relation: users(), New: row("1", nil, "sad")},
			`{"op":"insert","schema":"public","table":"users","key":{"id":1},"new":{"id":1,"name":null,"mood":"sad"},` + position + `}`},
		{"key change with unchanged", decode.Change{Op: decode.OpUpdate, Tx: tx(), Ordinal: 3, Relation: users(), OldKey: true,
			Old: row("1", decode.Value{}, decode.Value{}), New: row("2", unchanged, unchanged)},
			`{"op":"update","schema":"public","table":"users","key":{"id":2},"new":{"id":2},"old":{"id":1},"unchanged":["name","mood"],` + position + `}`},
		{"unchanged key from old", decode.Change{Op: decode.OpUpdate, Relation: users(), OldKey: true,
			Old: row("1", decode.Value{}, decode.Value{}), New: row(decode.UnchangedValue(decode.BuiltinType(23)), "x", nil)},
			`{"op":"update","schema":"public","table":"users","key":{"id":1},"new":{"name":"x","mood":null},"old":{"id":1},"unchanged":["id"]}`},
		{"delete", decode.Change{Op: decode.OpDelete, Tx: withOrigin, Ordinal: 3, Relation: users(), OldKey: true, Old: row("1", decode.Value{}, decode.Value{})},
			`{"op":"delete","schema":"public","table":"users","key":{"id":1},"old":{"id":1},` + position + `,"origin":"else"}`},
		{"full identity", decode.Change{Op: decode.OpDelete, Relation: full, Old: row("1", "", nil)},
			`{"op":"delete","schema":"public","table":"users","old":{"id":1,"name":"","mood":null}}`},
		{"copied row", decode.Change{Op: decode.OpInsert, Relation: users(), New: row("1", nil, nil), Copy: &decode.CopyID{Point: 0x1600000000, Table: 20000, Attempt: 1, Range: 2, Row: 3}},
			`{"op":"insert","schema":"public","table":"users","key":{"id":1},"new":{"id":1,"name":null,"mood":null},"copy":"16/0:20000:1:2:3"}`},
		{"odd names", decode.Change{Op: decode.OpInsert, Relation: odd, New: decode.Row{decode.TextValue(nil, []byte("x"))}},
			`{"op":"insert","schema":"a\"b","table":"c\nd\\é","new":{"\u0001` + "\uFFFD" + `":"x"}}`},
		{"no columns", decode.Change{Op: decode.OpInsert, Relation: &decode.Relation{Schema: "s", Name: "t"}, New: decode.Row{}},
			`{"op":"insert","schema":"s","table":"t","new":{}}`},
		{"truncate", decode.Change{Op: decode.OpTruncate, Tx: tx(), Ordinal: 3, Truncate: &decode.Truncate{Relations: []*decode.Relation{users(), odd}, Cascade: true}},
			`{"op":"truncate","tables":[{"schema":"public","table":"users"},{"schema":"a\"b","table":"c\nd\\é"}],"cascade":true,"restart_identity":false,` + position + `}`},
		{"message", decode.Change{Op: decode.OpMessage, Tx: tx(), Ordinal: 3, Message: &decode.Message{Prefix: "p", Content: []byte("\x00\xff\n"), Transactional: true}},
			`{"op":"message","prefix":"p","content":"AP8K","transactional":true,` + position + `}`},
		{"schema", decode.Change{Op: decode.OpSchema, Tx: tx(), Ordinal: 3, Schema: &decode.SchemaChange{Tag: "ALTER TABLE", Query: "ALTER\nTABLE x"}},
			`{"op":"schema","tag":"ALTER TABLE","query":"ALTER\nTABLE x",` + position + `}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.change.AppendJSON([]byte("> "))
			if err != nil || string(got) != "> "+c.want {
				t.Errorf("got\n%s, %v, want\n> %s", got, err, c.want)
			}
			if !json.Valid([]byte(c.want)) {
				t.Error("not JSON")
			}
			if _, err := json.Marshal(&c.change); err != nil {
				t.Errorf("Marshal: %v", err)
			}
		})
	}
}

func TestChangeJSONRefusesWhatIsNotWhole(t *testing.T) {
	for name, c := range map[string]decode.Change{
		"no operation": {Relation: users()},
		"no relation":  {Op: decode.OpInsert, New: row("1")},
		"short row":    {Op: decode.OpInsert, Relation: users(), New: row("1")},
		"long old row": {Op: decode.OpDelete, Relation: texts(1), Old: row("1", nil, nil)},
		"no truncate":  {Op: decode.OpTruncate},
		"no message":   {Op: decode.OpMessage},
		"no schema":    {Op: decode.OpSchema},
	} {
		if got, err := c.AppendJSON([]byte("kept")); err == nil || string(got) != "kept" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestValueJSON(t *testing.T) {
	domain := func(base *decode.Type) *decode.Type {
		return &decode.Type{OID: 30000, Schema: "public", Name: "d", Kind: decode.DomainType, Elem: base}
	}
	named := func(oid uint32) *decode.Type { return decode.BuiltinType(oid) }
	big := strings.Repeat("deadbeef", 1000)
	raw, _ := json.Marshal(bytes.Repeat([]byte{0xde, 0xad, 0xbe, 0xef}, 1000))
	for _, c := range []struct {
		typ        *decode.Type
		text, want string
	}{
		{named(21), "-32768", `-32768`},
		{named(20), "9223372036854775807", `9223372036854775807`},
		{named(26), "4294967295", `4294967295`},
		{named(1700), "123456789012345678901234567890.1234567890000", `123456789012345678901234567890.1234567890000`},
		{named(1700), "0.00", `0.00`},
		{named(1700), "NaN", `"NaN"`},
		{named(701), "1e-300", `1e-300`},
		{named(701), "1.7976931348623157e+308", `1.7976931348623157e+308`},
		{named(701), "-Infinity", `"-Infinity"`},
		{named(700), "-0", `-0`},
		{named(23), "01", `"01"`},
		{named(23), "1.", `"1."`},
		{named(23), "1e", `"1e"`},
		{named(23), "-", `"-"`},
		{named(23), "", `""`},
		{named(23), "1,2", `"1,2"`},
		{named(16), "t", `true`},
		{named(16), "f", `false`},
		{named(16), "yes", `"yes"`},
		{named(3802), `{"a": 1.00, "b": [1, "x  y\" z"]}`, `{"a":1.00,"b":[1,"x  y\" z"]}`},
		{named(114), "{\n \"a\" :\t1e400,\r\"a\": \"\\u0000\\\\\" }", `{"a":1e400,"a":"\u0000\\"}`},
		{named(114), `"\\"`, `"\\"`},
		{named(114), "null", `null`},
		{named(114), "{", `"{"`},
		{named(114), "\"\xff\"", "\"\uFFFD\""},
		{named(17), `\x`, `""`},
		{named(17), `\xdeadBEEF`, `"3q2+7w=="`},
		{named(17), `\x` + big, string(raw)},
		{named(17), `\x0`, `"\\x0"`},
		{named(17), `\xzz`, `"\\xzz"`},
		{named(17), `abc`, `"abc"`},
		{named(1007), `{1,NULL,3}`, `"{1,NULL,3}"`},
		{named(790), `$1.00`, `"$1.00"`},
		{named(1184), `2024-02-29 12:00:00+00`, `"2024-02-29 12:00:00+00"`},
		{named(25), "a\"\\\n\r\t\x00\x1f\x7f/<é€😀\u2028", `"a\"\\\n\r\t\u0000\u001f` + "\x7f/<é€😀\u2028" + `"`},
		{named(25), "\xff\xc3\xe2\x82x\xed\xa0\x80", "\"\uFFFD\uFFFD\uFFFD\uFFFDx\uFFFD\uFFFD\uFFFD\""},
		{domain(named(23)), "5", `5`},
		{domain(domain(named(3802))), "[ ]", `[]`},
		{domain(nil), "5", `"5"`},
		{&decode.Type{OID: 30000, Schema: "pg_catalog", Name: "int4"}, "5", `5`}, // a domain known by its Type message
		{&decode.Type{OID: 30000, Schema: "public", Name: "int4"}, "5", `"5"`},
		{&decode.Type{OID: 30000, Schema: "public", Name: "mood", Kind: decode.EnumType}, "sad", `"sad"`},
		{nil, "5", `"5"`},
	} {
		rel := texts(1)
		change := decode.Change{Op: decode.OpInsert, Relation: rel, New: decode.Row{decode.TextValue(c.typ, []byte(c.text))}}
		got, err := change.AppendJSON(nil)
		want := `{"op":"insert","schema":"public","table":"texts","new":{"c0":` + c.want + `}}`
		if err != nil || string(got) != want {
			t.Errorf("%+v %q:\n%s, %v, want\n%s", c.typ, c.text, got, err, want)
		}
		if !json.Valid(got) || bytes.ContainsAny(got, "\n\r") {
			t.Errorf("%q: not one line of JSON: %s", c.text, got)
		}
	}
}

func TestMarshalledRowKeepsItsValues(t *testing.T) {
	got, err := json.Marshal(decode.Row{builtin(1700, "1.50"), decode.NullValue(nil), builtin(25, "x")})
	if err != nil || string(got) != `[1.50,null,"x"]` {
		t.Errorf("%s, %v", got, err)
	}
	for _, v := range []decode.Value{{}, decode.UnchangedValue(nil)} {
		if got, err := json.Marshal(v); !errors.Is(err, decode.ErrNoValue) {
			t.Errorf("%s became %s, %v", v.Presence(), got, err)
		}
	}
}

// TestCyclicDomainEnds proves that a type made by hand, a domain over itself, does not hang.
func TestCyclicDomainEnds(t *testing.T) {
	d := &decode.Type{Kind: decode.DomainType}
	d.Elem = d
	c := decode.Change{Op: decode.OpInsert, Relation: texts(1), New: decode.Row{decode.TextValue(d, []byte("1"))}}
	if _, err := c.AppendJSON(nil); err != nil {
		t.Error(err)
	}
}

func TestRandomTextIsOneLineOfJSON(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	const alphabet = "{}[]\",:\\ \n\t\r0123eE+-.tfnulxé\xff\x00\xe2\x82"
	types := []uint32{23, 1700, 16, 114, 3802, 17, 25, 1007}
	for range 20000 {
		b := make([]byte, rnd.IntN(10))
		for i := range b {
			b[i] = alphabet[rnd.IntN(len(alphabet))]
		}
		typ := decode.BuiltinType(types[rnd.IntN(len(types))])
		c := decode.Change{Op: decode.OpInsert, Relation: texts(1), New: decode.Row{decode.TextValue(typ, b)}}
		got, err := c.AppendJSON(nil)
		if err != nil || !json.Valid(got) || bytes.ContainsAny(got, "\n\r") {
			t.Fatalf("%s %q: %s, %v", typ.Name, b, got, err)
		}
		if typ.OID == 25 {
			var back struct{ New map[string]string }
			if err := json.Unmarshal(got, &back); err != nil || back.New["c0"] != toValid(b) {
				t.Fatalf("%q read back as %q (%v)", b, back.New["c0"], err)
			}
		}
	}
}

// toValid replaces every single byte that isn't UTF-8, as ranging over a string does.
func toValid(b []byte) string { return string([]rune(string(b))) }

// TestJSONOfCapturedChanges proves that what PostgreSQL sends becomes JSON, numbers and bytes intact.
func TestJSONOfCapturedChanges(t *testing.T) {
	p, n := decode.NewParser(), 0
	for _, f := range captured(t) {
		if !strings.ContainsRune("IUDTM", rune(f[0])) {
			if err := feed(p, f); err != nil {
				t.Fatal(err)
			}
			continue
		}
		c, err := p.Change(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.AppendJSON(nil)
		if err != nil || !json.Valid(out) || bytes.ContainsAny(out, "\n\r") {
			t.Fatalf("%s, %v", out, err)
		}
		if n++; n == 1 {
			want := `{"op":"insert","schema":"public","table":"plain","key":{"id":1},"new":{"id":1,"name":"one","price":1.50,"ok":true,` +
				`"doc":{"a":1.0,"b":[1,2]},"raw":"` + base64.StdEncoding.EncodeToString([]byte{0xde, 0xad, 0xbe, 0xef}) +
				`","list":"{1,NULL,3}","at":"2024-02-29 12:00:00.123456+00"}}`
			if string(out) != want {
				t.Errorf("got\n%s, want\n%s", out, want)
			}
		}
	}
}

func ExampleChange_AppendJSON() {
	rel := &decode.Relation{Schema: "public", Name: "users", Identity: decode.IdentityDefault, Columns: []decode.Column{
		{Name: "id", Type: decode.BuiltinType(20), Key: true},
		{Name: "bio", Type: decode.BuiltinType(25)},
	}}
	c := decode.Change{
		Op: decode.OpUpdate, Relation: rel, Ordinal: 1,
		Tx:  &decode.Tx{XID: 733, CommitLSN: 0x16B3748, CommitTime: time.Unix(1700000000, 0)},
		New: decode.Row{decode.TextValue(rel.Columns[0].Type, []byte("42")), decode.UnchangedValue(rel.Columns[1].Type)},
	}
	line, err := c.AppendJSON(nil)
	fmt.Println(string(line), err)
	// Output: {"op":"update","schema":"public","table":"users","key":{"id":42},"new":{"id":42},"unchanged":["bio"],"lsn":"0/16B3748","ordinal":1,"xid":733,"commit_time":"2023-11-14T22:13:20Z"} <nil>
}
