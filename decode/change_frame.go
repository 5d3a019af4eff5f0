package decode

import "encoding/binary"

// Change reads an Insert, Update, Delete, Truncate or Message ('I', 'U', 'D', 'T', 'M'); a Message of flo's event
// triggers, as the replicator passes it on, is a schema change. It fills Op, Relation (nil but for rows),
// Old, OldKey, New, Truncate, Schema and Message; Tx, Ordinal and
// Copy are the caller's. Values and message contents point into frame; the change and its rows come
// from a, which may be nil.
//
// Errors wrap ErrMalformed, or ErrUnknownRelation if no Relation message came before.
func (p *Parser) Change(frame []byte, a *Arena) (*Change, error) {
	if len(frame) == 0 {
		return nil, malformed("empty message")
	}
	switch frame[0] {
	case 'I', 'U', 'D':
		return p.rowChange(frame, a)
	case 'T':
		return p.truncate(frame, a)
	case 'M':
		return p.message(frame, a)
	}
	return nil, malformed("message of kind %q is not a change", frame[0])
}

func (p *Parser) rowChange(frame []byte, a *Arena) (*Change, error) {
	if len(frame) < 6 {
		return nil, malformed("%q message of %d bytes", frame[0], len(frame))
	}
	oid := binary.BigEndian.Uint32(frame[1:])
	rel := p.Lookup(oid)
	if rel == nil {
		return nil, unknownRelation(oid)
	}
	var old, row Row
	var err error
	op, part, rest := Op(0), frame[5], frame[6:]
	oldKey := part == 'K'
	if frame[0] != 'I' && (oldKey || part == 'O') {
		if old, rest, err = readTuple(rest, rel, oldKey, a); err != nil {
			return nil, err
		}
		part = 0
		if frame[0] == 'U' && len(rest) > 0 {
			part, rest = rest[0], rest[1:]
		}
	}
	switch {
	case frame[0] == 'I' && part == 'N':
		op = OpInsert
	case frame[0] == 'U' && part == 'N':
		op = OpUpdate
	case frame[0] == 'D' && old != nil:
		op = OpDelete
	default:
		return nil, malformed("%q message of %s: tuple of kind %q", frame[0], rel.Qualified(), part)
	}
	if op != OpDelete {
		if row, rest, err = readTuple(rest, rel, false, a); err != nil {
			return nil, err
		}
	}
	if len(rest) != 0 {
		return nil, malformed("%q message of %s: %d bytes too many", frame[0], rel.Qualified(), len(rest))
	}
	c := a.Change()
	c.Op, c.Relation, c.Old, c.OldKey, c.New = op, rel, old, oldKey && old != nil, row
	return c, nil
}

// readTuple reads TupleData. Of a key-only tuple the columns outside the key, which PostgreSQL sends
// as nulls (heapam.c, ExtractReplicaIdentity), are Absent.
func readTuple(b []byte, rel *Relation, keyOnly bool, a *Arena) (Row, []byte, error) {
	if len(b) < 2 {
		return nil, nil, cutTuple(rel)
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if n != len(rel.Columns) {
		return nil, nil, malformed("tuple of %s has %d columns, its Relation message %d", rel.Qualified(), n, len(rel.Columns))
	}
	if len(b) < n {
		return nil, nil, cutTuple(rel)
	}
	row := a.Row(n)
	for i := range row {
		if len(b) == 0 {
			return nil, nil, cutTuple(rel)
		}
		col, v := &rel.Columns[i], &row[i]
		kind := b[0]
		b = b[1:]
		switch kind {
		case 'n':
			v.presence, v.typ = Null, col.Type
		case 'u':
			v.presence, v.typ = Unchanged, col.Type
		case 't':
			if len(b) < 4 {
				return nil, nil, cutTuple(rel)
			}
			size := uint64(binary.BigEndian.Uint32(b))
			b = b[4:]
			if size > uint64(len(b)) {
				return nil, nil, cutTuple(rel)
			}
			v.presence, v.typ, v.data = Present, col.Type, b[:size:size]
			b = b[size:]
		case 'b':
			return nil, nil, malformed("column %q of %s is in binary format: start pgoutput without the option binary", col.Name, rel.Qualified())
		default:
			return nil, nil, malformed("column %q of %s is of kind %q", col.Name, rel.Qualified(), kind)
		}
		if keyOnly && !col.Key {
			*v = Value{}
		}
	}
	return row, b, nil
}

func cutTuple(rel *Relation) error { return malformed("tuple of %s is cut", rel.Qualified()) }

// Truncate's option bits.
const (
	truncateCascade = 1 << iota
	truncateRestart
)

func (p *Parser) truncate(frame []byte, a *Arena) (*Change, error) {
	r := open(frame, 'T')
	n := r.uint32()
	options := r.byte()
	if r.bad || uint64(n)*4 != uint64(len(r.b)) {
		return nil, malformed("Truncate message: %d relations in %d bytes", n, len(frame))
	}
	t := &Truncate{
		Relations:       make([]*Relation, n),
		Cascade:         options&truncateCascade != 0,
		RestartIdentity: options&truncateRestart != 0,
	}
	for i := range t.Relations {
		oid := r.uint32()
		if t.Relations[i] = p.Lookup(oid); t.Relations[i] == nil {
			return nil, unknownRelation(oid)
		}
	}
	c := a.Change()
	c.Op, c.Truncate = OpTruncate, t
	return c, nil
}

func (p *Parser) message(frame []byte, a *Arena) (*Change, error) {
	r := open(frame, 'M')
	flags := r.byte()
	r.lsn() // of the message itself, which orders nothing
	prefix := r.cstring()
	content := r.take(uint64(r.uint32()))
	if err := r.close("Message"); err != nil {
		return nil, err
	}
	if string(prefix) != p.prefix {
		p.prefix = string(prefix) // nearly always the same one: spares a string a message
	}
	schema, err := schemaChange(p.prefix, content)
	if err != nil {
		return nil, err
	}
	c := a.Change()
	if schema != nil {
		c.Op, c.Schema = OpSchema, schema
		return c, nil
	}
	c.Op = OpMessage
	c.Message = &Message{Prefix: p.prefix, Content: content, Transactional: flags&1 != 0}
	return c, nil
}
