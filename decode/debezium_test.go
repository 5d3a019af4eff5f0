package decode_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
)

func atNoon() time.Time { return time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC) }

func debezium() decode.Encoder {
	return decode.Debezium("shop", decode.DebeziumDatabase("app"), decode.DebeziumClock(atNoon))
}

// debeziumSource is the end of an event of tx(), ordinal 3.
func debeziumSource(table string) string {
	return `"source":{"version":"(devel)","connector":"flo","name":"shop","ts_ms":1709204400123,"snapshot":"false","db":"app",` + table +
		`,"txId":7,"lsn":23803720,"ordinal":3},"ts_ms":1709294400000}`
}

func TestDebeziumEnvelope(t *testing.T) {
	unchanged := decode.UnchangedValue(decode.BuiltinType(25))
	ofUsers := debeziumSource(`"schema":"public","table":"users"`)
	for _, c := range []struct {
		name   string
		change decode.Change
		want   string
	}{
		{"insert", decode.Change{Op: decode.OpInsert, Relation: users(), New: row("1", nil, "sad")},
			`{"op":"c","before":null,"after":{"id":1,"name":null,"mood":"sad"},` + ofUsers},
		{"update with unchanged", decode.Change{Op: decode.OpUpdate, Relation: users(), New: row("1", unchanged, "sad")},
			`{"op":"u","before":null,"after":{"id":1,"name":"__debezium_unavailable_value","mood":"sad"},` + ofUsers},
		{"key change", decode.Change{Op: decode.OpUpdate, Relation: users(), OldKey: true, Old: row("1", decode.Value{}, decode.Value{}), New: row("2", unchanged, nil)},
			`{"op":"d","before":{"id":1},"after":null,` + ofUsers + "\n" +
				`{"op":"c","before":null,"after":{"id":2,"name":"__debezium_unavailable_value","mood":null},` + ofUsers},
		{"insert in the place of another key", decode.Change{Op: decode.OpInsert, Relation: users(), OldKey: true, Old: row("1", decode.Value{}, decode.Value{}), New: row("2", nil, nil)},
			`{"op":"d","before":{"id":1},"after":null,` + ofUsers + "\n" +
				`{"op":"c","before":null,"after":{"id":2,"name":null,"mood":null},` + ofUsers},
		{"insert over its own key", decode.Change{Op: decode.OpInsert, Relation: users(), OldKey: true, Old: row("1", decode.Value{}, decode.Value{}), New: row("1", nil, nil)},
			`{"op":"c","before":null,"after":{"id":1,"name":null,"mood":null},` + ofUsers},
		{"large key unchanged", decode.Change{Op: decode.OpUpdate, Relation: users(), OldKey: true, Old: row("1", decode.Value{}, decode.Value{}),
			New: row(decode.UnchangedValue(decode.BuiltinType(23)), "", nil)},
			`{"op":"u","before":{"id":1},"after":{"id":"__debezium_unavailable_value","name":"","mood":null},` + ofUsers},
		{"delete", decode.Change{Op: decode.OpDelete, Relation: users(), Old: row("1", "x", nil)},
			`{"op":"d","before":{"id":1,"name":"x","mood":null},"after":null,` + ofUsers},
		{"truncate", decode.Change{Op: decode.OpTruncate, Truncate: &decode.Truncate{Relations: []*decode.Relation{users(), texts(1)}}},
			`{"op":"t","before":null,"after":null,` + ofUsers + "\n" +
				`{"op":"t","before":null,"after":null,` + debeziumSource(`"schema":"public","table":"texts"`)},
		{"message", decode.Change{Op: decode.OpMessage, Message: &decode.Message{Prefix: "p", Content: []byte{0, 255}, Transactional: true}},
			`{"op":"m","message":{"transactional":true,"prefix":"p","content":"AP8="},` + debeziumSource(`"schema":"","table":""`)},
		{"schema", decode.Change{Op: decode.OpSchema, Schema: &decode.SchemaChange{Tag: "DROP TABLE", Query: "DROP\nTABLE x"}},
			`{"op":"s","tag":"DROP TABLE","ddl":"DROP\nTABLE x",` + debeziumSource(`"schema":"","table":""`)},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.change.Tx, c.change.Ordinal = tx(), 3
			got, err := debezium()([]byte("> "), &c.change)
			if err != nil || string(got) != "> "+c.want {
				t.Errorf("got\n%s, %v, want\n> %s", got, err, c.want)
			}
			for line := range bytes.Lines([]byte(c.want)) {
				if !json.Valid(line) || !bytes.HasPrefix(line, []byte(`{"op":"`)) {
					t.Errorf("no object that begins with op: %s", line)
				}
			}
		})
	}
}

func TestDebeziumCopiedRow(t *testing.T) {
	c := decode.Change{Op: decode.OpInsert, Relation: users(), New: row("1", nil, nil), Copy: &decode.CopyID{Point: 0x1600000000, Table: 20000, Attempt: 1, Range: 2, Row: 3}}
	want := `{"op":"r","before":null,"after":{"id":1,"name":null,"mood":null},"source":{"version":"(devel)","connector":"flo","name":"shop","ts_ms":null,` +
		`"snapshot":"true","db":"app","schema":"public","table":"users","txId":null,"lsn":94489280512,"copy":"16/0:20000:1:2:3"},"ts_ms":1709294400000}`
	if got, err := debezium()(nil, &c); err != nil || string(got) != want {
		t.Errorf("got\n%s, %v, want\n%s", got, err, want)
	}
}

func TestDebeziumRefusesWhatIsNotWhole(t *testing.T) {
	for name, c := range map[string]decode.Change{
		"no operation": {Relation: users()},
		"no relation":  {Op: decode.OpInsert, New: row("1")},
		"short row":    {Op: decode.OpInsert, Relation: users(), New: row("1")},
		"no truncate":  {Op: decode.OpTruncate},
		"no message":   {Op: decode.OpMessage},
		"no schema":    {Op: decode.OpSchema},
	} {
		if got, err := debezium()([]byte("kept"), &c); err == nil || string(got) != "kept" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func ExampleDebezium() {
	rel := &decode.Relation{Schema: "public", Name: "users", Identity: decode.IdentityDefault, Columns: []decode.Column{
		{Name: "id", Type: decode.BuiltinType(20), Key: true},
		{Name: "bio", Type: decode.BuiltinType(25)},
	}}
	c := decode.Change{
		Op: decode.OpUpdate, Relation: rel, Ordinal: 1,
		Tx:  &decode.Tx{XID: 733, CommitLSN: 0x16B3748, CommitTime: time.Unix(1700000000, 0)},
		New: decode.Row{decode.TextValue(rel.Columns[0].Type, []byte("42")), decode.UnchangedValue(rel.Columns[1].Type)},
	}
	encode := decode.Debezium("shop", decode.DebeziumClock(func() time.Time { return time.Unix(1700000001, 0) }))
	line, err := encode(nil, &c)
	var event struct {
		Op     string
		After  map[string]any
		Source struct{ Table string }
		TsMs   int64 `json:"ts_ms"`
	}
	fmt.Println(err, json.Unmarshal(line, &event))
	fmt.Println(event)
	// Output:
	// <nil> <nil>
	// {u map[bio:__debezium_unavailable_value id:42] {users} 1700000001000}
}

func TestDebeziumValues(t *testing.T) {
	hstore := &decode.Type{OID: 30000, Schema: "public", Name: "hstore", Extension: "hstore"}
	deep := decode.TextValue(userType(decode.ArrayType, decode.BuiltinType(1082)), []byte("{2024-02-29,NULL,infinity}"))
	for _, c := range []struct {
		v        decode.Value
		modifier int32
		want     string
	}{
		{builtin(114, `{"a" : "b"}`), -1, `"{\"a\" : \"b\"}"`},
		{builtin(1082, "1969-12-31"), -1, `-1`},
		{builtin(1082, "4714-11-24 BC"), -1, `-2440588`},
		{builtin(1082, "infinity"), -1, `"infinity"`},
		{builtin(1114, "1970-01-01 00:00:01.5"), -1, `1500000`},
		{builtin(1114, "1969-12-31 23:59:59.999999"), 6, `-1`},
		{builtin(1114, "1970-01-01 00:00:01.5"), 3, `1500`},
		{builtin(1114, "294276-12-31 23:59:59.999999"), -1, `"294276-12-31 23:59:59.999999"`},
		{builtin(1184, "2024-02-29 12:00:00.5+00"), -1, `"2024-02-29T12:00:00.5Z"`},
		{builtin(1184, "0044-03-15 12:00:00+00 BC"), -1, `"0044-03-15 12:00:00+00 BC"`},
		{builtin(1083, "24:00:00"), -1, `86400000000`},
		{builtin(1083, "00:00:01"), 0, `1000`},
		{builtin(1266, "01:30:00.25+02"), -1, `"23:30:00.25Z"`},
		{builtin(1186, "1 year 2 mons 3 days 04:05:06.78"), -1, `"P1Y2M3DT4H5M6.78S"`},
		{builtin(1186, "-1 years -2 mons +3 days -00:00:00.000001"), -1, `"P-1Y-2M3DT0H0M-0.000001S"`},
		{builtin(1186, "infinity"), -1, `"infinity"`},
		{builtin(790, "-$1,234.50"), -1, `-1234.50`},
		{builtin(1700, "1.50"), -1, `1.50`},
		{builtin(1700, "NaN"), -1, `"NaN"`},
		{builtin(17, `\x00`), -1, `"AA=="`},
		{builtin(1007, "[0:1][3:4]={{1,NULL},{3,4}}"), -1, `[[1,null],[3,4]]`},
		{builtin(1007, "{{{1},{2}},{{3},{4}}}"), -1, `[[[1],[2]],[[3],[4]]]`},
		{builtin(1007, "{}"), -1, `[]`},
		{builtin(1007, "{"), -1, `"{"`},
		{builtin(1009, `{"a\"b"}`), -1, `["a\"b"]`},
		{builtin(1115, `{"1970-01-01 00:00:01"}`), 3, `[1000]`},
		{builtin(22, "1 2"), -1, `[1,2]`},
		{deep, -1, `[19782,null,"infinity"]`},
		{decode.TextValue(hstore, []byte(`"a"=>"1", "b"=>NULL`)), -1, `"{\"a\":\"1\",\"b\":null}"`},
		{decode.UnchangedValue(decode.BuiltinType(17)), -1, `"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="`},
		{decode.UnchangedValue(decode.BuiltinType(1009)), -1, `["__debezium_unavailable_value"]`},
		{decode.UnchangedValue(decode.BuiltinType(114)), -1, `"__debezium_unavailable_value"`},
		{decode.UnchangedValue(decode.BuiltinType(3802)), -1, `"__debezium_unavailable_value"`},
		{decode.UnchangedValue(&decode.Type{OID: 20000, Schema: "public", Name: "doc", Kind: decode.DomainType, Elem: decode.BuiltinType(3802)}), -1, `"__debezium_unavailable_value"`},
		{builtin(3802, `{"a": "__debezium_unavailable_value"}`), -1, `"{\"a\": \"__debezium_unavailable_value\"}"`},
		{decode.NullValue(decode.BuiltinType(3802)), -1, `null`},
	} {
		rel := &decode.Relation{Schema: "s", Name: "t", Columns: []decode.Column{{Name: "c", Type: c.v.Type(), Modifier: c.modifier}}}
		got, err := debezium()(nil, &decode.Change{Op: decode.OpInsert, Relation: rel, New: decode.Row{c.v}})
		want := `{"op":"c","before":null,"after":{"c":` + c.want + `},`
		if err != nil || !bytes.HasPrefix(got, []byte(want)) || !json.Valid(got) {
			t.Errorf("%s %q: %s, %v, want %s", c.v.Type().Name, c.v, got, err, want)
		}
	}
}
