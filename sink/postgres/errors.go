package postgres

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// Errors of this sink, found with errors.Is. All but ErrNotOpen and ErrCheckpointMoved are permanent.
var (
	// ErrInvalidOption says that New was given something that cannot work.
	ErrInvalidOption = errors.New("invalid option")
	// ErrNotOpen says that Open has to be called (again, after an error) before the next Write.
	ErrNotOpen = errors.New("not open: call Open before Write, and again after each error")
	// ErrCheckpointMoved says that the checkpoint at the destination is not the one this sink has left
	// there: a commit whose answer was lost has taken place, or somebody changed it. Open again and go
	// on from what it returns.
	ErrCheckpointMoved = errors.New("the checkpoint at the destination has moved: open again and go on from there")
	// ErrRowMissing says that an UPDATE or DELETE met no row, under WithReplicaRole.
	ErrRowMissing error = refusal("no such row at the destination: it has lost or changed rows; copy the table afresh, or use WithMissingRowsCounted if rules filter rows")
	// ErrTableMissing says that the destination has no such table.
	ErrTableMissing error = refusal("no such table at the destination: create it (or, if the source table was renamed, rename it there too), or route the source table elsewhere")
	// ErrMoved says that a source table was copied into another destination table than the one that its changes would go to
	// now: one of the two was renamed, or the rules route it elsewhere. The older rows would stay behind.
	ErrMoved error = refusal("the source table was copied into another destination table: rename that one there as the source's was renamed, or copy afresh (flo.WithResync and a new token)")
	// ErrColumnsMissing says that the destination table lacks columns.
	ErrColumnsMissing error = refusal("columns missing at the destination: add them, or exclude them by a rule")
	// ErrTriggers says that triggers or foreign keys of the destination table would fire.
	ErrTriggers error = refusal("triggers or foreign keys would fire at the destination: use WithReplicaRole, or drop them there")
	// ErrNoIdentity says that nothing tells which row an UPDATE or DELETE is about.
	ErrNoIdentity error = refusal("nothing identifies the row: the source table needs a replica identity whose columns no rule excludes")
	// ErrNotEmpty says that a table to be copied into has rows that flo has not written.
	ErrNotEmpty error = refusal("the destination table is not empty: empty it, or use WithTruncateBeforeCopy, or WithMergeCopy to keep its rows")
	// ErrGenerated says that the copy has a column that the destination generates.
	ErrGenerated error = refusal("columns are generated at the destination: exclude them by a rule, so that the copy leaves them out")
	// ErrCopyNotBegun says that a chunk or an end came for a copy attempt that is not under way.
	ErrCopyNotBegun error = refusal("this copy attempt is not under way at the destination: begin the table first")
	// ErrCopyLost says that the destination knows nothing of a copy that was under way there: it was
	// emptied, restored, or is another database.
	ErrCopyLost error = refusal("the destination has lost the copy that was under way: copy afresh (flo.WithResync and a new token, or Drop)")
	// ErrBooksGone says that flo's own tables at the destination were dropped while a worker ran.
	ErrBooksGone error = refusal("flo's own tables are gone at the destination, and the checkpoint with them: put them back from a backup that is of one moment with the rows, " +
		"or copy afresh (flo.WithResync and a new token) with WithTruncateBeforeCopy, since nothing tells flo's rows from others any more")
	// ErrCredentials says that the destination refused the role, its password, or its address.
	ErrCredentials error = refusal("the destination refused the login: mend user and password of the connection string, the role, or pg_hba.conf, as the server says")
	// ErrCopyIncomplete says that chunks or rows of a copied table do not add up.
	ErrCopyIncomplete error = refusal("the copy is not complete: copy the table afresh")
	// ErrPrivilege says that the destination's role lacks a right; the text names the GRANT.
	ErrPrivilege error = refusal("the destination's role lacks a privilege")
)

// refusal is an error that trying again cannot mend.
type refusal string

func (r refusal) Error() string { return string(r) }

// TableError is an error about one destination table.
type TableError struct {
	Table  decode.Name
	Detail string // the columns, triggers or counts it is about; may be empty
	Err    error
}

func (e *TableError) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("sink/postgres: table %s: %v", e.Table, e.Err)
	}
	return fmt.Sprintf("sink/postgres: table %s: %v (%s)", e.Table, e.Err, e.Detail)
}

// Unwrap gives the cause: one of this package's errors, or the server's.
func (e *TableError) Unwrap() error { return e.Err }

// tableError names the table, and where a right is missing the GRANT.
func tableError(name decode.Name, err error, detail string) error {
	if lacksPrivilege(err) {
		schema, table := pgx.Identifier{name.Schema}.Sanitize(), pgx.Identifier{name.Schema, name.Name}.Sanitize()
		err = fmt.Errorf("%w: GRANT USAGE ON SCHEMA %s and GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLE %s to it (BYPASSRLS, where row-level security refuses): %w",
			ErrPrivilege, schema, table, err)
	}
	return &TableError{Table: name, Err: err, Detail: detail}
}

// lacksPrivilege reports whether err is the server's insufficient_privilege, and not named yet.
func lacksPrivilege(err error) bool {
	return pgsession.SQLState(err) == "42501" && !errors.Is(err, ErrPrivilege)
}

// judge marks err permanent if trying again cannot mend it; rejected is the index of the change it is
// about, -1 if that is not known.
func judge(err error, rejected int) error {
	var rotating *passwordError
	if err == nil || sink.IsPermanent(err) || errors.As(err, &rotating) {
		return err
	}
	if lacksPrivilege(err) { // and no table is known, as with a TRUNCATE of several
		err = fmt.Errorf("sink/postgres: %w: GRANT it what the server names; tables need USAGE of the schema and SELECT, INSERT, UPDATE, DELETE, TRUNCATE: %w", ErrPrivilege, err)
	}
	if !lasting(err) {
		return err
	}
	if rejected >= 0 {
		return sink.Reject(rejected, err)
	}
	return sink.Permanent(err)
}

// lasting reports whether the server, or this package, has said no for good. Whatever is not known
// counts as passing: a needless retry is better than a needless stop.
func lasting(err error) bool {
	var no refusal
	if errors.As(err, &no) || errors.Is(err, sink.ErrUnsupported) {
		return true
	}
	if code := pgsession.SQLState(err); code != "" {
		return lastingState(code) && !pgsession.Transient(err)
	}
	return false
}

// lastingState judges an SQLSTATE: a failover's read-only standby and whatever is the server's own
// trouble pass, data, constraints, rights and names stay.
func lastingState(code string) bool {
	switch code {
	case "25006", "25P02", "40001", "40P01": // read-only transaction; aborted transaction; met another one
		return false
	}
	if len(code) != 5 {
		return false
	}
	switch code[:2] {
	case "0A", "21", "22", "23", "25", "26", "28", "2B", "2F", "38", "39", "3D", "3F", "42", "44", "54", "P0":
		return true
	}
	return false
}

// staleCatalog reports whether err may come from a table that has changed since it was looked up.
// Class 22 is among them: a column that was given a wider type refuses values as its old type.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func staleCatalog(err error) bool {
	code := pgsession.SQLState(err)
	switch code {
	case "0A000", // cached plan must not change result type
		"26000",                   // prepared statement does not exist
		"42P01", "42703", "42704", // table, column, object undefined
		"42P10",          // no unique index for ON CONFLICT
		"42804", "42883", // datatype mismatch, no such operator
		"428C9", // generated always
		"55000", // a key that has become deferrable cannot arbitrate ON CONFLICT
		"XX000": // cache lookup failed for a type that was dropped
		return true
	}
	return strings.HasPrefix(code, "22")
}
