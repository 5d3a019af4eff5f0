package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/wire"
)

func begin(lsn decode.LSN) []byte {
	b := []byte{'B'}
	b = binary.BigEndian.AppendUint64(b, uint64(lsn))
	b = binary.BigEndian.AppendUint64(b, 0)
	return binary.BigEndian.AppendUint32(b, 7)
}

func commit(lsn, end decode.LSN) []byte {
	b := []byte{'C', 0}
	b = binary.BigEndian.AppendUint64(b, uint64(lsn))
	b = binary.BigEndian.AppendUint64(b, uint64(end))
	return binary.BigEndian.AppendUint64(b, 0)
}

func insert(text string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'I'}, 42)
	return append(b, text...)
}

func feed(t *testing.T, p *Packer, frames ...[]byte) {
	t.Helper()
	for _, f := range frames {
		if err := p.Frame(f); err != nil {
			t.Fatalf("frame %q: %v", f[0], err)
		}
	}
}

func packer(tail wire.Point) *Packer {
	p := New(Config{Session: 1, Attempt: 1, Tail: tail, Target: 1 << 16})
	p.SetRelation(42, wire.AppendFrame(nil, []byte("R-of-42")))
	return p
}

// types lists the records of a batch.
func types(t *testing.T, b *Batch) string {
	t.Helper()
	var s []byte
	if err := wire.Walk(b.Body(), func(r wire.Record) error {
		s = append(s, byte(r.Type))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return string(s)
}

func TestManySmallTransactionsGoIntoOneMessageThatDescribesItsRelationOnce(t *testing.T) {
	p := packer(wire.Point{End: 100})
	feed(t, p, begin(110), insert("a"), commit(110, 120), begin(130), insert("b"), insert("c"), commit(130, 140))
	b := p.Take(nil)
	if got := types(t, b); got != "BRICBIIC" {
		t.Fatalf("records %q", got)
	}
	if b.Header.From != (wire.Point{End: 100}) || b.Header.To != (wire.Point{LSN: 130, End: 140}) || b.Changes != 3 {
		t.Fatalf("header %+v, %d changes", b.Header, b.Changes)
	}
	feed(t, p, begin(150), insert("d"), commit(150, 160))
	if next := p.Take(nil); types(t, next) != "BRIC" || next.Header.From != b.Header.To {
		t.Fatalf("the next message has to describe the relation again and continue the first: %q %+v", types(t, next), next.Header)
	}
}

func TestTransactionsBelowTheTailAreSkippedByTheirCommitPosition(t *testing.T) {
	p := packer(wire.Point{LSN: 110, End: 120})
	feed(t, p, begin(110), insert("a"), commit(110, 120))
	if !p.Empty() {
		t.Fatal("a transaction that the stream has was packed again")
	}
	feed(t, p, begin(120), insert("b"), commit(120, 130)) // right behind: its commit LSN is the last one's end
	if b := p.Take(nil); types(t, b) != "BRIC" {
		t.Fatalf("a commit right behind the last one was skipped: %q", types(t, b))
	}
}

func TestEmptyTransactionsMoveTheIdlePositionOnly(t *testing.T) {
	p := packer(wire.Point{End: 100})
	feed(t, p, begin(110), commit(110, 120))
	if !p.Empty() || p.IdlePosition() != 120 {
		t.Fatalf("empty %v, idle %d", p.Empty(), p.IdlePosition())
	}
	p.Idle()
	b := p.Take(nil)
	if b.Header.To.End != 120 || b.Header.From.End != 100 {
		t.Fatalf("%+v", b.Header)
	}
	feed(t, p, begin(130))
	p.Seen(150)
	if p.IdlePosition() != 0 {
		t.Fatal("an idle position within a transaction")
	}
	if b := p.Take(nil); b.Header.To.Open || b.Header.To.End != 120 {
		t.Fatalf("a Begin that waits opened the message's transaction: %+v", b.Header)
	}
	feed(t, p, insert("x"), commit(130, 140))
	if b := p.Take(nil); types(t, b) != "BRIC" || b.Header.From.End != 120 {
		t.Fatalf("%q %+v", types(t, b), b.Header)
	}
}

// cut packs a transaction of three changes and takes the batch behind the second.
func cut(t *testing.T) wire.Point {
	t.Helper()
	p := packer(wire.Point{End: 100})
	feed(t, p, begin(110), insert("a"), insert("b"))
	b := p.Take(nil)
	if !b.Header.To.Open || b.Header.To.Ordinal != 2 || b.Header.To.LSN != 110 || b.Header.To.End != 100 {
		t.Fatalf("%+v", b.Header.To)
	}
	return b.Header.To
}

func TestAPartlyPublishedTransactionGoesOnBehindItsLastOrdinal(t *testing.T) {
	tail := cut(t)
	p := packer(tail)
	if b := p.Take(nil); b.Header.To != tail {
		t.Fatalf("nothing came, and the position moved: %+v", b.Header.To)
	}
	feed(t, p, begin(110), insert("a"))
	if b := p.Take(nil); b.Header.To != tail || len(b.Body()) != 0 {
		t.Fatalf("within the replay the position moved: %+v", b.Header.To)
	}
	feed(t, p, insert("b"), insert("c"), commit(110, 120))
	b := p.Take(nil)
	if types(t, b) != "RIC" || b.Header.From != tail || b.Header.To != (wire.Point{LSN: 110, End: 120}) {
		t.Fatalf("%q %+v", types(t, b), b.Header)
	}
}

func TestAPartlyPublishedTransactionThatDiffersIsReported(t *testing.T) {
	for name, frames := range map[string][][]byte{
		"another change":      {begin(110), insert("a"), insert("B")},
		"fewer changes":       {begin(110), insert("a"), commit(110, 120)},
		"another transaction": {begin(115)},
	} {
		t.Run(name, func(t *testing.T) {
			p := packer(cut(t))
			var err error
			for _, f := range frames {
				if err = p.Frame(f); err != nil {
					break
				}
			}
			if !errors.Is(err, ErrDiffers) {
				t.Fatalf("%v", err)
			}
		})
	}
}

func TestAMessageLargerThanTheLimitIsCutAndItsPartsShareTheirStart(t *testing.T) {
	p := packer(wire.Point{End: 100})
	big := bytes.Repeat([]byte("x"), 5000)
	feed(t, p, begin(110), insert(string(big)), commit(110, 120))
	b := p.Take(nil)
	want := append([]byte(nil), b.Body()...)
	parts := b.Messages(2000)
	var got []byte
	for i, m := range parts {
		if len(m) > 2000 {
			t.Fatalf("part %d has %d bytes", i, len(m))
		}
		h, body, err := wire.Parse(m)
		if err != nil {
			t.Fatal(err)
		}
		if int(h.Part) != i || int(h.Parts) != len(parts) {
			t.Fatalf("part %d says %d of %d", i, h.Part, h.Parts)
		}
		if last := i == len(parts)-1; last != (h.To.End == 120) || !last && h.To != h.From {
			t.Fatalf("part %d brings the position to %+v", i, h.To)
		}
		got = append(got, body...)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the parts are not the message")
	}
}

func TestAChangeOfAnUndescribedRelationIsAnError(t *testing.T) {
	p := New(Config{Tail: wire.Point{End: 100}, Target: 1 << 16})
	feed(t, p, begin(110))
	if err := p.Frame(insert("a")); !errors.Is(err, ErrUnknownRelation) {
		t.Fatalf("%v", err)
	}
}

func TestBrokenFramesAreErrors(t *testing.T) {
	for _, f := range [][]byte{nil, {'B'}, {'C', 1}, {'I'}, insert("outside"), {'Z', 1}} {
		if err := packer(wire.Point{End: 100}).Frame(f); err == nil {
			t.Errorf("%q was taken", f)
		}
	}
}
