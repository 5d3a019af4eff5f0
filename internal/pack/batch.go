package pack

import (
	"slices"

	"github.com/pgflo/flo/internal/wire"
)

// Batch is one message before it is published: a header, and a body behind HeaderRoom bytes.
type Batch struct {
	Header   wire.Header
	Changes  int
	Streamed *wire.Streamed // of `changes`: the record that has to end it; nil: none
	XID      uint32         // of staged ones: their transaction's
	Gone     bool           // no message: what was staged of XID is of no use any more
	buf      []byte
}

// NewBatch makes a batch of a body made elsewhere: body must begin with HeaderRoom bytes that are
// free for the header.
func NewBatch(h wire.Header, body []byte) *Batch { return &Batch{Header: h, buf: body} }

// NewGone says that what a session has staged of a transaction is of no use any more.
func NewGone(xid uint32) *Batch {
	return &Batch{Header: wire.Header{Kind: wire.Staged}, XID: xid, Gone: true}
}

// Append puts a record that is JSON at the end.
func (b *Batch) Append(t wire.RecordType, v any) (err error) {
	b.buf, err = wire.AppendJSON(b.buf, t, v)
	return err
}

// Body without the header.
func (b *Batch) Body() []byte { return b.buf[wire.HeaderRoom:] }

// Buffer gives the memory back for another batch, once the parts are no longer needed.
func (b *Batch) Buffer() []byte { return b.buf[:0] }

// Messages gives what has to be published: one message, or, where it would be larger than limit
// bytes, its parts, which share From as their To until the last. They take over the batch's memory.
func (b *Batch) Messages(limit int) [][]byte {
	n := partsOf(len(b.buf)-wire.HeaderRoom, limit)
	b.Header.Parts = uint32(n)
	// Each part gets room for its header before it: the pieces move up, the last one first.
	piece := limit - wire.HeaderRoom
	whole := len(b.buf)
	b.buf = slices.Grow(b.buf, (n-1)*wire.HeaderRoom)[:whole+(n-1)*wire.HeaderRoom]
	for i := n - 1; i > 0; i-- {
		from := wire.HeaderRoom + i*piece
		copy(b.buf[i*limit+wire.HeaderRoom:], b.buf[from:min(from+piece, whole)])
	}
	parts := make([][]byte, n)
	for i := range parts {
		parts[i] = b.head(i, b.buf[i*limit:min((i+1)*limit, len(b.buf))])
	}
	return parts
}

// partsOf tells in how many messages a body travels.
func partsOf(body, limit int) int {
	piece := limit - wire.HeaderRoom
	return max(1, (body+piece-1)/piece)
}

// head writes a part's header into the room at its beginning, up against the body.
func (b *Batch) head(i int, part []byte) []byte {
	h := b.Header
	h.Part = uint32(i)
	if i < int(h.Parts)-1 {
		h.To = h.From
	}
	var room [wire.HeaderRoom]byte
	head := wire.AppendHeader(room[:0], &h)
	at := wire.HeaderRoom - len(head)
	copy(part[at:], head)
	return part[at:]
}

// Grown is the capacity that a body of n bytes should have, headroom and parts included.
func Grown(n, limit int) int { return n + (partsOf(n, limit)+1)*wire.HeaderRoom }
