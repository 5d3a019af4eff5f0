package decode_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
)

func TestLSNText(t *testing.T) {
	for _, l := range []decode.LSN{0, 1, 0xF, 0x10, 0xABCDEF01, 1 << 32, 0x16B374D848, 0x16_0000_0000, 1<<64 - 1} {
		want := fmt.Sprintf("%X/%X", uint32(l>>32), uint32(l))
		if l.String() != want {
			t.Errorf("%s, want %s", l, want)
		}
		back, err := decode.ParseLSN(want)
		if err != nil || back != l {
			t.Errorf("%s read back as %s, %v", want, back, err)
		}
		var scanned, unmarshalled decode.LSN
		if err := scanned.Scan([]byte(want)); err != nil || scanned != l {
			t.Errorf("scanned %s, %v", scanned, err)
		}
		if err := unmarshalled.UnmarshalText([]byte(want)); err != nil || unmarshalled != l {
			t.Errorf("unmarshalled %s, %v", unmarshalled, err)
		}
	}
	for _, bad := range []string{"", "/", "1", "1/", "/1", "x/1", "1/x", "123456789/1", "1/123456789", "-1/1", "1/1/1", " 1/1"} {
		if l, err := decode.ParseLSN(bad); err == nil {
			t.Errorf("%q read as %s", bad, l)
		}
	}
	var l decode.LSN = 5
	if err := l.Scan(nil); err != nil || l != 0 {
		t.Errorf("NULL scanned as %s, %v", l, err)
	}
	if err := l.Scan(5); err == nil {
		t.Error("an int was scanned")
	}
}

func TestPositionsAreOrderedByLSNThenOrdinal(t *testing.T) {
	inOrder := []decode.Position{{}, {LSN: 1, Ordinal: 9}, {LSN: 2, Ordinal: 1}, {LSN: 2, Ordinal: 2}}
	for i, p := range inOrder {
		for j, q := range inOrder {
			if got := p.Compare(q); (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s against %s: %d", p, q, got)
			}
		}
	}
	if s := inOrder[3].String(); s != "0/2:2" {
		t.Error(s)
	}
	if s := (decode.CopyID{Point: 0x10, Table: 1, Attempt: 2, Range: 3, Row: 1<<64 - 1}).String(); s != "0/10:1:2:3:18446744073709551615" {
		t.Error(s)
	}
}

func TestCheckpointText(t *testing.T) {
	for _, c := range []decode.Checkpoint{{}, {Incarnation: "x", Seq: 1, LSN: 2, End: 3, Session: 1<<64 - 1, Attempt: 4}} {
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		var back decode.Checkpoint
		if err := json.Unmarshal(text, &back); err != nil || back != c {
			t.Errorf("%s read back as %+v, %v", text, back, err)
		}
	}
	c := decode.Checkpoint{Seq: 1}
	if err := c.UnmarshalText(nil); err != nil || !c.IsZero() {
		t.Errorf("empty text: %+v, %v", c, err)
	}
	if err := c.UnmarshalText([]byte("x")); err == nil {
		t.Error("not a checkpoint, but read as one")
	}
}

// TestCommitTimesOfAllAges: microseconds around PostgreSQL's epoch, and the ends of the range.
func TestCommitTimesOfAllAges(t *testing.T) {
	for us, want := range map[uint64]string{
		0:                   "2000-01-01T00:00:00Z",
		1:                   "2000-01-01T00:00:00.000001Z",
		1<<64 - 1:           "1999-12-31T23:59:59.999999Z",
		9223371331200000000: "294277-01-01T00:00:00Z",
	} {
		frame := append([]byte{'B'}, make([]byte, 20)...)
		for i := range 8 {
			frame[9+i] = byte(us >> (56 - 8*i))
		}
		b, err := decode.ParseBegin(frame)
		if err != nil || b.CommitTime.Format(time.RFC3339Nano) != want {
			t.Errorf("%d: %s, %v, want %s", us, b.CommitTime, err, want)
		}
	}
}
