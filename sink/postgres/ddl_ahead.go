package postgres

import (
	"context"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// A copy has its tables' types as they were at its point. Where other tables use one too, and it has been altered since the
// last schema change that the sink was given, what is still to come for those is written for the type as it was. So such a
// copy is asked for again: it then comes behind that schema change.

// mostWaits is how many copies of a table may be put off; a change that no event trigger has told of may never come.
const mostWaits = 2

// notAhead gives an AheadError if one of the tables uses such a type.
func (s *Sink) notAhead(ctx context.Context, tables []sink.CopyTable) error {
	if s.config.ddl.ignore || !slices.ContainsFunc(tables, func(t sink.CopyTable) bool { return t.Schema != nil && len(t.Schema.Types) > 0 }) {
		return nil
	}
	return s.with(ctx, func(c *session, st *sink.Start) error {
		d := s.newDDL(ctx, c.pg, st, nil)
		types, err := d.books.pages("kind = $3", typePage)
		if err != nil || len(types) == 0 {
			return err
		}
		altered := map[uint32]*page{}
		users := map[uint32][]uint32{} // tables of the copy, by altered type
		for i := range tables {
			t := &tables[i]
			if t.Schema == nil {
				continue
			}
			for k := range t.Schema.Types {
				now := &t.Schema.Types[k]
				was := pageOf(types, now.OID)
				if was == nil || takesOldRows(was.typ, now) {
					continue
				}
				altered[now.OID] = was
				users[now.OID] = append(users[now.OID], t.Source)
			}
		}
		if len(altered) == 0 {
			return nil
		}
		known, err := d.books.pages("kind = $3", tablePage)
		if err != nil {
			return err
		}
		return s.putOff(tables, known, types, altered, users)
	})
}

// putOff tells which tables have to wait, of those that use an altered type which others use too.
func (s *Sink) putOff(tables []sink.CopyTable, known, types []*page, altered map[uint32]*page, users map[uint32][]uint32) error {
	e := &sink.AheadError{}
	for oid, was := range altered {
		by := madeOf(types, was)
		i := slices.IndexFunc(known, func(p *page) bool {
			return !slices.ContainsFunc(tables, func(t sink.CopyTable) bool { return t.Source == p.oid }) &&
				slices.ContainsFunc(p.table.Columns, func(c decode.ColumnShape) bool { return uses(c.Type, by) })
		})
		if i < 0 {
			continue
		}
		for _, table := range users[oid] {
			if s.schema.waited[table] < mostWaits {
				e.What = "type " + was.source.String() + ", which " + known[i].source.String() + " uses too"
				e.Sources = append(e.Sources, table)
			}
		}
	}
	if len(e.Sources) == 0 {
		return nil
	}
	slices.Sort(e.Sources)
	e.Sources = slices.Compact(e.Sources)
	if s.schema.waited == nil {
		s.schema.waited = map[uint32]int{}
	}
	for _, table := range e.Sources {
		s.schema.waited[table]++
	}
	return e
}

func pageOf(pages []*page, oid uint32) *page {
	i := slices.IndexFunc(pages, func(p *page) bool { return p.oid == oid })
	if i < 0 {
		return nil
	}
	return pages[i]
}

// takesOldRows reports whether a type as it is now holds every value that it held before, as it was written then, under
// the same name.
func takesOldRows(was, now *decode.TypeShape) bool {
	if was.Qualified() != now.Qualified() || was.Kind != now.Kind || was.Base != now.Base {
		return false
	}
	switch now.Kind {
	case "e":
		return !slices.ContainsFunc(was.Labels, func(l string) bool { return !slices.Contains(now.Labels, l) })
	case "c":
		return slices.EqualFunc(was.Fields, now.Fields, func(a, b decode.ColumnShape) bool { return a.Num == b.Num && a.Type == b.Type })
	case "d":
		return (was.NotNull || !now.NotNull) && !slices.ContainsFunc(now.Constraints, func(c decode.ConstraintShape) bool {
			return !slices.ContainsFunc(was.Constraints, func(o decode.ConstraintShape) bool { return o.Definition == c.Definition })
		})
	}
	return true
}

// madeOf gives the names of a type and of those that are made of it.
func madeOf(types []*page, of *page) []decode.Name {
	out := []decode.Name{of.source}
	for i := 0; i < len(out); i++ {
		for _, p := range types {
			if !slices.Contains(out, p.source) && (uses(p.typ.Base, out[i:i+1]) ||
				slices.ContainsFunc(p.typ.Fields, func(f decode.ColumnShape) bool { return uses(f.Type, out[i:i+1]) })) {
				out = append(out, p.source)
			}
		}
	}
	return out
}

// uses reports whether a type's text, of format_type, is of one of the types or an array of it.
func uses(text string, types []decode.Name) bool {
	name, _, ok := cutQualified(strings.TrimSuffix(text, "[]"))
	return ok && slices.Contains(types, name)
}
