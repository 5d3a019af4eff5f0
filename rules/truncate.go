package rules

import (
	"fmt"

	"github.com/pgflo/flo/decode"
)

// truncation is what rules make of a TRUNCATE of their table.
type truncation struct {
	mode truncateMode
	why  string // of a refusal
}

type truncateMode uint8

const (
	passTruncate truncateMode = iota
	dropTruncate
	refuseTruncate
)

// and takes the stricter one.
func (t truncation) and(u truncation) truncation {
	if u.mode > t.mode {
		return u
	}
	return t
}

// TruncateOption says what becomes of a TRUNCATE of a table that a filter or a route has. It is an option
// of Filter, Where and Route.
type TruncateOption struct{ mode truncateMode }

// PassTruncate hands a TRUNCATE of the source table on: it empties the destination table, of what other
// source tables have brought there, too.
func PassTruncate() TruncateOption { return TruncateOption{passTruncate} }

// DropTruncate leaves a TRUNCATE of the source table out: the destination keeps its rows.
func DropTruncate() TruncateOption { return TruncateOption{dropTruncate} }

func (o TruncateOption) filter(r *filterRule) { r.truncate = &o.mode }
func (o TruncateOption) route(r *routeRule)   { r.truncate = &o.mode }

// Truncate gives what rules leave of a TRUNCATE: with the tables' names at the destination, each once,
// without those that a rule leaves out; keep is false if none remains. If one is left out, CASCADE is
// too, since it could empty that one at the destination nevertheless. A table whose rules do not say what
// a TRUNCATE of it means is an ErrTruncate. t is not changed.
func (b *Binder) Truncate(t *decode.Truncate) (out *decode.Truncate, keep bool, err error) {
	o := *t
	o.Relations = make([]*decode.Relation, 0, len(t.Relations))
	seen := make(map[decode.Name]bool, len(t.Relations))
	for _, rel := range t.Relations {
		bound, err := b.Bind(rel)
		if err != nil {
			return nil, false, err
		}
		switch bound.truncate.mode {
		case dropTruncate:
			o.Cascade = false
			continue
		case refuseTruncate:
			return nil, false, fmt.Errorf("rules: TRUNCATE of table %s: %w: %s; say PassTruncate or DropTruncate there", rel.Qualified(), ErrTruncate, bound.truncate.why)
		}
		if name := bound.Out.Qualified(); !seen[name] {
			seen[name] = true
			o.Relations = append(o.Relations, bound.Out)
		}
	}
	return &o, len(o.Relations) > 0, nil
}
