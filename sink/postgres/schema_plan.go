package postgres

import (
	"regexp"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// plan is what WithSchemaSync makes for one copy.
type plan struct {
	catalog *sourceCatalog
	routes  map[uint32]*route // of the copied tables, and of what is above them and has to differ as well
	copied  map[uint32]bool
	tables  map[uint32]*entry // by OID
	chosen  map[int]bool
	entries map[int]*entry
	words   map[string][]*entry // functions by name
	extra   []string            // tables that are not copied and that copied ones need

	outdated *outdated // tables that are not made as they stand at the source

	before  []*entry            // types, functions, tables as they are at the source …
	routed  map[uint32][]*entry // of tables that differ from the source's: with all their properties
	order   []uint32            // of routed
	attach  []*entry            // partitions to their tables
	indexes []*entry            // keys, indexes, statistics
	foreign []*entry            // foreign keys
	last    []*entry            // triggers, rules, comments on what comes behind the copy
}

// neverMade are kinds that no table needs, or that are the destination's own business: rights, row
// security, publications, what acts on the whole database.
var neverMade = []string{"", "ACL", "DEFAULT ACL", "POLICY", "ROW SECURITY", "SECURITY LABEL", "EVENT TRIGGER"}

// neededByAny are the kinds that schema changes don't tell of.
var neededByAny = []string{"EXTENSION", "FUNCTION", "COLLATION"}

// behindCopy are the kinds that are made behind the copy.
var behindCopy = []string{"CONSTRAINT", "INDEX", "INDEX ATTACH", "STATISTICS", "CHECK CONSTRAINT", "FK CONSTRAINT", "TRIGGER", "RULE"}

// newPlan chooses of an archive what the copied tables need.
func newPlan(c *sourceCatalog, a *archive, tables []sink.CopyTable, o *outdated) *plan {
	p := &plan{catalog: c, outdated: o, routes: map[uint32]*route{}, chosen: map[int]bool{}, entries: a.byID, routed: map[uint32][]*entry{}, copied: map[uint32]bool{}, tables: map[uint32]*entry{}}
	makers := map[decode.Name]bool{}
	for _, t := range tables {
		if o.oids[t.Source] || o.gone[t.Source] {
			continue
		}
		r := newRoute(t, c.tables[t.Source])
		r.merged = makers[r.dest]
		makers[r.dest] = true
		p.routes[t.Source], p.copied[t.Source] = r, true
	}
	p.relaxAncestors()
	p.words = map[string][]*entry{}
	for _, e := range a.functions() {
		p.words[e.obj.name.Name] = append(p.words[e.obj.name.Name], e)
	}
	for _, e := range a.entries {
		if e.kind == "TABLE" {
			p.tables[e.oid] = e
		}
	}
	for _, e := range a.entries {
		if p.copied[e.oid] && e.kind == "TABLE" && !p.routes[e.oid].merged {
			p.include(e)
		}
	}
	for _, e := range a.entries { // what else they need: extensions, functions
		if e.kind == "TABLE" && o.oids[e.oid] {
			for _, id := range e.deps {
				if d := a.byID[id]; d != nil && slices.Contains(neededByAny, d.kind) {
					p.include(d)
				}
			}
		}
	}
	// Properties of properties (a comment on an index) stand behind what they are about.
	for _, e := range a.entries {
		if !p.chosen[e.id] && p.belongs(e) {
			p.include(e)
		}
	}
	for _, e := range a.entries {
		if p.chosen[e.id] {
			p.sort(e)
		}
	}
	return p
}

// relaxAncestors lets partitioned tables lack what their partitions lack.
func (p *plan) relaxAncestors() {
	for oid, r := range p.routes {
		if len(r.relaxed) == 0 || r.source != r.dest {
			continue
		}
		for t := p.catalog.tables[oid]; t != nil && t.parent != 0; t = p.catalog.tables[t.parent] {
			up := p.routes[t.parent]
			if up == nil {
				name := p.catalog.tables[t.parent].name
				up = &route{source: name, dest: name}
				p.routes[t.parent] = up
			}
			for _, c := range r.relaxed {
				if !slices.Contains(up.relaxed, c) {
					up.relaxed = append(up.relaxed, c)
				}
			}
		}
	}
}

// include chooses an entry and all that it needs.
func (p *plan) include(e *entry) {
	if p.chosen[e.id] || slices.Contains(neverMade, e.kind) || e.kind == "TABLE" && p.outdated.made(e.oid) {
		return
	}
	p.chosen[e.id] = true
	if e.kind == "TABLE" && !p.copied[e.oid] && !p.above(e.oid) {
		p.extra = append(p.extra, p.tableName(e.oid).String())
	}
	if e.class == classFunction {
		p.mentioned(e)
	}
	for _, id := range e.deps {
		if d := p.entries[id]; d != nil && p.needs(e, d) {
			p.include(d)
		}
	}
}

// above reports whether a table stands above a copied one in a partition tree.
func (p *plan) above(oid uint32) bool {
	for copied := range p.copied {
		for t := p.catalog.tables[copied]; t != nil && t.parent != 0; t = p.catalog.tables[t.parent] {
			if t.parent == oid {
				return true
			}
		}
	}
	return false
}

var wordPattern = regexp.MustCompile(`[\pL_][\pL\pN_$]*`)

// mentioned chooses the functions whose names stand in a function's text: what it calls is known to nobody
// until it is called, in a check while rows are copied. One too many does no harm, unless it would need tables.
func (p *plan) mentioned(e *entry) {
	for _, word := range wordPattern.FindAllString(e.sql, -1) {
		for _, f := range p.words[word] {
			if !slices.ContainsFunc(f.deps, func(id int) bool {
				d := p.entries[id]
				return d != nil && !p.chosen[id] && (d.kind == "TABLE" || strings.HasSuffix(d.kind, "VIEW"))
			}) {
				p.include(f)
			}
		}
	}
}

// needs reports whether an entry's dependency has to be made for it. Not the owner of a sequence that only a
// default uses; not the partitioned table of a leaf that goes elsewhere; and behind the copy, tables are
// there or are not. What is made behind the copy is chosen with the table that it belongs to: a partition's
// key depends on that of the table above, which may not be made.
func (p *plan) needs(e, d *entry) bool {
	if slices.Contains(behindCopy, d.kind) {
		return false
	}
	if d.kind == "TABLE" {
		r := p.routes[e.oid]
		return e.kind != "SEQUENCE" && !slices.Contains(behindCopy, e.kind) && (e.kind != "TABLE" || r == nil || r.source == r.dest)
	}
	if d.kind == "SCHEMA" && e.kind == "TABLE" {
		r := p.routes[e.oid]
		return r == nil || r.source.Schema == r.dest.Schema
	}
	if d.kind == "SCHEMA" && e.kind == "SEQUENCE" && e.obj != nil { // it goes with its table
		r := p.routes[e.obj.table]
		return r == nil || r.plain()
	}
	return true
}

// belongs reports whether an entry is a property of what is chosen.
func (p *plan) belongs(e *entry) bool {
	switch e.kind {
	case "SEQUENCE", "DEFAULT", "CONSTRAINT", "INDEX", "STATISTICS", "TRIGGER", "RULE":
		return e.obj != nil && e.obj.table != 0 && p.makes(e.obj.table)
	case "CHECK CONSTRAINT", "FK CONSTRAINT":
		if e.obj != nil && e.obj.table != 0 {
			return p.makes(e.obj.table)
		}
		return p.all(e)
	case "SEQUENCE OWNED BY":
		s := p.sequenceOf(e)
		return s != nil && p.chosen[s.id] && s.obj != nil && p.makes(s.obj.table)
	case "TABLE ATTACH":
		child, _ := p.attached(e)
		return p.all(e) && p.staysIn(child)
	case "INDEX ATTACH", "COMMENT":
		return p.all(e)
	}
	return false
}

// makes reports whether a source table is among those that are made.
func (p *plan) makes(oid uint32) bool {
	e := p.tables[oid]
	return e != nil && p.chosen[e.id]
}

// all reports whether everything that an entry depends on is chosen.
func (p *plan) all(e *entry) bool {
	for _, id := range e.deps {
		if d := p.entries[id]; d != nil && !p.chosen[id] {
			return false
		}
	}
	return len(e.deps) > 0
}

// staysIn reports whether a partition keeps its place.
func (p *plan) staysIn(child uint32) bool {
	r := p.routes[child]
	return child != 0 && (r == nil || r.source == r.dest)
}

// attached gives the two tables of a TABLE ATTACH.
func (p *plan) attached(e *entry) (child, parent uint32) {
	var pair []uint32
	for _, id := range e.deps {
		if d := p.entries[id]; d != nil && d.kind == "TABLE" {
			pair = append(pair, d.oid)
		}
	}
	for _, x := range pair {
		for _, y := range pair {
			if t := p.catalog.tables[x]; t != nil && t.parent == y {
				return x, y
			}
		}
	}
	return 0, 0
}

func (p *plan) sequenceOf(e *entry) *entry {
	for _, id := range e.deps {
		if d := p.entries[id]; d != nil && d.kind == "SEQUENCE" {
			return d
		}
	}
	return nil
}

// differing gives the table, not made as it is at the source, that an entry belongs to; 0: none.
func (p *plan) differing(e *entry) uint32 {
	oid := uint32(0)
	switch {
	case e.kind == "TABLE":
		oid = e.oid
	case e.kind == "SEQUENCE OWNED BY":
		if s := p.sequenceOf(e); s != nil && s.obj != nil {
			oid = s.obj.table
		}
	case e.kind == "COMMENT":
		for _, id := range e.deps {
			if d := p.entries[id]; d != nil && d.kind != "COMMENT" {
				return p.differing(d)
			}
		}
	case e.obj != nil:
		oid = e.obj.table
	}
	if r := p.routes[oid]; r != nil && !r.plain() {
		return oid
	}
	return 0
}

// sort puts an entry where its turn is.
func (p *plan) sort(e *entry) {
	behind := slices.Contains(behindCopy, e.kind)
	if e.kind == "COMMENT" {
		for _, id := range e.deps {
			if d := p.entries[id]; d != nil && slices.Contains(behindCopy, d.kind) {
				p.last = append(p.last, e)
				return
			}
		}
	}
	switch {
	case e.kind == "TRIGGER" || e.kind == "RULE":
		p.last = append(p.last, e)
	case e.kind == "FK CONSTRAINT":
		p.foreign = append(p.foreign, e)
	case behind:
		p.indexes = append(p.indexes, e)
	case e.kind == "TABLE ATTACH":
		p.attach = append(p.attach, e)
	case p.differing(e) != 0:
		oid := p.differing(e)
		if p.routed[oid] == nil {
			p.order = append(p.order, oid)
		}
		p.routed[oid] = append(p.routed[oid], e)
	default:
		p.before = append(p.before, e)
	}
}

// list gives the chosen entries in the archive's order.
func (p *plan) list(a *archive) []*entry {
	var out []*entry
	for _, e := range a.entries {
		if p.chosen[e.id] {
			out = append(out, e)
		}
	}
	return out
}

// tableName is what a source table is called at the destination.
func (p *plan) tableName(oid uint32) decode.Name {
	if r := p.routes[oid]; r != nil {
		return r.dest
	}
	if t := p.catalog.tables[oid]; t != nil {
		return t.name
	}
	return decode.Name{}
}

// columnName is what a source table's column is called at the destination.
func (p *plan) columnName(oid uint32, name string) string {
	if r := p.routes[oid]; r != nil {
		for _, c := range r.renamed {
			if c[0] == name {
				return c[1]
			}
		}
	}
	return name
}

// touches gives the tables, not made as at the source, that an entry's SQL names.
func (p *plan) touches(e *entry) (out []uint32) {
	add := func(oid uint32) {
		if r := p.routes[oid]; r != nil && !r.plain() && !slices.Contains(out, oid) && (r.source != r.dest || r.renamed != nil) {
			out = append(out, oid)
		}
	}
	if oid := p.differing(e); oid != 0 {
		add(oid)
	}
	if e.obj != nil {
		add(e.obj.refers)
	}
	for _, id := range e.deps {
		if d := p.entries[id]; d != nil && d.kind == "TABLE" {
			add(d.oid)
		}
	}
	slices.Sort(out)
	return out
}
