package source

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/names"
)

// explainPrivilege finds what a publication lacks: CREATE on the database, ownership of the tables.
func (c Config) explainPrivilege(ctx context.Context, conn *pgx.Conn, spec PublicationSpec, cause error) error {
	var (
		role, database string
		create         bool
		owner          *string // of the publication that exists already, if it is not ours
	)
	err := conn.QueryRow(ctx, `SELECT current_user::text, current_database()::text, has_database_privilege(current_database(), 'CREATE'),
		(SELECT pg_get_userbyid(p.pubowner)::text FROM pg_publication p WHERE p.pubname IN ($1, $2)
			AND NOT pg_has_role(p.pubowner, 'USAGE') LIMIT 1)`, spec.Name, spec.Name+KeylessSuffix).Scan(&role, &database, &create, &owner)
	if err != nil {
		return errors.Join(cause, err)
	}
	var grants []string
	if spec.AllTables {
		grants = append(grants, "ALTER ROLE "+names.Quote(role)+" SUPERUSER (or name the tables instead of all)")
	}
	if !create {
		grants = append(grants, fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s", names.Quote(database), names.Quote(role)))
	}
	if owner != nil {
		grants = append(grants, fmt.Sprintf("GRANT %s TO %s", names.Quote(*owner), names.Quote(role)))
	}
	oids := make([]uint32, len(spec.Tables))
	for i := range spec.Tables {
		oids[i] = spec.Tables[i].OID
	}
	rows, err := conn.Query(ctx, `SELECT pg_get_userbyid(c.relowner)::text, string_agg(c.oid::regclass::text, ', ') FROM pg_class c
		WHERE c.oid = ANY ($1) AND NOT pg_has_role(c.relowner, 'USAGE') GROUP BY 1 ORDER BY 1`, oids)
	if err != nil {
		return errors.Join(cause, err)
	}
	var tableOwner, tables string
	if _, err := pgx.ForEachRow(rows, []any{&tableOwner, &tables}, func() error {
		grants = append(grants, fmt.Sprintf("GRANT %s TO %s (a table is published by its owner only: %s)",
			names.Quote(tableOwner), names.Quote(role), tables))
		return nil
	}); err != nil {
		return errors.Join(cause, err)
	}
	return fmt.Errorf("source: %w to publish: %s: %w", ErrPrivilege, strings.Join(grants, "; "), cause)
}

// CheckSelect reports the tables that flo's role may not read, which the copy needs, with the statements
// that grant it. The error wraps ErrPrivilege.
func (c Config) CheckSelect(ctx context.Context, conn *pgx.Conn, tables []Table) error {
	oids := make([]uint32, len(tables))
	for i := range tables {
		oids[i] = tables[i].OID
	}
	rows, err := conn.Query(ctx, `SELECT n.nspname::text, c.relname::text, current_user::text, has_schema_privilege(n.oid, 'USAGE'),
		has_table_privilege(c.oid, 'SELECT') OR has_any_column_privilege(c.oid, 'SELECT')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1) ORDER BY 1, 2`, oids)
	if err != nil {
		return fmt.Errorf("source: reading privileges: %w", err)
	}
	var (
		t            Table
		role         string
		usage, reads bool
		errs         []error
		schemas      = make(map[string]bool)
	)
	if _, err := pgx.ForEachRow(rows, []any{&t.Schema, &t.Name, &role, &usage, &reads}, func() error {
		if !usage && !schemas[t.Schema] {
			schemas[t.Schema] = true
			errs = append(errs, fmt.Errorf("source: %w: GRANT USAGE ON SCHEMA %s TO %s", ErrPrivilege, names.Quote(t.Schema), names.Quote(role)))
		}
		if !reads {
			errs = append(errs, fmt.Errorf("source: %w: GRANT SELECT ON TABLE %s TO %s", ErrPrivilege, t.quoted(), names.Quote(role)))
		}
		return nil
	}); err != nil {
		return fmt.Errorf("source: reading privileges: %w", err)
	}
	return errors.Join(errs...)
}

// CheckJoin reports what this role lacks to publish a table, and to read it if it is to be copied. The error wraps
// ErrPrivilege.
func (c Config) CheckJoin(ctx context.Context, conn *pgx.Conn, t Table, copied bool) error {
	var owner, role string
	var member bool
	err := conn.QueryRow(ctx, "SELECT pg_get_userbyid(relowner)::text, current_user::text, pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = $1", t.OID).Scan(&owner, &role, &member)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // it is gone again
	}
	if err != nil {
		return fmt.Errorf("source: reading privileges: %w", err)
	}
	if !member {
		return fmt.Errorf("source: %w to publish: GRANT %s TO %s (a table is published by its owner only: %s)", ErrPrivilege, names.Quote(owner), names.Quote(role), t.quoted())
	}
	if copied {
		return c.CheckSelect(ctx, conn, []Table{t})
	}
	return nil
}
