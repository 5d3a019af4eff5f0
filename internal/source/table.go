package source

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pgsession"
)

// Table is a table that can be published and copied: an ordinary table or a leaf partition.
type Table struct {
	OID    uint32
	Schema string
	Name   string
	Kind   byte // pg_class.relkind: 'r'
	// Identity is the replica identity as it is set; HasIdentity says whether updates and deletes can be
	// published by it (IdentityDefault without a primary key, or with a deferrable or generated one, can't).
	Identity    decode.Identity
	HasIdentity bool
	// Columns in order, as pgoutput will describe them: without dropped ones, within the publication's column list,
	// and without generated ones but for those that a publication sends (see sentColumns). Key is set by the replica identity. The types have OID, Schema,
	// Name and Kind only; Describe has the rest.
	Columns []decode.Column
	// Ancestors of a leaf partition: parent first, root last.
	Ancestors []decode.Name
	// RowFilter of the publication, an SQL expression; "": all rows. EnsurePublication sets it.
	RowFilter string
	// FileNode is pg_class.relfilenode; a rewrite or TRUNCATE changes it.
	FileNode uint32
}

// Qualified gives the table's name.
func (t *Table) Qualified() decode.Name { return decode.Name{Schema: t.Schema, Name: t.Name} }

// quoted gives the table's name in SQL.
func (t *Table) quoted() string { return names.Qualified(t.Schema, t.Name) }

// identityIndex is the index that serves as the replica identity of c, as the server chooses it: valid,
// unique, immediate and whole (RelationGetIndexList in src/backend/utils/cache/relcache.c).
// indkey counts from 0; columns of INCLUDE stand behind the key's.
const identityIndex = `(SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indisunique
	AND i.indimmediate AND i.indpred IS NULL
	AND (c.relreplident = 'd' AND i.indisprimary OR c.relreplident = 'i' AND i.indisreplident))`

// fullWithoutGenerated is the first version that refuses UPDATE and DELETE of a published table whose
// REPLICA IDENTITY FULL holds generated columns that are not published
// (pub_contains_invalid_column in src/backend/commands/publicationcmds.c).
const fullWithoutGenerated = 180000

// unsent are the generated columns that have to be sent for updates and deletes to be published: those that identify a
// row. $2 says whether the server counts them in with FULL.
const unsent = `ARRAY(SELECT g.attname::text FROM pg_attribute g WHERE g.attrelid = c.oid AND g.attgenerated <> '' AND NOT g.attisdropped
	AND (c.relreplident = 'f' AND $2::bool OR c.relreplident <> 'f' AND g.attnum = ANY (COALESCE(` + identityIndex + `, '{}'))))`

// sendsGenerated is the first version whose publications can send stored generated columns. Before 15.2
// pg_publication_tables lists them without sending them.
const sendsGenerated = 180000

// sentColumns are the columns that publications send, by the table's OID; all that aren't generated of a table that isn't
// there.
// https://www.postgresql.org/docs/current/logical-replication-gencols.html
type sentColumns map[uint32][]string

// lacks reports whether a publication leaves out one of the columns.
func (s sentColumns) lacks(table uint32, columns []string) bool {
	return slices.ContainsFunc(columns, func(name string) bool { return !slices.Contains(s[table], name) })
}

// readTables reads the tables of these OIDs in the order of their names. One that is gone is left out.
func readTables(ctx context.Context, conn *pgx.Conn, oids []uint32, sent sentColumns) ([]Table, error) {
	if len(oids) == 0 {
		return nil, nil
	}
	rows, err := conn.Query(ctx, `
		SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relreplident::text,
			c.relreplident = 'f' OR `+identityIndex+` IS NOT NULL, `+unsent+`, c.relfilenode
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)
		ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`, oids, pgsession.Version(conn.PgConn()) >= fullWithoutGenerated)
	if err != nil {
		return nil, fmt.Errorf("source: reading the tables: %w", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (Table, error) {
		var t Table
		var kind, identity string
		var generated []string
		err := row.Scan(&t.OID, &t.Schema, &t.Name, &kind, &identity, &t.HasIdentity, &generated, &t.FileNode)
		if err == nil {
			t.Kind, t.Identity = kind[0], decode.Identity(identity[0])
			t.HasIdentity = t.HasIdentity && !sent.lacks(t.OID, generated)
		}
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("source: reading the tables: %w", err)
	}
	columns, err := readColumns(ctx, conn, oids, sent)
	if err != nil {
		return nil, err
	}
	ancestors, err := readAncestors(ctx, conn, oids)
	if err != nil {
		return nil, err
	}
	for i := range tables {
		tables[i].Columns, tables[i].Ancestors = columns[tables[i].OID], ancestors[tables[i].OID]
	}
	return tables, nil
}

// typeKind is pg_type.typtype in decode's words; arrays are base types to PostgreSQL.
const typeKind = `CASE WHEN t.typtype = 'b' AND t.typcategory = 'A' THEN 'a' ELSE t.typtype::text END`

// readColumns reads the columns that pgoutput describes.
func readColumns(ctx context.Context, conn *pgx.Conn, oids []uint32, sent sentColumns) (map[uint32][]decode.Column, error) {
	rows, err := conn.Query(ctx, `
		SELECT c.oid, a.attname::text, a.atttypmod, c.relreplident = 'f' OR a.attnum = ANY (COALESCE(`+identityIndex+`, '{}')),
			t.oid, tn.nspname::text, t.typname::text, `+typeKind+`, a.attgenerated <> ''
		FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
			JOIN pg_type t ON t.oid = a.atttypid JOIN pg_namespace tn ON tn.oid = t.typnamespace
		WHERE c.oid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
		ORDER BY c.oid, a.attnum`, oids)
	if err != nil {
		return nil, fmt.Errorf("source: reading columns: %w", err)
	}
	columns := make(map[uint32][]decode.Column, len(oids))
	types := make(map[uint32]*decode.Type)
	var (
		table uint32
		col   decode.Column
		typ   decode.Type
		kind  string
		made  bool
	)
	_, err = pgx.ForEachRow(rows, []any{&table, &col.Name, &col.Modifier, &col.Key, &typ.OID, &typ.Schema, &typ.Name, &kind, &made}, func() error {
		if made && sent.lacks(table, []string{col.Name}) {
			return nil
		}
		if types[typ.OID] == nil {
			t := typ
			t.Kind = kindOf(kind)
			types[typ.OID] = &t
		}
		col.Type = types[typ.OID]
		columns[table] = append(columns[table], col)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("source: reading columns: %w", err)
	}
	return columns, nil
}

// kindOf reads typeKind's answer.
func kindOf(s string) decode.TypeKind {
	switch s {
	case "a":
		return decode.ArrayType
	case "e":
		return decode.EnumType
	case "d":
		return decode.DomainType
	case "c":
		return decode.CompositeType
	case "r":
		return decode.RangeType
	case "m":
		return decode.MultirangeType
	case "p":
		return decode.PseudoType
	}
	return decode.BaseType
}
