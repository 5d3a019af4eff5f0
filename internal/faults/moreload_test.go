//go:build unix

package faults

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// moreSchema is tables of the other replica identities, partitions and a generated column.
const moreSchema = `
CREATE TABLE whole (a int, b text, wide text);
ALTER TABLE whole REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int, code text NOT NULL, v text);
CREATE UNIQUE INDEX by_index_code ON by_index (code);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
CREATE TABLE parts (region text, id bigint, v text, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE parts_north PARTITION OF parts FOR VALUES IN ('north');
CREATE TABLE parts_south PARTITION OF parts FOR VALUES IN ('south');
CREATE TABLE parts_rest PARTITION OF parts DEFAULT;
CREATE TABLE computed (id bigint PRIMARY KEY, n int, twice int GENERATED ALWAYS AS (n * 2) STORED);`

// changeMore is one change of these tables.
func (w *writer) changeMore(ctx context.Context, tx pgx.Tx, id, other int, exec func(string, ...any) error) error {
	region := func() string { return pick(w.rnd, "north", "south", "west") }
	switch n := w.rnd.IntN(100); {
	case n < 12: // equal rows may stand twice
		return exec(`INSERT INTO whole VALUES ($1, $2, $3)`, id%20, w.words(1), w.wide())
	case n < 20:
		return exec(`UPDATE whole SET b = b || $2 WHERE ctid = (SELECT ctid FROM whole WHERE a = $1 LIMIT 1 FOR UPDATE)`, id%20, w.words(1))
	case n < 26:
		return exec(`DELETE FROM whole WHERE a = $1 AND b > 'n'`, id%20)
	case n < 38:
		return exec(`INSERT INTO by_index VALUES ($1, $2, $3) ON CONFLICT (code) DO UPDATE SET v = excluded.v`, other, fmt.Sprint("c", id%60), w.words(20))
	case n < 44: // the identity changes
		return exec(`UPDATE by_index SET code = $2 WHERE code = $1 AND NOT EXISTS (SELECT FROM by_index WHERE code = $2)`, fmt.Sprint("c", id%60), fmt.Sprint("c", other%60))
	case n < 48:
		return exec(`DELETE FROM by_index WHERE code = $1`, fmt.Sprint("c", id%60))
	case n < 60:
		return exec(`INSERT INTO parts VALUES ($1, $2, $3) ON CONFLICT (region, id) DO UPDATE SET v = excluded.v`, region(), id%100, w.words(20))
	case n < 68: // from partition to partition
		return exec(`UPDATE parts p SET region = $2 WHERE id = $1 AND NOT EXISTS (SELECT FROM parts q WHERE q.id = $1 AND q.region = $2)
			AND ctid = (SELECT min(ctid) FROM parts q WHERE q.id = $1 AND q.tableoid = p.tableoid) AND region = $3`, id%100, region(), region())
	case n < 74:
		return exec(`DELETE FROM parts WHERE id = $1`, id%100)
	case n < 88:
		return exec(`INSERT INTO computed (id, n) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET n = excluded.n`, id, other)
	case n < 92:
		return exec(`DELETE FROM computed WHERE id = $1`, id)
	}
	// Rows of one COPY share an LSN.
	_, err := tx.CopyFrom(ctx, pgx.Identifier{"append_log"}, []string{"writer", "n", "what"}, pgx.CopyFromSlice(1+w.rnd.IntN(50), func(i int) ([]any, error) {
		return []any{w.id, int64(i), "copied in"}, nil
	}))
	return err
}

// prepared is a transaction that is prepared, and committed or rolled back a little later.
func (w *writer) prepared(ctx context.Context, conn *pgx.Conn) error {
	w.n++
	work := context.WithoutCancel(ctx)
	gid := w.gid(fmt.Sprint(w.n))
	if _, err := conn.Exec(work, "BEGIN"); err != nil {
		return err
	}
	for range 1 + w.rnd.IntN(3) {
		if _, err := conn.Exec(work, `INSERT INTO append_log (writer, n, what) VALUES ($1, $2, 'prepared')`, w.id, w.n); err != nil {
			return err
		}
	}
	if _, err := conn.Exec(work, "PREPARE TRANSACTION '"+gid+"'"); err != nil {
		return err
	}
	pause(ctx, between(w.rnd, 0, 100*time.Millisecond))
	_, err := conn.Exec(work, pick(w.rnd, "COMMIT", "COMMIT", "ROLLBACK")+" PREPARED '"+gid+"'")
	return err
}

func (w *writer) gid(n string) string { return fmt.Sprintf("w%d-%s", w.id, n) }

// resolvePrepared commits what was prepared when the connection was lost.
func (w *writer) resolvePrepared(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE $1`, w.gid("%"))
	if err != nil {
		return err
	}
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, gid := range gids {
		if _, err := conn.Exec(ctx, "COMMIT PREPARED '"+gid+"'"); err != nil {
			return err
		}
	}
	return nil
}
