package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/state"
)

// adopts reports whether somebody else owns the publications.
func (c *config) adopts() bool { return len(c.publications) > 0 }

// adopt takes the publications that somebody else owns, and their tables, as they are.
func (s *replication) adopt(ctx context.Context) error {
	p, err := s.r.source.AdoptPublications(ctx, s.conn, s.r.cfg.publications)
	if err != nil {
		return err
	}
	if s.r.cfg.mode != StreamOnly {
		if err := s.r.source.CheckSelect(ctx, s.conn, p.Tables); err != nil {
			return err
		}
	}
	for _, w := range p.Warnings {
		s.warn(ctx, w)
	}
	if len(p.Tables) == 0 {
		s.warn(ctx, fmt.Sprintf("no table is replicated: %q publishes none", s.r.cfg.publications))
	}
	s.published, s.tables, s.entries = p.Names, p.Tables, p.Entries
	return s.remember(ctx, s.conn, s.tables)
}

// addedByOwner gives the tables that the owner has added, or taken out and added again, since the group's record was
// written: they are copied. Where there is no record the publications are adopted just now.
func (s *replication) addedByOwner(ctx context.Context) (added []uint32, err error) {
	rec, err := s.store.Adopted(ctx)
	if s.noCopy || errors.Is(err, state.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for i := range s.tables {
		if t := &s.tables[i]; !stayed(rec.Tables, t.OID, s.entries) {
			added = append(added, t.OID)
			s.log.InfoContext(ctx, "a table was added to the publication: it is copied", slog.String("table", names.Qualified(t.Schema, t.Name)))
		}
	}
	return added, nil
}

// stayed reports whether a table has been published without a break since then.
func stayed(then map[uint32][]uint32, oid uint32, now map[uint32][]uint32) bool {
	was, had := then[oid]
	return had && (len(now[oid]) == 0 || slices.ContainsFunc(now[oid], func(entry uint32) bool { return slices.Contains(was, entry) }))
}

// adopted notes which tables the group has, once the stream says that they are copied.
func (s *replication) adopted(ctx context.Context) error {
	if !s.r.cfg.adopts() {
		return nil
	}
	now := make(map[uint32][]uint32, len(s.tables))
	for i := range s.tables {
		oid := s.tables[i].OID
		now[oid] = s.entries[oid]
	}
	s.entries = now
	return s.store.PutAdopted(ctx, state.Adopted{Tables: now})
}

// joins reports whether a table of which changes come was added by the owner since the session began: then the
// round that copies it has to stand in front of them.
func (s *replication) joins(ctx context.Context, conn *pgx.Conn, oid uint32) (bool, error) {
	in := func(tables []source.Table) bool {
		return slices.ContainsFunc(tables, func(t source.Table) bool { return t.OID == oid })
	}
	if !s.r.cfg.adopts() || s.noCopy || in(s.tables) {
		return false, nil
	}
	published, err := s.r.source.PublishedTables(ctx, conn, s.published)
	return err == nil && in(published), err // one that has left again can't be copied
}

// watchAdopted looks whether the owner has changed the publications. What loses changes from then on is an error;
// a table that was added is copied, one that went is warned of, since PostgreSQL streams it no longer.
func (s *replication) watchAdopted(ctx context.Context) error {
	conn, err := s.r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	p, err := s.r.source.AdoptPublications(ctx, conn, s.r.cfg.publications)
	if errors.Is(err, source.ErrTable) || errors.Is(err, source.ErrSource) {
		return &adoptedChanged{fmt.Errorf("a publication was changed while changes were read from it, so that some may be missing; "+
			"mend it, and if the table was written to meanwhile, %s: %w", startOver, err)}
	}
	if err != nil {
		return err
	}
	in := func(tables []source.Table, t source.Table) bool {
		return slices.ContainsFunc(tables, func(o source.Table) bool { return o.OID == t.OID })
	}
	for _, t := range p.Tables {
		if !s.noCopy && s.r.cfg.mode != CopyOnly && !stayed(s.entries, t.OID, p.Entries) {
			s.log.InfoContext(ctx, "a table was added to the publication", slog.String("table", names.Qualified(t.Schema, t.Name)))
			return errRound
		}
	}
	for _, t := range s.tables {
		if !in(p.Tables, t) {
			s.warn(ctx, fmt.Sprintf("table %s has left the publication: its changes are no longer replicated", names.Qualified(t.Schema, t.Name)))
		}
	}
	return nil
}

// adoptedChanged ends a session whose publication loses changes.
type adoptedChanged struct{ err error }

func (e *adoptedChanged) Error() string { return e.err.Error() }
func (e *adoptedChanged) Unwrap() error { return e.err }

// dropPublications removes the publications that flo made: those of others stay.
func (r *Replicator) dropPublications(ctx context.Context) error {
	conn, err := r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := r.source.DropDDL(ctx, conn, r.cfg.group); err != nil {
		return err
	}
	if !r.cfg.adopts() {
		return r.source.DropPublications(ctx, conn, r.cfg.publicationName())
	}
	return nil
}
