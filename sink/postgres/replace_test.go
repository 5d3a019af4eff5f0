package postgres

import (
	"testing"

	"github.com/pgflo/flo/decode"
)

// instead is an insert that takes the place of the row with the old key, as rules.Where makes it.
func instead(r *decode.Relation, old string, values ...any) *decode.Change {
	c := insert(r, values...)
	c.Old, c.OldKey = make(decode.Row, len(values)), true
	c.Old[0] = decode.TextValue(r.Columns[0].Type, []byte(old))
	return c
}

func TestAnInsertTakesThePlaceOfTheRowThatItsOldNames(t *testing.T) {
	for name, key := range map[string]string{
		"by the primary key": "PRIMARY KEY", "by a deferrable one": "PRIMARY KEY DEFERRABLE", "without an index": "", "by an identity": "GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, `CREATE TABLE t (k int `+key+`, v text)`)
			kv := rel("t", "*k", "v")
			r.apply(insert(kv, "1", "a"), insert(kv, "2", "b"))
			r.apply(instead(kv, "1", "1", "same key"), instead(kv, "2", "3", "other key"), instead(kv, "4", "4", "nobody's place"), instead(kv, "5", "6", "nobody's either"))
			r.want("SELECT k, v FROM t ORDER BY k", is("1", "same key"), is("3", "other key"), is("4", "nobody's place"), is("6", "nobody's either"))
		})
	}
}
