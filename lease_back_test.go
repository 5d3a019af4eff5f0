package flo

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgflo/flo/state"
)

// left puts the lease of worker w as one that its holder, another process, has left to try again.
func left(t *testing.T, store state.Store) (l state.Lease, rev uint64) {
	t.Helper()
	l = state.Lease{
		Name: state.WorkerLease("w"), Holder: "x", Epoch: 1, TTL: 10 * time.Second, Released: true, Back: comeBack,
		Process: state.Process{Host: "elsewhere", PID: 1},
	}
	rev, err := store.PutLease(t.Context(), l, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l, rev
}

// A worker that waits between two tries holds no lease, so that others can take over. It is not gone for that.
func TestAWorkerBetweenTwoTriesRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := state.NewMemory()
		left(t, store)
		s := &replication{store: store}
		s.workers.leases = map[string]seenLease{}
		runs := func() bool {
			t.Helper()
			ok, err := s.runs(t.Context(), &state.Worker{Name: "w"})
			if err != nil {
				t.Fatal(err)
			}
			return ok
		}
		if !runs() {
			t.Error("it is called idle at once")
		}
		time.Sleep(comeBack - time.Second)
		if !runs() {
			t.Error("it is called idle while it waits")
		}
		if time.Sleep(2 * time.Second); runs() {
			t.Error("it has not come back, and counts as running")
		}
	})
}

func TestAWorkerBetweenTwoTriesIsNotRemoved(t *testing.T) {
	for _, returns := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			store := state.NewMemory()
			l, rev := left(t, store)
			if returns {
				time.AfterFunc(comeBack/2, func() {
					l.Epoch, l.Released, l.Back = 2, false, 0
					if _, err := store.PutLease(t.Context(), l, rev); err != nil {
						t.Error(err)
					}
				})
			}
			began := time.Now()
			process, err := comesBack(t.Context(), store, l.Name)
			if err != nil {
				t.Fatal(err)
			}
			if returns != (process != "") {
				t.Errorf("comes back: %v; it says %q", returns, process)
			}
			if took := time.Since(began); took > comeBack+time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}
