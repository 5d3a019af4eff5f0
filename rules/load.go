package rules

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/pgflo/flo/decode"
)

// Limits of a file of rules or routes.
const (
	maxFileBytes = 4 << 20
	maxFileNodes = 200_000 // aliases counted each time
	maxFileDepth = 100
)

// LoadError says what is wrong with a file of rules or routes, and where.
type LoadError struct {
	File   string // "" if the reader has no name
	Line   int    // from 1; 0: the file as a whole
	Table  string // as the file has it; "" outside of tables
	Column string // "" outside of rules with a column
	Err    error
}

// Error gives "rules.yaml:12: table users, column email: …".
func (e *LoadError) Error() string {
	var b strings.Builder
	b.WriteString(e.place() + ": ")
	if e.Table != "" {
		b.WriteString("table " + e.Table)
		if e.Column != "" {
			b.WriteString(", column " + e.Column)
		}
		b.WriteString(": ")
	}
	return b.String() + e.Err.Error()
}

func (e *LoadError) place() string {
	name := e.File
	if name == "" {
		name = "rules file"
	}
	if e.Line == 0 {
		return name
	}
	return name + ":" + strconv.Itoa(e.Line)
}

// Unwrap gives the reason; it wraps ErrInvalidRule.
func (e *LoadError) Unwrap() error { return e.Err }

// file is one that is being read. What is wrong is collected, so that all of it can be mended at once.
type file struct {
	name   string
	nodes  int
	table  string
	column string
	errs   []error
}

// open reads a file's one document; nil if there is none that can be read.
func (f *file) open(r io.Reader) *yaml.Node {
	if n, ok := r.(interface{ Name() string }); ok {
		f.name = n.Name()
	}
	data, err := io.ReadAll(io.LimitReader(r, maxFileBytes+1))
	if err != nil {
		f.errs = append(f.errs, &LoadError{File: f.name, Err: fmt.Errorf("reading it: %w", err)})
		return nil
	}
	if len(data) > maxFileBytes {
		f.fail(nil, "larger than %d bytes", maxFileBytes)
		return nil
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data))
	if err != nil {
		f.fail(nil, "not YAML: %w", err)
		return nil
	}
	var doc, next yaml.Node
	err = loader.Load(&doc)
	switch {
	case errors.Is(err, io.EOF):
		f.fail(nil, "an empty document")
		return nil
	case err == nil:
		if err = loader.Load(&next); err == nil {
			f.fail(&next, "a second YAML document: one file has one")
			return nil
		}
	}
	if !errors.Is(err, io.EOF) {
		f.fail(nil, "not YAML: %w", err)
		return nil
	}
	root := &doc
	if doc.Kind == yaml.DocumentNode && len(doc.Content) == 1 {
		root = doc.Content[0]
	}
	return f.resolve(root, 0)
}

// fail notes an error at a node.
func (f *file) fail(n *yaml.Node, format string, args ...any) {
	e := &LoadError{File: f.name, Table: f.table, Column: f.column, Err: fmt.Errorf("%w: %w", ErrInvalidRule, fmt.Errorf(format, args...))}
	if n != nil {
		e.Line = n.Line
	}
	f.errs = append(f.errs, e)
}

func (f *file) err() error { return errors.Join(f.errs...) }

// resolve puts what aliases stand for in their place. It counts, since a small file can stand for a huge one.
func (f *file) resolve(n *yaml.Node, depth int) *yaml.Node {
	if f.nodes++; f.nodes > maxFileNodes || depth > maxFileDepth {
		if f.nodes <= maxFileNodes+1 || depth == maxFileDepth+1 {
			f.fail(n, "more than %d values, or deeper than %d", maxFileNodes, maxFileDepth)
		}
		return nil
	}
	if n.Kind == yaml.AliasNode {
		return f.resolve(n.Alias, depth+1)
	}
	out := *n
	out.Content = make([]*yaml.Node, 0, len(n.Content))
	for _, c := range n.Content {
		r := f.resolve(c, depth+1)
		if r == nil {
			return nil
		}
		out.Content = append(out.Content, r)
	}
	return &out
}

// entry is one pair of a mapping.
type entry struct {
	name  string
	key   *yaml.Node
	value *yaml.Node
}

// mapping gives a mapping's pairs in order.
func (f *file) mapping(n *yaml.Node, what string) []entry {
	if n == nil || n.Kind != yaml.MappingNode {
		f.fail(n, "%s is not a mapping (name: value)", what)
		return nil
	}
	var out []entry
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode {
			f.fail(key, "%s: a name is a plain word", what)
			continue
		}
		if slices.ContainsFunc(out, func(e entry) bool { return e.name == key.Value }) {
			f.fail(key, "%s: %q stands twice", what, key.Value)
			continue
		}
		out = append(out, entry{key.Value, key, n.Content[i+1]})
	}
	return out
}

// fields gives a mapping's values by name, and refuses names that are not allowed.
func (f *file) fields(n *yaml.Node, what string, allowed ...string) map[string]*yaml.Node {
	out := map[string]*yaml.Node{}
	for _, e := range f.mapping(n, what) {
		if !slices.Contains(allowed, e.name) {
			f.fail(e.key, "%s: unknown field %q; allowed: %s", what, e.name, strings.Join(allowed, ", "))
			continue
		}
		out[e.name] = e.value
	}
	return out
}

// list gives the items of a sequence.
func (f *file) list(n *yaml.Node, what string) []*yaml.Node {
	if n.Kind != yaml.SequenceNode {
		f.fail(n, "%s is not a list", what)
		return nil
	}
	return n.Content
}

// text gives a scalar as it is written; ok is false, and the error noted, if it is not one.
func (f *file) text(n *yaml.Node, what string) (string, bool) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		f.fail(n, "%s is not a text", what)
		return "", false
	}
	return n.Value, true
}

// texts gives one scalar or a list of them.
func (f *file) texts(n *yaml.Node, what string) []string {
	items := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		items = n.Content
	}
	if len(items) == 0 {
		f.fail(n, "%s is empty", what)
	}
	var out []string
	for _, item := range items {
		if s, ok := f.text(item, what); ok {
			out = append(out, s)
		}
	}
	return out
}

// word gives a scalar that is one of a few.
func (f *file) word(n *yaml.Node, what string, allowed ...string) string {
	s, ok := f.text(n, what)
	if ok && !slices.Contains(allowed, s) {
		f.fail(n, "%s: %q is none of %s", what, s, strings.Join(allowed, ", "))
		return ""
	}
	return s
}

func (f *file) boolean(n *yaml.Node, what string) bool {
	if n == nil {
		return false
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		f.fail(n, "%s is not true or false", what)
		return false
	}
	v, _ := parseBool(n.Value)
	return v
}

func (f *file) number(n *yaml.Node, what string) int {
	s, ok := f.text(n, what)
	v, err := strconv.Atoi(s)
	if ok && (err != nil || v < 0) {
		f.fail(n, "%s: %q is not a number from 0", what, s)
	}
	return v
}

// operations reads a list of them.
func (f *file) operations(n *yaml.Node) []decode.Op {
	words := map[string]decode.Op{"INSERT": decode.OpInsert, "UPDATE": decode.OpUpdate, "DELETE": decode.OpDelete, "TRUNCATE": decode.OpTruncate}
	var ops []decode.Op
	for _, s := range f.texts(n, "operations") {
		op, ok := words[strings.ToUpper(s)]
		if !ok {
			f.fail(n, "operations: %q is none of INSERT, UPDATE, DELETE, TRUNCATE", s)
			continue
		}
		ops = append(ops, op)
	}
	return ops
}

// value reads a scalar with its kind: 18 is a number, "18" a text. Digits stay as they are written.
func (f *file) value(n *yaml.Node, what string) literal {
	if n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" {
		f.fail(n, "%s is not a value to compare with (for NULL use the operator is_null)", what)
		return literal{}
	}
	switch n.ShortTag() {
	case "!!int":
		return literal{n.Value, numberLiteral}
	case "!!float":
		switch strings.ToLower(n.Value) {
		case ".inf", "+.inf":
			return literal{"Infinity", numberLiteral}
		case "-.inf":
			return literal{"-Infinity", numberLiteral}
		case ".nan":
			return literal{"NaN", numberLiteral}
		}
		return literal{n.Value, numberLiteral}
	case "!!bool":
		return literal{n.Value, boolLiteral}
	}
	return literal{n.Value, textLiteral}
}

// at marks a rule with its place in the file.
func (f *file) at(n *yaml.Node, r Rule) Rule {
	return &locatedRule{rule: r, where: (&LoadError{File: f.name, Line: n.Line}).place()}
}
