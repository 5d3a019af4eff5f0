//go:build unix

package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
)

// oracle is a slot of its own on the source, read at the end through SQL: PostgreSQL's own word on
// which changes there were, in which order.
type oracle struct{ slot string }

// newOracle makes it before the first write that counts.
func newOracle(r *rig) *oracle {
	r.t.Helper()
	o := &oracle{slot: "oracle_" + r.group}
	must(r.t, execute(r.ctx, r.source, `CREATE PUBLICATION oracle FOR ALL TABLES`))
	value[string](r, r.source, `SELECT slot_name::text FROM pg_create_logical_replication_slot($1, 'pgoutput')`, o.slot)
	return o
}

// decoded is a change as PostgreSQL decodes it.
type decoded struct {
	pos      decode.Position
	op       string
	rel      *pglogrepl.RelationMessage // nil for a truncate
	new, old *pglogrepl.TupleData
	tables   []uint32 // truncated
}

// decodedOf is what a message of pgoutput says of a change. The parser is not flo's.
func decodedOf(m pglogrepl.Message, rels map[uint32]*pglogrepl.RelationMessage) *decoded {
	switch m := m.(type) {
	case *pglogrepl.RelationMessage:
		rels[m.RelationID] = m
	case *pglogrepl.InsertMessage:
		return &decoded{op: "insert", rel: rels[m.RelationID], new: m.Tuple}
	case *pglogrepl.UpdateMessage:
		return &decoded{op: "update", rel: rels[m.RelationID], new: m.NewTuple, old: m.OldTuple}
	case *pglogrepl.DeleteMessage:
		return &decoded{op: "delete", rel: rels[m.RelationID], old: m.OldTuple}
	case *pglogrepl.TruncateMessage:
		return &decoded{op: "truncate", tables: m.RelationIDs}
	}
	return nil
}

// changes gives what no copy holds: a table's changes count from its own copy's point on, all others from the
// first point. The slot is dropped.
func (o *oracle) changes(r *rig, from decode.LSN, points map[uint32]decode.LSN) (all []*decoded) {
	r.t.Helper()
	conn, err := pgx.Connect(r.ctx, r.source)
	must(r.t, err)
	defer conn.Close(context.WithoutCancel(r.ctx))
	// The values' text is made in this session.
	_, err = conn.PgConn().Exec(r.ctx, "SET DateStyle = 'ISO, YMD'; SET IntervalStyle = 'postgres'; SET TimeZone = 'UTC'; SET bytea_output = 'hex'; SET extra_float_digits = 3").ReadAll()
	must(r.t, err)
	rows, err := conn.Query(r.ctx, `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'oracle')`, o.slot)
	must(r.t, err)
	defer rows.Close()
	rels := map[uint32]*pglogrepl.RelationMessage{}
	at := decode.Position{}
	for rows.Next() {
		var data []byte
		must(r.t, rows.Scan(&data))
		m, err := pglogrepl.Parse(data)
		must(r.t, err)
		if b, ok := m.(*pglogrepl.BeginMessage); ok {
			at = decode.Position{LSN: decode.LSN(b.FinalLSN)}
			continue
		}
		c := decodedOf(m, rels)
		if c == nil {
			continue
		}
		at.Ordinal++
		c.pos = at
		if c.counts(from, points) {
			all = append(all, c)
		}
	}
	must(r.t, rows.Err())
	must(r.t, execute(r.ctx, r.source, `SELECT pg_drop_replication_slot('`+o.slot+`')`))
	return all
}

// counts reports whether no copy holds the change, and leaves the tables out of a truncate whose copies do.
func (c *decoded) counts(from decode.LSN, points map[uint32]decode.LSN) bool {
	held := func(oid uint32) bool { return c.pos.LSN < max(from, points[oid]) }
	if c.rel != nil {
		return !held(c.rel.RelationID)
	}
	c.tables = slices.DeleteFunc(c.tables, held)
	return len(c.tables) > 0
}

// same compares a line of the file with the change that PostgreSQL decodes.
func (c *decoded) same(l *line) error {
	pos, err := l.position()
	switch {
	case err != nil:
		return err
	case pos != c.pos:
		return fmt.Errorf("the file has %s, PostgreSQL decodes %s", pos, c.pos)
	case l.Op != c.op:
		return fmt.Errorf("the file has a %s, PostgreSQL decodes a %s", l.Op, c.op)
	case c.op == "truncate" && len(l.Tables) != len(c.tables):
		return fmt.Errorf("the file truncates %d tables, PostgreSQL %d", len(l.Tables), len(c.tables))
	case c.rel == nil:
		return nil
	case l.Schema != c.rel.Namespace || l.Table != c.rel.RelationName:
		return fmt.Errorf("the file has table %s.%s, PostgreSQL %s.%s", l.Schema, l.Table, c.rel.Namespace, c.rel.RelationName)
	}
	if err := c.sameRow("new", c.new, l.New, l.Keep, false); err != nil {
		return err
	}
	var old map[string]json.RawMessage
	if l.Old != nil {
		if err := json.Unmarshal(l.Old, &old); err != nil {
			return err
		}
	}
	return c.sameRow("old", c.old, old, nil, c.rel.ReplicaIdentity != 'f')
}

// sameRow compares a row. Of an old one PostgreSQL sends the key's columns, and nulls for the others.
func (c *decoded) sameRow(which string, t *pglogrepl.TupleData, row map[string]json.RawMessage, keep []string, keyOnly bool) error {
	if (t == nil) != (row == nil) {
		return fmt.Errorf("%s row: in the file %t, in PostgreSQL %t", which, row != nil, t != nil)
	}
	if t == nil {
		return nil
	}
	columns := 0
	for i, col := range t.Columns {
		of := c.rel.Columns[i]
		if keyOnly && of.Flags&1 == 0 {
			continue
		}
		got, there := row[of.Name]
		if col.DataType == pglogrepl.TupleDataTypeToast {
			if there || !slices.Contains(keep, of.Name) {
				return fmt.Errorf("%s row: column %q was left alone, and the file has %.100s", which, of.Name, got)
			}
			continue
		}
		columns++
		if want := asJSON(of.DataType, col); !there || string(got) != want {
			return fmt.Errorf("%s row: column %q is %.100s in the file, and %.100s in PostgreSQL", which, of.Name, got, want)
		}
	}
	if columns != len(row) {
		return fmt.Errorf("%s row: %d columns in the file, %d in PostgreSQL", which, len(row), columns)
	}
	return nil
}

// asJSON writes a value of the types that the tests' tables have as the file sink must have written it.
func asJSON(oid uint32, col *pglogrepl.TupleDataColumn) string {
	if col.DataType == pglogrepl.TupleDataTypeNull {
		return "null"
	}
	switch oid {
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.NumericOID:
		return string(col.Data)
	case pgtype.BoolOID:
		return strconv.FormatBool(col.Data[0] == 't')
	case pgtype.JSONOID, pgtype.JSONBOID:
		var b bytes.Buffer
		if json.Compact(&b, col.Data) == nil {
			return b.String()
		}
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(string(col.Data)); err != nil {
		return err.Error()
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// copyPoints gives the point of each table's copy, as the PostgreSQL sink has noted it.
func copyPoints(r *rig) map[uint32]decode.LSN {
	r.t.Helper()
	points := map[uint32]decode.LSN{}
	for _, s := range value[[]string](r, r.dest, `SELECT coalesce(array_agg(source || ' ' || point), '{}') FROM flo.copies`) {
		var oid uint32
		var text string
		_, err := fmt.Sscanf(s, "%d %s", &oid, &text)
		must(r.t, err)
		lsn, err := decode.ParseLSN(text)
		must(r.t, err)
		points[oid] = lsn
	}
	return points
}

// provesHistory compares a file sink's lines with what PostgreSQL decodes, change by change: each (LSN, ordinal) in
// commit order, with its content; and the tables that the lines make, in an empty database, with the source's.
func (o *oracle) provesHistory(r *rig, folder string, schema func(url string)) {
	r.t.Helper()
	o.provesHistoryIn(r, folder, flotest.Postgres(r.t).URL, schema)
}

func (o *oracle) provesHistoryIn(r *rig, folder, empty string, schema func(url string)) {
	r.t.Helper()
	h, err := readHistory(folder)
	must(r.t, err)
	want := o.changes(r, h.point, copyPoints(r))
	r.logf("file: %d copied rows (attempt %d), %d changes, PostgreSQL decodes %d; the file went back %d times and repeated %d changes",
		len(h.copied), h.attempt, len(h.changes), len(want), h.again, h.repeats)
	for i := range max(len(h.changes), len(want)) {
		switch {
		case i >= len(h.changes):
			r.t.Fatalf("change %d: the file ends, PostgreSQL decodes a %s at %s", i, want[i].op, want[i].pos)
		case i >= len(want):
			r.t.Fatalf("change %d: PostgreSQL decodes no more, the file has %.200s", i, h.changes[i].raw)
		}
		if err := want[i].same(h.changes[i]); err != nil {
			r.t.Fatalf("change %d: %v: %.300s", i, err, h.changes[i].raw)
		}
	}
	im, err := h.replay()
	must(r.t, err)
	schema(empty)
	must(r.t, im.load(r.ctx, empty))
	flotest.Equal(r.t, r.ctx, r.source, empty)
}
