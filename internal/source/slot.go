package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
)

// SlotInfo is a row of pg_replication_slots.
// https://www.postgresql.org/docs/current/view-pg-replication-slots.html
type SlotInfo struct {
	Name           string
	Plugin         string
	Database       string
	Temporary      bool
	Active         bool
	ActivePID      int32 // 0: none
	ConfirmedFlush decode.LSN
	RestartLSN     decode.LSN
	// WALStatus: reserved, extended, unreserved or lost; "" before PostgreSQL 13.
	WALStatus string
	// InvalidationReason, "" if valid: from PostgreSQL 17 on the server's, of 16 whether a standby's slot was.
	InvalidationReason string
	// RetainedBytes of WAL that the server keeps for the slot.
	RetainedBytes int64
}

// Lost reports whether the slot can't be used any more.
func (s SlotInfo) Lost() bool { return s.WALStatus == "lost" || s.InvalidationReason != "" }

// LostBecause says why a slot that is Lost was invalidated, and what keeps the next one from it.
// https://www.postgresql.org/docs/current/view-pg-replication-slots.html
func (s SlotInfo) LostBecause() (why, remedy string) {
	switch s.InvalidationReason {
	case "", "wal_removed":
		return "its WAL was removed", "raise max_slot_wal_keep_size"
	case conflicting:
		return "it was in the way of what the primary sent, or its WAL was removed", "set hot_standby_feedback = on at the standby and wal_level = logical at the primary, or raise max_slot_wal_keep_size"
	case "rows_removed":
		return "the primary removed rows of its catalog that the slot needs", "set hot_standby_feedback = on, and primary_slot_name, at the standby"
	case "wal_level_insufficient":
		return "the primary's wal_level was lowered", "set wal_level = logical there"
	case "idle_timeout":
		return "nobody had read from it for idle_replication_slot_timeout", "raise that setting, or let a replicator run"
	}
	return s.InvalidationReason, "see the server's log"
}

// lostError says why, and what to do.
func (s SlotInfo) lostError() error {
	why, remedy := s.LostBecause()
	return fmt.Errorf("source: %w: slot %q: %s; changes behind %s are gone from the source: copy afresh (WithResync and a new token, or Drop), and %s",
		ErrSlotLost, s.Name, why, s.ConfirmedFlush, remedy)
}

// Slot reads a slot's state; the error wraps ErrSlotMissing if there is none of that name.
func (c Config) Slot(ctx context.Context, conn *pgx.Conn, name string) (SlotInfo, error) {
	rows, err := query(ctx, conn.PgConn(), slotQuery(pgsession.Version(conn.PgConn()), name))
	if err != nil {
		return SlotInfo{}, fmt.Errorf("source: reading slot %q: %w", name, err)
	}
	return scanSlot(rows, name)
}

// conflicting stands for the reasons that a standby's slot is invalidated for, which PostgreSQL 16 doesn't tell apart.
const conflicting = "conflicting"

// slotQuery is in text, so that a walsender takes it too.
func slotQuery(version int, name string) string {
	status, reason := "NULL", "NULL"
	if version >= 130000 {
		status = "s.wal_status"
	}
	switch {
	case version >= 170000:
		reason = "s.invalidation_reason"
	case version >= 160000:
		reason = "CASE WHEN s.conflicting AND pg_catalog.pg_is_in_recovery() THEN " + pgsession.Literal(conflicting) + " END"
	}
	return `SELECT s.plugin, s.database, s.temporary, s.active, s.active_pid, s.confirmed_flush_lsn, s.restart_lsn, ` +
		status + `, ` + reason + `, (CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
		ELSE pg_catalog.pg_current_wal_lsn() END OPERATOR(pg_catalog.-) s.restart_lsn)::pg_catalog.int8
		FROM pg_catalog.pg_replication_slots s WHERE s.slot_name = ` + pgsession.Literal(name)
}

// scanSlot reads the row of slotQuery.
func scanSlot(rows [][][]byte, name string) (SlotInfo, error) {
	if len(rows) == 0 {
		return SlotInfo{}, fmt.Errorf("source: %w: %q", ErrSlotMissing, name)
	}
	r := rows[0]
	s := SlotInfo{
		Name: name, Plugin: string(r[0]), Database: string(r[1]),
		Temporary: string(r[2]) == "t", Active: string(r[3]) == "t",
		ActivePID: int32(number(r[4])), WALStatus: string(r[7]), InvalidationReason: string(r[8]),
		RetainedBytes: max(0, number(r[9])),
	}
	return s, errors.Join(lsnOrZero(&s.ConfirmedFlush, r[5]), lsnOrZero(&s.RestartLSN, r[6]))
}

// dropWait bounds how long DropSlot waits for a walsender to let go of the slot.
const dropWait = 10 * time.Second

// DropSlot drops a slot; one that does not exist is no error. A slot that somebody uses is waited for
// up to 10 s; then the error wraps ErrSlotActive and names the walsender's pid.
func (c Config) DropSlot(ctx context.Context, name string) error {
	conn, err := c.Connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)
	limit := time.Now().Add(dropWait)
	backoff := pgsession.Backoff{Cap: time.Second}
	for {
		_, err := query(ctx, conn.PgConn(), "SELECT pg_catalog.pg_drop_replication_slot("+pgsession.Literal(name)+")")
		switch pgsession.SQLState(err) {
		case "":
			if err != nil {
				return fmt.Errorf("source: dropping slot %q: %w", name, err)
			}
			return nil
		case sqlUndefined:
			return nil
		case sqlInUse:
		default:
			return fmt.Errorf("source: dropping slot %q: %w", name, err)
		}
		if time.Now().After(limit) {
			return c.activeError(ctx, conn, name, err)
		}
		if err := backoff.Wait(ctx); err != nil {
			return fmt.Errorf("source: dropping slot %q: %w", name, err)
		}
	}
}

// activeError names who uses the slot.
func (c Config) activeError(ctx context.Context, conn *pgx.Conn, name string, cause error) error {
	info, err := c.Slot(ctx, conn, name)
	if err != nil {
		return errors.Join(cause, err)
	}
	return activeError(info, cause)
}

// activeError names who uses the slot.
func activeError(info SlotInfo, cause error) error {
	return fmt.Errorf("source: %w: slot %q is used by backend pid %d: stop the other replicator, or end it with SELECT pg_terminate_backend(%d): %w",
		ErrSlotActive, info.Name, info.ActivePID, info.ActivePID, cause)
}
