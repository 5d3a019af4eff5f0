package rules

import "github.com/pgflo/flo/decode"

// truth is the set of outcomes that a condition can have in SQL's three-valued logic. A row that holds
// all that the condition reads has one of them; where a value is not there (a delete's key-only old row,
// an unchanged TOAST value) there may be several.
type truth uint8

const (
	isTrue truth = 1 << iota
	isFalse
	isNull // unknown, in SQL's word
)

// may reports whether an outcome is possible.
func (t truth) may(o truth) bool { return t&o != 0 }

// not turns true and false around; unknown stays.
func (t truth) not() truth {
	out := t & isNull
	if t.may(isTrue) {
		out |= isFalse
	}
	if t.may(isFalse) {
		out |= isTrue
	}
	return out
}

// and combines the outcomes of two conditions.
// https://www.postgresql.org/docs/current/functions-logical.html
func (t truth) and(u truth) truth {
	out := t & u & isTrue
	out |= (t | u) & isFalse
	if t.may(isNull) && u.may(isTrue|isNull) || u.may(isNull) && t.may(isTrue|isNull) {
		out |= isNull
	}
	return out
}

func (t truth) or(u truth) truth { return t.not().and(u.not()).not() }

func truthOf(b bool) truth {
	if b {
		return isTrue
	}
	return isFalse
}

// view is a row as a condition reads it.
type view struct {
	row     decode.Row
	fill    decode.Row // where an unchanged value stands, if anywhere: the whole old row
	keyOnly bool       // only the key columns count: the others may have been different
}

// at gives a column's value.
func (v view) at(i int, key bool) decode.Value {
	if v.keyOnly && !key {
		return decode.Value{}
	}
	x := v.row[i]
	if x.Presence() == decode.Unchanged && v.fill != nil {
		if f := v.fill[i]; f.Presence() == decode.Present || f.Presence() == decode.Null {
			return f
		}
	}
	return x
}

// predicate evaluates a condition that is bound to a relation.
type predicate func(v view) (truth, error)
