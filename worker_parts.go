package flo

import (
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/wire"
)

// joiner puts the parts of a large message together. They stand on consecutive sequences: a writer that
// died between two parts leaves the first ones behind, and a purge the last ones.
type joiner struct {
	buf  []byte
	next uint32 // the part that is due
	seq  uint64 // of the last part
}

// add takes a message, and gives its body if it is whole by now. torn: it is a part whose beginning is
// missing.
func (j *joiner) add(seq uint64, h *wire.Header, body []byte) (whole []byte, ok, torn bool) {
	if h.Parts <= 1 {
		j.forget()
		return body, true, false
	}
	if h.Part != 0 && (h.Part != j.next || seq != j.seq+1) {
		j.forget()
		return nil, false, true
	}
	if h.Part == 0 {
		j.next, j.buf = 0, joinBuffer(h, body)
	}
	j.buf = append(j.buf, body...)
	j.next, j.seq = j.next+1, seq
	if j.next < h.Parts {
		return nil, false, false
	}
	whole = j.buf
	j.forget()
	return whole, true, false
}

func (j *joiner) forget() { j.buf, j.next = nil, 0 }

// joinBuffer has room for all parts of a message of which this is the first.
func joinBuffer(h *wire.Header, body []byte) []byte {
	size := (len(body) + wire.HeaderRoom) * int(min(h.Parts, maxPartsHint))
	pack.CollectBefore(size)
	return make([]byte, 0, size)
}

// maxPartsHint bounds the memory that is reserved on a header's word.
const maxPartsHint = 256
