package source

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/pgsession"
)

// readEntries gives, for each published table, the OIDs of what publishes it: its own entry in a publication, that of a
// table that it is a partition of, its schema's, or a publication FOR ALL TABLES. Such an OID never comes back, so a
// table that left the publication and returned is told from one that stayed.
// https://www.postgresql.org/docs/current/catalog-pg-publication-rel.html
func readEntries(ctx context.Context, conn *pgx.Conn, publications []string) (map[uint32][]uint32, error) {
	sql := `WITH pub AS (SELECT oid, puballtables FROM pg_publication WHERE pubname = ANY ($1)),
		leaf AS (SELECT DISTINCT c.oid FROM pg_publication_tables pt
			JOIN pg_namespace n ON n.nspname = pt.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = pt.tablename
			WHERE pt.pubname = ANY ($1) AND pt.schemaname <> $2),
		up AS (SELECT oid, oid AS above FROM leaf UNION SELECT leaf.oid, a.relid FROM leaf CROSS JOIN LATERAL pg_partition_ancestors(leaf.oid::regclass) AS a (relid))
		SELECT up.oid, r.oid FROM up JOIN pg_publication_rel r ON r.prrelid = up.above WHERE r.prpubid IN (SELECT oid FROM pub)
		UNION SELECT leaf.oid, pub.oid FROM leaf CROSS JOIN pub WHERE pub.puballtables`
	if pgsession.Version(conn.PgConn()) >= 150000 {
		sql += ` UNION SELECT up.oid, s.oid FROM up JOIN pg_class c ON c.oid = up.above JOIN pg_publication_namespace s ON s.pnnspid = c.relnamespace
			WHERE s.pnpubid IN (SELECT oid FROM pub)`
	}
	rows, err := conn.Query(ctx, sql+" ORDER BY 1, 2", publications, Schema)
	if err != nil {
		return nil, fmt.Errorf("source: reading the publications' entries: %w", err)
	}
	entries := make(map[uint32][]uint32)
	var table, entry uint32
	if _, err := pgx.ForEachRow(rows, []any{&table, &entry}, func() error {
		entries[table] = append(entries[table], entry)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("source: reading the publications' entries: %w", err)
	}
	return entries, nil
}
