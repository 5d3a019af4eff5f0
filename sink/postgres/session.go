package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// endTimeout bounds a rollback and a polite goodbye, so that an error is never held up by its clean-up.
const endTimeout = 5 * time.Second

// begin starts a transaction whatever the server's defaults are.
const begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

// session is one connection with what is known through it: looked-up tables and prepared statements.
type session struct {
	pg       *pgconn.PgConn
	pid      uint32 // the server's process
	replica  bool
	asides   *asides
	bindings bindings
	programs programs
	planner  planner
	// Of every transaction: the statements on the checkpoint.
	lock, store, storeAll, storeOwn *step
	onClose                         func()

	// Of the copy's sessions: the Open under which the session is recorded.
	recorded   *sink.Start
	generation uint64 // the Sink's, when bindings were looked up
}

// connect opens a session with flo's settings.
func (s *Sink) connect(ctx context.Context, st sink.Start) (*session, error) {
	extra := map[string]string{
		"array_nulls":         "on",    // how arrays are read
		"client_min_messages": "error", // notices would only fill the pipe
		"jit":                 "off",   // never worth it for single rows
		// Few rows are looked for in tables that may be large: a set finds each by the index, whatever the
		// planner thinks of reading the whole table instead.
		"enable_hashjoin":  "off",
		"enable_mergejoin": "off",
		"enable_seqscan":   "off", // where there is an index: autovacuum may have counted a growing table's rows as none
	}
	if s.config.replica {
		extra["session_replication_role"] = "replica"
	}
	cfg, err := pgsession.Prepare(ctx, s.config.conn, pgsession.Options{
		AppName:  appName(st),
		Password: s.config.password,
		Extra:    extra,
	})
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: %w", err)
	}
	// Before anything is set: behind a pooler it might be set for somebody else.
	plain := cfg.Config.Copy()
	plain.AfterConnect = nil
	apply := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, pg *pgconn.PgConn) error {
		err := refusePooler(ctx, pg, func(ctx context.Context) (*pgconn.PgConn, error) { return pgconn.ConnectConfig(ctx, plain) })
		if err != nil {
			return err
		}
		return apply(ctx, pg)
	}
	pg, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if s.config.password != nil && strings.HasPrefix(pgsession.SQLState(err), "28") {
		return nil, &passwordError{err}
	}
	if strings.HasPrefix(pgsession.SQLState(err), "28") {
		return nil, sink.Permanent(fmt.Errorf("sink/postgres: %w: %w", ErrCredentials, err))
	}
	if err != nil {
		if s.config.replica && pgsession.SQLState(err) == "42501" {
			return nil, sink.Permanent(fmt.Errorf("sink/postgres: %w: WithReplicaRole needs a superuser, or (PostgreSQL 15 and later) GRANT SET ON PARAMETER session_replication_role TO the role: %w", ErrPrivilege, err))
		}
		return nil, fmt.Errorf("sink/postgres: %w", err)
	}
	if err := simple(ctx, pg, s.config.durably()); err != nil {
		_ = pg.Close(ctx)
		return nil, fmt.Errorf("sink/postgres: %w", err)
	}
	pid, err := backendPID(ctx, pg) // not pg.PID(), which is a pooler's own where one pools sessions
	if err != nil {
		_ = pg.Close(ctx)
		return nil, fmt.Errorf("sink/postgres: %w", err)
	}
	s.pidsMu.Lock()
	s.pids[pid] = struct{}{}
	s.pidsMu.Unlock()
	conn := &session{
		pg: pg, pid: pid, replica: s.config.replica, asides: s.asides,
		lock: &step{sql: s.books.lock}, store: &step{sql: s.books.store}, storeAll: &step{sql: s.books.storeAll}, storeOwn: &step{sql: s.books.storeOwn},
		onClose: func() {
			s.pidsMu.Lock()
			delete(s.pids, pid)
			s.pidsMu.Unlock()
		},
	}
	conn.bindings.clear()
	conn.programs.clear()
	trip, err := conn.roundTrip(ctx)
	if err != nil {
		conn.close(ctx)
		return nil, fmt.Errorf("sink/postgres: %w", err)
	}
	conn.planner.least, conn.planner.reduced = worthwhile(trip), leastReduced
	return conn, nil
}

// passwordError is a password that was refused and comes from a callback: it is being rotated, and asked for
// again at the next connect.
type passwordError struct{ err error }

func (e *passwordError) Error() string {
	return "sink/postgres: the password that WithPassword's function gave was refused, and is asked for again: " + e.err.Error()
}
func (e *passwordError) Unwrap() error { return e.err }

// roundTrip measures how far away the server is: the shortest of a few, since each may have been held up.
func (c *session) roundTrip(ctx context.Context) (time.Duration, error) {
	shortest := time.Duration(math.MaxInt64)
	for range 4 {
		start := time.Now()
		if err := simple(ctx, c.pg, ""); err != nil {
			return 0, err
		}
		shortest = min(shortest, time.Since(start))
	}
	return shortest, nil
}

// appName is what pg_stat_activity shows, at most 63 bytes.
func appName(st sink.Start) string {
	name := "flo " + st.Group + "/" + st.Worker
	if len(name) > 63 {
		name = name[:63]
	}
	return name
}

// reset brings the session out of any transaction; false says that it is closed.
func (c *session) reset(ctx context.Context) bool {
	if c.pg.IsClosed() {
		c.close(ctx)
		return false
	}
	if c.pg.TxStatus() == 'I' && !c.pg.IsBusy() {
		return true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	if c.pg.IsBusy() {
		c.close(ctx)
		return false
	}
	if _, err := c.pg.Exec(ctx, "ROLLBACK").ReadAll(); err != nil || c.pg.TxStatus() != 'I' {
		c.close(ctx)
		return false
	}
	return true
}

// forget drops what the session knows of tables, and its prepared statements.
func (c *session) forget(ctx context.Context) error {
	c.bindings.clear()
	c.programs.clear()
	for _, st := range []*step{c.lock, c.store, c.storeAll, c.storeOwn} {
		st.prepared, st.ready = false, false
	}
	_, err := c.pg.Exec(ctx, "DEALLOCATE ALL").ReadAll()
	return err
}

// settle, after an error, marks statements as not prepared that the server has not answered for.
func (c *session) settle() {
	c.programs.settle()
	for _, st := range []*step{c.lock, c.store, c.storeAll, c.storeOwn} {
		st.prepared = st.prepared && st.ready
	}
}

// close ends the connection, within endTimeout.
func (c *session) close(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	_ = c.pg.Close(ctx)
	select {
	case <-c.pg.CleanupDone():
	case <-ctx.Done():
	}
	c.onClose()
}

// text makes parameters in text format.
func text(args ...string) [][]byte {
	out := make([][]byte, len(args))
	for i, a := range args {
		out[i] = []byte(a)
	}
	return out
}

func number[T uint32 | uint64](n T) string { return strconv.FormatUint(uint64(n), 10) }

// query runs one statement and gives its rows as text.
func query(ctx context.Context, pg *pgconn.PgConn, sql string, args ...string) ([][][]byte, error) {
	r := pg.ExecParams(ctx, sql, text(args...), nil, nil, nil).Read()
	return r.Rows, r.Err
}

// exec runs one statement and gives the number of rows it met.
func exec(ctx context.Context, pg *pgconn.PgConn, sql string, args ...string) (int64, error) {
	r := pg.ExecParams(ctx, sql, text(args...), nil, nil, nil).Read()
	return r.CommandTag.RowsAffected(), r.Err
}

// simple runs statements without parameters.
func simple(ctx context.Context, pg *pgconn.PgConn, sql string) error {
	_, err := pg.Exec(ctx, sql).ReadAll()
	return err
}

// errRolledBack is a COMMIT that the server answered with ROLLBACK.
var errRolledBack = errors.New("sink/postgres: the server rolled the transaction back at COMMIT")

// commit ends the transaction. A failed transaction's COMMIT is answered with the tag ROLLBACK and no
// error, so the tag is looked at. https://www.postgresql.org/docs/current/sql-commit.html
func commit(ctx context.Context, pg *pgconn.PgConn) error {
	results, err := pg.Exec(ctx, "COMMIT").ReadAll()
	if err != nil {
		return err
	}
	if len(results) != 1 || results[0].CommandTag.String() != "COMMIT" {
		return errRolledBack
	}
	return nil
}
