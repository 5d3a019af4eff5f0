package postgres

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// writing is one batch on its way into the open transaction.
type writing struct {
	ctx    context.Context
	sink   *Sink
	batch  *sink.Batch
	groups []group
	rows   rowApplier
	sets   setApplier
	q      *pipeline // nil while there is none: COPY needs the connection for itself

	// tried is the group that the savepoint stands in front of, -1 if none of this batch, and missing
	// and custom what the transaction had of them then.
	tried   int
	missing uint64
	custom  bool

	busy bool // changes are in the pipeline

	// swift is a transaction that begins with COPY and takes two round trips, of the four that it takes step by step: BEGIN,
	// the lock of the checkpoint's row and COPY go together, and at the end the new checkpoint and COMMIT. The row is
	// compared with what this sink left in it by the UPDATE itself, which fails, COMMIT with it, if it differs. Whatever
	// the server refuses is tried again step by step: those errors say what and which.
	swift bool
}

// The savepoint in front of a group. It is released only when all answers about the group have been read,
// since one that the server takes for a success (no row met) may be a reason to undo it, and before other
// changes, so that their rows are of the transaction itself, by which a deferrable key is followed (see
// finding.fifo). The commit does without: it takes the group with it.
const (
	setSavepoint     = "SAVEPOINT flo_group"
	releaseSavepoint = "RELEASE SAVEPOINT flo_group"
	undoGroup        = "ROLLBACK TO SAVEPOINT flo_group"
)

func newWriting(ctx context.Context, s *Sink, b *sink.Batch) *writing {
	w := &writing{ctx: ctx, sink: s, batch: b, tried: -1, rows: rowApplier{session: s.main, heal: s.heal}, sets: setApplier{session: s.main}}
	if !s.config.rowByRow {
		w.groups = s.main.planner.plan(&s.main.bindings, b.Changes, w.whole())
	}
	if w.groups == nil {
		w.groups = []group{{to: len(b.Changes), left: len(b.Changes)}}
	}
	return w
}

// pipe gives the pipeline, begun if there is none.
func (w *writing) pipe() *pipeline {
	if w.q == nil {
		w.q = newPipeline(w.ctx, w.sink.main, w.sink.rowMissing)
	}
	return w.q
}

// drop ends the pipeline after an error.
func (w *writing) drop() {
	if w.q != nil {
		w.q.abandon()
		w.q, w.busy = nil, false
	}
	w.sink.main.settle()
}

// finish waits for all answers, and ends the pipeline.
func (w *writing) finish() error {
	if w.q == nil {
		return nil
	}
	if err := w.q.finish(); err != nil {
		return err
	}
	w.q, w.busy = nil, false
	return nil
}

// begin begins the transaction, unless it goes on.
func (w *writing) begin() error {
	s := w.sink
	if s.tx.begun {
		return nil
	}
	s.tx.begun = true
	for _, ch := range w.batch.Changes {
		if bound := s.main.bindings.get(ch.Relation); bound != nil && bound.deferrable() {
			s.tx.deferred = true
		}
	}
	if w.swift {
		return nil // see opening
	}
	if err := w.pipe().run(-1, begin); err != nil {
		return err
	}
	if err := s.verify(w.q, s.start.Load()); err != nil {
		return err
	}
	if s.tx.deferred {
		return w.q.run(-1, deferConstraints)
	}
	return nil
}

// whole reports whether the batch is all of a transaction, with a checkpoint of this sink's own row.
func (w *writing) whole() bool {
	s, b := w.sink, w.batch
	return !s.tx.begun && !b.More && !b.Checkpoint.IsZero() && s.mark.rows == ""
}

// maySwift reports whether the transaction may be swift.
func (w *writing) maySwift() bool { return w.whole() && w.groups[0].copies != nil }

// opening is what the COPY that begins a swift transaction is sent behind.
func (w *writing) opening() string {
	st := w.sink.start.Load()
	sql := begin + "; " + w.sink.books.lockRow(literal(st.Group), literal(st.Worker)) + "; "
	if w.sink.tx.deferred {
		sql += deferConstraints + "; "
	}
	return sql
}

// end ends a swift transaction.
func (w *writing) end(cp string) error {
	st, s := w.sink.start.Load(), w.sink
	q := w.pipe()
	if err := q.one(s.main.storeOwn, text(st.Group, st.Worker, cp, w.batch.Checkpoint.Incarnation, number(st.Epoch), s.stored, number(s.main.pid)), nil); err != nil {
		return err
	}
	return q.commit(func() { s.tx.ended = true })
}

// send applies the groups from one on, and stores the checkpoint.
func (w *writing) send(at int) error {
	for ; at < len(w.groups); at++ {
		if err := w.group(at); err != nil {
			return err
		}
	}
	if err := w.bring(len(w.batch.Changes)); err != nil {
		return err
	}
	if err := w.store(); err != nil {
		return err
	}
	return w.finish()
}

func (w *writing) store() error {
	b, st := w.batch, w.sink.start.Load()
	if b.More {
		return nil
	}
	if w.swift {
		if err := w.finish(); err != nil { // COMMIT may only be sent when all answers were as they should be
			return err
		}
	}
	if b.Lazy && w.sink.Lags() {
		if err := w.pipe().run(-1, commitLazily); err != nil {
			return err
		}
	}
	if b.Checkpoint.IsZero() {
		return nil
	}
	cp, err := b.Checkpoint.MarshalText()
	if err != nil {
		return &requestError{-1, err}
	}
	if w.swift {
		return w.end(string(cp))
	}
	if m := w.sink.mark; m.rows != "" {
		return w.pipe().one(w.sink.main.storeAll, text(st.Group, m.rows, string(cp), b.Checkpoint.Incarnation, m.ahead), nil)
	}
	return w.pipe().one(w.sink.main.store, text(st.Group, st.Worker, string(cp), b.Checkpoint.Incarnation), nil)
}

func (w *writing) group(at int) error {
	g, tx := &w.groups[at], &w.sink.tx
	if !g.trial() {
		if tx.savepoint && g.from < g.to {
			if err := w.release(); err != nil {
				return err
			}
		}
		return w.single(g, nil)
	}
	// Of what stands in front of the savepoint all answers are read before: it is not undone, and counted.
	if w.busy || g.copies != nil {
		if err := w.finish(); err != nil {
			return err
		}
	}
	w.busy = true
	w.tried, w.missing, w.custom = at, tx.missing, tx.custom
	before := []string{setSavepoint}
	if tx.savepoint {
		before = []string{releaseSavepoint, setSavepoint}
	}
	tx.savepoint = true
	if g.copies == nil {
		for _, sql := range before {
			if err := w.pipe().run(-1, sql); err != nil {
				return err
			}
		}
	}
	head := strings.Join(before, "; ") + "; "
	if w.swift && at == 0 {
		head = w.opening() + head
	}
	for n, run := range g.copies {
		if err := w.copyIn(pick(n == 0, head, ""), run); err != nil {
			return err
		}
	}
	for _, run := range g.sets {
		if err := w.set(run); err != nil {
			return err
		}
	}
	if g.left == 0 {
		return nil
	}
	return w.single(g, w.sink.main.planner.taken)
}

// single applies a group's changes one by one, those left out that have been taken.
func (w *writing) single(g *group, taken []bool) error {
	w.busy = true
	if err := w.plan(false); err != nil {
		return err
	}
	return w.rows.apply(w, w.batch.Changes, g.from, g.to, taken)
}

// Sets are planned each time, for the number of rows at hand and the table as it is by now: a plan made
// while the table was small may read all of it, for each row of the set. Single changes have one plan.
// https://www.postgresql.org/docs/current/runtime-config-query.html#GUC-PLAN-CACHE-MODE
const (
	planEach = "SET LOCAL plan_cache_mode = force_custom_plan"
	planOnce = "SET LOCAL plan_cache_mode TO DEFAULT"
)

// plan says how the statements that follow are planned.
func (w *writing) plan(custom bool) error {
	if w.sink.tx.custom == custom {
		return nil
	}
	w.sink.tx.custom = custom
	return w.pipe().run(-1, pick(custom, planEach, planOnce))
}

// set sends a set.
func (w *writing) set(run *setRun) error {
	if err := w.plan(true); err != nil {
		return err
	}
	w.sink.stats.sets.Add(1)
	err := w.sets.apply(w.pipe(), run, func(want, got int64) error { return w.met(run, want, got) })
	var req *requestError
	if err != nil && !errors.As(err, &req) {
		return &requestError{run.change, err}
	}
	return err
}

// errRowsUnmet is a set that has not met each of its rows.
const errRowsUnmet = refusal("a set has not met all of its rows")

// met compares what a set was for with what it met. A row that was not met is a missing row if one change
// was about it; of several, it may be another of them that would have met it.
func (w *writing) met(run *setRun, want, got int64) error {
	if run.counted() && got != want {
		if !run.single || got > want || w.sink.refusesMissing() {
			return errRowsUnmet
		}
		w.sink.tx.missing += uint64(want - got)
	}
	return nil
}

// release makes what was applied under the savepoint part of the transaction itself.
func (w *writing) release() error {
	if err := w.finish(); err != nil {
		return err
	}
	w.sink.tx.savepoint, w.tried = false, -1
	return w.pipe().run(-1, releaseSavepoint)
}

// copyIn sends a run's rows, with statements before them.
func (w *writing) copyIn(before string, run *copyRun) error {
	r := &copyReader{run: run, whole: len(run.columns) == len(run.binding.columns)}
	tag, err := w.sink.main.pg.CopyFrom(w.ctx, r, before+run.binding.copyInto(run.binding.table.sql, run.columns))
	r.stop()
	if err == nil && tag.RowsAffected() != int64(len(run.rows)) {
		err = errRowsLeftOut
	}
	if err != nil {
		return &requestError{run.change, &copyError{run.binding, err}}
	}
	w.sink.stats.runs.Add(1)
	return nil
}

// errRowsLeftOut is a COPY that has not taken all rows: a trigger that came after the table was looked up.
const errRowsLeftOut = refusal("COPY has left rows out")

// copyError is what went wrong with a COPY.
type copyError struct {
	binding *binding
	err     error
}

func (e *copyError) Error() string { return e.err.Error() }
func (e *copyError) Unwrap() error { return e.err }

// setError is what went wrong with a set.
type setError struct {
	binding *binding
	err     error
}

func (e *setError) Error() string { return e.err.Error() }
func (e *setError) Unwrap() error { return e.err }

// undoable gives the group that err is about, if it is to be undone and applied again change by change,
// or -1. What may pass by itself is left to those who try the whole transaction again.
func (w *writing) undoable(err error) int {
	var req *requestError
	if w.tried < 0 || !errors.As(err, &req) {
		return -1
	}
	if g := &w.groups[w.tried]; req.change < g.from || req.change >= g.to || !g.trial() {
		return -1
	}
	if !lasting(err) && !staleCatalog(err) {
		return -1
	}
	w.blame(err)
	return w.tried
}

// blame notes which table it is whose COPY or set has failed for good, so that it is left alone for a while.
func (w *writing) blame(err error) {
	if !lasting(err) && !staleCatalog(err) {
		return
	}
	batch := w.sink.main.planner.batch
	var copied *copyError
	if errors.As(err, &copied) {
		copied.binding.copies.begin(batch)
	}
	var set *setError
	if errors.As(err, &set) {
		set.binding.sets.begin(batch)
	}
}

// undo takes back what was applied of a group, so that send does it change by change.
func (w *writing) undo(at int) error {
	w.sink.tx.missing, w.sink.tx.custom = w.missing, w.custom
	w.sink.stats.undone.Add(1)
	w.groups[at].copies, w.groups[at].sets = nil, nil
	if err := w.pipe().run(-1, undoGroup); err != nil {
		return err
	}
	return w.release()
}

// copyReader gives a run's rows in COPY's text format, encoded while they are sent.
type copyReader struct {
	run   *copyRun
	whole bool // all columns are written

	mu      sync.Mutex // pgconn may leave its reading goroutine behind when the connection breaks
	stopped bool
	next    int // of the run's changes
	row     decode.Row
	buf     []byte // encoded
	rest    []byte // of buf, not read yet
}

// Read encodes rows until p is full.
func (r *copyReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(p) {
		if len(r.rest) == 0 {
			if r.stopped || r.next == len(r.run.rows) {
				break
			}
			if err := r.encode(); err != nil {
				return n, err
			}
		}
		k := copy(p[n:], r.rest)
		n, r.rest = n+k, r.rest[k:]
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// encode makes the next row's bytes.
func (r *copyReader) encode() error {
	row := r.run.rows[r.next]
	r.next++
	if !r.whole {
		r.row = r.row[:0]
		for _, i := range r.run.columns {
			r.row = append(r.row, row[i])
		}
		row = r.row
	}
	var err error
	r.buf, err = decode.AppendCopyRow(r.buf[:0], row)
	r.rest = r.buf
	return err
}

// stop makes sure that the rows are no longer read.
func (r *copyReader) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopped, r.rest = true, nil
}
