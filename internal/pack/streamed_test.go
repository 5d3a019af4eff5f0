package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/wire"
)

func streamStart(xid uint32, first bool) []byte {
	b := binary.BigEndian.AppendUint32([]byte{'S'}, xid)
	if first {
		return append(b, 1)
	}
	return append(b, 0)
}

func streamStop() []byte { return []byte{'E'} }

func streamCommit(xid uint32, lsn, end decode.LSN) []byte {
	b := append(binary.BigEndian.AppendUint32([]byte{'c'}, xid), 0)
	b = binary.BigEndian.AppendUint64(b, uint64(lsn))
	b = binary.BigEndian.AppendUint64(b, uint64(end))
	return binary.BigEndian.AppendUint64(b, 0)
}

func streamAbort(xid, sub uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte{'A'}, xid), sub)
}

// in puts a frame into a block, as a subtransaction's.
func in(xid uint32, frame []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{frame[0]}, xid), frame[1:]...)
}

func message(prefix string) []byte {
	b := append([]byte{'M'}, make([]byte, 9)...) // flags, LSN
	return append(append(b, prefix...), 0, 0, 0, 0, 0)
}

func relationOf(oid uint32, name string) (*decode.Relation, []byte) {
	r := &decode.Relation{OID: oid, Schema: "s", Name: name, Identity: decode.IdentityDefault}
	return r, decode.AppendRelation(nil, r)
}

func stagedRelation(p *Packer, xid, oid uint32, name string) {
	rel, frame := relationOf(oid, name)
	p.StagedRelation(xid, frame, rel)
}

// text shows a body: frames by their type and, of relations, their name; subtransactions by their distance.
func text(t *testing.T, b *Batch) string {
	t.Helper()
	var s []string
	if err := wire.Walk(b.Body(), func(r wire.Record) error {
		switch r.Type {
		case wire.RecSub:
			d, err := wire.ParseSub(r.Data)
			s = append(s, fmt.Sprint(d))
			return err
		case 'R':
			if _, name, err := decode.RelationName(r.Data); err == nil {
				s = append(s, name.Name)
				return nil
			}
			s = append(s, "R")
		case 'I':
			s = append(s, "I"+string(r.Data[5:]))
		case wire.RecAbort:
			s = append(s, "abort")
		default:
			s = append(s, string(rune(r.Type)))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return strings.Join(s, " ")
}

func TestInterleavedStreamedTransactionsAreStagedApart(t *testing.T) {
	p := packer(wire.Point{End: 100})
	feed(t, p, streamStart(7, true))
	stagedRelation(p, 7, 42, "a")
	feed(t, p, in(7, insert("1")), in(9, insert("2")), in(9, insert("3")), in(7, insert("4")), streamStop())
	if p.StagedDue() {
		t.Fatal("a batch that isn't full goes before it has to")
	}
	feed(t, p, streamStart(8, true))
	if !p.StagedDue() {
		t.Fatal("another transaction's block begins, and the batch stays")
	}
	b := p.TakeStaged(nil)
	if got := text(t, b); got != "0 a I1 2 I2 I3 0 I4" || b.XID != 7 || b.Header.Kind != wire.Staged || b.Header.To != (wire.Point{}) {
		t.Fatalf("%q of %d, header %+v", got, b.XID, b.Header)
	}
	stagedRelation(p, 8, 42, "b")
	feed(t, p, in(8, insert("5")), streamStop())
	feed(t, p, begin(110), insert("x"), commit(110, 120)) // an ordinary one, with the relation that others know
	if got := text(t, p.Take(nil)); got != "B R Ix C" {
		t.Fatalf("%q", got)
	}
	feed(t, p, streamStart(7, false))
	if got := text(t, p.TakeStaged(nil)); got != "0 b I5" {
		t.Fatalf("%q", got)
	}
	feed(t, p, in(7, insert("6")), streamStop())
	c, gone, err := p.StreamCommit(streamCommit(7, 130, 140))
	if err != nil || gone != 0 || !p.StagedDue() {
		t.Fatal(c, gone, err)
	}
	if got := text(t, p.TakeStaged(nil)); got != "0 a I6" {
		t.Fatalf("%q", got)
	}
	if len(c.Tables) != 1 || c.Tables[0].Relation.Name != "a" {
		t.Fatalf("%+v", c.Tables)
	}
	p.Streamed(c)
	b = p.Take(nil)
	if b.Streamed == nil || b.Header.To != (wire.Point{LSN: 130, End: 140}) || b.Header.From.End != 120 || b.Changes != 5 {
		t.Fatalf("%+v", b)
	}
	if gone, err := p.StreamAbort(streamAbort(8, 8)); err != nil || gone != 8 {
		t.Fatal(gone, err)
	}
	// The server takes what the committed one has described for known.
	feed(t, p, begin(150), insert("y"), commit(150, 160))
	if b := p.Take(nil); text(t, b) != "B a Iy C" || b.Streamed != nil {
		t.Fatalf("%q", text(t, b))
	}
}

func TestARolledBackSubtransactionTakesItsRelationsAlong(t *testing.T) {
	p := packer(wire.Point{End: 100})
	feed(t, p, streamStart(7, true))
	stagedRelation(p, 7, 42, "before")
	feed(t, p, in(7, insert("1")))
	stagedRelation(p, 9, 42, "within")
	feed(t, p, in(9, insert("2")), streamStop())
	if _, err := p.StreamAbort(streamAbort(7, 9)); err != nil {
		t.Fatal(err)
	}
	feed(t, p, streamStart(7, false))
	if err := p.Frame(in(7, insert("3"))); !errors.Is(err, ErrUnknownRelation) {
		t.Fatalf("a relation as it was rolled back is used: %v", err)
	}
	p = packer(wire.Point{End: 100})
	feed(t, p, streamStart(7, true))
	stagedRelation(p, 9, 42, "within")
	feed(t, p, in(9, insert("2")), streamStop())
	if _, err := p.StreamAbort(streamAbort(7, 9)); err != nil {
		t.Fatal(err)
	}
	feed(t, p, streamStart(7, false))
	stagedRelation(p, 7, 42, "again")
	feed(t, p, in(7, insert("3")), streamStop())
	c, _, err := p.StreamCommit(streamCommit(7, 130, 140))
	if err != nil || !slices.Equal(c.Record.Aborted, wire.XIDSet{{First: 2, Last: 2}}) || len(c.Tables) != 1 || c.Tables[0].Relation.Name != "again" {
		t.Fatalf("%+v %v", c, err)
	}
	if got := text(t, p.TakeStaged(nil)); got != "2 within I2 0 again I3" {
		t.Fatalf("%q", got)
	}
}

// A relation that was described to others meanwhile is newer than a streamed transaction's.
func TestACommitDoesNotBringBackAnOlderRelation(t *testing.T) {
	p := packer(wire.Point{End: 100})
	feed(t, p, streamStart(7, true))
	stagedRelation(p, 7, 42, "old")
	feed(t, p, in(7, insert("1")), streamStop())
	_, frame := relationOf(42, "new")
	p.SetRelation(42, wire.AppendFrame(nil, frame))
	c, _, err := p.StreamCommit(streamCommit(7, 130, 140))
	if err != nil {
		t.Fatal(err)
	}
	p.TakeStaged(nil)
	p.Streamed(c)
	p.Take(nil)
	feed(t, p, begin(150), insert("2"), commit(150, 160))
	if got := text(t, p.Take(nil)); got != "B new I2 C" {
		t.Fatalf("%q", got)
	}
}

func TestAMessageBeforeARollbackIsAmbiguous(t *testing.T) {
	for name, c := range map[string]struct {
		frames [][]byte
		want   error
	}{
		"rolled back behind it":            {[][]byte{in(7, message("flo"))}, ErrAmbiguous},
		"a change of its own level behind": {[][]byte{in(7, message("flo")), in(7, insert("x"))}, nil},
		"a change of the savepoint behind": {[][]byte{in(7, message("flo")), in(9, insert("x"))}, ErrAmbiguous},
		"of somebody else":                 {[][]byte{in(7, insert("x")), in(7, message("other"))}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := packer(wire.Point{End: 100})
			feed(t, p, streamStart(7, true))
			stagedRelation(p, 7, 42, "a")
			for _, f := range c.frames {
				feed(t, p, f)
			}
			feed(t, p, streamStop())
			if _, err := p.StreamAbort(streamAbort(7, 9)); err != nil {
				t.Fatal(err)
			}
			got, _, err := p.StreamCommit(streamCommit(7, 130, 140))
			if !errors.Is(err, c.want) || got == nil || got.Record.Commit != 130 {
				t.Fatalf("%+v %v", got, err)
			}
		})
	}
}

func TestATransactionThatTheTailHoldsInPartComesStreamed(t *testing.T) {
	tail := cut(t)
	p := packer(tail)
	feed(t, p, streamStart(7, true))
	stagedRelation(p, 7, 42, "a")
	feed(t, p, in(7, insert("a")), streamStop())
	if _, _, err := p.StreamCommit(streamCommit(7, 115, 120)); !errors.Is(err, ErrDiffers) {
		t.Fatalf("another transaction: %v", err)
	}
	c, _, err := p.StreamCommit(streamCommit(7, 110, 120))
	if err != nil {
		t.Fatal(err)
	}
	p.TakeStaged(nil)
	if !p.AbortOpen() {
		t.Fatal("the part is not aborted")
	}
	b := p.Take(nil)
	if text(t, b) != "abort" || b.Header.From != tail || b.Header.To.Open || b.Header.To.End != tail.End {
		t.Fatalf("%q %+v", text(t, b), b.Header)
	}
	p.Streamed(c)
	if next := p.Take(nil); next.Header.From != b.Header.To || next.Header.To != (wire.Point{LSN: 110, End: 120}) || next.Streamed == nil {
		t.Fatalf("%+v", next.Header)
	}
}

func TestAStreamedTransactionThatIsStoredOrEmptyIsLeftOut(t *testing.T) {
	p := packer(wire.Point{LSN: 110, End: 120})
	feed(t, p, streamStart(7, true))
	stagedRelation(p, 7, 42, "a")
	feed(t, p, in(7, insert("a")), streamStop(), streamStart(8, true), streamStop())
	if c, gone, err := p.StreamCommit(streamCommit(7, 110, 120)); c != nil || gone != 0 || err != nil || p.StagedDue() {
		t.Fatal(c, gone, err)
	}
	if c, gone, err := p.StreamCommit(streamCommit(8, 130, 140)); c != nil || gone != 0 || err != nil || p.IdlePosition() != 140 {
		t.Fatal(c, gone, err, p.IdlePosition())
	}
}

func TestBrokenStreamedFramesAreErrors(t *testing.T) {
	block := streamStart(7, true)
	for _, frames := range [][][]byte{
		{{'S'}}, {{'E'}}, {streamStart(7, false)}, {block, block}, {block, {'I', 0}}, {block, in(7, insert("a"))},
		{block, in(7, begin(1))}, {begin(110), block}, {block, {'O'}},
	} {
		p := packer(wire.Point{End: 100})
		var err error
		for _, f := range frames {
			if err = p.Frame(f); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("%q was taken", frames)
		}
	}
	p := packer(wire.Point{End: 100})
	if gone, err := p.StreamAbort(streamAbort(7, 8)); err != nil || gone != 0 { // as PostgreSQL 18 sends it
		t.Errorf("an abort in a transaction of which nothing was sent: %d, %v", gone, err)
	}
	if err := p.Frame(streamAbort(7, 8)); err != nil { // and where nobody asked for streaming
		t.Errorf("the same among other frames: %v", err)
	}
	if _, _, err := p.StreamCommit(streamCommit(7, 1, 2)); err == nil {
		t.Error("a commit of nothing")
	}
}
