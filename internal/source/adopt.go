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

// adopted is a publication that somebody else owns.
type adopted struct {
	Name                             string
	Insert, Update, Delete, Truncate bool
	ViaRoot                          bool
}

// lacks names what the publication doesn't publish.
func (p *adopted) lacks() string {
	var missing []string
	for _, e := range []struct {
		published bool
		name      string
	}{{p.Insert, "insert"}, {p.Update, "update"}, {p.Delete, "delete"}, {p.Truncate, "truncate"}} {
		if !e.published {
			missing = append(missing, e.name)
		}
	}
	return strings.Join(missing, ", ")
}

// AdoptPublications takes publications as somebody else has made them, and changes nothing. The tables are those
// of pg_publication_tables, with their row filters and column lists.
//
// It refuses what would lose changes in silence, or make the host's writes fail: a publication that is missing or
// publishes partitions as their root (ErrSource); a table that two of them publish, that lacks an event, or
// whose updates or deletes are published without its replica identity (ErrTable, one *TableError each, joined).
// A table without replica identity in a publication of insert and truncate only is taken, with a warning.
func (c Config) AdoptPublications(ctx context.Context, conn *pgx.Conn, publications []string) (Published, error) {
	pubs, err := readPublications(ctx, conn, publications)
	if err != nil {
		return Published{}, err
	}
	of, twice, err := publishedBy(ctx, conn, publications)
	if err != nil {
		return Published{}, err
	}
	tables, err := c.PublishedTables(ctx, conn, publications)
	if err != nil {
		return Published{}, err
	}
	whole, err := wholeTables(ctx, conn, tables)
	if err != nil {
		return Published{}, err
	}
	entries, err := c.Entries(ctx, conn, publications)
	if err != nil {
		return Published{}, err
	}
	errs := twice
	p := Published{Names: slices.Clone(publications), Tables: tables, Entries: entries}
	for i := range tables {
		t := &tables[i]
		pub := pubs[of[t.OID]]
		if pub == nil {
			continue // it left the publication meanwhile
		}
		warning, reason := pub.judge(t, whole[t.OID])
		if reason != "" {
			errs = append(errs, &TableError{Pattern: t.quoted(), Reason: reason})
		}
		if warning != "" {
			p.Warnings = append(p.Warnings, warning)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Published{}, err
	}
	return p, nil
}

// readPublications reads what each publishes, and refuses what no table could be taken from.
func readPublications(ctx context.Context, conn *pgx.Conn, publications []string) (map[string]*adopted, error) {
	rows, err := conn.Query(ctx, `SELECT pubname::text, pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot
		FROM pg_publication WHERE pubname = ANY ($1)`, publications)
	if err != nil {
		return nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowToAddrOfStructByPos[adopted])
	if err != nil {
		return nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	byName := make(map[string]*adopted, len(found))
	var errs []error
	for _, p := range found {
		byName[p.Name] = p
		if p.ViaRoot {
			errs = append(errs, fmt.Errorf("source: %w: publication %q publishes partitions under their root's name, which is not supported: its owner must run ALTER PUBLICATION %s SET (publish_via_partition_root = false)",
				ErrSource, p.Name, names.Quote(p.Name)))
		}
	}
	for _, name := range publications {
		if byName[name] == nil {
			errs = append(errs, fmt.Errorf("source: %w: publication %q does not exist in this database: its owner must make it (CREATE PUBLICATION %s FOR TABLE …), or leave WithPublication out",
				ErrSource, name, names.Quote(name)))
		}
	}
	return byName, errors.Join(errs...)
}

// publishedBy tells which publication each table is in. One that is in two has no certain row filter and events.
func publishedBy(ctx context.Context, conn *pgx.Conn, publications []string) (of map[uint32]string, twice []error, err error) {
	rows, err := conn.Query(ctx, `SELECT c.oid, n.nspname::text, c.relname::text, pt.pubname::text FROM pg_publication_tables pt
		JOIN pg_namespace n ON n.nspname = pt.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = pt.tablename
		WHERE pt.pubname = ANY ($1) AND pt.schemaname <> $2 ORDER BY 2, 3, 4`, publications, Schema)
	if err != nil {
		return nil, nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	of = make(map[uint32]string)
	var t Table
	var pub string
	_, err = pgx.ForEachRow(rows, []any{&t.OID, &t.Schema, &t.Name, &pub}, func() error {
		if other, ok := of[t.OID]; ok && other != pub {
			twice = append(twice, &TableError{Pattern: t.quoted(), Reason: fmt.Sprintf("it is in the publications %q and %q: take it out of one, or name only one", other, pub)})
			return nil
		}
		of[t.OID] = pub
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	return of, twice, nil
}

// wholeTables reads the tables' columns without regard to column lists.
func wholeTables(ctx context.Context, conn *pgx.Conn, tables []Table) (map[uint32][]decode.Column, error) {
	oids := make([]uint32, len(tables))
	for i := range tables {
		oids[i] = tables[i].OID
	}
	return readColumns(ctx, conn, oids, nil)
}

// judge says why a table can't be taken as it is published, or what to warn of.
func (p *adopted) judge(t *Table, whole []decode.Column) (warning, refusal string) {
	rows := p.Update || p.Delete
	if !t.HasIdentity {
		switch {
		case rows:
			return "", fmt.Sprintf("publication %q publishes its updates or deletes, and it has no replica identity, so they fail at the source: %s, or publish it for insert and truncate only", p.Name, mend(t))
		case !p.Insert || !p.Truncate:
			return "", p.incomplete()
		}
		return fmt.Sprintf("table %s has no replica identity: its updates and deletes are NOT replicated, only inserts and truncates; mend it with %s, and publish it for all events",
			t.quoted(), mend(t)), ""
	}
	if p.lacks() != "" {
		return "", p.incomplete()
	}
	for _, col := range whole {
		if col.Key && !slices.ContainsFunc(t.Columns, func(c decode.Column) bool { return c.Name == col.Name }) {
			return "", fmt.Sprintf("the column list of publication %q leaves column %s of its replica identity out, so updates and deletes fail at the source: add it to the list", p.Name, names.Quote(col.Name))
		}
	}
	return "", ""
}

// incomplete is a publication that loses changes.
func (p *adopted) incomplete() string {
	return fmt.Sprintf("publication %q does not publish %s, so such changes would be lost: its owner must run ALTER PUBLICATION %s SET (publish = '%s')",
		p.Name, p.lacks(), names.Quote(p.Name), allEvents)
}
