package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pgflo/flo/decode"
)

// Table is what the replicator remembers of a published table: the source's catalog knows names and
// partitions of today only, and the rows of a backlog were written under those of their day.
type Table struct {
	OID       uint32        `json:"oid"`
	Names     []decode.Name `json:"names"`               // all that it was seen under, in that order
	Ancestors []decode.Name `json:"ancestors,omitempty"` // all tables that it was seen to be a partition of
}

// Merge gives what a and b know together, and whether b adds anything to a. It changes neither.
func (a Table) Merge(b Table) (Table, bool) {
	before := len(a.Names) + len(a.Ancestors)
	a.OID = b.OID
	a.Names, a.Ancestors = union(a.Names, b.Names), union(a.Ancestors, b.Ancestors)
	return a, len(a.Names)+len(a.Ancestors) != before
}

// union gives both lists' names, each once. It writes into neither.
func union(a, b []decode.Name) []decode.Name {
	out := slices.Clip(a)
	for _, n := range b {
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// addTables merges tables into a record.
func addTables(into []Table, tables []Table) (out []Table, changed bool) {
	out = slices.Clone(into)
	for _, t := range tables {
		i, found := slices.BinarySearchFunc(out, t.OID, func(x Table, oid uint32) int { return cmp.Compare(x.OID, oid) })
		if !found {
			out = slices.Insert(out, i, Table{})
		}
		merged, more := out[i].Merge(t)
		out[i], changed = merged, changed || more || !found
	}
	return out, changed
}

// tablePages is how many keys the tables are spread over, by OID: a value is limited by the server's
// max_payload, 1 MB by default, and of 10,000 partitions all names need more.
const tablePages = 64

const keyTables = "tables."

func tableKey(oid uint32) string { return keyTables + strconv.Itoa(int(oid%tablePages)) }

// Tables implements Store.
func (s *natsStore) Tables(ctx context.Context) ([]Table, error) {
	prefix, subjects, err := s.keys(ctx, keyTables)
	if err != nil {
		return nil, fmt.Errorf("state: list tables: %w", err)
	}
	var all []Table
	for subject := range subjects {
		var page []Table
		if _, err := s.get(ctx, strings.TrimPrefix(subject, prefix), &page); err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		all = append(all, page...)
	}
	slices.SortFunc(all, func(a, b Table) int { return cmp.Compare(a.OID, b.OID) })
	return all, nil
}

// AddTables implements Store.
func (s *natsStore) AddTables(ctx context.Context, tables []Table) error {
	pages := map[string][]Table{}
	for _, t := range tables {
		pages[tableKey(t.OID)] = append(pages[tableKey(t.OID)], t)
	}
	for key, list := range pages {
		if err := s.addPage(ctx, key, list); err != nil {
			return err
		}
	}
	return nil
}

// addPage tries again as long as somebody else writes: both only add, so that neither undoes the other.
func (s *natsStore) addPage(ctx context.Context, key string, list []Table) error {
	for {
		var page []Table
		rev, err := s.get(ctx, key, &page)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		merged, changed := addTables(page, list)
		if !changed {
			return nil
		}
		if _, err = s.swap(ctx, key, merged, rev); !errors.Is(err, ErrConflict) {
			return err
		}
	}
}

// ForgetTables implements Store.
func (s *natsStore) ForgetTables(ctx context.Context) error {
	prefix, subjects, err := s.keys(ctx, keyTables)
	if err != nil {
		return fmt.Errorf("state: list tables: %w", err)
	}
	for subject := range subjects {
		if err := s.purge(ctx, strings.TrimPrefix(subject, prefix)); err != nil {
			return fmt.Errorf("state: forget tables: %w", err)
		}
	}
	return nil
}

// Tables implements Store.
func (m *Memory) Tables(ctx context.Context) ([]Table, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.tables), nil
}

// AddTables implements Store.
func (m *Memory) AddTables(ctx context.Context, tables []Table) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.tables, _ = addTables(m.tables, tables)
	return nil
}

// ForgetTables implements Store.
func (m *Memory) ForgetTables(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.tables = nil
	return nil
}
