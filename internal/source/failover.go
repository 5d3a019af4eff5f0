package source

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pgsession"
)

// FailoverVersion is the first that synchronizes logical slots to standbys, as server_version_num.
const FailoverVersion = 170000

// EnsureFailover makes an existing slot one that is synchronized, if SlotFailover asks for it and it isn't. The slot
// must not be in use (ErrSlotActive). On a standby nothing is done: its slots can't be synchronized further.
// https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-ALTER-REPLICATION-SLOT
func (c Config) EnsureFailover(ctx context.Context, conn *pgx.Conn, slot string) error {
	if !c.SlotFailover || pgsession.Version(conn.PgConn()) < FailoverVersion {
		return nil
	}
	rows, err := query(ctx, conn.PgConn(), `SELECT failover OR pg_catalog.pg_is_in_recovery() FROM pg_catalog.pg_replication_slots WHERE slot_name = `+pgsession.Literal(slot))
	if err != nil {
		return fmt.Errorf("source: reading slot %q: %w", slot, err)
	}
	if len(rows) == 0 || string(rows[0][0]) == "t" {
		return nil // one that is missing is found at the start
	}
	own, err := c.connectReplication(ctx, nil)
	if err != nil {
		return err
	}
	defer hangUp(ctx, own)
	_, err = query(ctx, own, "ALTER_REPLICATION_SLOT "+names.Quote(slot)+" (FAILOVER true)")
	switch {
	case pgsession.SQLState(err) == sqlInUse:
		return c.activeError(ctx, conn, slot, err)
	case err != nil:
		return fmt.Errorf("source: slot %q can't be made a failover slot: %w", slot, err)
	}
	return nil
}
