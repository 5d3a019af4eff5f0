package rules

import (
	"errors"
	"fmt"

	"github.com/pgflo/flo/decode"
)

// Bind binds rules, in order, to a relation: each one sees what the one before it left. It returns the
// relation as the last one leaves it and one function that runs them all, stopping where one of them
// drops the change. The function is nil if no rule has anything to do for in; if out is in as well,
// copied rows need not be parsed.
//
// The function sets the change's Relation. It is safe for concurrent calls if the rules' functions are;
// those of this package are.
func Bind(rules []Rule, in *decode.Relation) (out *decode.Relation, f Func, err error) {
	return bindAll(rules, scope{in: in})
}

// Validate reports all that is wrong with rules before any table is known; each error wraps
// ErrInvalidRule. A rule may have a Validate method of its own.
func Validate(rules ...Rule) error {
	var errs []error
	for i, r := range rules {
		if r == nil {
			errs = append(errs, fmt.Errorf("%w: rule %d is nil", ErrInvalidRule, i))
			continue
		}
		if v, ok := r.(interface{ Validate() error }); ok {
			errs = append(errs, v.Validate())
		}
	}
	return errors.Join(errs...)
}

// scope is what the rules around a rule say about it.
type scope struct {
	in    *decode.Relation
	exact bool  // the table was named without wildcards: its columns must be there
	ops   opSet // the operations it is limited to
}

// scoped is what this package's own rules implement beside Rule.
type scoped interface {
	bind(s scope) (*decode.Relation, Func, error)
}

func bindOne(r Rule, s scope) (*decode.Relation, Func, error) {
	if r == nil {
		return nil, nil, fmt.Errorf("%w: rule is nil", ErrInvalidRule)
	}
	if b, ok := r.(scoped); ok {
		return b.bind(s)
	}
	out, f, err := r.Bind(s.in)
	if err != nil {
		return nil, nil, err
	}
	if s.ops == 0 {
		return out, f, nil
	}
	if out != s.in {
		return nil, nil, &BindError{fmt.Sprintf("On(%T)", r), s.in.Qualified(),
			fmt.Errorf("%w: a rule that changes the table's columns cannot be limited to operations", ErrInvalidRule)}
	}
	return out, limit(f, s.ops), nil
}

// step is one rule of a bound list.
type step struct {
	out *decode.Relation
	f   Func // nil if only the relation changes
}

func bindAll(rules []Rule, s scope) (*decode.Relation, Func, error) {
	var steps []step
	working := false
	for _, r := range rules {
		out, f, err := bindOne(r, s)
		if err != nil {
			return nil, nil, err
		}
		if out != s.in || f != nil {
			steps = append(steps, step{out, f})
		}
		working = working || f != nil
		s.in = out
	}
	if !working {
		return s.in, nil, nil
	}
	return s.in, func(c *decode.Change) (bool, error) {
		for i := range steps {
			c.Relation = steps[i].out
			if steps[i].f == nil {
				continue
			}
			keep, err := steps[i].f(c)
			if err != nil || !keep {
				return false, err
			}
		}
		return true, nil
	}, nil
}

// bindColumns finds the columns that a rule names. Where the table is named exactly a missing one is
// an error: it would mean that data passes as it is because of a spelling mistake.
func bindColumns(rule string, s scope, names []string) ([]int, error) {
	fail := func(err error) ([]int, error) { return nil, &BindError{rule, s.in.Qualified(), err} }
	var found []int
	for _, name := range names {
		i := s.in.Column(name)
		switch {
		case i < 0 && s.exact:
			return fail(fmt.Errorf("%w: %q (names are exact, upper and lower case differ; an earlier rule may have excluded it)", ErrNoColumn, name))
		case i < 0:
			continue
		case s.in.Columns[i].Key && s.in.Identity != decode.IdentityFull:
			return fail(fmt.Errorf("%w: %q; without its true value the row cannot be found again for an update or delete: leave it out of the rule, or give the table another key by ALTER TABLE … REPLICA IDENTITY USING INDEX …", ErrKeyColumn, name))
		}
		found = append(found, i)
	}
	return found, nil
}

// checkShape guards against rows that are not what the rule was bound to.
func checkShape(row decode.Row, in *decode.Relation) error {
	if row != nil && len(row) != len(in.Columns) {
		return fmt.Errorf("rules: table %s: %w: %d values for %d columns", in.Qualified(), ErrShape, len(row), len(in.Columns))
	}
	return nil
}
