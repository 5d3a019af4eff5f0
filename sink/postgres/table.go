package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
)

// maxBindings bounds how many relation versions a session keeps looked up.
const maxBindings = 4096

// table is a destination table as its catalog describes it.
type table struct {
	name    decode.Name
	oid     string
	sql     string // quoted, qualified
	from    string // the same, with ONLY for a table that is not partitioned: its inheritance children have their own changes
	columns []column
	indexes []index

	family string // OID of the root of its partition tree, or its own
	// calm: a change to it acts on nothing else, for no trigger fires and there is no rule; it has no row
	// security, which COPY refuses; and no deferrable key, which is followed by the transaction that wrote a
	// row (see finding.fifo), and that must not be a subtransaction.
	calm bool
	// deferrable: it has a unique or exclusion constraint that may be checked at the transaction's end.
	deferrable bool
	// uniques counts the indexes and constraints that keep rows apart, of the partition that has most.
	uniques int
	// light: by its statistics, as they were when it was weighed, it is emptier than it can be.
	light   bool
	weighed time.Time
}

type column struct {
	name      string
	quoted    string
	number    int // attnum
	typ       uint32
	generated bool
	always    bool // GENERATED ALWAYS AS IDENTITY

	typeName string // for casts, without a modifier
	modifier int32  // pg_attribute.atttypmod, -1 if none
	enum     bool
	exact    bool // its collation takes no two texts for equal
	castable bool // a cast from text does what the type's input function does
}

// index is a valid btree index.
type index struct {
	primary, unique, deferrable bool
	whole                       bool // neither partial nor on expressions
	columns                     []int
	operators                   []string // equality of each column: OPERATOR("schema".=)
}

// binding is a relation version bound to its destination table.
type binding struct {
	rel     *decode.Relation
	table   *table
	columns []*column // of each relation column
	equal   []string  // of each relation column, an index's equality operator, "" if no index has it
	key     *index    // over exactly the source's key columns, unique; nil if there is none
	keyCols []int     // relation columns of the source's key
	keyOps  []string
	primary []int // relation columns of the destination's primary key, if all are there
	primOps []string
	primIdx *index
	always  []int // relation columns that are GENERATED ALWAYS identities

	// Of application by sets: all values can be cast; and rows are found by keys that their texts tell apart.
	castable, reducible bool
	keyForms            []keyForm

	programs map[string]*program

	copies, sets pause // of COPY, and of sets

	placed bool // it is where the copy went
}

// bindings keeps what a session has looked up.
type bindings struct {
	m    map[*decode.Relation]*binding
	last *binding
}

func (m *bindings) clear() {
	m.m, m.last = make(map[*decode.Relation]*binding), nil
}

func (m *bindings) get(rel *decode.Relation) *binding {
	if m.last != nil && m.last.rel == rel {
		return m.last
	}
	b := m.m[rel]
	if b != nil {
		m.last = b
	}
	return b
}

// trim keeps the bound, between batches: within one, what it needs has to stay.
func (m *bindings) trim() {
	if len(m.m) > maxBindings {
		m.clear()
	}
}

// bind looks a relation's destination up, once.
func (c *session) bind(ctx context.Context, rel *decode.Relation) (*binding, error) {
	if b := c.bindings.get(rel); b != nil {
		return b, nil
	}
	name := rel.Qualified()
	if aside, ok := c.asides.of(rel.OID); ok {
		name = aside
	}
	t, err := lookUp(ctx, c.pg, name, c.replica)
	if err != nil {
		return nil, err
	}
	b, err := bindTable(rel, t)
	if err != nil {
		return nil, err
	}
	c.bindings.m[rel] = b
	return b, nil
}

// bindTable matches a relation's columns with a table's.
func bindTable(rel *decode.Relation, t *table) (*binding, error) {
	b := &binding{rel: rel, table: t, programs: make(map[string]*program)}
	var missing []string
	for i := range rel.Columns {
		rc := &rel.Columns[i]
		at := slices.IndexFunc(t.columns, func(c column) bool { return c.name == rc.Name })
		if at < 0 {
			missing = append(missing, strconv.Quote(rc.Name))
			b.columns = append(b.columns, nil)
			continue
		}
		col := &t.columns[at]
		b.columns = append(b.columns, col)
		if col.always {
			b.always = append(b.always, i)
		}
		if rc.Key && rel.HasKey() {
			b.keyCols = append(b.keyCols, i)
		}
	}
	if missing != nil {
		return nil, tableError(t.name, ErrColumnsMissing, strings.Join(missing, ", "))
	}
	b.equal = make([]string, len(b.columns))
	for i := range t.indexes {
		b.consider(&t.indexes[i])
	}
	b.judgeSets()
	return b, nil
}

// judgeSets sees whether changes can go by sets. Identities that are always generated may only be part of
// the key, since no UPDATE can set them.
func (b *binding) judgeSets() {
	b.castable = true
	for _, c := range b.columns {
		b.castable = b.castable && (c.castable || c.generated)
	}
	b.reducible = b.castable && b.rel.HasKey() && b.key != nil && !b.key.deferrable
	for _, i := range b.keyCols {
		form := keyFormOf(b.columns[i])
		b.keyForms = append(b.keyForms, form)
		b.reducible = b.reducible && form != noForm && !b.columns[i].generated
	}
	for _, i := range b.always {
		b.reducible = b.reducible && slices.Contains(b.keyCols, i)
	}
}

// consider sees what an index is good for.
func (b *binding) consider(x *index) {
	cols := make([]int, len(x.columns))
	all := true
	for k, number := range x.columns {
		cols[k] = slices.IndexFunc(b.columns, func(c *column) bool { return c.number == number })
		if cols[k] < 0 {
			all = false
			continue
		}
		if x.whole && b.equal[cols[k]] == "" {
			b.equal[cols[k]] = x.operators[k]
		}
	}
	if !all || !x.unique || !x.whole {
		return
	}
	if x.primary {
		b.primary, b.primOps, b.primIdx = cols, x.operators, x
	}
	if len(cols) != len(b.keyCols) || (b.key != nil && !b.key.deferrable) {
		return
	}
	ops := make([]string, len(cols))
	for k, col := range b.keyCols {
		at := slices.Index(cols, col)
		if at < 0 {
			return
		}
		ops[k] = x.operators[at]
	}
	b.key, b.keyOps = x, ops
}

// lookUp reads a table's catalog entry.
func lookUp(ctx context.Context, pg *pgconn.PgConn, name decode.Name, replica bool) (*table, error) {
	// Of triggers, the others are those that refuseTriggers refuses, or that rest under the replica role.
	rows, err := query(ctx, pg, `SELECT c.oid, c.relkind, coalesce(pg_partition_root(c.oid), c.oid::regclass)::oid,
			(SELECT coalesce(max(n), 0) FROM (SELECT count(*) AS n FROM pg_index WHERE (indisunique OR indisexclusion) AND indrelid IN
				(SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid::regclass)) GROUP BY indrelid) u),
			NOT (c.relhasrules OR c.relrowsecurity OR EXISTS (SELECT FROM pg_trigger WHERE tgenabled IN ('A', 'R') AND tgrelid IN
				(SELECT c.oid UNION SELECT relid FROM pg_partition_tree(c.oid::regclass))))
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2`, name.Schema, name.Name)
	if err != nil {
		return nil, tableError(name, err, "looking it up")
	}
	if len(rows) == 0 {
		return nil, tableError(name, ErrTableMissing, "")
	}
	t := &table{
		name: name, oid: string(rows[0][0]), sql: pgx.Identifier{name.Schema, name.Name}.Sanitize(),
		family: string(rows[0][2]), calm: string(rows[0][4]) == "t",
	}
	if t.uniques, err = strconv.Atoi(string(rows[0][3])); err != nil {
		return nil, tableError(name, err, "counting its indexes")
	}
	switch string(rows[0][1]) {
	case "r":
		t.from = "ONLY " + t.sql
	case "p":
		t.from = t.sql
	default:
		return nil, tableError(name, ErrTableMissing, "what has this name is not a table")
	}
	if err := t.readColumns(ctx, pg); err != nil {
		return nil, tableError(name, err, "looking its columns up")
	}
	if err := t.readIndexes(ctx, pg); err != nil {
		return nil, tableError(name, err, "looking its indexes up")
	}
	if replica {
		return t, nil
	}
	return t, t.refuseTriggers(ctx, pg)
}

func (t *table) readColumns(ctx context.Context, pg *pgconn.PgConn) error {
	// A cast from text goes by the type's input function, unless pg_cast has another way. Of a domain, it
	// would cut a value down to the base type's modifier where the input function refuses it.
	// https://www.postgresql.org/docs/current/sql-createcast.html
	rows, err := query(ctx, pg, `SELECT attname, attnum, atttypid, attgenerated <> '', attidentity = 'a',
			format_type(atttypid, -1), atttypmod, t.typtype = 'e', coalesce(l.collisdeterministic, true),
			(t.typtype <> 'd' OR t.typtypmod < 0 AND b.typtype <> 'd') AND NOT EXISTS (SELECT FROM pg_cast
				WHERE castsource = 'text'::regtype AND casttarget = b.oid
				AND (castmethod = 'f' OR castmethod = 'b' AND p.prosrc NOT IN ('textin', 'varcharin', 'bpcharin')))
		FROM pg_attribute
		JOIN pg_type t ON t.oid = atttypid
		JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
		JOIN pg_proc p ON p.oid = b.typinput
		LEFT JOIN pg_collation l ON l.oid = attcollation
		WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, t.oid)
	if err != nil {
		return err
	}
	for _, r := range rows {
		number, err1 := strconv.Atoi(string(r[1]))
		typ, err2 := strconv.ParseUint(string(r[2]), 10, 32)
		modifier, err3 := strconv.ParseInt(string(r[6]), 10, 32)
		if err := errors.Join(err1, err2, err3); err != nil {
			return fmt.Errorf("sink/postgres: column %q: attnum %q, type %q, modifier %q: %w", r[0], r[1], r[2], r[6], err)
		}
		t.columns = append(t.columns, column{
			name: string(r[0]), quoted: pgx.Identifier{string(r[0])}.Sanitize(), number: number, typ: uint32(typ),
			generated: string(r[3]) == "t", always: string(r[4]) == "t",
			typeName: string(r[5]), modifier: int32(modifier), enum: string(r[7]) == "t", exact: string(r[8]) == "t", castable: string(r[9]) == "t",
		})
	}
	return nil
}

// readIndexes reads btree indexes with the equality operator of each column's operator family: "=" by
// itself would be looked for in pg_catalog alone, and an extension's type has its own elsewhere.
// Strategy 3 of btree is equality: https://www.postgresql.org/docs/current/xindex.html#XINDEX-STRATEGIES
func (t *table) readIndexes(ctx context.Context, pg *pgconn.PgConn) error {
	rows, err := query(ctx, pg, `SELECT i.indexrelid, i.indisprimary, i.indisunique, NOT i.indimmediate,
			i.indpred IS NULL AND i.indexprs IS NULL, k.attnum, n.nspname, o.oprname
		FROM pg_index i
		JOIN pg_class c ON c.oid = i.indexrelid
		JOIN pg_am m ON m.oid = c.relam AND m.amname = 'btree'
		CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) WITH ORDINALITY AS k (attnum, opclass, ord)
		JOIN pg_opclass oc ON oc.oid = k.opclass
		JOIN pg_amop a ON a.amopfamily = oc.opcfamily AND a.amopstrategy = 3
			AND a.amoplefttype = oc.opcintype AND a.amoprighttype = oc.opcintype
		JOIN pg_operator o ON o.oid = a.amopopr
		JOIN pg_namespace n ON n.oid = o.oprnamespace
		WHERE i.indrelid = $1 AND i.indisvalid AND i.indislive AND k.ord <= i.indnkeyatts
		ORDER BY i.indisprimary DESC, i.indexrelid, k.ord`, t.oid)
	if err != nil {
		return err
	}
	last := ""
	for _, r := range rows {
		if string(r[0]) != last {
			last = string(r[0])
			t.indexes = append(t.indexes, index{
				primary: string(r[1]) == "t", unique: string(r[2]) == "t", deferrable: string(r[3]) == "t", whole: string(r[4]) == "t",
			})
		}
		number, err := strconv.Atoi(string(r[5]))
		if err != nil {
			return fmt.Errorf("sink/postgres: index column %q: %w", r[5], err)
		}
		x := &t.indexes[len(t.indexes)-1]
		t.calm = t.calm && !(x.unique && x.deferrable)
		x.columns = append(x.columns, number)
		x.operators = append(x.operators, "OPERATOR("+pgx.Identifier{string(r[6])}.Sanitize()+"."+string(r[7])+")")
	}
	rows, err = query(ctx, pg, `SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = $1 AND condeferrable AND contype IN ('p', 'u', 'x'))`, t.oid)
	if err != nil {
		return err
	}
	t.deferrable = string(rows[0][0]) == "t"
	return nil
}

// refuseTriggers fails if something would fire that under the replica role rests.
func (t *table) refuseTriggers(ctx context.Context, pg *pgconn.PgConn) error {
	rows, err := query(ctx, pg, `WITH r AS (SELECT $1::oid AS oid UNION SELECT relid FROM pg_partition_tree($1::oid::regclass))
		SELECT 'trigger ' || quote_ident(tgname) FROM pg_trigger
			WHERE tgrelid IN (SELECT oid FROM r) AND NOT tgisinternal AND tgenabled IN ('O', 'A')
		UNION
		SELECT 'foreign key ' || quote_ident(conname) || ' of ' || conrelid::regclass FROM pg_constraint
			WHERE contype = 'f' AND (conrelid IN (SELECT oid FROM r) OR confrelid IN (SELECT oid FROM r))
		ORDER BY 1`, t.oid)
	if err != nil {
		return tableError(t.name, err, "looking its triggers up")
	}
	if len(rows) == 0 {
		return nil
	}
	names := make([]string, len(rows))
	for i, r := range rows {
		names[i] = string(r[0])
	}
	return tableError(t.name, ErrTriggers, strings.Join(names, ", "))
}
