//go:build unix

package faults

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// streamEarly makes the source send transactions of more than 64 kB, the least that there is, before they end.
func streamEarly(ctx context.Context, source string) error {
	return execute(ctx, source, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET logical_decoding_work_mem = ''64kB''', current_database()); END $$`)
}

// streamed is a transaction of several times logical_decoding_work_mem that takes its time, with savepoints of which
// some are rolled back; all of it is rolled back now and then, or prepared and ended later.
func (w *writer) streamed(ctx context.Context, conn *pgx.Conn) error {
	w.n++
	work := context.WithoutCancel(ctx)
	tx, err := conn.Begin(work)
	if err != nil {
		return err
	}
	for range 2 + w.rnd.IntN(4) {
		if err := w.part(ctx, tx, 0); err != nil {
			tx.Rollback(work)
			return err
		}
		pause(ctx, between(w.rnd, 0, 60*time.Millisecond))
	}
	switch w.rnd.IntN(20) {
	case 0, 1, 2, 3:
		if err := tx.Rollback(work); err != nil {
			return err
		}
		return errChosen
	case 4, 5, 6, 7, 8:
		return w.prepareAndEnd(ctx, conn)
	}
	return tx.Commit(work)
}

// prepareAndEnd prepares the open transaction, and ends it a little later.
func (w *writer) prepareAndEnd(ctx context.Context, conn *pgx.Conn) error {
	work := context.WithoutCancel(ctx)
	gid := w.gid(fmt.Sprint(w.n))
	if _, err := conn.Exec(work, "PREPARE TRANSACTION '"+gid+"'"); err != nil {
		return err
	}
	pause(ctx, between(w.rnd, 0, 100*time.Millisecond))
	end := pick(w.rnd, "COMMIT", "COMMIT", "ROLLBACK")
	if _, err := conn.Exec(work, end+" PREPARED '"+gid+"'"); err != nil {
		return err
	}
	if end == "ROLLBACK" {
		return errChosen
	}
	return nil
}

// part is some changes, in one of two cases behind a savepoint.
func (w *writer) part(ctx context.Context, tx pgx.Tx, depth int) error {
	work := context.WithoutCancel(ctx)
	if depth > 2 || w.rnd.IntN(2) == 0 {
		return w.bulk(work, tx)
	}
	sp, err := tx.Begin(work)
	if err != nil {
		return err
	}
	for range 1 + w.rnd.IntN(2) {
		if err := w.part(ctx, sp, depth+1); err != nil {
			return err
		}
	}
	if w.rnd.IntN(2) == 0 {
		return sp.Rollback(work)
	}
	return sp.Commit(work)
}

// bulk is up to twice logical_decoding_work_mem, or a few single changes.
func (w *writer) bulk(ctx context.Context, tx pgx.Tx) error {
	n := 40 + w.rnd.IntN(260)
	exec := func(sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	switch w.rnd.IntN(8) {
	case 0, 1, 2:
		return exec(`INSERT INTO append_log (writer, n, what) SELECT $1, $2, repeat($3, 10) || i FROM generate_series(1, $4::int) i`, w.id, -w.n, w.words(25), n)
	case 3:
		return exec(`INSERT INTO scratch_too (v) SELECT repeat($1, 8) || i FROM generate_series(1, $2::int) i`, w.words(25), n)
	case 4:
		return exec(`UPDATE scratch_too SET v = left(v, 200) || $1 WHERE id % 5 = $2`, w.words(5), w.rnd.IntN(5))
	case 5:
		return exec(`DELETE FROM scratch_too WHERE id % 7 = $1`, w.rnd.IntN(7))
	}
	for range 1 + w.rnd.IntN(6) {
		if err := w.change(ctx, tx); err != nil {
			return err
		}
	}
	return nil
}
