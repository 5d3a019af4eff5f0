package decode_test

import (
	"bytes"
	"testing"

	"github.com/jackc/pglogrepl"

	"github.com/pgflo/flo/decode"
)

// checkAgainstOracle decodes the frames with this package and with pglogrepl, and fails at the first
// difference, or if a kind of message didn't occur.
func checkAgainstOracle(t *testing.T, frames [][]byte) {
	t.Helper()
	o := oracle{t: t, p: decode.NewParser(), a: decode.NewArena(), seen: map[byte]int{}}
	for i, f := range frames {
		o.frame = i
		if f[0] == 'I' && len(f) == 8 {
			o.emptyRow(f) // a table without columns: the oracle refuses it
			continue
		}
		m, err := pglogrepl.Parse(f)
		if err != nil {
			t.Fatalf("frame %d: oracle: %v", i, err)
		}
		o.check(f, m)
		o.seen[f[0]]++
	}
	for _, kind := range []byte("BCORYIUDTM") {
		if o.seen[kind] == 0 {
			t.Errorf("no message of kind %q among %d frames", kind, len(frames))
		}
	}
	if !t.Failed() && (o.keyOld == 0 || o.fullOld == 0 || o.unchanged == 0) {
		t.Errorf("missing: %d key-only and %d full old rows, %d unchanged columns", o.keyOld, o.fullOld, o.unchanged)
	}
}

type oracle struct {
	t                          *testing.T
	p                          *decode.Parser
	a                          *decode.Arena
	frame                      int
	seen                       map[byte]int
	keyOld, fullOld, unchanged int
}

func (o *oracle) emptyRow(f []byte) {
	o.t.Helper()
	c, err := o.p.Change(f, o.a)
	o.must(err == nil && c.New != nil && len(c.New) == 0, "row without columns", c, nil)
}

func (o *oracle) must(ok bool, what string, got, want any) {
	o.t.Helper()
	if !ok {
		o.t.Fatalf("frame %d: %s: %v, oracle %v", o.frame, what, got, want)
	}
}

func (o *oracle) check(f []byte, m pglogrepl.Message) {
	o.t.Helper()
	switch m := m.(type) {
	case *pglogrepl.BeginMessage:
		b, err := decode.ParseBegin(f)
		o.must(err == nil && b.CommitLSN == decode.LSN(m.FinalLSN) && b.CommitTime.Equal(m.CommitTime) && b.XID == m.Xid, "begin", b, m)
	case *pglogrepl.CommitMessage:
		c, err := decode.ParseCommit(f)
		o.must(err == nil && c.CommitLSN == decode.LSN(m.CommitLSN) && c.EndLSN == decode.LSN(m.TransactionEndLSN) && c.CommitTime.Equal(m.CommitTime), "commit", c, m)
	case *pglogrepl.OriginMessage:
		name, lsn, err := decode.ParseOrigin(f)
		o.must(err == nil && name == m.Name && lsn == decode.LSN(m.CommitLSN), "origin", name, m)
	case *pglogrepl.TypeMessage:
		err := o.p.Type(f)
		o.must(err == nil, "type", err, m)
	case *pglogrepl.RelationMessage:
		o.relation(f, m)
	default:
		o.change(f, m)
	}
}

func (o *oracle) relation(f []byte, m *pglogrepl.RelationMessage) {
	o.t.Helper()
	r, err := o.p.Relation(f)
	o.must(err == nil, "relation", err, m)
	o.must(r.OID == m.RelationID && r.Schema == m.Namespace && r.Name == m.RelationName && byte(r.Identity) == m.ReplicaIdentity &&
		len(r.Columns) == len(m.Columns), "relation", r, m)
	for i, c := range m.Columns {
		got := r.Columns[i]
		o.must(got.Name == c.Name && got.Type.OID == c.DataType && got.Modifier == c.TypeModifier && got.Key == (c.Flags == 1), "column", got, c)
	}
	o.must(bytes.Equal(decode.AppendRelation(nil, r), f), "relation written again", decode.AppendRelation(nil, r), f)
	again, err := o.p.Relation(bytes.Clone(f))
	o.must(err == nil && again == r, "relation read again", again, r)
}

func (o *oracle) change(f []byte, m pglogrepl.Message) {
	o.t.Helper()
	c, err := o.p.Change(f, o.a)
	if err != nil {
		o.t.Fatalf("frame %d: %v", o.frame, err)
	}
	if c.Tx != nil || c.Ordinal != 0 || c.Copy != nil {
		o.t.Fatalf("frame %d: position set: %+v", o.frame, c)
	}
	switch m := m.(type) {
	case *pglogrepl.InsertMessage:
		o.must(c.Op == decode.OpInsert && c.Relation.OID == m.RelationID && c.Old == nil, "insert", c, m)
		o.row(c, c.New, m.Tuple, false)
	case *pglogrepl.UpdateMessage:
		o.must(c.Op == decode.OpUpdate && c.Relation.OID == m.RelationID, "update", c, m)
		o.must(c.OldKey == (m.OldTupleType == 'K'), "key only", c.OldKey, m.OldTupleType)
		o.row(c, c.Old, m.OldTuple, c.OldKey)
		o.row(c, c.New, m.NewTuple, false)
	case *pglogrepl.DeleteMessage:
		o.must(c.Op == decode.OpDelete && c.Relation.OID == m.RelationID && c.New == nil, "delete", c, m)
		o.must(c.OldKey == (m.OldTupleType == 'K'), "key only", c.OldKey, m.OldTupleType)
		o.row(c, c.Old, m.OldTuple, c.OldKey)
	case *pglogrepl.TruncateMessage:
		o.must(c.Op == decode.OpTruncate && len(c.Truncate.Relations) == len(m.RelationIDs) &&
			c.Truncate.Cascade == (m.Option&1 != 0) && c.Truncate.RestartIdentity == (m.Option&2 != 0), "truncate", c.Truncate, m)
		for i, oid := range m.RelationIDs {
			o.must(c.Truncate.Relations[i].OID == oid, "truncated", c.Truncate.Relations[i], oid)
		}
	case *pglogrepl.LogicalDecodingMessage:
		o.must(c.Op == decode.OpMessage && c.Message.Prefix == m.Prefix && bytes.Equal(c.Message.Content, m.Content) &&
			c.Message.Transactional == m.Transactional, "message", c.Message, m)
	default:
		o.t.Fatalf("frame %d: %T", o.frame, m)
	}
}

func (o *oracle) row(c *decode.Change, row decode.Row, want *pglogrepl.TupleData, keyOnly bool) {
	o.t.Helper()
	if want == nil {
		o.must(row == nil, "row", row, nil)
		return
	}
	if keyOnly {
		o.keyOld++
	} else if c.Op == decode.OpDelete || len(row) > 0 && &row[0] != &c.New[0] {
		o.fullOld++
	}
	o.must(len(row) == len(want.Columns), "columns", len(row), len(want.Columns))
	for i, w := range want.Columns {
		v := row[i]
		presence := map[byte]decode.Presence{'n': decode.Null, 'u': decode.Unchanged, 't': decode.Present}[w.DataType]
		if keyOnly && !c.Relation.Columns[i].Key {
			presence = decode.Absent
		}
		if presence == decode.Unchanged {
			o.unchanged++
		}
		o.must(v.Presence() == presence, "presence", v.Presence(), presence)
		if presence == decode.Present {
			o.must(bytes.Equal(v.Bytes(), w.Data) && v.Type() == c.Relation.Columns[i].Type, "value", v.String(), string(w.Data))
		}
	}
}
