package decode

import (
	"bytes"
	"encoding/json"

	"github.com/jackc/pgx/v5/pgtype"
)

// Any gives the natural Go value, in memory of its own, by the column's type (a domain's, by what it
// is over):
//
//	boolean                             bool
//	smallint, integer, bigint           int16, int32, int64
//	real, double precision              float32, float64
//	numeric, money                      pgtype.Numeric (exact)
//	oid, xid, cid; xid8                 uint32; uint64
//	text, varchar, char, name, citext   string
//	bytea                               []byte
//	json, jsonb                         json.RawMessage
//	date, timestamp, timestamptz        time.Time in UTC; pgtype.InfinityModifier if infinite
//	time                                time.Duration since midnight
//	timetz                              TimeTZ
//	interval                            pgtype.Interval; pgtype.InfinityModifier if infinite
//	uuid                                [16]byte
//	inet, cidr                          netip.Prefix
//	macaddr, macaddr8                   net.HardwareAddr
//	bit, bit varying                    pgtype.Bits
//	point, line, lseg, box, path,       pgtype.Point, Line, Lseg, Box, Path,
//	polygon, circle                     Polygon, Circle
//	pg_lsn                              LSN
//	tid                                 pgtype.TID
//	tsvector                            pgtype.TSVector
//	an enum                             string (Label gives its order, too)
//	an array, int2vector, oidvector     pgtype.Array[any]; NULL elements are nil
//	a range                             pgtype.Range[any]; missing bounds are nil
//	a multirange                        pgtype.Multirange[pgtype.Range[any]]
//	a composite, a table's row          map[string]any by field name; NULL fields are nil
//	hstore                              pgtype.Hstore
//	xml, ltree, tsquery, jsonpath, reg… string: PostgreSQL's text, as of every other type
//
// NULL is nil. An absent or unchanged value is ErrNoValue: it is not nil, and not a value.
func (v Value) Any() (any, error) { return v.any(0) }

func (v Value) any(depth int) (any, error) {
	if v.presence == Null {
		return nil, nil
	}
	if v.presence != Present {
		return nil, v.fail("Any", ErrNoValue)
	}
	if depth > maxTypeDepth {
		return nil, v.fail("Any", ErrType)
	}
	f, _ := formOf(v.typ)
	switch f {
	case formBool:
		return boxed(v.Bool())
	case formInt2:
		n, err := v.Int64()
		return inRange(v, n, int64(int16(n)), int16(n), err)
	case formInt4:
		n, err := v.Int64()
		return inRange(v, n, int64(int32(n)), int32(n), err)
	case formInt8:
		return boxed(v.Int64())
	case formOID:
		n, err := v.Int64()
		return inRange(v, n, int64(uint32(n)), uint32(n), err)
	case formXID8:
		return boxed(v.Uint64())
	case formFloat4:
		n, err := v.Float64()
		return boxed(float32(n), err)
	case formFloat8:
		return boxed(v.Float64())
	case formNumeric, formMoney:
		return boxed(v.Numeric())
	case formBytea:
		return boxed(v.Bytea())
	case formJSON:
		return json.RawMessage(bytes.Clone(v.data)), nil
	case formUUID:
		return boxed(v.UUID())
	case formLSN:
		return boxed(v.LSN())
	case formArray, formVector:
		return v.anyArray(depth)
	case formRange, formMultirange:
		return v.anyRanges(f, depth)
	case formComposite:
		return v.anyComposite(depth)
	case formText, formEnum:
		return string(v.data), nil
	}
	return v.anyShape(f)
}

// anyShape is Any of the forms that the files value_time.go and value_shape.go read.
func (v Value) anyShape(f form) (any, error) {
	switch f {
	case formDate, formTimestamp, formTimestamptz:
		t, inf, err := v.moment("Any")
		if err == nil && inf != pgtype.Finite {
			return inf, nil
		}
		return boxed(t, err)
	case formTime:
		return boxed(v.TimeOfDay())
	case formTimetz:
		return boxed(v.TimeTZ())
	case formInterval:
		if inf := infinity(v.data); inf != 0 {
			return pgtype.InfinityModifier(inf), nil
		}
		return boxed(v.Interval())
	case formInet:
		return boxed(v.Prefix())
	case formMAC:
		return boxed(v.MAC())
	case formBits:
		return boxed(v.Bits())
	case formPoint:
		return boxed(v.Point())
	case formLine:
		return boxed(v.Line())
	case formLseg:
		return boxed(v.Lseg())
	case formBox:
		return boxed(v.Box())
	case formPath:
		return boxed(v.Path())
	case formPolygon:
		return boxed(v.Polygon())
	case formCircle:
		return boxed(v.Circle())
	case formTID:
		return boxed(v.TID())
	case formTSVector:
		return boxed(v.TSVector())
	case formHstore:
		return boxed(v.Hstore())
	}
	return string(v.data), nil
}

// boxed keeps a typed zero value from standing beside an error.
func boxed[T any](value T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return value, nil
}

// inRange is boxed of an integer that has to be equal to itself when it was made smaller.
func inRange[T any](v Value, n, same int64, value T, err error) (any, error) {
	if err == nil && n != same {
		err = v.fail("Any", ErrMalformed)
	}
	return boxed(value, err)
}

func (v Value) anyArray(depth int) (any, error) {
	a, err := v.Array()
	if err != nil {
		return nil, err
	}
	out := pgtype.Array[any]{Elements: make([]any, len(a.Elements)), Dims: a.Dims, Valid: true}
	for i, e := range a.Elements {
		if out.Elements[i], err = e.any(depth + 1); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (v Value) anyRanges(f form, depth int) (any, error) {
	if f == formRange {
		r, err := v.Range()
		if err != nil {
			return nil, err
		}
		return boxed(anyRange(r, depth))
	}
	list, err := v.Multirange()
	if err != nil {
		return nil, err
	}
	out := make(pgtype.Multirange[pgtype.Range[any]], len(list))
	for i, r := range list {
		if out[i], err = anyRange(r, depth); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func anyRange(r pgtype.Range[Value], depth int) (out pgtype.Range[any], err error) {
	out.LowerType, out.UpperType, out.Valid = r.LowerType, r.UpperType, true
	if r.Lower.presence == Present {
		if out.Lower, err = r.Lower.any(depth + 1); err != nil {
			return out, err
		}
	}
	if r.Upper.presence == Present {
		out.Upper, err = r.Upper.any(depth + 1)
	}
	return out, err
}

func (v Value) anyComposite(depth int) (any, error) {
	row, err := v.Composite()
	if err != nil {
		return nil, err
	}
	fields := v.typ.Base().Fields
	out := make(map[string]any, len(row))
	for i := range row {
		if out[fields[i].Name], err = row[i].any(depth + 1); err != nil {
			return nil, err
		}
	}
	return out, nil
}
