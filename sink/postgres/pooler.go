package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/sink"
)

// ErrPooler says that a pooler lends the sink's connection another session for each transaction or statement.
var ErrPooler error = refusal("the destination is behind a pooler that changes the session between transactions: " +
	"connect to PostgreSQL itself, or let the pooler pool whole sessions (PgBouncer: pool_mode = session); " +
	"flo's settings (session_replication_role, search_path and others) and prepared statements belong to a session, and would reach other clients' besides")

// poolerProbe bounds the second connection by which a pooler's mode is found out. One that pools sessions, and has
// none to spare, lets it wait: then nothing is known, and each transaction looks for itself.
const poolerProbe = 5 * time.Second

// probeAttempts is how often two connections are compared. A pooler lends the session that was given back last,
// so without other clients the first attempt tells.
const probeAttempts = 5

// refusePooler finds out whether a new connection, on which nothing is set yet, is to a pooler that shares
// sessions. plain opens another connection to the same place.
//
// A pooler has cancellation keys of its own, so the process id in them is not the session's: only then is
// there more to ask. A session that two connections see while both are open is shared.
// https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS
func refusePooler(ctx context.Context, pg *pgconn.PgConn, plain func(context.Context) (*pgconn.PgConn, error)) error {
	first, err := backendPID(ctx, pg)
	if err != nil {
		return fmt.Errorf("sink/postgres: %w", err)
	}
	if first == pg.PID() {
		return nil
	}
	pctx, cancel := context.WithTimeout(ctx, poolerProbe)
	defer cancel()
	other, err := plain(pctx)
	if err != nil {
		return unknownMode(ctx, pctx, err)
	}
	defer func() {
		cctx, done := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer done()
		_ = other.Close(cctx)
	}()
	for range probeAttempts {
		mine, err := backendPID(pctx, pg)
		if err != nil {
			return unknownMode(ctx, pctx, err)
		}
		others, err := backendPID(pctx, other)
		if err != nil {
			return unknownMode(ctx, pctx, err)
		}
		if mine != first || mine == others {
			return sink.Permanent(fmt.Errorf("sink/postgres: %w", ErrPooler))
		}
	}
	return nil
}

// unknownMode is nil if it was the probe's own time that ran out.
func unknownMode(ctx, probe context.Context, err error) error {
	if ctx.Err() == nil && errors.Is(probe.Err(), context.DeadlineExceeded) {
		return nil
	}
	return fmt.Errorf("sink/postgres: looking for a pooler: %w", err)
}

// backendPID asks the session that answers for its process id.
func backendPID(ctx context.Context, pg *pgconn.PgConn) (uint32, error) {
	results, err := pg.Exec(ctx, "SELECT pg_catalog.pg_backend_pid()").ReadAll()
	if err != nil {
		return 0, err
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return 0, errors.New("pg_backend_pid gave no row")
	}
	n, err := strconv.ParseUint(string(results[0].Rows[0][0]), 10, 32)
	return uint32(n), err
}
