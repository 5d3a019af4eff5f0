package records

import (
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
)

var text = &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}

func change(op decode.Op) *decode.Change {
	rel := &decode.Relation{Schema: "public", Name: "t", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}
	c := &decode.Change{Op: op, Relation: rel, Tx: &decode.Tx{CommitLSN: 1}, Ordinal: 1, New: decode.Row{decode.TextValue(text, []byte("b\n}\n"))}}
	if op == decode.OpUpdate {
		c.Old, c.OldKey = decode.Row{decode.TextValue(text, []byte("a"))}, true
	}
	return c
}

func TestObjectsBeginAndEndWhereTheyShould(t *testing.T) {
	for name, enc := range map[string]decode.Encoder{"flo": decode.JSON, "debezium": decode.Debezium("x")} {
		for _, pretty := range []bool{false, true} {
			f := NewFormat(enc, pretty)
			got, n, err := f.Append([]byte("before\n"), change(decode.OpUpdate))
			want := map[string]int{"flo": 1, "debezium": 2}[name] // the key changes
			if err != nil || n != want {
				t.Fatalf("%s: %d objects, %v", name, n, err)
			}
			text, _ := strings.CutPrefix(string(got), "before\n")
			if strings.Count("\n"+text, "\n"+f.Prefix()) != n || strings.Count(text, "}\n") < n || !strings.HasSuffix(text, "}\n") {
				t.Errorf("%s, pretty %v:\n%s", name, pretty, text)
			}
			if pretty && strings.Count(text, "\n}\n") != n {
				t.Errorf("%s:\n%s", name, text)
			}
		}
	}
}

func TestNothingIsAppendedOnAnError(t *testing.T) {
	for _, pretty := range []bool{false, true} {
		got, n, err := NewFormat(decode.JSON, pretty).Append([]byte("before"), &decode.Change{Op: 99})
		if err == nil || n != 0 || string(got) != "before" {
			t.Errorf("%q, %d objects, %v", got, n, err)
		}
	}
}

func TestEnvelopeWithoutAnObject(t *testing.T) {
	none := func(dst []byte, _ *decode.Change) ([]byte, error) { return dst, nil }
	for _, pretty := range []bool{false, true} {
		if got, n, err := NewFormat(none, pretty).Append(nil, change(decode.OpInsert)); len(got) != 0 || n != 0 || err != nil {
			t.Errorf("%q, %d, %v", got, n, err)
		}
	}
}
