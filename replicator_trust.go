package flo

import (
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/source"
)

// While PostgreSQL makes a slot it forgets what transactions that were open over its full snapshot have done to the catalog
// (see undecodable), though the exported snapshot has it: the first rows behind the slot's point may be decoded with
// the columns of before, without those that were just added. With schema changes in the stream it shows: a table's rows
// have other columns than its copy, and no schema change has told of it. Another slot doesn't have it any more.
type slotTrust struct {
	mu     sync.Mutex
	copied map[uint32][]decode.Column // of the tables that are copied, as the snapshot has them
	met    map[uint32]*decode.Relation
	told   map[uint32]bool // a schema change was about them
}

// copies notes the tables of a copy.
func (s *replication) copies(tables []source.Table) error {
	if !s.made || !s.schema.on {
		return nil
	}
	f := &s.trust
	f.mu.Lock()
	defer f.mu.Unlock()
	f.copied = make(map[uint32][]decode.Column, len(tables))
	for i := range tables {
		t := &tables[i]
		f.copied[t.OID] = t.Columns
		if rel := f.met[t.OID]; rel != nil && !sameColumns(rel.Columns, t.Columns) {
			return s.distrustSlot(rel)
		}
	}
	return nil
}

// meets takes the first description of a table in the stream that no schema change came before.
func (s *replication) meets(rel *decode.Relation) error {
	if !s.made || !s.schema.on || s.whole.Load() {
		return nil
	}
	f := &s.trust
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.told[rel.OID] || f.met[rel.OID] != nil {
		return nil
	}
	if f.met == nil {
		f.met = map[uint32]*decode.Relation{}
	}
	f.met[rel.OID] = rel
	if columns, ok := f.copied[rel.OID]; ok && !sameColumns(rel.Columns, columns) {
		return s.distrustSlot(rel)
	}
	return nil
}

// tells notes what a schema change is about.
func (s *replication) tells(change *decode.SchemaChange) {
	if change == nil || change.Baseline {
		return
	}
	f := &s.trust
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.told == nil {
		f.told = map[uint32]bool{}
	}
	for i := range change.Tables {
		f.told[change.Tables[i].OID] = true
	}
	for _, d := range change.Dropped {
		f.told[d.OID] = true
	}
}

// distrustSlot begins the copy again with another slot, once a Run.
func (s *replication) distrustSlot(rel *decode.Relation) error {
	text := fmt.Sprintf("the first rows of table %s behind the slot have other columns than its copy: the source altered it while it made the slot", names.Qualified(rel.Schema, rel.Name))
	if s.r.distrusted.Swap(true) {
		s.warn(s.work, text+", which a new slot has not mended: compare it with the destination, or start over (WithResync)")
		return nil
	}
	s.r.afresh.Store(true)
	s.log.Warn("the copy begins again with another slot", slog.String("reason", text))
	return fmt.Errorf("%w: %s", errAgain, text)
}

func sameColumns(a, b []decode.Column) bool {
	return slices.EqualFunc(a, b, func(a, b decode.Column) bool {
		return a.Name == b.Name && (a.Type == nil || b.Type == nil || a.Type.OID == b.Type.OID)
	})
}
