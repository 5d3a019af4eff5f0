package postgres

import (
	"context"
	"fmt"

	"github.com/pgflo/flo/sink"
)

var _ sink.ChunkTrier = (*Sink)(nil)

// TryChunk copies rows in a transaction that is rolled back. Constraints that wait for the commit are checked too.
func (s *Sink) TryChunk(ctx context.Context, ch *sink.CopyChunk) error {
	return s.with(ctx, func(c *session, st *sink.Start) error {
		if ch.Table.Relation == nil {
			return errShape
		}
		c.bindings.trim()
		b, err := c.bind(ctx, ch.Table.Relation)
		if err != nil {
			return err
		}
		if err := simple(ctx, c.pg, begin); err != nil {
			return err
		}
		n, err := b.copyRows(ctx, c.pg, ch.Data, s.copyTarget(st, ch.Table, b))
		if err == nil && uint64(max(n, 0)) != ch.Rows {
			err = fmt.Errorf("%w: %d of %d rows", ErrCopyIncomplete, n, ch.Rows)
		}
		if err == nil {
			err = simple(ctx, c.pg, "SET CONSTRAINTS ALL IMMEDIATE")
		}
		if err != nil {
			return tableError(b.table.name, err, "trying rows of chunk "+ch.ID.String())
		}
		return nil // the session's reset rolls back
	})
}
