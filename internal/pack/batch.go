package pack

import "github.com/pgflo/flo/internal/wire"

// Batch is one message before it is published: a header, and a body behind HeaderRoom bytes.
type Batch struct {
	Header  wire.Header
	Changes int
	buf     []byte
}

// NewBatch makes a batch of a body made elsewhere: body must begin with HeaderRoom bytes that are
// free for the header.
func NewBatch(h wire.Header, body []byte) *Batch { return &Batch{Header: h, buf: body} }

// Body without the header.
func (b *Batch) Body() []byte { return b.buf[wire.HeaderRoom:] }

// Buffer gives the memory back for another batch, once the parts are no longer needed.
func (b *Batch) Buffer() []byte { return b.buf[:0] }

// Messages gives what has to be published: one message, or, where it would be larger than limit
// bytes, its parts. One message aliases the batch's memory; parts are copies, and share From as
// their To until the last.
func (b *Batch) Messages(limit int) [][]byte {
	var room [wire.HeaderRoom]byte
	b.Header.Part, b.Header.Parts = 0, 1
	head := wire.AppendHeader(room[:0], &b.Header)
	if len(head)+len(b.buf)-wire.HeaderRoom <= limit {
		at := wire.HeaderRoom - len(head)
		copy(b.buf[at:], head)
		return [][]byte{b.buf[at:]}
	}
	body := b.Body()
	piece := limit - wire.HeaderRoom
	n := (len(body) + piece - 1) / piece
	parts := make([][]byte, 0, n)
	for i := range n {
		h := b.Header
		h.Part, h.Parts = uint32(i), uint32(n)
		if i < n-1 {
			h.To = h.From
		}
		chunk := body[i*piece : min((i+1)*piece, len(body))]
		m := make([]byte, 0, wire.HeaderRoom+len(chunk))
		m = wire.AppendHeader(m, &h)
		parts = append(parts, append(m, chunk...))
	}
	return parts
}
