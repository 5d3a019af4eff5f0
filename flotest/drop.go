package flotest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// dropDatabase drops a database and what stands in the way of that: slots (and the
// walsenders that use them), subscriptions, prepared transactions, sessions. A database
// that isn't there is no error.
func dropDatabase(ctx context.Context, adminURL, name string) error {
	err := withConn(ctx, adminURL, func(c *pgx.Conn) error {
		var n, version int
		err := c.QueryRow(ctx, `SELECT count(*), current_setting('server_version_num')::int
			FROM pg_catalog.pg_database WHERE datname = $1`, name).Scan(&n, &version)
		if err != nil || n == 0 {
			return err
		}
		if err := clearInside(ctx, c, adminURL, name); err != nil {
			return err
		}
		// Nobody, walsenders included, comes back from here on.
		if _, err := c.Exec(ctx, "ALTER DATABASE "+quote(name)+" WITH ALLOW_CONNECTIONS false"); err != nil {
			return err
		}
		if err := dropSlots(ctx, c, name); err != nil {
			return err
		}
		sql := "DROP DATABASE " + quote(name)
		if version >= 130000 {
			sql += " WITH (FORCE)"
		}
		_, err = c.Exec(ctx, sql)
		return err
	})
	if err != nil {
		return fmt.Errorf("flotest: drop database %s: %w", name, err)
	}
	return nil
}

// clearInside removes what only a session inside the database can remove: DROP DATABASE
// refuses a database with subscriptions or prepared transactions.
func clearInside(ctx context.Context, admin *pgx.Conn, adminURL, name string) error {
	var n int
	err := admin.QueryRow(ctx, `SELECT
		(SELECT count(*) FROM pg_catalog.pg_prepared_xacts WHERE database = $1) +
		(SELECT count(*) FROM pg_catalog.pg_subscription s
		   JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = $1)`, name).Scan(&n)
	if err != nil || n == 0 {
		return err
	}
	return withConn(ctx, inDatabase(adminURL, name), func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, `SELECT 'ROLLBACK PREPARED ' || quote_literal(gid)
			FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()
			UNION ALL SELECT format('ALTER SUBSCRIPTION %1$I DISABLE; ALTER SUBSCRIPTION %1$I SET (slot_name = NONE); DROP SUBSCRIPTION %1$I', subname)
			FROM pg_catalog.pg_subscription s JOIN pg_catalog.pg_database d ON d.oid = s.subdbid
			WHERE d.datname = current_database()`)
		if err != nil {
			return err
		}
		stmts, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		for _, sql := range stmts {
			if _, err := c.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
}

// dropSlots drops the database's slots, ending the sessions that use them first.
func dropSlots(ctx context.Context, c *pgx.Conn, db string) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		var left int
		// A slot that is in use can't be dropped, and one whose user was ended is for a
		// moment still in use; a temporary one goes with its session.
		rows, err := c.Query(ctx, `SELECT slot_name, coalesce(active_pid, 0), temporary
			FROM pg_catalog.pg_replication_slots WHERE database = $1`, db)
		if err != nil {
			return err
		}
		slots, err := pgx.CollectRows(rows, pgx.RowToStructByPos[struct {
			Name string
			PID  int
			Temp bool
		}])
		if err != nil {
			return err
		}
		for _, slot := range slots {
			left++
			if slot.PID != 0 {
				_, err = c.Exec(ctx, `SELECT pg_catalog.pg_terminate_backend($1)`, slot.PID)
			} else if !slot.Temp {
				_, err = c.Exec(ctx, `SELECT pg_catalog.pg_drop_replication_slot($1)`, slot.Name)
			}
			if err != nil && !isCode(err, "55006", "42704") { // object_in_use, undefined_object
				return fmt.Errorf("slot %s: %w", slot.Name, err)
			}
		}
		if left == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%d slots left: %w", left, ctx.Err())
		}
	}
}

func isCode(err error, codes ...string) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	for _, c := range codes {
		if pg.Code == c {
			return true
		}
	}
	return false
}
