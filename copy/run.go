package flocopy

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
)

// Run copies the tables. It returns nil when all of them are whole, after closing its connections.
//
// A table that changed under the copy, or was dropped, doesn't keep it from going on with the others; Run
// then returns a *RewrittenError, or a *TableError of kind ErrDropped, of each, joined. It stops at the first
// *TableError of another kind (a table that can't be read), at what Emit or TableDone returned, and at the
// end of ctx, whose cause it returns. What was emitted must then be thrown away or made part of another
// attempt, but for the tables that TableDone was called for.
func Run(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	workers, err := openWorkers(ctx, &cfg)
	defer closeWorkers(workers)
	if err == nil {
		err = runWorkers(ctx, &cfg, workers)
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("flocopy: copy stopped: %w", context.Cause(ctx))
	}
	return err
}

// openWorkers opens all connections and imports the snapshot into each, at the same time. The workers
// that it returns have to be closed, also after an error.
func openWorkers(ctx context.Context, cfg *Config) ([]*worker, error) {
	workers := make([]*worker, cfg.Connections)
	g, gctx := errgroup.WithContext(ctx)
	for i := range workers {
		w := &worker{cfg: cfg}
		workers[i] = w
		g.Go(func() error { return w.open(gctx) })
	}
	return workers, g.Wait()
}

func runWorkers(ctx context.Context, cfg *Config, workers []*worker) error {
	if cfg.Started != nil {
		cfg.Started()
	}
	plans, lost, err := planTables(ctx, workers[0], cfg)
	if err != nil {
		return err
	}
	s := newSchedule(plans, cfg.Progress)
	s.lost = lost
	g, gctx := errgroup.WithContext(ctx)
	for _, w := range workers {
		g.Go(func() error { return w.run(gctx, s) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return errors.Join(s.lost...)
}

func closeWorkers(workers []*worker) {
	var g errgroup.Group
	for _, w := range workers {
		g.Go(func() error { w.close(); return nil })
	}
	_ = g.Wait()
}

// counts of a range.
type counts struct{ chunks, rows, bytes uint64 }

// worker is one connection, in one transaction that sees the snapshot.
type worker struct {
	cfg     *Config
	conn    *pgx.Conn
	version int // server_version_num
	cut     cutter
	held    *Table // the table whose lock the savepoint holds
}

// open connects and imports the snapshot. row_security = off makes PostgreSQL refuse to read a table
// whose rows a policy would hide, instead of leaving them out.
// https://www.postgresql.org/docs/current/sql-set-transaction.html
func (w *worker) open(ctx context.Context) error {
	conn, err := w.cfg.Connect(ctx)
	if err != nil {
		return connectError(w.cfg.Connections, err)
	}
	w.conn = conn
	w.cut.limit, w.cut.room = w.cfg.ChunkBytes, w.cfg.Room
	if err := w.exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"); err != nil {
		return fmt.Errorf("flocopy: begin: %w", err)
	}
	name := strings.ReplaceAll(w.cfg.Snapshot, "'", "''")
	if err := w.exec(ctx, "SET TRANSACTION SNAPSHOT '"+name+"'"); err != nil {
		return importError(w.cfg.Snapshot, err)
	}
	if err := w.exec(ctx, "SET LOCAL row_security = off; SAVEPOINT flo_table"); err != nil {
		return fmt.Errorf("flocopy: prepare the session: %w", err)
	}
	row, err := queryRow(ctx, conn.PgConn(), "SELECT current_setting('server_version_num')")
	if err != nil {
		return fmt.Errorf("flocopy: ask for the server's version: %w", err)
	}
	if w.version, err = strconv.Atoi(string(row[0])); err != nil {
		return fmt.Errorf("flocopy: read the server's version: %w", err)
	}
	return nil
}

// run reads ranges until none is left, then ends the transaction, without waiting for the others.
func (w *worker) run(ctx context.Context, s *schedule) error {
	for {
		r, ok := s.take()
		if !ok {
			break
		}
		n, err := w.copyRange(ctx, r)
		if lost(err) {
			s.lose(r, err)
			if err := w.letGo(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		total, whole := s.finish(r, n)
		if whole && w.cfg.TableDone != nil {
			if err := w.cfg.TableDone(ctx, r.plan.table, total.Chunks, total.Rows); err != nil {
				return err
			}
		}
	}
	if err := w.exec(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("flocopy: end the copy's transaction: %w", err)
	}
	w.close()
	return nil
}

// copyRange emits a range's rows, and makes sure that they are what the snapshot stands for.
func (w *worker) copyRange(ctx context.Context, r pageRange) (counts, error) {
	var n counts
	t := r.plan.table
	if err := w.turnTo(ctx, t); err != nil {
		return n, err
	}
	w.cut.reset()
	w.cut.emit = func(row, rows uint64, data []byte) error {
		n.chunks++
		n.rows += rows
		n.bytes += uint64(len(data) - w.cfg.Room)
		return w.cfg.Emit(ctx, Chunk{Table: t, Range: r.number, Row: row, Rows: rows, Data: data})
	}
	tag, err := w.conn.PgConn().CopyTo(ctx, &w.cut, r.query())
	if err != nil {
		return n, w.copyError(ctx, t, err)
	}
	if err := w.cut.flush(); err != nil {
		return n, err
	}
	if w.cut.left() > 0 || n.rows != uint64(tag.RowsAffected()) {
		return n, &TableError{Table: *t, Err: fmt.Errorf("range %d ended within a row: %d rows read, PostgreSQL sent %d", r.number, n.rows, tag.RowsAffected())}
	}
	return n, w.verify(ctx, t)
}

// turnTo gives the last table's lock back when the next range is of another table. Rolling back to a
// savepoint releases the locks that were taken behind it, and leaves the snapshot as it is.
func (w *worker) turnTo(ctx context.Context, t *Table) error {
	if w.held != nil && w.held != t {
		if err := w.letGo(ctx); err != nil {
			return err
		}
	}
	w.held = t
	return nil
}

func (w *worker) letGo(ctx context.Context) error {
	if err := w.exec(ctx, "ROLLBACK TO SAVEPOINT flo_table"); err != nil {
		return fmt.Errorf("flocopy: release table %s: %w", w.held, err)
	}
	w.held = nil
	return nil
}

// verifyQuery compares what the snapshot sees (the catalog's tables) with what is there now:
// pg_relation_filenode, to_regclass and pg_identify_object_as_address read the system caches, which
// follow the latest commit. The lock that COPY took keeps the answer true.
//
// The third answer finds columns that were renamed or dropped: a name that COPY resolved may then have
// stood for another column. Below PostgreSQL 14 it is left out ($4), since there
// pg_identify_object_as_address fails on a dropped column.
const verifyQuery = `SELECT c.relfilenode IS NOT DISTINCT FROM pg_relation_filenode(c.oid),
  to_regclass($2)::oid IS NOT DISTINCT FROM c.oid,
  CASE WHEN $4::bool THEN NOT EXISTS (
    SELECT FROM pg_attribute a, pg_identify_object_as_address('pg_class'::regclass, a.attrelid, a.attnum) i
    WHERE a.attrelid = c.oid AND a.attname = ANY ($3::text[]) AND a.attnum > 0
    AND i.object_names[3] IS DISTINCT FROM a.attname::text) ELSE true END
FROM pg_class c WHERE c.oid = $1::oid`

// verify that the range was read from the table that the snapshot stands for. Its lock is still held,
// so that nothing can change between the reading and the question.
func (w *worker) verify(ctx context.Context, t *Table) error {
	row, err := queryRow(ctx, w.conn.PgConn(), verifyQuery,
		oidText(t.OID), []byte(t.String()), textArray(t.Columns), strconv.AppendBool(nil, w.version >= tidRangeVersion))
	if err != nil {
		return &TableError{Table: *t, Err: fmt.Errorf("verify that it was not rewritten: %w", err)}
	}
	switch {
	case string(row[0]) != "t":
		return &RewrittenError{Table: *t, Reason: "its file was replaced, by TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE, or it was dropped"}
	case string(row[1]) != "t":
		return &RewrittenError{Table: *t, Reason: "another table bears its name"}
	case string(row[2]) != "t":
		return &RewrittenError{Table: *t, Reason: "a column was dropped or renamed"}
	}
	return nil
}

// exec runs statements that return nothing.
func (w *worker) exec(ctx context.Context, sql string) error {
	_, err := w.conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// close the connection and wait, within a bound, until it is closed: after an error pgconn still sends
// a cancel request, so that the server doesn't go on with the COPY.
func (w *worker) close() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = w.conn.Close(ctx) // nothing is left to lose: the transaction only read
	select {
	case <-w.conn.PgConn().CleanupDone():
	case <-ctx.Done():
	}
	w.conn = nil
}

// queryRow runs a query that returns one row, in text format, whatever the connection's defaults are.
func queryRow(ctx context.Context, conn *pgconn.PgConn, sql string, args ...[]byte) ([][]byte, error) {
	res := conn.ExecParams(ctx, sql, args, nil, nil, nil).Read()
	if res.Err != nil {
		return nil, res.Err
	}
	if len(res.Rows) != 1 {
		return nil, fmt.Errorf("%d rows, want 1", len(res.Rows))
	}
	return res.Rows[0], nil
}
