package rules

import (
	"fmt"

	"github.com/pgflo/flo/decode"
)

// locatedRule is a rule from a file: its errors say where it stands.
type locatedRule struct {
	rule  Rule
	where string // "rules.yaml:12"
}

func (r *locatedRule) String() string { return fmt.Sprint(r.rule) }

func (r *locatedRule) locate(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", r.where, err)
}

// Validate implements the optional method that Validate looks for.
func (r *locatedRule) Validate() error { return r.locate(validateEach([]Rule{r.rule})) }

// Bind implements Rule.
func (r *locatedRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *locatedRule) bind(s scope) (bound, error) {
	b, err := bindOne(r.rule, s)
	return b, r.locate(err)
}
