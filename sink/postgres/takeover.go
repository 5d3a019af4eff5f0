package postgres

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// takeOverPatience is how long Open waits for the checkpoint row before it looks for a predecessor's
// session to end; it also spaces the attempts out.
const takeOverPatience = "300ms"

// takeOver makes st.Epoch the one that may write, and gives the checkpoint's text. Once it has
// committed, no session of a lower epoch can commit rows: each of their transactions locks the
// checkpoint row first and looks at the epoch before it commits, and FOR UPDATE has waited for those under way.
func (s *Sink) takeOver(ctx context.Context, c *session, st sink.Start) (string, error) {
	if err := s.books.register(ctx, c.pg, st); err != nil {
		return "", err
	}
	for {
		text, err := s.raiseEpoch(ctx, c.pg, st)
		if err == nil {
			return text, nil
		}
		if !c.reset(ctx) {
			return "", err
		}
		if pgsession.SQLState(err) != "55P03" {
			return "", err
		}
		if err := s.endPredecessors(ctx, c.pg, st); err != nil {
			return "", err
		}
	}
}

// register records the session, so that a successor can end it.
func (b books) register(ctx context.Context, pg *pgconn.PgConn, st sink.Start) error {
	_, err := exec(ctx, pg, `INSERT INTO `+b.backends+` AS b (group_name, worker, epoch, pid, backend_start)
		SELECT $1, $2, $3::bigint, pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()
		ON CONFLICT (group_name, worker, pid, backend_start) DO UPDATE SET epoch = EXCLUDED.epoch
		WHERE b.epoch <> EXCLUDED.epoch`, st.Group, st.Worker, number(st.Epoch))
	if err != nil {
		return fmt.Errorf("sink/postgres: recording the session: %w", err)
	}
	return nil
}

func (s *Sink) raiseEpoch(ctx context.Context, pg *pgconn.PgConn, st sink.Start) (string, error) {
	b := s.books
	if err := simple(ctx, pg, begin+"; SET LOCAL lock_timeout = '"+takeOverPatience+"'"); err != nil {
		return "", fmt.Errorf("sink/postgres: %w", err)
	}
	if _, err := exec(ctx, pg, "INSERT INTO "+b.checkpoints+" (group_name, worker) VALUES ($1, $2) ON CONFLICT DO NOTHING", st.Group, st.Worker); err != nil {
		return "", fmt.Errorf("sink/postgres: making the checkpoint: %w", err)
	}
	rows, err := query(ctx, pg, "SELECT epoch, checkpoint FROM "+b.checkpoints+" WHERE group_name = $1 AND worker = $2 FOR UPDATE", st.Group, st.Worker)
	if err != nil {
		return "", fmt.Errorf("sink/postgres: locking the checkpoint: %w", err)
	}
	if len(rows) != 1 {
		return "", fmt.Errorf("sink/postgres: %w", ErrCheckpointMoved)
	}
	if err := checkEpoch(rows[0][0], st); err != nil {
		return "", err
	}
	if _, err := exec(ctx, pg, "UPDATE "+b.checkpoints+" SET epoch = $3 WHERE group_name = $1 AND worker = $2", st.Group, st.Worker, number(st.Epoch)); err != nil {
		return "", fmt.Errorf("sink/postgres: taking the checkpoint over: %w", err)
	}
	if _, err := exec(ctx, pg, `DELETE FROM `+b.backends+` b WHERE group_name = $1 AND worker = $2 AND epoch <= $3
		AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = b.pid AND a.backend_start = b.backend_start)`,
		st.Group, st.Worker, number(st.Epoch)); err != nil {
		return "", fmt.Errorf("sink/postgres: tidying %s: %w", b.backends, err)
	}
	if err := commit(ctx, pg); err != nil {
		return "", fmt.Errorf("sink/postgres: taking the checkpoint over: %w", err)
	}
	return string(rows[0][1]), nil
}

// checkEpoch fails if a later epoch than st's is stored.
func checkEpoch(stored []byte, st sink.Start) error {
	epoch, err := strconv.ParseUint(string(stored), 10, 64)
	if err != nil {
		return fmt.Errorf("sink/postgres: the stored epoch: %w", err)
	}
	if epoch > st.Epoch {
		return sink.Permanent(fmt.Errorf("sink/postgres: group %q, worker %q: epoch %d holds the checkpoint, this is %d: %w", st.Group, st.Worker, epoch, st.Epoch, sink.ErrLeaseLost))
	}
	return nil
}

// endPredecessors ends the recorded sessions of this worker that are not this Sink's own. A process id
// may have been given to somebody else since: the backend's start has to match.
func (s *Sink) endPredecessors(ctx context.Context, pg *pgconn.PgConn, st sink.Start) error {
	rows, err := query(ctx, pg, "SELECT epoch FROM "+s.books.checkpoints+" WHERE group_name = $1 AND worker = $2", st.Group, st.Worker)
	if err != nil {
		return fmt.Errorf("sink/postgres: reading the epoch: %w", err)
	}
	if len(rows) == 1 {
		if err := checkEpoch(rows[0][0], st); err != nil {
			return err
		}
	}
	rows, err = query(ctx, pg, `SELECT a.pid, b.epoch FROM `+s.books.backends+` b
		JOIN pg_stat_activity a ON a.pid = b.pid AND a.backend_start = b.backend_start
		WHERE b.group_name = $1 AND b.worker = $2 AND b.epoch <= $3 AND a.pid <> pg_backend_pid()`,
		st.Group, st.Worker, number(st.Epoch))
	if err != nil {
		return fmt.Errorf("sink/postgres: looking for a predecessor's sessions: %w", err)
	}
	for _, r := range rows {
		pid, err := strconv.ParseUint(string(r[0]), 10, 32)
		if err != nil {
			return fmt.Errorf("sink/postgres: a process id: %w", err)
		}
		if s.own(uint32(pid)) && string(r[1]) == number(st.Epoch) {
			continue
		}
		_, err = query(ctx, pg, `SELECT pg_terminate_backend(a.pid) FROM `+s.books.backends+` b
			JOIN pg_stat_activity a ON a.pid = b.pid AND a.backend_start = b.backend_start
			WHERE b.group_name = $1 AND b.worker = $2 AND a.pid = $3`, st.Group, st.Worker, string(r[0]))
		switch {
		case err == nil:
			s.config.logger.WarnContext(ctx, "ended the destination session of a predecessor", "group", st.Group, "worker", st.Worker, "pid", pid, "epoch", string(r[1]))
		case pgsession.SQLState(err) == "42501":
			s.config.logger.WarnContext(ctx, "may not end the destination session of a predecessor; waiting for it", "group", st.Group, "worker", st.Worker, "pid", pid)
		default:
			return fmt.Errorf("sink/postgres: ending a predecessor's session: %w", err)
		}
	}
	return ctx.Err()
}

// own reports whether pid is a live session of this Sink.
func (s *Sink) own(pid uint32) bool {
	s.pidsMu.Lock()
	defer s.pidsMu.Unlock()
	_, ok := s.pids[pid]
	return ok
}
