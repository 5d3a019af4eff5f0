package decode

import (
	"bytes"
	"math"

	"github.com/jackc/pgx/v5/pgtype"
)

// textScanner reads what PostgreSQL writes of a type that is made of others. pgtype reads the same
// grammars, but only on the way into a Go type that it is given; a Value's parts are values again,
// bytes and a type. Nothing here allocates more than a fixed number of bytes for each byte of the text.
type textScanner struct {
	text []byte
}

// byte takes c if it is next.
func (s *textScanner) byte(c byte) bool {
	if len(s.text) == 0 || s.text[0] != c {
		return false
	}
	s.text = s.text[1:]
	return true
}

// quoting is how a quote is written in quotes.
type quoting uint8

const (
	escaped quoting = iota // by a backslash only (arrays)
	doubled                // or twice (composites, ranges)
)

// item takes what stands before one of two stops, in quotes or not, without the stop, which has to be there.
func (s *textScanner) item(stop1, stop2 byte, how quoting) (item []byte, quoted, ok bool) {
	if s.byte('"') {
		item, ok = s.quoted(how)
		return item, true, ok && len(s.text) > 0 && (s.text[0] == stop1 || s.text[0] == stop2)
	}
	for i, c := range s.text {
		switch c {
		case stop1, stop2:
			item, s.text = s.text[:i:i], s.text[i:]
			return item, false, true
		case '"', '\\':
			return nil, false, false
		}
	}
	return nil, false, false
}

// quoted takes what stands before the closing quote, and that. It copies only what has escapes.
func (s *textScanner) quoted(how quoting) ([]byte, bool) {
	end := bytes.IndexAny(s.text, `"\`)
	if end < 0 {
		return nil, false
	}
	if s.text[end] == '"' && (how == escaped || end+1 == len(s.text) || s.text[end+1] != '"') {
		item := s.text[:end:end]
		s.text = s.text[end+1:]
		return item, true
	}
	item := append([]byte(nil), s.text[:end]...)
	for i := end; i < len(s.text); i++ {
		c := s.text[i]
		last := i+1 == len(s.text)
		switch {
		case c == '\\' && last:
			return nil, false
		case c == '\\', c == '"' && how == doubled && !last && s.text[i+1] == '"':
			i++
			c = s.text[i]
		case c == '"':
			s.text = s.text[i+1:]
			return item, true
		}
		item = append(item, c)
	}
	return nil, false
}

// maxDimensions is MAXDIM in src/include/utils/array.h.
const maxDimensions = 6

// array takes the whole text, as array_out in src/backend/utils/adt/arrayfuncs.c writes it.
// https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
func (s *textScanner) array(elem *Type, delimiter byte) (pgtype.Array[Value], bool) {
	a := pgtype.Array[Value]{Valid: true}
	bounds, ok := s.bounds()
	if !ok {
		return a, false
	}
	if string(s.text) == "{}" {
		return a, bounds == nil
	}
	p := arrayParser{textScanner: s, elem: elem, delimiter: delimiter}
	if !p.level(0) || len(s.text) > 0 || bounds != nil && len(bounds) != p.leaf+1 {
		return a, false
	}
	a.Elements = p.elements
	a.Dims = make([]pgtype.ArrayDimension, p.leaf+1)
	for i := range a.Dims {
		a.Dims[i] = pgtype.ArrayDimension{Length: p.lengths[i], LowerBound: 1}
		if bounds == nil {
			continue
		}
		if bounds[i].Length != p.lengths[i] {
			return a, false
		}
		a.Dims[i].LowerBound = bounds[i].LowerBound
	}
	return a, true
}

// bounds takes "[lower:upper]…=", if it is there.
func (s *textScanner) bounds() ([]pgtype.ArrayDimension, bool) {
	var list []pgtype.ArrayDimension
	for s.byte('[') {
		lower, ok1 := s.int32()
		colon := s.byte(':')
		upper, ok2 := s.int32()
		length := int64(upper) - int64(lower) + 1
		if !ok1 || !colon || !ok2 || !s.byte(']') || length < 1 || length > math.MaxInt32 || len(list) == maxDimensions {
			return nil, false
		}
		list = append(list, pgtype.ArrayDimension{LowerBound: lower, Length: int32(length)})
	}
	return list, list == nil || s.byte('=')
}

func (s *textScanner) int32() (int32, bool) {
	negative := s.byte('-')
	n, size := int64(0), digits(s.text)
	if size == 0 || size > 10 {
		return 0, false
	}
	for _, c := range s.text[:size] {
		n = n*10 + int64(c-'0')
	}
	s.text = s.text[size:]
	if negative {
		n = -n
	}
	return int32(n), n >= math.MinInt32 && n <= math.MaxInt32
}

// arrayParser collects the elements of nested braces.
type arrayParser struct {
	*textScanner
	elem      *Type
	delimiter byte
	elements  []Value
	lengths   [maxDimensions]int32 // 0: not known yet
	leaf      int                  // the last dimension, once an element was read
}

// level takes one pair of braces and what is in it. All that are at the same depth have to be alike.
func (p *arrayParser) level(depth int) bool {
	if depth == maxDimensions || !p.byte('{') {
		return false
	}
	for n := int32(1); ; n++ {
		if len(p.text) > 0 && p.text[0] == '{' {
			if len(p.elements) > 0 && depth >= p.leaf || !p.level(depth+1) {
				return false
			}
		} else if !p.element(depth) {
			return false
		}
		if p.byte(p.delimiter) && n < math.MaxInt32 {
			continue
		}
		if !p.byte('}') || p.lengths[depth] != 0 && p.lengths[depth] != n {
			return false
		}
		p.lengths[depth] = n
		return true
	}
}

func (p *arrayParser) element(depth int) bool {
	item, quoted, ok := p.item(p.delimiter, '}', escaped)
	if !ok || !quoted && len(item) == 0 || len(p.elements) > 0 && depth != p.leaf {
		return false
	}
	p.leaf = depth
	v := TextValue(p.elem, item)
	if !quoted && string(item) == "NULL" {
		v = NullValue(p.elem)
	}
	p.elements = append(p.elements, v)
	return true
}

// composite takes the whole text, as record_out in src/backend/utils/adt/rowtypes.c writes it.
// https://www.postgresql.org/docs/current/rowtypes.html#ROWTYPES-IO-SYNTAX
func (s *textScanner) composite(fields []Field) (Row, bool) {
	if !s.byte('(') {
		return nil, false
	}
	row := make(Row, len(fields))
	for i := range row {
		if i > 0 && !s.byte(',') {
			return nil, false
		}
		item, quoted, ok := s.item(',', ')', doubled)
		if !ok {
			return nil, false
		}
		row[i] = TextValue(fields[i].Type, item)
		if !quoted && len(item) == 0 {
			row[i] = NullValue(fields[i].Type)
		}
	}
	return row, s.byte(')') && len(s.text) == 0
}

// rangeOf takes a range, as range_deparse in src/backend/utils/adt/rangetypes.c writes it.
// https://www.postgresql.org/docs/current/rangetypes.html#RANGETYPES-IO
func (s *textScanner) rangeOf(subtype *Type) (pgtype.Range[Value], bool) {
	const empty = "empty"
	r := pgtype.Range[Value]{LowerType: pgtype.Exclusive, UpperType: pgtype.Exclusive, Valid: true}
	if bytes.HasPrefix(s.text, []byte(empty)) {
		s.text = s.text[len(empty):]
		r.LowerType, r.UpperType = pgtype.Empty, pgtype.Empty
		return r, true
	}
	if s.byte('[') {
		r.LowerType = pgtype.Inclusive
	} else if !s.byte('(') {
		return r, false
	}
	item, quoted, ok := s.item(',', ',', doubled)
	if !ok || !s.byte(',') {
		return r, false
	}
	if r.Lower = TextValue(subtype, item); !quoted && len(item) == 0 {
		r.Lower, r.LowerType = Value{}, pgtype.Unbounded
	}
	if item, quoted, ok = s.item(')', ']', doubled); !ok {
		return r, false
	}
	if s.byte(']') {
		r.UpperType = pgtype.Inclusive
	} else if !s.byte(')') {
		return r, false
	}
	if r.Upper = TextValue(subtype, item); !quoted && len(item) == 0 {
		r.Upper, r.UpperType = Value{}, pgtype.Unbounded
	}
	return r, true
}

// multirange takes the whole text, as multirange_out in src/backend/utils/adt/multirangetypes.c
// writes it.
func (s *textScanner) multirange(subtype *Type) ([]pgtype.Range[Value], bool) {
	if string(s.text) == "{}" {
		return nil, true
	}
	if !s.byte('{') {
		return nil, false
	}
	var list []pgtype.Range[Value]
	for {
		r, ok := s.rangeOf(subtype)
		if !ok {
			return nil, false
		}
		list = append(list, r)
		if !s.byte(',') {
			return list, s.byte('}') && len(s.text) == 0
		}
	}
}
