package source

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/pgsession"
)

// Entry is what publishes a table: its own entry in a publication, that of a table that it is a partition of, its
// schema's, or a publication FOR ALL TABLES. Such an OID never comes back, and a row filter or column list that is set
// makes another entry (AlterPublicationTables in src/backend/commands/publicationcmds.c), so a table that left the
// publication and returned is told from one that stayed.
// https://www.postgresql.org/docs/current/catalog-pg-publication-rel.html
type Entry struct {
	OID         uint32
	Publication string
}

// Revision is the state of a publication's own row, which ALTER PUBLICATION … SET (…) writes anew, and a change of its
// tables does not.
type Revision struct {
	OID   uint32 // another one when it was made again
	Owner uint32 // a change of it writes the row anew, too
	Row   uint32 // the row's xmin: the transaction that wrote it
	// Whole says that all events are published.
	Whole bool
}

// Changed reports whether what the publication publishes may have been another for a while since r: it was made again, or its
// options were set. A new owner alone does not count.
func (r Revision) Changed(now Revision) bool {
	return r.OID != now.OID || r.Row != now.Row && r.Owner == now.Owner
}

// Entries are what publishes tables, by their OIDs, and the publications, by their names; one that is missing is left out.
type Entries struct {
	Tables       map[uint32][]Entry
	Publications map[string]Revision
}

// Entries reads what publishes the tables of these publications.
func (c Config) Entries(ctx context.Context, conn *pgx.Conn, publications []string) (Entries, error) {
	e, err := readRevisions(ctx, conn, publications)
	if err != nil {
		return e, err
	}
	e.Tables, err = readEntries(ctx, conn, publications)
	return e, err
}

// OwnEntries is Entries for publications that flo has made, which list each table by itself: so it costs less.
func (c Config) OwnEntries(ctx context.Context, conn *pgx.Conn, publications []string) (Entries, error) {
	e, err := readRevisions(ctx, conn, publications)
	if err != nil {
		return e, err
	}
	rows, err := conn.Query(ctx, `SELECT r.prrelid, r.oid, p.pubname::text FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
		WHERE p.pubname = ANY ($1) ORDER BY 1, 2`, publications)
	if err != nil {
		return e, fmt.Errorf("source: reading the publications' entries: %w", err)
	}
	e.Tables, err = collectEntries(rows)
	return e, err
}

// readRevisions reads the publications' rows.
func readRevisions(ctx context.Context, conn *pgx.Conn, publications []string) (Entries, error) {
	e := Entries{Publications: make(map[string]Revision)}
	rows, err := conn.Query(ctx, `SELECT pubname::text, oid, pubowner, xmin::text::bigint, pubinsert AND pubupdate AND pubdelete AND pubtruncate
		FROM pg_publication WHERE pubname = ANY ($1)`, publications)
	if err != nil {
		return e, fmt.Errorf("source: reading the publications: %w", err)
	}
	var name string
	var r Revision
	if _, err := pgx.ForEachRow(rows, []any{&name, &r.OID, &r.Owner, &r.Row, &r.Whole}, func() error {
		e.Publications[name] = r
		return nil
	}); err != nil {
		return e, fmt.Errorf("source: reading the publications: %w", err)
	}
	return e, nil
}

// Exists reports whether a table is there.
func (c Config) Exists(ctx context.Context, conn *pgx.Conn, oid uint32) (there bool, err error) {
	if err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_class WHERE oid = $1)", oid).Scan(&there); err != nil {
		err = fmt.Errorf("source: looking for table %d: %w", oid, err)
	}
	return there, err
}

// readEntries gives the entries of each published table.
func readEntries(ctx context.Context, conn *pgx.Conn, publications []string) (map[uint32][]Entry, error) {
	sql := `WITH pub AS (SELECT oid, pubname::text AS name, puballtables FROM pg_publication WHERE pubname = ANY ($1)),
		leaf AS (SELECT DISTINCT c.oid FROM pg_publication_tables pt
			JOIN pg_namespace n ON n.nspname = pt.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = pt.tablename
			WHERE pt.pubname = ANY ($1) AND pt.schemaname <> $2),
		up AS (SELECT oid, oid AS above FROM leaf UNION SELECT leaf.oid, a.relid FROM leaf CROSS JOIN LATERAL pg_partition_ancestors(leaf.oid::regclass) AS a (relid))
		SELECT up.oid, r.oid, pub.name FROM up JOIN pg_publication_rel r ON r.prrelid = up.above JOIN pub ON pub.oid = r.prpubid
		UNION SELECT leaf.oid, pub.oid, pub.name FROM leaf CROSS JOIN pub WHERE pub.puballtables`
	if pgsession.Version(conn.PgConn()) >= 150000 {
		sql += ` UNION SELECT up.oid, s.oid, pub.name FROM up JOIN pg_class c ON c.oid = up.above JOIN pg_publication_namespace s ON s.pnnspid = c.relnamespace
			JOIN pub ON pub.oid = s.pnpubid`
	}
	rows, err := conn.Query(ctx, sql+" ORDER BY 1, 2", publications, Schema)
	if err != nil {
		return nil, fmt.Errorf("source: reading the publications' entries: %w", err)
	}
	return collectEntries(rows)
}

func collectEntries(rows pgx.Rows) (map[uint32][]Entry, error) {
	entries := make(map[uint32][]Entry)
	var table uint32
	var entry Entry
	if _, err := pgx.ForEachRow(rows, []any{&table, &entry.OID, &entry.Publication}, func() error {
		entries[table] = append(entries[table], entry)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("source: reading the publications' entries: %w", err)
	}
	return entries, nil
}
