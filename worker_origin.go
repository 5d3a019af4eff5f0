package flo

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/deadletter"
	"github.com/pgflo/flo/internal/wire"
)

// origin is a change as it came from the source, for its letter.
type origin struct {
	frame    []byte           // the pgoutput message; of a copied row its line, the newline included
	relation *decode.Relation // as described when the change came; nil: not known, or a truncation
	truncate *decode.Truncate
	tx       *decode.Tx // nil for copied rows
	ordinal  uint64
	copy     *decode.CopyID
}

func (o *origin) position() decode.Position {
	if o.tx == nil {
		return decode.Position{}
	}
	return decode.Position{LSN: o.tx.CommitLSN, Ordinal: o.ordinal}
}

// relations of the change: one but for truncations.
func (o *origin) relations() []*decode.Relation {
	switch {
	case o.relation != nil:
		return []*decode.Relation{o.relation}
	case o.truncate != nil:
		return o.truncate.Relations
	}
	return nil
}

func (o *origin) table() (n decode.Name) {
	if rels := o.relations(); len(rels) > 0 {
		n = rels[0].Qualified()
	}
	return n
}

// letter gives what is to be stored of a change.
func (o *origin) letter() (*deadletter.Entry, deadletter.Head, []byte) {
	e := &deadletter.Entry{Kind: deadletter.Streamed, Position: o.position()}
	h := deadletter.Head{Table: o.table(), Op: opOf(o.frame).String(), Copy: o.copy}
	if o.copy != nil {
		e.Kind, e.Copy, h.Op = deadletter.Copied, *o.copy, decode.OpInsert.String()
	} else {
		at, when := e.Position, o.tx.CommitTime
		h.Position, h.XID, h.CommitTime, h.Origin = &at, o.tx.XID, &when, o.tx.Origin
	}
	var body []byte
	for _, rel := range o.relations() {
		e.Tables = append(e.Tables, rel.OID)
		if b, err := wire.AppendJSON(body, wire.RecDescribe, decode.Describe(rel)); err == nil {
			body = b
		}
		body = wire.AppendFrame(body, decode.AppendRelation(nil, rel))
	}
	if o.copy != nil {
		body = wire.AppendCopyChunk(body, &wire.CopyChunk{ID: *o.copy, Rows: 1, Data: o.frame})
	} else {
		body = wire.AppendFrame(body, o.frame)
	}
	c, err := readLetter(body)
	if err != nil || c.Relation == nil {
		e.Whole = true // whatever it is about, its tables' changes stay behind it
	} else {
		e.Rows = rowsOf(c)
	}
	return e, h, body
}

func opOf(frame []byte) decode.Op {
	if len(frame) == 0 {
		return 0
	}
	if wire.IsChange(frame) && frame[0] == 'M' {
		return decode.OpSchema
	}
	return map[byte]decode.Op{'I': decode.OpInsert, 'U': decode.OpUpdate, 'D': decode.OpDelete, 'T': decode.OpTruncate, 'M': decode.OpMessage}[frame[0]]
}

// readLetter decodes a letter's body.
func readLetter(body []byte) (c *decode.Change, err error) {
	p := decode.NewParser()
	var rel *decode.Relation
	err = wire.Walk(body, func(rec wire.Record) (err error) {
		switch rec.Type {
		case wire.RecDescribe:
			return p.DescribeJSON(rec.Data)
		case 'R':
			rel, err = p.Relation(rec.Data)
			return err
		case wire.RecCopyChunk:
			chunk, err := wire.ParseCopyChunk(rec.Data)
			if err != nil {
				return err
			}
			if rel == nil {
				return fmt.Errorf("%w: a copied row without its relation", wire.ErrFormat)
			}
			row, ok, err := decode.NewCopyReader(rel, chunk.Data).Next(nil)
			if err == nil && !ok {
				err = fmt.Errorf("%w: a copied row that is empty", wire.ErrFormat)
			}
			var none *decode.Arena
			c = none.CopiedRow(rel, chunk.ID, row)
			return err
		}
		c, err = p.Change(rec.Data, nil)
		return err
	})
	if err == nil && c == nil {
		err = fmt.Errorf("%w: a letter without a change", wire.ErrFormat)
	}
	return c, err
}

// rowsOf gives what identifies the rows that a change is about: its replica identity before and after. None if the
// table has no identity: then only inserts come, which nothing follows.
func rowsOf(c *decode.Change) (rows []deadletter.Row) {
	for _, row := range [...]decode.Row{c.Old, c.New} {
		if row == nil {
			continue
		}
		if r, ok := hashRow(c, row); ok && !slices.Contains(rows, r) {
			rows = append(rows, r)
		}
	}
	return rows
}

func hashRow(c *decode.Change, row decode.Row) (deadletter.Row, bool) {
	h := sha256.New()
	some := false
	var size [9]byte
	for i := range c.Relation.Columns {
		if i >= len(row) || !c.Relation.Columns[i].Key && c.Relation.Identity != decode.IdentityFull {
			continue
		}
		some = true
		v := &row[i]
		if v.Presence() == decode.Unchanged && i < len(c.Old) {
			v = &c.Old[i]
		}
		size[0] = byte(v.Presence())
		binary.BigEndian.PutUint64(size[1:], uint64(len(v.Bytes())))
		h.Write(size[:])
		h.Write(v.Bytes())
	}
	return deadletter.Row(h.Sum(nil)[:16]), some
}
