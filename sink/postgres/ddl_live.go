package postgres

import (
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
)

// liveTable is a destination table as it stands, in the words of decode.TableShape.
type liveTable struct {
	oid         string
	name        decode.Name
	kind        string // pg_class.relkind
	comment     string
	parents     []string // OIDs
	partition   bool
	columns     []liveColumn
	constraints []liveConstraint
	indexes     []liveIndex
}

type liveColumn struct {
	name, typ       string
	notNull         bool
	def             *string
	identity        string
	generated       string
	comment         string
	inherited       bool
	typeOID, typmod string
}

type liveConstraint struct {
	name, kind, definition string
	inherited              bool
	comment                string
}

type liveIndex struct {
	name, definition string
	owned            bool // by a constraint
	inherited        bool
	comment          string
}

func (t *liveTable) sql() string { return identOf(t.name) }

func (t *liveTable) column(name string) *liveColumn {
	i := slices.IndexFunc(t.columns, func(c liveColumn) bool { return c.name == name })
	if i < 0 {
		return nil
	}
	return &t.columns[i]
}

func (t *liveTable) constraint(name string) *liveConstraint {
	i := slices.IndexFunc(t.constraints, func(c liveConstraint) bool { return c.name == name })
	if i < 0 {
		return nil
	}
	return &t.constraints[i]
}

func (t *liveTable) index(name string) *liveIndex {
	i := slices.IndexFunc(t.indexes, func(x liveIndex) bool { return x.name == name })
	if i < 0 {
		return nil
	}
	return &t.indexes[i]
}

// live looks a table up; nil if there is none. What else has its name is an error.
func (d *ddl) live(name decode.Name) (*liveTable, error) {
	wrap := func(err error) error { return fmt.Errorf("sink/postgres: schema change: looking up %s: %w", name, err) }
	rows, err := query(d.ctx, d.pg, `SELECT c.oid, c.relkind, coalesce(obj_description(c.oid, 'pg_class'), ''), c.relispartition,
			ARRAY(SELECT inhparent::text FROM pg_inherits WHERE inhrelid = c.oid ORDER BY inhseqno)::text
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2`, name.Schema, name.Name)
	if err != nil {
		return nil, wrap(err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	t := &liveTable{oid: string(rows[0][0]), name: name, kind: string(rows[0][1]), comment: string(rows[0][2]), partition: string(rows[0][3]) == "t"}
	if t.kind != "r" && t.kind != "p" {
		return nil, &DDLError{Object: name, Action: "looking it up", Err: ErrTableMissing, Remedy: "what has this name at the destination is not a table: rename or drop it, and start again"}
	}
	t.parents = splitOIDs(string(rows[0][4]))
	if rows, err = query(d.ctx, d.pg, `SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(e.adbin, e.adrelid),
			a.attidentity, a.attgenerated, coalesce(col_description(a.attrelid, a.attnum), ''), a.attinhcount > 0, a.atttypid, a.atttypmod
		FROM pg_attribute a LEFT JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
		WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, t.oid); err != nil {
		return nil, wrap(err)
	}
	for _, r := range rows {
		c := liveColumn{
			name: string(r[0]), typ: string(r[1]), notNull: string(r[2]) == "t", identity: string(r[4]), generated: string(r[5]),
			comment: string(r[6]), inherited: string(r[7]) == "t", typeOID: string(r[8]), typmod: string(r[9]),
		}
		if r[3] != nil {
			def := string(r[3])
			c.def = &def
		}
		t.columns = append(t.columns, c)
	}
	if rows, err = query(d.ctx, d.pg, `SELECT conname, contype, pg_get_constraintdef(oid), coninhcount > 0 OR conparentid <> 0,
			coalesce(obj_description(oid, 'pg_constraint'), '')
		FROM pg_constraint WHERE conrelid = $1 AND contype IN ('p', 'u', 'f', 'c', 'x') ORDER BY oid`, t.oid); err != nil {
		return nil, wrap(err)
	}
	for _, r := range rows {
		t.constraints = append(t.constraints, liveConstraint{
			name: string(r[0]), kind: string(r[1]), definition: string(r[2]), inherited: string(r[3]) == "t", comment: string(r[4]),
		})
	}
	if rows, err = query(d.ctx, d.pg, `SELECT c.relname, pg_get_indexdef(c.oid), EXISTS (SELECT FROM pg_constraint WHERE conindid = c.oid AND conrelid = i.indrelid AND contype IN ('p', 'u', 'x')),
			EXISTS (SELECT FROM pg_inherits WHERE inhrelid = c.oid), coalesce(obj_description(c.oid, 'pg_class'), '')
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = $1 AND (i.indisvalid OR c.relkind = 'I') ORDER BY c.oid`, t.oid); err != nil {
		return nil, wrap(err)
	}
	for _, r := range rows {
		t.indexes = append(t.indexes, liveIndex{
			name: string(r[0]), definition: string(r[1]), owned: string(r[2]) == "t", inherited: string(r[3]) == "t", comment: string(r[4]),
		})
	}
	return t, nil
}

// splitOIDs reads an array of OIDs.
func splitOIDs(array string) (out []string) {
	for _, r := range array {
		switch {
		case r >= '0' && r <= '9':
			if len(out) == 0 {
				out = append(out, "")
			}
			out[len(out)-1] += string(r)
		case r == ',':
			out = append(out, "")
		}
	}
	return out
}

// holds says why a live column can't hold all values of a type that is written as SQL; "": it can.
func (d *ddl) holds(t *liveTable, c *liveColumn, typ string) (string, error) {
	if c.typ == typ {
		return "", nil
	}
	// The server says which type it is, modifier included, when it describes a value of it.
	described := d.pg.ExecParams(d.ctx, "SELECT NULL::"+typ, nil, nil, nil, nil).Read()
	if described.Err != nil {
		return "", d.fail(t.name, fmt.Sprintf("looking up the type of column %q", c.name), "SELECT NULL::"+typ, described.Err)
	}
	fields := described.FieldDescriptions
	rows, err := query(d.ctx, d.pg, `SELECT n.nspname, t.typname, t.typtype, t.typcategory = 'A'
		FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = $1`, number(fields[0].DataTypeOID))
	if err != nil || len(rows) != 1 {
		return "", fmt.Errorf("sink/postgres: schema change: looking up type %s: %w", typ, err)
	}
	src := &decode.Type{OID: fields[0].DataTypeOID, Schema: string(rows[0][0]), Name: string(rows[0][1])}
	switch {
	case string(rows[0][2]) == "e":
		src.Kind = decode.EnumType
	case string(rows[0][3]) == "t":
		src.Kind = decode.ArrayType
	}
	types := typeTable{}
	attributes, err := types.attributes(d.ctx, d.pg, &table{name: t.name, oid: t.oid})
	if err != nil {
		return "", err
	}
	return types.holds(d.ctx, d.pg, src, fields[0].TypeModifier, attributes[c.name])
}
