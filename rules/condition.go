package rules

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
)

// Condition is what Filter and Where ask of a row. It follows SQL: a comparison with a NULL is unknown,
// And, Or and Not carry that on, and unknown is not true.
//
// Values are compared by the column's type: numbers exactly, whatever their digits; timestamps with
// time zone as instants; text, varchar, char(n) by code point (COLLATE "C"), citext in lower case; enums
// in the order of their labels; dates, times, intervals, booleans, uuid, bytea as PostgreSQL does. A
// value may be a string in the form in which PostgreSQL writes the column's type, or a Go number,
// boolean, time.Time (against a timestamp without time zone: in UTC), []byte, or fmt.Stringer. What can't be compared with the column is an error when
// the rule meets the table, never a silent false.
//
// The zero Condition is invalid.
type Condition struct {
	op     operator
	column string
	values []any
	subs   []Condition
}

type operator uint8

const (
	opNone operator = iota
	opEq
	opNe
	opGt
	opGte
	opLt
	opLte
	opContains
	opIn
	opMatches
	opIsNull
	opAnd
	opOr
	opNot
)

// operatorNames are those of the rules file, in the operators' order.
var operatorNames = [...]string{"", "eq", "ne", "gt", "gte", "lt", "lte", "contains", "in", "regex", "is_null", "all", "any", "not"}

var operatorSigns = [...]string{"", "=", "<>", ">", ">=", "<", "<=", "contains", "in", "matches", "is null", "and", "or", "not"}

// Eq is column = value.
func Eq(column string, value any) Condition { return compareWith(opEq, column, value) }

// Ne is column <> value.
func Ne(column string, value any) Condition { return compareWith(opNe, column, value) }

// Gt is column > value.
func Gt(column string, value any) Condition { return compareWith(opGt, column, value) }

// Gte is column >= value.
func Gte(column string, value any) Condition { return compareWith(opGte, column, value) }

// Lt is column < value.
func Lt(column string, value any) Condition { return compareWith(opLt, column, value) }

// Lte is column <= value.
func Lte(column string, value any) Condition { return compareWith(opLte, column, value) }

// In is column IN (values …).
func In(column string, values ...any) Condition {
	return Condition{op: opIn, column: column, values: slices.Clone(values)}
}

// Contains is true where a text column has part in it; of citext, whatever the case.
func Contains(column, part string) Condition { return compareWith(opContains, column, part) }

// Matches is true where a regular expression in Go's syntax matches somewhere in a text column. Its
// running time is linear in the value's length, whatever the pattern.
func Matches(column, pattern string) Condition { return compareWith(opMatches, column, pattern) }

// IsNull is column IS NULL. It works on every type. Not(IsNull(column)) is column IS NOT NULL.
func IsNull(column string) Condition { return Condition{op: opIsNull, column: column} }

// And is true where all conditions are.
func And(all ...Condition) Condition { return Condition{op: opAnd, subs: slices.Clone(all)} }

// Or is true where one of the conditions is.
func Or(some ...Condition) Condition { return Condition{op: opOr, subs: slices.Clone(some)} }

// Not is true where c is false; where c is unknown, so is Not.
func Not(c Condition) Condition { return Condition{op: opNot, subs: []Condition{c}} }

func compareWith(op operator, column string, value any) Condition {
	return Condition{op: op, column: column, values: []any{value}}
}

// String writes the condition for people.
func (c Condition) String() string {
	switch c.op {
	case opNone:
		return "no condition"
	case opIsNull:
		return fmt.Sprintf("%q is null", c.column)
	case opNot:
		return "not (" + c.subs[0].String() + ")"
	case opAnd, opOr:
		parts := make([]string, len(c.subs))
		for i, s := range c.subs {
			parts[i] = "(" + s.String() + ")"
		}
		return strings.Join(parts, " "+operatorSigns[c.op]+" ")
	case opIn:
		return fmt.Sprintf("%q in %s", c.column, quoteAll(literalTexts(c.values)))
	}
	return fmt.Sprintf("%q %s %s", c.column, operatorSigns[c.op], quoteAll(literalTexts(c.values)))
}

func literalTexts(values []any) []string {
	out := make([]string, len(values))
	for i, v := range values {
		l, err := literalOf(v)
		if err != nil {
			l.text = fmt.Sprintf("%T", v)
		}
		out[i] = l.text
	}
	return out
}

// validate reports what is wrong before any table is known.
func (c Condition) validate() error {
	if c.op == opNone {
		return fmt.Errorf("%w: the zero Condition asks nothing: use Eq, In, IsNull …", ErrInvalidRule)
	}
	if c.op >= opAnd {
		if len(c.subs) == 0 {
			return fmt.Errorf("%w: And and Or need a condition", ErrInvalidRule)
		}
		var errs []error
		for _, s := range c.subs {
			errs = append(errs, s.validate())
		}
		return errors.Join(errs...)
	}
	if c.column == "" {
		return fmt.Errorf("%w: name the column of the condition %s", ErrInvalidRule, operatorNames[c.op])
	}
	if c.op == opIn && len(c.values) == 0 {
		return fmt.Errorf("%w: In(%q) needs a value", ErrInvalidRule, c.column)
	}
	for _, v := range c.values {
		l, err := literalOf(v)
		if err != nil {
			return err
		}
		if c.op == opMatches {
			if _, err := regexp.Compile(l.text); err != nil {
				return fmt.Errorf("%w: %w", ErrInvalidRule, err)
			}
		}
	}
	return nil
}

// columns gives the names that the condition reads, each once.
func (c Condition) columns() []string {
	var names []string
	if c.column != "" {
		names = append(names, c.column)
	}
	for _, s := range c.subs {
		names = append(names, s.columns()...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// bind resolves columns and values for a relation that has all the columns.
func (c Condition) bind(in *decode.Relation) (predicate, error) {
	if c.op >= opAnd {
		subs := make([]predicate, len(c.subs))
		for i, s := range c.subs {
			p, err := s.bind(in)
			if err != nil {
				return nil, err
			}
			subs[i] = p
		}
		return combine(c.op, subs), nil
	}
	i := in.Column(c.column)
	if i < 0 {
		return nil, fmt.Errorf("%w: %q", ErrNoColumn, c.column)
	}
	key := in.Columns[i].Key
	if c.op == opIsNull {
		return func(v view) (truth, error) {
			switch v.at(i, key).Presence() {
			case decode.Absent:
				return isTrue | isFalse, nil
			case decode.Null:
				return isTrue, nil
			}
			return isFalse, nil // a value that an update left out of line is none
		}, nil
	}
	test, err := c.test(&in.Columns[i])
	if err != nil {
		return nil, err
	}
	return func(v view) (truth, error) {
		x := v.at(i, key)
		switch x.Presence() {
		case decode.Absent:
			return isTrue | isFalse | isNull, nil
		case decode.Unchanged:
			return isTrue | isFalse, nil
		case decode.Null:
			return isNull, nil
		}
		ok, err := test(x.Bytes())
		if err != nil {
			return 0, fmt.Errorf("column %q: %w", in.Columns[i].Name, err)
		}
		return truthOf(ok), nil
	}, nil
}

func combine(op operator, subs []predicate) predicate {
	if op == opNot {
		return func(v view) (truth, error) {
			t, err := subs[0](v)
			return t.not(), err
		}
	}
	merge, settled := truth.and, isFalse
	if op == opOr {
		merge, settled = truth.or, isTrue
	}
	return func(v view) (truth, error) {
		var all truth
		for i, p := range subs {
			t, err := p(v)
			if err != nil {
				return 0, err
			}
			if i == 0 {
				all = t
			} else {
				all = merge(all, t)
			}
			if all == settled {
				break
			}
		}
		return all, nil
	}
}

// test makes the comparison of one column with the condition's values.
func (c Condition) test(col *decode.Column) (func(text []byte) (bool, error), error) {
	cmp, err := comparerOf(col)
	if err != nil {
		return nil, err
	}
	if c.op == opContains || c.op == opMatches {
		return c.textTest(col, cmp)
	}
	tests := make([]func([]byte) (int, error), len(c.values))
	for i, v := range c.values {
		l, err := literalOf(v)
		if err != nil {
			return nil, err
		}
		text, err := cmp.canonical(l)
		if err != nil {
			return nil, fmt.Errorf("%q, of type %s: %w", col.Name, typeName(col.Type), err)
		}
		tests[i] = cmp.against(text)
		if cmp.byText && (c.op == opEq || c.op == opNe || c.op == opIn) {
			tests[i] = func(x []byte) (int, error) { return strings.Compare(string(x), text), nil }
		}
	}
	if c.op == opIn {
		return func(text []byte) (bool, error) {
			for _, t := range tests {
				if n, err := t(text); err != nil || n == 0 {
					return err == nil, err
				}
			}
			return false, nil
		}, nil
	}
	if !cmp.ordered && c.op != opEq && c.op != opNe {
		return nil, fmt.Errorf("%w: the order of enum %s is not known: use Eq, Ne or In", ErrType, typeName(col.Type))
	}
	against, holds := tests[0], c.op.holds()
	return func(text []byte) (bool, error) {
		n, err := against(text)
		return err == nil && holds(n), err
	}, nil
}

// holds says which outcomes of a comparison make the operator true.
func (op operator) holds() func(int) bool {
	switch op {
	case opEq:
		return func(n int) bool { return n == 0 }
	case opNe:
		return func(n int) bool { return n != 0 }
	case opGt:
		return func(n int) bool { return n > 0 }
	case opGte:
		return func(n int) bool { return n >= 0 }
	case opLt:
		return func(n int) bool { return n < 0 }
	}
	return func(n int) bool { return n <= 0 }
}

// textTest is of the operators that look into text.
func (c Condition) textTest(col *decode.Column, cmp *comparer) (func([]byte) (bool, error), error) {
	if !cmp.text {
		return nil, fmt.Errorf("%w: %q is of type %s; contains and regex look into text, varchar, char(n), citext and domains over them", ErrType, col.Name, typeName(col.Type))
	}
	l, err := literalOf(c.values[0])
	if err != nil {
		return nil, err
	}
	if err := l.wants(textLiteral, "text"); err != nil {
		return nil, err
	}
	if c.op == opMatches {
		pattern := l.text
		if t := baseOf(col.Type); t.Name == "citext" {
			pattern = "(?i:" + pattern + ")"
		}
		re, err := regexp.Compile(pattern)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalidRule, err)
		}
		trim := func(b []byte) []byte { return b }
		if t := baseOf(col.Type); t.Name == "bpchar" {
			trim = cmp.plain
		}
		return func(text []byte) (bool, error) { return re.Match(trim(text)), nil }, nil
	}
	part := []byte(l.text)
	if t := baseOf(col.Type); t.Name == "citext" {
		part = bytes.ToLower(part)
	}
	return func(text []byte) (bool, error) { return bytes.Contains(cmp.plain(text), part), nil }, nil
}
