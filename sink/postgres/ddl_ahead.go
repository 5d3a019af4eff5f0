package postgres

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// A copy has its tables' types and partitioned ancestors as they were at its point. Where other tables share one, and it has been
// altered since the last schema change that the sink was given, what is still to come for those is written for it as it was.
// So such a copy is asked for again: it then comes behind that schema change.

// How many copies of a table may be put off: for what was altered, of which no event trigger may have told, and for a copy that can't begin,
// which may have another reason.
const (
	mostWaits   = 4
	mostRetries = 2
)

// notAhead gives an AheadError if one of the tables shares something that was altered.
func (s *Sink) notAhead(ctx context.Context, tables []sink.CopyTable) error {
	if s.config.ddl.ignore || !slices.ContainsFunc(tables, func(t sink.CopyTable) bool { return t.Schema != nil }) {
		return nil
	}
	return s.with(ctx, func(c *session, st *sink.Start) error {
		d := s.newDDL(ctx, c.pg, st, nil)
		pages, err := d.books.pages("true")
		if err != nil {
			return err
		}
		e := &sink.AheadError{}
		for i := range tables {
			t := &tables[i]
			if t.Schema == nil || s.schema.waited[t.Source] >= mostWaits {
				continue
			}
			if what := sharedAhead(t, pages, tables, s.schema.waited[t.Source] == 0); what != "" {
				e.What, e.Sources = what, append(e.Sources, t.Source)
			}
		}
		if len(e.Sources) == 0 {
			return nil
		}
		s.wait(e)
		return e
	})
}

func (s *Sink) wait(e *sink.AheadError) {
	if s.schema.waited == nil {
		s.schema.waited = map[uint32]int{}
	}
	for _, table := range e.Sources {
		s.schema.waited[table]++
	}
}

// arrived forgets that tables were put off: they are copied.
func (s *Sink) arrived(tables []sink.CopyTable) {
	for i := range tables {
		delete(s.schema.waited, tables[i].Source)
	}
}

// putOff puts a copy off that can't begin as the destination is, in a group that has other tables: what is in its way, another
// partition's bound for example, may be what the source has altered meanwhile, too. A lasting reason is told the third time.
func (s *Sink) putOff(ctx context.Context, tables []sink.CopyTable, why error) (later, err error) {
	var refused *DDLError
	var unmade *SchemaError
	var misfit *FitError
	if s.config.ddl.ignore || !errors.As(why, &refused) && !errors.As(why, &unmade) && !errors.As(why, &misfit) {
		return nil, nil
	}
	e := &sink.AheadError{What: "it may be because of what comes in between that " + why.Error(), Err: why}
	for i := range tables {
		if t := &tables[i]; t.Schema != nil && s.schema.waited[t.Source] < mostRetries {
			e.Sources = append(e.Sources, t.Source)
		}
	}
	if len(e.Sources) < len(tables) {
		return nil, nil
	}
	err = s.with(ctx, func(c *session, st *sink.Start) error {
		others, err := s.newDDL(ctx, c.pg, st, nil).books.pages("kind = $3", tablePage)
		if err == nil && slices.ContainsFunc(others, func(p *page) bool { return !slices.Contains(e.Sources, p.oid) }) {
			later = e
		}
		return err
	})
	if later != nil {
		s.wait(e)
	}
	return later, err
}

// sharedAhead says what a table of a copy shares with one that is not copied, and that was altered since the books were written; "" if
// there is no such thing. first: the copy was not put off yet.
func sharedAhead(t *sink.CopyTable, pages []*page, tables []sink.CopyTable, first bool) string {
	another := func(shares func(*decode.TableShape) bool) *page {
		for _, p := range pages {
			if p.kind == tablePage && shares(p.table) && !slices.ContainsFunc(tables, func(t sink.CopyTable) bool { return t.Source == p.oid }) {
				return p
			}
		}
		return nil
	}
	for i := range t.Schema.Types {
		now := &t.Schema.Types[i]
		was := pageOf(pages, typePage, now.OID)
		if was == nil { // a type that had its name before it, and has another one by now
			at := slices.IndexFunc(pages, func(p *page) bool { return p.kind == typePage && p.source == now.Qualified() })
			if at < 0 {
				continue
			}
			was = pages[at]
		} else if sameType(*was.typ, *now) {
			continue
		}
		by := madeOf(pages, was)
		if p := another(func(o *decode.TableShape) bool {
			return slices.ContainsFunc(o.Columns, func(c decode.ColumnShape) bool { return uses(c.Type, by) })
		}); p != nil {
			return "type " + was.source.String() + ", which " + p.source.String() + " uses too"
		}
	}
	for i := range t.Schema.Tables {
		now := &t.Schema.Tables[i]
		was := pageOf(pages, tablePage, now.OID)
		if now.OID == t.Source && was == nil && now.Bound != "" && first {
			// The stream has not told of it yet, nor of what became of partitions in whose bounds it is.
			if p := another(func(o *decode.TableShape) bool {
				return slices.ContainsFunc(o.Ancestors, func(n decode.Name) bool { return slices.Contains(now.Ancestors, n) })
			}); p != nil {
				return "it is a partition beside " + p.source.String()
			}
		}
		if now.OID == t.Source || was == nil || sameRows(was.table, now) {
			continue
		}
		if p := another(func(o *decode.TableShape) bool { return o.OID != now.OID && slices.Contains(o.Ancestors, was.source) }); p != nil {
			return "table " + was.source.String() + ", of which " + p.source.String() + " is a partition too"
		}
	}
	return ""
}

func pageOf(pages []*page, kind string, oid uint32) *page {
	i := slices.IndexFunc(pages, func(p *page) bool { return p.kind == kind && p.oid == oid })
	if i < 0 {
		return nil
	}
	return pages[i]
}

// sameRows reports whether a table's rows are written as they were, and have to keep the same constraints.
func sameRows(was, now *decode.TableShape) bool {
	return slices.EqualFunc(was.Columns, now.Columns, sameColumn) && sameConstraints(was.Constraints, now.Constraints)
}

// madeOf gives the names of a type and of those that are made of it.
func madeOf(pages []*page, of *page) []decode.Name {
	out := []decode.Name{of.source}
	for i := 0; i < len(out); i++ {
		for _, p := range pages {
			if p.kind == typePage && !slices.Contains(out, p.source) && (uses(p.typ.Base, out[i:i+1]) ||
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
