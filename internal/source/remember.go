package source

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
)

// Lineage is what the catalog says of a table's names now.
type Lineage struct {
	OID       uint32
	Name      decode.Name
	Ancestors []decode.Name // of a leaf partition: parent first, root last
}

// Lineages reads tables' names and ancestors. A table that is gone is left out: of its rows, which may
// yet come, the catalog no longer knows anything.
func Lineages(ctx context.Context, conn *pgx.Conn, oids []uint32) ([]Lineage, error) {
	if len(oids) == 0 {
		return nil, nil
	}
	rows, err := conn.Query(ctx, `SELECT c.oid, n.nspname::text, c.relname::text FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1) ORDER BY c.oid`, oids)
	if err != nil {
		return nil, fmt.Errorf("source: reading tables' names: %w", err)
	}
	list, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (l Lineage, err error) {
		err = row.Scan(&l.OID, &l.Name.Schema, &l.Name.Name)
		return l, err
	})
	if err != nil {
		return nil, fmt.Errorf("source: reading tables' names: %w", err)
	}
	ancestors, err := readAncestors(ctx, conn, oids)
	if err != nil {
		return nil, err
	}
	for i := range list {
		list[i].Ancestors = ancestors[list[i].OID]
	}
	return list, nil
}
