package postgres

import (
	"context"

	"github.com/pgflo/flo/decode"
)

// checkPlace sees that a source table's changes go to where its copy went, by the destination table's OID: without
// schema changes in the stream a source table that was renamed is another one by name only, and tables that have swapped
// their names would mix their rows. A table that is gone was replaced by whoever dropped it.
func (s *Sink) checkPlace(ctx context.Context, b *binding) error {
	st := s.start.Load()
	if b.placed || st == nil {
		return nil
	}
	rows, err := query(ctx, s.main.pg, "SELECT n.nspname, c.relname FROM "+s.books.copies+` k JOIN pg_class c ON c.oid = k.dest_oid AND c.oid <> $4::oid AND c.relkind IN ('r', 'p')
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE k.group_name = $1 AND k.worker = $2 AND k.source = $3::oid`,
		st.Group, st.Worker, number(b.rel.OID), b.table.oid)
	if err != nil {
		return err
	}
	if len(rows) > 0 {
		return tableError(b.table.name, ErrMoved, decode.Name{Schema: string(rows[0][0]), Name: string(rows[0][1])}.String())
	}
	b.placed = true
	return nil
}
