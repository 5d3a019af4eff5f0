package rules

import (
	"errors"
	"fmt"

	"github.com/pgflo/flo/decode"
)

// Why a rule can't be used, for errors.Is.
var (
	// ErrInvalidRule: the rule itself is wrong (a bad pattern, no column, a negative number).
	ErrInvalidRule = errors.New("invalid rule")
	// ErrNoColumn: the rule names a table exactly, and that table has no such column.
	ErrNoColumn = errors.New("no such column")
	// ErrKeyColumn: the rule would remove or change a column of the replica identity.
	ErrKeyColumn = errors.New("column is part of the replica identity")
	// ErrType: the column's type can't hold what the rule makes of it.
	ErrType = errors.New("column type does not fit the rule")
	// ErrNeedsFull: Where needs the table's whole old rows: ALTER TABLE … REPLICA IDENTITY FULL.
	ErrNeedsFull = errors.New("table needs REPLICA IDENTITY FULL")
	// ErrUndecided: a change does not hold the value that a condition reads.
	ErrUndecided = errors.New("the condition cannot be decided")
	// ErrTruncate: a table's rules filter it, or take several tables into one, and do not say what a
	// TRUNCATE of it means at the destination. It is known at the start: no TRUNCATE needs to come.
	ErrTruncate = errors.New("TRUNCATE refused")
	// ErrAmbiguous: a route could mean more than one table, or tables meet at one destination without
	// a word on what a TRUNCATE of one of them means.
	ErrAmbiguous = errors.New("ambiguous route")
	// ErrShape: a row doesn't have the columns that the rule was bound to. Nothing of it is passed on,
	// since a value in another column's place could be the one that the rule hides.
	ErrShape = errors.New("row does not have its relation's columns")
)

// LabelError says that an enum, as its table was described, lacks a label whose place among the others a rule
// needs, or that a rule names. It may have been added since: a worker then asks for the labels of now. It
// wraps ErrType.
type LabelError struct {
	Type  *decode.Type
	Label string
}

// Error names the type, the label and those that it has.
func (e *LabelError) Error() string {
	return fmt.Sprintf("%v: enum %s has no label %q: it has %s", ErrType, e.Type.Name, e.Label, quoteAll(e.Type.Labels))
}

// Unwrap gives ErrType.
func (e *LabelError) Unwrap() error { return ErrType }

// BindError says which rule can't be used for which table.
type BindError struct {
	Rule  string // as it was written, for example `Mask("email")`
	Table decode.Name
	Err   error
}

// Error names the rule, the table and the reason.
func (e *BindError) Error() string {
	return fmt.Sprintf("rules: %s cannot be used for table %s: %v", e.Rule, e.Table, e.Err)
}

// Unwrap gives the reason.
func (e *BindError) Unwrap() error { return e.Err }
