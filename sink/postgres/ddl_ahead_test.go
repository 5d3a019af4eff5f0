package postgres

import (
	"testing"

	"github.com/pgflo/flo/decode"
)

func TestAlteredTypesAreTold(t *testing.T) {
	field := func(num int16, name, typ string) decode.ColumnShape {
		return decode.ColumnShape{Num: num, Name: name, Type: typ}
	}
	check := func(definition string) []decode.ConstraintShape {
		return []decode.ConstraintShape{{Name: "c", Kind: "c", Definition: definition}}
	}
	enum := decode.TypeShape{Schema: "s", Name: "t", Kind: "e", Labels: []string{"a", "b"}}
	pair := decode.TypeShape{Schema: "s", Name: "t", Kind: "c", Fields: []decode.ColumnShape{field(1, "x", "integer"), field(3, "y", "text")}}
	domain := decode.TypeShape{Schema: "s", Name: "t", Kind: "d", Base: "integer", Constraints: check("CHECK (VALUE > 0)")}
	for name, c := range map[string]struct {
		was   decode.TypeShape
		alter func(*decode.TypeShape)
		want  bool
	}{
		"as it was":             {enum, func(*decode.TypeShape) {}, true},
		"a comment":             {enum, func(n *decode.TypeShape) { n.Comment = new("c") }, true},
		"another schema":        {enum, func(n *decode.TypeShape) { n.Schema = "u" }, false},
		"another name":          {enum, func(n *decode.TypeShape) { n.Name = "u" }, false},
		"a label more":          {enum, func(n *decode.TypeShape) { n.Labels = []string{"a", "new", "b"} }, false},
		"a renamed label":       {enum, func(n *decode.TypeShape) { n.Labels = []string{"a", "new"} }, false},
		"an attribute more":     {pair, func(n *decode.TypeShape) { n.Fields = append(n.Fields[:2:2], field(4, "z", "text")) }, false},
		"an attribute less":     {pair, func(n *decode.TypeShape) { n.Fields = n.Fields[:1] }, false},
		"a renamed attribute":   {pair, func(n *decode.TypeShape) { n.Fields = []decode.ColumnShape{field(1, "new", "integer"), n.Fields[1]} }, false},
		"a retyped attribute":   {pair, func(n *decode.TypeShape) { n.Fields = []decode.ColumnShape{field(1, "x", "bigint"), n.Fields[1]} }, false},
		"a dropped constraint":  {domain, func(n *decode.TypeShape) { n.Constraints = nil }, false},
		"another constraint":    {domain, func(n *decode.TypeShape) { n.Constraints = check("CHECK (VALUE > 1)") }, false},
		"not null":              {domain, func(n *decode.TypeShape) { n.NotNull = true }, false},
		"another default":       {domain, func(n *decode.TypeShape) { n.Default = new("1") }, false},
		"a type made of it":     {domain, func(n *decode.TypeShape) { n.Base = "bigint" }, false},
		"another kind of types": {domain, func(n *decode.TypeShape) { n.Kind = "r" }, false},
	} {
		now := c.was
		c.alter(&now)
		if got := sameType(c.was, now); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestTypesMadeOfATypeAreFound(t *testing.T) {
	mood := &page{kind: typePage, oid: 1, source: decode.Name{Schema: "S 2", Name: "Mo.od"}, typ: &decode.TypeShape{}}
	types := []*page{
		mood,
		{kind: typePage, oid: 2, source: decode.Name{Schema: "s", Name: "pair"}, typ: &decode.TypeShape{Fields: []decode.ColumnShape{{Type: "integer"}, {Type: `s."Dom"[]`}}}},
		{kind: typePage, oid: 3, source: decode.Name{Schema: "s", Name: "Dom"}, typ: &decode.TypeShape{Base: `"S 2"."Mo.od"`}},
		{kind: typePage, oid: 4, source: decode.Name{Schema: "s", Name: "other"}, typ: &decode.TypeShape{Base: "character varying(10)"}},
	}
	of := madeOf(types, mood)
	for text, want := range map[string]bool{
		`"S 2"."Mo.od"`: true, `"S 2"."Mo.od"[]`: true, `s.pair`: true, `s."Dom"[]`: true,
		`s.other`: false, `integer`: false, `numeric(10,2)`: false, `timestamp(3) with time zone`: false, `s.pair2`: false, `"S 2"`: false,
	} {
		if got := uses(text, of); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}
