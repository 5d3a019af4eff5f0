package decode

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestADescribedRelationIsReadAgainAsItWas(t *testing.T) {
	p := NewParser()
	d := Description{Relation: 7, Ancestors: []Name{{"public", "root"}}, Types: []TypeDescription{
		{OID: 70001, Schema: "app", Name: "mood", Kind: EnumType, Labels: []string{"sad", "ok"}},
		{OID: 70002, Schema: "app", Name: "_mood", Kind: ArrayType, Elem: 70001},
		{OID: 70003, Schema: "app", Name: "pair", Kind: CompositeType, Fields: []FieldDescription{{"a", 23}, {"b", 70002}}},
		{OID: 70004, Schema: "app", Name: "dom", Kind: DomainType, Elem: 70003, Extension: "x"},
	}}
	if err := p.Describe(d); err != nil {
		t.Fatal(err)
	}
	var columns []Column
	for _, oid := range []uint32{23, 70002, 70004, 79999} {
		columns = append(columns, Column{Name: "c", Type: &Type{OID: oid}, Modifier: -1, Key: oid == 23})
	}
	frame := AppendRelation(nil, &Relation{OID: 7, Schema: "public", Name: "leaf", Identity: IdentityDefault, Columns: columns})
	want, err := p.Relation(frame)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(Describe(want))
	if err != nil {
		t.Fatal(err)
	}
	again := NewParser()
	if err := again.DescribeJSON(text); err != nil {
		t.Fatal(err)
	}
	got, err := again.Relation(AppendRelation(nil, want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v, %v", got, want, err)
	}
}
