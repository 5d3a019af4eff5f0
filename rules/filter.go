package rules

import (
	"fmt"

	"github.com/pgflo/flo/decode"
)

// Filter drops the changes that do not match a condition: of an insert and an update by the new row, of
// a delete by the old one. It looks at each change by itself: a row that an update takes out of the
// condition stays at the destination as it was before, and one that an update brings in arrives as an
// update of a row that is not there. For a destination that equals the filtered source use Where.
//
// A delete whose old row has only the key is dropped, unless the key alone decides or AllowEmptyDeletes
// is given. An update that left a large value in place, so that PostgreSQL did not send it, stops the
// worker with ErrUndecided where that value decides: give the table REPLICA IDENTITY FULL, or
// PassUnchanged or DropUnchanged.
//
// What a TRUNCATE means has to be said, by PassTruncate or DropTruncate, by the table's Route, or by an On
// without decode.OpTruncate around the filter, which lets it pass by. Otherwise the rule is refused at
// start (ErrTruncate): passed on, a TRUNCATE empties the destination of more than the filter's rows where
// tables meet, and of rows that the filter has kept; left out, rows stay that the source has no more.
//
// Tables that have none of the columns are left alone, unless Table names them exactly.
func Filter(c Condition, opts ...FilterOption) Rule {
	r := &filterRule{name: "Filter", condition: c}
	for _, o := range opts {
		o.filter(r)
	}
	return r
}

// FilterOption changes what Filter and Where do.
type FilterOption interface{ filter(*filterRule) }

type filterOption func(*filterRule)

func (o filterOption) filter(r *filterRule) { o(r) }

// AllowEmptyDeletes lets deletes pass whose old row lacks the columns that the condition reads, as it
// does under REPLICA IDENTITY DEFAULT. Where always does.
func AllowEmptyDeletes() FilterOption {
	return filterOption(func(r *filterRule) { r.emptyDeletes = true })
}

// PassUnchanged lets updates pass that do not hold the value that decides (see Filter): whoever reads
// them may see rows that the condition hides.
func PassUnchanged() FilterOption {
	return filterOption(func(r *filterRule) { r.undecided = passUndecided })
}

// DropUnchanged drops updates that do not hold the value that decides (see Filter): the destination may
// miss changes.
func DropUnchanged() FilterOption {
	return filterOption(func(r *filterRule) { r.undecided = dropUndecided })
}

type undecidedMode uint8

const (
	stopUndecided undecidedMode = iota
	passUndecided
	dropUndecided
)

type filterRule struct {
	name         string
	condition    Condition
	where        bool
	emptyDeletes bool
	undecided    undecidedMode
	truncate     *truncateMode
}

func (r *filterRule) String() string { return r.name + "(" + r.condition.String() + ")" }

// Validate implements the optional method that Validate looks for.
func (r *filterRule) Validate() error {
	if err := r.condition.validate(); err != nil {
		return fmt.Errorf("rules: %s: %w", r, err)
	}
	if r.where && r.undecided != stopUndecided {
		return fmt.Errorf("rules: %w: %s: PassUnchanged and DropUnchanged are options of Filter: a Where cannot guess", ErrInvalidRule, r)
	}
	return nil
}

// Bind implements Rule.
func (r *filterRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *filterRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	names := r.condition.columns()
	found, err := findColumns(r.String(), s, names)
	if err != nil || len(found) == 0 {
		return s.unchanged(), err
	}
	p, err := r.condition.bind(s.in)
	if err != nil {
		return bound{}, &BindError{r.String(), s.in.Qualified(), err}
	}
	f := &filterFunc{filterRule: r, in: s.in, matches: p}
	run := f.filter
	if r.where {
		if err := checkWhole(r.String(), s); err != nil {
			return bound{}, err
		}
		run = f.where
	}
	b := s.run(s.in, run)
	if r.where && blind(s, names) {
		b.blind = r.String()
	}
	switch {
	case s.ops != 0 && !s.ops.has(decode.OpTruncate):
	case r.truncate != nil:
		b.truncate.mode = *r.truncate
	default:
		b.truncate = truncation{refuseTruncate, r.String()}
	}
	return b, nil
}

// filterFunc is a filter that is bound to a relation.
type filterFunc struct {
	*filterRule
	in      *decode.Relation
	matches predicate
}

// check guards a change's rows.
func (f *filterFunc) check(c *decode.Change) error {
	if err := checkShape(c.Old, f.in); err != nil {
		return err
	}
	return checkShape(c.New, f.in)
}

// ask evaluates the condition.
func (f *filterFunc) ask(v view) (truth, error) {
	t, err := f.matches(v)
	if err != nil {
		return 0, fmt.Errorf("rules: %s, table %s: %w", f, f.in.Qualified(), err)
	}
	return t, nil
}

// fullOld gives the whole old row, nil if there is none.
func fullOld(c *decode.Change) decode.Row {
	if c.OldKey {
		return nil
	}
	return c.Old
}

// newView is the new row, with what an update left in place taken from the old one.
func newView(c *decode.Change) view { return view{row: c.New, fill: fullOld(c)} }

func (f *filterFunc) filter(c *decode.Change) (bool, error) {
	v := newView(c)
	switch c.Op {
	case decode.OpInsert, decode.OpUpdate:
	case decode.OpDelete:
		v = view{row: c.Old}
	default:
		return true, nil
	}
	if v.row == nil {
		return true, nil
	}
	if err := f.check(c); err != nil {
		return false, err
	}
	t, err := f.ask(v)
	switch {
	case err != nil:
		return false, err
	case t == isTrue:
		return true, nil
	case !t.may(isTrue):
		return false, nil
	case c.Op == decode.OpDelete:
		return f.emptyDeletes, nil
	case f.undecided != stopUndecided:
		return f.undecided == passUndecided, nil
	}
	return false, f.cannotTell(c)
}

func (f *filterFunc) cannotTell(c *decode.Change) error {
	return fmt.Errorf("rules: %s, table %s: %w: the %s does not hold the value that decides (PostgreSQL leaves large values out that an update did not change): ALTER TABLE … REPLICA IDENTITY FULL",
		f, f.in.Qualified(), ErrUndecided, c.Op)
}
