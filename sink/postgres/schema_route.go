package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// route is how a copied table differs at the destination from what the source has.
type route struct {
	source, dest decode.Name
	renamed      [][2]string // columns: at the source, at the destination
	relaxed      []string    // columns, by their source names, that rules leave out and that must not be required
	merged       bool        // another table makes the destination table
	refusal      string      // why it can't be made
}

// plain reports whether the table is made as the source has it.
func (r *route) plain() bool {
	return r.source == r.dest && len(r.renamed) == 0 && len(r.relaxed) == 0 && !r.merged && r.refusal == ""
}

// newRoute sees what rules do to a table.
func newRoute(t sink.CopyTable, src *sourceTable) *route {
	r := &route{source: src.name, dest: t.Relation.Qualified()}
	var out, in []string
	for _, c := range t.Relation.Columns {
		out = append(out, c.Name)
	}
	var from []decode.Column
	if t.From != nil {
		from = t.From.Columns
	} else {
		for _, c := range src.columns {
			if !c.generated {
				from = append(from, decode.Column{Name: c.name})
			}
		}
	}
	for _, c := range from {
		in = append(in, c.Name)
	}
	origin := make([]string, len(out)) // of each column
	unknown := slices.DeleteFunc(slices.Clone(out), func(c string) bool { return slices.Contains(in, c) })
	switch {
	case len(unknown) == 0:
		copy(origin, out)
	case len(in) == len(out):
		copy(origin, in) // rules keep the order
		for i := range out {
			if in[i] != out[i] {
				r.renamed = append(r.renamed, [2]string{in[i], out[i]})
			}
		}
	default:
		r.refusal = fmt.Sprintf("rules both rename and leave out columns, and it cannot be told what %s come from", quoteAll(unknown))
		return r
	}
	for _, c := range src.columns {
		if c.required && !c.generated && !slices.Contains(origin, c.name) {
			r.relaxed = append(r.relaxed, c.name)
		}
	}
	if t.From == nil {
		return r
	}
	for i, c := range t.Relation.Columns {
		at := slices.IndexFunc(from, func(f decode.Column) bool { return f.Name == origin[i] })
		if was := from[at].Type; was != nil && c.Type != nil && (was.Schema != c.Type.Schema || was.Name != c.Type.Name) {
			r.refusal = fmt.Sprintf("rules turn column %q from %s into %s", c.Name, was.Name, c.Type.Name)
		}
	}
	return r
}

func quoteAll(names []string) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = fmt.Sprintf("%q", n)
	}
	return strings.Join(out, ", ")
}

func ident(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

func identOf(n decode.Name) string { return ident(n.Schema, n.Name) }

// disguise lets SQL that knows a table by its source name meet the table of a route. All of it happens
// within one transaction, so nobody else ever sees the table under that name; what has the name already steps
// aside for as long.
type disguise struct {
	undo []string
}

// put gives a destination table its source name and columns; made says that it is there.
func (d *disguise) put(ctx context.Context, pg *pgconn.PgConn, r *route, oid uint32, made bool) error {
	step := func(do, undo string) error {
		d.undo = append(d.undo, undo)
		return simple(ctx, pg, do)
	}
	if there, err := yes(ctx, pg, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", r.source.Schema); err != nil {
		return err
	} else if !there {
		if err := step("CREATE SCHEMA "+ident(r.source.Schema), "DROP SCHEMA "+ident(r.source.Schema)); err != nil {
			return err
		}
	}
	passing := "flo_" + number(oid)
	if r.source != r.dest {
		there, err := yes(ctx, pg, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND c.relname = $2)`, r.source.Schema, r.source.Name)
		if err != nil {
			return err
		}
		if there {
			aside := decode.Name{Schema: r.source.Schema, Name: passing + "_aside"}
			if err := step("ALTER TABLE "+identOf(r.source)+" RENAME TO "+ident(aside.Name), "ALTER TABLE "+identOf(aside)+" RENAME TO "+ident(r.source.Name)); err != nil {
				return err
			}
		}
	}
	// The way forward is the undoing of the way back.
	back := r.steps(passing)
	if made {
		for _, s := range slices.Backward(back) {
			if err := simple(ctx, pg, s.undo); err != nil {
				return err
			}
		}
	}
	for _, s := range slices.Backward(back) {
		d.undo = append(d.undo, s.do)
	}
	return nil
}

type doing struct{ do, undo string }

// steps lead from the source's name and columns to the destination's.
func (r *route) steps(passing string) (out []doing) {
	rename := func(table decode.Name, from, to string) doing {
		const sql = "ALTER TABLE %s RENAME COLUMN %s TO %s"
		return doing{fmt.Sprintf(sql, identOf(table), ident(from), ident(to)), fmt.Sprintf(sql, identOf(table), ident(to), ident(from))}
	}
	// By way of names that nothing has: columns may swap theirs.
	for i, c := range r.renamed {
		out = append(out, rename(r.source, c[0], fmt.Sprintf("%s_%d", passing, i)))
	}
	for i, c := range r.renamed {
		out = append(out, rename(r.source, fmt.Sprintf("%s_%d", passing, i), c[1]))
	}
	if r.source == r.dest {
		return out
	}
	name := func(schema, from, to string) doing {
		return doing{"ALTER TABLE " + ident(schema, from) + " RENAME TO " + ident(to), "ALTER TABLE " + ident(schema, to) + " RENAME TO " + ident(from)}
	}
	out = append(out, name(r.source.Schema, r.source.Name, passing))
	if r.source.Schema != r.dest.Schema {
		out = append(out, doing{
			"ALTER TABLE " + ident(r.source.Schema, passing) + " SET SCHEMA " + ident(r.dest.Schema),
			"ALTER TABLE " + ident(r.dest.Schema, passing) + " SET SCHEMA " + ident(r.source.Schema),
		})
	}
	return append(out, name(r.dest.Schema, passing, r.dest.Name))
}

// off takes all of it back.
func (d *disguise) off(ctx context.Context, pg *pgconn.PgConn) error {
	for _, sql := range slices.Backward(d.undo) {
		if err := simple(ctx, pg, sql); err != nil {
			return err
		}
	}
	return nil
}

// yes asks a question.
func yes(ctx context.Context, pg *pgconn.PgConn, sql string, args ...string) (bool, error) {
	rows, err := query(ctx, pg, sql, args...)
	if err != nil {
		return false, fmt.Errorf("sink/postgres: looking at the destination's catalog: %w", err)
	}
	return len(rows) == 1 && string(rows[0][0]) == "t", nil
}

// taken says that a name is in use: schema, table, object, function, and what unique indexes of the
// catalogs say when two sessions are at it.
func taken(err error) bool {
	switch pgsession.SQLState(err) {
	case "42P06", "42P07", "42710", "42723", "42701":
		return true
	case "23505": // text search objects aren't looked up before they are stored
		var e *pgconn.PgError
		return errors.As(err, &e) && e.SchemaName == "pg_catalog"
	}
	return false
}
