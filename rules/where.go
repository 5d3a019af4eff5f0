package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
)

// Where keeps the destination equal to the filtered source: what SELECT … WHERE condition gives there.
// An update that takes a row out of the condition becomes a delete, one that brings a row in an insert.
//
// Under REPLICA IDENTITY FULL the old row tells which. Otherwise only the key is known of it, and unless
// the key alone decides, each update whose new row matches becomes an insert that replaces the row of
// that key, if there is one: its Old holds the old key (OldKey). Each update whose new row does not match
// becomes a delete, and deletes pass, whether the destination has the row or not (under
// sink/postgres's WithReplicaRole use WithMissingRowsCounted).
//
// A row that comes in has to be whole. PostgreSQL leaves large values out that an update did not
// change; so a table with a column that could be that large (see docs/rules.md) needs REPLICA IDENTITY
// FULL, or Exclude before Where: otherwise it is an ErrNeedsFull when the rule meets the table.
//
// For the same reason a table without FULL may not meet another one at a destination, unless both are
// partitions of one table: deletes of rows that never passed would take the other table's (ErrNeedsFull).
//
// It takes Filter's options for TRUNCATE, and is refused at start without one, as Filter is: PassTruncate
// keeps the destination equal, if nothing else writes to the table there. Tables that have none of the columns are left alone, unless
// Table names them exactly.
func Where(c Condition, opts ...FilterOption) Rule {
	r := &filterRule{name: "Where", condition: c, where: true}
	for _, o := range opts {
		o.filter(r)
	}
	return r
}

func (f *filterFunc) where(c *decode.Change) (bool, error) {
	if err := f.check(c); err != nil {
		return false, err
	}
	switch c.Op {
	case decode.OpInsert:
		return f.whereInsert(c)
	case decode.OpUpdate:
		return f.whereUpdate(c)
	case decode.OpDelete:
		if c.Old == nil {
			return true, nil
		}
		t, err := f.ask(view{row: c.Old})
		return err == nil && t.may(isTrue), err
	}
	return true, nil
}

// whereInsert takes an insert of the source, or one that another Where has made of an update: that one may
// take the place of a row, of which Old holds the key, and which must go if it is not to be replaced.
func (f *filterFunc) whereInsert(c *decode.Change) (bool, error) {
	now, err := f.ask(view{row: c.New})
	if err == nil && now != isTrue && now.may(isTrue) {
		err = f.cannotTell(c)
	}
	if err != nil || c.Old == nil {
		return now == isTrue, err
	}
	was, err := f.ask(view{row: c.Old})
	switch {
	case err != nil:
		return false, err
	case !was.may(isTrue): // by its key alone: it has never passed
		c.Old, c.OldKey = nil, false
		return now == isTrue, nil
	case now != isTrue:
		c.Op, c.New = decode.OpDelete, nil
	}
	return true, nil
}

func (f *filterFunc) whereUpdate(c *decode.Change) (bool, error) {
	now, err := f.ask(newView(c))
	if err != nil {
		return false, err
	}
	if now != isTrue && now.may(isTrue) {
		return false, f.cannotTell(c)
	}
	before := view{row: c.Old}
	if c.Old == nil { // the key is what it was; of the rest nothing is known
		before = view{row: c.New, keyOnly: true}
	}
	was, err := f.ask(before)
	if err != nil {
		return false, err
	}
	switch {
	case now == isTrue && was == isTrue:
		return true, nil
	case now == isTrue && !was.may(isTrue):
		return true, f.enter(c, nil)
	case now == isTrue:
		return true, f.enter(c, f.oldKey(c))
	case !was.may(isTrue):
		return false, nil
	}
	c.OldKey = c.OldKey || c.Old == nil
	c.Op, c.Old, c.New = decode.OpDelete, f.oldKey(c), nil
	return true, nil
}

// oldKey gives the row by which the destination finds the old one.
func (f *filterFunc) oldKey(c *decode.Change) decode.Row {
	if c.Old != nil {
		return c.Old
	}
	key := make(decode.Row, len(c.New))
	for i := range key {
		if f.in.Columns[i].Key {
			key[i] = c.New[i]
		}
	}
	return key
}

// enter makes an insert of an update. With replaces, the key of a row that may be there and that the
// insert takes the place of.
func (f *filterFunc) enter(c *decode.Change, replaces decode.Row) error {
	old := fullOld(c)
	for i := range c.New {
		if c.New[i].Presence() != decode.Unchanged {
			continue
		}
		if old == nil || old[i].Presence() == decode.Unchanged || old[i].Presence() == decode.Absent {
			return f.cannotTell(c)
		}
		c.New[i] = old[i]
	}
	c.Op, c.Old, c.OldKey = decode.OpInsert, replaces, replaces != nil
	return nil
}

// checkWhole refuses a table of which an update may leave a value out that Where then lacks.
func checkWhole(rule string, s scope) error {
	if s.in.Identity == decode.IdentityFull || !s.in.HasKey() || !s.ops.has(decode.OpUpdate) {
		return nil // without a key and without FULL, PostgreSQL refuses updates
	}
	var large []string
	for i := range s.in.Columns {
		if c := &s.in.Columns[i]; mayBeUnchanged(c) {
			large = append(large, fmt.Sprintf("%q (%s)", c.Name, typeName(c.Type)))
		}
	}
	if large == nil {
		return nil
	}
	return &BindError{rule, s.in.Qualified(), fmt.Errorf("%w: an update may leave out %s: ALTER TABLE … REPLICA IDENTITY FULL, or Exclude what you do not need before Where",
		ErrNeedsFull, strings.Join(large, ", "))}
}

// blind reports whether a Where may delete or replace rows of which it doesn't know whether they have passed:
// only the old rows' keys are known, and the key alone doesn't decide.
func blind(s scope, columns []string) bool {
	return s.in.HasKey() && (s.ops.has(decode.OpUpdate) || s.ops.has(decode.OpDelete)) &&
		slices.ContainsFunc(columns, func(c string) bool { i := s.in.Column(c); return i < 0 || !s.in.Columns[i].Key })
}

// A value is moved out of the row (and then left out of an update that did not change it) only if it is
// larger than the pointer that takes its place, rounded up, its header included.
// https://github.com/postgres/postgres/blob/master/src/backend/access/table/toast_helper.c (toast_tuple_find_biggest_attribute)
const largestInline = 24

// mayBeUnchanged reports whether PostgreSQL may leave a column's value out of an update that did not
// change it: types of variable length, if a value can be longer than largestInline.
func mayBeUnchanged(c *decode.Column) bool {
	t := c.Type
	if t == nil {
		return true
	}
	if t.Kind == decode.EnumType {
		return false
	}
	if t.Kind == decode.DomainType { // its modifiers are not known
		return mayBeUnchanged(&decode.Column{Type: t.Elem, Modifier: -1})
	}
	if t.Kind != decode.BaseType || t.Schema != "pg_catalog" {
		return true
	}
	if n, ok := maxCharacters(c); ok {
		const longest = 4 // bytes of a character in UTF-8, the most of all encodings
		return variableHeader+n*longest > largestInline
	}
	if digits, _, ok := precision(c); ok { // 2 bytes each 4 digits, both sides of the point rounded up, and 4 bytes of its own
		return variableHeader+4+2*(digits/4+2) > largestInline
	}
	switch t.Name {
	case "bool", "char", "name", "int2", "int4", "int8", "oid", "tid", "xid", "xid8", "cid", "pg_lsn", "float4", "float8", "money",
		"date", "time", "timetz", "timestamp", "timestamptz", "interval", "uuid", "point", "lseg", "box", "line", "circle",
		"macaddr", "macaddr8", "inet", "cidr",
		"regproc", "regprocedure", "regoper", "regoperator", "regclass", "regtype", "regrole", "regnamespace", "regconfig", "regdictionary", "regcollation":
		return false
	}
	return true
}
