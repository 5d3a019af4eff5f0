package state_test

import (
	"context"
	"errors"
	"os/exec"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgflo/flo/state"
)

const ttl = 10 * time.Second

func acquire(t *testing.T, ctx context.Context, s state.Store) *state.Hold {
	t.Helper()
	h, err := state.Acquire(ctx, s, state.ReplicatorLease, ttl, nil)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestASecondOneTakesOverAtOnceWhenTheFirstReleases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := state.NewMemory()
		first := acquire(t, t.Context(), s)
		got := make(chan *state.Hold)
		var waited atomic.Int64
		go func() {
			h, err := state.Acquire(t.Context(), s, state.ReplicatorLease, ttl, func(state.Lease) { waited.Add(1) })
			if err != nil {
				t.Error(err)
			}
			got <- h
		}()
		time.Sleep(10 * ttl)
		select {
		case <-got:
			t.Fatal("two hold the lease")
		default:
		}
		if waited.Load() == 0 {
			t.Error("the one that waits was not told")
		}
		released := time.Now()
		if err := first.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		second := <-got
		if took := time.Since(released); took > ttl/2 {
			t.Errorf("took over %s after the release", took)
		}
		if second.Epoch() <= first.Epoch() || first.Context().Err() == nil {
			t.Errorf("epochs %d, %d; first's context: %v", first.Epoch(), second.Epoch(), first.Context().Err())
		}
		second.Release(t.Context())
	})
}

// silent lets a store's writes be stopped: what a paused or cut-off holder looks like to others.
type silent struct {
	state.Store
	cut atomic.Bool
}

func (s *silent) PutLease(ctx context.Context, l state.Lease, rev uint64) (uint64, error) {
	if s.cut.Load() {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return s.Store.PutLease(ctx, l, rev)
}

func TestAHolderThatFallsSilentLosesTheLeaseWithinItsTimeAndKnowsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		mem := state.NewMemory()
		s := &silent{Store: mem}
		first := acquire(t, t.Context(), s)
		time.Sleep(3 * ttl)
		s.cut.Store(true)
		lost := make(chan time.Time, 1)
		go func() {
			<-first.Context().Done()
			lost <- time.Now()
		}()
		cut := time.Now()
		second := acquire(t, t.Context(), mem)
		took := time.Since(cut)
		if took > 2*ttl {
			t.Errorf("taken over after %s, want at most two times %s", took, ttl)
		}
		select {
		case <-lost:
		default:
			t.Error("the first one did not know before the second one began")
		}
		if cause := context.Cause(first.Context()); !errors.Is(cause, state.ErrLost) {
			t.Errorf("cause %v", cause)
		}
		second.Release(t.Context())
		first.Release(t.Context())
	})
}

func TestAPausedHolderFindsOutAtItsNextRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := state.NewMemory()
		first := acquire(t, t.Context(), s)
		l, rev, err := s.Lease(t.Context(), state.ReplicatorLease)
		if err != nil {
			t.Fatal(err)
		}
		l.Holder, l.Epoch = "another", l.Epoch+1 // as if this process had slept through a takeover
		if _, err := s.PutLease(t.Context(), l, rev); err != nil {
			t.Fatal(err)
		}
		<-first.Context().Done()
		if cause := context.Cause(first.Context()); !errors.Is(cause, state.ErrLost) {
			t.Errorf("cause %v", cause)
		}
		if err := first.Release(t.Context()); err != nil {
			t.Error(err)
		}
		if now, _, _ := s.Lease(t.Context(), state.ReplicatorLease); now.Holder != "another" || now.Released {
			t.Errorf("the loser touched the winner's lease: %+v", now)
		}
	})
}

func TestALeaseOfADeadProcessOfThisMachineIsFreeAtOnce(t *testing.T) {
	s := state.NewMemory()
	h := acquire(t, t.Context(), s)
	l, rev, err := s.Lease(t.Context(), state.ReplicatorLease)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if l.Process.Space == "" {
		t.Skip("this system has no /proc that tells processes apart")
	}
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	l.Process.PID, l.TTL = cmd.Process.Pid, time.Hour
	if _, err := s.PutLease(t.Context(), l, rev+1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	acquire(t, ctx, s).Release(ctx)
}

func TestAcquireEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := state.NewMemory()
		h := acquire(t, t.Context(), s)
		ctx, cancel := context.WithTimeout(t.Context(), 3*ttl)
		defer cancel()
		if _, err := state.Acquire(ctx, s, state.ReplicatorLease, ttl, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		h.Release(t.Context())
	})
}

// slowAnswers is a store that takes a renewal at once and answers it when its context ends.
type slowAnswers struct {
	state.Store
	renewing chan struct{}
}

func (s *slowAnswers) PutLease(ctx context.Context, l state.Lease, rev uint64) (uint64, error) {
	rev, err := s.Store.PutLease(ctx, l, rev)
	if err == nil && l.Beat > 0 && !l.Released {
		close(s.renewing)
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return rev, err
}

// A renewal that was on its way when the holder leaves changes nothing about that: the next one needs not wait for its end.
func TestALeaseIsReleasedInTheMiddleOfARenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowAnswers{Store: state.NewMemory(), renewing: make(chan struct{})}
		h := acquire(t, t.Context(), s)
		<-s.renewing
		began := time.Now()
		if err := h.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := acquire(t, t.Context(), s.Store)
		if waited := time.Since(began); waited > 0 || next.Epoch() != h.Epoch()+1 {
			t.Errorf("the next holder has epoch %d, after %d, and waited %s", next.Epoch(), h.Epoch(), waited)
		}
		if err := next.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}
