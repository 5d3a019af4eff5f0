package source

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
)

// System is what identifies a server and how it is set.
type System struct {
	ID       string     // system identifier, decimal; the same on a physical standby
	Timeline int32      // rises with each promotion
	Pos      decode.LSN // flushed WAL position, on a standby the replayed one
	Database string
	Version  int // server_version_num, for example 150018
	// WalSenderTimeout is in force for this role and database; 0: none.
	WalSenderTimeout time.Duration
	InRecovery       bool   // a standby
	WALLevel         string // "logical" is needed
}

// Identify asks the server who it is, on a replication connection of its own.
func (c Config) Identify(ctx context.Context) (System, error) {
	conn, err := c.connectReplication(ctx, nil)
	if err != nil {
		return System{}, err
	}
	defer hangUp(ctx, conn)
	return identify(ctx, conn)
}

// identify reads a System on a replication connection.
func identify(ctx context.Context, conn *pgconn.PgConn) (System, error) {
	var s System
	rows, err := query(ctx, conn, "IDENTIFY_SYSTEM")
	if err != nil {
		return s, fmt.Errorf("source: IDENTIFY_SYSTEM: %w", err)
	}
	if len(rows) != 1 || len(rows[0]) < 4 {
		return s, fmt.Errorf("source: IDENTIFY_SYSTEM: the server sent %d rows", len(rows))
	}
	s.ID, s.Database = string(rows[0][0]), string(rows[0][3])
	timeline, err := strconv.ParseInt(string(rows[0][1]), 10, 32)
	if err != nil {
		return s, fmt.Errorf("source: IDENTIFY_SYSTEM: timeline: %w", err)
	}
	s.Timeline = int32(timeline)
	if s.Pos, err = decode.ParseLSN(string(rows[0][2])); err != nil {
		return s, fmt.Errorf("source: IDENTIFY_SYSTEM: %w", err)
	}
	rows, err = query(ctx, conn, `SELECT pg_catalog.current_setting('server_version_num'), pg_catalog.pg_is_in_recovery(),
		pg_catalog.current_setting('wal_level'), s.setting FROM pg_catalog.pg_settings s WHERE s.name = 'wal_sender_timeout'`)
	if err != nil {
		return s, fmt.Errorf("source: reading the server's settings: %w", err)
	}
	if len(rows) != 1 {
		return s, fmt.Errorf("source: reading the server's settings: the server sent %d rows", len(rows))
	}
	if s.Version, err = strconv.Atoi(string(rows[0][0])); err != nil {
		s.Version = pgsession.Version(conn)
	}
	s.InRecovery, s.WALLevel = string(rows[0][1]) == "t", string(rows[0][2])
	// pg_settings gives the value in its unit, milliseconds.
	ms, err := strconv.ParseInt(string(rows[0][3]), 10, 64)
	if err != nil {
		return s, fmt.Errorf("source: wal_sender_timeout: %w", err)
	}
	s.WalSenderTimeout = time.Duration(ms) * time.Millisecond
	return s, nil
}

// NoSwitch is what TimelineSwitch gives for the timeline that the server is still on.
const NoSwitch decode.LSN = math.MaxUint64

// TimelineSwitch gives the position at which the server's history left timeline from: what lies behind
// it on that timeline is not in this server. The error wraps ErrTimeline if the history does not know
// the timeline: then this server descends from another branch.
func (c Config) TimelineSwitch(ctx context.Context, from int32) (decode.LSN, error) {
	conn, err := c.connectReplication(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer hangUp(ctx, conn)
	s, err := identify(ctx, conn)
	if err != nil {
		return 0, err
	}
	if s.Timeline == from {
		return NoSwitch, nil
	}
	if s.Timeline < from || s.Timeline < 2 {
		return 0, fmt.Errorf("source: %w: the server is on timeline %d, timeline %d was seen before: it is another server or an older backup",
			ErrTimeline, s.Timeline, from)
	}
	rows, err := query(ctx, conn, fmt.Sprintf("TIMELINE_HISTORY %d", s.Timeline))
	if err != nil {
		return 0, fmt.Errorf("source: TIMELINE_HISTORY %d: %w", s.Timeline, err)
	}
	if len(rows) != 1 || len(rows[0]) != 2 {
		return 0, fmt.Errorf("source: TIMELINE_HISTORY %d: the server sent %d rows", s.Timeline, len(rows))
	}
	return switchPoint(string(rows[0][1]), from)
}

// switchPoint finds a timeline in the text of a history file: lines of timeline, switch point and
// reason, with # for comments (src/backend/access/transam/timeline.c).
func switchPoint(history string, from int32) (decode.LSN, error) {
	for line := range strings.Lines(history) {
		fields := strings.Fields(line)
		if len(fields) < 2 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		timeline, err := strconv.ParseInt(fields[0], 10, 32)
		if err != nil {
			return 0, fmt.Errorf("source: timeline history: %w", err)
		}
		if int32(timeline) != from {
			continue
		}
		lsn, err := decode.ParseLSN(fields[1])
		if err != nil {
			return 0, fmt.Errorf("source: timeline history: %w", err)
		}
		return lsn, nil
	}
	return 0, fmt.Errorf("source: %w: timeline %d is no ancestor of the server's own", ErrTimeline, from)
}
