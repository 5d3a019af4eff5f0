package rules

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
)

// truncation is what rules make of a TRUNCATE of their table.
type truncation struct {
	mode truncateMode
	rule string // that refuses
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

// refusal is the error of rules that do not say what a TRUNCATE of a table means. Neither answer can be
// guessed: passed on, it empties the destination of what other tables have brought there and of rows that
// the filter has kept; left out, the destination keeps rows that the source has no more.
func (t truncation) refusal(table decode.Name) error {
	if t.mode != refuseTruncate {
		return nil
	}
	return &BindError{t.rule, table, fmt.Errorf("%w: %s", ErrTruncate, truncateAdvice)}
}

const truncateAdvice = "passed on, it could empty more than the rule let through; left out, rows stay that the source has no more: give the rule PassTruncate() (empty the destination) or DropTruncate() (leave the TRUNCATE out), or say it in the table's Route, by one of these or Only"

// validateTruncates reports filters that no table can be bound with: those that do not say what a TRUNCATE
// means in a list in which no route says it either. Where one does, only the table tells whether it is
// meant, so Bind reports it.
func validateTruncates(rules []Rule) error {
	if slices.ContainsFunc(rules, func(r Rule) bool { route := routeOf(r); return route != nil && route.settled() }) {
		return nil
	}
	return unsaidTruncates(rules, "every table that has its columns", 0)
}

// unsaidTruncates walks down to the filters. ops are the operations that the rules around them leave.
func unsaidTruncates(rules []Rule, table string, ops opSet) error {
	var errs []error
	for _, r := range rules {
		switch r := r.(type) {
		case *locatedRule:
			errs = append(errs, r.locate(unsaidTruncates([]Rule{r.rule}, table, ops)))
		case *tableRule:
			errs = append(errs, unsaidTruncates(r.rules, "table "+r.text, ops))
		case *onRule:
			if within := r.within(ops); within != 0 {
				errs = append(errs, unsaidTruncates([]Rule{r.rule}, table, within))
			}
		case *filterRule:
			if r.truncate == nil && ops.has(decode.OpTruncate) {
				errs = append(errs, fmt.Errorf("rules: %w: %s, for %s: %w: %s", ErrInvalidRule, r, table, ErrTruncate, truncateAdvice))
			}
		}
	}
	return errors.Join(errs...)
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
// a TRUNCATE of it means is an ErrTruncate, as it is for Bind. t is not changed.
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
		case refuseTruncate: // Bind has refused it already; a table is not emptied by a mistake there
			return nil, false, bound.truncate.refusal(rel.Qualified())
		}
		if name := bound.Out.Qualified(); !seen[name] {
			seen[name] = true
			o.Relations = append(o.Relations, bound.Out)
		}
	}
	return &o, len(o.Relations) > 0, nil
}
