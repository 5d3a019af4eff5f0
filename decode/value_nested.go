package decode

import (
	"bytes"

	"github.com/jackc/pgx/v5/pgtype"
)

// Array gives an array's elements, in order, the last dimension running fastest, with the length and
// lower bound of each dimension. NULL elements are Null values of the element's type. An empty array has
// no dimension. int2vector and oidvector are arrays from 0.
//
// Elements share the value's bytes where they can.
func (v Value) Array() (pgtype.Array[Value], error) {
	f, t, err := v.need("Array", 1<<formArray|1<<formVector)
	if err != nil {
		return pgtype.Array[Value]{}, err
	}
	if f == formVector {
		return vector(v.data, t), nil
	}
	s := textScanner{text: v.data}
	a, ok := s.array(t.Elem, delimiterOf(t.Elem))
	if !ok {
		return pgtype.Array[Value]{}, v.fail("Array", ErrMalformed)
	}
	return a, nil
}

func vector(text []byte, t *Type) pgtype.Array[Value] {
	elem := BuiltinType(pgtype.OIDOID)
	if t.OID == int2vectorOID {
		elem = BuiltinType(pgtype.Int2OID)
	}
	a := pgtype.Array[Value]{Valid: true}
	for field := range bytes.FieldsSeq(text) {
		a.Elements = append(a.Elements, TextValue(elem, field))
	}
	if len(a.Elements) > 0 {
		a.Dims = []pgtype.ArrayDimension{{Length: int32(len(a.Elements))}}
	}
	return a
}

// delimiterOf is pg_type.typdelim: of the built-in types only box's is no comma.
func delimiterOf(elem *Type) byte {
	switch {
	case elem.Delimiter != 0:
		return elem.Delimiter
	case elem.OID == pgtype.BoxOID:
		return ';'
	}
	return ','
}

// Range gives a range: its bounds, which are zero values where it is unbounded, and of which kind
// they are. An empty range has LowerType pgtype.Empty.
func (v Value) Range() (pgtype.Range[Value], error) {
	_, t, err := v.need("Range", 1<<formRange)
	if err != nil {
		return pgtype.Range[Value]{}, err
	}
	s := textScanner{text: v.data}
	r, ok := s.rangeOf(t.Elem)
	if !ok || len(s.text) > 0 {
		return pgtype.Range[Value]{}, v.fail("Range", ErrMalformed)
	}
	return r, nil
}

// Multirange gives a multirange's ranges, in order; none if it is empty.
func (v Value) Multirange() ([]pgtype.Range[Value], error) {
	_, t, err := v.need("Multirange", 1<<formMultirange)
	if err != nil {
		return nil, err
	}
	s := textScanner{text: v.data}
	list, ok := s.multirange(t.Elem.Elem)
	if !ok {
		return nil, v.fail("Multirange", ErrMalformed)
	}
	return list, nil
}

// Composite gives a composite's fields in the order of its type's (v.Type().Base().Fields): Present or
// Null. Composites in it are values of their own.
func (v Value) Composite() (Row, error) {
	_, t, err := v.need("Composite", 1<<formComposite)
	if err != nil {
		return nil, err
	}
	s := textScanner{text: v.data}
	row, ok := s.composite(t.Fields)
	if !ok {
		return nil, v.fail("Composite", ErrMalformed)
	}
	return row, nil
}
