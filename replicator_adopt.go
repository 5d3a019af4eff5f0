package flo

import (
	"context"
	"errors"
	"fmt"
	"slices"

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
	s.published, s.tables = p.Names, p.Tables
	return s.remember(ctx, s.conn, s.tables)
}

// watchAdopted looks whether the owner has changed the publications. What loses changes from then on is an error;
// a table that came or went is warned of, since PostgreSQL streams it, or doesn't, from then on.
func (s *replication) watchAdopted(ctx context.Context) error {
	conn, err := s.r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	p, err := s.r.source.AdoptPublications(ctx, conn, s.r.cfg.publications)
	if errors.Is(err, source.ErrTable) || errors.Is(err, source.ErrSource) {
		return &adoptedChanged{fmt.Errorf("a publication was changed while changes were read from it, so that some may be missing; "+
			"mend it, and if the table was written to meanwhile, call Drop and start over with a fresh copy: %w", err)}
	}
	if err != nil {
		return err
	}
	in := func(tables []source.Table, t source.Table) bool {
		return slices.ContainsFunc(tables, func(o source.Table) bool { return o.OID == t.OID })
	}
	for _, t := range p.Tables {
		if !in(s.tables, t) && !(s.schema.on && (s.schema.scope.all || s.schema.scope.schemas[t.Schema])) {
			s.warn(ctx, fmt.Sprintf("table %s was added to the publication: its changes are streamed from then on, but its rows were not copied; call Drop and start over to include them",
				names.Qualified(t.Schema, t.Name)))
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
