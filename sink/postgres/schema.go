package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

var _ sink.CopyPlanner = (*Sink)(nil)

// Errors of WithSchemaSync, permanent like the sink's others.
var (
	// ErrSchemaTools says that pg_dump and pg_restore are missing or older than the source.
	ErrSchemaTools error = refusal("WithSchemaSync needs pg_dump and pg_restore that are not older than the source")
	// ErrSchemaSource says that the source given to WithSchemaSync lacks all tables of the copy.
	ErrSchemaSource error = refusal("the source given to WithSchemaSync is not the pipeline's, or a table was dropped there since: give it the same database")
	// ErrSchemaAltered says that the source has dropped or renamed columns between a copy and the worker's coming to it, and
	// that the tables could not be made as they were: without flo.WithDDL nobody tells how.
	ErrSchemaAltered error = refusal("tables were altered at the source since they were copied, and WithSchemaSync has made them as they are now: drop them at the destination and have them copied again (WithResync), or use WithDDL")
	// ErrSchemaRoute says that a table cannot be made because of what rules do to it.
	ErrSchemaRoute error = refusal("WithSchemaSync cannot make this table as the rules leave it: create it yourself")
	// ErrSchema says that objects could not be made; the *SchemaError around it lists them.
	ErrSchema error = refusal("objects could not be made at the destination: mend what is said of each, or make them yourself, and start again")
)

// SchemaObject is an object that WithSchemaSync has not made.
type SchemaObject struct {
	Kind   string // "index", "fk constraint", …
	Name   string // as pg_restore lists it
	Reason string
	SQL    string // what makes it, by the source's names
	Err    error  // the server's; nil if it was left out on purpose
}

// SchemaError lists what could not be made.
type SchemaError struct{ Failed []SchemaObject }

func (e *SchemaError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sink/postgres: %d of the source's %v:", len(e.Failed), ErrSchema)
	for _, f := range e.Failed {
		fmt.Fprintf(&b, "\n\t%s %s: %s: %s", f.Kind, f.Name, f.Reason, strings.Join(strings.Fields(f.SQL), " "))
	}
	return b.String()
}

// Unwrap gives ErrSchema and what the server said of each.
func (e *SchemaError) Unwrap() []error {
	out := []error{ErrSchema}
	for _, f := range e.Failed {
		if f.Err != nil {
			out = append(out, f.Err)
		}
	}
	return out
}

// DefaultSchemaJobs is how many objects WithSchemaSync makes side by side behind the copy.
const DefaultSchemaJobs = 4

// WithSchemaSync makes what the copied tables need and the destination lacks. Before the copy: schemas,
// extensions, types, functions that tables use, tables, defaults, identities, sequences, checks and
// comments. Behind the copy, and before the first change behind it is applied: primary keys, indexes,
// statistics, foreign keys, triggers and rules, several side by side (SchemaJobs).
//
// source is the source database, as New takes it; the worker connects to it at the beginning of a copy only.
// Its role needs USAGE and SELECT on the copied tables. PostgreSQL's own pg_dump and pg_restore do the work,
// the newest of PATH and the usual places; without a pair that is not older than the source the copy ends
// with ErrSchemaTools.
//
// With flo.WithDDL, tables that the source has altered or dropped since their copy are made as they were copied, and the
// stream brings the changes (their triggers, rules and statistics are left out); without it what doesn't fit then is
// ErrSchemaAltered.
//
// What is there stays as it is: a table, an index, a default of a name that is there counts as made, and
// what doesn't fit is reported (FitError). Doing it again, after a crash too, makes only what is missing.
//
// Routed tables get their routed names, columns too; those that rules leave out are made all the same, but
// may be NULL. What can't be done is ErrSchemaRoute. Of several tables that are routed into one, the first
// gives its definition. Without WithReplicaRole, what would fire (foreign keys, triggers, rules) is left out,
// as are foreign keys whose other table isn't there, or whose rows a rule has filtered; SchemaStatus has
// their SQL. Never made: owners, privileges, row security, publications, subscriptions, event triggers,
// tablespaces, table access methods, security labels; a partition that isn't copied; views.
func WithSchemaSync(source string, opts ...SchemaOption) Option {
	conn, err := pgsession.ParseConfig(source)
	return func(c *config) { c.sync = newSchemaSync(conn, err, opts) }
}

// WithSchemaSyncConfig is WithSchemaSync for a configuration that pgx.ParseConfig has made. It is copied.
func WithSchemaSyncConfig(source *pgx.ConnConfig, opts ...SchemaOption) Option {
	return func(c *config) {
		if source == nil {
			c.sync = newSchemaSync(nil, errors.New("no connection configuration"), opts)
			return
		}
		c.sync = newSchemaSync(source.Copy(), nil, opts)
	}
}

// SchemaOption changes a default of WithSchemaSync.
type SchemaOption func(*schemaSync)

// SchemaPassword asks f for the source's password at each connect.
func SchemaPassword(f func(ctx context.Context) (string, error)) SchemaOption {
	return func(s *schemaSync) { s.password = f }
}

// SchemaTools names the folder of pg_dump and pg_restore. Default: the newest of PATH and the usual places.
func SchemaTools(dir string) SchemaOption { return func(s *schemaSync) { s.dir = dir } }

// SchemaJobs says how many objects are made side by side behind the copy, on a connection each. Default 4,
// at most 32.
func SchemaJobs(n int) SchemaOption { return func(s *schemaSync) { s.jobs = n } }

type schemaSync struct {
	source   *pgx.ConnConfig
	err      error
	password func(context.Context) (string, error)
	dir      string
	jobs     int
}

func newSchemaSync(source *pgx.ConnConfig, err error, opts []SchemaOption) *schemaSync {
	s := &schemaSync{source: source, err: err, jobs: DefaultSchemaJobs}
	for _, o := range opts {
		if o != nil {
			o(s)
		}
	}
	return s
}

// validate says what is wrong.
func (s *schemaSync) validate(invalid func(format string, args ...any)) {
	if s == nil {
		return
	}
	if s.err != nil {
		invalid("WithSchemaSync: %v", s.err)
	}
	if s.jobs < 1 || s.jobs > MaxConnections {
		invalid("SchemaJobs(%d): want 1 to %d", s.jobs, MaxConnections)
	}
}

// SchemaStatus is how far WithSchemaSync is.
type SchemaStatus struct {
	Phase   string // "" before the first copy, then "dumping", "making tables", "copying", "making indexes", "done"
	Total   int    // objects that the phase looks at
	Done    int    // of them looked at
	Made    int    // of them made, the others were there
	Running []string
	LeftOut []SchemaObject // of all phases
}

type schemaState struct {
	mu     sync.Mutex
	status SchemaStatus
	plan   *plan          // from BeginCopy to EndCopy
	waited map[uint32]int // how often a table was put off since it was copied last; of BeginCopy and EndCopy
}

// SchemaStatus tells how far WithSchemaSync is. It may be called at any time.
func (s *Sink) SchemaStatus() SchemaStatus {
	s.schema.mu.Lock()
	defer s.schema.mu.Unlock()
	out := s.schema.status
	out.Running, out.LeftOut = slices.Clone(out.Running), slices.Clone(out.LeftOut)
	return out
}

func (s *Sink) schemaPhase(name string, total int) {
	s.schema.mu.Lock()
	defer s.schema.mu.Unlock()
	st := &s.schema.status
	st.Phase, st.Total, st.Done, st.Made, st.Running = name, total, 0, 0, nil
}

func (s *Sink) schemaBegun(e *entry) {
	s.schema.mu.Lock()
	defer s.schema.mu.Unlock()
	s.schema.status.Running = append(s.schema.status.Running, strings.ToLower(e.kind)+" "+e.label)
}

// schemaDone counts an entry, and says so.
func (s *Sink) schemaDone(ctx context.Context, e *entry, made bool) {
	s.schema.mu.Lock()
	st := &s.schema.status
	name := strings.ToLower(e.kind) + " " + e.label
	if i := slices.Index(st.Running, name); i >= 0 {
		st.Running = slices.Delete(st.Running, i, i+1)
	}
	st.Done++
	if made {
		st.Made++
	}
	done, total := st.Done, st.Total
	s.schema.mu.Unlock()
	if made {
		s.config.logger.InfoContext(ctx, "made at the destination", "what", name, "done", done, "of", total)
	}
}

func (s *Sink) schemaLeftOut(ctx context.Context, e *entry, reason string) {
	s.schema.mu.Lock()
	defer s.schema.mu.Unlock()
	st := &s.schema.status
	st.Done++
	if slices.ContainsFunc(st.LeftOut, func(o SchemaObject) bool { return o.SQL == e.sql }) {
		return
	}
	st.LeftOut = append(st.LeftOut, SchemaObject{Kind: strings.ToLower(e.kind), Name: e.label, Reason: reason, SQL: e.sql})
	s.config.logger.WarnContext(ctx, "not made at the destination", "what", strings.ToLower(e.kind)+" "+e.label, "why", reason)
}

// BeginCopy makes what the tables need (WithSchemaSync, CopyTable.Schema), and sees whether all of them fit: what doesn't is
// one FitError, before any row is written.
func (s *Sink) BeginCopy(ctx context.Context, tables []sink.CopyTable) error {
	st := s.start.Load()
	if st == nil {
		return fmt.Errorf("sink/postgres: %w", ErrNotOpen)
	}
	for _, t := range tables {
		if t.Relation == nil {
			return sink.Permanent(errShape)
		}
	}
	if err := s.notAhead(ctx, tables); err != nil {
		return err
	}
	err := s.beginCopy(ctx, st, tables)
	if later, perr := s.putOff(ctx, tables, err); perr != nil || later != nil {
		return errors.Join(perr, later)
	}
	return err
}

func (s *Sink) beginCopy(ctx context.Context, st *sink.Start, tables []sink.CopyTable) error {
	var coming func(uint32) bool
	if err := s.prepareTables(ctx, tables, s.config.sync == nil); err != nil {
		return err
	}
	if s.config.sync != nil {
		p, err := s.planSchema(ctx, tables)
		if err != nil {
			return judge(err, -1)
		}
		if err := s.makeBefore(ctx, st, p); err != nil {
			return judge(err, -1)
		}
		if err := s.makeTold(ctx, p.outdated); err != nil {
			return err
		}
		if err := s.makeGone(ctx, p.outdated, tables); err != nil {
			return err
		}
		s.schemaPhase("copying", 0)
		s.schema.plan, coming = p, p.brings
	}
	err := s.with(ctx, func(c *session, st *sink.Start) error { return s.fit(ctx, c.pg, st, tables, coming) })
	if p := s.schema.plan; err != nil && p != nil && s.config.sync != nil {
		err = p.outdated.explain(err)
	}
	if err != nil {
		return err
	}
	return s.enterTables(ctx, tables)
}

// EndCopy makes what is better made behind the rows (WithSchemaSync).
func (s *Sink) EndCopy(ctx context.Context, tables []sink.CopyTable) error {
	st, p := s.start.Load(), s.schema.plan
	if s.config.sync == nil {
		s.arrived(tables)
		return nil
	}
	if st == nil || p == nil {
		return fmt.Errorf("sink/postgres: %w", ErrNotOpen)
	}
	err := s.endCopy(ctx, st, p, tables)
	var unmade *SchemaError
	if errors.As(err, &unmade) && slices.ContainsFunc(unmade.Failed, func(o SchemaObject) bool { return inRowsWay(o.Err) && pgsession.SQLState(o.Err) != "23503" }) {
		return err // another copy would bring such rows again
	}
	if err == nil {
		s.arrived(tables)
	}
	if later, perr := s.putOff(ctx, tables, err); perr != nil || later != nil {
		return errors.Join(perr, later)
	}
	return err
}

func (s *Sink) endCopy(ctx context.Context, st *sink.Start, p *plan, tables []sink.CopyTable) error {
	if err := s.makeToldKeys(ctx, p.outdated, false); err != nil {
		return err
	}
	if err := s.makeBehind(ctx, st, p, tables); err != nil {
		return judge(err, -1)
	}
	if err := s.makeToldKeys(ctx, p.outdated, true); err != nil {
		return err
	}
	s.schemaPhase("done", 0)
	s.schema.plan = nil
	return s.with(ctx, func(c *session, st *sink.Start) error { return s.fitKeys(ctx, c.pg, tables) })
}

// CopiesTogether reports whether WithSchemaSync is on: its foreign keys span tables.
func (s *Sink) CopiesTogether() bool { return s.config.sync != nil }

// brings reports whether keys or unique indexes of a source table are still to come.
func (p *plan) brings(oid uint32) bool {
	if p.outdated.oids[oid] {
		return true
	}
	if r := p.routes[oid]; r != nil && r.merged {
		return true // the table that makes it is asked
	}
	return slices.ContainsFunc(p.indexes, func(e *entry) bool { return e.obj != nil && e.obj.table == oid })
}

// planSchema asks the source.
func (s *Sink) planSchema(ctx context.Context, tables []sink.CopyTable) (p *plan, err error) {
	sync := s.config.sync
	s.schemaPhase("dumping", 0)
	conn, err := pgsession.Connect(ctx, sync.source, pgsession.Options{AppName: "flo schema", Password: sync.password})
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: connecting to the source: %w", err)
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
		defer cancel()
		err = errors.Join(err, conn.Close(end))
	}()
	catalog := &sourceCatalog{tables: map[uint32]*sourceTable{}}
	if err := catalog.readTables(ctx, conn.PgConn(), tables); err != nil {
		return nil, err
	}
	t, err := findTools(ctx, sync.dir, catalog.version)
	if err != nil {
		return nil, err
	}
	dir, err := privateDir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	a, err := t.dump(ctx, sync, dir, catalog.closed)
	if err != nil {
		return nil, err
	}
	if err := catalog.readObjects(ctx, conn.PgConn(), a); err != nil {
		return nil, err
	}
	if err := a.write(ctx, a.functions()); err != nil {
		return nil, err
	}
	o, err := catalog.readOutdated(ctx, conn.PgConn(), tables, !s.config.ddl.ignore)
	if err != nil {
		return nil, err
	}
	p = newPlan(catalog, a, tables, o)
	if err := a.write(ctx, p.list(a)); err != nil {
		return nil, err
	}
	return p, nil
}
