package postgres

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// prepareTables brings tables that are about to be copied to the structure of the copy's point, as far as the books
// tell what they had: schema changes that the copy has already behind it don't come any more. Those that the
// destination lacks are made, if make says so; what they find without books stays as it is, for the fit to judge.
func (s *Sink) prepareTables(ctx context.Context, tables []sink.CopyTable, make bool) error {
	return s.withSchemas(ctx, tables, func(d *ddl) error { return d.prepare(make) })
}

// enterTables fills the books with tables that fit.
func (s *Sink) enterTables(ctx context.Context, tables []sink.CopyTable) error {
	return s.withSchemas(ctx, tables, (*ddl).baseline)
}

// withSchemas runs f on each table's structure, in a transaction of its own.
func (s *Sink) withSchemas(ctx context.Context, tables []sink.CopyTable, f func(*ddl) error) error {
	if s.config.ddl.ignore || !slices.ContainsFunc(tables, func(t sink.CopyTable) bool { return t.Schema != nil }) {
		return nil
	}
	return s.with(ctx, func(c *session, st *sink.Start) error {
		for _, t := range tables {
			if t.Schema == nil {
				continue
			}
			wait := strconv.FormatInt(s.config.ddl.wait.Milliseconds(), 10)
			if err := simple(ctx, c.pg, begin); err != nil {
				return err
			}
			if err := s.guard(ctx, c.pg, st, "FOR NO KEY UPDATE"); err != nil {
				return err
			}
			if err := simple(ctx, c.pg, ddlBegin+wait); err != nil {
				return err
			}
			d := s.newDDL(ctx, c.pg, st, t.Schema)
			d.copied = t.Point
			if err := f(d); err != nil {
				return fmt.Errorf("sink/postgres: before a copy: %w", err)
			}
			if d.ran > 0 {
				s.generation.Add(1) // in front of the commit that shows it
			}
			if err := commit(ctx, c.pg); err != nil {
				return err
			}
			c.bindings.clear()
		}
		return nil
	})
}

// prepare follows what happened to tables of which the books know, and makes others that are missing.
func (d *ddl) prepare(make bool) error {
	whole := *d.change
	known := whole
	known.Baseline, known.Tables, known.Dropped = false, nil, nil
	for _, t := range whole.Tables {
		p, err := d.books.get(tablePage, t.OID)
		if err != nil {
			return err
		}
		if p == nil {
			if err := d.makeRoom(tableOf(&t)); err != nil {
				return err
			}
		}
		live, err := d.live(t.Qualified())
		if err == nil && live == nil && p != nil {
			live, err = d.live(p.dest)
		}
		if err != nil {
			return err
		}
		switch {
		case live == nil && !make || live != nil && p == nil:
			continue
		case live == nil: // the books may know it still, from changes that had nothing to change here
			t.Made = true
		default:
			known.Dropped = append(known.Dropped, gone(p.table, &t)...)
		}
		d.anew[t.OID], d.follows[t.OID] = true, true // a copy brings its rows
		known.Tables = append(known.Tables, t)
	}
	if len(known.Tables) == 0 {
		return nil
	}
	d.change = &known
	defer func() { d.change = &whole }()
	if err := d.dropAll(); err != nil {
		return err
	}
	if err := d.types(); err != nil {
		return err
	}
	return d.tables()
}

// gone tells what a table had and has not any more, as sql_drop would have.
func gone(was, now *decode.TableShape) (out []decode.Dropped) {
	for _, o := range was.Columns {
		if o.Num > 0 && !slices.Contains(now.LeftOut, sourceName(&o)) &&
			!slices.ContainsFunc(now.Columns, func(c decode.ColumnShape) bool {
				return c.Num == o.Num || c.Num == 0 && sourceName(&c) == sourceName(&o)
			}) {
			out = append(out, decode.Dropped{Kind: "table column", OID: now.OID, Num: o.Num})
		}
	}
	for _, o := range was.Constraints {
		if !slices.ContainsFunc(now.Constraints, func(c decode.ConstraintShape) bool { return c.OID == o.OID || c.Name == o.Name }) {
			out = append(out, decode.Dropped{Kind: "table constraint", OID: o.OID})
		}
	}
	for _, o := range was.Indexes {
		if !slices.ContainsFunc(now.Indexes, func(x decode.IndexShape) bool { return x.OID == o.OID || x.Name == o.Name }) &&
			!slices.ContainsFunc(now.Constraints, func(c decode.ConstraintShape) bool { return c.Name == o.Name }) {
			out = append(out, decode.Dropped{Kind: "index", OID: o.OID})
		}
	}
	return out
}
