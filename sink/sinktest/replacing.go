package sinktest

import (
	"testing"

	"github.com/pgflo/flo/decode"
)

// testReplacingInsert gives inserts with an old row, as rules.Where makes them: each takes the place of the row
// of that key, if it is there, and is a plain insert if it is not.
func testReplacingInsert(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "t", "v"), open(t, h), newLedger(h)
	replacing := func(old string, values ...string) *decode.Change {
		c := src.insert(values...)
		c.Old, c.OldKey = src.row(old), true
		return c
	}
	insert := src.transaction(src.insert("1", "a"), src.insert("2", "b"), src.insert("stays", "c"))
	l.wrote(insert...)
	s.write(src.batch(insert))
	for _, tx := range [][]*decode.Change{
		{replacing("1", "1", "the same key"), replacing("2", "3", "another key")},
		{replacing("4", "4", "was not there"), replacing("5", "6", "nor this")},
		{src.insert("7", "d"), replacing("7", "8", "of this transaction"), replacing("8", "8", "again"), src.update("8", "updated")},
	} {
		src.transaction(tx...)
		l.wrote(tx...)
		s.write(src.batch(tx))
		l.checkRows(t, "behind inserts that replace rows")
	}
	s.close()
	l.check(t, "at the end", false)
	if h.Read == nil {
		return
	}
	want := []string{"", "", "", "1", "2", "4", "5", "", "7", "8", ""}
	for i, e := range h.Read(t) {
		if i >= len(want) {
			break // said already
		}
		id := ""
		if e.Op == decode.OpInsert.String() && e.Old["id"] != nil {
			id = *e.Old["id"]
		}
		if id != want[i] {
			t.Errorf("change %s, an insert that takes the place of the row %q, if it is there: the destination holds the old key %q (Entry.Old)", e.ID, want[i], id)
		}
	}
}
