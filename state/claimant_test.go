package state_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgflo/flo/state"
)

func claim(t *testing.T, c *state.Claimant, s state.Store) *state.Hold {
	t.Helper()
	h, err := c.Acquire(t.Context(), s, state.ReplicatorLease, ttl, nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// cutOff makes a hold lose its lease unnoticed by the store, at some moment between two renewals.
func cutOff(s *silent, h *state.Hold) {
	s.cut.Store(true)
	<-h.Context().Done()
	s.cut.Store(false)
}

// Whoever was paused past its own lease doesn't wait for itself, and is another holder for all that fences.
func TestAClaimantTakesItsOwnUnreleasedLeaseBackAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &silent{Store: state.NewMemory()}
		c := state.NewClaimant()
		first := claim(t, c, s)
		time.Sleep(3*ttl + ttl/7)
		cutOff(s, first)
		if err := first.Release(t.Context()); err != nil { // a lost one leaves the record alone
			t.Fatal(err)
		}
		began := time.Now()
		second := claim(t, c, s)
		if took := time.Since(began); took != 0 {
			t.Errorf("it waited %s for itself", took)
		}
		if second.Epoch() != first.Epoch()+1 {
			t.Errorf("epochs %d, %d", first.Epoch(), second.Epoch())
		}
		time.Sleep(10 * ttl)
		if err := second.Context().Err(); err != nil {
			t.Errorf("the lease that was taken back doesn't last: %v", context.Cause(second.Context()))
		}
		second.Release(t.Context())
	})
}

func TestAnotherOnesClaimIsWaitedForThoughTheLeaseWasOnceOnesOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := state.NewMemory()
		s := &silent{Store: mem}
		c := state.NewClaimant()
		first := claim(t, c, s)
		s.cut.Store(true)
		other := acquire(t, t.Context(), mem) // a lease's time later
		s.cut.Store(false)
		first.Release(t.Context())
		got := make(chan *state.Hold)
		go func() {
			h, err := c.Acquire(t.Context(), s, state.ReplicatorLease, ttl, nil)
			if err != nil {
				t.Error(err)
			}
			if other.Context().Err() == nil {
				t.Error("two hold the lease")
			}
			got <- h
		}()
		time.Sleep(5 * ttl)
		other.Release(t.Context())
		third := <-got
		if third.Epoch() != first.Epoch()+2 {
			t.Errorf("epochs %d, %d, %d", first.Epoch(), other.Epoch(), third.Epoch())
		}
		third.Release(t.Context())
	})
}

// One that stands by and the one that was paused reach for the lease at the same moments: one of them has it.
func TestAStandbyAndTheOneThatComesBackNeverHoldTheLeaseBoth(t *testing.T) {
	for i := range 40 {
		synctest.Test(t, func(t *testing.T) {
			mem := state.NewMemory()
			s := &silent{Store: mem}
			c := state.NewClaimant()
			first := claim(t, c, s)
			var holders, most atomic.Int64
			hold := func(h *state.Hold) {
				most.Store(max(most.Load(), holders.Add(1)))
				time.Sleep(ttl)
				holders.Add(-1)
				if err := h.Release(t.Context()); err != nil {
					t.Error(err)
				}
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				h, err := state.Acquire(t.Context(), mem, state.ReplicatorLease, ttl, nil)
				if err != nil {
					t.Error(err)
					return
				}
				hold(h)
			})
			time.Sleep(ttl / 2)
			s.cut.Store(true)
			<-first.Context().Done()
			time.Sleep(time.Duration(i) * ttl / 160) // until about when the other one takes it
			s.cut.Store(false)
			first.Release(t.Context())
			hold(claim(t, c, s))
			wg.Wait()
			if most.Load() != 1 {
				t.Errorf("%d held the lease at the same time", most.Load())
			}
		})
	}
}

// deaf lets a write through and loses its answer.
type deaf struct {
	state.Store
	once atomic.Bool
}

var errNoAnswer = errors.New("no answer")

func (d *deaf) PutLease(ctx context.Context, l state.Lease, rev uint64) (uint64, error) {
	now, err := d.Store.PutLease(ctx, l, rev)
	if d.once.Swap(false) && err == nil {
		return 0, errNoAnswer
	}
	return now, err
}

func TestALeaseWhoseAnswerWasLostIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &deaf{Store: state.NewMemory()}
		s.once.Store(true)
		c := state.NewClaimant()
		if _, err := c.Acquire(t.Context(), s, state.ReplicatorLease, ttl, nil); !errors.Is(err, errNoAnswer) {
			t.Fatal(err)
		}
		began := time.Now()
		h := claim(t, c, s)
		if took := time.Since(began); took != 0 || h.Epoch() != 2 {
			t.Errorf("it waited %s, epoch %d", took, h.Epoch())
		}
		if _, err := c.Acquire(t.Context(), s, state.ReplicatorLease, ttl, nil); !errors.Is(err, state.ErrHeld) {
			t.Errorf("a second claim while it is held: %v", err)
		}
		h.Release(t.Context())
		claim(t, c, s).Release(t.Context())
	})
}

// swallows never answers a renewal now and then, which a connection that is just being replaced does.
type swallows struct {
	state.Store
	next atomic.Bool
}

func (s *swallows) PutLease(ctx context.Context, l state.Lease, rev uint64) (uint64, error) {
	if s.next.Swap(false) {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return s.Store.PutLease(ctx, l, rev)
}

func TestARenewalThatIsSwallowedComesAgainInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &swallows{Store: state.NewMemory()}
		h := acquire(t, t.Context(), s)
		for range 5 {
			s.next.Store(true)
			time.Sleep(3 * ttl)
			if h.Context().Err() != nil {
				t.Fatal(context.Cause(h.Context()))
			}
		}
		h.Release(t.Context())
	})
}
