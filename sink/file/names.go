package file

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// names is a parsed pattern of WithNames.
type names struct {
	parts    []namePart
	perTable bool
}

type namePart struct {
	kind partKind
	text string // literal, or the layout of a time
}

type partKind int

const (
	partLiteral partKind = iota
	partSchema
	partTable
	partTime
	partSeq
)

const (
	timeLayout = "20060102T150405Z"
	// otherName stands for schema and table of changes that have none. A '+' is never in an escaped name.
	otherName = "+other"
	// maxNamePart bounds an escaped name, in bytes: common file systems take 255 for a whole component.
	maxNamePart = 100
)

func parseNames(pattern string) (names, error) {
	var n names
	bad := func(why string) (names, error) {
		return names{}, fmt.Errorf("%w: WithNames(%q): %s", ErrInvalidOption, pattern, why)
	}
	seq := false
	for rest := pattern; rest != ""; {
		literal, more, found := strings.Cut(rest, "{")
		if literal != "" {
			n.parts = append(n.parts, namePart{kind: partLiteral, text: literal})
		}
		if !found {
			break
		}
		name, more, found := strings.Cut(more, "}")
		if !found {
			return bad("a '{' without its '}'")
		}
		rest = more
		name, layout, _ := strings.Cut(name, ":")
		switch {
		case name == "schema" && layout == "":
			n.parts, n.perTable = append(n.parts, namePart{kind: partSchema}), true
		case name == "table" && layout == "":
			n.parts, n.perTable = append(n.parts, namePart{kind: partTable}), true
		case name == "time":
			if layout == "" {
				layout = timeLayout
			}
			n.parts = append(n.parts, namePart{kind: partTime, text: layout})
		case name == "seq" && layout == "":
			n.parts, seq = append(n.parts, namePart{kind: partSeq}), true
		default:
			return bad(fmt.Sprintf("{%s}: want schema, table, time, time:layout or seq", name))
		}
	}
	if !seq {
		return bad("{seq} is missing: without it two files could have one name")
	}
	sample := n.path(tableKey{schema: "schema", table: "table"}, time.Unix(0, 0), 1)
	if !filepath.IsLocal(filepath.FromSlash(sample)) || strings.HasSuffix(sample, "/") || strings.ContainsAny(sample, "\x00\\") {
		return bad("it must lead to a file within the sink's folder")
	}
	return n, nil
}

// tableKey is the table that a file is for; zero if files are not split by table.
type tableKey struct {
	schema, table string
	other         bool // for changes of no table
}

// part gives a name as it stands in a path.
func (k tableKey) part(name string) string {
	if k.other {
		return otherName
	}
	return escapeName(name)
}

// path gives a file's name below the folder, with slashes, without its ending.
func (n *names) path(k tableKey, at time.Time, seq uint64) string {
	var b strings.Builder
	for _, p := range n.parts {
		switch p.kind {
		case partLiteral:
			b.WriteString(p.text)
		case partSchema:
			b.WriteString(k.part(k.schema))
		case partTable:
			b.WriteString(k.part(k.table))
		case partTime:
			b.WriteString(at.UTC().Format(p.text))
		case partSeq:
			fmt.Fprintf(&b, "%08d", seq)
		}
	}
	return b.String()
}

// escapeName makes a name fit to be (part of) a file's. Unlike names stay unlike: a long one has a hash
// in its end's place.
func escapeName(name string) string {
	if name == "" {
		return "%" // never what another name becomes, and a path's part
	}
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		plain := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '.' && i > 0
		if plain {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	if b.Len() <= maxNamePart {
		return b.String()
	}
	sum := sha256.Sum256([]byte(name))
	return b.String()[:maxNamePart-17] + "~" + hex.EncodeToString(sum[:8])
}
