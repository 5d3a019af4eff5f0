package rules

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
)

// Table uses rules, in order, for the tables that a pattern names: "public.users", "users" (in schema
// public), "shop.*", `"a.b"."C*"`. Case counts, * is a wildcard, quotes take it away. A partition is
// meant by its own name and by those of the tables above it. A name or a parent that a table had once, as far
// as the replicator has seen it, means it too: no rename, SET SCHEMA or DETACH lets data pass unmasked.
//
// Where the pattern has no wildcard, the columns that the rules name must be there: a spelling mistake
// stops the worker instead of letting data pass unmasked.
func Table(pattern string, rules ...Rule) Rule {
	p, err := names.Parse(pattern)
	_, _, exact := p.Exact()
	return &tableRule{text: pattern, pattern: p, exact: exact, err: err, rules: slices.Clone(rules)}
}

type tableRule struct {
	text    string
	pattern names.Pattern
	exact   bool
	err     error // the pattern's, kept for Validate and Bind
	rules   []Rule
}

func (r *tableRule) String() string { return fmt.Sprintf("Table(%q)", r.text) }

// Validate implements the optional method that Validate looks for.
func (r *tableRule) Validate() error {
	if r.err != nil {
		return fmt.Errorf("rules: %w: Table: %w", ErrInvalidRule, r.err)
	}
	return errors.Join(noRoute(r.rules...), validateEach(r.rules))
}

// Bind implements Rule.
func (r *tableRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *tableRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	if !r.matches(s.in) {
		return s.unchanged(), nil
	}
	s.exact = r.exact
	return bindAll(r.rules, s)
}

func (r *tableRule) matches(in *decode.Relation) bool {
	match := func(n decode.Name) bool { return r.pattern.Match(n.Schema, n.Name) }
	return match(in.Qualified()) || slices.ContainsFunc(in.Ancestors, match) || slices.ContainsFunc(in.OtherNames, match)
}
