package flocopy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// What a TableError or a failed start can be found to be, by errors.Is.
var (
	// ErrDropped: the table isn't there (any more), or another one bears its name.
	ErrDropped = errors.New("the table is not there any more")
	// ErrPermission: the session's role may not read the table.
	ErrPermission = errors.New("no permission to read the table")
	// ErrRowSecurity: row-level security would hide rows from the copy.
	ErrRowSecurity = errors.New("row-level security would hide rows from the copy")
	// ErrLocked: the table's lock could not be had, because of a timeout or a deadlock.
	ErrLocked = errors.New("the table is locked")
	// ErrSnapshotGone: the session that exported the snapshot ended before it was imported.
	ErrSnapshotGone = errors.New("the exported snapshot is gone")
)

// RewrittenError says that a table changed between the snapshot and its copy in a way that makes the
// snapshot see it empty or shuffled, or no longer see its columns. What was emitted of the copy must
// be thrown away, and the copy made afresh from a new snapshot.
type RewrittenError struct {
	Table  Table
	Reason string // for people
}

// Error names the table and the reason.
func (e *RewrittenError) Error() string {
	return fmt.Sprintf("flocopy: table %s changed while it was copied (%s): copy it again from a new snapshot", &e.Table, e.Reason)
}

// TableError says which table could not be copied, and what to do. errors.Is finds the kind
// (ErrPermission and so on) if it is known, errors.As the *pgconn.PgError if there was one.
type TableError struct {
	Table  Table
	Kind   error  // ErrDropped, ErrPermission, ErrRowSecurity, ErrLocked or nil
	Remedy string // what to do, "" if nothing is known
	Err    error  // what PostgreSQL said; may be nil
}

// Error names the table, the kind, the remedy and what PostgreSQL said.
func (e *TableError) Error() string {
	s := fmt.Sprintf("flocopy: table %s", &e.Table)
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			s += ": " + err.Error()
		}
	}
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Unwrap gives the kind and the cause.
func (e *TableError) Unwrap() []error {
	var errs []error
	for _, err := range []error{e.Kind, e.Err} {
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// SQLSTATEs that are told apart.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	stateInvalidParameter      = "22023"
	stateDeadlock              = "40P01"
	stateInsufficientPrivilege = "42501"
	stateUndefinedColumn       = "42703"
	stateUndefinedObject       = "42704"
	stateUndefinedTable        = "42P01"
	stateInvalidSchema         = "3F000"
	stateTooManyConnections    = "53300"
	statePrerequisiteState     = "55000"
	stateLockNotAvailable      = "55P03"
)

// sqlState of a PostgreSQL error in err's chain, "" if there is none.
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// lost reports whether a table is lost to the snapshot, but the others are not.
func lost(err error) bool {
	var rewritten *RewrittenError
	return errors.As(err, &rewritten) || errors.Is(err, ErrDropped)
}

// importError explains why the snapshot could not be imported. Which SQLSTATE an unknown snapshot has
// depends on the version (PostgreSQL's snapmgr.c, ImportSnapshot).
func importError(snapshot string, err error) error {
	switch sqlState(err) {
	case stateInvalidParameter, stateUndefinedObject, statePrerequisiteState:
		return fmt.Errorf("flocopy: import snapshot %q: %w: keep the session that exported it until Started is called, and connect to the same database of the same server: %w",
			snapshot, ErrSnapshotGone, err)
	}
	return fmt.Errorf("flocopy: import snapshot %q: %w", snapshot, err)
}

// connectError explains why a connection could not be opened.
func connectError(connections int, err error) error {
	if sqlState(err) == stateTooManyConnections {
		return fmt.Errorf("flocopy: open one of %d copy connections: %w; lower the number of copy connections or raise max_connections", connections, err)
	}
	return fmt.Errorf("flocopy: open a copy connection: %w", err)
}

// copyError explains why a range of a table could not be read. The planner found the table and its
// columns in the snapshot, so if they can't be found now they have changed since.
func (w *worker) copyError(ctx context.Context, t *Table, err error) error {
	switch sqlState(err) {
	case "":
		return err
	case stateUndefinedTable, stateInvalidSchema:
		return &TableError{Table: *t, Kind: ErrDropped, Err: err, Remedy: "if it was dropped or renamed, copy again from a new snapshot without it"}
	case stateUndefinedColumn:
		return &RewrittenError{Table: *t, Reason: err.Error()}
	case stateDeadlock, stateLockNotAvailable:
		return &TableError{Table: *t, Kind: ErrLocked, Err: err, Remedy: "try again, with lock_timeout = 0 in the session"}
	case stateInsufficientPrivilege:
		return w.privilegeError(ctx, t, err)
	}
	return &TableError{Table: *t, Err: err}
}

// privilegeError tells row-level security and a missing grant apart: both have one SQLSTATE. The
// failed statement is rolled back first, so that the catalog can be asked.
func (w *worker) privilegeError(ctx context.Context, t *Table, cause error) error {
	denied := func(user string) error {
		return &TableError{Table: *t, Kind: ErrPermission, Err: cause, Remedy: grantRemedy(t, user)}
	}
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := w.exec(ctx, "ROLLBACK TO SAVEPOINT flo_table"); err != nil {
		return denied("")
	}
	row, err := queryRow(ctx, w.conn.PgConn(), "SELECT row_security_active($1::oid), current_user", oidText(t.OID))
	if err != nil || len(row) != 2 {
		return denied("")
	}
	user := string(row[1])
	if string(row[0]) == "t" {
		return rowSecurityError(t, user, cause)
	}
	return denied(user)
}

func rowSecurityError(t *Table, user string, cause error) error {
	return &TableError{Table: *t, Kind: ErrRowSecurity, Err: cause, Remedy: fmt.Sprintf(
		"connect as the table's owner (without FORCE ROW LEVEL SECURITY), or let this role see all rows: ALTER ROLE %s BYPASSRLS", quoteRole(user))}
}

func grantRemedy(t *Table, user string) string {
	role := quoteRole(user)
	return fmt.Sprintf("run GRANT USAGE ON SCHEMA %s TO %s; GRANT SELECT ON TABLE %s TO %s",
		pgx.Identifier{t.Schema}.Sanitize(), role, t, role)
}

func quoteRole(user string) string {
	if user == "" {
		return "the role that copies"
	}
	return pgx.Identifier{user}.Sanitize()
}

// closeTimeout bounds how long Run waits for a connection to close after the copy, or to diagnose an
// error. PostgreSQL notices a lost client by itself later.
const closeTimeout = 5 * time.Second
