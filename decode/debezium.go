package decode

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"runtime/debug"
	"strconv"
	"time"
)

// DebeziumUnavailable stands in Debezium's envelope for a value that the update left alone and that
// PostgreSQL did not send: the default of Debezium's unavailable.value.placeholder. In a bytea column
// it is base64, like any value there.
const DebeziumUnavailable = "__debezium_unavailable_value"

// DebeziumOption changes what Debezium writes.
type DebeziumOption func(*debezium)

// DebeziumDatabase sets the database's name in the source block. Default: "".
func DebeziumDatabase(name string) DebeziumOption { return func(d *debezium) { d.database = name } }

// DebeziumClock sets the clock of ts_ms. Default: time.Now.
func DebeziumClock(now func() time.Time) DebeziumOption { return func(d *debezium) { d.now = now } }

// debezium is the envelope's settings.
type debezium struct {
	version, name, database string
	now                     func() time.Time
}

// Debezium gives the Encoder of Debezium's envelope, as its JSON converter writes it without schemas,
// so that what reads Debezium's events reads flo's. name is what Debezium calls topic.prefix. Fields:
//
//	op       "c" (insert), "u", "d", "r" (copied row), "t" (truncate), "m" (message); "s" is flo's own
//	         addition for a schema change, which has ddl, tag and change (SchemaChange's JSON without the
//	         query) in place of before and after
//	before   the row before, as far as PostgreSQL sent it (the key columns only, unless the table has
//	         REPLICA IDENTITY FULL), or null
//	after    the row behind, or null. Unchanged large values are DebeziumUnavailable.
//	message  of "m": {"transactional", "prefix", "content"}, content in base64
//	source   {"version", "connector": "flo", "name", "ts_ms", "snapshot", "db", "schema", "table",
//	         "txId", "lsn", "ordinal"}: ts_ms is the commit's time, lsn the transaction's commit LSN as
//	         a number, ordinal the change's number in the transaction: lsn and ordinal identify it, where
//	         Debezium's lsn is the row's own. For a copied row ts_ms and txId are null, lsn is the
//	         snapshot's, and "copy" takes ordinal's place.
//	ts_ms    when the change was encoded
//
// As in Debezium, an update that changes the key is two events, "d" with the old key and "c" with the
// new row, and a truncate is one for each table: on lines of their own, with the same lsn and ordinal.
// Tombstones are not written. Columns that PostgreSQL did not send are left out of before, where
// Debezium writes null.
//
// Values are as AppendJSON writes them, but for these, which are as Debezium's default settings have them:
//
//	json, jsonb          a string that holds JSON
//	date                 number: days since 1970-01-01
//	timestamp            number: microseconds since 1970-01-01 (timestamp(0) to (3): milliseconds)
//	time                 number: microseconds since midnight (time(0) to (3): milliseconds)
//	timestamptz, timetz  "2024-02-29T12:00:00.5Z", "12:00:00.5Z"
//	interval             "P1Y2M3DT4H5M6.78S", as with interval.handling.mode=string
//	hstore               a string that holds a JSON object
//	money                number
//	arrays               JSON arrays of such values, one in the other for each dimension; lower bounds
//	                     are lost
//
// What has no such form (infinity, a timestamptz outside of years 1 to 9999) is PostgreSQL's text. numeric
// stays a number with all digits, where Debezium's default is base64 of its unscaled value, and bit, point
// and unknown types stay text.
//
// https://debezium.io/documentation/reference/stable/connectors/postgresql.html#postgresql-events
func Debezium(name string, options ...DebeziumOption) Encoder {
	d := &debezium{version: moduleVersion(), name: name, now: time.Now}
	for _, o := range options {
		o(d)
	}
	return func(dst []byte, c *Change) ([]byte, error) {
		out, err := d.append(dst, c)
		if err != nil {
			return dst, err
		}
		return out, nil
	}
}

// moduleVersion is flo's version as the program was built with it.
func moduleVersion() string {
	const module = "github.com/pgflo/flo"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == module && m.Version != "" {
				return m.Version
			}
		}
	}
	return "(devel)"
}

func (d *debezium) append(dst []byte, c *Change) ([]byte, error) {
	switch {
	case c.Op == OpInsert || c.Op == OpUpdate || c.Op == OpDelete:
		return d.appendRows(dst, c)
	case c.Op == OpTruncate && c.Truncate != nil:
		for i, r := range c.Truncate.Relations {
			if i > 0 {
				dst = append(dst, '\n')
			}
			dst = append(dst, `{"op":"t","before":null,"after":null`...)
			dst = d.appendSource(dst, c, r)
		}
		return dst, nil
	case c.Op == OpMessage && c.Message != nil:
		dst = append(dst, `{"op":"m","message":{"transactional":`...)
		dst = strconv.AppendBool(dst, c.Message.Transactional)
		dst = appendString(append(dst, `,"prefix":`...), c.Message.Prefix)
		dst = base64.StdEncoding.AppendEncode(append(dst, `,"content":"`...), c.Message.Content)
		return d.appendSource(append(dst, `"}`...), c, nil), nil
	case c.Op == OpSchema && c.Schema != nil:
		dst = appendString(append(dst, `{"op":"s","tag":`...), c.Schema.Tag)
		dst = appendString(append(dst, `,"ddl":`...), c.Schema.Query)
		if s := *c.Schema; s.HasStructure() {
			s.Query = ""
			start := len(dst)
			var err error
			if dst, err = s.appendJSON(append(dst, `,"change":`...)); err != nil {
				return dst, err
			}
			dst[start+len(`,"change":`)] = '{'
			dst = append(dst, '}')
		}
		return d.appendSource(dst, c, c.Relation), nil
	}
	return dst, fmt.Errorf("decode: Debezium's JSON of a change: operation %d (%s) without its content", c.Op, c.Op)
}

func (d *debezium) appendRows(dst []byte, c *Change) ([]byte, error) {
	if err := c.checkRows(); err != nil {
		return dst, err
	}
	switch {
	case c.Copy != nil:
		return d.appendEvent(dst, c, 'r', nil, c.New), nil
	case c.OldKey && c.keyChanged():
		dst = d.appendEvent(dst, c, 'd', c.Old, nil)
		return d.appendEvent(append(dst, '\n'), c, 'c', nil, c.New), nil
	case c.Op == OpInsert:
		return d.appendEvent(dst, c, 'c', nil, c.New), nil
	case c.Op == OpDelete:
		return d.appendEvent(dst, c, 'd', c.Old, nil), nil
	}
	return d.appendEvent(dst, c, 'u', c.Old, c.New), nil
}

// keyChanged compares the key columns of a key-only old row with the new one's. PostgreSQL sends the
// old key too when the key is large and unchanged.
func (c *Change) keyChanged() bool {
	for i := range c.Relation.Columns {
		if c.Relation.Columns[i].Key && i < len(c.New) && i < len(c.Old) && c.New[i].presence != Unchanged &&
			(c.New[i].presence != c.Old[i].presence || !bytes.Equal(c.New[i].data, c.Old[i].data)) {
			return true
		}
	}
	return false
}

func (d *debezium) appendEvent(dst []byte, c *Change, op byte, before, after Row) []byte {
	dst = append(append(append(dst, `{"op":"`...), op), `","before":`...)
	dst = appendDebeziumRow(dst, c.Relation, before)
	dst = appendDebeziumRow(append(dst, `,"after":`...), c.Relation, after)
	return d.appendSource(dst, c, c.Relation)
}

func appendDebeziumRow(dst []byte, rel *Relation, row Row) []byte {
	if row == nil {
		return append(dst, "null"...)
	}
	dst = append(dst, '{')
	empty := true
	for i := range row {
		if row[i].presence == Absent {
			continue
		}
		if !empty {
			dst = append(dst, ',')
		}
		empty = false
		dst = append(appendString(dst, rel.Columns[i].Name), ':')
		dst = appendDebeziumValue(dst, row[i], rel.Columns[i].Modifier)
	}
	return append(dst, '}')
}

// appendSource appends the source block, ts_ms, and the object's end. r is nil if the change is of no
// table.
func (d *debezium) appendSource(dst []byte, c *Change, r *Relation) []byte {
	dst = appendString(append(dst, `,"source":{"version":`...), d.version)
	dst = appendString(append(dst, `,"connector":"flo","name":`...), d.name)
	if c.Tx != nil {
		dst = strconv.AppendInt(append(dst, `,"ts_ms":`...), c.Tx.CommitTime.UnixMilli(), 10)
	} else {
		dst = append(dst, `,"ts_ms":null`...)
	}
	dst = strconv.AppendBool(append(dst, `,"snapshot":"`...), c.Copy != nil)
	dst = appendString(append(dst, `","db":`...), d.database)
	if r != nil {
		dst = appendTable(append(dst, ','), r)
	} else {
		dst = append(dst, `,"schema":"","table":""`...)
	}
	switch {
	case c.Tx != nil:
		dst = strconv.AppendUint(append(dst, `,"txId":`...), uint64(c.Tx.XID), 10)
		dst = strconv.AppendUint(append(dst, `,"lsn":`...), uint64(c.Tx.CommitLSN), 10)
		dst = strconv.AppendUint(append(dst, `,"ordinal":`...), c.Ordinal, 10)
	case c.Copy != nil:
		dst = strconv.AppendUint(append(dst, `,"txId":null,"lsn":`...), uint64(c.Copy.Point), 10)
		dst = append(c.Copy.append(append(dst, `,"copy":"`...)), '"')
	default:
		dst = append(dst, `,"txId":null,"lsn":null`...)
	}
	dst = strconv.AppendInt(append(dst, `},"ts_ms":`...), d.now().UnixMilli(), 10)
	return append(dst, '}')
}
