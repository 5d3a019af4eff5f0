package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// Errors that stand in a FitError, besides those that a single table's calls give.
var (
	// ErrTypes says that a destination column can't hold all that the source's may.
	ErrTypes error = refusal("the destination column's type cannot hold the source's: change it, or use WithTolerated(MisfitType) if the values fit")
	// ErrKeyMissing says that the destination has no unique index on the source's key.
	ErrKeyMissing error = refusal("the destination has no unique index on the source's key, so that each update and delete reads the whole table: add one, or use WithTolerated(MisfitKey)")
	// ErrColumnRequired says that the destination requires a column that the copy doesn't have.
	ErrColumnRequired error = refusal("the destination requires columns that do not come: give them a default, or let them be NULL")
)

// MisfitKind says in what way a table doesn't fit.
type MisfitKind string

// The kinds of misfits.
const (
	MisfitTable     MisfitKind = "table"     // there is none: ErrTableMissing
	MisfitColumn    MisfitKind = "column"    // missing: ErrColumnsMissing
	MisfitRequired  MisfitKind = "required"  // a column that doesn't come: ErrColumnRequired
	MisfitGenerated MisfitKind = "generated" // a column that the destination generates: ErrGenerated
	MisfitType      MisfitKind = "type"      // can't hold the source's: ErrTypes
	MisfitKey       MisfitKind = "key"       // missing: ErrKeyMissing
	MisfitPrivilege MisfitKind = "privilege" // missing: ErrPrivilege
	MisfitTriggers  MisfitKind = "triggers"  // or foreign keys that would fire: ErrTriggers
	MisfitRows      MisfitKind = "rows"      // that flo has not written: ErrNotEmpty
	MisfitMerge     MisfitKind = "merge"     // no key to merge a copy by (WithMergeCopy): ErrMergeKey
)

// Misfit is one thing in which a destination table doesn't fit what is to be copied into it.
type Misfit struct {
	Table decode.Name
	Kind  MisfitKind
	Err   error  // a *TableError
	Mend  string // SQL that mends it, for the destination
}

// FitError lists all that doesn't fit, of all tables of a copy. errors.Is finds each one's error.
type FitError struct{ Misfits []Misfit }

func (e *FitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sink/postgres: the destination does not fit in %d points, and nothing was copied:", len(e.Misfits))
	for _, m := range e.Misfits {
		fmt.Fprintf(&b, "\n\t%s\n\t\t%s", strings.TrimPrefix(m.Err.Error(), "sink/postgres: "), m.Mend)
	}
	return b.String()
}

// Unwrap gives each misfit's error.
func (e *FitError) Unwrap() []error {
	out := make([]error, len(e.Misfits))
	for i, m := range e.Misfits {
		out[i] = m.Err
	}
	return out
}

// WithTolerated lets a copy begin in spite of misfits of MisfitType or MisfitKey, which are only logged then:
// for types whose values fit, and for tables that are hardly ever updated. Other kinds would fail anyway and
// can't be tolerated. Default: none.
func WithTolerated(kinds ...MisfitKind) Option {
	return func(c *config) { c.tolerated = append(c.tolerated, kinds...) }
}

// tolerable are what WithTolerated takes.
var tolerable = [...]MisfitKind{MisfitType, MisfitKey}

// fitting looks at the tables of one copy.
type fitting struct {
	*Sink
	pg     *pgconn.PgConn
	st     *sink.Start
	coming func(source uint32) bool // a key is made behind the copy; nil: none is
	types  typeTable
	found  []Misfit
	seen   map[string]bool // tables and points that are reported
}

// fit looks at all tables and reports what doesn't fit in one error.
func (s *Sink) fit(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, tables []sink.CopyTable, coming func(uint32) bool) error {
	f := &fitting{Sink: s, pg: pg, st: st, coming: coming, types: typeTable{}, seen: map[string]bool{}}
	for _, t := range tables {
		if err := f.table(ctx, t); err != nil {
			return err
		}
	}
	return f.report(ctx)
}

// fitKeys looks at keys alone.
func (s *Sink) fitKeys(ctx context.Context, pg *pgconn.PgConn, tables []sink.CopyTable) error {
	f := &fitting{Sink: s, pg: pg, types: typeTable{}, seen: map[string]bool{}}
	for _, t := range tables {
		dest, err := lookUp(ctx, pg, t.Relation.Qualified(), true)
		if err != nil {
			return err
		}
		f.key(t, dest)
	}
	return f.report(ctx)
}

// report makes the error, if there is anything to report.
func (f *fitting) report(ctx context.Context) error {
	f.found = slices.DeleteFunc(f.found, func(m Misfit) bool {
		if !slices.Contains(f.config.tolerated, m.Kind) {
			return false
		}
		f.config.logger.WarnContext(ctx, "the destination does not fit", "table", m.Table.String(), "error", m.Err, "mend", m.Mend)
		return true
	})
	if len(f.found) == 0 {
		return nil
	}
	return &FitError{Misfits: f.found}
}

func (f *fitting) add(kind MisfitKind, name decode.Name, err error, detail, mend string) {
	key := string(kind) + "\x00" + name.Schema + "\x00" + name.Name + "\x00" + detail
	if f.seen[key] {
		return // several source tables go into this one
	}
	f.seen[key] = true
	f.found = append(f.found, Misfit{Table: name, Kind: kind, Err: &TableError{Table: name, Err: err, Detail: detail}, Mend: mend})
}

func (f *fitting) table(ctx context.Context, t sink.CopyTable) error {
	name := t.Relation.Qualified()
	dest, err := lookUp(ctx, f.pg, name, true)
	if errors.Is(err, ErrTableMissing) {
		sql, err := f.createTable(ctx, t.Relation)
		if err != nil {
			return err
		}
		f.add(MisfitTable, name, ErrTableMissing, "", sql)
		return nil
	}
	if err != nil {
		return err
	}
	if err := f.columns(ctx, t, dest); err != nil {
		return err
	}
	merged := f.config.merges(name)
	switch {
	case merged:
		if err := f.mergeKey(ctx, t, dest); err != nil {
			return err
		}
	case f.coming == nil || !f.coming(t.Source):
		f.key(t, dest)
	}
	readable, err := f.privileges(ctx, t, dest)
	if err != nil {
		return err
	}
	if err := f.triggers(ctx, dest); err != nil {
		return err
	}
	if !readable || merged {
		return nil
	}
	return f.rows(ctx, t, dest)
}

// columns looks for those that are missing, generated, of another type, or required and not there.
func (f *fitting) columns(ctx context.Context, t sink.CopyTable, dest *table) error {
	alter := "ALTER TABLE " + dest.sql + " "
	attributes, err := f.types.attributes(ctx, f.pg, dest)
	if err != nil {
		return err
	}
	for _, c := range t.Relation.Columns {
		at := slices.IndexFunc(dest.columns, func(d column) bool { return d.name == c.Name })
		typ, err := f.types.sourceName(ctx, f.pg, c.Type, c.Modifier)
		if err != nil {
			return err
		}
		switch {
		case at < 0:
			f.add(MisfitColumn, dest.name, ErrColumnsMissing, fmt.Sprintf("%q", c.Name), alter+"ADD COLUMN "+ident(c.Name)+" "+typ+";")
		case dest.columns[at].generated && f.config.merges(dest.name): // left out
		case dest.columns[at].generated:
			f.add(MisfitGenerated, dest.name, ErrGenerated, fmt.Sprintf("%q", c.Name), alter+"ALTER COLUMN "+ident(c.Name)+" DROP EXPRESSION;")
		default:
			a := attributes[c.Name]
			why, err := f.types.holds(ctx, f.pg, c.Type, c.Modifier, a)
			if err != nil {
				return err
			}
			if why != "" {
				f.add(MisfitType, dest.name, ErrTypes, fmt.Sprintf("%q is %s, the source's %s: %s", c.Name, a.shown, typ, why),
					mendType(alter, c, typ, why))
			}
		}
	}
	for _, d := range dest.columns {
		if a := attributes[d.name]; a != nil && a.required && t.Relation.Column(d.name) < 0 {
			f.add(MisfitRequired, dest.name, ErrColumnRequired, fmt.Sprintf("%q", d.name), alter+"ALTER COLUMN "+d.quoted+" DROP NOT NULL;")
		}
	}
	return nil
}

// key looks for a unique index on the source's key.
func (f *fitting) key(t sink.CopyTable, dest *table) {
	if !t.Relation.HasKey() {
		return
	}
	var names, quoted []string
	numbers := map[int]bool{}
	for _, c := range t.Relation.Columns {
		if !c.Key {
			continue
		}
		names, quoted = append(names, fmt.Sprintf("%q", c.Name)), append(quoted, ident(c.Name))
		if at := slices.IndexFunc(dest.columns, func(d column) bool { return d.name == c.Name }); at >= 0 {
			numbers[dest.columns[at].number] = true
		}
	}
	what := " ADD PRIMARY KEY ("
	for _, x := range dest.indexes {
		if x.primary {
			what = " ADD UNIQUE ("
		}
		if x.unique && x.whole && len(x.columns) == len(names) && len(numbers) == len(names) &&
			!slices.ContainsFunc(x.columns, func(n int) bool { return !numbers[n] }) {
			return
		}
	}
	f.add(MisfitKey, dest.name, ErrKeyMissing, strings.Join(names, ", "), "ALTER TABLE "+dest.sql+what+strings.Join(quoted, ", ")+");")
}

// mergeKey looks for what copies are merged by, and for the right to make the tables that it takes.
func (f *fitting) mergeKey(ctx context.Context, t sink.CopyTable, dest *table) error {
	b, err := bindTable(t.Relation, dest)
	if err != nil {
		return nil // columns are missing, which is reported
	}
	if _, err = b.mergeKey(); err != nil {
		var e *TableError
		errors.As(err, &e)
		mend := "-- ALTER TABLE " + dest.sql + " ADD PRIMARY KEY (…), of columns that are copied"
		if len(b.keyCols) > 0 {
			mend = "ALTER TABLE " + dest.sql + " ADD UNIQUE (" + (&mergeKey{cols: b.keyCols}).columns(b, "") + ");"
		}
		f.add(MisfitMerge, dest.name, ErrMergeKey, e.Detail, mend)
	}
	rows, err := query(ctx, f.pg, "SELECT current_user, has_schema_privilege($1, 'CREATE')", f.config.schema)
	if err != nil {
		return tableError(dest.name, err, "looking its privileges up")
	}
	if role := ident(string(rows[0][0])); string(rows[0][1]) != "t" {
		f.add(MisfitPrivilege, dest.name, ErrPrivilege, "WithMergeCopy makes tables in schema "+f.books.schema, "GRANT USAGE, CREATE ON SCHEMA "+f.books.schema+" TO "+role+";")
	}
	return nil
}

// privileges looks at what the role may do; readable says that it may read the table. A privilege on some
// columns counts: which ones are needed shows when they are used.
func (f *fitting) privileges(ctx context.Context, t sink.CopyTable, dest *table) (readable bool, err error) {
	rows, err := query(ctx, f.pg, `SELECT current_user, has_schema_privilege($1, 'USAGE'), has_any_column_privilege($2::oid, 'SELECT'),
			has_any_column_privilege($2::oid, 'INSERT'), has_any_column_privilege($2::oid, 'UPDATE'), has_table_privilege($2::oid, 'DELETE'),
			row_security_active($2::oid)`, dest.name.Schema, dest.oid)
	if err != nil {
		return false, tableError(dest.name, err, "looking its privileges up")
	}
	is := func(i int) bool { return string(rows[0][i]) == "t" }
	role := ident(string(rows[0][0]))
	if !is(1) {
		f.add(MisfitPrivilege, dest.name, ErrPrivilege, "USAGE of its schema", "GRANT USAGE ON SCHEMA "+ident(dest.name.Schema)+" TO "+role+";")
	}
	changes := t.Relation.HasKey() || t.Relation.Identity == decode.IdentityFull
	var lacks []string
	for i, p := range []string{"SELECT", "INSERT", "UPDATE", "DELETE"} {
		if !is(2+i) && (changes || i < 2) {
			lacks = append(lacks, p)
		}
	}
	if lacks != nil {
		list := strings.Join(lacks, ", ")
		f.add(MisfitPrivilege, dest.name, ErrPrivilege, list, "GRANT "+list+" ON TABLE "+dest.sql+" TO "+role+";")
	}
	if is(6) {
		f.add(MisfitPrivilege, dest.name, ErrPrivilege, "row-level security applies to it", "ALTER ROLE "+role+" BYPASSRLS;")
	}
	return is(1) && is(2) && !is(6), nil
}

// triggers looks for what would fire.
func (f *fitting) triggers(ctx context.Context, dest *table) error {
	if f.config.replica {
		return nil
	}
	rows, err := query(ctx, f.pg, `WITH r AS (SELECT $1::oid AS oid UNION SELECT relid FROM pg_partition_tree($1::oid::regclass))
		SELECT 'trigger ' || quote_ident(tgname), format('ALTER TABLE %s DISABLE TRIGGER %I;', tgrelid::regclass, tgname) FROM pg_trigger
			WHERE tgrelid IN (SELECT oid FROM r) AND NOT tgisinternal AND tgenabled IN ('O', 'A')
		UNION
		SELECT 'foreign key ' || quote_ident(conname) || ' of ' || conrelid::regclass, format('ALTER TABLE %s DROP CONSTRAINT %I;', conrelid::regclass, conname)
			FROM pg_constraint
			WHERE contype = 'f' AND conparentid = 0 AND (conrelid IN (SELECT oid FROM r) OR confrelid IN (SELECT oid FROM r))
		ORDER BY 1`, dest.oid)
	if err != nil {
		return tableError(dest.name, err, "looking its triggers up")
	}
	for _, r := range rows {
		f.add(MisfitTriggers, dest.name, ErrTriggers, string(r[0]), string(r[1]))
	}
	if len(rows) > 0 {
		return nil
	}
	// What a partition has from the table above it is found by the same rule as when it is written to.
	if err := dest.refuseTriggers(ctx, f.pg); errors.Is(err, ErrTriggers) {
		var e *TableError
		errors.As(err, &e)
		f.add(MisfitTriggers, dest.name, ErrTriggers, e.Detail, "-- drop them where they are declared, on the partitioned table above")
	} else if err != nil {
		return err
	}
	return nil
}

// rows looks for those that flo has not written.
func (f *fitting) rows(ctx context.Context, t sink.CopyTable, dest *table) error {
	if f.config.truncate {
		return nil
	}
	foreign, err := yes(ctx, f.pg, "SELECT EXISTS (SELECT FROM "+dest.from+") AND NOT EXISTS (SELECT FROM "+f.books.copies+` WHERE group_name = $1 AND worker = $2
		AND (dest_schema = $3 AND dest_table = $4 OR dest_oid = $5::oid))`, f.st.Group, f.st.Worker, dest.name.Schema, dest.name.Name, dest.oid)
	if err != nil {
		return err
	}
	if foreign && !t.Resumed { // that one has an error of its own
		f.add(MisfitRows, dest.name, ErrNotEmpty, "", "TRUNCATE "+dest.sql+";")
	}
	return nil
}

// createTable writes a table as plainly as it can be.
func (f *fitting) createTable(ctx context.Context, rel *decode.Relation) (string, error) {
	var parts, key []string
	for _, c := range rel.Columns {
		typ, err := f.types.sourceName(ctx, f.pg, c.Type, c.Modifier)
		if err != nil {
			return "", err
		}
		parts = append(parts, ident(c.Name)+" "+typ)
		if c.Key && rel.HasKey() {
			key = append(key, ident(c.Name))
		}
	}
	if key != nil {
		parts = append(parts, "PRIMARY KEY ("+strings.Join(key, ", ")+")")
	}
	return "CREATE TABLE " + identOf(rel.Qualified()) + " (" + strings.Join(parts, ", ") + ");", nil
}
