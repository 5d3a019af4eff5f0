package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// ErrDDL says that a schema change of the source cannot be applied; the *DDLError around it says which and why.
var ErrDDL error = refusal("a schema change cannot be applied at the destination")

// DefaultDDLLockTimeout is how long a statement of a schema change waits for other sessions of the destination.
const DefaultDDLLockTimeout = 10 * time.Second

// ddlPolicy is what is done with schema changes.
type ddlPolicy struct {
	ignore bool
	keep   bool
	wait   time.Duration
}

// WithoutDDL passes over the source's schema changes: whoever alters the source alters the destination too.
// Default: they are applied, in order with the rows.
func WithoutDDL() Option { return func(c *config) { c.ddl.ignore = true } }

// WithKeepDropped keeps tables, columns, types and schemas that the source drops. A column that is kept may be
// NULL from then on, and is used again, with the values it has, when the source adds one of its name. A table of the same name that the source makes later is refused while the old one has rows.
func WithKeepDropped() Option { return func(c *config) { c.ddl.keep = true } }

// WithDDLLockTimeout bounds how long each statement of a schema change waits for sessions that use the table.
// Whoever comes later waits behind it. Then the batch is rolled back, and tried again by the worker with a
// growing pause, for as long as it takes. Default 10 s, at least 1 ms, at most a day.
func WithDDLLockTimeout(d time.Duration) Option { return func(c *config) { c.ddl.wait = d } }

func (p ddlPolicy) validate(invalid func(format string, args ...any)) {
	if p.wait < time.Millisecond || p.wait > 24*time.Hour {
		invalid("WithDDLLockTimeout(%s): want 1ms to 24h", p.wait)
	}
}

// DDLError is a schema change that cannot be applied. It is permanent and names the change of its batch, so
// the worker's error policy decides. What has been done by hand is passed over when the change comes again.
type DDLError struct {
	Object decode.Name // the destination's table or type; for a schema the Name is ""
	Action string      // for example `adding column "price"`
	SQL    string      // that was refused; "" if none was tried
	Remedy string
	Err    error // the server's, or one of this package's

	denied bool // something that it needs was not permitted
}

func (e *DDLError) Error() string {
	what := e.Object.Schema
	if e.Object.Name != "" {
		what = e.Object.String()
	}
	text := fmt.Sprintf("sink/postgres: %v: %s: %s: %v: %s", ErrDDL, what, e.Action, e.Err, e.Remedy)
	if e.SQL != "" {
		text += ": " + strings.Join(strings.Fields(e.SQL), " ")
	}
	return text
}

// Unwrap gives ErrDDL, ErrPrivilege where that is why, and the cause.
func (e *DDLError) Unwrap() []error {
	out := []error{ErrDDL, e.Err}
	if e.denied || pgsession.SQLState(e.Err) == "42501" {
		out = append(out, ErrPrivilege)
	}
	return out
}

// ddl applies one schema change, in the transaction that is open.
type ddl struct {
	ctx    context.Context
	sink   *Sink
	pg     *pgconn.PgConn
	st     *sink.Start
	change *decode.SchemaChange
	books  *structures
	ran    int         // how many statements have altered the destination
	unmade []*DDLError // types that the role may not create
	at     decode.LSN  // the transaction's commit; 0: before a copy, which is ahead of all that was told so far
	copied decode.LSN  // before a copy: the point from which on its rows are
	left   []string    // schemas out of which something was moved
	way    *stale      // see awaiting
	// anew are the source tables whose rows a schema change of the transaction has said to be written anew.
	anew map[uint32]bool
	// follows are those that the change at hand says a fresh copy follows for.
	follows map[uint32]bool
}

func literal(s string) string { return pgsession.Literal(s) }

func (s *Sink) newDDL(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, ch *decode.SchemaChange) *ddl {
	worker := *st
	worker.Worker = laneOwner(st.Worker) // one's books are all lanes'
	d := &ddl{ctx: ctx, sink: s, pg: pg, st: &worker, change: checked(ch), anew: map[uint32]bool{}, follows: map[uint32]bool{}}
	d.books = &structures{ctx: ctx, pg: pg, table: s.books.structures, st: &worker}
	return d
}

// Around the statements of a schema change: a bound for locks, and plans that suit large tables, for
// a foreign key's check joins them.
const (
	ddlBegin = "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET LOCAL enable_seqscan = on; SET LOCAL lock_timeout = "
	ddlEnd   = "SET LOCAL lock_timeout = 0; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL enable_seqscan = off"
)

// applySchema applies a schema change, and forgets what was known of the tables.
func (s *Sink) applySchema(ctx context.Context, ch *decode.SchemaChange, tx *decode.Tx) error {
	st, pg := s.start.Load(), s.main.pg
	if ch == nil {
		return errShape
	}
	if nothing, err := s.nothingToDetach(ctx, ch); nothing || err != nil {
		return err
	}
	if s.tx.deferred { // a table with checks to come can't be altered
		if err := simple(ctx, pg, "SET CONSTRAINTS ALL IMMEDIATE"); err != nil {
			err = fmt.Errorf("sink/postgres: before a schema change: %w", err)
			if again := s.again(err); again != nil {
				return again
			}
			return err
		}
		s.tx.deferred = false
	}
	if s.tx.rewritten == nil {
		s.tx.rewritten = map[uint32]bool{}
	}
	d := s.newDDL(ctx, pg, st, ch)
	d.anew = s.tx.rewritten
	if tx != nil {
		d.at = tx.CommitLSN
	}
	if err := simple(ctx, pg, ddlBegin+strconv.FormatInt(s.config.ddl.wait.Milliseconds(), 10)); err != nil {
		return fmt.Errorf("sink/postgres: before a schema change: %w", err)
	}
	s.tx.schema = true
	if err := d.apply(); err != nil {
		return err
	}
	if err := simple(ctx, pg, ddlEnd); err != nil {
		return fmt.Errorf("sink/postgres: behind a schema change: %w", err)
	}
	if d.ran == 0 {
		return nil
	}
	s.main.generation = s.generation.Add(1) // in front of the commit that shows it
	if err := s.main.forget(ctx); err != nil {
		return fmt.Errorf("sink/postgres: behind a schema change: %w", err)
	}
	return nil
}

func (d *ddl) apply() error {
	switch {
	case d.change.Failed != "":
		return &DDLError{
			Action: "learning what " + d.change.Tag + " did", Err: fmt.Errorf("the source's trigger: %s", d.change.Failed),
			Remedy: "do at the destination by hand what was done at the source, and pass over this change: once WithoutDDL, or as a dead letter",
		}
	case d.change.Baseline:
		return d.baseline()
	case d.change.Observed:
		return d.observe()
	}
	if err := d.dropAll(); err != nil {
		return err
	}
	for _, name := range d.change.Schemas {
		if err := d.makeSchema(name); err != nil {
			return err
		}
	}
	if err := d.types(); err != nil {
		return err
	}
	if err := d.tables(); err != nil || d.change.Tag != "ALTER SCHEMA" {
		return err
	}
	for _, name := range slices.Compact(slices.Sorted(slices.Values(d.left))) { // the source has no such schema any more
		if err := d.dropSchema(&decode.Dropped{Name: name}); err != nil {
			return err
		}
	}
	return nil
}

// run executes a statement, one only whatever it holds. Where rows are in its way that a fresh copy brings as they are now, it takes
// them out.
func (d *ddl) run(object decode.Name, action, sql string) error {
	waiting, err := d.awaiting()
	if err != nil {
		return err
	}
	if len(waiting) == 0 {
		d.ran++
		_, err = exec(d.ctx, d.pg, sql)
	} else if err = d.attempt(sql); inRowsWay(err) {
		err = d.makeWay(waiting, sql, err)
	}
	if err != nil {
		return d.fail(object, action, sql, err)
	}
	d.altered(object, action)
	return nil
}

func (d *ddl) altered(object decode.Name, action string) {
	d.sink.config.logger.InfoContext(d.ctx, "altered the destination as the source was", "what", object.String(), "action", action)
}

// attempt is run for a statement that may be refused: what came before it in the transaction then stays.
func (d *ddl) attempt(sql string) error {
	if err := simple(d.ctx, d.pg, "SAVEPOINT flo_ddl"); err != nil {
		return err
	}
	_, err := exec(d.ctx, d.pg, sql)
	if err != nil && (d.pg.IsClosed() || d.ctx.Err() != nil) {
		return err
	}
	end := "RELEASE SAVEPOINT flo_ddl"
	if err != nil {
		end = "ROLLBACK TO SAVEPOINT flo_ddl; " + end
	} else {
		d.ran++
	}
	return errors.Join(err, simple(d.ctx, d.pg, end))
}

// fail makes a DDLError of what stays, and leaves to another try what may pass.
func (d *ddl) fail(object decode.Name, action, sql string, err error) error {
	var done *DDLError
	if errors.As(err, &done) {
		return err
	}
	if !lastingDDL(err) {
		return fmt.Errorf("sink/postgres: schema change: %s: %s: %w", object, action, err)
	}
	e := &DDLError{Object: object, Action: action, SQL: sql, Err: err, Remedy: remedy(err)}
	switch pgsession.SQLState(err) {
	case "42501":
		e.Remedy = d.rights(object, sql)
	case "42704":
		if len(d.unmade) > 0 { // it is that, most likely
			e.denied, e.Remedy = true, d.unmade[0].Remedy
			e.Err = fmt.Errorf("%w (type %s could not be created: %w)", err, d.unmade[0].Object, d.unmade[0].Err)
		}
	}
	return e
}

// lastingDDL is lasting, and for statements that alter objects what their state forbids.
func lastingDDL(err error) bool {
	switch pgsession.SQLState(err) {
	case "55000", "55006": // object not in prerequisite state; in use, by this session
		return true
	}
	return lasting(err)
}

// remedy says what to do, by SQLSTATE. https://www.postgresql.org/docs/current/errcodes-appendix.html
func remedy(err error) string {
	const then = ", and start again"
	switch code := pgsession.SQLState(err); {
	case code == "2BP01", code == "0A000":
		return "something at the destination depends on it: drop that (a view can be made again afterwards), or do it by hand" + then
	case code == "42704", code == "42883", code == "42P01", code == "3F000":
		return "make at the destination what is missing (an extension, a collation, a type, a function, a table)" + then
	case strings.HasPrefix(code, "23"), strings.HasPrefix(code, "22"):
		return "the destination's rows forbid it: mend them, or copy the table afresh" + then
	case code == "42P07", code == "42701", code == "42710":
		return "rename or drop what has the name at the destination" + then
	}
	return "do by hand what the SQL was to do" + then
}

// rights says what to grant for a statement of this package. The server's words, which the error has too, tell which
// of it is missing.
func (d *ddl) rights(object decode.Name, sql string) string {
	conn := d.sink.config.conn
	role := ident(conn.User)
	create := "GRANT USAGE, CREATE ON SCHEMA " + ident(object.Schema) + " TO " + role
	own := func(kind string) string { return "ALTER " + kind + " " + identOf(object) + " OWNER TO " + role }
	var what string
	switch verb, rest, _ := strings.Cut(sql, " "); {
	case strings.HasPrefix(rest, "SCHEMA") && verb == "CREATE":
		what = "GRANT CREATE ON DATABASE " + ident(conn.Database) + " TO " + role
	case strings.HasPrefix(rest, "SCHEMA"):
		what = "ALTER SCHEMA " + ident(object.Schema) + " OWNER TO " + role
	case verb == "CREATE" && !strings.HasPrefix(rest, "INDEX") && !strings.HasPrefix(rest, "UNIQUE INDEX"):
		what = create
	case verb == "COMMENT":
		what = "ALTER … OWNER TO " + role
	case strings.HasPrefix(rest, "TYPE"):
		what = own("TYPE") + "; " + create
	case strings.HasPrefix(rest, "DOMAIN"):
		what = own("DOMAIN") + "; " + create
	case strings.HasPrefix(rest, "SEQUENCE"):
		what = own("SEQUENCE") + "; " + create
	default:
		what = own("TABLE") + "; " + create
		if _, other, ok := strings.Cut(sql, " REFERENCES "); ok {
			if n, _, ok := cutQualified(other); ok {
				what += "; GRANT REFERENCES ON " + identOf(n) + " TO " + role
			}
		}
	}
	return "let an administrator of the destination grant what the error names (" + what + "), and start again"
}

// leaveOut notes what was not made, and why.
func (d *ddl) leaveOut(kind, name, reason, sql string, err error) {
	s := d.sink.schema
	s.mu.Lock()
	if !slices.ContainsFunc(s.status.LeftOut, func(o SchemaObject) bool { return o.SQL == sql }) {
		s.status.LeftOut = append(s.status.LeftOut, SchemaObject{Kind: kind, Name: name, Reason: reason, SQL: sql, Err: err})
	}
	s.mu.Unlock()
	d.sink.config.logger.WarnContext(d.ctx, "not made at the destination", "what", kind+" "+name, "why", reason, "sql", sql)
}

// notLeftOut takes back a note of leaveOut's.
func (d *ddl) notLeftOut(sql string) {
	s := d.sink.schema
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.LeftOut = slices.DeleteFunc(s.status.LeftOut, func(o SchemaObject) bool { return o.SQL == sql })
}

// pass says that something of a schema change needs nothing, or can't be.
func (d *ddl) pass(what, why string) {
	d.sink.config.logger.InfoContext(d.ctx, "passed over a part of a schema change", "what", what, "why", why)
}

// makeSchema creates one unless it is there.
func (d *ddl) makeSchema(name string) error {
	there, err := yes(d.ctx, d.pg, "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", name)
	if err != nil || there {
		return err
	}
	return d.run(decode.Name{Schema: name}, "creating the schema", "CREATE SCHEMA "+ident(name))
}
