package decode

// maxTypeDepth bounds how deep a described type may be nested in others.
const maxTypeDepth = 256

// typeResolver links the descriptions of types to each other.
type typeResolver struct {
	described map[uint32]*TypeDescription
	done      map[uint32]*Type
	open      map[uint32]bool // being resolved: met again, the type is made of itself
}

func resolveTypes(list []TypeDescription) (map[uint32]*Type, error) {
	if len(list) == 0 {
		return nil, nil
	}
	r := typeResolver{
		described: make(map[uint32]*TypeDescription, len(list)),
		done:      make(map[uint32]*Type, len(list)),
		open:      map[uint32]bool{},
	}
	for i := range list {
		r.described[list[i].OID] = &list[i]
	}
	for i := range list {
		if _, err := r.resolve(list[i].OID, 0); err != nil {
			return nil, err
		}
	}
	return r.done, nil
}

func (r *typeResolver) resolve(oid uint32, depth int) (*Type, error) {
	if t := BuiltinType(oid); t != nil {
		return t, nil
	}
	if t := r.done[oid]; t != nil {
		return t, nil
	}
	d := r.described[oid]
	if d == nil {
		return &Type{OID: oid}, nil
	}
	if r.open[oid] || depth > maxTypeDepth {
		return nil, malformed("description: type %s.%s (OID %d) is made of itself, or nested too deep", d.Schema, d.Name, oid)
	}
	r.open[oid] = true
	defer delete(r.open, oid)
	t := &Type{OID: oid, Schema: d.Schema, Name: d.Name, Kind: d.Kind, Extension: d.Extension, Delimiter: d.Delimiter, Labels: d.Labels}
	var err error
	if d.Elem != 0 {
		if t.Elem, err = r.resolve(d.Elem, depth+1); err != nil {
			return nil, err
		}
	}
	if len(d.Fields) > 0 {
		t.Fields = make([]Field, len(d.Fields))
	}
	for i, f := range d.Fields {
		t.Fields[i].Name = f.Name
		if t.Fields[i].Type, err = r.resolve(f.Type, depth+1); err != nil {
			return nil, err
		}
	}
	r.done[oid] = t
	return t, nil
}
