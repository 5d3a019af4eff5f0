package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/pgflo/flo"
)

// backlog is changes that stand behind the slots of all readers before any of them is started.
type backlog struct {
	group   string
	changes int
	fill    bool // the destination's table first gets what the source's has
	last    bool // a row is inserted behind the changes, to wait for
	sql     []string
	readers func(ctx context.Context) ([]*reader, error)
}

// inserts in transactions of perTx rows: from the source's backlog, and from the stream's.
func (b *bench) inserts(ctx context.Context) error {
	return b.drain(ctx, backlog{group: "inserts", changes: b.rows, sql: b.insertSQL(b.perTx), readers: func(ctx context.Context) ([]*reader, error) {
		return b.readers(ctx, b.native(), b.flo(1), b.stored(b.targetURL, 0.5, 1), b.discard())
	}})
}

func (b *bench) insertsOneByOne(ctx context.Context) error {
	return b.drain(ctx, backlog{group: "inserts-tx1", changes: b.rows, sql: b.insertSQL(1), readers: func(ctx context.Context) ([]*reader, error) {
		return b.readers(ctx, b.native(), b.flo(1/1.5))
	}})
}

func (b *bench) insertsAtOnce(ctx context.Context) error {
	return b.drain(ctx, backlog{group: "inserts-one-tx", changes: b.rows, sql: b.insertSQL(b.rows), readers: func(ctx context.Context) ([]*reader, error) {
		streaming := b.flo(0, flo.WithStreaming(true))
		streaming.name += ", WithStreaming"
		return b.readers(ctx, b.native(), b.flo(1/1.5), streaming)
	}})
}

func (b *bench) insertSQL(perTx int) []string {
	return []string{fmt.Sprintf("CALL backlog(%d, %d)", b.rows, perTx)}
}

// The rows that are changed are spread over the table.
const spread = "1 + i::bigint * 7919 %% %d"

func (b *bench) updates(ctx context.Context) error {
	return b.drain(ctx, b.churn("updates", b.rows*3/10, "UPDATE changes SET shop = shop + 1, note = note || '.' WHERE id = "+spread, func(ctx context.Context) ([]*reader, error) {
		return b.readers(ctx, b.native(), b.flo(1), b.stored(b.targetURL, 1, 1))
	}))
}

func (b *bench) deletes(ctx context.Context) error {
	return b.drain(ctx, b.churn("deletes", b.rows/10, "DELETE FROM changes WHERE id = "+spread, func(ctx context.Context) ([]*reader, error) {
		return b.readers(ctx, b.native(), b.flo(1), b.stored(b.targetURL, 1, 1))
	}))
}

// churn changes n rows that are there.
func (b *bench) churn(group string, n int, sql string, readers func(context.Context) ([]*reader, error)) backlog {
	return backlog{group: group, changes: n, fill: true, last: true, readers: readers, sql: []string{fmt.Sprintf(`DO $$ BEGIN
		FOR i IN 1 .. %d LOOP
			%s;
			IF i %% %d = 0 THEN COMMIT; END IF;
		END LOOP;
	END $$`, n, fmt.Sprintf(sql, b.rows-1), b.perTx)}}
}

// farInserts and farUpdates have 5 ms of network each way before the destination: in front of its own server
// for flo's worker, in front of the source's for the subscription, whose client is the destination.
func (b *bench) farInserts(ctx context.Context) error {
	return b.drain(ctx, backlog{group: "far-inserts", changes: b.rows, sql: b.insertSQL(b.perTx), readers: b.farReaders})
}

func (b *bench) farUpdates(ctx context.Context) error {
	return b.drain(ctx, b.churn("far-updates", b.rows*3/10, "UPDATE changes SET shop = shop + 1, note = note || '.' WHERE id = "+spread, b.farReaders))
}

func (b *bench) farReaders(ctx context.Context) ([]*reader, error) {
	return b.readers(ctx, b.nativeFrom(b.sourceFar.url), b.stored(b.targetFar.url, 1, 1), b.stored(b.targetFar.url, 1, 4))
}

// drain makes the slots, then the backlog, and lets each reader have it, on a table as it was before.
func (b *bench) drain(ctx context.Context, l backlog) error {
	if l.fill {
		if err := b.sameTables(ctx); err != nil {
			return err
		}
	} else if err := execute(ctx, b.from, "TRUNCATE changes"); err != nil { // before there are slots: it is a change too
		return err
	}
	readers, err := l.readers(ctx)
	if err != nil {
		return err
	}
	b.last = b.rows
	// Commits that were not waited for are flushed by the checkpoint behind them.
	statements := append([]string{"SET synchronous_commit = off"}, l.sql...)
	if l.last {
		b.serial++
		b.last = b.rows + b.serial
		statements = append(statements, fmt.Sprintf("INSERT INTO changes (id) VALUES (%d)", b.last))
	}
	if err := execute(ctx, b.from, append(statements, "RESET synchronous_commit", "CHECKPOINT")...); err != nil {
		return err
	}
	for _, r := range readers {
		if r.before != nil {
			if err := r.before(ctx); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		if err := b.calm(ctx, "changes"); err != nil {
			return err
		}
		if l.fill {
			if err := execute(ctx, b.to, "INSERT INTO changes SELECT * FROM before", "VACUUM ANALYZE changes", "CHECKPOINT"); err != nil {
				return err
			}
		}
		if err := b.measure(ctx, subject{group: l.group, name: r.name, ours: r.ours, changes: l.changes, goal: r.goal, run: r.read}); err != nil {
			return err
		}
		if r.writes {
			if err := b.verify(ctx, "changes"); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		if err := r.end(ctx); err != nil {
			return err
		}
	}
	return nil
}

// sameTables brings both sides' tables to all rows, and keeps the destination's as before.
func (b *bench) sameTables(ctx context.Context) error {
	if err := execute(ctx, b.from, "TRUNCATE changes", "INSERT INTO changes SELECT * FROM rows", "VACUUM ANALYZE changes"); err != nil {
		return err
	}
	if err := execute(ctx, b.to, "DROP TABLE IF EXISTS before", "TRUNCATE changes"); err != nil {
		return err
	}
	r, w := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		_, err := b.from.PgConn().CopyTo(ctx, w, "COPY changes TO STDOUT")
		w.CloseWithError(err)
		sent <- err
	}()
	_, err := b.to.PgConn().CopyFrom(ctx, r, "COPY changes FROM STDIN")
	r.CloseWithError(err)
	if err := errors.Join(err, <-sent); err != nil {
		return err
	}
	return execute(ctx, b.to, "CREATE TABLE before AS TABLE changes")
}
