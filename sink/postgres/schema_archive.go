package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Catalogs whose rows an archive's entries name. The numbers are fixed: src/include/catalog/pg_*.h.
const (
	classRelation   = 1259
	classType       = 1247
	classFunction   = 1255
	classDefault    = 2604
	classConstraint = 2606
	classSchema     = 2615
	classRule       = 2618
	classTrigger    = 2620
	classExtension  = 3079
	classStatistics = 3381
)

// archive is what pg_dump wrote: https://www.postgresql.org/docs/current/app-pgrestore.html
type archive struct {
	tools   tools
	file    string
	entries []*entry // in an order in which they can be made
	byID    map[int]*entry
}

// entry is one object, or one property of an object.
type entry struct {
	id    int
	class uint32 // the catalog of the object at the source; 0 for a property
	oid   uint32
	kind  string // "TABLE", "FK CONSTRAINT", …
	label string // schema, name and owner, for people
	deps  []int
	sql   string
	obj   *object // what the source's catalog says of it; nil if it isn't there
}

// entryKinds are the words in which an archive's list names kinds, with the catalog that the entry must
// have for the word to mean it (0: any): a schema's name follows, which may itself be called ATTACH.
var entryKinds = []struct {
	name  string
	class int64
}{
	{"TEXT SEARCH CONFIGURATION", -1}, {"TEXT SEARCH DICTIONARY", -1}, {"TEXT SEARCH TEMPLATE", -1}, {"TEXT SEARCH PARSER", -1},
	{"PROCEDURAL LANGUAGE", -1}, {"OPERATOR FAMILY", 2753}, {"OPERATOR CLASS", 2616}, {"OPERATOR", 2617}, {"ACCESS METHOD", -1},
	{"COLLATION", -1}, {"CONVERSION", -1}, {"TRANSFORM", -1}, {"CAST", -1},
	{"MATERIALIZED VIEW", -1}, {"SEQUENCE OWNED BY", 0}, {"CHECK CONSTRAINT", -1}, {"FK CONSTRAINT", -1}, {"EVENT TRIGGER", -1},
	{"FOREIGN TABLE", -1}, {"SECURITY LABEL", -1}, {"TABLE ATTACH", 0}, {"INDEX ATTACH", 0}, {"ROW SECURITY", -1},
	{"SHELL TYPE", -1}, {"DEFAULT ACL", 826}, {"CONSTRAINT", classConstraint}, {"STATISTICS", classStatistics}, {"EXTENSION", classExtension},
	{"SEQUENCE", classRelation}, {"FUNCTION", -1}, {"PROCEDURE", -1}, {"AGGREGATE", -1}, {"DEFAULT", classDefault}, {"COMMENT", 0},
	{"TRIGGER", classTrigger}, {"DOMAIN", classType}, {"SCHEMA", classSchema}, {"POLICY", -1}, {"TABLE", classRelation},
	{"INDEX", classRelation}, {"VIEW", classRelation}, {"TYPE", classType}, {"RULE", classRule}, {"ACL", 0},
}

var (
	entryLine   = regexp.MustCompile(`^(\d+); (\d+) (\d+) (.*)$`)
	dependsLine = regexp.MustCompile(`^;\tdepends on: ([\d ]+)$`)
)

// list reads the archive's table of contents.
func (a *archive) list(ctx context.Context) error {
	out, err := a.tools.run(ctx, "pg_restore", append(a.tools.restoreFlags(), "--list", a.file)...)
	if err != nil {
		return err
	}
	a.byID = map[int]*entry{}
	for line := range strings.SplitSeq(string(out), "\n") {
		if m := entryLine.FindStringSubmatch(line); m != nil {
			e, err := newEntry(m)
			if err != nil {
				return err
			}
			a.entries = append(a.entries, e)
			a.byID[e.id] = e
			continue
		}
		m := dependsLine.FindStringSubmatch(line)
		if m == nil || len(a.entries) == 0 {
			continue
		}
		e := a.entries[len(a.entries)-1]
		for _, f := range strings.Fields(m[1]) {
			id, err := strconv.Atoi(f)
			if err != nil {
				return fmt.Errorf("sink/postgres: pg_restore's list: %w", err)
			}
			if !slices.Contains(e.deps, id) {
				e.deps = append(e.deps, id)
			}
		}
	}
	return nil
}

func newEntry(m []string) (*entry, error) {
	id, err1 := strconv.Atoi(m[1])
	class, err2 := strconv.ParseUint(m[2], 10, 32)
	oid, err3 := strconv.ParseUint(m[3], 10, 32)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, fmt.Errorf("sink/postgres: pg_restore's list: %w", err)
	}
	e := &entry{id: id, class: uint32(class), oid: uint32(oid), label: m[4]}
	for _, k := range entryKinds {
		if rest, ok := strings.CutPrefix(m[4], k.name+" "); ok && (k.class < 0 || uint64(k.class) == class) {
			e.kind, e.label = k.name, rest
			break
		}
	}
	return e, nil
}

// functions gives the entries whose texts may mention each other without PostgreSQL's knowing.
func (a *archive) functions() []*entry {
	var out []*entry
	for _, e := range a.entries {
		if e.class == classFunction && e.obj != nil {
			out = append(out, e)
		}
	}
	return out
}

// scriptEnd is what pg_restore writes behind the last entry.
const scriptEnd = "\n--\n-- PostgreSQL database dump complete\n--\n"

// marker is what pg_restore writes before an entry.
func (e *entry) marker() string {
	return fmt.Sprintf("\n--\n-- TOC entry %d (class %d OID %d)\n", e.id, e.class, e.oid)
}

// write has pg_restore write the SQL of the chosen entries, and gives each its own.
func (a *archive) write(ctx context.Context, chosen []*entry) error {
	if len(chosen) == 0 {
		return nil
	}
	script, err := a.script(ctx, chosen)
	if err != nil {
		return err
	}
	if splitScript(script, chosen) {
		return nil
	}
	// Something within an entry, a function's body, looks like an entry's beginning: one by one then.
	for _, e := range chosen {
		if script, err = a.script(ctx, []*entry{e}); err != nil {
			return err
		}
		start, end := bytes.Index(script, []byte(e.marker())), bytes.LastIndex(script, []byte(scriptEnd))
		if start < 0 || end < start {
			return fmt.Errorf("sink/postgres: pg_restore's script for %s %s is not understood", e.kind, e.label)
		}
		if err := e.take(script[start+len(e.marker()) : end]); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) script(ctx context.Context, entries []*entry) ([]byte, error) {
	var list strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&list, "%d;\n", e.id)
	}
	path := filepath.Join(filepath.Dir(a.file), "list")
	if err := os.WriteFile(path, []byte(list.String()), 0o600); err != nil {
		return nil, fmt.Errorf("sink/postgres: pg_restore's list: %w", err)
	}
	return a.tools.run(ctx, "pg_restore", append(a.tools.restoreFlags(), "--use-list="+path, "--file=-", a.file)...)
}

// completedLine stands behind the last entry.
var completedLine = regexp.MustCompile(`\n-- Completed on [^\n]*\s*$`)

var markerLine = regexp.MustCompile(`\n--\n-- TOC entry \d+ \(class \d+ OID \d+\)\n`)

// splitScript cuts a script into its entries. It reports whether that was possible beyond doubt: what
// looks like a beginning is exactly the entries' beginnings, in order.
func splitScript(script []byte, entries []*entry) bool {
	marks := markerLine.FindAllIndex(script, len(entries)+1)
	end := bytes.LastIndex(script, []byte(scriptEnd))
	if len(marks) != len(entries) || end < marks[len(marks)-1][1] {
		return false
	}
	for i, e := range entries {
		if string(script[marks[i][0]:marks[i][1]]) != e.marker() {
			return false
		}
		stop := end
		if i+1 < len(marks) {
			stop = marks[i+1][0]
		}
		if e.take(script[marks[i][1]:stop]) != nil {
			return false
		}
	}
	return true
}

// take sets the entry's SQL: what stands behind the head, which is comments and ends with an empty one.
func (e *entry) take(text []byte) error {
	rest := string(text)
	for {
		line, after, found := strings.Cut(rest, "\n")
		if !found || line != "--" && !strings.HasPrefix(line, "-- ") {
			return fmt.Errorf("sink/postgres: pg_restore's script for %s %s is not understood", e.kind, e.label)
		}
		if rest = after; line == "--" {
			break
		}
	}
	e.sql = strings.TrimSpace(completedLine.ReplaceAllString(rest, ""))
	return nil
}
