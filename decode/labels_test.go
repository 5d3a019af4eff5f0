package decode_test

import (
	"slices"
	"testing"

	"github.com/pgflo/flo/decode"
)

func TestLabelsMakeNewVersionsOfWhatHasTheType(t *testing.T) {
	p := decode.NewParser()
	mood := func(labels ...string) []decode.TypeDescription {
		return []decode.TypeDescription{{OID: 20000, Schema: "public", Name: "mood", Kind: decode.EnumType, Labels: labels},
			{OID: 20001, Schema: "public", Name: "humour", Kind: decode.DomainType, Elem: 20000}}
	}
	frame := func(oid, typ uint32) []byte {
		return decode.AppendRelation(nil, &decode.Relation{OID: oid, Schema: "public", Name: "r", Identity: decode.IdentityDefault,
			Columns: []decode.Column{{Name: "m", Type: &decode.Type{OID: typ}, Modifier: -1}}})
	}
	relation := func(oid, typ uint32, labels ...string) *decode.Relation {
		t.Helper()
		rel, err := p.Relation(frame(oid, typ))
		if err != nil {
			t.Fatal(err)
		}
		m := rel.Columns[0].Type
		if m.Elem != nil {
			m = m.Elem
		}
		if !slices.Equal(m.Labels, labels) {
			t.Errorf("relation %d has %q, want %q", oid, m.Labels, labels)
		}
		return rel
	}
	describe := func(oid uint32, labels ...string) {
		t.Helper()
		if err := p.Describe(decode.Description{Relation: oid, Types: mood(labels...)}); err != nil {
			t.Fatal(err)
		}
	}
	describe(1, "sad", "ok")
	describe(2, "sad", "ok")
	before, other := relation(1, 20000, "sad", "ok"), relation(3, 23)
	relation(2, 20001, "sad", "ok")
	if err := p.Labels(20000, []string{"sad", "glum", "ok"}); err != nil {
		t.Fatal(err)
	}
	if now := p.Lookup(1); now == before || now != relation(1, 20000, "sad", "glum", "ok") {
		t.Error("no new version, or more than one")
	}
	relation(2, 20001, "sad", "glum", "ok")
	if relation(3, 23) != other {
		t.Error("a new version of a relation without the type")
	}
	describe(1, "sad", "ok") // an older message
	relation(1, 20000, "sad", "glum", "ok")
	describe(1, "sad", "glum", "ok", "happy") // a newer one
	relation(1, 20000, "sad", "glum", "ok", "happy")
}
