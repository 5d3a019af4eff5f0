package flo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/deadletter"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/state"
)

// Letter is a dead letter: a change that a worker could not decode, rule or apply for good, as it came from the
// source.
type Letter struct {
	ID       string // among the worker's letters, see Worker.Discard
	Worker   string
	Position Position       // zero for copied rows
	Copy     *decode.CopyID // of a copied row
	Table    decode.Name    // at the source; of a TRUNCATE its first table
	Op       string         // "insert", "update", "delete", "truncate", "schema"
	Reason   string         // at most 1 KiB
	Time     time.Time      // when it was stored
	Tx       *decode.Tx     // without EndLSN; nil for copied rows
	// Raw is the change as PostgreSQL sent it: a message of pgoutput, or a line of COPY's text format.
	Raw  []byte
	body []byte
}

// Change decodes the letter: the change before any rule. It fails as the worker did if that could not decode it.
func (l *Letter) Change() (*Change, error) {
	c, err := readLetter(l.body)
	if err != nil {
		return nil, fmt.Errorf("flo: dead letter %s: %w", l.ID, err)
	}
	c.Tx, c.Ordinal = l.Tx, l.Position.Ordinal
	return c, nil
}

// DeadLetters gives a worker's dead letters in the order of the source, one at a time: memory holds one, and about
// 300 bytes of each other. It may be called while the worker runs, wherever it does. A worker that has none, or
// that nobody knows, has none. An error ends it.
func (f *Flo) DeadLetters(ctx context.Context, worker string) iter.Seq2[*Letter, error] {
	return f.cfg.deadLetters(ctx, worker)
}

// DeadLetters is Flo.DeadLetters of this worker.
func (w *Worker) DeadLetters(ctx context.Context) iter.Seq2[*Letter, error] {
	return w.cfg.deadLetters(ctx, w.opt.name)
}

// Replay writes the dead letters of one of this Flo's workers again, see Worker.Replay.
func (f *Flo) Replay(ctx context.Context, worker string) (int, error) {
	w, err := f.named(worker)
	if err != nil {
		return 0, err
	}
	return w.Replay(ctx)
}

// Discard removes dead letters of one of this Flo's workers, see Worker.Discard.
func (f *Flo) Discard(ctx context.Context, worker string, ids ...string) error {
	w, err := f.named(worker)
	if err != nil {
		return err
	}
	return w.Discard(ctx, ids...)
}

func (f *Flo) named(worker string) (*Worker, error) {
	for _, w := range f.workers {
		if w.opt.name == worker {
			return w, nil
		}
	}
	return nil, fmt.Errorf("flo: this Flo has no worker %q: make one with that name and its sink", worker)
}

func (c *config) deadLetters(ctx context.Context, worker string) iter.Seq2[*Letter, error] {
	return func(yield func(*Letter, error) bool) {
		link, err := c.connectNATS(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		defer link.close()
		stream, err := bus.Open(ctx, c.bus(link))
		if errors.Is(err, bus.ErrNoStream) {
			return
		}
		if err != nil {
			yield(nil, err)
			return
		}
		store := deadletter.Open(link.js, c.group, stream.Incarnation(), worker, stream.Replicas())
		list, err := store.List(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		for i := range list {
			if list[i].Kind == deadletter.Emptied {
				continue
			}
			l, err := getLetter(ctx, store, &list[i])
			if errors.Is(err, deadletter.ErrNotFound) && ctx.Err() == nil && replayedMeanwhile(ctx, store, &list[i]) {
				continue
			}
			if !yield(l, err) || err != nil {
				return
			}
		}
	}
}

// replayedMeanwhile reports whether a letter is gone as a whole.
func replayedMeanwhile(ctx context.Context, store *deadletter.Store, e *deadletter.Entry) bool {
	list, err := store.List(ctx)
	return err == nil && !slices.ContainsFunc(list, func(x deadletter.Entry) bool { return x.ID() == e.ID() })
}

func getLetter(ctx context.Context, store *deadletter.Store, e *deadletter.Entry) (*Letter, error) {
	h, body, err := store.Get(ctx, e)
	if err != nil {
		return nil, err
	}
	l := &Letter{ID: e.ID(), Worker: h.Worker, Position: e.Position, Copy: h.Copy, Table: h.Table, Op: h.Op, Reason: h.Reason, Time: h.Time, body: body}
	if h.Copy == nil {
		l.Tx = &decode.Tx{XID: h.XID, CommitLSN: e.Position.LSN, Origin: h.Origin}
		if h.CommitTime != nil {
			l.Tx.CommitTime = *h.CommitTime
		}
	}
	err = wire.Walk(body, func(rec wire.Record) error {
		switch rec.Type {
		case wire.RecDescribe, 'R':
			return nil
		case wire.RecCopyChunk:
			c, err := wire.ParseCopyChunk(rec.Data)
			l.Raw = c.Data
			return err
		}
		l.Raw = rec.Data
		return nil
	})
	return l, err
}

// Replay writes the worker's dead letters again, through its rules and into its sink, in the order of the source,
// each in a transaction of its own, and removes those that went well. It gives how many. A letter that fails again
// stays, as do the later ones of the same row, and the error says why the first one did; the others are written
// nevertheless. Of a transactional sink each is written exactly once, whatever dies meanwhile.
//
// It needs the worker's name for itself: while the worker runs, in whatever process, it is ErrRunning, which takes
// up to the lease's time to find out. Letters that the worker has not passed for good (it died in their
// transaction, or the initial copy is not drained) wait for it: run it, then replay. Letters from before a TRUNCATE
// of their table, or a fresh copy, are out of date, and removed without being written.
//
// One that is interrupted, by a lost connection or because the lease could not be renewed in time (ErrLeaseLost), may be
// called again: what was written is written once, and the other letters are there.
//
// The sink stays open, so that Run may follow: Run closes it. Close it if none follows.
func (w *Worker) Replay(ctx context.Context) (n int, err error) {
	err = w.alone(ctx, func(ctx context.Context, s *working) error {
		if err := s.tidyLetters(ctx); err != nil {
			return err
		}
		n, err = s.replay(ctx)
		return err
	})
	return n, err
}

// Discard removes dead letters without writing them: what they say is not at the destination, and won't be. Like
// Replay it needs the worker's name for itself, and letters that the worker has passed. IDs that are gone already
// are no error.
func (w *Worker) Discard(ctx context.Context, ids ...string) error {
	return w.alone(ctx, func(ctx context.Context, s *working) error {
		for i := range s.letters.list {
			if e := &s.letters.list[i]; e.Kind != deadletter.Emptied && slices.Contains(ids, e.ID()) && !s.behind(e) {
				return fmt.Errorf("flo: worker %q has not passed dead letter %s: run it first", w.opt.name, e.ID())
			}
		}
		n, err := s.letters.remove(ctx, func(e *deadletter.Entry) bool {
			return e.Kind != deadletter.Emptied && slices.Contains(ids, e.ID())
		})
		if n > 0 {
			s.log.WarnContext(ctx, "dead letters were discarded", slog.Int("letters", n), slog.Any("ids", ids))
		}
		return err
	})
}

// alone calls f with the worker's name held and its sink open, unless the worker has no letters.
func (w *Worker) alone(ctx context.Context, f func(context.Context, *working) error) error {
	if !w.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer w.running.Store(false)
	link, err := w.cfg.connectNATS(ctx)
	if err != nil {
		return err
	}
	defer link.close()
	stream, err := bus.Open(ctx, w.cfg.bus(link))
	if err != nil {
		return named(err)
	}
	store, err := state.NewNATS(ctx, link.state, w.cfg.group, w.cfg.replicas, false)
	if err != nil {
		return err
	}
	list, err := deadletter.Open(link.js, w.cfg.group, stream.Incarnation(), w.opt.name, stream.Replicas()).List(ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	t, err := w.claim(ctx, store)
	if err != nil {
		return err
	}
	defer t.end()
	defer w.status.stop(nil)
	s := &working{Worker: w, stream: stream}
	err = t.judge(func() error {
		if err := s.register(t.stop, store); err != nil {
			return err
		}
		if err := s.open(t.stop); err != nil {
			return err
		}
		if !s.start.IsZero() && s.start.Incarnation != stream.Incarnation() {
			return fmt.Errorf("%w: the sink of worker %q holds a checkpoint of stream %q, and the dead letters are of %q: run the worker first",
				ErrStreamLost, w.opt.name, s.start.Incarnation, stream.Incarnation())
		}
		if err := s.loadLetters(t.stop); err != nil {
			return err
		}
		return f(t.stop, s)
	}())
	if errors.Is(err, state.ErrLost) {
		return fmt.Errorf("%w while dead letters were worked on: call it again; what is done stays done, and the other letters are there: %w", ErrLeaseLost, err)
	}
	return err
}

// claim takes the worker's lease, or gives ErrRunning if another process keeps it.
func (w *Worker) claim(ctx context.Context, store state.Store) (*tenure, error) {
	wait, cancel := context.WithTimeout(ctx, w.cfg.lease+closeBound)
	defer cancel()
	active := ""
	hold, err := state.Acquire(wait, store, state.WorkerLease(w.opt.name), w.cfg.lease, func(l state.Lease) { active = l.Process.String() })
	if err != nil {
		if active != "" && ctx.Err() == nil {
			return nil, fmt.Errorf("%w: worker %q runs in process %s: stop it first", ErrRunning, w.opt.name, active)
		}
		return nil, err
	}
	return newTenure(ctx, hold, w.cfg, w.log), nil
}

// behind reports whether the sink's checkpoint is behind a letter, so that the worker never meets its change again.
func (s *working) behind(e *deadletter.Entry) bool {
	if e.Kind == deadletter.Copied {
		return s.start.Attempt >= e.Copy.Attempt
	}
	return e.Position.LSN < s.start.End
}

// tidyLetters removes letters that a truncation has made obsolete, and marks that have done their work.
func (s *working) tidyLetters(ctx context.Context) error {
	l := s.letters
	counts := func(m *deadletter.Entry) bool {
		return m.Kind == deadletter.Emptied && s.behind(m) && !l.has(m.Position)
	}
	obsolete := func(e *deadletter.Entry) bool {
		return slices.ContainsFunc(l.marks, func(m deadletter.Entry) bool { return e.Obsolete(&m) && counts(&m) })
	}
	old := map[string]bool{} // remove changes the list
	for i := range l.list {
		if obsolete(&l.list[i]) {
			old[l.list[i].ID()] = true
		}
	}
	n, err := l.remove(ctx, func(e *deadletter.Entry) bool { return e.Kind != deadletter.Emptied && old[e.ID()] })
	if n > 0 {
		s.log.InfoContext(ctx, "dead letters are out of date: their tables were truncated behind them", slog.Int("letters", n))
	}
	if err != nil {
		return err
	}
	done := map[decode.Position]bool{}
	for i := range l.marks {
		if counts(&l.marks[i]) {
			done[l.marks[i].Position] = true
		}
	}
	_, err = l.remove(ctx, func(e *deadletter.Entry) bool { return e.Kind == deadletter.Emptied && done[e.Position] })
	return err
}

// replay writes letters, and removes those that went well.
func (s *working) replay(ctx context.Context) (n int, err error) {
	binder := rules.NewBinder(s.opt.rules)
	waiting := letters{Worker: s.Worker} // those that stay: later ones of their rows stay too
	waiting.index()
	var first error
	for _, e := range slices.Clone(s.letters.list) {
		if e.Kind == deadletter.Emptied {
			continue
		}
		if !s.behind(&e) {
			if first == nil {
				first = fmt.Errorf("flo: worker %q has not passed dead letter %s: run it first", s.opt.name, e.ID())
			}
			waiting.block(&e)
			continue
		}
		if waiting.blocks(&e) {
			waiting.block(&e)
			continue
		}
		refused, err := s.replayOne(ctx, binder, &e)
		if err != nil {
			return n, err
		}
		if refused != nil {
			if first == nil {
				first = refused
			}
			waiting.block(&e)
			continue
		}
		if err := s.letters.store.Delete(ctx, &e); err != nil { // the session's list ends with it
			return n, err
		}
		n++
		s.status.letters(s.letters.count-n, "")
	}
	s.log.InfoContext(ctx, "dead letters were replayed", slog.Int("written", n), slog.Int("stay", waiting.count))
	if first != nil {
		return n, fmt.Errorf("flo: %d dead letters of worker %q stay: %w", waiting.count, s.opt.name, first)
	}
	return n, nil
}

func (l *letters) block(e *deadletter.Entry) {
	l.note(e)
	l.present.Store(true)
}

// blocks reports whether a letter has to wait for one before it. A truncation waits for none: it ends them.
func (l *letters) blocks(e *deadletter.Entry) bool {
	if e.Whole && len(e.Rows) == 0 {
		return false
	}
	for _, t := range e.Tables {
		if l.tables[t].id != "" {
			return true
		}
		for _, r := range e.Rows {
			if l.rows[heldRow{t, r}].id != "" {
				return true
			}
		}
	}
	return false
}

// replayOne writes one letter. A refusal leaves the sink as it was.
func (s *working) replayOne(ctx context.Context, binder *rules.Binder, e *deadletter.Entry) (refused, err error) {
	l, err := getLetter(ctx, s.letters.store, e)
	if err != nil {
		return nil, err
	}
	refuse := func(why error) error {
		return &SinkError{Worker: s.opt.name, Position: l.Position, Copy: l.Copy, Table: l.Table, Err: why}
	}
	c, err := l.Change()
	if err != nil {
		return refuse(err), nil
	}
	keep, err := applyRules(binder, c)
	if err != nil {
		return refuse(err), nil
	}
	if !keep {
		return nil, nil
	}
	cp := s.start
	if s.tx != nil {
		cp.Replayed = e.ID()
	}
	if err = s.opt.sink.Write(ctx, &sink.Batch{Changes: []*decode.Change{c}, Checkpoint: cp, Epoch: s.epoch}); err == nil {
		s.start = cp
		return nil, nil
	}
	if !aboutChanges(err) {
		return nil, s.sinkError(nil, err)
	}
	if s.tx != nil {
		if err := s.rewind(ctx); err != nil {
			return nil, err
		}
	}
	return refuse(plainReason(err)), nil
}

// dropLetters deletes what a worker that is no more has left.
func dropLetters(ctx context.Context, link *link, c *config, worker string) error {
	stream, err := bus.Open(ctx, c.bus(link))
	if errors.Is(err, bus.ErrNoStream) {
		return nil
	}
	if err != nil {
		return err
	}
	store := deadletter.Open(link.js, c.group, stream.Incarnation(), worker, stream.Replicas())
	if _, err := store.List(ctx); err != nil {
		return err
	}
	return store.DeleteAll(ctx)
}
