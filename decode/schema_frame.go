package decode

import (
	"bytes"
	"encoding/json"
	"slices"
)

// SchemaPrefix is the prefix of the logical messages that flo's event triggers write.
const SchemaPrefix = "flo"

// SchemaSecretLen is how many hexadecimal digits stand before the JSON in such a message: a secret, by which the
// replicator knows it, and in whose place it puts zeros. Of any other message with the prefix it passes on an empty one.
const SchemaSecretLen = 32

var blankSecret = bytes.Repeat([]byte{'0'}, SchemaSecretLen)

// schemaChange reads a message that the replicator has passed on; nil if it is no schema change.
func schemaChange(prefix string, content []byte) (*SchemaChange, error) {
	if prefix != SchemaPrefix || !bytes.HasPrefix(content, blankSecret) {
		return nil, nil
	}
	s := &SchemaChange{}
	if err := json.Unmarshal(content[SchemaSecretLen:], s); err != nil {
		return nil, malformed("schema change: %v", err)
	}
	return s, nil
}

// AppendSchemaMessage appends the Message ('M') that Change reads as s: head is that of the message that s came
// in, up to its prefix, exclusively (type, flags, LSN). A nil s gives one that is empty.
func AppendSchemaMessage(dst, head []byte, s *SchemaChange) ([]byte, error) {
	var content []byte
	if s != nil {
		text, err := json.Marshal(s)
		if err != nil {
			return dst, err
		}
		content = append(slices.Clone(blankSecret), text...)
	}
	dst = append(dst, head...)
	dst = append(append(dst, SchemaPrefix...), 0)
	n := len(content)
	dst = append(dst, byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
	return append(dst, content...), nil
}

// SchemaMessageHead is how long a Message's part before its prefix is: type, flags, LSN.
const SchemaMessageHead = 1 + 1 + 8

// Clone gives a copy of s that shares nothing with it that is ever written to: its lists are its own, their
// elements' pointers (defaults, comments) are shared.
func (s *SchemaChange) Clone() *SchemaChange {
	c := *s
	c.Tables = slices.Clone(s.Tables)
	for i := range c.Tables {
		t := &c.Tables[i]
		t.Parents, t.Ancestors, t.Options, t.LeftOut = slices.Clone(t.Parents), slices.Clone(t.Ancestors), slices.Clone(t.Options), slices.Clone(t.LeftOut)
		t.Columns, t.Constraints, t.Indexes = slices.Clone(t.Columns), cloneConstraints(t.Constraints), slices.Clone(t.Indexes)
		for j := range t.Indexes {
			t.Indexes[j].Columns = slices.Clone(t.Indexes[j].Columns)
		}
	}
	c.Types = slices.Clone(s.Types)
	for i := range c.Types {
		t := &c.Types[i]
		t.Labels, t.Fields, t.Constraints = slices.Clone(t.Labels), slices.Clone(t.Fields), cloneConstraints(t.Constraints)
	}
	c.Detached, c.Schemas, c.Dropped = slices.Clone(s.Detached), slices.Clone(s.Schemas), slices.Clone(s.Dropped)
	for i := range c.Dropped {
		c.Dropped[i].Address = slices.Clone(c.Dropped[i].Address)
	}
	return &c
}

func cloneConstraints(list []ConstraintShape) []ConstraintShape {
	list = slices.Clone(list)
	for i := range list {
		list[i].Columns = slices.Clone(list[i].Columns)
	}
	return list
}

// appendJSON appends the members of s as JSON, with a comma before each, without the braces around them.
func (s *SchemaChange) appendJSON(dst []byte) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return dst, err
	}
	text := bytes.TrimSpace(b.Bytes())
	dst = append(dst, ',')
	return append(dst, text[1:len(text)-1]...), nil
}

// HasStructure reports whether s says more than that a command was run.
func (s *SchemaChange) HasStructure() bool {
	return len(s.Tables)+len(s.Detached)+len(s.Types)+len(s.Schemas)+len(s.Dropped) > 0 || s.Failed != ""
}
