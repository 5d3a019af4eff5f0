package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sort"
	"time"

	"github.com/pgflo/flo/decode"
)

// Streamed stands for a whole transaction whose changes were published before it ended, on a staging subject
// of the session that wrote the message: staged.<session>.<xid>. The record is the last of its message.
type Streamed struct {
	XID    uint32     `json:"xid"`
	Commit decode.LSN `json:"commit"` // commit LSN
	End    decode.LSN `json:"end"`    // end LSN
	Time   time.Time  `json:"time"`   // of the commit, to the microsecond
	Origin string     `json:"origin,omitempty"`
	// First and Last are the sequences of its first and last staged message, Messages is how many there are.
	// Others may stand between them.
	First    uint64 `json:"first"`
	Last     uint64 `json:"last"`
	Messages uint64 `json:"messages"`
	// Aborted are the subtransactions that were rolled back: their changes don't count.
	Aborted XIDSet `json:"aborted,omitempty"`
	// Relations are the tables' descriptions as of the commit.
	Relations []StreamedRelation `json:"relations,omitempty"`
}

// StreamedRelation is what a Describe record in front of a Relation message would hold, for Relation messages of
// that OID and name. A table that is renamed within the transaction has two.
type StreamedRelation struct {
	OID         uint32          `json:"oid"`
	Name        decode.Name     `json:"name"`
	Description json.RawMessage `json:"description"`
}

// StagedEnd is published before the message with the Streamed record, on a subject of its own: whoever purges
// finds there, in order, which staged messages are needed up to where.
type StagedEnd struct {
	XID uint32     `json:"xid"`
	End decode.LSN `json:"end"` // workers that have finished it need the staged messages no more
}

// XIDRange are subtransactions, as the distances of their XIDs from the transaction's own.
type XIDRange struct{ First, Last uint32 }

// XIDSet is a set of subtransactions as rising ranges that don't touch. PostgreSQL gives a subtransaction its XID
// later than its parent, and while it is open only its descendants get one: rolling one back takes with it all
// that have higher XIDs by then. So a range each rollback is the most that there can be.
type XIDSet []XIDRange

// Abort adds all distances from first up to last, the highest that was seen so far.
func (s XIDSet) Abort(first, last uint32) XIDSet {
	n := len(s)
	for n > 0 && s[n-1].First >= first {
		n--
	}
	s = s[:n]
	last = max(last, first)
	if n > 0 && s[n-1].Last+1 >= first {
		s[n-1].Last = max(s[n-1].Last, last)
		return s
	}
	return append(s, XIDRange{first, last})
}

// Has reports whether a distance is in the set.
func (s XIDSet) Has(d uint32) bool {
	i := sort.Search(len(s), func(i int) bool { return s[i].Last >= d })
	return i < len(s) && s[i].First <= d
}

// MarshalJSON gives base64 of uvarints, two a range: the distance of its beginning from the last one's end, and
// how many follow it.
func (s XIDSet) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, 4*len(s))
	var at uint32
	for _, r := range s {
		b = binary.AppendUvarint(b, uint64(r.First-at))
		b = binary.AppendUvarint(b, uint64(r.Last-r.First))
		at = r.Last
	}
	return json.Marshal(b)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *XIDSet) UnmarshalJSON(text []byte) error {
	var b []byte
	if err := json.Unmarshal(text, &b); err != nil {
		return err
	}
	*s = nil
	var at uint64
	for r := (reader{b: b}); len(r.b) > 0; {
		first := at + uint64(r.uint32())
		last := first + uint64(r.uint32())
		if r.bad || last >= 1<<32 || len(*s) > 0 && first <= at {
			return fmt.Errorf("%w: ranges of subtransactions", ErrFormat)
		}
		*s = append(*s, XIDRange{uint32(first), uint32(last)})
		at = last
	}
	return nil
}

// AppendSub appends the record that says of which subtransaction the frames behind it are.
func AppendSub(dst []byte, distance uint32) []byte {
	var b [1 + binary.MaxVarintLen32]byte
	b[0] = byte(RecSub)
	n := 1 + binary.PutUvarint(b[1:], uint64(distance))
	dst = binary.AppendUvarint(dst, uint64(n))
	return append(dst, b[:n]...)
}

// ParseSub reads a RecSub record's data.
func ParseSub(data []byte) (uint32, error) {
	r := reader{b: data}
	d := r.uint32()
	if r.bad || len(r.b) > 0 {
		return 0, fmt.Errorf("%w: subtransaction record", ErrFormat)
	}
	return d, nil
}

// AppendSplitFrame appends a pgoutput message that comes in two pieces: its type and the rest.
func AppendSplitFrame(dst []byte, kind byte, rest []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(rest)+1))
	dst = append(dst, kind)
	return append(dst, rest...)
}
