package source

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pgsession"
)

// NewSlot is a slot that has just been made. Other sessions can import its snapshot until Release.
type NewSlot struct {
	Name string
	// Point is the consistent point: the snapshot holds what committed before it, the stream the rest.
	Point decode.LSN
	// Snapshot is the name for SET TRANSACTION SNAPSHOT.
	Snapshot string

	conn *pgconn.PgConn
}

// Release ends the session that exported the snapshot, and with it a temporary slot. It may be called
// again, and takes at most 2 s.
func (s *NewSlot) Release(ctx context.Context) error {
	if s.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	err := s.conn.Close(ctx)
	s.conn = nil
	if err != nil {
		return fmt.Errorf("source: closing the session of slot %q: %w", s.Name, err)
	}
	return nil
}

const (
	abortTimeout  = 10 * time.Second // for the server to follow a cancel request
	watchInterval = time.Second      // between two looks at what the making of a slot waits for
)

// CreateSlot makes a logical slot and exports its snapshot.
//
// The server waits until every transaction that was open at the start has ended. Meanwhile onWait, if
// not nil, is called about every second, for the first time after one, with those transactions, oldest
// first; it is not called when none can be seen. It is called on another goroutine, never twice at once,
// and not after CreateSlot has returned.
//
// When ctx ends the making is cancelled, and no slot is left. ErrSlotExists if the name is taken.
func (c Config) CreateSlot(ctx context.Context, name string, temporary bool, onWait func([]OldTransaction)) (*NewSlot, error) {
	conn, err := c.connectReplication(ctx, nil)
	if err != nil {
		return nil, err
	}
	slot, err := c.createSlot(ctx, conn, name, temporary, onWait)
	if err != nil {
		hangUp(ctx, conn)
		return nil, err
	}
	return slot, nil
}

// createSlot runs the command on conn and watches it.
func (c Config) createSlot(ctx context.Context, conn *pgconn.PgConn, name string, temporary bool, onWait func([]OldTransaction)) (*NewSlot, error) {
	answers := make(chan answer, 1)
	// Not under ctx: pgconn would cut the connection, and leave open whether there is a slot now.
	work, abandon := context.WithCancel(context.WithoutCancel(ctx))
	defer abandon()
	go func() {
		rows, err := query(work, conn, createCommand(name, temporary, c.SlotFailover, pgsession.Version(conn)))
		answers <- answer{rows, err}
	}()
	watching, stopWatching := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if onWait != nil {
			c.watch(watching, conn.PID(), onWait)
		}
	}()
	defer func() { stopWatching(); <-watched }()

	var got answer
	select {
	case got = <-answers:
	case <-ctx.Done():
		var answered bool
		if got, answered = cancelUntil(ctx, conn, answers); !answered {
			// The server rolls an unfinished slot back when it notices that the connection is gone.
			abandon()
			got = <-answers
			return nil, fmt.Errorf("source: creating slot %q: %w; the server did not answer to the cancel request", name, ctx.Err())
		}
		if got.err == nil && !temporary {
			c.undo(ctx, conn, name)
		}
		return nil, fmt.Errorf("source: creating slot %q: %w", name, ctx.Err())
	}
	if got.err != nil {
		return nil, createError(got.err, name, c.Conn.User)
	}
	return newSlot(conn, got.rows)
}

// answer to the command that makes a slot.
type answer struct {
	rows [][][]byte
	err  error
}

// cancelUntil asks the server every second to cancel what conn runs, because a request that comes before
// the command does nothing, until the answer is there; ok is false when it did not come in time.
func cancelUntil(ctx context.Context, conn *pgconn.PgConn, answers <-chan answer) (got answer, ok bool) {
	ctx, end := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer end()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		// A request that fails shows in the missing answer.
		_ = conn.CancelRequest(ctx)
		select {
		case got = <-answers:
			return got, true
		case <-again.C:
		case <-ctx.Done():
			return got, false
		}
	}
}

// undo drops a slot that was finished just when it was not wanted any more, on its own session.
func (c Config) undo(ctx context.Context, conn *pgconn.PgConn, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	if _, err := query(ctx, conn, "DROP_REPLICATION_SLOT "+names.Quote(name)); err != nil {
		c.logger().Error("a replication slot is left that nobody uses: drop it by hand", "slot", name, "error", err)
	}
}

// createCommand is CREATE_REPLICATION_SLOT in the syntax of the server's version.
// https://www.postgresql.org/docs/current/protocol-replication.html
func createCommand(name string, temporary, failover bool, version int) string {
	sql := "CREATE_REPLICATION_SLOT " + names.Quote(name)
	if temporary {
		sql += " TEMPORARY"
	}
	sql += " LOGICAL " + plugin
	if failover && !temporary && version >= FailoverVersion {
		return sql + " (SNAPSHOT 'export', FAILOVER true)"
	}
	if version >= 150000 {
		return sql + " (SNAPSHOT 'export')"
	}
	return sql + " EXPORT_SNAPSHOT"
}

// newSlot reads the answer: slot name, consistent point, snapshot name, plugin.
func newSlot(conn *pgconn.PgConn, rows [][][]byte) (*NewSlot, error) {
	if len(rows) != 1 || len(rows[0]) < 3 {
		return nil, fmt.Errorf("source: CREATE_REPLICATION_SLOT: the server sent %d rows", len(rows))
	}
	point, err := decode.ParseLSN(string(rows[0][1]))
	if err != nil {
		return nil, fmt.Errorf("source: CREATE_REPLICATION_SLOT: %w", err)
	}
	return &NewSlot{Name: string(rows[0][0]), Point: point, Snapshot: string(rows[0][2]), conn: conn}, nil
}

// createError gives a refusal its type and says what mends it.
func createError(err error, name, user string) error {
	switch pgsession.SQLState(err) {
	case sqlDuplicate:
		return fmt.Errorf("source: %w: %q was made by somebody else meanwhile, such as a group of the same name that copies another database of this server: choose another group, or another slot by WithSlot: %w", ErrSlotExists, name, err)
	case sqlPrerequisite:
		return fmt.Errorf("source: %w: set wal_level = logical and restart the server: %w", ErrSource, err)
	case sqlLimits:
		return fmt.Errorf("source: %w: raise max_replication_slots and restart the server, or drop a slot that nobody uses: %w", ErrSource, err)
	case sqlPrivilege:
		return fmt.Errorf("source: %w to create a slot: a superuser must run ALTER ROLE %s REPLICATION: %w", ErrPrivilege, names.Quote(user), err)
	}
	return fmt.Errorf("source: creating slot %q: %w", name, err)
}

// OldTransaction is one that the making of a slot waits for.
type OldTransaction struct {
	XID         uint32
	PID         int32  // of its backend; 0 for a prepared transaction
	GID         string // of a prepared transaction; ROLLBACK PREPARED or COMMIT PREPARED ends it
	User        string
	Database    string
	Application string    // "" where flo's role may not see it, as are the rest
	State       string    // "idle in transaction" and the like; "prepared"
	Started     time.Time // of the transaction
	QueryStart  time.Time // of its latest query
	Blocking    bool      // waited for right now; the others' turn may come
}

// String names the transaction for a log.
func (o OldTransaction) String() string {
	if o.GID != "" {
		return fmt.Sprintf("prepared transaction %q of user %q in database %q, since %s",
			o.GID, o.User, o.Database, o.Started.UTC().Format(time.RFC3339))
	}
	s := fmt.Sprintf("pid %d, user %q, database %q, application %q", o.PID, o.User, o.Database, o.Application)
	if o.State != "" {
		s += ", " + o.State
	}
	if !o.Started.IsZero() {
		s += ", since " + o.Started.UTC().Format(time.RFC3339)
	}
	return s
}

// watch looks every second at what the walsender with that pid waits for, until ctx ends.
func (c Config) watch(ctx context.Context, walsender uint32, onWait func([]OldTransaction)) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var conn closerConn
	defer func() {
		if conn != nil {
			hangUp(ctx, conn)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if conn == nil {
			opened, err := c.Connect(ctx)
			if err != nil {
				c.logger().Debug("can't look at what the replication slot waits for", "error", err)
				continue
			}
			conn = opened
		}
		old, err := oldTransactions(ctx, conn, walsender)
		if err != nil {
			c.logger().Debug("can't look at what the replication slot waits for", "error", err)
			hangUp(ctx, conn)
			conn = nil
			continue
		}
		if len(old) > 0 && ctx.Err() == nil {
			onWait(old)
		}
	}
}

// closerConn is what the watch needs of a *pgx.Conn.
type closerConn interface {
	closer
	PgConn() *pgconn.PgConn
}

// maxOld bounds how many transactions are named at once.
const maxOld = 10

// oldTransactions reads who holds a transaction ID. pg_locks shows that to everybody; the rest of
// pg_stat_activity is seen of one's own sessions, or with pg_read_all_stats.
func oldTransactions(ctx context.Context, conn closerConn, walsender uint32) ([]OldTransaction, error) {
	rows, err := query(ctx, conn.PgConn(), fmt.Sprintf(`
		SELECT l.transactionid, l.pid, p.gid, COALESCE(a.usename, p.owner), COALESCE(a.datname, p.database),
			a.application_name, CASE WHEN p.gid IS NULL THEN a.state ELSE 'prepared' END,
			(extract(epoch FROM COALESCE(a.xact_start, p.prepared)) * 1000000)::int8,
			(extract(epoch FROM a.query_start) * 1000000)::int8, l.blocking
		FROM (SELECT DISTINCT ON (COALESCE(x.pid::text, 'prepared ' || x.transactionid::text)) -- a savepoint has an ID too
				x.transactionid, x.pid, w.pid IS NOT NULL AS blocking
			FROM pg_locks x LEFT JOIN pg_locks w ON w.pid = %[1]d AND NOT w.granted AND w.transactionid = x.transactionid
			WHERE x.locktype = 'transactionid' AND x.granted AND x.mode = 'ExclusiveLock'
				AND x.pid IS DISTINCT FROM %[1]d AND x.pid IS DISTINCT FROM pg_backend_pid()
			ORDER BY COALESCE(x.pid::text, 'prepared ' || x.transactionid::text), w.pid IS NULL, x.transactionid::text) l
		LEFT JOIN pg_stat_activity a ON a.pid = l.pid
		LEFT JOIN pg_prepared_xacts p ON p.transaction = l.transactionid
		WHERE l.blocking OR COALESCE(COALESCE(a.xact_start, p.prepared) <=
			(SELECT s.query_start FROM pg_stat_activity s WHERE s.pid = %[1]d), true)
		ORDER BY NOT l.blocking, COALESCE(a.xact_start, p.prepared), l.pid LIMIT %[2]d`, walsender, maxOld))
	if err != nil {
		return nil, err
	}
	old := make([]OldTransaction, 0, len(rows))
	for _, r := range rows {
		xid, err := strconv.ParseUint(string(r[0]), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("source: transaction ID: %w", err)
		}
		old = append(old, OldTransaction{
			XID: uint32(xid), PID: int32(number(r[1])), GID: string(r[2]), User: string(r[3]), Database: string(r[4]),
			Application: string(r[5]), State: string(r[6]), Started: micros(r[7]), QueryStart: micros(r[8]),
			Blocking: string(r[9]) == "t",
		})
	}
	return old, nil
}
