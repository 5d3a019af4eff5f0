package rules

import (
	"errors"
	"fmt"
	"strings"

	"github.com/pgflo/flo/decode"
)

// opSet is a set of operations; empty means all of them.
type opSet uint32

func (s opSet) has(op decode.Op) bool { return s == 0 || s&(1<<op) != 0 }

// On limits a rule to operations, for example On(Mask("email"), decode.OpUpdate). Copied rows count as
// inserts. Other changes pass by the rule as they are. A change that a Where before it made something else
// of counts as both: On(Mask("email"), decode.OpInsert, decode.OpUpdate) masks the old row of an update that
// has become a delete.
//
// An Exclude that is limited leaves the column in the relation, and marks its value decode.Absent in
// the rows of those operations. A rule of yours that changes the relation can't be limited.
func On(rule Rule, ops ...decode.Op) Rule { return &onRule{rule: rule, ops: ops} }

type onRule struct {
	rule Rule
	ops  []decode.Op
}

func (r *onRule) String() string {
	names := make([]string, len(r.ops))
	for i, op := range r.ops {
		names[i] = op.String()
	}
	return fmt.Sprintf("On(%s)", strings.Join(names, ", "))
}

// Validate implements the optional method that Validate looks for.
func (r *onRule) Validate() error {
	if len(r.ops) == 0 {
		return fmt.Errorf("rules: %w: On needs an operation", ErrInvalidRule)
	}
	for _, op := range r.ops {
		if op < decode.OpInsert || op > decode.OpMessage {
			return fmt.Errorf("rules: %w: On: operation %d is unknown", ErrInvalidRule, op)
		}
	}
	return errors.Join(noRoute(r.rule), validateEach([]Rule{r.rule}))
}

// Bind implements Rule.
func (r *onRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *onRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	if s.ops = r.within(s.ops); s.ops == 0 { // within another On that shares no operation: never runs
		return s.unchanged(), nil
	}
	return bindOne(r.rule, s)
}

// within gives the rule's operations that are among those of the rules around it; here 0 means none.
func (r *onRule) within(around opSet) opSet {
	var ops opSet
	for _, op := range r.ops {
		if around.has(op) {
			ops |= 1 << op
		}
	}
	return ops
}
