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
	return bindAlone(r, in)
}

func (r *maskRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	i, err := bindColumn(r.String(), s, r.column)
	if err != nil || i < 0 {
		return s.unchanged(), err
	}
	base := baseOf(s.in.Columns[i].Type)
	if !isText(base) {
		return bound{}, typeError(r.String(), s.in, i, "Mask works on text, varchar, char(n), citext and domains over them: use Exclude")
	}
	padded := base.Name == "bpchar"
	return s.run(s.in, eachValue(s.in, i, func(v decode.Value) (decode.Value, error) {
		if v.Presence() == decode.Present {
			v = decode.TextValue(v.Type(), r.mask(v.Bytes(), padded))
		}
		return v, nil
	})), nil
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
