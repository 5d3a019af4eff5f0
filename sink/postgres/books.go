package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// books is flo's own bookkeeping at the destination, as SQL.
type books struct {
	schema                                string // quoted
	plain                                 string
	checkpoints, backends, copies, chunks string // quoted, qualified
	structures                            string // the same
	lock, store, storeAll, storeOwn       string // of Write: lock and one of the others a transaction
}

func newBooks(schema string) books {
	name := func(t string) string { return pgx.Identifier{schema, t}.Sanitize() }
	b := books{
		schema:      pgx.Identifier{schema}.Sanitize(),
		plain:       schema,
		checkpoints: name("checkpoints"),
		backends:    name("backends"),
		copies:      name("copies"),
		chunks:      name("copy_chunks"),
		structures:  name("structures"),
	}
	// NO KEY UPDATE keeps other writers of the row out and lets the copy's KEY SHARE in.
	// https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-ROWS
	b.lock = b.lockRow("$1", "$2")
	b.store = "UPDATE " + b.checkpoints + " SET checkpoint = $3, incarnation = $4, ahead = '', updated_at = clock_timestamp() WHERE group_name = $1 AND worker = $2"
	b.storeAll = "UPDATE " + b.checkpoints + " SET checkpoint = $3, incarnation = $4, ahead = $5, updated_at = clock_timestamp() WHERE group_name = $1 AND worker = ANY ($2::text[])"
	// Division by zero where the row is not as this sink left it, so that the COMMIT sent along is not run.
	b.storeOwn = "WITH own AS (UPDATE " + b.checkpoints + " SET checkpoint = $3, incarnation = $4, ahead = '', updated_at = clock_timestamp()" +
		" WHERE group_name = $1 AND worker = $2 AND epoch = $5::bigint AND checkpoint = $6 AND pg_backend_pid() = $7::int RETURNING 1)" +
		" SELECT 1 / count(*) FROM own"
	return b
}

// lockRow locks the checkpoint's row and gives what is in it.
func (b *books) lockRow(group, worker string) string {
	return "SELECT epoch, checkpoint, pg_backend_pid() FROM " + b.checkpoints + " WHERE group_name = " + group + " AND worker = " + worker + " FOR NO KEY UPDATE"
}

// ddl creates what is missing.
func (b books) ddl() string {
	return "CREATE SCHEMA IF NOT EXISTS " + b.schema + ";" + b.tables()
}

func (b books) tables() string {
	return strings.NewReplacer(
		"{checkpoints}", b.checkpoints, "{backends}", b.backends,
		"{copies}", b.copies, "{chunks}", b.chunks, "{structures}", b.structures,
	).Replace(`
CREATE TABLE IF NOT EXISTS {checkpoints} (
	group_name text NOT NULL,
	worker text NOT NULL,
	incarnation text NOT NULL DEFAULT '',
	epoch bigint NOT NULL DEFAULT 0,
	checkpoint text NOT NULL DEFAULT '',
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (group_name, worker)
);
ALTER TABLE {checkpoints} ADD COLUMN IF NOT EXISTS ahead text NOT NULL DEFAULT '';
CREATE TABLE IF NOT EXISTS {backends} (
	group_name text NOT NULL,
	worker text NOT NULL,
	epoch bigint NOT NULL,
	pid integer NOT NULL,
	backend_start timestamptz NOT NULL,
	PRIMARY KEY (group_name, worker, pid, backend_start)
);
CREATE TABLE IF NOT EXISTS {copies} (
	group_name text NOT NULL,
	worker text NOT NULL,
	source oid NOT NULL,
	incarnation text NOT NULL,
	attempt bigint NOT NULL,
	point pg_lsn NOT NULL,
	dest_schema text NOT NULL,
	dest_table text NOT NULL,
	state text NOT NULL DEFAULT 'copying',
	chunks bigint,
	rows bigint,
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (group_name, worker, source)
);
ALTER TABLE {copies} ADD COLUMN IF NOT EXISTS dest_oid oid NOT NULL DEFAULT 0;
CREATE TABLE IF NOT EXISTS {chunks} (
	group_name text NOT NULL,
	worker text NOT NULL,
	source oid NOT NULL,
	incarnation text NOT NULL,
	attempt bigint NOT NULL,
	range bigint NOT NULL,
	first_row bigint NOT NULL,
	rows bigint NOT NULL,
	PRIMARY KEY (group_name, worker, source, incarnation, attempt, range, first_row)
);
CREATE TABLE IF NOT EXISTS {structures} (
	group_name text NOT NULL,
	worker text NOT NULL,
	kind text NOT NULL,
	source oid NOT NULL,
	source_schema text NOT NULL,
	source_name text NOT NULL,
	dest_schema text NOT NULL,
	dest_name text NOT NULL,
	shape jsonb NOT NULL,
	updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
	PRIMARY KEY (group_name, worker, kind, source)
);`)
}

// setupLock is the advisory lock under which flo's own tables are created: CREATE … IF NOT EXISTS
// of two sessions at once fails in one of them.
const setupLock = "7165913485012364111"

// SetupSQL gives the statements that create flo's own tables, for a database whose role for flo may not
// do that. The role then needs USAGE on the schema and SELECT, INSERT, UPDATE, DELETE on its tables.
func (s *Sink) SetupSQL() string { return strings.TrimSpace(s.books.ddl()) + "\n" }

// create makes flo's own tables unless they are there.
func (b books) create(ctx context.Context, pg *pgconn.PgConn) error {
	rows, err := query(ctx, pg, `SELECT count(c.oid) + count(a.attname) FROM pg_namespace n LEFT JOIN pg_class c
		ON c.relnamespace = n.oid AND c.relname IN ('checkpoints', 'backends', 'copies', 'copy_chunks', 'structures')
		LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND (c.relname, a.attname) IN (('checkpoints', 'ahead'), ('copies', 'dest_oid'))
		WHERE n.nspname = $1 GROUP BY n.oid`, b.plain)
	if err != nil {
		return fmt.Errorf("sink/postgres: looking for flo's own tables: %w", err)
	}
	// CREATE SCHEMA IF NOT EXISTS asks for the right to create schemas even if this one exists.
	ddl := b.ddl()
	if len(rows) == 1 {
		if string(rows[0][0]) == "7" {
			return nil
		}
		ddl = b.tables()
	}
	err = simple(ctx, pg, begin+"; SELECT pg_advisory_xact_lock("+setupLock+"); "+ddl+" COMMIT")
	if err == nil {
		return nil
	}
	_ = simple(ctx, pg, "ROLLBACK")
	if pgsession.SQLState(err) == "42501" {
		return sink.Permanent(fmt.Errorf("sink/postgres: %w: flo keeps its checkpoint in schema %s of the destination, which is not there or not complete: GRANT CREATE ON DATABASE to the role, or let an administrator run what SetupSQL gives: %w", ErrPrivilege, b.schema, err))
	}
	return fmt.Errorf("sink/postgres: creating schema %s: %w", b.schema, err)
}

// ownTables is how the names of flo's own tables begin.
var ownTables = []string{".checkpoints", ".backends", ".copies", ".copy_chunks", ".structures", ".keys_", ".stage_"}

// explain says of a server's error that it is about flo's own tables, if it is. The server quotes the name that it
// lacks in its message, in the quotes of its language.
func (b books) explain(err error) error {
	var pg *pgconn.PgError
	if errors.Is(err, ErrBooksGone) || !errors.As(err, &pg) || pg.Code != "42P01" && pg.Code != "3F000" { // undefined_table, invalid_schema_name
		return err
	}
	for _, word := range strings.FieldsFunc(pg.Message, func(r rune) bool { return unicode.IsSpace(r) || strings.ContainsRune("\"'«»„“”", r) }) {
		name, own := strings.CutPrefix(word, b.plain)
		if own && (pg.Code == "3F000" && name == "" || pg.Code == "42P01" && slices.ContainsFunc(ownTables, func(t string) bool { return strings.HasPrefix(name, t) })) {
			return fmt.Errorf("sink/postgres: schema %s: %w: %w", b.schema, ErrBooksGone, err)
		}
	}
	return err
}
