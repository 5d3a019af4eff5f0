package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/internal/pgsession"
)

// restorer makes a plan's entries at the destination. Each is made in a transaction of its own, with all
// that belongs to it, or is there already: so whatever is interrupted is gone on with.
type restorer struct {
	sync *schemaSync
	plan *plan
}

// restoreSettings are those that pg_dump's scripts begin with, beyond flo's own.
const restoreSettings = `SET search_path = ''; SET check_function_bodies = off; SET default_tablespace = ''; SET client_min_messages = error;`

// make makes an entry unless it is there; false: it was.
func (r *restorer) make(ctx context.Context, pg *pgconn.PgConn, e *entry) (bool, error) {
	if e.sql == "" {
		return false, nil
	}
	there, exact, err := r.exists(ctx, pg, e)
	if err != nil || there {
		return false, err
	}
	if err = r.run(ctx, pg, e); err == nil {
		return true, nil
	}
	if pg.TxStatus() != 'I' && !pg.IsClosed() {
		if rerr := simple(ctx, pg, "ROLLBACK"); rerr != nil {
			return false, errors.Join(err, rerr)
		}
	}
	if !taken(err) && pgsession.SQLState(err) != "23505" && pgsession.SQLState(err) != "42P16" {
		return false, err
	}
	if !exact {
		if taken(err) {
			return false, nil
		}
		return false, err
	}
	if there, _, lookErr := r.exists(ctx, pg, e); lookErr == nil && there {
		return false, nil // another session was faster
	}
	return false, err
}

// run runs an entry's SQL, with routed tables in disguise. Several statements of one string are one
// transaction. https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-MULTI-STATEMENT
func (r *restorer) run(ctx context.Context, pg *pgconn.PgConn, e *entry) error {
	tables := r.plan.touches(e)
	if len(tables) == 0 {
		return simple(ctx, pg, e.sql)
	}
	if err := simple(ctx, pg, begin); err != nil {
		return err
	}
	d := &disguise{}
	for _, oid := range tables {
		if err := d.put(ctx, pg, r.plan.routes[oid], oid, true); err != nil {
			return err
		}
	}
	if err := simple(ctx, pg, e.sql); err != nil {
		return err
	}
	if err := d.off(ctx, pg); err != nil {
		return err
	}
	return commit(ctx, pg)
}

// makeRouted makes a table that differs from the source's, and all its properties that don't wait for the rows.
func (r *restorer) makeRouted(ctx context.Context, pg *pgconn.PgConn, oid uint32) (made bool, err error) {
	route := r.plan.routes[oid]
	if route.merged {
		return false, nil
	}
	there, err := yes(ctx, pg, relationThere, route.dest.Schema, route.dest.Name)
	if err != nil || there {
		return false, err
	}
	if route.refusal != "" {
		return false, tableError(route.dest, ErrSchemaRoute, route.refusal)
	}
	if err := simple(ctx, pg, begin); err != nil {
		return false, err
	}
	if err := r.routed(ctx, pg, oid, route); err != nil {
		if pg.TxStatus() != 'I' && !pg.IsClosed() {
			err = errors.Join(err, simple(ctx, pg, "ROLLBACK"))
		}
		return false, err
	}
	return true, commit(ctx, pg)
}

func (r *restorer) routed(ctx context.Context, pg *pgconn.PgConn, oid uint32, route *route) error {
	there, err := yes(ctx, pg, schemaThere, route.dest.Schema)
	if err != nil {
		return err
	}
	if !there {
		if err := simple(ctx, pg, "CREATE SCHEMA "+ident(route.dest.Schema)); err != nil {
			return err
		}
	}
	d := &disguise{}
	if err := d.put(ctx, pg, route, oid, false); err != nil {
		return err
	}
	for _, e := range r.plan.routed[oid] {
		if err := simple(ctx, pg, e.sql); err != nil {
			return fmt.Errorf("%s %s: %w", e.kind, e.label, err)
		}
	}
	for _, c := range route.relaxed {
		if err := simple(ctx, pg, "ALTER TABLE "+identOf(route.source)+" ALTER COLUMN "+ident(c)+" DROP NOT NULL"); err != nil {
			return err
		}
	}
	return d.off(ctx, pg)
}

// Questions to the destination's catalog.
const (
	schemaThere   = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)"
	relationThere = `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2)`
	typeThere     = `SELECT EXISTS (SELECT FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = $1 AND t.typname = $2
		AND (t.typisdefined OR $3))`
	// A column that has a default or is an identity has what it needs.
	filledThere = `SELECT EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND a.attname = $3 AND (a.atthasdef OR a.attidentity <> ''))`
	// A table has one primary key, whatever its name.
	constraintThere = `SELECT EXISTS (SELECT FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND (k.conname = $3 OR k.contype = 'p' AND $4 = 'p'))`
	domainConstraintThere = `SELECT EXISTS (SELECT FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace
		WHERE k.conrelid = 0 AND n.nspname = $1 AND k.conname = $2)`
	triggerThere = `SELECT EXISTS (SELECT FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND t.tgname = $3)`
	ruleThere = `SELECT EXISTS (SELECT FROM pg_rewrite t JOIN pg_class c ON c.oid = t.ev_class JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND t.rulename = $3)`
	indexThere = `SELECT EXISTS (SELECT FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2 AND i.relname = $3)`
	partitionThere = `SELECT EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace m ON m.oid = p.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND m.nspname = $3 AND p.relname = $4)`
	extensionThere = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = $1)"
)

// exists asks whether an entry's object is at the destination; exact says that the answer can be relied on.
func (r *restorer) exists(ctx context.Context, pg *pgconn.PgConn, e *entry) (there, exact bool, err error) {
	sql, args := r.question(e)
	if sql == "" {
		return false, false, nil
	}
	there, err = yes(ctx, pg, sql, args...)
	return there, true, err
}

func (r *restorer) question(e *entry) (sql string, args []string) {
	if e.kind == "TABLE ATTACH" {
		child, parent := r.plan.attached(e)
		c, p := r.plan.tableName(child), r.plan.tableName(parent)
		return partitionThere, []string{c.Schema, c.Name, p.Schema, p.Name}
	}
	o := e.obj
	if o == nil {
		return "", nil
	}
	t := r.plan.tableName(o.table)
	switch e.kind {
	case "SCHEMA":
		return schemaThere, []string{o.name.Name}
	case "EXTENSION":
		return extensionThere, []string{o.name.Name}
	case "TABLE", "VIEW", "MATERIALIZED VIEW", "FOREIGN TABLE":
		return relationThere, []string{o.name.Schema, o.name.Name}
	case "SEQUENCE":
		if o.kind == "i" {
			return filledThere, []string{t.Schema, t.Name, r.plan.columnName(o.table, o.column)}
		}
		return relationThere, []string{o.name.Schema, o.name.Name}
	case "DEFAULT":
		return filledThere, []string{t.Schema, t.Name, r.plan.columnName(o.table, o.column)}
	case "TYPE", "DOMAIN", "SHELL TYPE":
		return typeThere, []string{o.name.Schema, o.name.Name, fmt.Sprint(e.kind == "SHELL TYPE")}
	case "CONSTRAINT", "FK CONSTRAINT", "CHECK CONSTRAINT":
		if o.table == 0 {
			return domainConstraintThere, []string{o.name.Schema, o.name.Name}
		}
		return constraintThere, []string{t.Schema, t.Name, o.name.Name, o.kind}
	case "INDEX":
		return indexThere, []string{t.Schema, t.Name, o.name.Name}
	case "TRIGGER":
		return triggerThere, []string{t.Schema, t.Name, o.name.Name}
	case "RULE":
		return ruleThere, []string{t.Schema, t.Name, o.name.Name}
	}
	return "", nil
}

// refused makes a failed entry an item of a SchemaError, or gives back an error that passes by itself.
func refused(e *entry, err error) (SchemaObject, error) {
	if !lasting(err) && !lacksPrivilege(err) {
		return SchemaObject{}, fmt.Errorf("sink/postgres: making %s %s: %w", strings.ToLower(e.kind), e.label, err)
	}
	return SchemaObject{Kind: strings.ToLower(e.kind), Name: e.label, Reason: err.Error(), SQL: e.sql, Err: err}, nil
}

// leftOut says why an entry is not made; "": it is.
func (r *restorer) leftOut(ctx context.Context, pg *pgconn.PgConn, e *entry, replica bool) (string, error) {
	fires := e.kind == "FK CONSTRAINT" || e.kind == "TRIGGER" || e.kind == "RULE"
	if fires && !replica {
		return "it would fire without WithReplicaRole", nil
	}
	if e.kind != "FK CONSTRAINT" || e.obj == nil {
		return "", nil
	}
	if to := r.plan.routes[e.obj.refers]; to != nil && to.merged {
		return "the table it refers to is merged with others", nil
	}
	name := r.plan.tableName(e.obj.refers)
	there, err := yes(ctx, pg, relationThere, name.Schema, name.Name)
	if err != nil || there {
		return "", err
	}
	return "the table it refers to, " + name.String() + ", is neither copied nor at the destination", nil
}

// locks are the partition trees that a foreign key locks, both its own and the one it refers to: two that
// share one are not made side by side, or they might wait for each other.
func (p *plan) locks(e *entry) []uint32 {
	if e.kind != "FK CONSTRAINT" || e.obj == nil {
		return nil
	}
	var out []uint32
	for _, oid := range []uint32{e.obj.table, e.obj.refers} {
		if t := p.catalog.tables[oid]; t != nil && !slices.Contains(out, t.root) {
			out = append(out, t.root)
		}
	}
	return out
}
