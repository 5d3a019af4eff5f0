package rules

import (
	"slices"

	"github.com/pgflo/flo/decode"
)

// Schema gives what rules leave of a schema change, under the names of the destination; s is not changed.
//
// Columns that an Exclude takes out (one that On limits takes none) are in LeftOut instead of Columns, tables and columns that a
// Route renames have the destination's name, and in Source the source's. Texts (defaults, definitions) keep the
// source's names, and so does what was dropped. With any rule but a Route the Query, which may hold data, is left
// out. Filters let schema changes pass. A column that a rule changes loses its Missing, which is a row's value as
// it is; if the column is new, the table counts as Rewritten, so that its rows come again through the rule.
//
// A rule of yours that takes columns out is followed as far as a row of the table has been bound before.
func (b *Binder) Schema(s *decode.SchemaChange) (*decode.SchemaChange, error) {
	if len(b.rules)+len(b.routes) == 0 {
		return s, nil
	}
	out := s.Clone()
	if len(b.rules) > 0 {
		out.Query = ""
	}
	for i := range out.Tables {
		if err := b.shape(out, &out.Tables[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// shape does it for one table.
func (b *Binder) shape(s *decode.SchemaChange, t *decode.TableShape) error {
	in := &decode.Relation{OID: t.OID, Schema: t.Schema, Name: t.Name, Ancestors: t.Ancestors}
	last := b.last[t.OID]
	f := shapeFound{gone: map[string]bool{}, touched: map[string]bool{}}
	if last != nil { // names that it had once count too
		in.OtherNames = append(slices.Clone(last.in.OtherNames), last.in.Qualified())
		for _, c := range last.left {
			f.gone[c] = true
		}
		in.Ancestors = slices.Concat(t.Ancestors, last.in.Ancestors)
	}
	f.walk(b.rules, in, false)
	t.Columns = slices.DeleteFunc(t.Columns, func(c decode.ColumnShape) bool {
		if f.gone[c.Name] {
			t.LeftOut = append(t.LeftOut, c.Name)
		}
		return f.gone[c.Name]
	})
	for i := range t.Columns {
		c := &t.Columns[i]
		if c.Missing == nil || !f.all && !f.touched[c.Name] {
			continue
		}
		c.Missing = nil
		if !s.Baseline && last != nil && last.in.Column(c.Name) < 0 {
			t.Rewritten = true
		}
	}
	return b.route(t, in)
}

// route gives a table its names at the destination.
func (b *Binder) route(t *decode.TableShape, in *decode.Relation) error {
	for _, r := range b.routes {
		m := r.match(in)
		if m == nil {
			continue
		}
		if err := r.Validate(); err != nil {
			return r.locate(err)
		}
		to, err := r.destination(m, t.Qualified())
		if err != nil {
			return r.locate(err)
		}
		if from := t.Qualified(); to != from {
			t.Source, t.Schema, t.Name = &from, to.Schema, to.Name
		}
		for _, rename := range r.columns {
			if i := slices.IndexFunc(t.Columns, func(c decode.ColumnShape) bool { return c.Name == rename.source && c.Source == "" }); i >= 0 {
				t.Columns[i].Source, t.Columns[i].Name = rename.source, rename.destination
			}
		}
		return nil
	}
	return nil
}

// shapeFound is what rules do with the columns of a table, by name.
type shapeFound struct {
	gone    map[string]bool
	touched map[string]bool // their values are changed
	all     bool            // so may those of any column
}

func (f *shapeFound) walk(rules []Rule, in *decode.Relation, limited bool) {
	for _, r := range rules {
		switch r := r.(type) {
		case *locatedRule:
			f.walk([]Rule{r.rule}, in, limited)
		case *onRule:
			f.walk([]Rule{r.rule}, in, true)
		case *tableRule:
			if r.err == nil && r.matches(in) {
				f.walk(r.rules, in, limited)
			}
		case *excludeRule:
			for _, c := range r.columns {
				if limited {
					f.touched[c] = true
				} else {
					f.gone[c] = true
				}
			}
		case *maskRule:
			f.touched[r.column] = true
		case *regexRule:
			f.touched[r.column] = true
		case *hashRule:
			f.touched[r.column] = true
		case *setRule:
			f.touched[r.column] = true
		case *mapRule:
			f.touched[r.column] = true
		case *castRule, *filterRule:
		default:
			f.all = true
		}
	}
}

// lastBound is the version of a table that was bound last.
type lastBound struct {
	in   *decode.Relation
	left []string // columns that the rules took out
}

// remember notes what rules made of a table's columns, before a Route renames them.
func (b *Binder) remember(in, out *decode.Relation) {
	l := &lastBound{in: in}
	for i := range in.Columns {
		if out != in && out.Column(in.Columns[i].Name) < 0 {
			l.left = append(l.left, in.Columns[i].Name)
		}
	}
	b.last[in.OID] = l
}
