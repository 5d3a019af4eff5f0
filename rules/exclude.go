package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
)

// Exclude removes columns: from the relation and from every row, old and new. Tables that lack a column
// are left alone, unless Table names them exactly. Columns of the replica identity can't be excluded.
func Exclude(columns ...string) Rule { return &excludeRule{columns: slices.Clone(columns)} }

type excludeRule struct{ columns []string }

func (r *excludeRule) String() string {
	quoted := make([]string, len(r.columns))
	for i, c := range r.columns {
		quoted[i] = fmt.Sprintf("%q", c)
	}
	return "Exclude(" + strings.Join(quoted, ", ") + ")"
}

// Validate implements the optional method that Validate looks for.
func (r *excludeRule) Validate() error {
	if len(r.columns) == 0 || slices.Contains(r.columns, "") {
		return fmt.Errorf("rules: %w: %s: name the columns", ErrInvalidRule, r)
	}
	return nil
}

// Bind implements Rule.
func (r *excludeRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *excludeRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	gone, err := bindColumns(r.String(), s, r.columns)
	if err != nil || len(gone) == 0 {
		return s.unchanged(), err
	}
	if s.ops != 0 {
		return s.run(s.in, eachRow(s.in, func(row decode.Row) decode.Row { return withAbsent(row, gone) })), nil
	}
	out := *s.in
	out.Columns = make([]decode.Column, 0, len(s.in.Columns))
	kept := make([]int, 0, len(s.in.Columns))
	for i, c := range s.in.Columns {
		if !slices.Contains(gone, i) {
			out.Columns = append(out.Columns, c)
			kept = append(kept, i)
		}
	}
	return s.run(&out, eachRow(s.in, func(row decode.Row) decode.Row { return keepOnly(row, kept) })), nil
}

// keepOnly moves the kept values together and forgets the others, so that no one can reach them
// behind the row's end.
func keepOnly(row decode.Row, kept []int) decode.Row {
	for to, from := range kept {
		row[to] = row[from]
	}
	clear(row[len(kept):])
	return row[:len(kept):len(kept)]
}

func withAbsent(row decode.Row, gone []int) decode.Row {
	for _, i := range gone {
		row[i] = decode.Value{}
	}
	return row
}
