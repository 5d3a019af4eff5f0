package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// schemaLock is the advisory lock under which schemas are made: of two workers of one destination the second
// finds what the first has made.
const schemaLock = "7165913485012364112"

// maker makes a plan's entries, on a session that holds the lock and, behind the copy, on others.
type maker struct {
	*Sink
	restorer
	st   *sink.Start
	main *session

	mu     sync.Mutex
	failed []SchemaObject
	broken map[int]bool // entries that failed

	before bool // the rows
}

// makerSession opens a session with what SQL from pg_dump relies on.
func (s *Sink) makerSession(ctx context.Context, st *sink.Start) (*session, error) {
	c, err := s.connect(ctx, *st)
	if err != nil {
		return nil, err
	}
	if err := simple(ctx, c.pg, restoreSettings); err != nil {
		c.close(ctx)
		return nil, fmt.Errorf("sink/postgres: %w", err)
	}
	return c, nil
}

// withMaker runs f under the lock, if this epoch still is the one that writes.
func (s *Sink) withMaker(ctx context.Context, st *sink.Start, p *plan, f func(m *maker) error) error {
	c, err := s.makerSession(ctx, st)
	if err != nil {
		return err
	}
	defer c.close(ctx)
	if _, err := exec(ctx, c.pg, "SELECT pg_advisory_lock("+schemaLock+")"); err != nil {
		return fmt.Errorf("sink/postgres: waiting for another worker that makes the schema: %w", err)
	}
	if err := s.guard(ctx, c.pg, st, ""); err != nil {
		return err
	}
	m := &maker{Sink: s, restorer: restorer{sync: s.config.sync, plan: p}, st: st, main: c, broken: map[int]bool{}}
	if err := f(m); err != nil {
		return err
	}
	if len(m.failed) > 0 {
		return &SchemaError{Failed: m.failed}
	}
	return nil
}

// makeBefore makes what rows need.
func (s *Sink) makeBefore(ctx context.Context, st *sink.Start, p *plan) error {
	s.schemaPhase("making tables", len(p.before)+len(p.order)+len(p.attach))
	if len(p.extra) > 0 {
		s.config.logger.WarnContext(ctx, "tables that are not copied are made, empty, because copied ones need them", "tables", p.extra)
	}
	return s.withMaker(ctx, st, p, func(m *maker) error {
		m.before = true
		for _, e := range p.before {
			if err := m.one(ctx, m.main, e); err != nil {
				return err
			}
		}
		if err := m.routedTables(ctx); err != nil {
			return err
		}
		for _, e := range p.attach {
			if err := m.one(ctx, m.main, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// routedTables makes the tables that differ; all that can't be made are reported together.
func (m *maker) routedTables(ctx context.Context) error {
	var bad []error
	for _, oid := range m.plan.order {
		e := m.plan.tables[oid]
		m.schemaBegun(e)
		made, err := m.makeRouted(ctx, m.main.pg, oid)
		m.schemaDone(ctx, e, made)
		switch {
		case errors.Is(err, ErrSchemaRoute):
			bad = append(bad, err)
		case err != nil:
			object, err := refused(e, err)
			if err != nil {
				return err
			}
			m.failed = append(m.failed, object)
		}
	}
	return errors.Join(bad...)
}

// one makes an entry on a session, and notes what can't be.
func (m *maker) one(ctx context.Context, c *session, e *entry) error {
	why, err := m.leftOut(ctx, c.pg, e, m.config.replica)
	if err != nil {
		return err
	}
	if why != "" {
		m.schemaLeftOut(ctx, e, why)
		return nil
	}
	m.schemaBegun(e)
	var made bool
	for try := 0; ; try++ {
		made, err = m.make(ctx, c.pg, e)
		if pgsession.SQLState(err) != "40P01" || try == deadlockTries {
			break
		}
	}
	if m.before && inRowsWay(err) {
		emptied, eerr := m.emptyAwaiting(ctx, c.pg, err)
		if eerr != nil {
			return eerr
		}
		if emptied {
			made, err = m.make(ctx, c.pg, e)
		}
	}
	m.schemaDone(ctx, e, made)
	if err == nil {
		return nil
	}
	object, err := refused(e, err)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failed = append(m.failed, object)
	m.broken[e.id] = true
	return nil
}

// emptyAwaiting takes the rows out of tables that await a fresh copy, and reports whether there are such.
func (m *maker) emptyAwaiting(ctx context.Context, pg *pgconn.PgConn, why error) (bool, error) {
	if err := simple(ctx, pg, begin); err != nil {
		return false, err
	}
	d := m.newDDL(ctx, pg, m.st, nil)
	empty := func() (tables []staleTable, err error) {
		if err = m.guard(ctx, pg, m.st, "FOR NO KEY UPDATE"); err != nil { // another process may have the tables by now
			return nil, err
		}
		if tables, err = d.awaiting(); err != nil {
			return nil, err
		}
		for _, t := range tables {
			if err := d.empty(t.name, t.oid, why); err != nil {
				return nil, err
			}
		}
		return tables, nil
	}
	tables, err := empty()
	if err != nil || len(tables) == 0 {
		return false, errors.Join(err, simple(ctx, pg, "ROLLBACK"))
	}
	return true, commit(ctx, pg)
}

// deadlockTries is how often an entry is tried again that met another session's locks.
const deadlockTries = 5

// makeBehind makes what waits for the rows: keys and indexes side by side, then foreign keys, then what is
// quickly done.
func (s *Sink) makeBehind(ctx context.Context, st *sink.Start, p *plan, tables []sink.CopyTable) error {
	s.schemaPhase("making indexes", len(p.indexes)+len(p.foreign)+len(p.last))
	filtered := map[uint32]bool{}
	for _, t := range tables {
		filtered[t.Source] = t.Filtered
	}
	return s.withMaker(ctx, st, p, func(m *maker) error {
		if err := m.parallel(ctx, p.indexes); err != nil {
			return err
		}
		if err := m.parallel(ctx, p.foreign); err != nil {
			return err
		}
		m.forgive(ctx, filtered)
		if err := m.loosen(ctx, tables); err != nil {
			return err
		}
		for _, e := range p.last {
			if m.waitsFor(e) {
				continue
			}
			if err := m.one(ctx, m.main, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// forgive leaves out foreign keys that the rows don't meet because a rule has filtered or changed them.
func (m *maker) forgive(ctx context.Context, filtered map[uint32]bool) {
	m.failed = slices.DeleteFunc(m.failed, func(o SchemaObject) bool {
		if pgsession.SQLState(o.Err) != "23503" {
			return false
		}
		i := slices.IndexFunc(m.plan.foreign, func(e *entry) bool { return e.sql == o.SQL })
		if i < 0 || !filtered[m.plan.foreign[i].obj.table] && !filtered[m.plan.foreign[i].obj.refers] {
			return false
		}
		m.schemaLeftOut(ctx, m.plan.foreign[i], "rules have filtered rows, and it doesn't hold: "+o.Reason)
		return true
	})
}

// loosen makes foreign keys NOT VALID whose rows refer to some that the stream has yet to bring: of a table that was not
// copied along with theirs, which is of a later time than what has been applied.
func (m *maker) loosen(ctx context.Context, tables []sink.CopyTable) error {
	var left []SchemaObject
	for _, o := range m.failed {
		i := slices.IndexFunc(m.plan.foreign, func(e *entry) bool { return e.sql == o.SQL })
		if i < 0 || pgsession.SQLState(o.Err) != "23503" || slices.ContainsFunc(tables, func(t sink.CopyTable) bool { return t.Source == m.plan.foreign[i].obj.refers }) {
			left = append(left, o)
			continue
		}
		e := *m.plan.foreign[i]
		e.sql = strings.TrimSuffix(strings.TrimSpace(e.sql), ";") + " NOT VALID"
		switch _, err := m.make(ctx, m.main.pg, &e); {
		case err == nil:
			delete(m.broken, e.id)
			m.config.logger.WarnContext(ctx, "made a foreign key NOT VALID: the stream has yet to bring rows that it needs; ALTER TABLE … VALIDATE CONSTRAINT behind that",
				"what", e.label, "why", o.Reason)
		case !lasting(err):
			return fmt.Errorf("sink/postgres: making %s %s: %w", strings.ToLower(e.kind), e.label, err)
		default: // of a partitioned table, before PostgreSQL 18
			left = append(left, o)
		}
	}
	m.failed = left
	return nil
}

// waitsFor reports whether an entry needs one that failed.
func (m *maker) waitsFor(e *entry) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range e.deps {
		if m.broken[id] {
			m.broken[e.id] = true
			return true
		}
	}
	return false
}

// parallel makes entries on several sessions: each as soon as what it needs is made and nobody works on the
// trees that it locks. Those of routed tables, which are renamed meanwhile, come last and one by one.
func (m *maker) parallel(ctx context.Context, entries []*entry) error {
	var side, alone []*entry
	for _, e := range entries {
		if len(m.plan.touches(e)) > 0 {
			alone = append(alone, e)
		} else {
			side = append(side, e)
		}
	}
	if err := m.sideBySide(ctx, side); err != nil {
		return err
	}
	for _, e := range alone {
		if m.waitsFor(e) {
			continue
		}
		if err := m.one(ctx, m.main, e); err != nil {
			return err
		}
	}
	return nil
}

func (m *maker) sideBySide(ctx context.Context, entries []*entry) error {
	if len(entries) == 0 {
		return nil
	}
	jobs := min(m.sync.jobs, len(entries))
	tasks, ended := make(chan *entry), make(chan *entry)
	g, gctx := errgroup.WithContext(ctx)
	for range jobs {
		g.Go(func() error {
			c, err := m.makerSession(gctx, m.st)
			if err != nil {
				return err
			}
			defer c.close(gctx)
			for e := range tasks {
				if !m.waitsFor(e) {
					if err := m.one(gctx, c, e); err != nil {
						return err
					}
				}
				select {
				case ended <- e:
				case <-gctx.Done():
					return gctx.Err()
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(tasks)
		return m.schedule(gctx, entries, tasks, ended)
	})
	return g.Wait()
}

// schedule hands out entries.
func (m *maker) schedule(ctx context.Context, waiting []*entry, tasks chan<- *entry, ended <-chan *entry) error {
	pending, locked := map[int]bool{}, map[uint32]bool{}
	for _, e := range waiting {
		pending[e.id] = true
	}
	waiting = slices.Clone(waiting)
	free := func(e *entry) bool {
		return !slices.ContainsFunc(e.deps, func(id int) bool { return pending[id] }) &&
			!slices.ContainsFunc(m.plan.locks(e), func(t uint32) bool { return locked[t] })
	}
	for len(pending) > 0 {
		next := slices.IndexFunc(waiting, free)
		var out chan<- *entry
		var e *entry
		if next >= 0 {
			out, e = tasks, waiting[next]
		}
		select {
		case out <- e:
			waiting = slices.Delete(waiting, next, next+1)
			for _, t := range m.plan.locks(e) {
				locked[t] = true
			}
		case d := <-ended:
			delete(pending, d.id)
			for _, t := range m.plan.locks(d) {
				delete(locked, t)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
