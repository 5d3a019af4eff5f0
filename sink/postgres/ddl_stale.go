package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// A table that the source has written anew gets its rows by a fresh copy. Until then its changes are withheld, so the rows that it
// has here are old, and may be in the way of what the source makes for the new ones: a constraint, an index, a partition's bound,
// a domain's check. Then they go.

// stale are the destination's tables with such rows.
type stale struct {
	said   int // of how many tables the change at hand has said so
	tables []staleTable
}

type staleTable struct {
	name decode.Name
	oid  string
}

// inRowsWay reports whether a statement was refused because of rows: of their values, or of their size.
func inRowsWay(err error) bool {
	code := pgsession.SQLState(err)
	return strings.HasPrefix(code, "22") || strings.HasPrefix(code, "23") || code == "54000"
}

// awaiting gives the tables that await a fresh copy, those of the change at hand included; without those that have rows of others.
func (d *ddl) awaiting() ([]staleTable, error) {
	if d.way == nil || d.way.said != len(d.follows) {
		d.way = &stale{said: len(d.follows)}
		said := make([]string, 0, len(d.follows))
		for oid := range d.follows {
			said = append(said, number(oid))
		}
		var err error
		if d.way.tables, err = d.sink.awaiting(d.ctx, d.pg, d.st, said); err != nil {
			return nil, err
		}
	}
	return d.way.tables, nil
}

func (s *Sink) awaiting(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, said []string) ([]staleTable, error) {
	rows, err := query(ctx, pg, "SELECT s.dest_schema, s.dest_name, c.oid FROM "+s.books.structures+` s
		JOIN pg_namespace n ON n.nspname = s.dest_schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = s.dest_name AND c.relkind = 'r'
		WHERE s.group_name = $1 AND s.worker = $2 AND s.kind = 'table' AND (s.shape @> '{"flo_awaits": true}' OR s.source = ANY ($3::oid[]))
			AND NOT EXISTS (SELECT FROM `+s.books.structures+` o WHERE o.kind = 'table' AND o.dest_schema = s.dest_schema AND o.dest_name = s.dest_name
				AND (o.group_name, o.worker, o.source) IS DISTINCT FROM (s.group_name, s.worker, s.source))
		ORDER BY s.source`, st.Group, laneOwner(st.Worker), "{"+strings.Join(said, ",")+"}")
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: reading %s: %w", s.books.structures, err)
	}
	var out []staleTable
	for _, r := range rows {
		t := staleTable{decode.Name{Schema: string(r[0]), Name: string(r[1])}, string(r[2])}
		if !s.config.merges(t.name) && s.keys.all()[keysName(st, t.name)] == nil {
			out = append(out, t)
		}
	}
	return out, nil
}

// waits reports whether a table awaits its fresh copy.
func (d *ddl) waits(name decode.Name) (bool, error) {
	tables, err := d.awaiting()
	return slices.ContainsFunc(tables, func(t staleTable) bool { return t.name == name }), err
}

// copyFollows reports whether a fresh copy brings the table's rows, or those of all its partitions.
func (a *altering) copyFollows() (bool, error) {
	if a.next.awaits || a.live.kind != "p" {
		return a.next.awaits, nil
	}
	tables, err := a.awaiting()
	if err != nil {
		return false, err
	}
	leaves, err := query(a.ctx, a.pg, "SELECT relid::oid FROM pg_partition_tree($1::oid::regclass) WHERE isleaf", a.live.oid)
	if err != nil {
		return false, a.fail(a.next.dest, "looking for its partitions", "", err)
	}
	return !slices.ContainsFunc(leaves, func(r [][]byte) bool {
		return !slices.ContainsFunc(tables, func(t staleTable) bool { return t.oid == string(r[0]) })
	}), nil
}

// makeWay tries a statement without the rows of the table that is in its way, or without those of all where that isn't told; if they
// are not in its way, they stay.
func (d *ddl) makeWay(tables []staleTable, sql string, why error) error {
	if err := simple(d.ctx, d.pg, "SAVEPOINT flo_way"); err != nil {
		return err
	}
	err := why
	for left := tables; inRowsWay(err); {
		if len(left) == 0 {
			loosened, lerr := d.dontValidate(err)
			if lerr != nil {
				return lerr
			}
			if !loosened {
				break
			}
		}
		named := slices.IndexFunc(left, func(t staleTable) bool { return t.isNamed(err) })
		out := left
		if left = nil; named >= 0 {
			left = slices.Delete(slices.Clone(out), named, named+1)
			out = out[named : named+1]
		}
		for _, t := range out {
			if err := d.empty(t.name, t.oid, err); err != nil {
				return err
			}
		}
		err = d.attempt(sql)
	}
	if err == nil {
		return simple(d.ctx, d.pg, "RELEASE SAVEPOINT flo_way")
	}
	if d.pg.IsClosed() || d.ctx.Err() != nil {
		return err
	}
	if err := simple(d.ctx, d.pg, "ROLLBACK TO SAVEPOINT flo_way; RELEASE SAVEPOINT flo_way"); err != nil {
		return err
	}
	return why
}

// isNamed reports whether an error is about the table.
func (t staleTable) isNamed(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.SchemaName == t.name.Schema && pg.TableName == t.name.Name
}

// dontValidate makes a foreign key that the rows don't keep before the fresh copy one that is not checked for those that are there, and
// reports whether the error was about one.
func (d *ddl) dontValidate(err error) (bool, error) {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "23503" || pg.ConstraintName == "" {
		return false, nil
	}
	rows, err := query(d.ctx, d.pg, `SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND k.conname = $3 AND k.contype = 'f' AND k.convalidated AND k.conparentid = 0 AND c.relkind = 'r'`,
		pg.SchemaName, pg.TableName, pg.ConstraintName)
	if err != nil || len(rows) == 0 {
		return false, err
	}
	table := decode.Name{Schema: pg.SchemaName, Name: pg.TableName}
	sql := "ALTER TABLE " + identOf(table) + " DROP CONSTRAINT " + ident(pg.ConstraintName) + ", ADD CONSTRAINT " + ident(pg.ConstraintName) + " " + string(rows[0][0]) + " NOT VALID"
	if err := d.attempt(sql); err != nil {
		return false, d.fail(table, fmt.Sprintf("making foreign key %q NOT VALID", pg.ConstraintName), sql, err)
	}
	d.sink.config.logger.WarnContext(d.ctx, "made a foreign key NOT VALID: rows that it needs come by a fresh copy; ALTER TABLE … VALIDATE CONSTRAINT behind that",
		"table", table.String(), "constraint", pg.ConstraintName)
	return true, nil
}

// empty takes the rows out of a table that a fresh copy fills. A copy that has begun does not count with what it had brought.
func (d *ddl) empty(name decode.Name, oid string, why error) error {
	table, err := query(d.ctx, d.pg, "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1", oid)
	if err != nil || len(table) == 0 {
		return err
	}
	d.sink.config.logger.WarnContext(d.ctx, "emptied a destination table whose rows the source wrote anew; a fresh copy brings them",
		"table", name.String(), "why", why.Error())
	if _, err := exec(d.ctx, d.pg, "DELETE FROM "+d.sink.books.chunks+" c USING "+d.sink.books.copies+` p WHERE p.group_name = $1 AND p.worker = $2 AND p.dest_oid = $3::oid
		AND c.group_name = p.group_name AND c.worker = p.worker AND c.source = p.source`, d.st.Group, d.st.Worker, oid); err != nil {
		return fmt.Errorf("sink/postgres: writing %s: %w", d.sink.books.chunks, err)
	}
	sql := ident(string(table[0][0]), string(table[0][1]))
	if d.attempt("TRUNCATE TABLE "+sql) == nil {
		return nil
	}
	if err := d.attempt("DELETE FROM " + sql); err != nil {
		return d.fail(name, "emptying it before a fresh copy", "DELETE FROM "+sql, err)
	}
	return nil
}
