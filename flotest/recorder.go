package flotest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// Recorder is a sink that keeps every change it was given, fails when told to, and lets
// tests wait. The zero Recorder is ready for use. Unlike other sinks it may be read while
// it is written to.
type Recorder struct {
	mu         sync.Mutex
	changes    []*decode.Change
	batches    int
	checkpoint decode.Checkpoint
	epoch      uint64
	failures   int           // that many Writes fail with err
	err        error         // see FailNext
	news       chan struct{} // closed and replaced at each Write, made by the first waiter
}

var _ sink.Sink = (*Recorder)(nil)

// Write keeps copies of the batch's changes, or returns the error of FailNext and keeps
// nothing.
func (r *Recorder) Write(ctx context.Context, b *sink.Batch) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failures > 0 {
		r.failures--
		return r.err
	}
	for _, c := range b.Changes {
		r.changes = append(r.changes, c.Clone())
	}
	r.batches++
	r.epoch = b.Epoch
	if !b.More {
		r.checkpoint = b.Checkpoint
	}
	if r.news != nil {
		close(r.news)
		r.news = nil
	}
	return nil
}

// FailNext makes the next n calls of Write fail with err; 0 ends that.
func (r *Recorder) FailNext(n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures, r.err = n, err
}

// Failures returns how many of FailNext's failures are still to come.
func (r *Recorder) Failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failures
}

// Changes returns what was recorded, in order. The changes are the recorder's: read only.
func (r *Recorder) Changes() []*decode.Change {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.changes)
}

// Batches returns the number of accepted Writes.
func (r *Recorder) Batches() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.batches
}

// Checkpoint returns the last accepted batch's, leaving out batches with More, and the
// last epoch.
func (r *Recorder) Checkpoint() (decode.Checkpoint, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checkpoint, r.epoch
}

// Reset forgets everything recorded.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes, r.batches, r.checkpoint, r.epoch = nil, 0, decode.Checkpoint{}, 0
}

// Wait returns nil as soon as cond is true of the recorded changes, which it asks now and
// after each Write; an error when ctx ends first. cond must not call the recorder and
// must not keep the slice.
func (r *Recorder) Wait(ctx context.Context, cond func([]*decode.Change) bool) error {
	for {
		r.mu.Lock()
		done, n := cond(r.changes), len(r.changes)
		if r.news == nil {
			r.news = make(chan struct{})
		}
		news := r.news
		r.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("flotest: the condition isn't true of the %d changes recorded: %w", n, ctx.Err())
		}
	}
}

// WaitN waits for at least n changes.
func (r *Recorder) WaitN(ctx context.Context, n int) error {
	return r.Wait(ctx, func(c []*decode.Change) bool { return len(c) >= n })
}
