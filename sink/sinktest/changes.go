package sinktest

import (
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// incarnation of the stream that the suite's batches come from.
const incarnation = "sinktest"

func textType() *decode.Type {
	return &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}
}

// source makes changes of one table as a worker would: with rising positions, in whole transactions.
type source struct {
	rel *decode.Relation
	lsn decode.LSN
}

// newSource changes a table with the columns id (the key) and more text columns.
func newSource(t testing.TB, h Harness, schema, table string, columns ...string) *source {
	t.Helper()
	return &source{rel: newTable(t, h, 16384, schema, table, columns...), lsn: 0x16B3748}
}

func newTable(t testing.TB, h Harness, oid uint32, schema, table string, columns ...string) *decode.Relation {
	t.Helper()
	rel := &decode.Relation{OID: oid, Schema: schema, Name: table, Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: textType(), Modifier: -1, Key: true}}}
	for _, c := range columns {
		rel.Columns = append(rel.Columns, decode.Column{Name: c, Type: textType(), Modifier: -1})
	}
	if h.Prepare != nil {
		h.Prepare(t, rel)
	}
	return rel
}

// row of text values; the strings' bytes are copied.
func (s *source) row(values ...string) decode.Row {
	row := make(decode.Row, len(s.rel.Columns))
	for i, v := range values {
		row[i] = decode.TextValue(textType(), []byte(v))
	}
	return row
}

// transaction makes changes one transaction.
func (s *source) transaction(changes ...*decode.Change) []*decode.Change {
	s.lsn += 0x100
	tx := &decode.Tx{XID: uint32(s.lsn), CommitLSN: s.lsn, EndLSN: s.lsn + 0x30, CommitTime: time.Date(2024, 5, 6, 7, 8, 9, 123456000, time.UTC)}
	for i, c := range changes {
		c.Tx, c.Ordinal = tx, uint64(i+1)
	}
	return changes
}

func (s *source) insert(values ...string) *decode.Change {
	return &decode.Change{Op: decode.OpInsert, Relation: s.rel, New: s.row(values...)}
}

func (s *source) update(values ...string) *decode.Change {
	return &decode.Change{Op: decode.OpUpdate, Relation: s.rel, New: s.row(values...)}
}

// batch ends with a whole transaction, and carries its checkpoint.
func (s *source) batch(changes []*decode.Change) *sink.Batch {
	b := &sink.Batch{Changes: changes, Epoch: 1}
	b.Checkpoint = decode.Checkpoint{Incarnation: incarnation, Seq: uint64(s.lsn), LSN: s.lsn, End: s.lsn + 0x30, Session: 1}
	return b
}

// identity of a change, as Entry.ID has it.
func identity(c *decode.Change) string {
	if c.Copy != nil {
		return c.Copy.String()
	}
	return c.Position().String()
}
