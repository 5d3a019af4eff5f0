package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/sink"
)

// Levels of WithSynchronousCommit: PostgreSQL's own.
// https://www.postgresql.org/docs/current/runtime-config-wal.html#GUC-SYNCHRONOUS-COMMIT
const (
	// CommitOff lets commits of streamed changes return before they are written to disk, at most a tenth of a second
	// before. A server that crashes loses the last ones, whole and with their checkpoints, and they come again: the
	// stream keeps them until a commit behind them was waited for. The end of a table's copy, schema changes of enums and
	// takeovers wait.
	CommitOff = "off"
	// CommitLocal waits for the server's own disk, and for no standby.
	CommitLocal = "local"
	// CommitRemoteWrite waits until synchronous standbys have the commit too, perhaps not on disk.
	CommitRemoteWrite = "remote_write"
	// CommitOn waits until synchronous standbys have it on disk too.
	CommitOn = "on"
	// CommitRemoteApply waits until synchronous standbys show it.
	CommitRemoteApply = "remote_apply"
)

// WithSynchronousCommit says what a commit at the destination waits for: CommitOff, CommitLocal, CommitRemoteWrite,
// CommitOn or CommitRemoteApply. With each of them the server that flo writes to has every change exactly once,
// whatever crashes. A standby that takes its place has every change only if it was a synchronous one, and the level is
// CommitOn, CommitRemoteApply or CommitOff; with CommitRemoteWrite, if its operating system lived on.
//
// Default: what the role, the database or the connection sets, and CommitOn if that is off.
func WithSynchronousCommit(level string) Option {
	return func(c *config) { c.commit, c.commitSet = level, true }
}

// validateCommit accepts the levels.
func (c *config) validateCommit(invalid func(format string, args ...any)) {
	switch c.commit {
	case CommitOff, CommitLocal, CommitRemoteWrite, CommitOn, CommitRemoteApply:
	default:
		if c.commitSet {
			invalid("WithSynchronousCommit(%q): want off, local, remote_write, on or remote_apply", c.commit)
		}
	}
}

// durably is the SQL that makes a session's commits durable, whatever is set: what is committed may be purged from the
// stream, so a server that loses its last commits when it crashes would lose changes. With CommitOff lazy batches
// say themselves that they needn't be. https://www.postgresql.org/docs/current/wal-async-commit.html
func (c *config) durably() string {
	const raise = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') "
	switch c.commit {
	case "":
		return raise + "= 'off'"
	case CommitOff:
		return raise + "NOT IN ('on', 'remote_apply')"
	}
	return "SET synchronous_commit = " + c.commit
}

// commitLazily is sent within the transaction of a lazy batch.
const commitLazily = "SET LOCAL synchronous_commit = off"

// Lags reports whether commits may return before they are durable: with CommitOff.
func (s *Sink) Lags() bool { return s.config.commit == CommitOff }

// Flush waits until all that was committed is durable, standbys included if the server waits for those.
//
// A commit that is waited for has all WAL before its own written, and a standby that has confirmed it has confirmed
// that too (RecordTransactionCommit in src/backend/access/transam/xact.c). It has to have written something itself.
func (s *Sink) Flush(ctx context.Context) error {
	if !s.Lags() {
		return nil
	}
	if !s.open || s.tx.begun {
		return fmt.Errorf("sink/postgres: flushing: %w", ErrNotOpen)
	}
	if err := s.flush(ctx); err != nil {
		s.fail(ctx)
		return judge(fmt.Errorf("sink/postgres: flushing: %w", err), -1)
	}
	return nil
}

func (s *Sink) flush(ctx context.Context) error {
	st := s.start.Load()
	batch := &pgconn.Batch{}
	batch.ExecParams(begin, nil, nil, nil, nil)
	batch.ExecParams("UPDATE "+s.books.checkpoints+" SET updated_at = clock_timestamp() WHERE group_name = $1 AND worker = $2 AND epoch = $3::bigint",
		text(st.Group, st.Worker, number(st.Epoch)), nil, nil, nil)
	batch.ExecParams("COMMIT", nil, nil, nil, nil)
	results, err := s.main.pg.ExecBatch(ctx, batch).ReadAll()
	if err != nil {
		return err
	}
	if results[1].CommandTag.RowsAffected() == 1 {
		return nil
	}
	if err := s.guard(ctx, s.main.pg, st, ""); err != nil { // somebody has taken over, or the row is gone
		return err
	}
	return ErrCheckpointMoved
}

var _ sink.Flusher = (*Sink)(nil)
