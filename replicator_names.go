package flo

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/state"
)

// lineages is what a session knows of the published tables' names, then and now. A row of a backlog was
// written under the names of its day, and the catalog knows today's: a partition may be detached by now,
// a table renamed or dropped. Rules that hide something must hold nevertheless, so nothing is forgotten.
type lineages struct {
	mu    sync.Mutex
	known map[uint32]state.Table // as the group's record has it; nil: not read yet
}

// remember adds to the group's record what the catalog says now of tables, before a change of one can be
// published.
func (s *replication) remember(ctx context.Context, conn *pgx.Conn, tables []source.Table) error {
	oids := make([]uint32, len(tables))
	for i := range tables {
		oids[i] = tables[i].OID
	}
	found, err := source.Lineages(ctx, conn, oids)
	if err != nil {
		return err
	}
	list := make([]state.Table, len(found))
	for i, l := range found {
		list[i] = state.Table{OID: l.OID, Names: []decode.Name{l.Name}, Ancestors: l.Ancestors}
	}
	if list, err = s.lineages.add(ctx, s.store, list); err != nil {
		return err
	}
	for i := range list {
		s.warnOfNames(ctx, found[i].Name, list[i].Names)
	}
	return nil
}

// add gives what is known of tables with what they add to it, which is in the record by then.
func (l *lineages) add(ctx context.Context, store state.Store, tables []state.Table) ([]state.Table, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil {
		all, err := store.Tables(ctx)
		if err != nil {
			return nil, err
		}
		known := make(map[uint32]state.Table, len(all))
		for _, t := range all {
			known[t.OID] = t
		}
		l.known = known
	}
	out := make([]state.Table, len(tables))
	var news []state.Table
	for i, t := range tables {
		merged, more := l.known[t.OID].Merge(t)
		out[i] = merged
		if more {
			news = append(news, merged)
		}
	}
	if err := store.AddTables(ctx, news); err != nil {
		return nil, err
	}
	for _, t := range news {
		l.known[t.OID] = t
	}
	return out, nil
}

// has reports whether anything is known of a table.
func (l *lineages) has(oid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.known[oid]
	return ok
}

// describe is source.Describe with the names and ancestors that the relation has had, or has got since.
func (s *replication) describe(ctx context.Context, conn *pgx.Conn, rel *decode.Relation, types []uint32) (decode.Description, error) {
	d, err := source.Describe(ctx, conn, 0, types)
	if err != nil {
		return d, err
	}
	found, err := source.Lineages(ctx, conn, []uint32{rel.OID})
	if err != nil {
		return d, err
	}
	t := state.Table{OID: rel.OID}
	d.New = s.schema.on && !s.lineages.has(rel.OID)
	for _, l := range found {
		t.Names, t.Ancestors = []decode.Name{l.Name}, l.Ancestors
	}
	list, err := s.lineages.add(ctx, s.store, []state.Table{t})
	if err != nil {
		return d, err
	}
	if len(list[0].Names) == 0 && !s.schema.on { // else a CREATE TABLE would have come first: it is of CREATE TABLE AS, and no partition
		return d, fmt.Errorf("%w: %s (OID %d): whether it was a partition, and of what, can't be found out any more, nor which rules its rows need; %s",
			ErrTableForgotten, names.Qualified(rel.Schema, rel.Name), rel.OID, startOver)
	}
	// Its own name then is its name of today, unless there were others in between.
	if list, err = s.lineages.add(ctx, s.store, []state.Table{{OID: rel.OID, Names: []decode.Name{rel.Qualified()}}}); err != nil {
		return d, err
	}
	d.Relation, d.Ancestors = rel.OID, list[0].Ancestors
	if len(found) == 1 {
		d.Ancestors = inOrder(found[0].Ancestors, d.Ancestors)
		s.warnOfNames(ctx, found[0].Name, list[0].Names)
	}
	d.OtherNames = slices.DeleteFunc(slices.Clone(list[0].Names), func(n decode.Name) bool { return n == rel.Qualified() })
	return d, nil
}

// inOrder gives all names, those of now first.
func inOrder(now, all []decode.Name) []decode.Name {
	out := slices.Clone(now)
	for _, n := range all {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// tellsApart reports whether options may mean one of two names and not the other: patterns of tables, and rules, whose
// names are not asked. The rules of workers in other processes are not known here.
func (c *config) tellsApart(a, b decode.Name) bool {
	for _, text := range slices.Concat(c.tables, c.exclude) {
		if p, err := names.Parse(text); err == nil && p.Match(a.Schema, a.Name) != p.Match(b.Schema, b.Name) {
			return true
		}
	}
	return slices.ContainsFunc(c.workers, func(w workerConfig) bool { return len(w.rules) > 0 })
}

// warnOfNames says what a rename means for options that name tables.
func (s *replication) warnOfNames(ctx context.Context, now decode.Name, all []decode.Name) {
	for _, n := range all {
		if n != now && s.r.cfg.tellsApart(n, now) {
			s.warn(ctx, fmt.Sprintf("table %s was called %s before: rules for either name hold for all of its rows, a Route for the name that a row was written under; "+
				"write the new name into rules, routes and WithTables", names.Qualified(now.Schema, now.Name), names.Qualified(n.Schema, n.Name)))
		}
	}
}
