package source

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
)

// TableError is one name that can't be published; it wraps ErrTable.
type TableError struct {
	Pattern string // as it was given
	Reason  string // what is wrong, and what to do
}

// Error names the pattern and the reason.
func (e *TableError) Error() string {
	return fmt.Sprintf("source: %s: %s: %s", ErrTable, e.Pattern, e.Reason)
}

// Unwrap gives ErrTable.
func (e *TableError) Unwrap() error { return ErrTable }

// class is a relation of any kind that a name may mean.
type class struct {
	OID         uint32
	Schema      string
	Name        string
	Kind        string // pg_class.relkind
	Persistence string // pg_class.relpersistence
	Parent      uint32 // of a partition, else 0
	Extension   bool   // an extension owns it
}

// ResolveTables finds the tables that the patterns name: those of include (none: every ordinary table)
// without those of exclude. Partitioned tables stand for their leaves; a pattern matches a leaf by its
// own name and by each ancestor's. Tables of system schemas and of schema flo, temporary and unlogged
// ones, foreign tables and views are left out; so are, without include, tables of extensions.
//
// A pattern of include that finds nothing, or an exact name of something that can't be published, is a
// *TableError; all of them are joined. The warnings are for the log: what a wildcard met and left out,
// and exact names in exclude that exist nowhere.
func (c Config) ResolveTables(ctx context.Context, conn *pgx.Conn, include, exclude []names.Pattern) (tables []Table, warnings []string, err error) {
	classes, err := readClasses(ctx, conn)
	if err != nil {
		return nil, nil, err
	}
	r := resolver{byOID: make(map[uint32]*class, len(classes)), include: include, exclude: exclude}
	r.found = make([]bool, len(include))
	r.excluded = make([]bool, len(exclude))
	for i := range classes {
		r.byOID[classes[i].OID] = &classes[i]
	}
	var oids []uint32
	for i := range classes {
		if r.takes(&classes[i]) {
			oids = append(oids, classes[i].OID)
		}
	}
	if err := r.missing(); err != nil {
		return nil, nil, err
	}
	tables, err = readTables(ctx, conn, oids, nil)
	if err != nil {
		return nil, nil, err
	}
	return tables, r.warnings, nil
}

// readClasses reads every relation that is no part of the system, in the order of names.
func readClasses(ctx context.Context, conn *pgx.Conn) ([]class, error) {
	rows, err := conn.Query(ctx, `
		SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
			COALESCE((SELECT i.inhparent FROM pg_inherits i WHERE c.relispartition AND i.inhrelid = c.oid), 0::oid),
			EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND c.oid >= 16384
			AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
		ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`)
	if err != nil {
		return nil, fmt.Errorf("source: reading the tables: %w", err)
	}
	classes, err := pgx.CollectRows(rows, pgx.RowToStructByPos[class])
	if err != nil {
		return nil, fmt.Errorf("source: reading the tables: %w", err)
	}
	return classes, nil
}

// resolver holds what ResolveTables has met so far.
type resolver struct {
	byOID            map[uint32]*class
	include, exclude []names.Pattern
	found            []bool // by include: it means something
	excluded         []bool // by exclude
	errs             []error
	warnings         []string
}

// takes decides about one relation.
func (r *resolver) takes(k *class) bool {
	wanted := len(r.include) == 0 && !k.Extension
	for i, p := range r.include {
		exact, match := r.match(p, k)
		if !match {
			continue
		}
		r.found[i] = true
		if reason := unfit(k); reason != "" && exact {
			r.errs = append(r.errs, &TableError{Pattern: p.String(), Reason: reason})
			continue
		}
		wanted = true
	}
	for i, p := range r.exclude {
		if _, match := r.match(p, k); match {
			r.excluded[i], wanted = true, false
		}
	}
	if !wanted || k.Kind == "p" {
		return false
	}
	if reason := unfit(k); reason != "" {
		// Views are no tables, and nobody misses them.
		if k.Schema != Schema && k.Kind != "v" && k.Kind != "m" {
			r.warnings = append(r.warnings, fmt.Sprintf("table %s is left out: %s", names.Qualified(k.Schema, k.Name), reason))
		}
		return false
	}
	return true
}

// match compares a pattern with a relation and its ancestors; exact: it names the relation itself.
func (r *resolver) match(p names.Pattern, k *class) (exact, match bool) {
	if p.Match(k.Schema, k.Name) {
		_, _, exact = p.Exact()
		return exact, true
	}
	// A cycle can't be, but a bound costs nothing.
	for up, depth := r.byOID[k.Parent], 0; up != nil && depth < len(r.byOID); up, depth = r.byOID[up.Parent], depth+1 {
		if p.Match(up.Schema, up.Name) {
			return false, true
		}
	}
	return false, false
}

// unfit says why a relation can't be published, "" if it can.
func unfit(k *class) string {
	switch {
	case k.Schema == Schema:
		return "schema " + Schema + " is flo's own"
	case k.Kind == "v":
		return "it is a view: name the tables that it reads"
	case k.Kind == "m":
		return "it is a materialized view: name the tables that it reads"
	case k.Kind == "f":
		return "it is a foreign table, whose changes PostgreSQL does not log: replicate it where it lives"
	case k.Persistence == "u":
		return "it is unlogged, so its changes are in no log: ALTER TABLE " + names.Qualified(k.Schema, k.Name) + " SET LOGGED"
	}
	return ""
}

// missing reports what was named and not found.
func (r *resolver) missing() error {
	errs := r.errs
	for i, p := range r.include {
		if r.found[i] {
			continue
		}
		reason := "no table matches"
		if schema, table, ok := p.Exact(); ok {
			reason = "there is no such table" + r.similar(schema, table)
			if systemSchema(schema) {
				reason = "schema " + schema + " belongs to the system"
			}
		}
		errs = append(errs, &TableError{Pattern: p.String(), Reason: reason})
	}
	for i, p := range r.exclude {
		if _, _, ok := p.Exact(); ok && !r.excluded[i] {
			r.warnings = append(r.warnings, fmt.Sprintf("%s, which is to be excluded, does not exist: check the spelling", p))
		}
	}
	return errors.Join(errs...)
}

// systemSchema reports whether PostgreSQL keeps the schema for itself.
func systemSchema(schema string) bool {
	return schema == "information_schema" || strings.HasPrefix(schema, "pg_")
}

// similar looks for the usual mistakes: another case, another schema.
func (r *resolver) similar(schema, table string) string {
	var found []string
	for _, k := range r.byOID {
		if strings.EqualFold(k.Name, table) && (strings.EqualFold(k.Schema, schema) || k.Name == table) && k.Schema != Schema {
			found = append(found, names.Qualified(k.Schema, k.Name))
		}
	}
	if len(found) == 0 {
		return ""
	}
	slices.Sort(found)
	return " (names are taken as they are written, and without a schema public is meant); there is " +
		strings.Join(found[:min(len(found), 3)], ", ")
}

// ancestorsOf gives the ancestors of a partition, parent first, root last.
const ancestorsOf = `
	WITH RECURSIVE up (leaf, relid, depth) AS (
		SELECT c.oid, i.inhparent, 1 FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
			WHERE c.relispartition AND c.oid = ANY ($1)
		UNION ALL
		SELECT u.leaf, i.inhparent, u.depth + 1 FROM up u JOIN pg_class c ON c.oid = u.relid AND c.relispartition
			JOIN pg_inherits i ON i.inhrelid = u.relid
	)
	SELECT u.leaf, n.nspname::text, c.relname::text FROM up u JOIN pg_class c ON c.oid = u.relid
		JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY u.leaf, u.depth`

// readAncestors reads the ancestors of several tables at once.
func readAncestors(ctx context.Context, conn *pgx.Conn, oids []uint32) (map[uint32][]decode.Name, error) {
	rows, err := conn.Query(ctx, ancestorsOf, oids)
	if err != nil {
		return nil, fmt.Errorf("source: reading partitions: %w", err)
	}
	ancestors := make(map[uint32][]decode.Name)
	var (
		leaf uint32
		name decode.Name
	)
	_, err = pgx.ForEachRow(rows, []any{&leaf, &name.Schema, &name.Name}, func() error {
		ancestors[leaf] = append(ancestors[leaf], name)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("source: reading partitions: %w", err)
	}
	return ancestors, nil
}
