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
