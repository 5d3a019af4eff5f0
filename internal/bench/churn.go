package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// churn is a backlog of changes to rows that are there.
type churn struct {
	name    string
	changes int
	sql     string // changes row number i, of n
}

// churns are what is measured behind the inserts. The rows are spread over the table.
func (b *bench) churns() []churn {
	const id = "1 + i::bigint * 7919 %% %d"
	return []churn{
		{"updates", b.rows * 3 / 10, fmt.Sprintf("UPDATE changes SET shop = shop + 1, note = note || '.' WHERE id = "+id, b.rows-1)},
		{"deletes", b.rows / 10, fmt.Sprintf("DELETE FROM changes WHERE id = "+id, b.rows-1)},
	}
}

// churn makes the slots, then the backlog, and lets each reader have it on a table as it was before.
func (b *bench) churn(ctx context.Context, run int, c churn) error {
	if c.changes == 0 {
		return nil
	}
	if err := execute(ctx, b.to, "DROP TABLE IF EXISTS before", "TRUNCATE changes"); err != nil {
		return err
	}
	if err := b.copyChanges(ctx); err != nil {
		return err
	}
	if err := execute(ctx, b.to, "CREATE TABLE before AS TABLE changes"); err != nil {
		return err
	}
	readers, err := b.readers(ctx, c.name, run)
	if err != nil {
		return err
	}
	b.changes, b.last = c.changes, b.last+1
	if err := execute(ctx, b.from, "SET synchronous_commit = off", fmt.Sprintf(`DO $$ BEGIN
			FOR i IN 1 .. %d LOOP
				%s;
				IF i %% %d = 0 THEN COMMIT; END IF;
			END LOOP;
		END $$`, c.changes, c.sql, b.perTx),
		fmt.Sprintf("INSERT INTO changes (id) VALUES (%d)", b.last),
		"RESET synchronous_commit", "CHECKPOINT"); err != nil {
		return err
	}
	for _, r := range readers {
		if err := b.calm(ctx, "changes"); err != nil {
			return err
		}
		if err := execute(ctx, b.to, "INSERT INTO changes SELECT * FROM before", "VACUUM ANALYZE changes", "CHECKPOINT"); err != nil {
			return err
		}
		if err := b.measure(ctx, r.name+", "+c.name, r.ours, r.read); err != nil {
			return err
		}
		if err := b.verify(ctx, "changes"); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		if err := r.end(ctx); err != nil {
			return err
		}
	}
	return nil
}

// copyChanges brings the destination's table to where the source's is.
func (b *bench) copyChanges(ctx context.Context) error {
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		_, err := b.from.PgConn().CopyTo(ctx, w, "COPY changes TO STDOUT")
		w.CloseWithError(err)
		sent <- err
	}()
	_, err := b.to.PgConn().CopyFrom(ctx, r, "COPY changes FROM STDIN")
	r.CloseWithError(err)
	return errors.Join(err, <-sent)
}
