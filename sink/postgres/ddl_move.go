package postgres

import (
	"fmt"

	"github.com/pgflo/flo/decode"
)

// move renames a table that the source has renamed, and moves it to another schema.
func (a *altering) move() error {
	if a.page == nil || a.page.dest == a.next.dest {
		return nil
	}
	var err error
	if a.page, err = a.books.get(tablePage, a.shape.OID); err != nil || a.page == nil { // it may have been set aside
		return err
	}
	defer func() { a.looked = -1 }()
	from, to := a.page.dest, a.next.dest
	was, err := a.ddl.live(from)
	if err != nil || was == nil {
		return err
	}
	left, err := a.books.sharing(a.page)
	if err != nil || len(left) > 0 {
		return err // others still go there
	}
	there, err := a.ddl.live(to)
	if err != nil {
		return err
	}
	if there != nil {
		free, err := a.setAside()
		if err != nil {
			return err
		}
		if !free && len(a.shared) > 0 {
			return nil // routed into another one from now on
		}
		if !free {
			return &DDLError{Object: from, Action: "renaming it to " + to.String(), Err: fmt.Errorf("the destination has both"),
				Remedy: "rename or drop one of both by hand, and start again"}
		}
	}
	a.moved = true
	return a.relocate(a.page, to)
}

// setAside gives another name to a table whose name at the source a.next has got: the source has renamed that one, or
// dropped it, and what tells of that is still to come, for nobody hears of renames in the order in which they were
// (WithDDLFromRelations), or a copy is ahead of them. It reports whether the name is free now.
func (a *altering) setAside() (bool, error) {
	p, err := a.books.called(tablePage, a.next.source)
	if err != nil || p == nil || p.oid == a.shape.OID || p.dest != a.next.dest {
		return false, err
	}
	others, err := a.books.sharing(p)
	if err != nil || len(others) > 0 {
		return false, err
	}
	to := decode.Name{Schema: p.dest.Schema, Name: "flo_aside_" + number(p.oid)}
	if err := a.relocate(p, to); err != nil {
		return false, err
	}
	p.source, p.dest = to, to
	if err := a.books.put(p); err != nil {
		return false, err
	}
	a.shared, err = a.books.sharing(a.next)
	return true, err
}

// relocate gives a source's destination table another name, and lets what the books of copies say of it, and the table
// of its keys, go along.
func (d *ddl) relocate(p *page, to decode.Name) error {
	from, at := p.dest, p.dest
	alter := func(action, what string) error { return d.run(from, action, "ALTER TABLE "+identOf(at)+" "+what) }
	if from.Schema != to.Schema {
		if err := d.makeSchema(to.Schema); err != nil {
			return err
		}
		if from.Name != to.Name { // the one may be taken there, the other one here
			passing := "flo_moving_" + number(p.oid)
			if err := alter("renaming it on the way to "+to.String(), "RENAME TO "+ident(passing)); err != nil {
				return err
			}
			at.Name = passing
		}
		if err := alter("moving it to schema "+to.Schema, "SET SCHEMA "+ident(to.Schema)); err != nil {
			return err
		}
		at.Schema = to.Schema
	}
	if at.Name != to.Name {
		if err := alter("renaming it to "+to.Name, "RENAME TO "+ident(to.Name)); err != nil {
			return err
		}
	}
	copies := d.sink.books.copies
	if _, err := exec(d.ctx, d.pg, "UPDATE "+copies+` SET dest_schema = $4, dest_table = $5
		WHERE group_name = $1 AND worker = $2 AND source = $3::oid AND dest_schema = $6 AND dest_table = $7`,
		d.st.Group, d.st.Worker, number(p.oid), to.Schema, to.Name, from.Schema, from.Name); err != nil {
		return fmt.Errorf("sink/postgres: writing %s: %w", copies, err)
	}
	return d.relocateKeys(from, to)
}
