package source

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Bounds of the wait between two looks at the server's snapshot.
const (
	visibleBase = 2 * time.Millisecond
	visibleCap  = 250 * time.Millisecond
	// visibleMutual is how long it lasts where the commit may wait for flo.
	visibleMutual = 100 * time.Millisecond
)

// AwaitVisible waits until conn can see what the transaction xid has done to the catalog. A commit is in the WAL,
// and decoded, a moment before others see it; where synchronous_standby_names names somebody, only when
// that one has answered (RecordTransactionCommit and ProcArrayEndTransaction in CommitTransaction,
// src/backend/access/transam/xact.c). What is asked in between would be answered as of before.
//
// If flo's own walsender, slot's, may be such a synchronous standby, the commit waits for flo in turn: then the wait is
// short, and AwaitVisible reports false. slow is called once, if it takes longer than patience. On a standby, what
// is decoded has been replayed.
func AwaitVisible(ctx context.Context, conn *pgx.Conn, slot string, xid uint32, patience time.Duration, slow func()) (bool, error) {
	wait, began, told := visibleBase, time.Now(), false
	for {
		var snapshot string
		var standby bool
		err := conn.QueryRow(ctx, `SELECT pg_catalog.pg_current_snapshot()::text, pg_catalog.pg_is_in_recovery()`).Scan(&snapshot, &standby)
		if err != nil {
			return false, fmt.Errorf("source: reading the current snapshot: %w", err)
		}
		seen, err := visible(snapshot, xid)
		if err != nil || seen || standby {
			return err == nil, err
		}
		if time.Since(began) > visibleMutual {
			if held, err := holdsCommits(ctx, conn, slot); err != nil || held {
				return false, err
			}
		}
		if !told && time.Since(began) > patience {
			told = true
			slow()
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return false, ctx.Err()
		case <-timer.C:
		}
		wait = min(2*wait, visibleCap)
	}
}

// visible reads a pg_snapshot, xmin:xmax:xip_list, whose numbers carry the epoch, that of a transaction doesn't.
// https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT
func visible(snapshot string, xid uint32) (bool, error) {
	bad := func() (bool, error) { return false, fmt.Errorf("source: snapshot %q is not known", snapshot) }
	parts := strings.Split(snapshot, ":")
	if len(parts) != 3 {
		return bad()
	}
	low := func(text string) (uint32, error) {
		n, err := strconv.ParseUint(text, 10, 64)
		return uint32(n), err
	}
	xmin, err := low(parts[0])
	if err != nil {
		return bad()
	}
	xmax, err := low(parts[1])
	if err != nil {
		return bad()
	}
	// Numbers go round: src/backend/access/transam/transam.c, TransactionIdPrecedes.
	if int32(xid-xmin) < 0 {
		return true, nil
	}
	if int32(xid-xmax) >= 0 {
		return false, nil
	}
	if parts[2] == "" {
		return true, nil
	}
	for running := range strings.SplitSeq(parts[2], ",") {
		n, err := low(running)
		if err != nil {
			return bad()
		}
		if n == xid {
			return false, nil
		}
	}
	return true, nil
}

// holdsCommits reports whether commits may wait for the slot's reader. A walsender whose reader has confirmed
// nothing yet is shown as asynchronous, and waited for all the same where no other one is there
// (pg_stat_get_wal_senders in src/backend/replication/walsender.c): so the names count too.
func holdsCommits(ctx context.Context, conn *pgx.Conn, slot string) (bool, error) {
	var held bool
	err := conn.QueryRow(ctx, `SELECT n.names LIKE '%*%' OR COALESCE(pg_catalog.strpos(n.names, NULLIF(pg_catalog.lower(pg_catalog.current_setting('application_name')), '')) > 0, false)
		OR EXISTS (SELECT FROM pg_catalog.pg_stat_replication r JOIN pg_catalog.pg_replication_slots s ON s.active_pid = r.pid
			WHERE s.slot_name = $1 AND r.sync_state <> 'async')
		FROM (SELECT pg_catalog.lower(pg_catalog.current_setting('synchronous_standby_names')) AS names) n`, slot).Scan(&held)
	if err != nil {
		return false, fmt.Errorf("source: looking whether commits wait for slot %q: %w", slot, err)
	}
	return held, nil
}
