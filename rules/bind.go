package rules

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
)

// Bind binds rules, in order, to a relation: each one sees what the one before it left, and the first
// Route that means the table comes last, wherever it stands. It returns the relation as the last one
// leaves it and one function that runs them all, stopping where one of them drops the change. The
// function is nil if no rule has anything to do for in.
//
// The function sets the change's Relation. It is safe for concurrent calls if the rules' functions are;
// those of this package are. A worker uses a Binder, which sees more than one table.
func Bind(rules []Rule, in *decode.Relation) (out *decode.Relation, f Func, err error) {
	b, err := NewBinder(rules).Bind(in)
	if err != nil {
		return nil, nil, err
	}
	return b.Out, b.Func, nil
}

// Validate reports all that is wrong with a list of rules before any table is known; each error wraps
// ErrInvalidRule, and ErrTruncate too if neither the rule nor a Route in the list says what a TRUNCATE
// means. A rule may have a Validate method of its own.
func Validate(rules ...Rule) error {
	return errors.Join(validateEach(rules), validateRoutes(rules), validateTruncates(rules))
}

// validateEach validates rules without a look at the list that they stand in.
func validateEach(rules []Rule) error {
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
	// seen notes of each rule and column whether a table had it; nil: nobody asks
	seen map[string]bool
}

// unchanged is a rule that has nothing to do.
func (s scope) unchanged() bound { return bound{out: s.in} }

// run is a rule that runs f, for the scope's operations.
func (s scope) run(out *decode.Relation, f Func) bound {
	return bound{out: out, steps: []step{{out: out, f: f, ops: s.ops}}}
}

// scoped is what this package's own rules implement beside Rule.
type scoped interface {
	bind(s scope) (bound, error)
}

// bound is a rule, or a list of them, bound to a relation.
type bound struct {
	out      *decode.Relation
	steps    []step
	truncate truncation
	blind    string // the rule that may delete rows of which it doesn't know whether they have passed
}

// step is one rule of a bound list.
type step struct {
	out *decode.Relation
	f   Func  // nil if only the relation changes
	ops opSet // the operations it runs for
	// now limits it to what the change is when it comes to the step. Otherwise what it was at the source
	// counts too: a Where may have made something else of it.
	now bool
}

// bindAlone implements Rule.Bind for this package's own rules.
func bindAlone(r scoped, in *decode.Relation) (*decode.Relation, Func, error) {
	b, err := r.bind(scope{in: in})
	if err != nil {
		return nil, nil, err
	}
	return b.out, chain(b.steps), nil
}

// chain makes one function of steps, nil if none of them does anything.
func chain(steps []step) Func {
	if !slices.ContainsFunc(steps, func(st step) bool { return st.f != nil }) {
		return nil
	}
	return func(c *decode.Change) (bool, error) {
		source := c.Op
		for i := range steps {
			st := &steps[i]
			c.Relation = st.out
			if st.f == nil || !st.ops.has(c.Op) && (st.now || !st.ops.has(source)) {
				continue
			}
			keep, err := st.f(c)
			if err != nil || !keep {
				return false, err
			}
		}
		return true, nil
	}
}

func bindOne(r Rule, s scope) (bound, error) {
	if r == nil {
		return bound{}, fmt.Errorf("%w: rule is nil", ErrInvalidRule)
	}
	if b, ok := r.(scoped); ok {
		return b.bind(s)
	}
	out, f, err := r.Bind(s.in)
	if err != nil {
		return bound{}, err
	}
	if out == s.in && f == nil {
		return s.unchanged(), nil
	}
	if s.ops != 0 && out != s.in {
		return bound{}, &BindError{fmt.Sprintf("On(%T)", r), s.in.Qualified(),
			fmt.Errorf("%w: a rule that changes the table's columns cannot be limited to operations", ErrInvalidRule)}
	}
	return s.run(out, f), nil
}

func bindAll(rules []Rule, s scope) (bound, error) {
	all := bound{}
	for _, r := range rules {
		b, err := bindOne(r, s)
		if err != nil {
			return bound{}, err
		}
		all.steps = append(all.steps, b.steps...)
		all.truncate = all.truncate.and(b.truncate)
		all.blind = cmp.Or(all.blind, b.blind)
		s.in = b.out
	}
	all.out = s.in
	return all, nil
}
