package sinktest

import (
	"context"
	"errors"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// testTransactional tests what sink.Transactional promises, if the sink does.
func testTransactional(f Factory) func(*testing.T, Harness) {
	return func(t *testing.T, h Harness) {
		if newSession(t, h, start(1)).tx == nil {
			t.Skip("not a sink.Transactional")
		}
		for _, part := range []struct {
			name string
			test func(*testing.T, Harness)
		}{
			{"Checkpoint", testCheckpoint},
			{"FailedBatch", testFailedBatch},
			{"More", testMore},
			{"ContextEndsWithinTransaction", testContextEndsWithin},
			{"Abort", testAbort},
			{"RestartWithinTransaction", testRestartWithin},
			{"Takeover", testTakeover},
			{"EarlierEpoch", testEarlierEpoch},
			{"CheckpointsOfOthers", testCheckpointsOfOthers},
		} {
			t.Run(part.name, func(t *testing.T) { part.test(t, f(t)) })
		}
	}
}

// wantCheckpoint compares what Open gave.
func wantCheckpoint(t *testing.T, when string, got, want decode.Checkpoint) {
	t.Helper()
	if got != want {
		t.Errorf("%s: Open gave the checkpoint %+v\nwant %+v", when, got, want)
	}
}

// testCheckpoint: what Open gives is the last checkpoint that was written, through restarts.
func testCheckpoint(t *testing.T, h Harness) {
	src, l := newSource(t, h, "public", "t"), newLedger(h)
	s, cp := openAs(t, h, start(1))
	wantCheckpoint(t, "an empty destination", cp, decode.Checkpoint{})
	tx := src.transaction(src.insert("1"))
	one := src.batch(tx)
	l.wrote(tx...)
	s.write(one)
	s.close()
	s, cp = openAs(t, h, start(2))
	wantCheckpoint(t, "behind a batch", cp, one.Checkpoint)

	src.transaction() // nothing for this sink, but the checkpoint moves
	idle := src.batch(nil)
	s.write(idle)
	s.close()
	st := start(3)
	st.Incarnation = "another" // the checkpoint is given all the same: the worker judges it
	s, cp = openAs(t, h, st)
	wantCheckpoint(t, "behind an empty batch", cp, idle.Checkpoint)
	wantCheckpoint(t, "opened again", s.open(), idle.Checkpoint)
	s.close()
	l.check(t, "at the end", false)
}

// testFailedBatch: of a batch that fails nothing is left, neither rows nor checkpoint.
func testFailedBatch(t *testing.T, h Harness) {
	src, l, s := newSource(t, h, "public", "t"), newLedger(h), open(t, h)
	tx := src.transaction(src.insert("1"))
	good := src.batch(tx)
	l.wrote(tx...)
	s.write(good)

	bad := src.batch(src.transaction(src.insert("2"), src.insert("3"), &decode.Change{Op: 99, Relation: src.rel, New: src.row("4")}))
	if err := s.tryWrite(t.Context(), bad); err == nil {
		t.Fatal("Write took an operation that does not exist")
	}
	wantCheckpoint(t, "behind a batch that failed", s.open(), good.Checkpoint)
	l.check(t, "behind a batch that failed", false)

	tx = src.transaction(src.insert("2"))
	last := src.batch(tx)
	l.wrote(tx...)
	s.write(last)
	s.close()
	_, cp := openAs(t, h, start(2))
	wantCheckpoint(t, "at the end", cp, last.Checkpoint)
	l.check(t, "at the end", false)
}

// within opens a sink, writes a transaction, and the first half of another one.
func within(t *testing.T, h Harness) (src *source, l *ledger, s *session, last *sink.Batch, half []*decode.Change) {
	t.Helper()
	src, l, s = newSource(t, h, "public", "t", "v"), newLedger(h), open(t, h)
	tx := src.transaction(src.insert("1", "a"))
	last = src.batch(tx)
	l.wrote(tx...)
	s.write(last)
	half = src.transaction(src.insert("2", "b"), src.update("1", "b"), src.insert("3", "b"))
	s.write(&sink.Batch{Changes: half[:2], More: true})
	return src, l, s, last, half
}

// testMore: nobody sees a transaction before its end, then all of it.
func testMore(t *testing.T, h Harness) {
	src, l, s, _, half := within(t, h)
	l.check(t, "within a transaction", false)
	s.write(&sink.Batch{Changes: half[2:], More: true})
	s.write(&sink.Batch{More: true})
	l.check(t, "before a transaction's end", false)
	end := src.batch(nil) // the end comes alone
	l.wrote(half...)
	s.write(end)
	l.check(t, "behind a transaction", false)
	s.close()
	_, cp := openAs(t, h, start(2))
	wantCheckpoint(t, "behind a transaction", cp, end.Checkpoint)
}

func testContextEndsWithin(t *testing.T, h Harness) {
	src, l, s, last, half := within(t, h)
	rest := src.batch(half[2:])
	err := ended(t, "Write", func(ctx context.Context) error { return s.tryWrite(ctx, rest) })
	if err != nil {
		wantCheckpoint(t, "behind an error within a transaction", s.open(), last.Checkpoint)
		l.check(t, "behind an error within a transaction", false)
		s.write(src.batch(half))
	}
	l.wrote(half...)
	s.close()
	l.check(t, "at the end", false)
}

func testAbort(t *testing.T, h Harness) {
	src, l, s, last, _ := within(t, h)
	if err := s.tx.Abort(t.Context()); err != nil {
		t.Fatalf("Abort: %v", err)
	}
	wantCheckpoint(t, "behind Abort", s.open(), last.Checkpoint)
	l.check(t, "behind Abort", false)
	// What was aborted never happened: something else comes.
	tx := src.transaction(src.update("1", "c"), src.insert("4", "c"))
	l.wrote(tx...)
	s.write(src.batch(tx))
	l.check(t, "another transaction behind Abort", false)
	if err := s.tx.Abort(t.Context()); err != nil { // nothing is open
		t.Errorf("Abort outside of a transaction: %v", err)
	}
	wantCheckpoint(t, "behind Abort outside of a transaction", s.open(), src.batch(nil).Checkpoint)
	s.close()
	l.check(t, "at the end", false)
}

// testRestartWithin: closing within a transaction is no end of it.
func testRestartWithin(t *testing.T, h Harness) {
	src, l, s, last, half := within(t, h)
	s.close()
	s, cp := openAs(t, h, start(2))
	wantCheckpoint(t, "behind a restart within a transaction", cp, last.Checkpoint)
	l.check(t, "behind a restart within a transaction", false)
	l.wrote(half...)
	s.write(src.batch(half))
	s.close()
	l.check(t, "at the end", false)
}

// testTakeover: a later epoch takes over from one that is still there, within a transaction.
func testTakeover(t *testing.T, h Harness) {
	src, l, old, last, half := within(t, h)
	next, cp := openAs(t, h, start(2))
	wantCheckpoint(t, "behind a takeover", cp, last.Checkpoint)
	l.wrote(half...)
	next.write(src.batch(half))
	if err := old.tryWrite(t.Context(), src.batch(half[2:])); err == nil {
		t.Error("the earlier epoch's Write succeeded behind the takeover")
	}
	if _, err := old.tryOpen(); !errors.Is(err, sink.ErrLeaseLost) {
		t.Errorf("the earlier epoch's Open: %v; want sink.ErrLeaseLost", err)
	}
	if err := old.tryWrite(t.Context(), src.batch(src.transaction(src.insert("9", "z")))); err == nil {
		t.Error("the earlier epoch's Write succeeded behind an Open that failed")
	}
	old.close()
	tx := src.transaction(src.insert("4", "c"))
	l.wrote(tx...)
	next.write(src.batch(tx))
	next.close()
	l.check(t, "at the end", false)
}

func testEarlierEpoch(t *testing.T, h Harness) {
	s, _ := openAs(t, h, start(5))
	s.close()
	s = newSession(t, h, start(4))
	if _, err := s.tryOpen(); !errors.Is(err, sink.ErrLeaseLost) {
		t.Errorf("Open with an earlier epoch: %v; want sink.ErrLeaseLost", err)
	}
	s.close()
	s, _ = openAs(t, h, start(5)) // the same one may come again
	s.close()
	openAs(t, h, start(6))
}

// testCheckpointsOfOthers: each worker of each group has a checkpoint of its own.
func testCheckpointsOfOthers(t *testing.T, h Harness) {
	src := newSource(t, h, "public", "t")
	s := open(t, h)
	b := src.batch(src.transaction(src.insert("1")))
	s.write(b)
	s.close()
	for _, change := range []func(*sink.Start){
		func(st *sink.Start) { st.Worker = "other" },
		func(st *sink.Start) { st.Group = "other" },
	} {
		st := start(1)
		change(&st)
		s, cp := openAs(t, h, st)
		wantCheckpoint(t, "another worker", cp, decode.Checkpoint{})
		s.close()
	}
	_, cp := openAs(t, h, start(2))
	wantCheckpoint(t, "the first worker", cp, b.Checkpoint)
}
