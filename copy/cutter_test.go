package flocopy

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/pgflo/flo/flotest"
)

func TestCutterCutsAtRowEndsHoweverTheBytesCome(t *testing.T) {
	seed := flotest.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	cutters := []*cutter{{limit: 100}, {limit: 100, room: 7}}
	for round := range 3000 {
		c := cutters[round%2]
		var rows, got [][]byte
		var all []byte
		for range rnd.IntN(40) {
			size := rnd.IntN(30)
			if rnd.IntN(10) == 0 {
				size = rnd.IntN(400)
			}
			rows = append(rows, append(bytes.Repeat([]byte{'a' + byte(len(rows)%26)}, size), '\n'))
			all = append(all, rows[len(rows)-1]...)
		}
		c.reset()
		c.emit = func(row, n uint64, data []byte) error {
			whole := data
			data = data[c.room:]
			if row != uint64(len(got)) || n == 0 || (n > 1 && len(data) > c.limit) || cap(whole) > 2*max(len(whole), c.limit+c.room) {
				return fmt.Errorf("row %d behind %d, %d rows, %d bytes (cap %d)", row, len(got), n, len(data), cap(data))
			}
			for line := range bytes.Lines(data) {
				got = append(got, bytes.Clone(line))
				n--
			}
			clear(whole[:cap(whole)]) // a chunk belongs to its receiver, with all room it has
			if n != 0 {
				return errors.New("wrong number of rows")
			}
			return nil
		}
		for rest := all; len(rest) > 0; {
			n := 1 + rnd.IntN(min(len(rest), []int{1, 10, 1000}[rnd.IntN(3)]))
			piece := bytes.Clone(rest[:n]) // the writer may reuse its bytes
			if _, err := c.Write(piece); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			clear(piece)
			rest = rest[n:]
		}
		if err := c.flush(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if !slices.EqualFunc(rows, got, bytes.Equal) || c.left() != 0 {
			t.Fatalf("round %d: %d rows became %d, %d bytes left", round, len(rows), len(got), c.left())
		}
	}
}

func TestTablesAreCutByTheirRealSize(t *testing.T) {
	const block = 8192
	for _, c := range []struct {
		heapPages, totalPages, rangePages int64
		version                           int
		ranges                            uint32
		step                              int64
	}{
		{0, 0, 4096, 150000, 1, 4096},
		{1, 1, 4096, 150000, 1, 4096},
		{4096, 4096, 4096, 150000, 1, 4096},
		{4097, 4097, 4096, 150000, 2, 4096},
		{40960, 40960, 4096, 130000, 1, 4096}, // no TID range scan
		{4096, 40960, 4096, 150000, 11, 409},  // nine tenths are TOAST
		{10, 1000000, 4096, 150000, 1, 16},    // nearly all TOAST
		{1 << 32, 1 << 32, 4096, 150000, 1 << 20, 4096},
		{1 << 32, 1 << 32, 1, 150000, 1 << 24, 256}, // more ranges than can be numbered
	} {
		p := newTablePlan(&Table{}, c.heapPages*block, c.totalPages*block, block, c.rangePages, c.version)
		if p.ranges != c.ranges || p.step != c.step {
			t.Errorf("%+v: %d ranges of %d pages", c, p.ranges, p.step)
		}
	}
}

func TestRangesOfATableMeetAndTheLastOneIsOpen(t *testing.T) {
	tab := &Table{Schema: "s", Name: `t"x`, Columns: []string{"a", "B c"}, RowFilter: "a > 1"}
	p := newTablePlan(tab, 25*8192, 25*8192, 8192, 10, 150000)
	want := []string{
		`COPY (SELECT "a", "B c" FROM ONLY "s"."t""x" WHERE ctid < '(10,0)'::tid AND (a > 1)) TO STDOUT`,
		`COPY (SELECT "a", "B c" FROM ONLY "s"."t""x" WHERE ctid >= '(10,0)'::tid AND ctid < '(20,0)'::tid AND (a > 1)) TO STDOUT`,
		`COPY (SELECT "a", "B c" FROM ONLY "s"."t""x" WHERE ctid >= '(20,0)'::tid AND (a > 1)) TO STDOUT`,
	}
	s := newSchedule([]*tablePlan{p}, nil)
	for i := 0; ; i++ {
		r, ok := s.take()
		if !ok {
			if i != len(want) {
				t.Errorf("%d ranges", i)
			}
			return
		}
		if got := r.query(); got != want[i] {
			t.Errorf("range %d: %s", i, got)
		}
	}
}
