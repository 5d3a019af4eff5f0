package decode

import (
	"encoding/base64"
	"fmt"
	"strconv"
	"time"
)

// AppendJSON appends the change as one JSON object on one line, without a newline. Its fields, in
// this order, each left out where it does not apply:
//
//	op           "insert", "update", "delete", "truncate", "schema" or "message"
//	schema       of the table, exact case
//	table        its name, exact case
//	key          object: the replica identity's columns of the row, as new has them, of a delete as
//	             old has them. Left out if the table has no key (or its identity is FULL).
//	new          object: the row behind an insert or update, column name to value
//	old          object: the row before, as far as PostgreSQL sent it: the key columns only, or with
//	             REPLICA IDENTITY FULL all of them
//	unchanged    array: names of the columns that the update left alone and that PostgreSQL therefore
//	             did not send (large, out-of-line values); they are not in new
//	tables       truncate: array of {"schema", "table"}
//	cascade, restart_identity   truncate: booleans
//	tag, query, baseline, observed, tables, types, schemas, dropped, failed
//	             schema: what SchemaChange has, under the names of its JSON
//	prefix, content, transactional   message: content is base64
//	lsn          the transaction's commit LSN, for example "0/16B3748"
//	ordinal      number of the change in its transaction, from 1; (lsn, ordinal) identifies the change
//	xid          the transaction's ID at the source
//	commit_time  RFC 3339 with nanoseconds, UTC
//	origin       replication origin, if it has one
//	copy         of copied rows only, in place of the five before: their identity, "point:table:attempt:range:row"
//
// Values: NULL is null; smallint to bigint, real, double precision, numeric and oid are numbers with
// every digit that PostgreSQL sends, NaN and infinities strings; boolean is true or false; json and
// jsonb stand as they are, but for white space between tokens; bytea is base64 in a string. All other
// types (arrays, dates, ranges, enums …) are PostgreSQL's text in a string. A domain is written as
// its base type. Absent columns are left out. Bytes that are not UTF-8 become U+FFFD.
//
// It fails if c is not whole: an operation without what it needs, or a row that does not match the
// relation. Nothing is appended then.
func (c *Change) AppendJSON(dst []byte) ([]byte, error) {
	start := len(dst)
	dst = append(dst, `{"op":"`...)
	dst = append(dst, c.Op.String()...)
	dst = append(dst, '"')
	if c.Relation != nil {
		dst = appendTable(append(dst, ','), c.Relation)
	}
	var err error
	switch {
	case c.Op == OpInsert || c.Op == OpUpdate || c.Op == OpDelete:
		dst, err = c.appendRows(dst)
	case c.Op == OpTruncate && c.Truncate != nil:
		dst = c.Truncate.appendJSON(dst)
	case c.Op == OpSchema && c.Schema != nil:
		dst, err = c.Schema.appendJSON(dst)
	case c.Op == OpMessage && c.Message != nil:
		dst = c.Message.appendJSON(dst)
	default:
		err = fmt.Errorf("decode: JSON of a change: operation %d (%s) without its content", c.Op, c.Op)
	}
	if err != nil {
		return dst[:start], err
	}
	return append(c.appendPosition(dst), '}'), nil
}

// MarshalJSON gives what AppendJSON appends.
func (c *Change) MarshalJSON() ([]byte, error) { return c.AppendJSON(nil) }

// MarshalJSON gives the value as AppendJSON writes it. An absent or unchanged one is an error
// (ErrNoValue): JSON has nothing that means it.
func (v Value) MarshalJSON() ([]byte, error) {
	if v.presence != Null && v.presence != Present {
		return nil, v.fail("JSON", ErrNoValue)
	}
	return appendValue(nil, &v), nil
}

func appendTable(dst []byte, r *Relation) []byte {
	dst = appendString(append(dst, `"schema":`...), r.Schema)
	return appendString(append(dst, `,"table":`...), r.Name)
}

// checkRows finds a row without a relation, or that does not match it.
func (c *Change) checkRows() error {
	if c.Relation == nil {
		return fmt.Errorf("decode: JSON of a change: %s without a relation", c.Op)
	}
	for _, row := range [...]Row{c.New, c.Old} {
		if row != nil && len(row) != len(c.Relation.Columns) {
			return fmt.Errorf("decode: JSON of a change: row of %d columns, %s has %d", len(row), c.Relation.Qualified(), len(c.Relation.Columns))
		}
	}
	return nil
}

func (c *Change) appendRows(dst []byte) ([]byte, error) {
	if err := c.checkRows(); err != nil {
		return dst, err
	}
	rel := c.Relation
	if rel.HasKey() {
		dst = c.appendKey(dst)
	}
	if c.New != nil {
		dst = appendRow(append(dst, `,"new":`...), rel, c.New)
	}
	if c.Old != nil {
		dst = appendRow(append(dst, `,"old":`...), rel, c.Old)
	}
	return appendUnchanged(dst, rel, c.New), nil
}

// appendKey takes a key column that the update left alone (a large one) from the old row.
func (c *Change) appendKey(dst []byte) []byte {
	dst = append(dst, `,"key":{`...)
	empty := true
	for i := range c.Relation.Columns {
		col := &c.Relation.Columns[i]
		if !col.Key {
			continue
		}
		var v Value
		if c.New != nil {
			v = c.New[i]
		}
		if c.Old != nil && (c.New == nil || v.presence == Unchanged) {
			v = c.Old[i]
		}
		dst, empty = appendMember(dst, col, &v, empty)
	}
	return append(dst, '}')
}

func appendRow(dst []byte, rel *Relation, row Row) []byte {
	dst = append(dst, '{')
	empty := true
	for i := range row {
		dst, empty = appendMember(dst, &rel.Columns[i], &row[i], empty)
	}
	return append(dst, '}')
}

// appendMember appends a column that is null or has a value.
func appendMember(dst []byte, col *Column, v *Value, empty bool) ([]byte, bool) {
	if v.presence != Null && v.presence != Present {
		return dst, empty
	}
	if !empty {
		dst = append(dst, ',')
	}
	dst = append(appendString(dst, col.Name), ':')
	return appendValue(dst, v), false
}

func appendUnchanged(dst []byte, rel *Relation, row Row) []byte {
	empty := true
	for i := range row {
		if row[i].presence != Unchanged {
			continue
		}
		if empty {
			dst = append(dst, `,"unchanged":[`...)
		} else {
			dst = append(dst, ',')
		}
		dst, empty = appendString(dst, rel.Columns[i].Name), false
	}
	if !empty {
		dst = append(dst, ']')
	}
	return dst
}

func (t *Truncate) appendJSON(dst []byte) []byte {
	dst = append(dst, `,"tables":[`...)
	for i, r := range t.Relations {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendTable(append(dst, '{'), r), '}')
	}
	dst = strconv.AppendBool(append(dst, `],"cascade":`...), t.Cascade)
	return strconv.AppendBool(append(dst, `,"restart_identity":`...), t.RestartIdentity)
}

func (m *Message) appendJSON(dst []byte) []byte {
	dst = appendString(append(dst, `,"prefix":`...), m.Prefix)
	dst = base64.StdEncoding.AppendEncode(append(dst, `,"content":"`...), m.Content)
	return strconv.AppendBool(append(dst, `","transactional":`...), m.Transactional)
}

func (c *Change) appendPosition(dst []byte) []byte {
	if c.Copy != nil {
		dst = c.Copy.append(append(dst, `,"copy":"`...))
		return append(dst, '"')
	}
	if c.Tx == nil {
		return dst
	}
	dst = c.Tx.CommitLSN.append(append(dst, `,"lsn":"`...))
	dst = strconv.AppendUint(append(dst, `","ordinal":`...), c.Ordinal, 10)
	dst = strconv.AppendUint(append(dst, `,"xid":`...), uint64(c.Tx.XID), 10)
	dst = c.Tx.CommitTime.UTC().AppendFormat(append(dst, `,"commit_time":"`...), time.RFC3339Nano)
	dst = append(dst, '"')
	if c.Tx.Origin != "" {
		dst = appendString(append(dst, `,"origin":`...), c.Tx.Origin)
	}
	return dst
}
