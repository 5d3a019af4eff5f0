// Package source is everything flo does at the PostgreSQL source: it looks at the server and its
// tables, keeps publication and slot, and reads the replication stream.
//
// It decodes no rows. A Stream hands out pgoutput messages as they came; what they mean is package
// decode's matter, what becomes of them the replicator's.
package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pgsession"
)

// plugin is the output plugin of flo's slots.
const plugin = "pgoutput"

// Errors that callers tell apart by errors.Is. Their messages name what is meant and what to do.
var (
	// ErrSlotMissing: the replication slot does not exist.
	ErrSlotMissing = errors.New("replication slot does not exist")
	// ErrSlotExists: CreateSlot found the name taken.
	ErrSlotExists = errors.New("replication slot exists already")
	// ErrSlotLost: the slot exists, but the WAL that it stood for is gone.
	ErrSlotLost = errors.New("replication slot is lost")
	// ErrSlotAhead: the slot has been confirmed beyond the position asked for, so that what lies
	// between will never be sent again.
	ErrSlotAhead = errors.New("replication slot is ahead")
	// ErrSlotActive: another walsender uses the slot. It may pass.
	ErrSlotActive = errors.New("replication slot is in use")
	// ErrSlotMismatch: a slot of that name belongs to another database or output plugin.
	ErrSlotMismatch = errors.New("replication slot is not of this pipeline")
	// ErrTimeline: the server's history does not hold the timeline asked for.
	ErrTimeline = errors.New("timeline is not in the server's history")
	// ErrTable: a table that was named can't be published.
	ErrTable = errors.New("table can't be published")
	// ErrPrivilege: the role lacks a right; the message holds the statement that grants it.
	ErrPrivilege = errors.New("privilege is missing")
	// ErrPassword: the password that the callback gave was refused. It may pass: the callback is asked again.
	ErrPassword = errors.New("the password that WithPassword's function gave was refused, and is asked for again")
	// ErrCredentials: the server refused role, password or address.
	ErrCredentials = errors.New("the login is refused")
	// ErrSource: the server's settings don't allow logical replication.
	ErrSource = errors.New("source is not fit for logical replication")
)

// Schema is where flo keeps its own objects at the source. It is never published.
const Schema = "flo"

// Config says how to reach the source. Its methods may be called concurrently; each call opens its
// connections anew.
type Config struct {
	// Conn comes from pgx.ParseConfig and is never changed. Required.
	Conn *pgx.ConnConfig
	// Password, if set, is asked at each connect.
	Password func(ctx context.Context) (string, error)
	// SlotFailover makes slots that are not temporary synchronized to standbys, from FailoverVersion on.
	SlotFailover bool
	// AppName is application_name of every session; default: as in Conn.
	AppName string
	// Logger; default: silent.
	Logger *slog.Logger
}

// options of every session.
func (c Config) options() pgsession.Options {
	return pgsession.Options{AppName: c.AppName, Password: c.Password}
}

// logger is never nil.
func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

// Connect opens an ordinary session with flo's settings (see package pgsession).
func (c Config) Connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgsession.Connect(ctx, c.Conn, c.options())
	if err != nil {
		return nil, fmt.Errorf("source: %w", c.rotating(err))
	}
	return conn, nil
}

// connectReplication opens a walsender that also takes SQL, with the same settings.
// https://www.postgresql.org/docs/current/protocol-replication.html
func (c Config) connectReplication(ctx context.Context, adapt func(*pgconn.Config)) (*pgconn.PgConn, error) {
	cfg, err := pgsession.Prepare(ctx, c.Conn, c.options())
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	if cfg.RuntimeParams == nil {
		cfg.RuntimeParams = make(map[string]string, 1)
	}
	cfg.RuntimeParams["replication"] = "database"
	if adapt != nil {
		adapt(&cfg.Config)
	}
	conn, err := pgconn.ConnectConfig(ctx, &cfg.Config)
	if err != nil {
		if pgsession.SQLState(err) == sqlPrivilege {
			return nil, fmt.Errorf("source: %w to replicate: a superuser must run ALTER ROLE %s REPLICATION (or grant the provider's replication role): %w",
				ErrPrivilege, names.Quote(c.Conn.User), err)
		}
		return nil, fmt.Errorf("source: replication connection: %w", c.rotating(err))
	}
	return conn, nil
}

// rotating tells a password that is being rotated from one that is wrong for good.
func (c Config) rotating(err error) error {
	switch code := pgsession.SQLState(err); {
	case c.Password != nil && code == sqlPassword:
		return fmt.Errorf("%w: %w", ErrPassword, err)
	case strings.HasPrefix(code, sqlAuthorization):
		return fmt.Errorf("%w: mend user and password of the connection string, the role, or pg_hba.conf, as the server says: %w", ErrCredentials, err)
	}
	return err
}

// closeTimeout bounds the polite end of a connection whose work is done.
const closeTimeout = 2 * time.Second

// closer is what pgx.Conn and pgconn.PgConn share.
type closer interface {
	Close(ctx context.Context) error
}

// hangUp closes a connection within closeTimeout, even when ctx has ended.
func hangUp(ctx context.Context, conn closer) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	// The server ends the session either way.
	_ = conn.Close(ctx)
}

// query runs one statement or replication command by the simple protocol and gives its rows as text;
// NULL is nil.
func query(ctx context.Context, conn *pgconn.PgConn, sql string) ([][][]byte, error) {
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(results) == 0 {
		return nil, nil
	}
	return results[0].Rows, nil
}

// SQLSTATEs that decide something here.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	sqlPrivilege     = "42501" // insufficient_privilege
	sqlPassword      = "28P01" // invalid_password
	sqlAuthorization = "28"    // class: invalid authorization specification
	sqlUndefined     = "42704" // undefined_object
	sqlDuplicate     = "42710" // duplicate_object
	sqlInUse         = "55006" // object_in_use
	sqlPrerequisite  = "55000" // object_not_in_prerequisite_state
	sqlUndefinedFile = "58P01" // undefined_file: a WAL segment that has been removed
	sqlLimits        = "53400" // configuration_limit_exceeded
)
