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
			"mend it, %s: %w", s.afterMending(), err)}
	}
	if err != nil {
		return err
	}
	in := func(tables []source.Table, t source.Table) bool {
		return slices.ContainsFunc(tables, func(o source.Table) bool { return o.OID == t.OID })
	}
	for _, t := range p.Tables {
		if s.r.cfg.mode == CopyOnly || s.noCopy && !known(s.known, t.OID) {
			continue
		}
		switch err := s.edited(ctx, &t, p.Entries); {
		case err != nil:
			return err
		case !known(s.known, t.OID):
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
