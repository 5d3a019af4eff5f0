package postgres

import (
	"errors"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
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

// A process that another one has taken over from may still be making tables by pg_restore's list: the rows of one that waits for its
// fresh copy are the other one's by then.
func TestOnlyTheLeasesHolderEmptiesTablesThatWait(t *testing.T) {
	m := newMirror(t)
	for _, sql := range []string{"CREATE TABLE public.t (id int PRIMARY KEY)", "INSERT INTO public.t VALUES (1), (2)", "ALTER TABLE public.t ADD r float8 DEFAULT random()"} {
		if err := m.bring(sql); err != nil {
			t.Fatal(err)
		}
	}
	why := errors.New("rows are in the way")
	emptied := func(st *sink.Start) (bool, error) {
		return (&maker{Sink: m.sink, st: st}).emptyAwaiting(testContext(t), m.db.Conn(t).PgConn(), why)
	}
	gone := *m.sink.start.Load()
	m.st.Epoch++
	m.sink = newSink(t, m.db.URL, WithReplicaRole())
	m.open()
	if did, err := emptied(&gone); did || !errors.Is(err, sink.ErrLeaseLost) {
		t.Errorf("by the one that is gone: %v, %v", did, err)
	}
	m.want("SELECT count(*)::text FROM t", is("2"))
	if did, err := emptied(m.sink.start.Load()); !did || err != nil {
		t.Errorf("by the holder: %v, %v", did, err)
	}
	m.want("SELECT count(*)::text FROM t", is("0"))
}
