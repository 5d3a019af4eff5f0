package postgres

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
)

// dropAll drops what the command has dropped, found in the books by OID and number: what needs others before
// those.
func (d *ddl) dropAll() error {
	order := []struct {
		kind string
		drop func(*decode.Dropped) error
	}{
		{"table constraint", func(x *decode.Dropped) error { return d.dropConstraint(x, true) }},
		{"table constraint", func(x *decode.Dropped) error { return d.dropConstraint(x, false) }},
		{"index", d.dropIndex},
		{"default value", d.dropDefault},
		{"table column", func(x *decode.Dropped) error { return d.dropColumn(x, true) }},
		{"table column", func(x *decode.Dropped) error { return d.dropColumn(x, false) }},
		{"domain constraint", d.dropDomainConstraint},
		{"type", d.dropType},
		{"schema", d.dropSchema},
	}
	for _, o := range order {
		if o.kind == "domain constraint" { // tables are gone by then
			if err := d.dropTables(); err != nil {
				return err
			}
		}
		for i := range d.change.Dropped {
			if x := &d.change.Dropped[i]; x.Kind == o.kind {
				if err := o.drop(x); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// dropTables drops them together: one may need another.
func (d *ddl) dropTables() error {
	var names []decode.Name
	for i := range d.change.Dropped {
		x := &d.change.Dropped[i]
		if x.Kind != "table" {
			continue
		}
		name, drop, err := d.dropTable(x)
		if err != nil {
			return err
		}
		if drop {
			names = append(names, name)
		}
	}
	if names == nil {
		return nil
	}
	list := make([]string, len(names))
	for i, n := range names {
		list[i] = identOf(n)
	}
	return d.run(names[0], "dropping it", "DROP TABLE "+strings.Join(list, ", "))
}

// addressed gives the table of an address whose last part is not the table's.
func addressed(x *decode.Dropped) (table decode.Name, part string) {
	if len(x.Address) != 3 {
		return table, ""
	}
	return decode.Name{Schema: x.Address[0], Name: x.Address[1]}, x.Address[2]
}

// dropConstraint drops foreign keys, or the others, which these may need.
func (d *ddl) dropConstraint(x *decode.Dropped, foreign bool) error {
	p, err := d.books.with(tablePage, "constraints", x.OID)
	if err != nil {
		return err
	}
	table, name := addressed(x)
	is := func(c decode.ConstraintShape) bool { return c.OID == x.OID }
	if p == nil { // another type of a column gives another OID to foreign keys to it, and nothing is said of their tables
		is = func(c decode.ConstraintShape) bool { return c.Name == name }
		if p, err = d.books.called(tablePage, table); err != nil {
			return err
		}
		if p != nil && !slices.ContainsFunc(p.table.Constraints, is) {
			return nil // the destination never had it
		}
	}
	if p != nil {
		i := slices.IndexFunc(p.table.Constraints, is)
		name, table = p.table.Constraints[i].Name, p.dest
		if foreign {
			if p.table.Constraints[i].Kind != "f" {
				return nil
			}
		} else {
			p.table.Constraints = slices.Delete(p.table.Constraints, i, i+1)
			if err := d.books.put(p); err != nil {
				return err
			}
		}
	}
	if name == "" {
		return nil
	}
	t, err := d.live(table)
	if err != nil || t == nil {
		return err
	}
	l := t.constraint(name)
	if l == nil || l.inherited || foreign && l.kind != "f" {
		return nil
	}
	if p != nil {
		others, err := d.books.sharing(p)
		if err != nil || slices.ContainsFunc(others, func(q *page) bool {
			return slices.ContainsFunc(q.table.Constraints, func(c decode.ConstraintShape) bool { return c.Name == name })
		}) {
			return err
		}
	}
	return d.run(table, fmt.Sprintf("dropping constraint %q", name), "ALTER TABLE "+t.sql()+" DROP CONSTRAINT "+ident(name))
}

func (d *ddl) dropIndex(x *decode.Dropped) error {
	is := func(o decode.IndexShape) bool { return o.OID == x.OID }
	p, err := d.books.with(tablePage, "indexes", x.OID)
	if err == nil && p == nil { // REINDEX CONCURRENTLY gives another OID, and no event trigger sees it before PostgreSQL 17
		is = func(o decode.IndexShape) bool { return o.Name == x.Name }
		p, err = d.books.withIndex(decode.Name{Schema: x.Schema, Name: x.Name})
	}
	if err != nil || p == nil {
		return err
	}
	i := slices.IndexFunc(p.table.Indexes, is)
	name := p.table.Indexes[i].Name
	p.table.Indexes = slices.Delete(p.table.Indexes, i, i+1)
	if err := d.books.put(p); err != nil {
		return err
	}
	t, err := d.live(p.dest)
	if err != nil || t == nil {
		return err
	}
	l := t.index(name)
	if l == nil || l.owned || l.inherited {
		return nil
	}
	others, err := d.books.sharing(p)
	if err != nil || slices.ContainsFunc(others, func(q *page) bool {
		return slices.ContainsFunc(q.table.Indexes, func(o decode.IndexShape) bool { return o.Name == name })
	}) {
		return err
	}
	return d.run(p.dest, fmt.Sprintf("dropping index %q", name), "DROP INDEX "+ident(p.dest.Schema, name))
}

// dropDefault is for one that went with what it needed, a sequence or a function.
func (d *ddl) dropDefault(x *decode.Dropped) error {
	source, name := addressed(x)
	p, err := d.books.called(tablePage, source)
	if err != nil || p == nil {
		return err
	}
	i := slices.IndexFunc(p.table.Columns, func(c decode.ColumnShape) bool { return sourceName(&c) == name })
	if i < 0 || p.table.Columns[i].Generated != "" || p.table.Columns[i].Default == nil {
		return nil
	}
	for k := range d.change.Dropped { // the column itself goes
		if y := &d.change.Dropped[k]; y.Kind == "table column" && y.OID == p.oid && y.Num == p.table.Columns[i].Num || y.Kind == "table" && y.OID == p.oid {
			return nil
		}
	}
	p.table.Columns[i].Default = nil
	if err := d.books.put(p); err != nil {
		return err
	}
	t, err := d.live(p.dest)
	if err != nil || t == nil {
		return err
	}
	if l := t.column(p.table.Columns[i].Name); l == nil || l.def == nil || l.generated != "" {
		return nil
	}
	return d.run(p.dest, fmt.Sprintf("dropping the default of column %q", p.table.Columns[i].Name),
		"ALTER TABLE "+t.sql()+" ALTER COLUMN "+ident(p.table.Columns[i].Name)+" DROP DEFAULT")
}

// dropColumn drops generated columns, or the others, of which these may be made.
func (d *ddl) dropColumn(x *decode.Dropped, generated bool) error {
	p, err := d.books.get(tablePage, x.OID)
	if err != nil {
		return err
	}
	table, name := addressed(x)
	if p != nil {
		i := slices.IndexFunc(p.table.Columns, func(c decode.ColumnShape) bool { return c.Num == x.Num && x.Num > 0 })
		if i < 0 {
			i = slices.IndexFunc(p.table.Columns, func(c decode.ColumnShape) bool { return c.Num == 0 && sourceName(&c) == name })
		}
		if i < 0 {
			return nil // a rule leaves it out
		}
		if generated && p.table.Columns[i].Generated == "" {
			return nil
		}
		name, table = p.table.Columns[i].Name, p.dest
		p.table.Columns = slices.Delete(p.table.Columns, i, i+1)
		if err := d.books.put(p); err != nil {
			return err
		}
		others, err := d.books.sharing(p)
		if err != nil {
			return err
		}
		if shares(others, name) {
			return d.loosen(table, name)
		}
	}
	if name == "" || p == nil && generated {
		return nil
	}
	return d.removeColumn(table, name)
}

// removeColumn drops a column of the destination, or only what stands in the way of rows without it.
func (d *ddl) removeColumn(table decode.Name, name string) error {
	if d.sink.config.ddl.keep {
		return d.loosen(table, name)
	}
	t, err := d.live(table)
	if err != nil || t == nil {
		return err
	}
	if l := t.column(name); l == nil || l.inherited {
		return nil
	}
	return d.run(table, fmt.Sprintf("dropping column %q", name), "ALTER TABLE "+t.sql()+" DROP COLUMN "+ident(name))
}

// loosen lets rows come that have nothing for a column that stays.
func (d *ddl) loosen(table decode.Name, name string) error {
	t, err := d.live(table)
	if err != nil || t == nil {
		return err
	}
	l := t.column(name)
	if l == nil || !l.notNull || l.inherited || l.def != nil || l.identity != "" || l.generated != "" {
		return nil
	}
	return d.run(table, fmt.Sprintf("dropping NOT NULL of column %q, which is kept", name), "ALTER TABLE "+t.sql()+" ALTER COLUMN "+ident(name)+" DROP NOT NULL")
}

// dropTable forgets a table that flo fills, and reports whether it is to be dropped: not if another source table goes
// into it too.
func (d *ddl) dropTable(x *decode.Dropped) (name decode.Name, drop bool, err error) {
	p, err := d.books.get(tablePage, x.OID)
	if err != nil {
		return name, false, err
	}
	if p == nil {
		rows, err := query(d.ctx, d.pg, "SELECT dest_schema, dest_table FROM "+d.sink.books.copies+" WHERE group_name = $1 AND worker = $2 AND source = $3::oid",
			d.st.Group, d.st.Worker, number(x.OID))
		if err != nil {
			return name, false, fmt.Errorf("sink/postgres: reading %s: %w", d.sink.books.copies, err)
		}
		if len(rows) == 0 {
			d.pass("the dropping of table "+x.Schema+"."+x.Name, "nothing says that flo has filled it")
			return name, false, nil
		}
		p = &page{kind: tablePage, oid: x.OID, dest: decode.Name{Schema: string(rows[0][0]), Name: string(rows[0][1])}}
	}
	if err := d.books.remove(p); err != nil {
		return name, false, err
	}
	d.sink.asides.note(x.OID, name, false)
	others, err := d.books.sharing(p)
	if err != nil {
		return name, false, err
	}
	t, err := d.live(p.dest)
	if err != nil || t == nil {
		return name, false, err
	}
	if d.sink.config.ddl.keep || len(others) > 0 || d.keysOf(p.dest) != nil { // with rows of others
		d.pass("the dropping of table "+p.dest.String(), "it is kept")
		return name, false, nil
	}
	return p.dest, true, nil
}

func (d *ddl) dropDomainConstraint(x *decode.Dropped) error {
	p, err := d.books.with(typePage, "constraints", x.OID)
	if err != nil || p == nil {
		return err
	}
	i := slices.IndexFunc(p.typ.Constraints, func(c decode.ConstraintShape) bool { return c.OID == x.OID })
	name := p.typ.Constraints[i].Name
	p.typ.Constraints = slices.Delete(p.typ.Constraints, i, i+1)
	if err := d.books.put(p); err != nil {
		return err
	}
	there, err := yes(d.ctx, d.pg, `SELECT EXISTS (SELECT FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
		WHERE n.nspname = $1 AND t.typname = $2 AND t.typtype = 'd')`, p.dest.Schema, p.dest.Name)
	if err != nil || !there {
		return err
	}
	return d.run(p.dest, fmt.Sprintf("dropping constraint %q", name), "ALTER DOMAIN "+identOf(p.dest)+" DROP CONSTRAINT IF EXISTS "+ident(name))
}

// dropType drops a type that the books know; what still needs it here keeps it.
func (d *ddl) dropType(x *decode.Dropped) error {
	p, err := d.books.get(typePage, x.OID)
	if err != nil || p == nil {
		return err
	}
	if err := d.books.remove(p); err != nil {
		return err
	}
	return d.dropIdle("type "+p.dest.String(), "DROP TYPE IF EXISTS "+identOf(p.dest))
}

func (d *ddl) dropSchema(x *decode.Dropped) error {
	name := x.Name
	if name == "" && len(x.Address) == 1 {
		name = x.Address[0]
	}
	if name == "" || name == d.sink.config.schema || name == "public" || strings.HasPrefix(name, "pg_") {
		return nil
	}
	return d.dropIdle("schema "+name, "DROP SCHEMA IF EXISTS "+ident(name))
}

// dropIdle drops what does no harm if it stays.
func (d *ddl) dropIdle(what, sql string) error {
	if d.sink.config.ddl.keep {
		d.pass("the dropping of "+what, "it is kept")
		return nil
	}
	err := d.attempt(sql)
	if err != nil && !lastingDDL(err) {
		return fmt.Errorf("sink/postgres: schema change: dropping %s: %w", what, err)
	}
	if err != nil {
		d.pass("the dropping of "+what, err.Error())
	}
	return nil
}
