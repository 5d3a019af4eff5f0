package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/crashpoint"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/state"
)

// write gives batches to the sink, one after the other.
func (s *working) write(ctx context.Context, in <-chan *batch) error {
	calm := time.NewTimer(sessionGrace)
	defer calm.Stop()
	for {
		var b *batch
		var ok bool
		select {
		case <-calm.C:
			s.status.passed() // nothing fails, and nothing is left to write
			continue
		case <-s.lag.due:
			if err := s.settle(ctx); err != nil {
				return err
			}
			continue
		case b, ok = <-in:
		}
		if !ok {
			return s.settle(ctx)
		}
		if b.barrier != nil {
			if err := s.settle(ctx); err != nil {
				return err
			}
			close(b.barrier)
			continue
		}
		if err := s.writeBatch(ctx, b); err != nil {
			return err
		}
	}
}

// writeBatch writes one batch. A sink that keeps no checkpoint of its own gets the batch again until
// it takes it; with a transactional one the session begins again, from what the sink really holds.
func (s *working) writeBatch(ctx context.Context, b *batch) error {
	backoff := pgsession.Backoff{}
	for {
		err := s.give(ctx, b)
		if err == nil {
			break
		}
		if aboutChanges(err) && !b.abort {
			if err := s.refused(ctx, b, err); err != nil {
				return err
			}
			break
		}
		err = s.sinkError(b, err)
		if s.tx != nil || fatal(err) || ctx.Err() != nil {
			return err
		}
		s.status.interrupted(ctx, s.log, slog.LevelWarn, "the sink failed, trying again", err)
		if backoff.Wait(ctx) != nil {
			return err
		}
	}
	if backoff.Attempts() > 0 {
		s.status.recovered()
	}
	s.unfinished = b.More
	if s.sought != nil && s.sought.took(b) {
		s.sought = nil
	}
	if b.More {
		crashpoint.Reached(crashpoint.PartWritten)
		return nil
	}
	crashpoint.Reached(crashpoint.SinkCommitted)
	s.status.wrote(b)
	s.wrote(b)
	if b.finished {
		return errFinished
	}
	return nil
}

func (s *working) give(ctx context.Context, b *batch) error {
	if b.abort {
		if s.tx == nil {
			return nil
		}
		return s.reopen(ctx, b.Checkpoint)
	}
	if len(b.Changes) == 0 && s.tx == nil && !s.unfinished {
		return nil // only the checkpoint moves, and that isn't the sink's
	}
	b.Epoch, b.Lazy = s.epoch, s.lag.allows(b)
	pack.CollectBefore(b.bytes) // the sink will make a copy of its own
	return s.opt.sink.Write(ctx, &b.Batch)
}

// sinkError says where a sink's error happened, if it is one that lasts.
func (s *working) sinkError(b *batch, err error) error {
	if errors.Is(err, sink.ErrLeaseLost) {
		return fmt.Errorf("%w: group %q, worker %q", err, s.cfg.group, s.opt.name)
	}
	if !sink.IsPermanent(err) {
		return &retryable{fmt.Errorf("flo: worker %q: sink: %w", s.opt.name, err)}
	}
	e := &SinkError{Worker: s.opt.name, Err: err}
	if b == nil {
		return e
	}
	if len(b.Changes) == 0 {
		if s.unfinished {
			e.Position = decode.Position{LSN: b.Checkpoint.LSN}
			e.Err = fmt.Errorf("the transaction as a whole, each of whose changes was taken: %w", err)
		}
		return e
	}
	i := 0
	var rej *sink.RejectError
	if errors.As(err, &rej) && rej.Index >= 0 && rej.Index < len(b.Changes) {
		i = rej.Index
	} else if n := len(b.Changes); n > 1 {
		e.Err = fmt.Errorf("the batch of %d changes that begins here: %w", n, err)
	}
	e.locate(b.Changes[i])
	return e
}

func (e *SinkError) locate(c *decode.Change) {
	e.Position = c.Position()
	if c.Copy != nil {
		id := *c.Copy
		e.Copy = &id
	}
	if c.Relation != nil {
		e.Table = c.Relation.Qualified()
	}
}

// retryable marks a sink's error that isn't permanent: by the sink's contract the changes come again.
type retryable struct{ err error }

func (e *retryable) Error() string { return e.err.Error() }
func (e *retryable) Unwrap() error { return e.err }

// reportInterval is how often, at most, a worker's record is written.
const reportInterval = 100 * time.Millisecond

// reporter writes the worker's record, at most once an interval: the checkpoint of sinks that keep none, and for
// all the word to the replicator of what may be purged.
type reporter struct {
	store state.Store
	mu    sync.Mutex
	rec   state.Worker
	rev   uint64
	dirty bool
	wake  chan struct{}
}

func newReporter(store state.Store, rec state.Worker, rev uint64) *reporter {
	return &reporter{store: store, rec: rec, rev: rev, wake: make(chan struct{}, 1)}
}

func (r *reporter) checkpoint(cp decode.Checkpoint, finished bool) {
	r.mu.Lock()
	r.rec.Checkpoint = cp
	r.rec.Finished = r.rec.Finished || finished
	r.dirty = true
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// want notes tables that the worker needs copied afresh, by an attempt above this one.
func (r *reporter) want(tables []uint32, attempt uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range tables {
		if !slices.Contains(r.rec.Recopy, t) {
			r.rec.Recopy = append(slices.Clone(r.rec.Recopy), t)
		}
		r.rec.RecopyAttempt = attempt
		r.dirty = true
		r.poke()
	}
}

// got forgets tables that were copied afresh.
func (r *reporter) got(tables []uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	left := slices.DeleteFunc(slices.Clone(r.rec.Recopy), func(t uint32) bool { return slices.Contains(tables, t) })
	if len(left) < len(r.rec.Recopy) {
		r.rec.Recopy, r.dirty = left, true
	}
}

// run writes until ctx ends, or somebody else has taken the name.
func (r *reporter) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		err := r.flush(ctx)
		if err != nil && (fatal(err) || !transient(err)) && ctx.Err() == nil {
			return err
		}
		if err := pollWait(ctx, reportInterval); err != nil {
			return nil
		}
		if err != nil {
			r.poke()
		}
	}
}

func (r *reporter) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// flush writes the record if it has changed. An answer that was lost looks like a conflict the next
// time: the record itself then tells whether it is ours.
func (r *reporter) flush(ctx context.Context) error {
	r.mu.Lock()
	rec, rev, dirty := r.rec, r.rev, r.dirty
	r.dirty = false
	r.mu.Unlock()
	if !dirty {
		return nil
	}
	rec.Updated = time.Now().UTC()
	rev, err := r.store.PutWorker(ctx, rec, rev)
	if err != nil { // somebody else's record, ours after all, or no bucket any more
		var now state.Worker
		now, rev, err = r.store.Worker(ctx, rec.Name)
		switch {
		case err == nil && now.Epoch != rec.Epoch:
			return fmt.Errorf("%w: worker %q", ErrLeaseLost, rec.Name)
		case errors.Is(err, state.ErrNotFound):
			return fmt.Errorf("%w: the record of worker %q is gone, or the group's state bucket: if the group was dropped, start over (WithResync and a new token empties a PostgreSQL destination of what flo brought); "+
				"otherwise start again", ErrStreamLost, rec.Name)
		case err == nil:
			rev, err = r.store.PutWorker(ctx, rec, rev)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.dirty = true
		return err
	}
	r.rev = rev
	crashpoint.Reached(crashpoint.Checkpointed)
	return nil
}
