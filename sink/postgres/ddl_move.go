package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
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
		switch p, free, err := a.holder(a.shape.OID, a.next.source, to); {
		case err != nil:
			return err
		case p == nil && len(a.shared) > 0:
			return nil // routed into another one from now on
		case !free:
			return &DDLError{Object: from, Action: "renaming it to " + to.String(), Err: fmt.Errorf("the destination has both"),
				Remedy: "rename or drop one of both by hand, and start again"}
		default:
			ahead, err := a.ahead(p)
			if err == nil && !ahead {
				err = a.setAside(p)
			}
			if ahead {
				a.stayAside()
			}
			if err == nil {
				a.shared, err = a.books.sharing(a.next)
			}
			if err != nil || a.next.dest == from {
				return err
			}
		}
	}
	a.moved = true
	return a.relocateOrStay(from)
}

// relocateOrStay moves the table, or sets it aside if an index of one that is ahead has the name of one of its own.
func (a *altering) relocateOrStay(from decode.Name) error {
	if from.Schema == a.next.dest.Schema {
		return a.relocate(a.page, a.next.dest)
	}
	if err := simple(a.ctx, a.pg, "SAVEPOINT flo_move"); err != nil {
		return err
	}
	err := a.relocate(a.page, a.next.dest)
	if err == nil {
		return simple(a.ctx, a.pg, "RELEASE SAVEPOINT flo_move")
	}
	var failed *DDLError
	if !errors.As(err, &failed) || pgsession.SQLState(failed.Err) != "42P07" || a.at == 0 {
		return err
	}
	if err := simple(a.ctx, a.pg, "ROLLBACK TO SAVEPOINT flo_move; RELEASE SAVEPOINT flo_move"); err != nil {
		return err
	}
	ahead, rerr := yes(a.ctx, a.pg, "SELECT EXISTS (SELECT FROM "+a.sink.books.copies+" WHERE group_name = $1 AND worker = $2 AND dest_schema = $3 AND point > $4::pg_lsn)",
		a.st.Group, a.st.Worker, a.next.dest.Schema, a.at.String())
	if rerr != nil || !ahead {
		return errors.Join(err, rerr)
	}
	if a.stayAside(); a.next.dest == from {
		return nil
	}
	return a.relocate(a.page, a.next.dest)
}

// A source's name may be another table's in the destination: the books know it as that of a table which the source has
// renamed or dropped since, or one which has got it only later. The stream and a copy tell of these in an order of their
// own, for a copy is ahead of what stands in the stream behind its marker, and without event triggers nobody hears of a
// rename before the table's next row. Then the table that is behind is set aside, in flo's schema. Its rows, told by the
// source's OID, go there (asides), until it is renamed or dropped too.

// holder gives the table that has the name of one at the source, by the books, and is another source's; nil if there is
// none. free: it may be set aside; not if several go into it, or rows of others are in it.
func (d *ddl) holder(oid uint32, source, dest decode.Name) (p *page, free bool, err error) {
	if p, err = d.books.called(tablePage, source); err != nil || p == nil || p.oid == oid || p.dest != dest {
		return nil, false, err
	}
	if d.sink.config.merges(dest) || d.keysOf(dest) != nil {
		return p, false, nil
	}
	others, err := d.books.sharing(p)
	return p, !slices.ContainsFunc(others, func(q *page) bool { return q.oid != oid }), err
}

// makeRoom sets aside the table that has the name of one that is about to be copied, if it is one that the group
// has copied too, and nothing else of it is there to come, or one without rows.
func (d *ddl) makeRoom(t *page) error {
	p, free, err := d.holder(t.oid, t.source, t.dest)
	if err != nil || p == nil || !free {
		return err
	}
	known, err := yes(d.ctx, d.pg, "SELECT EXISTS (SELECT FROM "+d.sink.books.copies+" WHERE group_name = $1 AND worker = $2 AND source = $3::oid AND incarnation = $4)",
		d.st.Group, d.st.Worker, number(p.oid), d.st.Incarnation)
	if err != nil {
		return err
	}
	if !known {
		live, err := d.live(p.dest)
		if err != nil || live == nil || live.kind != "r" {
			return err
		}
		if rows, err := yes(d.ctx, d.pg, "SELECT EXISTS (SELECT FROM "+live.sql()+")"); err != nil || rows {
			return err
		}
	}
	return d.setAside(p)
}

// ahead reports whether a table was copied as it was later than the change at hand.
func (d *ddl) ahead(p *page) (bool, error) {
	if d.at == 0 { // before a copy
		return false, nil
	}
	return yes(d.ctx, d.pg, "SELECT EXISTS (SELECT FROM "+d.sink.books.copies+" WHERE group_name = $1 AND worker = $2 AND source = $3::oid AND point > $4::pg_lsn)",
		d.st.Group, d.st.Worker, number(p.oid), d.at.String())
}

const asidePrefix = "aside_"

// asideName is where a source's table is while another one has its name.
func (d *ddl) asideName(oid uint32) decode.Name {
	return decode.Name{Schema: d.sink.config.schema, Name: asidePrefix + hashed(10, d.st.Group, d.st.Worker) + "_" + number(oid)}
}

// setAside takes a table's name for another one.
func (d *ddl) setAside(p *page) error {
	to := d.asideName(p.oid)
	d.sink.config.logger.WarnContext(d.ctx, "set a destination table aside until the stream tells what has become of it: the source has given its name to another one",
		"table", p.dest.String(), "aside", to.String())
	if err := d.relocate(p, to); err != nil {
		return err
	}
	p.source, p.dest = to, to
	return d.books.put(p)
}

// stayAside lets a table have no name of the source's, since a table that is ahead has it.
func (a *altering) stayAside() {
	to := a.asideName(a.shape.OID)
	a.next.source, a.next.dest = to, to
}

// comeBack gives tables that are set aside the names that the stream has told of last, if these, and those of their indexes, are free by now.
func (d *ddl) comeBack() error {
	for _, oid := range d.sink.asides.all() {
		p, err := d.books.get(tablePage, oid)
		if err != nil {
			return err
		}
		if p == nil || p.dest != d.asideName(oid) {
			continue
		}
		back := tableOf(p.table)
		back.awaits = p.awaits
		taken, err := d.live(back.dest)
		if err != nil {
			return err
		}
		if taken != nil {
			continue
		}
		if err := simple(d.ctx, d.pg, "SAVEPOINT flo_back"); err != nil {
			return err
		}
		if err := d.relocate(p, back.dest); err == nil {
			err = d.books.put(back)
			if err == nil {
				err = simple(d.ctx, d.pg, "RELEASE SAVEPOINT flo_back")
			}
			if err != nil {
				return err
			}
			continue
		} else if d.pg.IsClosed() || d.ctx.Err() != nil {
			return err
		}
		d.sink.asides.note(oid, p.dest, true)
		if err := simple(d.ctx, d.pg, "ROLLBACK TO SAVEPOINT flo_back; RELEASE SAVEPOINT flo_back"); err != nil {
			return err
		}
	}
	return nil
}

// asides are the tables that are set aside, by the source's OID.
type asides struct {
	mu     sync.Mutex
	tables map[uint32]decode.Name
}

func (k *asides) of(oid uint32) (decode.Name, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	n, ok := k.tables[oid]
	return n, ok
}

// all gives their OIDs.
func (k *asides) all() []uint32 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Keys(k.tables))
}

// note adds one, or removes it.
func (k *asides) note(oid uint32, name decode.Name, is bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !is {
		delete(k.tables, oid)
		return
	}
	if k.tables == nil {
		k.tables = map[uint32]decode.Name{}
	}
	k.tables[oid] = name
}

// readAsides reads them from the books.
func (s *Sink) readAsides(ctx context.Context, pg *pgconn.PgConn, st *sink.Start) error {
	rows, err := query(ctx, pg, "SELECT source, dest_schema, dest_name FROM "+s.books.structures+
		" WHERE group_name = $1 AND worker = $2 AND kind = 'table' AND dest_schema = $3 AND starts_with(dest_name, $4)",
		st.Group, laneOwner(st.Worker), s.config.schema, asidePrefix)
	if err != nil {
		return fmt.Errorf("sink/postgres: reading %s: %w", s.books.structures, err)
	}
	s.asides.mu.Lock()
	clear(s.asides.tables)
	s.asides.mu.Unlock()
	for _, r := range rows {
		oid, err := strconv.ParseUint(string(r[0]), 10, 32)
		if err != nil {
			return fmt.Errorf("sink/postgres: %s: OID %q: %w", s.books.structures, r[0], err)
		}
		s.asides.note(uint32(oid), decode.Name{Schema: string(r[1]), Name: string(r[2])}, true)
	}
	return nil
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
		d.left = append(d.left, from.Schema)
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
	d.sink.asides.note(p.oid, to, to == d.asideName(p.oid))
	return d.relocateKeys(from, to)
}
