package source

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
)

// maxTypeDepth bounds the rounds of Describe: types can't nest in a circle, but a domain over an array
// of a composite of arrays is deep.
const maxTypeDepth = 64

// Describe reads what pgoutput's Relation message leaves out: the relation's ancestors, and those of the
// types that are not built in, with all that they are made of. types are the columns' type OIDs; a type
// that is gone by now is left out. relation 0 asks for the types alone.
func Describe(ctx context.Context, conn *pgx.Conn, relation uint32, types []uint32) (decode.Description, error) {
	d := decode.Description{Relation: relation}
	if relation != 0 {
		ancestors, err := readAncestors(ctx, conn, []uint32{relation})
		if err != nil {
			return d, err
		}
		d.Ancestors = ancestors[relation]
	}
	seen := make(map[uint32]bool)
	for range maxTypeDepth {
		var next []uint32
		for _, oid := range types {
			if oid != 0 && decode.BuiltinType(oid) == nil && !seen[oid] {
				seen[oid] = true
				next = append(next, oid)
			}
		}
		if len(next) == 0 {
			return d, nil
		}
		found, err := readTypes(ctx, conn, next)
		if err != nil {
			return d, err
		}
		types = types[:0:0]
		for _, t := range found {
			if t.Elem != 0 {
				types = append(types, t.Elem)
			}
			for _, f := range t.Fields {
				types = append(types, f.Type)
			}
		}
		d.Types = append(d.Types, found...)
	}
	return d, fmt.Errorf("source: types nest deeper than %d", maxTypeDepth)
}

// readTypes reads one level of types. A multirange's element is its range.
func readTypes(ctx context.Context, conn *pgx.Conn, oids []uint32) ([]decode.TypeDescription, error) {
	multirange := "NULL"
	if pgsession.Version(conn.PgConn()) >= 140000 {
		multirange = "(SELECT r.rngtypid FROM pg_range r WHERE t.typtype = 'm' AND r.rngmultitypid = t.oid)"
	}
	rows, err := conn.Query(ctx, `
		SELECT t.oid, n.nspname::text, t.typname::text, `+typeKind+`,
			COALESCE((SELECT e.extname::text FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
				WHERE d.classid = 'pg_type'::regclass AND d.objid = COALESCE(base.oid, t.oid) AND d.deptype = 'e'
				AND d.refclassid = 'pg_extension'::regclass LIMIT 1), ''),
			COALESCE(base.typdelim, t.typdelim)::text, COALESCE(NULLIF(t.typbasetype, 0), base.oid,
				(SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid), `+multirange+`, 0::oid),
			ARRAY(SELECT l.enumlabel::text FROM pg_enum l WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder),
			ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid
				AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum),
			ARRAY(SELECT a.atttypid FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid
				AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum)
		FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
			LEFT JOIN pg_type base ON t.typtype = 'b' AND t.typcategory = 'A' AND base.oid = t.typelem
		WHERE t.oid = ANY ($1) ORDER BY t.oid`, oids)
	if err != nil {
		return nil, fmt.Errorf("source: reading types: %w", err)
	}
	types, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (decode.TypeDescription, error) {
		var (
			t      decode.TypeDescription
			kind   string
			labels []string
			fields []string
			ftypes []uint32
			delim  string
		)
		if err := row.Scan(&t.OID, &t.Schema, &t.Name, &kind, &t.Extension, &delim, &t.Elem, &labels, &fields, &ftypes); err != nil {
			return t, err
		}
		t.Kind = kindOf(kind)
		if delim != "," && delim != "" {
			t.Delimiter = delim[0]
		}
		if len(labels) > 0 {
			t.Labels = labels
		}
		for i, name := range fields {
			t.Fields = append(t.Fields, decode.FieldDescription{Name: name, Type: ftypes[i]})
		}
		return t, nil
	})
	if err != nil {
		return nil, fmt.Errorf("source: reading types: %w", err)
	}
	return types, nil
}
