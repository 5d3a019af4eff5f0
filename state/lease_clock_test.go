package state_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgflo/flo/state"
)

// At whatever moment between two renewals a holder is cut off, it knows that it has lost the lease before
// anybody else has it, and nobody waits for more than two of the lease's times.
func TestAHolderThatIsCutOffAtAnyMomentKnowsBeforeTheNextOneBegins(t *testing.T) {
	for at := time.Duration(0); at <= ttl; at += ttl / 97 {
		synctest.Test(t, func(t *testing.T) {
			mem := state.NewMemory()
			s := &silent{Store: mem}
			first := acquire(t, t.Context(), s)
			defer first.Release(t.Context())
			got := make(chan *state.Hold)
			go func() {
				h, err := state.Acquire(t.Context(), mem, state.ReplicatorLease, ttl, nil)
				if err != nil {
					t.Error(err)
				}
				if first.Context().Err() == nil {
					t.Errorf("cut off after %s: two hold the lease", at)
				}
				got <- h
			}()
			time.Sleep(3*ttl + at)
			s.cut.Store(true)
			cut := time.Now()
			second := <-got
			if took := time.Since(cut); took > 2*ttl {
				t.Errorf("cut off after %s: taken over %s later", at, took)
			}
			second.Release(t.Context())
		})
	}
}

// slow lets a renewal reach the store at once, and its answer come late, as a process that is paused between
// the two has it.
type slow struct {
	state.Store
	by atomic.Int64
}

func (s *slow) PutLease(ctx context.Context, l state.Lease, rev uint64) (uint64, error) {
	now, err := s.Store.PutLease(ctx, l, rev)
	time.Sleep(time.Duration(s.by.Load()))
	return now, err
}

func TestAnAnswerThatComesLateDoesNotProlongTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := state.NewMemory()
		s := &slow{Store: mem}
		first := acquire(t, t.Context(), s)
		defer first.Release(t.Context())
		s.by.Store(int64(3 * ttl)) // the next renewal
		time.Sleep(ttl / 2)
		second := acquire(t, t.Context(), mem)
		defer second.Release(t.Context())
		if second.Epoch() <= first.Epoch() {
			t.Errorf("epochs %d, %d", first.Epoch(), second.Epoch())
		}
		<-first.Context().Done() // once it goes on; meanwhile the sink's own fence holds
		if cause := context.Cause(first.Context()); !errors.Is(cause, state.ErrLost) {
			t.Errorf("cause %v", cause)
		}
	})
}
