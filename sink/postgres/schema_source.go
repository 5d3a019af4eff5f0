package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// object is what the source's catalog says of an entry.
type object struct {
	name   decode.Name // of a constraint, a trigger or a rule: its table's schema, its own name
	kind   string      // relkind or contype, "i" for an identity's sequence
	table  uint32      // of an index, a constraint, a default, an owned sequence …; 0: none
	column string      // of a default or an owned sequence
	refers uint32      // the table a foreign key refers to
}

// sourceTable is a table at the source.
type sourceTable struct {
	name    decode.Name
	parent  uint32 // of a partition
	root    uint32 // of its partition tree, or itself
	columns []sourceColumn
}

type sourceColumn struct {
	name      string
	required  bool // not null, and nothing fills it
	generated bool
}

// sourceCatalog is what of the source's catalog a plan needs.
type sourceCatalog struct {
	version int
	objects map[[2]uint32]*object // by catalog and OID
	tables  map[uint32]*sourceTable
	closed  []string // patterns of tables that this role may not lock, and that are not copied
}

// oids writes a PostgreSQL array.
func oids(list []uint32) string {
	parts := make([]string, len(list))
	for i, n := range list {
		parts[i] = number(n)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// readTables reads the tables that are to be copied, and which others pg_dump had better leave alone: it
// locks every table that it looks at, which takes a privilege.
func (c *sourceCatalog) readTables(ctx context.Context, pg *pgconn.PgConn, copied []sink.CopyTable) error {
	c.version = pgsession.Version(pg)
	list := make([]uint32, len(copied))
	for i, t := range copied {
		list[i] = t.Source
	}
	if err := c.readNamed(ctx, pg, list); err != nil {
		return err
	}
	var gone []string
	for _, t := range copied {
		if c.tables[t.Source] == nil {
			gone = append(gone, t.Relation.Qualified().String())
		}
	}
	if len(gone) == len(copied) && len(gone) > 0 { // dropped since, or it is another database
		told, err := yes(ctx, pg, "SELECT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'flo' AND p.proname = 'ddl_describe')")
		if err != nil {
			return err
		}
		if !told || slices.ContainsFunc(copied, func(t sink.CopyTable) bool { return t.Schema == nil }) {
			return fmt.Errorf("sink/postgres: %w: it has no table of the OIDs of %s", ErrSchemaSource, strings.Join(gone, ", "))
		}
	}
	rows, err := query(ctx, pg, `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.oid <> ALL ($1::oid[]) AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
		AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))`, oids(list))
	if err != nil {
		return fmt.Errorf("sink/postgres: reading the source's catalog: %w", err)
	}
	for _, r := range rows {
		c.closed = append(c.closed, patternOf(string(r[0]), string(r[1])))
	}
	return nil
}

// readNamed adds tables by their OIDs, with those above them in a partition tree.
func (c *sourceCatalog) readNamed(ctx context.Context, pg *pgconn.PgConn, list []uint32) error {
	rows, err := query(ctx, pg, `WITH RECURSIVE t AS (
			SELECT unnest($1::oid[]) AS oid UNION SELECT i.inhparent FROM t JOIN pg_class p ON p.oid = t.oid AND p.relispartition
				JOIN pg_inherits i ON i.inhrelid = t.oid)
		SELECT c.oid, n.nspname, c.relname, coalesce((SELECT inhparent FROM pg_inherits WHERE inhrelid = c.oid AND c.relispartition), 0),
			coalesce(pg_partition_root(c.oid)::oid, c.oid)
		FROM t JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace`, oids(list))
	if err != nil {
		return fmt.Errorf("sink/postgres: reading the source's catalog: %w", err)
	}
	for _, r := range rows {
		t := &sourceTable{name: decode.Name{Schema: string(r[1]), Name: string(r[2])}}
		t.parent, t.root = oidOf(r[3]), oidOf(r[4])
		if c.tables[oidOf(r[0])] == nil {
			c.tables[oidOf(r[0])] = t
		}
	}
	rows, err = query(ctx, pg, `SELECT attrelid, attname, attnotnull AND NOT atthasdef AND attidentity = '', attgenerated <> ''
		FROM pg_attribute WHERE attrelid = ANY ($1::oid[]) AND attnum > 0 AND NOT attisdropped ORDER BY attrelid, attnum`, oids(list))
	if err != nil {
		return fmt.Errorf("sink/postgres: reading the source's catalog: %w", err)
	}
	for _, r := range rows {
		if t := c.tables[oidOf(r[0])]; t != nil {
			t.columns = append(t.columns, sourceColumn{name: string(r[1]), required: string(r[2]) == "t", generated: string(r[3]) == "t"})
		}
	}
	return nil
}

// oidOf reads an OID; what is none is 0.
func oidOf(text []byte) uint32 {
	n, err := strconv.ParseUint(string(text), 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// sourceObjects gives catalog, OID, schema, name, kind, table, column and referred table of an archive's
// entries. $1 to $10 are the OIDs by catalog.
const sourceObjects = `
SELECT 1259, c.oid, n.nspname, c.relname, CASE WHEN d.deptype = 'i' THEN 'i' ELSE c.relkind::text END,
	coalesce(x.indrelid, d.refobjid, 0), coalesce(a.attname, ''), 0
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_index x ON x.indexrelid = c.oid
LEFT JOIN pg_depend d ON c.relkind = 'S' AND d.classid = 1259 AND d.objid = c.oid AND d.refclassid = 1259 AND d.deptype IN ('a', 'i')
LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE c.oid = ANY ($1::oid[])
UNION ALL SELECT 1247, t.oid, n.nspname, t.typname, t.typtype::text, 0, '', 0
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = ANY ($2::oid[])
UNION ALL SELECT 2604, d.oid, '', '', '', d.adrelid, a.attname, 0
FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE d.oid = ANY ($3::oid[])
UNION ALL SELECT 2606, c.oid, n.nspname, c.conname, c.contype::text, c.conrelid, '', c.confrelid
FROM pg_constraint c JOIN pg_namespace n ON n.oid = c.connamespace WHERE c.oid = ANY ($4::oid[])
UNION ALL SELECT 2615, oid, nspname, nspname, '', 0, '', 0 FROM pg_namespace WHERE oid = ANY ($5::oid[])
UNION ALL SELECT 2618, oid, '', rulename, '', ev_class, '', 0 FROM pg_rewrite WHERE oid = ANY ($6::oid[])
UNION ALL SELECT 2620, oid, '', tgname, '', tgrelid, '', 0 FROM pg_trigger WHERE oid = ANY ($7::oid[])
UNION ALL SELECT 3079, oid, '', extname, '', 0, '', 0 FROM pg_extension WHERE oid = ANY ($8::oid[])
UNION ALL SELECT 3381, s.oid, n.nspname, s.stxname, '', s.stxrelid, '', 0
FROM pg_statistic_ext s JOIN pg_namespace n ON n.oid = s.stxnamespace WHERE s.oid = ANY ($9::oid[])
UNION ALL SELECT 1255, oid, '', proname, '', 0, '', 0 FROM pg_proc WHERE oid = ANY ($10::oid[])`

// readObjects looks up what an archive's entries are, and the tables that they belong to.
func (c *sourceCatalog) readObjects(ctx context.Context, pg *pgconn.PgConn, a *archive) error {
	classes := []uint32{classRelation, classType, classDefault, classConstraint, classSchema, classRule, classTrigger, classExtension, classStatistics, classFunction}
	by := map[uint32][]uint32{}
	for _, e := range a.entries {
		if e.class != 0 {
			by[e.class] = append(by[e.class], e.oid)
		}
	}
	args := make([]string, len(classes))
	for i, class := range classes {
		args[i] = oids(by[class])
	}
	rows, err := query(ctx, pg, sourceObjects, args...)
	if err != nil {
		return fmt.Errorf("sink/postgres: reading the source's catalog: %w", err)
	}
	c.objects = map[[2]uint32]*object{}
	var more []uint32
	for _, r := range rows {
		o := &object{
			name: decode.Name{Schema: string(r[2]), Name: string(r[3])}, kind: string(r[4]),
			table: oidOf(r[5]), column: string(r[6]), refers: oidOf(r[7]),
		}
		c.objects[[2]uint32{oidOf(r[0]), oidOf(r[1])}] = o
		for _, t := range []uint32{o.table, o.refers} {
			if t != 0 && c.tables[t] == nil {
				more = append(more, t)
			}
		}
	}
	for _, e := range a.entries {
		e.obj = c.objects[[2]uint32{e.class, e.oid}]
		if e.kind == "TABLE" && c.tables[e.oid] == nil {
			more = append(more, e.oid)
		}
	}
	return c.readNamed(ctx, pg, more)
}
