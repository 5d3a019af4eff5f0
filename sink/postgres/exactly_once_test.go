package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

func TestCheckpointComesBackAsItWasStored(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY)`)
	r.apply(insert(rel("t", "*k"), "1"))
	r.apply() // nothing but the checkpoint
	want := decode.Checkpoint{Incarnation: "one", Seq: 2, LSN: 2, End: 3, Session: 7}
	if cp := r.open(); cp != want {
		t.Fatalf("got %+v, want %+v", cp, want)
	}
	again := newSink(t, r.db.URL)
	r.st.Incarnation = "two" // which one it was is for the worker to judge
	if cp, err := again.Open(testContext(t), r.st); err != nil || cp != want {
		t.Fatalf("another sink: %+v %v, want %+v", cp, err, want)
	}
	r.want("SELECT group_name, worker, incarnation, epoch FROM flo.checkpoints", is("g", "w", "one", "1"))
	other := newSink(t, r.db.URL, WithSchema(`My "flo"`))
	if cp, err := other.Open(testContext(t), r.st); err != nil || !cp.IsZero() {
		t.Fatalf("another schema: %+v %v", cp, err)
	}
}

// A checkpoint that was dropped is not an empty one, as long as the sink knows that there was one.
func TestDroppedBooksAreNamed(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY)`)
	tr := rel("t", "*k")
	r.apply(insert(tr, "1"))
	r.db.Exec(t, `DROP SCHEMA flo CASCADE`)
	err := r.try(insert(tr, "2"))
	if err != nil && !errors.Is(err, ErrBooksGone) { // what was known of the table is looked up afresh first
		t.Fatalf("write: %v", err)
	}
	if _, err = r.sink.Open(testContext(t), r.st); !errors.Is(err, ErrBooksGone) || !sink.IsPermanent(err) {
		t.Fatalf("open: %v", err)
	}
	r.want("SELECT count(*) FROM t", is("1"))
	if err = newBooks("flo").explain(&pgconn.PgError{Code: "42P01", Message: `relation "flow.backends" does not exist`}); errors.Is(err, ErrBooksGone) {
		t.Error("another schema's table is taken for flo's")
	}
}

// A big transaction over several batches is one at the destination: nothing is seen before its end, Abort
// and an error leave nothing of it.
func TestBigTransactionIsWholeOrNothing(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY)`)
	tr := rel("t", "*k")
	for i := range 3 {
		r.more(insert(tr, numberText(i)))
	}
	r.want("SELECT count(*) FROM t", is("0"))
	if err := r.sink.Abort(testContext(t)); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.apply()
	r.want("SELECT count(*) FROM t", is("0"))

	for try := range 2 {
		r.more(insert(tr, "1"))
		// The first time the table may have changed in mid-transaction, and all of it is to come again.
		if err := r.try(insert(tr, "bad")); err == nil || sink.IsPermanent(err) != (try == 1) {
			t.Fatalf("bad value, try %d: %v", try, err)
		}
		if cp := r.open(); cp.Seq != 1 {
			t.Fatalf("checkpoint after an error in a big transaction: %+v", cp)
		}
	}
	r.more(insert(tr, "1"))
	r.more(insert(tr, "2"))
	r.apply(insert(tr, "3"))
	r.want("SELECT count(*) FROM t", is("3"))
	if cp := r.open(); cp.Seq != r.seq {
		t.Fatalf("checkpoint %+v, want sequence %d", cp, r.seq)
	}
}

// The backend is killed at random moments while batches of plain inserts, into a table without a key, and
// increments go through it. Whatever the moment, Open says what stands, and nothing is there twice.
func TestKilledBackendsLoseAndRepeatNothing(t *testing.T) {
	seed := flotest.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t, `CREATE TABLE t (k int, pad text); CREATE TABLE n (k int PRIMARY KEY, v int)`)
	tr, n := rel("t", "k", "pad"), rel("n", "*k", "v")
	ctx := testContext(t)
	kill := make(chan time.Duration) // when, from now
	killed := make(chan int)
	go func() {
		count := 0
		for wait := range kill {
			<-time.After(wait)
			if r.db.TryExec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flo g/w'`) == nil {
				count++
			}
		}
		killed <- count
	}()
	const batches = 150
	done := 0 // what the checkpoint says is applied
	failures := 0
	batch := func(i int) []*decode.Change {
		changes := []*decode.Change{insert(n, "1", numberText(i+1))}
		for j := range 1 + rnd.IntN(120) {
			changes = append(changes, insert(tr, fmt.Sprint(i*1000+j), strings.Repeat("p", rnd.IntN(200))))
		}
		return changes
	}
	sizes := make(map[int]int)
	reopen := func() {
		for {
			cp, err := r.sink.Open(ctx, r.st)
			if err == nil {
				done = int(cp.Seq)
				return
			}
			if ctx.Err() != nil || !pgsession.Transient(err) {
				t.Fatalf("Open: %v", err)
			}
		}
	}
	for done < batches {
		if rnd.IntN(3) == 0 {
			select { // unless one is under way
			case kill <- time.Duration(rnd.IntN(20_000)) * time.Microsecond:
			default:
			}
		}
		changes := batch(done)
		sizes[done] = len(changes) - 1
		ordinals(changes)
		var err error
		if rnd.IntN(3) == 0 {
			half := len(changes) / 2
			err = r.sink.Write(ctx, &sink.Batch{Changes: changes[:half], More: true, Epoch: 1})
			changes = changes[half:]
		}
		if err == nil {
			err = r.sink.Write(ctx, &sink.Batch{Changes: changes, Checkpoint: decode.Checkpoint{Incarnation: "one", Seq: uint64(done + 1)}, Epoch: 1})
		}
		if err == nil {
			done++
			continue
		}
		failures++
		if ctx.Err() != nil || sink.IsPermanent(err) || !pgsession.Transient(err) {
			t.Fatalf("Write: %v", err)
		}
		reopen()
	}
	close(kill)
	t.Logf("%d kills, %d failed batches", <-killed, failures)
	total := 0
	for _, size := range sizes {
		total += size
	}
	r.want("SELECT count(*), count(DISTINCT k) FROM t", is(numberText(total), numberText(total)))
	r.want("SELECT v FROM n", is(numberText(batches)))
}

// A worker that slept through a takeover can neither write nor copy.
func TestOlderEpochIsFencedOut(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY)`)
	tr := rel("t", "*k")
	zombie, zst := r.sink, r.st
	r.apply(insert(tr, "1"))
	table := sink.CopyTable{Relation: tr, Source: 5, Attempt: 1, Point: 1}
	r.sink, r.st.Epoch = newSink(t, r.db.URL), 2
	r.open()
	if err := zombie.BeginTable(testContext(t), table); !errors.Is(err, sink.ErrLeaseLost) {
		t.Fatalf("BeginTable: %v", err)
	}
	err := zombie.Write(testContext(t), &sink.Batch{Changes: []*decode.Change{insert(tr, "2")}, Checkpoint: r.checkpoint(), Epoch: 1})
	if !errors.Is(err, sink.ErrLeaseLost) || !sink.IsPermanent(err) {
		t.Fatalf("Write: %v", err)
	}
	if _, err := zombie.Open(testContext(t), zst); !errors.Is(err, sink.ErrLeaseLost) {
		t.Fatalf("Open: %v", err)
	}
	r.apply(insert(tr, "3"))
	err = r.sink.Write(testContext(t), &sink.Batch{Changes: []*decode.Change{insert(tr, "4")}, Epoch: 1})
	if !errors.Is(err, sink.ErrLeaseLost) {
		t.Fatalf("batch of an epoch that was not opened: %v", err)
	}
	r.want("SELECT k FROM t ORDER BY k", is("1"), is("3"))
}

// A predecessor that stopped in the middle of a transaction holds the checkpoint and rows; its successor
// ends its session instead of waiting.
func TestTakeoverEndsThePredecessorsSessions(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY)`)
	tr := rel("t", "*k")
	zombie := r.sink
	r.more(insert(tr, "1"))
	// A copy session that holds its row, too.
	held := make(chan error, 1)
	release := make(chan struct{})
	go func() {
		held <- zombie.with(context.Background(), func(c *session, st *sink.Start) error {
			if err := simple(context.Background(), c.pg, begin); err != nil {
				return err
			}
			if err := zombie.guard(context.Background(), c.pg, st, "FOR KEY SHARE"); err != nil {
				return err
			}
			held <- nil
			<-release
			return commit(context.Background(), c.pg)
		})
	}()
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	r.sink, r.st.Epoch = newSink(t, r.db.URL), 2
	r.open()
	r.apply(insert(tr, "2"))
	close(release)
	if err := <-held; !pgsession.Transient(err) {
		t.Fatalf("the copy session of the predecessor: %v", err)
	}
	err := zombie.Write(testContext(t), &sink.Batch{Changes: []*decode.Change{insert(tr, "3")}, Checkpoint: r.checkpoint(), Epoch: 1})
	if !pgsession.Transient(err) {
		t.Fatalf("Write of the predecessor: %v", err)
	}
	r.want("SELECT k FROM t", is("2"))
}

// Somebody who holds the row and is no session of flo's is waited for, as long as the context lets.
func TestOpenWaitsForAStrangersLock(t *testing.T) {
	r := newRig(t, "")
	conn := r.db.Conn(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; SELECT FROM flo.checkpoints FOR UPDATE"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	r.st.Epoch = 2
	if _, err := r.sink.Open(ctx, r.st); !errors.Is(err, context.DeadlineExceeded) || sink.IsPermanent(err) {
		t.Fatalf("Open: %v", err)
	}
	if _, err := conn.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	r.open()
}

// A checkpoint that is not as this sink left it stops the write before anything is applied twice.
func TestCheckpointThatMovedIsNoticed(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int, v text)`)
	for _, sql := range []string{`UPDATE flo.checkpoints SET checkpoint = format('{"seq":%s}', (random() * 1e15)::bigint)`, `DELETE FROM flo.checkpoints`} {
		for _, n := range []int{1, 1000} { // step by step, and swiftly
			r.db.Exec(t, sql)
			if err := r.try(inserts(rel("t", "k", "v"), 1, n)...); !errors.Is(err, ErrCheckpointMoved) || sink.IsPermanent(err) {
				t.Fatalf("%s, %d inserts: %v", sql, n, err)
			}
			r.open()
		}
	}
	r.want("SELECT * FROM t")
	r.apply(inserts(rel("t", "k", "v"), 1, 1000)...)
	if n := r.sink.stats.swift.Load(); n != 1 {
		t.Fatalf("%d swift transactions", n)
	}
}

// What the server refuses of a swift transaction, at the COPY or at COMMIT, comes out as if it had been written step by step.
func TestSwiftTransactionsThatAreRefused(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v text); INSERT INTO t VALUES (500, 'old');
		CREATE TABLE p (k int PRIMARY KEY, v int UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO p VALUES (5000, 700);
		CREATE TABLE q (k int PRIMARY KEY, v text); CREATE TABLE c (k int CHECK (k <> 800), v text)`).nearby()
	r.apply(inserts(rel("t", "*k", "v"), 1, 1000)...) // overwrites a row
	r.want("SELECT count(*), min(v) FROM t", is("1000", "new"))
	if err := r.try(inserts(rel("c", "k", "v"), 1, 1000)...); err == nil || !sink.IsPermanent(err) || !strings.Contains(err.Error(), "change 799 ") {
		t.Fatalf("a row that a check refuses: %v", err)
	}
	r.open()
	taken := inserts(rel("q", "*k", "v"), 1, 1000)
	for i := range 1000 {
		taken = append(taken, insert(rel("p", "*k", "v"), numberText(i), numberText(i)))
	}
	undone := r.sink.stats.undone.Load()
	if err := r.try(taken...); err == nil || pgsession.SQLState(err) != "23505" || r.sink.stats.undone.Load() == undone {
		t.Fatalf("a deferred key that is taken: %v, %d undone", err, r.sink.stats.undone.Load()-undone)
	}
	r.open()
	r.want("SELECT (SELECT count(*) FROM p), (SELECT count(*) FROM q), (SELECT count(*) FROM c)", is("1", "0", "0"))
	r.apply(append(taken, remove(rel("p", "*k", "v"), "5000", absent))...)
	r.want("SELECT (SELECT count(*) FROM p), (SELECT count(*) FROM q)", is("1000", "1000"))
	if n := r.sink.stats.swift.Load(); n != 1 {
		t.Fatalf("%d swift transactions", n)
	}
}

// A connection that is lost between the refusal of a batch as a whole and the attempt to write it step by step leaves no verdict on
// any of its changes.
func TestARefusalThatCouldNotBeTriedAgainIsNoVerdict(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v text); INSERT INTO t VALUES (500, 'old')`)
	var undone atomic.Bool
	cfg, err := pgx.ParseConfig(r.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	dial := cfg.DialFunc
	cfg.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &rollbackLoser{c, &undone}, nil
	}
	s, err := NewConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(context.WithoutCancel(t.Context())) })
	r.sink, r.st.Epoch = s, 2
	r.open()
	r.nearby()
	if err := r.try(inserts(rel("t", "*k", "v"), 1, 1000)...); !pgsession.Transient(err) || sink.IsPermanent(err) || !undone.Load() {
		t.Fatalf("lost %v: %v", undone.Load(), err)
	}
	r.open()
	r.apply(inserts(rel("t", "*k", "v"), 1, 1000)...)
	r.want("SELECT count(*), min(v) FROM t", is("1000", "new"))
}

// rollbackLoser loses the connection at its first ROLLBACK.
type rollbackLoser struct {
	net.Conn
	lost *atomic.Bool
}

func (c *rollbackLoser) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("ROLLBACK")) && c.lost.CompareAndSwap(false, true) {
		c.Conn.Close()
		return 0, io.ErrClosedPipe
	}
	return c.Conn.Write(b)
}

func TestDeadlocksAreRetried(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0), (2, 0)`)
	tr := rel("t", "*k", "v")
	conn := r.db.Conn(t)
	if _, err := conn.Exec(t.Context(), "SET deadlock_timeout = '60s'; BEGIN; UPDATE t SET v = 9 WHERE k = 2"); err != nil {
		t.Fatal(err)
	}
	r.more(update(tr, "1", "1"))
	stuck := make(chan error, 1)
	go func() {
		_, err := conn.Exec(context.Background(), "UPDATE t SET v = 9 WHERE k = 1; COMMIT")
		stuck <- err
	}()
	err := r.try(update(tr, "2", "1"))
	var pg *pgconn.PgError
	if !errors.As(err, &pg) || pg.Code != "40P01" || sink.IsPermanent(err) || !pgsession.Transient(err) {
		t.Fatalf("want a deadlock that is worth another try, got: %v", err)
	}
	if err := <-stuck; err != nil {
		t.Fatal(err)
	}
	r.open()
	r.apply(update(tr, "1", "1"), update(tr, "2", "1"))
	r.want("SELECT * FROM t ORDER BY k", is("1", "1"), is("2", "1"))
}

// Write returns soon after its context ends, though a lock holds it up.
func TestWriteEndsWithItsContext(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)`)
	conn := r.db.Conn(t)
	if _, err := conn.Exec(t.Context(), "BEGIN; UPDATE t SET v = 9"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	err := r.sink.Write(ctx, &sink.Batch{Changes: []*decode.Change{update(rel("t", "*k", "v"), "1", "1")}, Checkpoint: r.checkpoint(), Epoch: 1})
	if err == nil || sink.IsPermanent(err) || time.Since(start) > 8*time.Second {
		t.Fatalf("after %v: %v", time.Since(start), err)
	}
	if _, err := conn.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.apply(update(rel("t", "*k", "v"), "1", "1"))
}
