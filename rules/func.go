package rules

import (
	"errors"
	"fmt"

	"github.com/pgflo/flo/decode"
)

// Each runs f for the rows of every table, copied and streamed alike: a rule of your own that leaves the
// relation as it is. Within Table it runs for that table's rows only. Copied rows count as inserts.
//
// It runs for the operations given, of OpInsert, OpUpdate and OpDelete; without any, for all three. What
// counts is c.Op: behind a Where, an update of the source may be an insert or a delete. A
// rule that adds, removes or renames columns has to be a type of yours with a Bind method.
func Each(f Func, ops ...decode.Op) Rule { return &eachRule{f: f, ops: ops} }

type eachRule struct {
	f   Func
	ops []decode.Op
}

func (r *eachRule) String() string { return "Each" }

// Validate implements the optional method that Validate looks for.
func (r *eachRule) Validate() error {
	var errs []error
	if r.f == nil {
		errs = append(errs, fmt.Errorf("rules: %w: Each: the function is nil", ErrInvalidRule))
	}
	for _, op := range r.ops {
		if op != decode.OpInsert && op != decode.OpUpdate && op != decode.OpDelete {
			errs = append(errs, fmt.Errorf("rules: %w: Each: %s is no operation on a row", ErrInvalidRule, op))
		}
	}
	return errors.Join(errs...)
}

// Bind implements Rule.
func (r *eachRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *eachRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	limit := onRule{ops: r.ops}
	if len(limit.ops) == 0 {
		limit.ops = []decode.Op{decode.OpInsert, decode.OpUpdate, decode.OpDelete}
	}
	if s.ops = limit.within(s.ops); s.ops == 0 { // within an On that shares no operation: never runs
		return s.unchanged(), nil
	}
	b := s.run(s.in, r.f)
	b.steps[0].now = true // f is written for that operation's rows
	return b, nil
}
