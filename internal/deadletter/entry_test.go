package deadletter

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/pgflo/flo/decode"
)

func TestASubjectSaysAllOfAnEntry(t *testing.T) {
	for want, e := range map[string]Entry{
		"c-000000010016B374-3.16384.all":              {Kind: Streamed, Position: decode.Position{LSN: 1<<32 | 0x16B374, Ordinal: 3}, Tables: []uint32{16384}, Whole: true},
		"c-0000000000000001-18446744073709551615.-.-": {Kind: Streamed, Position: decode.Position{LSN: 1, Ordinal: 1<<64 - 1}},
		"t-00000000000000FF-2.1-4294967295.-":         {Kind: Emptied, Position: decode.Position{LSN: 255, Ordinal: 2}, Tables: []uint32{1, 1<<32 - 1}},
		"r-0000000000000010-7-1-2-3.7.01000000000000000000000000000000-02000000000000000000000000000000": {Kind: Copied, Copy: decode.CopyID{Point: 16, Table: 7, Attempt: 1, Range: 2, Row: 3}, Tables: []uint32{7}, Rows: []Row{{1}, {2}}},
	} {
		if got := e.subject(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
		if back, ok := parseEntry(want); !ok || !reflect.DeepEqual(back, e) {
			t.Errorf("%s is read as %+v", want, back)
		}
	}
	for _, bad := range []string{"", "c", "c-1.1.-", "c-0000000000000001.1.-", "x-0000000000000001-1.1.-", "c-0000000000000001-1.1", "c-0000000000000001-1.a.-", "c-0000000000000001-1.1.zz", "r-0000000000000001-1.1.-"} {
		if e, ok := parseEntry(bad); ok {
			t.Errorf("%q is read as %+v", bad, e)
		}
	}
}

func TestEntriesStandInTheOrderOfTheSource(t *testing.T) {
	at := func(lsn decode.LSN, n uint64) Entry {
		return Entry{Kind: Streamed, Position: decode.Position{LSN: lsn, Ordinal: n}}
	}
	row := func(point decode.LSN, r uint32, n uint64) Entry {
		return Entry{Kind: Copied, Copy: decode.CopyID{Point: point, Table: 1, Attempt: 1, Range: r, Row: n}}
	}
	want := []Entry{at(9, 5), row(10, 0, 2), row(10, 0, 10), row(10, 1, 0), at(10, 1), at(10, 2), at(10, 11), at(11, 1)}
	got := slices.Clone(want)
	rand.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
	slices.SortFunc(got, func(a, b Entry) int { return compare(&a, &b) })
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestATruncationMakesObsoleteWhatStandsBeforeItInItsTable(t *testing.T) {
	mark := Entry{Kind: Emptied, Position: decode.Position{LSN: 20, Ordinal: 2}, Tables: []uint32{7}}
	for _, c := range []struct {
		e    Entry
		want bool
	}{
		{Entry{Kind: Streamed, Position: decode.Position{LSN: 20, Ordinal: 1}, Tables: []uint32{7}}, true},
		{Entry{Kind: Streamed, Position: decode.Position{LSN: 20, Ordinal: 2}, Tables: []uint32{7}}, false},
		{Entry{Kind: Streamed, Position: decode.Position{LSN: 21, Ordinal: 1}, Tables: []uint32{7}}, false},
		{Entry{Kind: Streamed, Position: decode.Position{LSN: 19, Ordinal: 1}, Tables: []uint32{8}}, false},
		{Entry{Kind: Streamed, Position: decode.Position{LSN: 19, Ordinal: 1}, Tables: []uint32{7, 8}}, false},
		{Entry{Kind: Copied, Copy: decode.CopyID{Point: 20, Table: 7}, Tables: []uint32{7}}, true},
		{Entry{Kind: Copied, Copy: decode.CopyID{Point: 21, Table: 7}, Tables: []uint32{7}}, false},
		{mark, false},
	} {
		if got := c.e.Obsolete(&mark); got != c.want {
			t.Errorf("%+v: %v", c.e, got)
		}
	}
}
