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
	"github.com/pgflo/flo/internal/pgsession"
)

// PublicationSpec is what should be published.
type PublicationSpec struct {
	// Name of the publication of the tables that have a replica identity.
	Name string
	// Tables, as ResolveTables gave them; not looked at with AllTables.
	Tables []Table
	// AllTables asks for FOR ALL TABLES, which takes a superuser and catches future tables. Those
	// without replica identity are caught too: their UPDATE and DELETE then fail at the host.
	AllTables bool
}

// ErrRenamed: tables were renamed, or dropped and made again, while their names were used: look for them again.
var ErrRenamed = errors.New("tables were renamed meanwhile")

// KeylessSuffix is added to the name of the second publication, which publishes insert and truncate only.
const KeylessSuffix = "_keyless"

// Published is what is published now.
type Published struct {
	Names []string // of the publications, for StreamConfig.Publications
	// Tables in the order of names, with the row filters and column lists that hold.
	Tables   []Table
	Entries  Entries  // what publishes each table
	Warnings []string // for the log: what is published without update and delete, and the SQL that mends it
}

// publication is the wanted state of one publication.
type publication struct {
	name   string
	tables []Table
	events string // the option publish
}

const (
	allEvents     = "insert, update, delete, truncate"
	keylessEvents = "insert, truncate"
)

// EnsurePublication makes the publications, or changes those that exist by the tables of difference, so
// that row filters and column lists that somebody has set stay. It commits before it returns; make the
// slot afterwards.
//
// A table without replica identity is published for insert and truncate only, in a publication of its
// own: PostgreSQL refuses every UPDATE and DELETE of a table that publishes them without one.
func (c Config) EnsurePublication(ctx context.Context, conn *pgx.Conn, spec PublicationSpec) (Published, error) {
	if n := len(spec.Name) + len(KeylessSuffix); spec.Name == "" || n > names.MaxLength {
		return Published{}, fmt.Errorf("source: %w: the publication's name %q must have 1 to %d bytes",
			ErrSource, spec.Name, names.MaxLength-len(KeylessSuffix))
	}
	published, err := c.ensure(ctx, conn, spec)
	if pgsession.SQLState(err) == sqlPrivilege {
		return published, c.explainPrivilege(ctx, conn, spec, err)
	}
	return published, err
}

// ensure does it in one transaction.
func (c Config) ensure(ctx context.Context, conn *pgx.Conn, spec PublicationSpec) (Published, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return Published{}, fmt.Errorf("source: publication %q: %w", spec.Name, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	// Two replicators that start at once take turns.
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", "flo publication "+spec.Name); err != nil {
		return Published{}, fmt.Errorf("source: publication %q: %w", spec.Name, err)
	}
	wanted, warnings := split(spec)
	if spec.AllTables {
		err = ensureAll(ctx, tx, spec.Name)
	} else {
		for i := range wanted {
			if err = wanted[i].ensure(ctx, tx); err != nil {
				break
			}
		}
	}
	if err != nil {
		return Published{}, err
	}
	published := Published{Warnings: warnings}
	for _, p := range wanted {
		published.Names = append(published.Names, p.name)
	}
	// Before the end: what others change in them behind that is not flo's.
	if published.Entries, err = c.OwnEntries(ctx, conn, published.Names); err != nil {
		return Published{}, err
	}
	if err := tx.Commit(ctx); err != nil {
		return Published{}, fmt.Errorf("source: publication %q: %w", spec.Name, err)
	}
	if published.Tables, err = c.PublishedTables(ctx, conn, published.Names); err != nil {
		return Published{}, err
	}
	if spec.AllTables {
		published.Warnings = append(published.Warnings, keylessOfAll(published.Tables)...)
	}
	return published, nil
}

// split divides the tables by replica identity.
func split(spec PublicationSpec) (wanted []publication, warnings []string) {
	keyed := publication{name: spec.Name, events: allEvents}
	if spec.AllTables {
		return []publication{keyed}, nil
	}
	keyless := publication{name: spec.Name + KeylessSuffix, events: keylessEvents}
	for _, t := range spec.Tables {
		if t.HasIdentity {
			keyed.tables = append(keyed.tables, t)
			continue
		}
		keyless.tables = append(keyless.tables, t)
		warnings = append(warnings, fmt.Sprintf(
			"table %s has no replica identity: its updates and deletes are NOT replicated, only inserts and truncates; mend it with %s: it is then copied afresh, unless the mode is StreamOnly",
			t.quoted(), mend(&t)))
	}
	return []publication{keyed, keyless}, warnings
}

// keylessOfAll warns of the tables that FOR ALL TABLES makes read-mostly.
func keylessOfAll(tables []Table) (warnings []string) {
	for i := range tables {
		if !tables[i].HasIdentity {
			warnings = append(warnings, fmt.Sprintf(
				"table %s has no replica identity and is published FOR ALL TABLES: its UPDATE and DELETE fail at the source; mend it with %s",
				tables[i].quoted(), mend(&tables[i])))
		}
	}
	return warnings
}

// mend is the SQL that gives a table a replica identity.
func mend(t *Table) string {
	if t.Identity == decode.IdentityFull { // it has generated columns, which PostgreSQL 18 no longer takes with FULL
		return fmt.Sprintf("ALTER TABLE %[1]s REPLICA IDENTITY DEFAULT and a primary key without generated columns", t.quoted())
	}
	return fmt.Sprintf("ALTER TABLE %[1]s ADD PRIMARY KEY (…), or ALTER TABLE %[1]s REPLICA IDENTITY FULL", t.quoted())
}

// ensure brings one publication to the wanted state. A keyless one without tables is made all the same:
// the slot needs every name that it is started with, and ALTER PUBLICATION may fill it later.
func (p *publication) ensure(ctx context.Context, tx pgx.Tx) error {
	var all, correct bool
	err := tx.QueryRow(ctx, `SELECT puballtables, pubinsert AND pubtruncate AND pubupdate = $2 AND pubdelete = $2 AND NOT pubviaroot
		FROM pg_publication WHERE pubname = $1`, p.name, p.events == allEvents).Scan(&all, &correct)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return p.create(ctx, tx)
	case err != nil:
		return fmt.Errorf("source: publication %q: %w", p.name, err)
	case all:
		return fmt.Errorf("source: %w: publication %q exists FOR ALL TABLES: choose another name, or DROP PUBLICATION %s first",
			ErrSource, p.name, names.Quote(p.name))
	}
	var statements []string
	if !correct {
		statements = append(statements, "ALTER PUBLICATION "+names.Quote(p.name)+" SET ("+p.options()+")")
	}
	changes, err := p.difference(ctx, tx)
	if err != nil {
		return err
	}
	if err := p.run(ctx, tx, append(statements, changes...)); err != nil || len(changes) == 0 {
		return err
	}
	return p.verify(ctx, tx)
}

// verify finds out whether the names that the statements took still meant the tables that they were read for: names may be
// swapped meanwhile. From the statements on, their locks keep that from happening.
func (p *publication) verify(ctx context.Context, tx pgx.Tx) error {
	left, err := p.difference(ctx, tx)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("source: publication %q: %w", p.name, ErrRenamed)
	}
	return err
}

// options of the publication in SQL.
func (p *publication) options() string {
	return "publish = '" + p.events + "', publish_via_partition_root = false"
}

// create makes the publication.
func (p *publication) create(ctx context.Context, tx pgx.Tx) error {
	sql := "CREATE PUBLICATION " + names.Quote(p.name)
	if len(p.tables) > 0 {
		sql += " FOR TABLE " + list(p.tables)
	}
	if err := p.run(ctx, tx, []string{sql + " WITH (" + p.options() + ")"}); err != nil || len(p.tables) == 0 {
		return err
	}
	return p.verify(ctx, tx)
}

// difference gives the statements that add and drop tables.
func (p *publication) difference(ctx context.Context, tx pgx.Tx) ([]string, error) {
	rows, err := tx.Query(ctx, `SELECT r.prrelid, n.nspname::text, c.relname::text
		FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
		JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = $1`, p.name)
	if err != nil {
		return nil, fmt.Errorf("source: publication %q: %w", p.name, err)
	}
	surplus := make(map[uint32]Table)
	var t Table
	if _, err := pgx.ForEachRow(rows, []any{&t.OID, &t.Schema, &t.Name}, func() error {
		surplus[t.OID] = t
		return nil
	}); err != nil {
		return nil, fmt.Errorf("source: publication %q: %w", p.name, err)
	}
	var add, drop []Table
	for _, t := range p.tables {
		if _, ok := surplus[t.OID]; ok {
			delete(surplus, t.OID)
			continue
		}
		add = append(add, t)
	}
	for _, t := range surplus {
		drop = append(drop, t)
	}
	var statements []string
	if len(drop) > 0 {
		statements = append(statements, "ALTER PUBLICATION "+names.Quote(p.name)+" DROP TABLE "+list(drop))
	}
	if len(add) > 0 {
		statements = append(statements, "ALTER PUBLICATION "+names.Quote(p.name)+" ADD TABLE "+list(add))
	}
	return statements, nil
}

// list gives tables in SQL. ONLY: inheritance children are tables of their own.
func list(tables []Table) string {
	quoted := make([]string, len(tables))
	for i := range tables {
		quoted[i] = "ONLY " + tables[i].quoted()
	}
	slices.Sort(quoted)
	return strings.Join(quoted, ", ")
}

// run executes statements one by one.
func (p *publication) run(ctx context.Context, tx pgx.Tx, statements []string) error {
	for _, sql := range statements {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("source: publication %q: %w", p.name, err)
		}
	}
	return nil
}

// ensureAll makes a publication FOR ALL TABLES.
func ensureAll(ctx context.Context, tx pgx.Tx, name string) error {
	p := publication{name: name, events: allEvents}
	var all bool
	err := tx.QueryRow(ctx, "SELECT puballtables FROM pg_publication WHERE pubname = $1", name).Scan(&all)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return p.run(ctx, tx, []string{"CREATE PUBLICATION " + names.Quote(name) + " FOR ALL TABLES WITH (" + p.options() + ")"})
	case err != nil:
		return fmt.Errorf("source: publication %q: %w", name, err)
	case !all:
		return fmt.Errorf("source: %w: publication %q exists and is not FOR ALL TABLES: DROP PUBLICATION %s first",
			ErrSource, name, names.Quote(name))
	}
	return p.run(ctx, tx, []string{"ALTER PUBLICATION " + names.Quote(name) + " SET (" + p.options() + ")"})
}

// PublishedTables reads the tables that the publications publish, with their row filters and column
// lists, which hold for the copy too. Schema flo is left out. ErrSource if a publication is missing.
func (c Config) PublishedTables(ctx context.Context, conn *pgx.Conn, publications []string) ([]Table, error) {
	limits := "NULL::text[], ''"
	if pgsession.Version(conn.PgConn()) >= 150000 {
		limits = "pt.attnames::text[], COALESCE(pt.rowfilter, '')"
	}
	rows, err := conn.Query(ctx, `SELECT c.oid, `+limits+` FROM pg_publication_tables pt
		JOIN pg_namespace n ON n.nspname = pt.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = pt.tablename
		WHERE pt.pubname = ANY ($1) AND pt.schemaname <> $2`, publications, Schema)
	if err != nil {
		return nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	var (
		oids    []uint32
		oid     uint32
		columns []string
		filter  string
		filters = make(map[uint32]string)
		listed  = make(sentColumns)
	)
	if _, err := pgx.ForEachRow(rows, []any{&oid, &columns, &filter}, func() error {
		oids = append(oids, oid)
		filters[oid] = filter
		if columns != nil {
			listed[oid] = slices.Clone(columns)
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("source: reading the publications: %w", err)
	}
	var sent sentColumns
	if pgsession.Version(conn.PgConn()) >= sendsGenerated {
		sent = listed
	}
	tables, err := readTables(ctx, conn, oids, sent)
	if err != nil {
		return nil, err
	}
	for i := range tables {
		t := &tables[i]
		t.RowFilter = filters[t.OID]
		if list, limited := listed[t.OID]; limited {
			t.Columns = slices.DeleteFunc(t.Columns, func(col decode.Column) bool { return !slices.Contains(list, col.Name) })
		}
	}
	return tables, nil
}

// DropPublications drops a group's publications; those that do not exist are no error.
func (c Config) DropPublications(ctx context.Context, conn *pgx.Conn, name string) error {
	for _, n := range []string{name, name + KeylessSuffix} {
		if _, err := conn.Exec(ctx, "DROP PUBLICATION IF EXISTS "+names.Quote(n)); err != nil {
			return fmt.Errorf("source: dropping publication %q: %w", n, err)
		}
	}
	return nil
}
