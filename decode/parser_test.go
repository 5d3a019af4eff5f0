package decode_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
)

// users is a relation of a built-in key, a text and a type of the user's.
func users() *decode.Relation {
	return &decode.Relation{OID: 20000, Schema: "public", Name: "users", Identity: decode.IdentityDefault, Columns: []decode.Column{
		{Name: "id", Type: decode.BuiltinType(23), Modifier: -1, Key: true},
		{Name: "name", Type: decode.BuiltinType(25), Modifier: -1},
		{Name: "mood", Type: &decode.Type{OID: 20010}, Modifier: -1},
	}}
}

func usersDescription() decode.Description {
	return decode.Description{Relation: 20000, Ancestors: []decode.Name{{Schema: "public", Name: "people"}}, Types: []decode.TypeDescription{
		{OID: 20010, Schema: "public", Name: "mood", Kind: decode.EnumType, Labels: []string{"happy", "sad"}},
	}}
}

// tuple builds TupleData: "n", "u", or text with a "t" in front.
func tuple(cols ...string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(cols)))
	for _, c := range cols {
		b = append(b, c[0])
		if c[0] == 't' || c[0] == 'b' {
			b = binary.BigEndian.AppendUint32(b, uint32(len(c)-1))
			b = append(b, c[1:]...)
		}
	}
	return b
}

// rowFrame builds an Insert, Update or Delete; parts alternate a tuple's kind and the tuple.
func rowFrame(kind byte, oid uint32, parts ...any) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind}, oid)
	for _, p := range parts {
		switch p := p.(type) {
		case rune:
			b = append(b, byte(p))
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

func usersParser(t testing.TB) *decode.Parser {
	t.Helper()
	p := decode.NewParser()
	if _, err := p.Relation(decode.AppendRelation(nil, users())); err != nil {
		t.Fatal(err)
	}
	return p
}

func relation(t testing.TB, p *decode.Parser, frame []byte) *decode.Relation {
	t.Helper()
	r, err := p.Relation(bytes.Clone(frame))
	if err != nil {
		t.Fatal(err)
	}
	if p.Lookup(r.OID) != r {
		t.Fatal("Lookup does not give the latest version")
	}
	return r
}

func TestSameRelationSamePointer(t *testing.T) {
	p, frame := decode.NewParser(), decode.AppendRelation(nil, users())
	describe := func(d decode.Description) {
		t.Helper()
		if err := p.Describe(d); err != nil {
			t.Fatal(err)
		}
	}
	describe(usersDescription())
	if p.Lookup(20000) != nil {
		t.Error("a description alone makes a relation")
	}
	first := relation(t, p, frame)
	if !reflect.DeepEqual(first.Ancestors, usersDescription().Ancestors) || first.Columns[2].Type.Labels[1] != "sad" || first.Columns[2].Type.Kind != decode.EnumType {
		t.Errorf("description not used: %+v", first)
	}
	describe(usersDescription())
	if relation(t, p, frame) != first {
		t.Error("the same description and message made a new version")
	}
	more := usersDescription()
	more.Types[0].Labels = append(more.Types[0].Labels, "calm")
	describe(more)
	second := relation(t, p, frame)
	if second == first || len(second.Columns[2].Type.Labels) != 3 || len(first.Columns[2].Type.Labels) != 2 {
		t.Error("a changed type made no new version, or changed the old one")
	}
	renamed := users()
	renamed.Columns[1].Name = "full_name"
	third := relation(t, p, decode.AppendRelation(nil, renamed))
	if third == second || third.Columns[1].Name != "full_name" || third.Ancestors == nil {
		t.Errorf("a changed message: %+v", third)
	}
	if _, err := p.Relation(frame[:len(frame)-1]); !errors.Is(err, decode.ErrMalformed) {
		t.Errorf("cut message: %v", err)
	}
	if p.Lookup(20000) != third {
		t.Error("a malformed message changed what was known")
	}
}

func TestDescribeJSONComparesBytes(t *testing.T) {
	p, frame := decode.NewParser(), decode.AppendRelation(nil, users())
	data, err := json.Marshal(usersDescription())
	if err != nil {
		t.Fatal(err)
	}
	describe := func(data []byte) {
		t.Helper()
		if err := p.DescribeJSON(data); err != nil {
			t.Fatal(err)
		}
	}
	describe(data)
	first := relation(t, p, frame)
	if n := testing.AllocsPerRun(10, func() { describe(data) }); n != 0 {
		t.Errorf("%v allocations for a description that came before", n)
	}
	if relation(t, p, frame) != first || first.Columns[2].Type.Name != "mood" {
		t.Errorf("described: %+v", first)
	}
	describe(bytes.Replace(data, []byte(`"sad"`), []byte(`"dull"`), 1))
	if relation(t, p, frame) == first {
		t.Error("a changed description made no new version")
	}
	describe(data)
	if got := relation(t, p, frame); got.Columns[2].Type.Labels[1] != "sad" {
		t.Error("an old description that comes back is not used")
	}
	for _, bad := range []string{``, `{`, `{"relation":99999999999}`, `[]`} {
		if err := p.DescribeJSON([]byte(bad)); !errors.Is(err, decode.ErrMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestTypeMessageNamesTypes(t *testing.T) {
	typeFrame := func(name string) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{'Y'}, 20010), "public\x00"+name+"\x00"...)
	}
	p, frame := decode.NewParser(), decode.AppendRelation(nil, users())
	unnamed := relation(t, p, frame)
	if typ := unnamed.Columns[2].Type; typ.OID != 20010 || typ.Name != "" || typ.Kind != decode.BaseType {
		t.Errorf("unknown type: %+v", typ)
	}
	if err := p.Type(typeFrame("mood")); err != nil {
		t.Fatal(err)
	}
	named := relation(t, p, frame)
	if named == unnamed || named.Columns[2].Type.Name != "mood" {
		t.Errorf("named type: %+v", named.Columns[2].Type)
	}
	if err := p.Type(typeFrame("mood")); err != nil || relation(t, p, frame) != named {
		t.Errorf("the same name made a new version (%v)", err)
	}
	if err := p.Type(typeFrame("temper")); err != nil || relation(t, p, frame).Columns[2].Type.Name != "temper" {
		t.Errorf("a new name was not seen (%v)", err)
	}
	if err := p.Type([]byte("Y\x00\x00")); !errors.Is(err, decode.ErrMalformed) {
		t.Errorf("cut: %v", err)
	}
}

func TestDescribedTypesAreLinked(t *testing.T) {
	p := decode.NewParser()
	err := p.Describe(decode.Description{Relation: 20000, Types: []decode.TypeDescription{
		{OID: 20010, Name: "outer", Kind: decode.CompositeType, Fields: []decode.FieldDescription{{Name: "d", Type: 20011}, {Name: "x", Type: 25}, {Name: "?", Type: 777777}}},
		{OID: 20011, Name: "d[]", Kind: decode.ArrayType, Elem: 20012},
		{OID: 20012, Name: "d", Kind: decode.DomainType, Elem: 1700},
	}})
	if err != nil {
		t.Fatal(err)
	}
	typ := relation(t, p, decode.AppendRelation(nil, users())).Columns[2].Type
	if typ.Fields[0].Type.Elem.Elem != decode.BuiltinType(1700) || typ.Fields[1].Type != decode.BuiltinType(25) || typ.Fields[2].Type.OID != 777777 {
		t.Errorf("%+v", typ)
	}
}

func TestDescribedTypeMadeOfItselfIsRefused(t *testing.T) {
	p := decode.NewParser()
	cycle := []decode.TypeDescription{{OID: 20010, Elem: 20011}, {OID: 20011, Fields: []decode.FieldDescription{{Type: 20010}}}}
	chain := make([]decode.TypeDescription, 100_000)
	for i := range chain {
		chain[i] = decode.TypeDescription{OID: uint32(20010 + i), Elem: uint32(20011 + i)}
	}
	for _, types := range [][]decode.TypeDescription{cycle, chain} {
		if err := p.Describe(decode.Description{Relation: 20000, Types: types}); !errors.Is(err, decode.ErrMalformed) {
			t.Errorf("%d types: %v", len(types), err)
		}
	}
}

func TestKeyOnlyOldRowsHaveNoOtherColumns(t *testing.T) {
	p := usersParser(t)
	for _, a := range []*decode.Arena{nil, decode.NewArena()} {
		c, err := p.Change(rowFrame('U', 20000, 'K', tuple("t1", "n", "n"), 'N', tuple("t2", "t", "u")), a)
		if err != nil {
			t.Fatal(err)
		}
		if !c.OldKey || c.Old[0].String() != "1" || c.Old[1].Presence() != decode.Absent || c.Old[2].Presence() != decode.Absent {
			t.Errorf("old: %+v", c.Old)
		}
		if c.New[1].Presence() != decode.Present || c.New[1].Bytes() == nil || c.New[2].Presence() != decode.Unchanged {
			t.Errorf("new: %+v", c.New)
		}
		c, err = p.Change(rowFrame('D', 20000, 'O', tuple("t1", "n", "tsad")), a)
		if err != nil || c.OldKey || !c.Old[1].IsNull() || c.Old[2].String() != "sad" || c.New != nil {
			t.Errorf("full old: %+v, %v", c, err)
		}
	}
}

func TestBadChangesAreErrors(t *testing.T) {
	p := usersParser(t)
	whole := tuple("t1", "n", "n")
	huge := append(rowFrame('I', 20000, 'N'), 0, 3, 't', 0xff, 0xff, 0xff, 0xff)
	for name, c := range map[string]struct {
		frame []byte
		want  error
		text  string
	}{
		"empty":             {nil, decode.ErrMalformed, ""},
		"unknown kind":      {[]byte("Z12345678"), decode.ErrMalformed, "kind"},
		"unknown relation":  {rowFrame('I', 5, 'N', whole), decode.ErrUnknownRelation, "OID 5"},
		"unknown truncated": {[]byte("T\x00\x00\x00\x01\x00\x00\x00\x00\x05"), decode.ErrUnknownRelation, "OID 5"},
		"truncate count":    {[]byte("T\xff\xff\xff\xff\x00\x00\x00\x4e\x20"), decode.ErrMalformed, ""},
		"too few columns":   {rowFrame('I', 20000, 'N', tuple("t1")), decode.ErrMalformed, "1 columns, its Relation message 3"},
		"too many columns":  {rowFrame('I', 20000, 'N', tuple("n", "n", "n", "n")), decode.ErrMalformed, ""},
		"binary":            {rowFrame('I', 20000, 'N', tuple("b\x00\x00\x00\x01", "n", "n")), decode.ErrMalformed, "binary"},
		"unknown column":    {rowFrame('I', 20000, 'N', tuple("x", "n", "n")), decode.ErrMalformed, "kind"},
		"value too long":    {huge, decode.ErrMalformed, "cut"},
		"insert with old":   {rowFrame('I', 20000, 'K', whole), decode.ErrMalformed, ""},
		"delete of new":     {rowFrame('D', 20000, 'N', whole), decode.ErrMalformed, ""},
		"update without":    {rowFrame('U', 20000, 'K', whole), decode.ErrMalformed, ""},
		"trailing byte":     {append(rowFrame('D', 20000, 'K', whole), 0), decode.ErrMalformed, "too many"},
		"message too long":  {[]byte("M\x01\x00\x00\x00\x00\x00\x00\x00\x00p\x00\x00\x00\x00\x09x"), decode.ErrMalformed, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := p.Change(c.frame, nil)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v with %q", err, c.want, c.text)
			}
		})
	}
}

// TestCutFramesAreErrors cuts every captured message at every byte, and adds one.
func TestCutFramesAreErrors(t *testing.T) {
	p := decode.NewParser()
	for i, f := range captured(t) {
		if err := feed(p, f); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		for n := range min(len(f), 300) {
			if err := feed(p, f[:n]); !errors.Is(err, decode.ErrMalformed) {
				t.Fatalf("frame %d (%q) cut to %d of %d bytes: %v", i, f[0], n, len(f), err)
			}
		}
		if err := feed(p, append(bytes.Clone(f), 0)); !errors.Is(err, decode.ErrMalformed) {
			t.Fatalf("frame %d (%q) with a byte more: %v", i, f[0], err)
		}
	}
}

// feed gives a message to whatever reads its kind.
func feed(p *decode.Parser, f []byte) error {
	var err error
	kind := byte(0)
	if len(f) > 0 {
		kind = f[0]
	}
	switch kind {
	case 'B':
		_, err = decode.ParseBegin(f)
	case 'C':
		_, err = decode.ParseCommit(f)
	case 'O':
		_, _, err = decode.ParseOrigin(f)
	case 'Y':
		err = p.Type(f)
	case 'R':
		_, err = p.Relation(f)
	default:
		_, err = p.Change(f, nil)
	}
	return err
}
