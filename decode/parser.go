package decode

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"reflect"
)

// Parser reads pgoutput's messages and remembers the relations and types that they describe. It is
// for one goroutine at a time.
//
// Of a relation, Describe (or DescribeJSON) comes first, if at all, then Type for its types, then
// Relation, then Change. All of them may come again with each message of a stream, and are cheap when
// they say nothing new.
type Parser struct {
	relations map[uint32]*knownRelation
	types     map[uint32]*Type    // from Type messages
	labels    map[uint32][]string // from Labels
	prefix    string              // of the last Message
}

// knownRelation is what the parser knows of one OID.
type knownRelation struct {
	rel   *Relation // nil until a Relation message came
	frame []byte    // the Relation message that rel was made of
	stale bool      // the description or a type has changed since

	raw       []byte // the JSON that description was read from, if any
	described bool
	ancestors []Name
	others    []Name
	source    Description
	types     map[uint32]*Type
}

// NewParser gives a parser that knows the built-in types and no relation.
func NewParser() *Parser {
	return &Parser{relations: map[uint32]*knownRelation{}, types: map[uint32]*Type{}, labels: map[uint32][]string{}}
}

func (p *Parser) known(oid uint32) *knownRelation {
	k := p.relations[oid]
	if k == nil {
		k = &knownRelation{}
		p.relations[oid] = k
	}
	return k
}

// Lookup gives the latest version of a relation, nil if no Relation message has described it.
func (p *Parser) Lookup(oid uint32) *Relation {
	if k := p.relations[oid]; k != nil {
		return k.rel
	}
	return nil
}

// IsNew reports whether a relation's Description says that it is New.
func (p *Parser) IsNew(oid uint32) bool {
	k := p.relations[oid]
	return k != nil && k.source.New
}

// DescribeJSON is Describe of a Description in JSON. Bytes that came for the same relation before are
// only compared.
func (p *Parser) DescribeJSON(data []byte) error {
	if oid, ok := leadingOID(data); ok {
		if k := p.relations[oid]; k != nil && bytes.Equal(k.raw, data) {
			return nil
		}
	}
	var d Description
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("%w: description: %w", ErrMalformed, err)
	}
	if err := p.Describe(d); err != nil {
		return err
	}
	p.relations[d.Relation].raw = bytes.Clone(data)
	return nil
}

// leadingOID reads the OID off a Description as this package writes it.
func leadingOID(data []byte) (uint32, bool) {
	const head = `{"relation":`
	if !bytes.HasPrefix(data, []byte(head)) {
		return 0, false
	}
	var oid uint64
	for _, c := range data[len(head):] {
		if c < '0' || c > '9' {
			break
		}
		if oid = oid*10 + uint64(c-'0'); oid > 1<<32-1 {
			return 0, false
		}
	}
	return uint32(oid), true
}

// Describe remembers the ancestors, other names and the types of a relation, for its next Relation message. If
// they are others than before, that message makes a new *Relation. It keeps d. It fails, wrapping
// ErrMalformed, if a type is made of itself.
func (p *Parser) Describe(d Description) error {
	k := p.known(d.Relation)
	if k.described && reflect.DeepEqual(k.source, d) {
		return nil
	}
	types, err := resolveTypes(p.relabelled(d.Types, true))
	if err != nil {
		return err
	}
	k.described, k.source, k.ancestors, k.others, k.types = true, d, d.Ancestors, d.OtherNames, types
	k.raw = nil
	k.stale = true
	return nil
}

// Type reads a Type message ('Y'): the name of a type that isn't built in. Descriptions know more of
// a type, and win over it. (Of a domain PostgreSQL sends the domain's OID but its base type's name:
// logicalrep_write_typ in src/backend/replication/logical/proto.c.) Errors wrap ErrMalformed.
func (p *Parser) Type(frame []byte) error {
	r := open(frame, 'Y')
	oid, schema, name := r.uint32(), r.cstring(), r.cstring()
	if err := r.close("Type"); err != nil {
		return err
	}
	if len(schema) == 0 {
		schema = []byte(catalogSchema)
	}
	if t := p.types[oid]; t != nil && t.Schema == string(schema) && t.Name == string(name) {
		return nil
	}
	p.types[oid] = &Type{OID: oid, Schema: string(schema), Name: string(name)}
	for _, k := range p.relations {
		if k.rel != nil && k.types[oid] == nil && usesType(k.rel, oid) {
			k.stale = true
		}
	}
	return nil
}

func usesType(r *Relation, oid uint32) bool {
	for i := range r.Columns {
		if r.Columns[i].Type.OID == oid {
			return true
		}
	}
	return false
}

// smallestColumn is the least room that a column takes in a Relation message: flags, an empty name,
// type, modifier.
const smallestColumn = 1 + 1 + 4 + 4

// Relation reads a Relation message ('R'). While neither it nor the relation's description and types
// change, it gives the same pointer; then a new one. Errors wrap ErrMalformed, and leave what was
// known as it was.
func (p *Parser) Relation(frame []byte) (*Relation, error) {
	if len(frame) < 5 || frame[0] != 'R' {
		return nil, malformed("Relation message: cut, or of another kind")
	}
	k := p.relations[binary.BigEndian.Uint32(frame[1:])]
	if k != nil && k.rel != nil && !k.stale && bytes.Equal(k.frame, frame) {
		return k.rel, nil
	}
	var known knownRelation
	if k != nil {
		known = *k
	}
	rel, err := p.parseRelation(frame, &known)
	if err != nil {
		return nil, err
	}
	k = p.known(rel.OID)
	k.rel, k.frame, k.stale = rel, bytes.Clone(frame), false
	return rel, nil
}

func (p *Parser) parseRelation(frame []byte, k *knownRelation) (*Relation, error) {
	r := open(frame, 'R')
	rel := &Relation{OID: r.uint32(), Schema: string(r.cstring()), Name: string(r.cstring()), Identity: Identity(r.byte())}
	n := int(r.uint16())
	if r.bad || n*smallestColumn > len(r.b) {
		return nil, malformed("Relation message of OID %d is cut", rel.OID)
	}
	switch rel.Identity {
	case IdentityDefault, IdentityNothing, IdentityFull, IdentityIndex:
	default:
		return nil, malformed("Relation message of %s: replica identity %q", rel.Qualified(), byte(rel.Identity))
	}
	if rel.Schema == "" {
		rel.Schema = catalogSchema
	}
	rel.Ancestors, rel.OtherNames = k.ancestors, k.others
	rel.Columns = make([]Column, n)
	for i := range rel.Columns {
		c := &rel.Columns[i]
		c.Key = r.byte()&1 != 0
		c.Name = string(r.cstring())
		c.Type = p.columnType(r.uint32(), k)
		c.Modifier = int32(r.uint32())
	}
	if err := r.close("Relation"); err != nil {
		return nil, err
	}
	return rel, nil
}

// columnType gives what is known of a type: built in, described, named by a Type message, or only
// its OID.
func (p *Parser) columnType(oid uint32, k *knownRelation) *Type {
	if t := BuiltinType(oid); t != nil {
		return t
	}
	if t := k.types[oid]; t != nil {
		return t
	}
	if t := p.types[oid]; t != nil {
		return t
	}
	return &Type{OID: oid}
}

// AppendRelation appends the Relation message ('R') that describes r: what PostgreSQL itself would
// send. Ancestors and types travel in a Description.
func AppendRelation(dst []byte, r *Relation) []byte {
	dst = append(dst, 'R')
	dst = binary.BigEndian.AppendUint32(dst, r.OID)
	if r.Schema != catalogSchema {
		dst = append(dst, r.Schema...)
	}
	dst = append(dst, 0)
	dst = append(dst, r.Name...)
	dst = append(dst, 0, byte(r.Identity))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(r.Columns)))
	for i := range r.Columns {
		c := &r.Columns[i]
		var flags byte
		if c.Key {
			flags = 1
		}
		dst = append(dst, flags)
		dst = append(dst, c.Name...)
		dst = append(dst, 0)
		var oid uint32
		if c.Type != nil {
			oid = c.Type.OID
		}
		dst = binary.BigEndian.AppendUint32(dst, oid)
		dst = binary.BigEndian.AppendUint32(dst, uint32(c.Modifier))
	}
	return dst
}
