package decode_test

import (
	"strconv"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
)

// TestBuiltinTypesAreTheCatalogs compares with pg_type all built-in types that a table's column can have.
func TestBuiltinTypesAreTheCatalogs(t *testing.T) {
	db := flotest.Postgres(t)
	kinds := map[string]decode.TypeKind{"b": decode.BaseType, "a": decode.ArrayType, "r": decode.RangeType, "m": decode.MultirangeType, "p": decode.PseudoType}
	rows := db.Query(t, `SELECT t.oid, t.typname, CASE WHEN t.typcategory = 'A' AND t.typtype = 'b' AND t.typname LIKE '\_%' THEN 'a' ELSE t.typtype END,
		CASE WHEN t.typcategory = 'A' AND t.typname LIKE '\_%' THEN t.typelem WHEN r.rngtypid = t.oid THEN r.rngsubtype ELSE coalesce(r.rngtypid, 0) END
		FROM pg_type t LEFT JOIN pg_range r ON t.oid IN (r.rngtypid, r.rngmultitypid)
		LEFT JOIN pg_type e ON e.oid = t.typelem AND t.typcategory = 'A'
		WHERE t.oid < 10000 AND t.typtype NOT IN ('p', 'c') AND coalesce(e.typtype NOT IN ('c', 'p'), true)
		AND t.typname NOT IN ('pg_node_tree', 'pg_ndistinct', 'pg_dependencies', 'pg_mcv_list', 'pg_brin_bloom_summary', 'pg_brin_minmax_multi_summary')`)
	if len(rows) < 150 {
		t.Fatalf("only %d types", len(rows))
	}
	for _, r := range rows {
		oid, err := strconv.ParseUint(r[0], 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		typ := decode.BuiltinType(uint32(oid))
		if typ == nil {
			t.Errorf("%s (%s) is not known", r[1], r[0])
			continue
		}
		var elem uint32
		if typ.Elem != nil {
			elem = typ.Elem.OID
		}
		if typ.OID != uint32(oid) || typ.Schema != "pg_catalog" || typ.Name != r[1] || typ.Kind != kinds[r[2]] || strconv.Itoa(int(elem)) != r[3] {
			t.Errorf("%+v (of %d), the catalog has %q", typ, elem, r)
		}
	}
	for _, oid := range []uint32{0, 15, 9999, 10000, 16384, 1<<32 - 1} {
		if decode.BuiltinType(oid) != nil {
			t.Errorf("OID %d is a built-in type", oid)
		}
	}
}
