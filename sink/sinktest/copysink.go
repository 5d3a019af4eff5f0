package sinktest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// testCopySink tests what sink.CopySink promises, if the sink does.
func testCopySink(f Factory) func(*testing.T, Harness) {
	return func(t *testing.T, h Harness) {
		if newSession(t, h, start(1)).copy == nil {
			t.Skip("not a sink.CopySink")
		}
		for _, part := range []struct {
			name string
			test func(*testing.T, Harness)
		}{
			{"ParallelChunks", testParallelChunks},
			{"EmptyTable", testEmptyTable},
			{"Repeats", testCopyRepeats},
			{"Restart", testCopyRestart},
			{"NewAttempt", testNewAttempt},
			{"NewIncarnation", testNewIncarnation},
			{"TwoSourcesOfOneTable", testTwoSources},
			{"ResumedButLost", testResumedButLost},
			{"ContextEnds", testCopyContextEnds},
			{"Takeover", testCopyTakeover},
		} {
			t.Run(part.name, func(t *testing.T) { part.test(t, f(t)) })
		}
	}
}

// copying is a table's copy: its chunks hold a few rows each.
type copying struct {
	t      *testing.T
	l      *ledger
	table  sink.CopyTable
	chunks []*sink.CopyChunk
	rows   [][]*decode.Change // of each chunk
}

const (
	copyRanges = 3
	copyChunks = 4 // a range
	copyRows   = 5 // a chunk
)

// newCopying makes an attempt to copy rel. What it copies is told by tag. The ledger gets the rows when
// they are written.
func newCopying(t *testing.T, l *ledger, rel *decode.Relation, attempt uint32, tag string) *copying {
	c := &copying{t: t, l: l, table: sink.CopyTable{Relation: rel, Source: rel.OID, Attempt: attempt, Point: decode.LSN(0x1000 * attempt)}}
	src, hostile := &source{rel: rel}, hostileValues()
	for r := range uint32(copyRanges) {
		for k := range copyChunks {
			ch := &sink.CopyChunk{Table: c.table, Rows: copyRows,
				ID: decode.CopyID{Point: c.table.Point, Table: rel.OID, Attempt: attempt, Range: r, Row: uint64(k * copyRows)}}
			var rows []*decode.Change
			for i := range copyRows {
				n := (int(r)*copyChunks+k)*copyRows + i
				change := src.insert(fmt.Sprint(tag, n), hostile[n%len(hostile)])
				if n%7 == 0 {
					change.New[1] = decode.NullValue(textType())
				}
				var err error
				if ch.Data, err = decode.AppendCopyRow(ch.Data, change.New); err != nil {
					t.Fatal(err)
				}
				rows = append(rows, change)
			}
			c.chunks, c.rows = append(c.chunks, ch), append(c.rows, rows)
		}
	}
	return c
}

func (c *copying) begin(s *session) {
	c.t.Helper()
	if err := s.copy.BeginTable(c.t.Context(), c.table); err != nil {
		c.t.Fatalf("BeginTable: %v", err)
	}
}

// write writes chunks, by number, on several goroutines in any order.
func (c *copying) write(s *session, numbers ...int) {
	c.t.Helper()
	rand.Shuffle(len(numbers), func(i, j int) { numbers[i], numbers[j] = numbers[j], numbers[i] })
	g, ctx := errgroup.WithContext(c.t.Context())
	g.SetLimit(4)
	for _, n := range numbers {
		g.Go(func() error { return c.chunk(ctx, s, n) })
	}
	if err := g.Wait(); err != nil {
		c.t.Fatalf("WriteChunk: %v", err)
	}
	for _, n := range numbers {
		for _, row := range c.rows[n] {
			c.l.apply(row)
		}
	}
}

func (c *copying) chunk(ctx context.Context, s *session, n int) error {
	ch := *c.chunks[n]
	ch.Table, ch.Epoch = c.table, s.start.Epoch
	ch.Data = append([]byte(nil), ch.Data...)
	err := s.copy.WriteChunk(ctx, &ch)
	clear(ch.Data) // they are valid until WriteChunk returns
	return err
}

func (c *copying) end(s *session) {
	c.t.Helper()
	t := c.table
	t.Chunks, t.Rows = uint64(len(c.chunks)), uint64(len(c.chunks)*copyRows)
	if err := s.copy.EndTable(c.t.Context(), t); err != nil {
		c.t.Fatalf("EndTable: %v", err)
	}
}

// numbers of the chunks from one to behind another.
func (c *copying) numbers(from, to int) (list []int) {
	for n := from; n < to; n++ {
		list = append(list, n)
	}
	return list
}

func (c *copying) all() []int { return c.numbers(0, len(c.chunks)) }

// copyTable makes a table to copy into.
func copyTable(t *testing.T, h Harness, oid uint32, name string) *decode.Relation {
	return newTable(t, h, oid, "public", name, "v")
}

func testParallelChunks(t *testing.T, h Harness) {
	l, s, rel := newLedger(h), open(t, h), copyTable(t, h, 1, "t")
	c := newCopying(t, l, rel, 1, "")
	c.begin(s)
	c.write(s, c.all()...)
	c.end(s)
	l.checkRows(t, "behind the copy")
	// Then come the changes.
	src := &source{rel: rel, lsn: 0x9000}
	tx := src.transaction(src.update("1", "streamed"), &decode.Change{Op: decode.OpDelete, Relation: rel, Old: src.row("2"), OldKey: true}, src.insert("new", "x"))
	for _, change := range tx {
		l.apply(change)
	}
	s.write(src.batch(tx))
	s.close()
	l.checkRows(t, "at the end")
}

func testEmptyTable(t *testing.T, h Harness) {
	l, s := newLedger(h), open(t, h)
	c := newCopying(t, l, copyTable(t, h, 1, "t"), 1, "")
	c.chunks = nil
	c.begin(s)
	c.end(s)
	l.table(c.table.Relation)
	l.checkRows(t, "at the end")
}

// testCopyRepeats: whatever comes again changes nothing.
func testCopyRepeats(t *testing.T, h Harness) {
	l, s := newLedger(h), open(t, h)
	c := newCopying(t, l, copyTable(t, h, 1, "t"), 1, "")
	c.begin(s)
	c.write(s, append(c.all(), c.all()...)...)
	c.begin(s)
	c.write(s, c.all()...)
	c.end(s)
	l.checkRows(t, "behind the copy")
	c.begin(s)
	c.write(s, c.all()...)
	c.end(s)
	l.checkRows(t, "copied again behind its end")
}

func testCopyRestart(t *testing.T, h Harness) {
	l, s := newLedger(h), open(t, h)
	c := newCopying(t, l, copyTable(t, h, 1, "t"), 1, "")
	half := len(c.chunks) / 2
	c.begin(s)
	c.write(s, c.numbers(0, half)...)
	s.close()
	l.checkRows(t, "behind half a copy")
	s, _ = openAs(t, h, start(2))
	c.table.Resumed = true
	c.begin(s)
	l.checkRows(t, "begun again")
	c.write(s, c.numbers(half-1, len(c.chunks))...) // the last one may come again
	c.end(s)
	s.close()
	l.checkRows(t, "at the end")
}

// testNewAttempt: a new attempt begins with an empty table, and leaves others alone.
func testNewAttempt(t *testing.T, h Harness) {
	l, s := newLedger(h), open(t, h)
	other := newCopying(t, l, copyTable(t, h, 2, "other"), 1, "")
	other.begin(s)
	other.write(s, other.all()...)
	other.end(s)
	rel := copyTable(t, h, 1, "t")
	first := newCopying(t, l, rel, 1, "first ")
	first.begin(s)
	first.write(s, first.numbers(0, 5)...)
	for _, attempt := range []uint32{2, 3} { // in the midst of the copy, and behind its end
		clear(l.table(rel))
		c := newCopying(t, l, rel, attempt, fmt.Sprint("attempt ", attempt, " "))
		c.begin(s)
		l.checkRows(t, "begun afresh")
		c.write(s, c.all()...)
		c.end(s)
		l.checkRows(t, "copied afresh")
	}
}

// testNewIncarnation: another stream counts its attempts from one again.
func testNewIncarnation(t *testing.T, h Harness) {
	l, s := newLedger(h), open(t, h)
	if s.tx == nil {
		t.Skip("without sink.Transactional it isn't told the incarnation")
	}
	rel := copyTable(t, h, 1, "t")
	c := newCopying(t, l, rel, 1, "old ")
	c.begin(s)
	c.write(s, c.all()...)
	c.end(s)
	s.close()
	st := start(2)
	st.Incarnation = "another"
	s, _ = openAs(t, h, st)
	clear(l.table(rel))
	c = newCopying(t, l, rel, 1, "new ")
	c.begin(s)
	c.write(s, c.all()...)
	c.end(s)
	l.checkRows(t, "copied from another stream")
}

// testTwoSources: two tables of one run that are routed into one don't empty each other.
func testTwoSources(t *testing.T, h Harness) {
	l, s, rel := newLedger(h), open(t, h), copyTable(t, h, 1, "t")
	a := newCopying(t, l, rel, 1, "a ")
	b := newCopying(t, l, rel, 1, "b ")
	b.table.Source = 2
	for _, ch := range b.chunks {
		ch.ID.Table = 2
	}
	a.begin(s)
	a.write(s, a.all()...)
	b.begin(s)
	b.write(s, b.all()...)
	a.end(s)
	b.end(s)
	l.checkRows(t, "at the end")
}

// testResumedButLost: a sink that has lost what it was given must say so.
func testResumedButLost(t *testing.T, h Harness) {
	s := open(t, h)
	c := newCopying(t, newLedger(h), copyTable(t, h, 1, "t"), 1, "")
	c.table.Resumed = true
	if err := s.copy.BeginTable(t.Context(), c.table); err == nil {
		t.Error("BeginTable took an attempt to be resumed that it knows nothing of")
	}
}

func testCopyContextEnds(t *testing.T, h Harness) {
	l, s := newLedger(h), open(t, h)
	c := newCopying(t, l, copyTable(t, h, 1, "t"), 1, "")
	_ = ended(t, "BeginTable", func(ctx context.Context) error { return s.copy.BeginTable(ctx, c.table) })
	c.begin(s)
	_ = ended(t, "WriteChunk", func(ctx context.Context) error { return c.chunk(ctx, s, 0) })
	c.write(s, c.all()...)
	_ = ended(t, "EndTable", func(ctx context.Context) error {
		table := c.table
		table.Chunks, table.Rows = uint64(len(c.chunks)), uint64(len(c.chunks)*copyRows)
		return s.copy.EndTable(ctx, table)
	})
	c.end(s)
	l.checkRows(t, "at the end")
}

// testCopyTakeover: behind a takeover the earlier epoch's chunks are refused.
func testCopyTakeover(t *testing.T, h Harness) {
	l, old := newLedger(h), open(t, h)
	if old.tx == nil {
		t.Skip("without sink.Transactional it isn't told the epoch")
	}
	c := newCopying(t, l, copyTable(t, h, 1, "t"), 1, "")
	c.begin(old)
	c.write(old, 0, 1)
	next, _ := openAs(t, h, start(2))
	c.begin(next)
	if err := c.chunk(t.Context(), old, 2); err == nil {
		t.Error("the earlier epoch's WriteChunk succeeded behind the takeover")
	} else if _, err := old.tryOpen(); !errors.Is(err, sink.ErrLeaseLost) {
		t.Errorf("the earlier epoch's Open: %v; want sink.ErrLeaseLost", err)
	}
	l.checkRows(t, "behind a takeover")
	c.write(next, c.all()...)
	c.end(next)
	l.checkRows(t, "at the end")
}
