package flo

import (
	"errors"
	"log/slog"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/source"
)

func TestASlotThatHasForgottenAnAlterationIsMadeAgainOnce(t *testing.T) {
	columns := func(names ...string) (out []decode.Column) {
		for _, n := range names {
			out = append(out, decode.Column{Name: n, Type: &decode.Type{OID: 25}})
		}
		return out
	}
	session := func(r *Replicator) *replication {
		return &replication{r: r, work: t.Context(), log: slog.New(slog.DiscardHandler), made: true, schema: schemaTracking{on: true}}
	}
	tables := []source.Table{{OID: 1, Columns: columns("a", "b")}}
	now, before := &decode.Relation{OID: 1, Columns: columns("a", "b")}, &decode.Relation{OID: 1, Columns: columns("a")}
	for name, c := range map[string]struct {
		steps func(s *replication) error
		again bool
	}{
		"same":       {func(s *replication) error { return errors.Join(s.copies(tables), s.meets(now)) }, false},
		"rows first": {func(s *replication) error { return errors.Join(s.meets(before), s.copies(tables)) }, true},
		"copy first": {func(s *replication) error { return errors.Join(s.copies(tables), s.meets(before)) }, true},
		"told": {func(s *replication) error {
			s.tells(&decode.SchemaChange{Tables: []decode.TableShape{{OID: 1}}})
			return errors.Join(s.meets(before), s.copies(tables))
		}, false},
		"a later one":          {func(s *replication) error { return errors.Join(s.copies(tables), s.meets(now), s.meets(before)) }, false},
		"a table of another's": {func(s *replication) error { return errors.Join(s.copies(nil), s.meets(before)) }, false},
		"an older slot":        {func(s *replication) error { s.made = false; return errors.Join(s.copies(tables), s.meets(before)) }, false},
		"a whole copy":         {func(s *replication) error { s.whole.Store(true); return errors.Join(s.copies(tables), s.meets(before)) }, false},
	} {
		r := &Replicator{}
		r.source.Logger = slog.New(slog.DiscardHandler)
		err := c.steps(session(r))
		if errors.Is(err, errAgain) != c.again || (err == nil) == c.again || r.afresh.Load() != c.again {
			t.Errorf("%s: %v, afresh %v", name, err, r.afresh.Load())
		}
		if c.again {
			if err := c.steps(session(r)); err != nil {
				t.Errorf("%s: twice in a Run: %v", name, err)
			}
			if w := r.Status().Warnings; len(w) != 1 {
				t.Errorf("%s: twice in a Run: warnings %q", name, w)
			}
		}
	}
}
