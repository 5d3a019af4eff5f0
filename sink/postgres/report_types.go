package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
)

// attribute is a destination column's type, domains taken off.
type attribute struct {
	schema, name string
	kind         byte // pg_type.typtype
	category     byte // pg_type.typcategory: 'S' for strings
	oid          string
	modifier     int32
	shown        string // as the user wrote it
	required     bool   // not null, and nothing fills it
	labels       []string
	elem         string // OID of an array's element type
}

// typeTable keeps what was looked up.
type typeTable map[string]string

// attributes reads the types of a table's columns.
func (t typeTable) attributes(ctx context.Context, pg *pgconn.PgConn, dest *table) (map[string]*attribute, error) {
	rows, err := query(ctx, pg, `WITH RECURSIVE d AS (
			SELECT a.attname, a.atttypid AS typ, a.atttypmod AS typmod FROM pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
			UNION ALL SELECT d.attname, t.typbasetype, t.typtypmod FROM d JOIN pg_type t ON t.oid = d.typ AND t.typtype = 'd')
		SELECT d.attname, n.nspname, t.typname, t.typtype, t.typcategory, t.oid, d.typmod, format_type(a.atttypid, a.atttypmod),
			a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = '',
			coalesce((SELECT string_agg(enumlabel, chr(1) ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid), ''),
			CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE 0 END
		FROM d JOIN pg_type t ON t.oid = d.typ AND t.typtype <> 'd' JOIN pg_namespace n ON n.oid = t.typnamespace
		JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = d.attname AND NOT a.attisdropped`, dest.oid)
	if err != nil {
		return nil, tableError(dest.name, err, "looking its columns' types up")
	}
	out := make(map[string]*attribute, len(rows))
	for _, r := range rows {
		mod, err := strconv.ParseInt(string(r[6]), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("sink/postgres: atttypmod %q: %w", r[6], err)
		}
		out[string(r[0])] = &attribute{
			schema: string(r[1]), name: string(r[2]), kind: r[3][0], category: r[4][0], oid: string(r[5]), modifier: int32(mod),
			shown: string(r[7]), required: string(r[8]) == "t", labels: strings.Split(string(r[9]), "\x01"), elem: string(r[10]),
		}
	}
	return out, nil
}

// sourceName writes a source type as SQL, by what the destination calls it if it has it.
func (t typeTable) sourceName(ctx context.Context, pg *pgconn.PgConn, typ *decode.Type, modifier int32) (string, error) {
	if typ == nil {
		return "text", nil
	}
	key := fmt.Sprintf("%s.%s(%d)", typ.Schema, typ.Name, modifier)
	if name, ok := t[key]; ok {
		return name, nil
	}
	rows, err := query(ctx, pg, `SELECT format_type(t.oid, $3::int) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
		WHERE n.nspname = $1 AND t.typname = $2`, typ.Schema, typ.Name, strconv.Itoa(int(modifier)))
	if err != nil {
		return "", fmt.Errorf("sink/postgres: looking up type %s.%s: %w", typ.Schema, typ.Name, err)
	}
	name := ident(typ.Schema, typ.Name)
	switch {
	case len(rows) == 1:
		name = string(rows[0][0])
	case typ.Kind == decode.ArrayType && typ.Elem != nil:
		name = ident(typ.Elem.Schema, typ.Elem.Name) + "[]"
	}
	t[key] = name
	return name, nil
}

// widening are pairs of pg_catalog's types of which the second holds every value of the first, text for text;
// what PostgreSQL casts without being asked is not always that: a float8 rounds an int8.
var widening = map[string][]string{
	"int2": {"int4", "int8", "numeric", "float4", "float8"}, "int4": {"int8", "numeric", "float8"}, "int8": {"numeric"},
	"float4": {"float8", "numeric"}, "float8": {"numeric"}, "json": {"jsonb"}, "jsonb": {"json"},
	"date": {"timestamp", "timestamptz"}, "timestamp": {"timestamptz"}, "timestamptz": {"timestamp"}, "time": {"timetz"},
	"cidr": {"inet"}, "oid": {"int8"}, "macaddr": {"macaddr8"}, "bit": {"varbit"}, "varbit": {"bit"},
}

// measured are types whose modifier bounds what they hold.
var measured = []string{"varchar", "bpchar", "bit", "varbit", "numeric", "time", "timetz", "timestamp", "timestamptz", "interval"}

// holds says why a destination column can't hold all values of a source type; "": it can, as far as can be
// told. Types of users are compared by name: what their input takes nobody else knows.
func (t typeTable) holds(ctx context.Context, pg *pgconn.PgConn, src *decode.Type, modifier int32, a *attribute) (string, error) {
	for src != nil && src.Kind == decode.DomainType && src.Elem != nil && (src.Schema != a.schema || src.Name != a.name) {
		src, modifier = src.Elem, -1
		if slices.Contains(measured, src.Name) {
			return "", nil // the domain's own modifier isn't known
		}
	}
	if src == nil || a == nil {
		return "", nil
	}
	if src.Kind == decode.ArrayType && a.elem != "0" {
		return "", nil // told by the element's input, for each element
	}
	if src.Kind == decode.EnumType && a.kind == 'e' {
		return missingLabels(src, a), nil
	}
	if src.Name == a.name && (src.Schema == a.schema || src.Schema != "pg_catalog" && a.schema != "pg_catalog") {
		return narrower(src.Name, modifier, a.modifier), nil
	}
	if a.category == 'S' && a.schema == "pg_catalog" && a.name != "char" && a.name != "name" || a.name == "citext" {
		if stringName(src) {
			return narrowerText(src.Name, modifier, a), nil
		}
		if a.modifier > 0 {
			return "text of any length may come", nil
		}
		return "", nil
	}
	if src.Schema == "pg_catalog" && a.schema == "pg_catalog" {
		if slices.Contains(widening[src.Name], a.name) {
			if a.modifier >= 0 && a.name == "numeric" {
				return wholeDigits(src.Name, a.modifier), nil
			}
			return "", nil
		}
		return "another type", nil
	}
	// One of them is a user's: an assignment cast says that they are meant for each other.
	cast, err := yes(ctx, pg, `SELECT EXISTS (SELECT FROM pg_cast k JOIN pg_type t ON t.oid = k.castsource JOIN pg_namespace n ON n.oid = t.typnamespace
		WHERE n.nspname = $1 AND t.typname = $2 AND k.casttarget = $3 AND k.castcontext <> 'e')`, src.Schema, src.Name, a.oid)
	if err != nil || cast {
		return "", err
	}
	if stringName(src) && a.kind != 'c' {
		return "", nil // text that an extension's type may read
	}
	return "another type", nil
}

func stringName(t *decode.Type) bool {
	return t.Name == "citext" || t.Schema == "pg_catalog" && slices.Contains([]string{"text", "varchar", "bpchar", "name", "char"}, t.Name)
}

func missingLabels(src *decode.Type, a *attribute) string {
	var missing []string
	for _, l := range src.Labels {
		if !slices.Contains(a.labels, l) {
			missing = append(missing, fmt.Sprintf("%q", l))
		}
	}
	if missing == nil {
		return ""
	}
	return lacksLabels + strings.Join(missing, ", ")
}

const lacksLabels = "it lacks "

// mendType is the SQL that makes a column's type fit.
func mendType(alter string, c decode.Column, typ, why string) string {
	if strings.HasPrefix(why, lacksLabels) {
		return "-- ALTER TYPE " + typ + " ADD VALUE …, for each; or:\n\t\t" + alter + "ALTER COLUMN " + ident(c.Name) + " TYPE text;"
	}
	return alter + "ALTER COLUMN " + ident(c.Name) + " TYPE " + typ + " USING " + ident(c.Name) + "::text::" + typ + ";"
}

// narrower compares modifiers of one type. atttypmod of varchar, bpchar and numeric has 4 added; numeric's
// precision stands in the upper half, its scale in the lower: src/backend/utils/adt/numeric.c.
func narrower(name string, src, dest int32) string {
	if dest < 0 || src == dest || !slices.Contains(measured, name) {
		return ""
	}
	if name == "interval" {
		return "" // fields and precision share it
	}
	if src < 0 {
		if strings.HasPrefix(name, "time") && dest >= 6 {
			return ""
		}
		return "the source's has no such limit"
	}
	if name == "numeric" {
		sp, ss, dp, ds := digits(src), scale(src), digits(dest), scale(dest)
		if ds < ss || dp-ds < sp-ss {
			return "fewer digits"
		}
		if ds > ss {
			return "" // 1.0 becomes 1.00
		}
		return ""
	}
	if dest < src {
		return "shorter"
	}
	if name == "bit" {
		return "another length"
	}
	return ""
}

func digits(modifier int32) int { return int((modifier - 4) >> 16 & 0xffff) }

// scale is signed, of 11 bits: src/backend/utils/adt/numeric.c, numeric_typmod_scale.
func scale(modifier int32) int { return int(((modifier-4)&0x7ff)^1024) - 1024 }

// narrowerText compares lengths of different string types.
func narrowerText(name string, modifier int32, a *attribute) string {
	if a.modifier < 0 {
		return ""
	}
	if modifier < 0 || name == "text" || name == "citext" {
		if name == "name" && a.modifier-4 >= 63 {
			return ""
		}
		return "the source's has no such limit"
	}
	if modifier > a.modifier {
		return "shorter"
	}
	return ""
}

// wholeDigits says whether numeric(p,s) has room for an integer type.
func wholeDigits(name string, modifier int32) string {
	need := map[string]int{"int2": 5, "int4": 10, "int8": 19}[name]
	if need == 0 || digits(modifier)-scale(modifier) < need {
		return "fewer digits"
	}
	return ""
}
