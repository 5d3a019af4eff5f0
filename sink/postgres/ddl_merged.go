package postgres

import (
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
)

// keysOf gives the key's columns of a table whose copies are merged (WithMergeCopy), nil for others.
func (d *ddl) keysOf(dest decode.Name) []string {
	return d.sink.keys.all()[keysName(d.st, dest)]
}

// relocateKeys renames a table of keys whose table was renamed. One that has the name already is of a table that is gone.
func (d *ddl) relocateKeys(from, to decode.Name) error {
	was, name, schema := keysName(d.st, from), keysName(d.st, to), d.sink.config.schema
	columns := d.sink.keys.all()[was]
	if columns == nil {
		return nil
	}
	for _, sql := range []string{
		"DROP TABLE IF EXISTS " + ident(schema, name),
		"ALTER TABLE " + ident(schema, was) + " RENAME TO " + ident(name),
		"COMMENT ON TABLE " + ident(schema, name) + " IS " + literal("flo: keys of the rows that worker "+d.st.Worker+" of group "+d.st.Group+" has brought to "+to.String()),
	} {
		if err := d.run(to, "renaming its table of keys", sql); err != nil {
			return err
		}
	}
	d.sink.keys.note(was, nil)
	d.sink.keys.note(name, columns)
	return nil
}

// followKeys lets the columns of the table of keys go with those of its table: names and types.
func (a *altering) followKeys() error {
	if a.page == nil || a.live == nil {
		return nil
	}
	name, schema := keysName(a.st, a.next.dest), a.sink.config.schema
	columns := slices.Clone(a.sink.keys.all()[name])
	if columns == nil {
		return nil
	}
	alter := func(what string) error {
		return a.run(a.next.dest, "altering its table of keys", "ALTER TABLE "+ident(schema, name)+" "+what)
	}
	var back [][2]string
	for i, c := range columns {
		at := slices.IndexFunc(a.page.table.Columns, func(o decode.ColumnShape) bool { return o.Name == c })
		if at < 0 {
			continue
		}
		o := &a.page.table.Columns[at]
		to := slices.IndexFunc(a.shape.Columns, func(n decode.ColumnShape) bool { return oldColumn(a.page.table.Columns, &n) == o })
		if to < 0 {
			continue
		}
		n := &a.shape.Columns[to]
		if n.Type != o.Type {
			if l := a.live.column(n.Name); l != nil && l.typ == n.Type {
				if err := alter("ALTER COLUMN " + ident(c) + " TYPE " + n.Type + " USING " + ident(c) + "::" + n.Type); err != nil {
					return err
				}
			}
		}
		if n.Name != c { // by way of another name: columns may swap theirs
			passing := fmt.Sprintf("flo_%d", i)
			if err := alter("RENAME COLUMN " + ident(c) + " TO " + ident(passing)); err != nil {
				return err
			}
			back = append(back, [2]string{passing, n.Name})
			columns[i] = n.Name
		}
	}
	for _, p := range back {
		if err := alter("RENAME COLUMN " + ident(p[0]) + " TO " + ident(p[1])); err != nil {
			return err
		}
	}
	if back != nil {
		a.sink.keys.note(name, columns)
	}
	return nil
}
