package decode

import (
	"sync"

	"github.com/jackc/pgx/v5/pgtype"
)

// form is what a type's text looks like, whatever the type is called.
type form uint8

const (
	formText form = iota
	formBool
	formInt2
	formInt4
	formInt8
	formOID // unsigned, 32 bits
	formXID8
	formFloat4
	formFloat8
	formNumeric
	formMoney
	formBytea
	formJSON
	formDate
	formTimestamp
	formTimestamptz
	formTime
	formTimetz
	formInterval
	formUUID
	formInet
	formMAC
	formBits
	formPoint
	formLine
	formLseg
	formBox
	formPath
	formPolygon
	formCircle
	formLSN
	formTID
	formTSVector
	formVector // int2vector and oidvector: numbers with blanks between
	formEnum
	formArray
	formRange
	formMultirange
	formComposite
	formHstore
)

// maxDomainDepth bounds how many domains over domains are looked through.
const maxDomainDepth = 64

// Base gives the type whose values t's are: of a domain the type that it is over, through any number
// of domains, otherwise t itself. nil if t is nil or the base is not known. (A domain of which only a
// Type message is known has its own OID and its base type's name.)
func (t *Type) Base() *Type {
	for depth := 0; t != nil && t.Kind == DomainType; depth++ {
		if depth == maxDomainDepth {
			return nil
		}
		t = t.Elem
	}
	if t != nil && t.OID >= FirstUserOID && t.Kind == BaseType && t.Schema == catalogSchema {
		if b := builtinNames()[t.Name]; b != nil {
			return b
		}
	}
	return t
}

// builtinNames is made once and never changed.
var builtinNames = sync.OnceValue(func() map[string]*Type {
	m := make(map[string]*Type, 256)
	for _, t := range builtinTypes() {
		m[t.Name] = t
	}
	return m
})

// formOf gives the form of a type's values, and the type that has it.
func formOf(t *Type) (form, *Type) {
	t = t.Base()
	if t == nil {
		return formText, nil
	}
	switch t.Kind {
	case EnumType:
		return formEnum, t
	case ArrayType:
		if t.Elem != nil {
			return formArray, t
		}
	case RangeType:
		if t.Elem != nil {
			return formRange, t
		}
	case MultirangeType:
		if t.Elem != nil && t.Elem.Elem != nil {
			return formMultirange, t
		}
	case CompositeType:
		return formComposite, t
	case BaseType:
		if t.Extension == "hstore" && t.Name == "hstore" {
			return formHstore, t
		}
		return baseForm(t.OID), t
	}
	return formText, t
}

// Types that pgtype has no constants for.
const (
	moneyOID      = 790
	pgLSNOID      = 3220
	int2vectorOID = 22
	oidvectorOID  = 30
)

func baseForm(oid uint32) form {
	switch oid {
	case pgtype.BoolOID:
		return formBool
	case pgtype.Int2OID:
		return formInt2
	case pgtype.Int4OID:
		return formInt4
	case pgtype.Int8OID:
		return formInt8
	case pgtype.OIDOID, pgtype.XIDOID, pgtype.CIDOID:
		return formOID
	case pgtype.XID8OID:
		return formXID8
	case pgtype.Float4OID:
		return formFloat4
	case pgtype.Float8OID:
		return formFloat8
	case pgtype.NumericOID:
		return formNumeric
	case moneyOID:
		return formMoney
	case pgtype.ByteaOID:
		return formBytea
	case pgtype.JSONOID, pgtype.JSONBOID:
		return formJSON
	case pgtype.UUIDOID:
		return formUUID
	case pgtype.InetOID, pgtype.CIDROID:
		return formInet
	case pgtype.MacaddrOID, pgtype.Macaddr8OID:
		return formMAC
	case pgtype.BitOID, pgtype.VarbitOID:
		return formBits
	case pgLSNOID:
		return formLSN
	case pgtype.TIDOID:
		return formTID
	case pgtype.TSVectorOID:
		return formTSVector
	case int2vectorOID, oidvectorOID:
		return formVector
	}
	return shapeForm(oid)
}

// shapeForm is baseForm of the times and the geometric types.
func shapeForm(oid uint32) form {
	switch oid {
	case pgtype.DateOID:
		return formDate
	case pgtype.TimestampOID:
		return formTimestamp
	case pgtype.TimestamptzOID:
		return formTimestamptz
	case pgtype.TimeOID:
		return formTime
	case pgtype.TimetzOID:
		return formTimetz
	case pgtype.IntervalOID:
		return formInterval
	case pgtype.PointOID:
		return formPoint
	case pgtype.LineOID:
		return formLine
	case pgtype.LsegOID:
		return formLseg
	case pgtype.BoxOID:
		return formBox
	case pgtype.PathOID:
		return formPath
	case pgtype.PolygonOID:
		return formPolygon
	case pgtype.CircleOID:
		return formCircle
	}
	return formText
}

// forms is a set of forms.
type forms uint64

// need gives the value's form and its type below domains if it is a value, and of one of the forms.
func (v Value) need(want string, of forms) (form, *Type, error) {
	if v.presence != Present {
		return 0, nil, v.fail(want, ErrNoValue)
	}
	f, t := formOf(v.typ)
	if of&(1<<f) == 0 {
		return f, t, v.fail(want, ErrType)
	}
	return f, t, nil
}

func (v Value) fail(want string, err error) error {
	return &TypeError{Type: v.typ, Presence: v.presence, Want: want, Err: err}
}
