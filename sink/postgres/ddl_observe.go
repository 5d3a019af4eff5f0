package postgres

import (
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
)

// observe follows what Relation messages show: columns by name that were added, dropped or given another type.
func (d *ddl) observe() error {
	if err := d.types(); err != nil {
		return err
	}
	for i := range d.change.Tables {
		a, err := d.altering(&d.change.Tables[i])
		if err != nil {
			return err
		}
		if a.page != nil && a.page.dest != a.next.dest {
			if err := a.move(); err != nil {
				return err
			}
			if err := a.look(); err != nil {
				return err
			}
		}
		switch {
		case a.live != nil:
			err = a.observe()
		case a.shape.Made: // its rows come before the command that made it has ended: CREATE TABLE … AS
			if err = a.create(); err == nil {
				err = a.restore()
			}
		}
		if err == nil {
			err = a.look()
		}
		if err == nil {
			err = a.followKeys()
		}
		if err != nil {
			return err
		}
		if err := d.books.put(a.observed()); err != nil {
			return err
		}
	}
	return nil
}

func (a *altering) observe() error {
	if err := a.disguise(); err != nil {
		return err
	}
	if err := a.notMistaken(); err != nil {
		return err
	}
	if _, err := a.toRoot(); err != nil {
		return err
	}
	for i := range a.shape.Columns {
		c := &a.shape.Columns[i]
		l := a.live.column(sourceName(c))
		if l != nil {
			if err := a.observeType(c, l); err != nil {
				return err
			}
			continue
		}
		err := a.alter(fmt.Sprintf("adding column %q", c.Name), "ADD COLUMN "+ident(sourceName(c))+" "+typeSQL(c))
		if err != nil {
			return err
		}
	}
	if err := a.restore(); err != nil {
		return err
	}
	dest, err := a.toRoot()
	if err != nil {
		return err
	}
	for _, o := range a.gone() {
		if shares(a.shared, o.Name) {
			if err := a.loosen(dest, o.Name); err != nil {
				return err
			}
		} else if err := a.removeColumn(dest, o.Name); err != nil {
			return err
		}
	}
	return nil
}

// toRoot goes from a partition to the table that has its columns, and gives that one's name.
func (a *altering) toRoot() (decode.Name, error) {
	if !a.live.partition {
		return a.next.dest, nil
	}
	rows, err := query(a.ctx, a.pg, `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_partition_root($1::oid::regclass)`, a.live.oid)
	if err != nil || len(rows) != 1 {
		return a.next.dest, a.fail(a.next.dest, "looking for its partitioned table", "", err)
	}
	root := decode.Name{Schema: string(rows[0][0]), Name: string(rows[0][1])}
	live, err := a.ddl.live(root)
	if err != nil || live == nil {
		return a.next.dest, a.fail(root, "looking it up", "", err)
	}
	a.live = live
	return root, nil
}

func (a *altering) observeType(c *decode.ColumnShape, l *liveColumn) error {
	retyped, err := a.retype(c, a.was(c), l)
	if err != nil || !retyped || l.def == nil {
		return err
	}
	// The source's default is not known: the destination's stays if it fits.
	sql := "ALTER TABLE " + a.live.sql() + " ALTER COLUMN " + ident(l.name) + " SET DEFAULT " + *l.def
	if err := a.attempt(sql); err != nil {
		if !lastingDDL(err) {
			return a.fail(a.next.dest, "setting the default again", sql, err)
		}
		a.leaveOut("default", a.next.dest.String()+"."+l.name, "it does not fit the column's new type", sql, err)
	}
	return nil
}

// gone gives the columns that the books have and the source does not any more. Generated ones may never be in
// a Relation message.
func (a *altering) gone() (out []decode.ColumnShape) {
	if a.page == nil {
		return nil
	}
	for _, o := range a.page.table.Columns {
		if o.Generated == "" && !slices.Contains(a.shape.LeftOut, sourceName(&o)) &&
			!slices.ContainsFunc(a.shape.Columns, func(c decode.ColumnShape) bool { return sourceName(&c) == sourceName(&o) }) {
			out = append(out, o)
		}
	}
	return out
}

// observed is the page with what is known of the table from before.
func (a *altering) observed() *page {
	if a.page == nil {
		return a.next
	}
	shape := *a.page.table
	shape.Schema, shape.Name, shape.Source, shape.LeftOut = a.shape.Schema, a.shape.Name, a.shape.Source, a.shape.LeftOut
	gone := a.gone()
	shape.Columns = slices.DeleteFunc(slices.Clone(shape.Columns), func(o decode.ColumnShape) bool {
		return slices.ContainsFunc(gone, func(g decode.ColumnShape) bool { return g.Name == o.Name })
	})
	for _, c := range a.shape.Columns {
		i := slices.IndexFunc(shape.Columns, func(o decode.ColumnShape) bool { return sourceName(&o) == sourceName(&c) })
		if i < 0 {
			shape.Columns = append(shape.Columns, c)
			continue
		}
		shape.Columns[i].Name, shape.Columns[i].Source, shape.Columns[i].Type = c.Name, c.Source, c.Type
	}
	p := tableOf(&shape)
	p.awaits = a.next.awaits
	return p
}
