// Package statetest is the suite that every state.Store passes.
package statetest

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/state"
)

// Run runs the suite. open makes an empty store, once for each test.
func Run(t *testing.T, open func(t *testing.T) state.Store) {
	for name, test := range map[string]func(*testing.T, state.Store){
		"Replicator":       testReplicator,
		"Worker":           testWorker,
		"Conflict":         testConflict,
		"ConcurrentWrites": testConcurrent,
		"Delete":           testDelete,
		"List":             testList,
		"Names":            testNames,
		"Drop":             testDrop,
		"Context":          testContext,
		"Lease":            testLease,
		"Tables":           testTables,
		"Resync":           testResync,
		"Adopted":          testAdopted,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func worker(name string) state.Worker {
	return state.Worker{
		Name: name, Epoch: 3,
		Checkpoint: decode.Checkpoint{Incarnation: "abc", Seq: 17, LSN: 1 << 33, End: 1<<33 + 48, Session: 1<<64 - 1, Attempt: 2, CopyAttempt: 3, CopySeq: 9, Skip: "0/16B3748:16384"},
		Finished:   true, Recopy: []uint32{16384, 16390}, RecopyAttempt: 3,
		Updated: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC),
	}
}

func put(t *testing.T, s state.Store, w state.Worker, rev uint64) uint64 {
	t.Helper()
	rev, err := s.PutWorker(t.Context(), w, rev)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func testReplicator(t *testing.T, s state.Store) {
	_, err := s.Replicator(t.Context())
	is(t, err, state.ErrNotFound)
	for _, phase := range []string{"copying", "streaming"} {
		want := state.Replicator{Group: "g", Incarnation: "abc", System: "7", Database: "db", Slot: "flo_g", Mode: "m",
			Phase: phase, LastLSN: 1 << 40, Confirmed: 1 << 39, Publications: `"a","b"`,
			LastCommit: 5, LastCommitTime: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), Updated: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
		is(t, s.PutReplicator(t.Context(), want), nil)
		got, err := s.Replicator(t.Context())
		is(t, err, nil)
		if got != want {
			t.Fatalf("read %+v, wrote %+v", got, want)
		}
	}
}

func testWorker(t *testing.T, s state.Store) {
	_, _, err := s.Worker(t.Context(), "w")
	is(t, err, state.ErrNotFound)
	want := worker("w")
	rev := put(t, s, want, 0)
	got, r, err := s.Worker(t.Context(), "w")
	is(t, err, nil)
	if !reflect.DeepEqual(got, want) || r != rev || rev == 0 {
		t.Fatalf("read %+v at %d, wrote %+v at %d", got, r, want, rev)
	}
	want.Epoch++
	next := put(t, s, want, rev)
	if got, r, err = s.Worker(t.Context(), "w"); err != nil || !reflect.DeepEqual(got, want) || r != next || next <= rev {
		t.Fatalf("read %+v at %d, wrote %+v at %d: %v", got, r, want, next, err)
	}
}

func testConflict(t *testing.T, s state.Store) {
	rev := put(t, s, worker("w"), 0)
	put(t, s, worker("other"), 0) // doesn't touch w's revision
	_, err := s.PutWorker(t.Context(), worker("w"), 0)
	is(t, err, state.ErrConflict)
	_, err = s.PutWorker(t.Context(), worker("w"), rev+100)
	is(t, err, state.ErrConflict)
	_, err = s.PutWorker(t.Context(), worker("none"), rev)
	is(t, err, state.ErrConflict)
	next := put(t, s, worker("w"), rev)
	_, err = s.PutWorker(t.Context(), worker("w"), rev)
	is(t, err, state.ErrConflict)
	put(t, s, worker("w"), next)
}

// Of all that write the same revision one succeeds.
func testConcurrent(t *testing.T, s state.Store) {
	var rev uint64
	for round := range 5 {
		var wg sync.WaitGroup
		var mu sync.Mutex
		var won []uint64
		for i := range 4 {
			wg.Go(func() {
				w := worker("w")
				w.Epoch = uint64(round*10 + i)
				r, err := s.PutWorker(t.Context(), w, rev)
				if err != nil && !errors.Is(err, state.ErrConflict) {
					t.Error(err)
				}
				if err == nil {
					mu.Lock()
					won = append(won, r)
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if len(won) != 1 {
			t.Fatalf("%d of 4 writers succeeded", len(won))
		}
		rev = won[0]
	}
}

func testDelete(t *testing.T, s state.Store) {
	is(t, s.DeleteWorker(t.Context(), "w"), nil)
	rev := put(t, s, worker("w"), 0)
	is(t, s.DeleteWorker(t.Context(), "w"), nil)
	_, _, err := s.Worker(t.Context(), "w")
	is(t, err, state.ErrNotFound)
	_, err = s.PutWorker(t.Context(), worker("w"), rev)
	is(t, err, state.ErrConflict)
	put(t, s, worker("w"), 0)
}

func testList(t *testing.T, s state.Store) {
	list := func(want ...string) {
		t.Helper()
		all, err := s.Workers(t.Context())
		is(t, err, nil)
		var got []string
		for _, w := range all {
			if !reflect.DeepEqual(w, worker(w.Name)) {
				t.Fatalf("%+v", w)
			}
			got = append(got, w.Name)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Fatalf("workers %v, want %v", got, want)
		}
	}
	list()
	is(t, s.PutReplicator(t.Context(), state.Replicator{Group: "g"}), nil)
	for _, name := range []string{"c", "a", "b"} {
		put(t, s, worker(name), 0)
	}
	list("a", "b", "c")
	is(t, s.DeleteWorker(t.Context(), "b"), nil)
	list("a", "c")
}

func testNames(t *testing.T, s state.Store) {
	for _, name := range []string{"", "a.b", "a b", "*", ">", "ä", "a/b", "a=b", strings.Repeat("x", 65)} {
		_, err := s.PutWorker(t.Context(), worker(name), 0)
		is(t, err, state.ErrName)
		_, _, err = s.Worker(t.Context(), name)
		is(t, err, state.ErrName)
		is(t, s.DeleteWorker(t.Context(), name), state.ErrName)
	}
	for _, name := range []string{"a", "A-z_09", "-", strings.Repeat("x", 64)} {
		put(t, s, worker(name), 0)
	}
}

func testDrop(t *testing.T, s state.Store) {
	is(t, s.PutReplicator(t.Context(), state.Replicator{Group: "g"}), nil)
	put(t, s, worker("w"), 0)
	is(t, s.Drop(t.Context()), nil)
	is(t, s.Drop(t.Context()), nil)
	_, err := s.Replicator(t.Context())
	is(t, err, state.ErrNotFound)
	_, _, err = s.Worker(t.Context(), "w")
	is(t, err, state.ErrNotFound)
	all, err := s.Workers(t.Context())
	is(t, err, nil)
	if len(all) != 0 {
		t.Fatalf("%d workers after Drop", len(all))
	}
}

func testContext(t *testing.T, s state.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Workers(ctx)
	is(t, err, context.Canceled)
	_, err = s.PutWorker(ctx, worker("w"), 0)
	is(t, err, context.Canceled)
}

// testLease checks that a lease is written only over the revision that was read.
func testLease(t *testing.T, s state.Store) {
	ctx := t.Context()
	_, _, err := s.Lease(ctx, state.ReplicatorLease)
	is(t, err, state.ErrNotFound)
	for _, name := range []string{state.ReplicatorLease, state.WorkerLease("w")} {
		rev, err := s.PutLease(ctx, state.Lease{Name: name, Holder: "a", Epoch: 1}, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.PutLease(ctx, state.Lease{Name: name, Holder: "b", Epoch: 1}, 0)
		is(t, err, state.ErrConflict)
		next, err := s.PutLease(ctx, state.Lease{Name: name, Holder: "a", Epoch: 1, Beat: 1}, rev)
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.PutLease(ctx, state.Lease{Name: name, Holder: "b", Epoch: 2}, rev)
		is(t, err, state.ErrConflict)
		l, rev, err := s.Lease(ctx, name)
		if err != nil || rev != next || l.Holder != "a" || l.Beat != 1 {
			t.Fatalf("%+v at revision %d, %v; want a's at %d", l, rev, err, next)
		}
	}
	if all, err := s.Workers(ctx); err != nil || len(all) != 0 {
		t.Fatalf("leases are listed as workers: %v, %v", all, err)
	}
	_, _, err = s.Lease(ctx, state.WorkerLease("no.name"))
	is(t, err, state.ErrName)
}
