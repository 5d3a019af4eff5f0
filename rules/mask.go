package rules

import (
	"bytes"
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/pgflo/flo/decode"
)

// Defaults of Mask.
const (
	DefaultKeepFirst = 1
	DefaultKeepLast  = 1
	DefaultMaskRune  = '*'
)

// Mask hides the middle of a text column: "margaret" becomes "m******t". It counts characters (Unicode
// code points), not bytes; a value that has no more of them than are kept is hidden as a whole. NULL,
// empty, unchanged and absent values stay what they are. Old rows are masked too.
//
// The column has to be text, varchar, char(n), citext, or a domain over one of them, and no part of the
// replica identity. Tables that lack it are left alone, unless Table names them exactly.
func Mask(column string, opts ...MaskOption) Rule {
	r := &maskRule{column: column, first: DefaultKeepFirst, last: DefaultKeepLast, fill: DefaultMaskRune}
	for _, o := range opts {
		o(r)
	}
	return r
}

// MaskOption changes what Mask keeps and what it writes.
type MaskOption func(*maskRule)

// KeepFirst leaves the first n characters, from 0; default DefaultKeepFirst.
func KeepFirst(n int) MaskOption { return func(r *maskRule) { r.first = n } }

// KeepLast leaves the last n characters, from 0; default DefaultKeepLast.
func KeepLast(n int) MaskOption { return func(r *maskRule) { r.last = n } }

// MaskRune is what hidden characters become; default DefaultMaskRune.
func MaskRune(c rune) MaskOption { return func(r *maskRule) { r.fill = c } }

type maskRule struct {
	column      string
	first, last int
	fill        rune
}

func (r *maskRule) String() string { return fmt.Sprintf("Mask(%q)", r.column) }

// Validate implements the optional method that Validate looks for.
func (r *maskRule) Validate() error {
	switch {
	case r.column == "":
		return fmt.Errorf("rules: %w: Mask: name the column", ErrInvalidRule)
	case r.first < 0 || r.last < 0:
		return fmt.Errorf("rules: %w: %s: KeepFirst and KeepLast must be 0 or more, not %d and %d", ErrInvalidRule, r, r.first, r.last)
	case !utf8.ValidRune(r.fill) || unicode.IsControl(r.fill):
		return fmt.Errorf("rules: %w: %s: %q is no character to mask with", ErrInvalidRule, r, r.fill)
	}
	return nil
}

// Bind implements Rule.
func (r *maskRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return r.bind(scope{in: in})
}

func (r *maskRule) bind(s scope) (*decode.Relation, Func, error) {
	if err := r.Validate(); err != nil {
		return nil, nil, err
	}
	found, err := bindColumns(r.String(), s, []string{r.column})
	if err != nil || len(found) == 0 {
		return s.in, nil, err
	}
	i := found[0]
	base := baseOf(s.in.Columns[i].Type)
	if !isText(base) {
		name := "unknown"
		if t := s.in.Columns[i].Type; t != nil {
			name = t.Name
		}
		return nil, nil, &BindError{r.String(), s.in.Qualified(), fmt.Errorf(
			"%w: %q is of type %s; Mask works on text, varchar, char(n), citext and domains over them: use Exclude", ErrType, r.column, name)}
	}
	padded := base.Name == "bpchar"
	return s.in, limit(eachRow(s.in, func(row decode.Row) decode.Row {
		if v := row[i]; v.Presence() == decode.Present {
			row[i] = decode.TextValue(v.Type(), r.mask(v.Bytes(), padded))
		}
		return row
	}), s.ops), nil
}

// mask never writes into text, which belongs to the message that it came in. The blanks that fill up a
// char(n) are no content, and stay.
func (r *maskRule) mask(text []byte, padded bool) []byte {
	body, blanks := text, []byte(nil)
	if padded {
		body = bytes.TrimRight(text, " ")
		blanks = text[len(body):]
	}
	n := utf8.RuneCount(body)
	first, last := r.first, r.last
	if first >= n || last >= n-first { // all would be kept
		first, last = 0, 0
	}
	out := make([]byte, 0, len(text)+n*(utf8.RuneLen(r.fill)-1))
	for at := 0; len(body) > 0; at++ {
		_, size := utf8.DecodeRune(body)
		if at < first || at >= n-last {
			out = append(out, body[:size]...)
		} else {
			out = utf8.AppendRune(out, r.fill)
		}
		body = body[size:]
	}
	return append(out, blanks...)
}

// baseOf gives the type below domains.
func baseOf(t *decode.Type) *decode.Type {
	for t != nil && t.Kind == decode.DomainType {
		t = t.Elem
	}
	return t
}

// isText reports whether any text of the same number of characters fits the type.
func isText(t *decode.Type) bool {
	if t == nil || t.Kind != decode.BaseType {
		return false
	}
	switch t.Name {
	case "text", "varchar", "bpchar":
		return t.Schema == "pg_catalog"
	case "citext": // in whichever schema the extension was installed
		return true
	}
	return false
}
