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

// againError is an error that may pass when the transaction is applied once more, seen afresh: the
// destination's catalog has changed since it was looked up, or (see Sink.heal) a row stood there before.
type againError struct{ err error }

func (e *againError) Error() string { return e.err.Error() }
func (e *againError) Unwrap() error { return e.err }

// again marks err as worth one more try, unless that was it.
func (s *Sink) again(err error) error {
	switch {
	case s.tx.deferred && !s.heal && pgsession.SQLState(err) == "23505":
		s.heal = true
	case !s.afresh && staleCatalog(err):
		s.afresh = true
	default:
		return nil
	}
	return &againError{err}
}

// write applies one batch to the open transaction, or a new one, and commits unless more comes.
func (s *Sink) write(ctx context.Context, b *sink.Batch) error {
	s.main.bindings.trim()
	if err := s.addLabels(ctx, b.Changes); err != nil {
		return err
	}
	for from := 0; ; {
		to := from + slices.IndexFunc(b.Changes[from:], func(ch *decode.Change) bool { return ch.Op == decode.OpSchema })
		if to < from {
			if err := s.writeRows(ctx, b, from, len(b.Changes), b.More); err != nil {
				return err
			}
			break
		}
		// What comes before is written by the old structure, what comes behind by the new one.
		if err := s.writeRows(ctx, b, from, to, true); err != nil {
			return err
		}
		if !s.config.ddl.ignore {
			if err := s.applySchema(ctx, b.Changes[to].Schema, b.Changes[to].Tx); err != nil {
				return judge(err, to)
			}
		}
		from = to + 1
	}
	s.tx.changes += uint64(len(b.Changes))
	if b.More {
		return nil
	}
	if s.tx.ended {
		s.stats.swift.Add(1)
	} else if err := commit(ctx, s.main.pg); err != nil {
		err = fmt.Errorf("sink/postgres: committing: %w", err)
		if again := s.again(err); again != nil {
			return again
		}
		return judge(err, -1)
	}
	if !b.Checkpoint.IsZero() {
		text, err := b.Checkpoint.MarshalText()
		if err != nil {
			return err
		}
		s.stored = string(text)
	}
	s.stats.transactions.Add(1)
	s.stats.changes.Add(s.tx.changes)
	s.stats.missing.Add(s.tx.missing)
	s.tx = transaction{}
	return nil
}

// writeRows applies a span of a batch without schema changes to the open transaction, or begins one.
func (s *Sink) writeRows(ctx context.Context, b *sink.Batch, from, to int, more bool) error {
	if from == to && more && s.tx.begun {
		return nil
	}
	for i := from; i < to; i++ {
		if err := s.bindChange(ctx, b.Changes[i]); err != nil {
			return judge(err, i)
		}
	}
	if err := s.weigh(ctx, b.Changes[from:to]); err != nil {
		return judge(err, -1)
	}
	part := *b
	part.Changes, part.More = b.Changes[from:to], more
	if err := s.applyBatch(ctx, &part); err != nil {
		var req *requestError
		if errors.As(err, &req) && req.change >= 0 {
			err = &requestError{req.change + from, req.err}
		}
		return s.explain(err, b)
	}
	return nil
}

// bindChange looks up what a change needs, before the pipeline takes the connection.
func (s *Sink) bindChange(ctx context.Context, ch *decode.Change) error {
	if ch.Op == decode.OpTruncate && ch.Truncate != nil {
		for _, rel := range ch.Truncate.Relations {
			if _, err := s.main.bind(ctx, rel); err != nil {
				return err
			}
		}
		return nil
	}
	if ch.Relation == nil || ch.Op == decode.OpMessage || ch.Op == decode.OpSchema {
		return nil
	}
	b, err := s.main.bind(ctx, ch.Relation)
	if err != nil {
		return err
	}
	if err := s.checkPlace(ctx, b); err != nil {
		return err
	}
	if b.deferrable() && !s.tx.deferred {
		if !s.tx.begun {
			return nil // applyBatch begins and defers at once
		}
		if err := simple(ctx, s.main.pg, deferConstraints); err != nil {
			return err
		}
		s.tx.deferred = true
	}
	return nil
}

// deferConstraints lets keys that the source checks at the end of a statement or of the transaction be
// checked so here too: one statement there is many here.
const deferConstraints = "SET CONSTRAINTS ALL DEFERRED"

func (s *Sink) applyBatch(ctx context.Context, b *sink.Batch) error {
	w := newWriting(ctx, s, b)
	w.swift = w.maySwift()
	err := w.begin()
	if err == nil {
		err = w.send(0)
	}
	if err != nil && w.swift {
		w.drop()
		if s.tx.ended {
			return err
		}
		if s.main.pg.IsClosed() || ctx.Err() != nil || !s.main.reset(ctx) {
			return untried(err)
		}
		s.tx = transaction{}
		s.stats.undone.Add(1)
		w.blame(err)
		s.main.planner.batch-- // it is planned again
		w = newWriting(ctx, s, b)
		if err = w.begin(); err == nil {
			err = w.send(0)
		}
	}
	for err != nil {
		at := w.undoable(err)
		if at >= 0 && (s.main.pg.IsClosed() || ctx.Err() != nil) {
			at, err = -1, untried(err)
		}
		w.drop()
		if at < 0 {
			return err
		}
		if err = w.undo(at); err == nil {
			err = w.send(at)
		}
	}
	return nil
}

// untried is an error before which the connection was lost, so that nobody knows whether what was refused as a whole would
// have been taken step by step: it is no verdict on any change.
func untried(err error) error {
	if !lasting(err) {
		return err
	}
	return &requestError{-1, fmt.Errorf("%w, before what was refused could be tried step by step: %v", pgconn.ErrConnClosed, err)}
}

// verify locks the checkpoint row for the transaction and makes sure that it is as this sink left it.
// Its answer is read before COMMIT is sent, so nothing is applied twice, nor by two. See writing.swift for another way.
func (s *Sink) verify(q *pipeline, st *sink.Start) error {
	return q.one(s.main.lock, text(st.Group, st.Worker), func(row [][]byte) error {
		if string(row[2]) != number(s.main.pid) {
			return ErrPooler
		}
		if err := checkEpoch(row[0], *st); err != nil {
			return err
		}
		if string(row[0]) != number(st.Epoch) || string(row[1]) != s.stored {
			return fmt.Errorf("group %q, worker %q: %w", st.Group, st.Worker, ErrCheckpointMoved)
		}
		return nil
	})
}

// rowMissing is called for an UPDATE or DELETE that met no row.
func (s *Sink) rowMissing(int) error {
	if s.refusesMissing() {
		return ErrRowMissing
	}
	s.tx.missing++
	return nil
}

// refusesMissing reports whether an UPDATE or DELETE has to meet a row.
func (s *Sink) refusesMissing() bool { return s.config.replica && !s.config.missingOK }

// explain names the table and the change, and says whether trying again is worth it.
func (s *Sink) explain(err error, b *sink.Batch) error {
	at := -1
	var req *requestError
	if errors.As(err, &req) {
		at, err = req.change, req.err
	}
	if at < 0 || at >= len(b.Changes) {
		return judge(fmt.Errorf("sink/postgres: writing: %w", err), -1)
	}
	if again := s.again(err); again != nil {
		return again
	}
	var named *TableError
	if rel := b.Changes[at].Relation; rel != nil && !errors.As(err, &named) {
		err = tableError(rel.Qualified(), err, b.Changes[at].Op.String()+" at "+b.Changes[at].Position().String())
	}
	return judge(err, at)
}

// rowApplier sends each change as statements of its own.
type rowApplier struct {
	session *session
	heal    bool
	pattern []byte
	params  [][]byte
}

// apply sends the changes from one index to another, those left out that have been taken.
func (a *rowApplier) apply(w *writing, changes []*decode.Change, from, to int, taken []bool) error {
	for i := from; i < to; i++ {
		if taken != nil && taken[i] || changes[i].Op == decode.OpMessage {
			continue
		}
		var err error
		if changes[i].Op == decode.OpTruncate {
			err = a.truncate(w, i, changes[i])
		} else {
			err = a.change(w.pipe(), i, changes[i])
		}
		if err != nil {
			var req *requestError
			if errors.As(err, &req) {
				return err
			}
			return &requestError{i, err}
		}
	}
	return nil
}

func (a *rowApplier) change(q *pipeline, i int, ch *decode.Change) error {
	switch ch.Op {
	case decode.OpInsert, decode.OpUpdate, decode.OpDelete:
	default:
		return fmt.Errorf("sink/postgres: %s: %w", ch.Op, sink.ErrUnsupported)
	}
	if ch.Relation == nil {
		return fmt.Errorf("sink/postgres: %s: %w", ch.Op, errShape)
	}
	b := a.session.bindings.get(ch.Relation)
	if err := b.fits(ch); err != nil {
		return err
	}
	p, err := a.program(b, ch)
	if err != nil {
		return err
	}
	if err := a.session.use(q, p); err != nil {
		return err
	}
	for _, st := range p.steps {
		if !st.prepared {
			if err := q.prepare(i, st); err != nil {
				return err
			}
		}
		a.params = a.params[:0]
		for _, ref := range st.params {
			a.params = append(a.params, ref.of(ch).Bytes())
		}
		if err := q.execute(i, st, a.params); err != nil {
			return err
		}
	}
	return nil
}

// use notes that a program is used, and lets the server forget the one that has to go for it.
func (c *session) use(q *pipeline, p *program) error {
	victim := c.programs.use(p)
	if victim == nil {
		return nil
	}
	for _, st := range victim.steps {
		if st.prepared {
			if err := q.deallocate(st.name); err != nil {
				return err
			}
		}
	}
	return nil
}

// errShape is a change that does not agree with its relation.
const errShape = refusal("the change does not have its relation's columns")

// fits makes sure that the rows have the relation's columns.
func (b *binding) fits(ch *decode.Change) error {
	n := len(b.columns)
	ok := true
	switch ch.Op {
	case decode.OpInsert, decode.OpUpdate:
		ok = len(ch.New) == n && (ch.Old == nil || len(ch.Old) == n)
	case decode.OpDelete:
		ok = len(ch.Old) == n
	}
	if !ok {
		return tableError(b.table.name, errShape, ch.Op.String())
	}
	return nil
}

// truncate empties all tables of one TRUNCATE in one statement.
func (a *rowApplier) truncate(w *writing, i int, ch *decode.Change) error {
	if ch.Truncate == nil || len(ch.Truncate.Relations) == 0 {
		return nil
	}
	if err := w.bring(i); err != nil { // what stands in front of it goes too
		return err
	}
	names := make([]string, 0, len(ch.Truncate.Relations))
	for _, rel := range ch.Truncate.Relations {
		if merged, err := w.truncateMerged(i, rel); err != nil {
			return err
		} else if merged {
			continue
		}
		names = append(names, a.session.bindings.get(rel).table.from)
	}
	if len(names) == 0 {
		return nil
	}
	sql := "TRUNCATE TABLE " + strings.Join(names, ", ")
	if ch.Truncate.RestartIdentity {
		sql += " RESTART IDENTITY"
	}
	if ch.Truncate.Cascade {
		sql += " CASCADE"
	}
	return w.pipe().run(i, sql)
}
