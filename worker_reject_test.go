package flo_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// nameless is a PostgreSQL sink that says no more than that it refuses.
type nameless struct {
	*postgres.Sink
	writes int
}

var errNameless = errors.New("something in there is no good")

func (s *nameless) Write(ctx context.Context, b *sink.Batch) error {
	s.writes++
	err := s.Sink.Write(ctx, b)
	if sink.IsPermanent(err) {
		return sink.Permanent(errNameless)
	}
	return err
}

// heap is a sink without checkpoint that refuses, as a whole, batches with a bad row. It keeps what it is given with
// More to itself until the transaction's end.
type heap struct {
	mu     sync.Mutex
	open   []*decode.Change
	rows   map[string]string // by identity
	order  []decode.Position
	refuse func(c *decode.Change) bool
}

func (h *heap) Write(_ context.Context, b *sink.Batch) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range b.Changes {
		if h.refuse(c) {
			return sink.Permanent(errNameless)
		}
	}
	for _, c := range b.Changes {
		h.open = append(h.open, c.Clone())
	}
	if b.More {
		return nil
	}
	for _, c := range h.open {
		h.rows[identity(c)] = c.New[0].String()
		if n := len(h.order); c.Tx != nil && (n == 0 || c.Position().Compare(h.order[n-1]) > 0) {
			h.order = append(h.order, c.Position())
		}
	}
	h.open = nil
	return nil
}

func badRow(c *decode.Change) bool {
	return len(c.New) > 1 && strings.HasPrefix(c.New[1].String(), "bad")
}

func TestStopNamesTheVeryChangeThatASinkRefusesWithoutAName(t *testing.T) {
	for name, size := range map[string]int{"in one batch": 10_000, "over batches": 100} {
		for _, kind := range []string{"transactional", "plain"} {
			t.Run(name+", "+kind, func(t *testing.T) {
				ctx := testContext(t)
				p := newPipeline(t, smallTable)
				p.dst.Exec(t, noBad)
				rep := p.replicator(flo.WithMode(flo.StreamOnly))
				launch(t, ctx, rep)
				p.published(ctx, rep)
				p.src.Exec(t, `INSERT INTO t VALUES (0, 'first')`)
				p.src.Exec(t, `INSERT INTO t SELECT i, CASE WHEN i IN (678, 680) THEN 'bad' ELSE 'x' END FROM generate_series(1, 1000) i`)
				for range 2 {
					var s sink.Sink = &nameless{Sink: p.sink()}
					if kind == "plain" {
						s = &heap{rows: map[string]string{}, refuse: badRow}
					}
					err := launch(t, ctx, p.worker(flo.WithSink(s), flo.WithBatchSize(size))).ends(ctx)
					var se *flo.SinkError
					if !errors.As(err, &se) || !errors.Is(err, errNameless) || se.Position.Ordinal != 678 || se.Table.String() != "public.t" {
						t.Fatalf("got %v", err)
					}
				}
				if got := p.dst.QueryString(t, `SELECT count(*) FROM pg_class WHERE relname = 't' AND EXISTS (SELECT FROM t WHERE id > 0)`); got != "0" {
					t.Error("a part of the transaction was committed")
				}
			})
		}
	}
}

func TestStopNamesTheCopiedRow(t *testing.T) {
	ctx := testContext(t)
	for _, kind := range []string{"chunks", "rows"} {
		t.Run(kind, func(t *testing.T) {
			p := newPipeline(t, smallTable)
			p.dst.Exec(t, noBad)
			p.src.Exec(t, `INSERT INTO t SELECT i, CASE WHEN i = 678 THEN 'bad' ELSE 'x' END FROM generate_series(1, 1000) i`)
			var s sink.Sink = p.sink()
			if kind == "rows" {
				s = &heap{rows: map[string]string{}, refuse: badRow}
			}
			err := p.launch(ctx, flo.WithSink(s)).ends(ctx)
			var se *flo.SinkError
			if !errors.As(err, &se) || se.Copy == nil || se.Copy.Row != 677 || se.Table.String() != "public.t" {
				t.Fatalf("got %v", err)
			}
		})
	}
}

func TestAPlainSinkThatNamesNothingGetsAllButTheRefused(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, CASE WHEN i % 97 = 0 THEN 'bad' ELSE 'x' END FROM generate_series(1, 300) i`)
	h := &heap{rows: map[string]string{}, refuse: badRow}
	p.start(ctx, flo.WithSink(h), flo.WithErrorPolicy(flo.DeadLetter), flo.WithBatchSize(50))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t SELECT i, CASE WHEN i % 97 = 0 THEN 'bad' ELSE 'x' END FROM generate_series(301, 600) i`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if len(h.rows) != 594 || len(h.open) != 0 {
		t.Errorf("%d rows, %d still open", len(h.rows), len(h.open))
	}
	for i := 1; i < len(h.order); i++ {
		if h.order[i].Compare(h.order[i-1]) <= 0 {
			t.Errorf("%s behind %s", h.order[i], h.order[i-1])
		}
	}
	if n := len(p.allLetters(ctx, "default")); n != 6 {
		t.Errorf("%d letters", n)
	}
}

func TestATransactionThatIsRefusedAtItsCommitStops(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, `ALTER TABLE t ADD UNIQUE (v) DEFERRABLE INITIALLY DEFERRED`)
	rep := p.replicator(flo.WithMode(flo.StreamOnly))
	launch(t, ctx, rep)
	p.published(ctx, rep)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'x'), (4, 'z')`)
	err := launch(t, ctx, p.worker(flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))).ends(ctx)
	var se *flo.SinkError
	if !errors.As(err, &se) || !strings.Contains(err.Error(), "as a whole") || se.Position.LSN == 0 || se.Position.Ordinal != 0 {
		t.Fatalf("got %v", err)
	}
	if n := len(p.allLetters(ctx, "default")); n != 0 {
		t.Errorf("%d letters", n)
	}
}

func TestATruncateMakesEarlierLettersObsolete(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'bad'), (2, 'good')`)
	p.src.Exec(t, `TRUNCATE t`)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'good'), (3, 'bad')`)
	p.catchUp(ctx)
	if got := p.dst.QueryString(t, `SELECT string_agg(id || v, ' ' ORDER BY id) FROM t`); got != "1good" {
		t.Errorf("the destination has %s", got)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.wantLetters(ctx, "insert 1 bad", "insert 3 bad")
	p.dst.Exec(t, `ALTER TABLE t DROP CONSTRAINT no_bad`)
	if n, err := p.replay(ctx); n != 1 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	p.wantLetters(ctx)
	p.equal(ctx)
}

func TestATruncateThatIsRefusedHoldsItsTable(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable, `CREATE TABLE u (id int PRIMARY KEY)`)
	p.dst.Exec(t, `CREATE TABLE ref (id bigint REFERENCES t)`)
	p.start(ctx, flo.WithSink(p.sink(postgres.WithReplicaRole())), flo.WithErrorPolicy(flo.DeadLetter))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'), (2, 'b')`)
	p.src.Exec(t, `TRUNCATE t`)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'c'); INSERT INTO u VALUES (1)`)
	p.catchUp(ctx)
	if got := p.dst.QueryString(t, `SELECT (SELECT string_agg(id || v, ' ' ORDER BY id) FROM t) || (SELECT count(*) FROM u)`); got != "1a 2b1" {
		t.Errorf("the destination has %s", got)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	for _, l := range p.allLetters(ctx, "default") {
		t.Logf("%s %s: %s", l.ID, l.Op, l.Reason)
	}
	p.dst.Exec(t, `DROP TABLE ref`)
	if n, err := p.replay(ctx); n != 2 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	p.equal(ctx)
}

func TestDiscardedLettersAreGoneAndLongOnesAreWhole(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'bad'), (2, 'bad' || repeat('long', 1000000)), (3, 'c')`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	all := p.allLetters(ctx, "default")
	if len(all) != 2 || len(all[1].Raw) < 4_000_000 {
		t.Fatalf("%d letters", len(all))
	}
	s := p.sink()
	w := p.worker(flo.WithSink(s))
	if err := w.Discard(ctx, all[0].ID, "c-0-0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	p.dst.Exec(t, `ALTER TABLE t DROP CONSTRAINT no_bad`)
	if n, err := p.replay(ctx); n != 1 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	p.src.Exec(t, `DELETE FROM t WHERE id = 1`) // as the destination has it
	p.equal(ctx)
}

// forgetful loses the answer to what it has committed, once.
type forgetful struct {
	*postgres.Sink
	lose bool
}

func (s *forgetful) Write(ctx context.Context, b *sink.Batch) error {
	err := s.Sink.Write(ctx, b)
	if err == nil && s.lose && !b.More {
		s.lose = false
		return errors.New("connection lost")
	}
	return err
}

func TestALetterWhoseReplayLostItsAnswerIsNotWrittenTwice(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, keylessTable)
	p.dst.Exec(t, `ALTER TABLE log ADD CONSTRAINT no_bad CHECK (what <> 'bad')`)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO log (what) VALUES ('good'), ('bad'), ('bad')`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.dst.Exec(t, `ALTER TABLE log DROP CONSTRAINT no_bad`)
	s := &forgetful{Sink: p.sink(), lose: true}
	if n, err := p.worker(flo.WithSink(s)).Replay(ctx); n != 0 || err == nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if n, err := p.replay(ctx); n != 1 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	if got := p.dst.QueryString(t, `SELECT string_agg(what, ' ' ORDER BY what) FROM log`); got != "bad bad good" {
		t.Errorf("the destination has %s", got)
	}
}

// TestDeadLettersUnderARandomLoad refuses rows at random, kills workers meanwhile, mends the destination, and wants
// both sides equal.
func TestDeadLettersUnderARandomLoad(t *testing.T) {
	ctx := testContext(t)
	seed := flotest.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	p := newPipeline(t, smallTable, `CREATE TABLE f (a int, v text); ALTER TABLE f REPLICA IDENTITY FULL`)
	p.dst.Exec(t, noBad+`; ALTER TABLE f ADD CONSTRAINT no_bad CHECK (v NOT LIKE 'bad%')`)
	p.src.Exec(t, `INSERT INTO t SELECT i, CASE WHEN i % 20 = 0 THEN 'bad' ELSE 'x' END FROM generate_series(1, 60) i; INSERT INTO f SELECT i, 'x' FROM generate_series(1, 10) i`)
	opts := []flo.Option{flo.WithErrorPolicy(flo.DeadLetter), flo.WithLeaseTime(time.Second)}
	for round := range 4 {
		var s sink.Sink = p.sink()
		if round%2 == 1 {
			s = &nameless{Sink: p.sink()}
		}
		run := p.launch(ctx, append(opts, flo.WithSink(s), flo.WithBatchSize(1+rnd.IntN(40)))...)
		for range 15 {
			var sql strings.Builder
			sql.WriteString("BEGIN;")
			for range 1 + rnd.IntN(8) {
				id, v := rnd.IntN(80), fmt.Sprint("v", rnd.IntN(1000))
				if rnd.IntN(12) == 0 {
					v = "bad" + v
				}
				switch rnd.IntN(8) {
				case 0, 1, 2:
					fmt.Fprintf(&sql, `INSERT INTO t VALUES (%d, '%s') ON CONFLICT (id) DO UPDATE SET v = '%s';`, id, v, v)
				case 3:
					fmt.Fprintf(&sql, `DELETE FROM t WHERE id = %d;`, id)
				case 4:
					fmt.Fprintf(&sql, `UPDATE t SET id = %d WHERE id = %d AND NOT EXISTS (SELECT FROM t WHERE id = %[1]d);`, rnd.IntN(80), id)
				case 5:
					fmt.Fprintf(&sql, `UPDATE f SET v = '%s' WHERE a = %d;`, v, id%15)
				case 6:
					fmt.Fprintf(&sql, `INSERT INTO f VALUES (%d, '%s');`, id%15, v)
				case 7:
					fmt.Fprintf(&sql, `DELETE FROM f WHERE a = %d;`, id%15)
				}
			}
			p.src.Exec(t, sql.String()+"COMMIT")
		}
		if round == 3 {
			p.src.Exec(t, `INSERT INTO t VALUES (1000, 'bad'); UPDATE t SET v = 'bad' WHERE id = 1000`)
			p.catchUp(ctx)
		}
		if err := run.stop(); err != nil {
			t.Fatal(err)
		}
	}
	letters := len(p.allLetters(ctx, "default"))
	t.Logf("%d letters", letters)
	p.dst.Exec(t, `ALTER TABLE t DROP CONSTRAINT no_bad; ALTER TABLE f DROP CONSTRAINT no_bad`)
	if n, err := p.replay(ctx); n != letters || err != nil {
		t.Fatalf("replayed %d of %d, %v", n, letters, err)
	}
	p.equal(ctx)
}

// rowsOnly hides that a transactional sink takes raw chunks.
type rowsOnly struct{ sink.Transactional }

func TestCopiedRowsOfATransactionalSinkWithoutChunks(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	p.src.Exec(t, `INSERT INTO t SELECT i, CASE WHEN i IN (7, 8, 500) THEN 'bad' ELSE 'x' END FROM generate_series(1, 500) i`)
	inner := &nameless{Sink: p.sink()}
	t.Cleanup(func() {
		if err := inner.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	p.ranOnce(ctx, flo.WithSink(rowsOnly{inner}), flo.WithErrorPolicy(flo.DeadLetter))
	if got := p.dst.QueryString(t, `SELECT count(*) || ' ' || count(*) FILTER (WHERE id IN (7, 8, 500)) FROM t`); got != "497 0" {
		t.Errorf("the destination has %s", got)
	}
	p.wantLetters(ctx, "insert 7 bad", "insert 8 bad", "insert 500 bad")
}

// chunksOnly takes chunks, and can neither try them nor name a row.
type chunksOnly struct {
	sink.Transactional
	chunks sink.CopySink
}

func (s chunksOnly) BeginTable(ctx context.Context, t sink.CopyTable) error {
	return s.chunks.BeginTable(ctx, t)
}
func (s chunksOnly) WriteChunk(ctx context.Context, c *sink.CopyChunk) error {
	return s.chunks.WriteChunk(ctx, c)
}
func (s chunksOnly) EndTable(ctx context.Context, t sink.CopyTable) error {
	return s.chunks.EndTable(ctx, t)
}

func TestAChunkWhoseRowNobodyNamesStops(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	p.src.Exec(t, `INSERT INTO t SELECT i, CASE WHEN i = 7 THEN 'bad' ELSE 'x' END FROM generate_series(1, 50) i`)
	inner := p.sink()
	t.Cleanup(func() {
		if err := inner.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	err := p.launch(ctx, flo.WithSink(chunksOnly{inner, inner}), flo.WithErrorPolicy(flo.DeadLetter)).ends(ctx)
	var se *flo.SinkError
	if !errors.As(err, &se) || se.Copy == nil || se.Table.String() != "public.t" || !strings.Contains(err.Error(), "ChunkTrier") {
		t.Fatalf("got %v", err)
	}
	if n := len(p.allLetters(ctx, "default")); n != 0 {
		t.Errorf("%d letters", n)
	}
}

func TestStopPassesOverLettersAndStopsAtWhatFollowsThem(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'bad'), (2, 'x')`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	run := p.launch(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `UPDATE t SET v = 'y' WHERE id = 2`)
	p.catchUp(ctx)
	p.src.Exec(t, `UPDATE t SET v = 'y' WHERE id = 1`)
	wantStop(t, run.ends(ctx), flo.ErrDeadLetters, "c-", "Replay", "public.t")
	p.dst.Exec(t, `ALTER TABLE t DROP CONSTRAINT no_bad`)
	if n, err := p.replay(ctx); n != 1 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}
