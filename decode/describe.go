package decode

import "slices"

// Describe gives the description of a relation: what DescribeJSON needs so that the Relation message that
// AppendRelation writes is read as r again.
func Describe(r *Relation) Description {
	d := Description{Relation: r.OID, Ancestors: slices.Clone(r.Ancestors)}
	seen := map[uint32]bool{}
	for i := range r.Columns {
		d.Types = describeType(d.Types, r.Columns[i].Type, seen)
	}
	return d
}

func describeType(list []TypeDescription, t *Type, seen map[uint32]bool) []TypeDescription {
	if t == nil || t.Name == "" || seen[t.OID] || BuiltinType(t.OID) != nil {
		return list
	}
	seen[t.OID] = true
	d := TypeDescription{OID: t.OID, Schema: t.Schema, Name: t.Name, Kind: t.Kind, Extension: t.Extension, Delimiter: t.Delimiter, Labels: t.Labels}
	if t.Elem != nil {
		d.Elem = t.Elem.OID
	}
	for _, f := range t.Fields {
		d.Fields = append(d.Fields, FieldDescription{Name: f.Name, Type: f.Type.OID})
	}
	list = describeType(append(list, d), t.Elem, seen)
	for _, f := range t.Fields {
		list = describeType(list, f.Type, seen)
	}
	return list
}
