// Package wire is the format of flo's messages in JetStream, version 1.
//
// A message is a header and a body of records. It is self-contained: every relation that its changes
// use is described in it before its first use. docs/wire.md describes the bytes; the golden files in
// testdata pin them.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/pgflo/flo/decode"
)

// Version of the format that this package writes, the fourth byte of every message.
const Version = '1'

const magic = "flo"

// ErrFormat is wrapped by every error about bytes that are not a message of a known version.
var ErrFormat = errors.New("wire: not a flo message")

// Kind of a message.
type Kind byte

const (
	Changes Kind = 1 // frames and markers, on the subject "changes"
	Copy    Kind = 2 // copied rows, on "copy.<attempt>.<table>", and what begins and ends them
	Staged  Kind = 3 // changes of a transaction that has not ended yet, on "staged.<session>.<xid>", and "staged.ends"
)

// Point is a place in the stream of transactions.
type Point struct {
	// LSN is the commit LSN of the last transaction that reaches up to here, finished or open.
	LSN decode.LSN
	// End is the end LSN of the last *finished* transaction (or the start, or an idle position):
	// streaming resumes there, and skips a transaction iff its commit LSN is below it.
	End decode.LSN
	// Open: the transaction of LSN goes on in the next message; Ordinal changes of it stand up to
	// here, and Hash is the running hash of their frames (see Hasher).
	Open    bool
	Ordinal uint64
	Hash    uint64
}

// Header of every message.
type Header struct {
	Kind    Kind
	Session uint64 // of the writer, random
	Attempt uint32 // the latest copy attempt that has begun; 0: none
	// CopyDone: the copy of Attempt is whole in the stream.
	CopyDone bool
	// NoCopy: Attempt began without a copy (StreamOnly).
	NoCopy bool
	// Start is the sequence of the message whose Start or Round record began Attempt; 0 in that message itself.
	Start     uint64
	Partition uint32 // 0; kept for partitioned groups
	Timeline  uint32 // the source's timeline, on which To stands; 0: unknown, as of a standby
	// From is the point that the message continues, To the one that it reaches. Messages of kind Copy
	// carry From == To, where `changes` stood; those of kind Staged carry zeros.
	From, To Point
	// A message that is larger than max_payload travels in Parts parts, Part from 0, on consecutive
	// sequences. Of all parts but the last, To == From.
	Part, Parts uint32
}

const (
	flagCopyDone = 1 << iota
	flagFromOpen
	flagToOpen
	flagNoCopy
)

// AppendHeader appends h to dst.
func AppendHeader(dst []byte, h *Header) []byte {
	dst = append(dst, magic...)
	var flags byte
	if h.CopyDone {
		flags |= flagCopyDone
	}
	if h.NoCopy {
		flags |= flagNoCopy
	}
	if h.From.Open {
		flags |= flagFromOpen
	}
	if h.To.Open {
		flags |= flagToOpen
	}
	dst = append(dst, Version, byte(h.Kind), flags)
	dst = binary.BigEndian.AppendUint64(dst, h.Session)
	dst = binary.AppendUvarint(dst, uint64(h.Attempt))
	dst = binary.AppendUvarint(dst, h.Start)
	dst = binary.AppendUvarint(dst, uint64(h.Partition))
	dst = binary.AppendUvarint(dst, uint64(h.Timeline))
	dst = binary.AppendUvarint(dst, uint64(h.Part))
	dst = binary.AppendUvarint(dst, uint64(max(h.Parts, 1)))
	dst = appendPoint(dst, &h.From)
	return appendPoint(dst, &h.To)
}

func appendPoint(dst []byte, p *Point) []byte {
	dst = binary.AppendUvarint(dst, uint64(p.LSN))
	dst = binary.AppendUvarint(dst, uint64(p.End))
	if p.Open {
		dst = binary.AppendUvarint(dst, p.Ordinal)
		dst = binary.BigEndian.AppendUint64(dst, p.Hash)
	}
	return dst
}

// HeaderRoom is more than any header takes, in bytes.
const HeaderRoom = 160

// Parse splits a message into its header and its body (of a part: that part's piece of the body).
// The body aliases msg.
func Parse(msg []byte) (h Header, body []byte, err error) {
	if len(msg) < 14 || string(msg[:3]) != magic {
		return h, nil, fmt.Errorf("%w: no magic in %d bytes", ErrFormat, len(msg))
	}
	if msg[3] != Version {
		return h, nil, fmt.Errorf("%w: version %q, this flo reads %q: upgrade the worker first", ErrFormat, msg[3], Version)
	}
	h.Kind = Kind(msg[4])
	flags := msg[5]
	if h.Kind < Changes || h.Kind > Staged || flags >= flagNoCopy<<1 {
		return h, nil, fmt.Errorf("%w: kind %d, flags %#x", ErrFormat, msg[4], flags)
	}
	h.CopyDone = flags&flagCopyDone != 0
	h.NoCopy = flags&flagNoCopy != 0
	h.From.Open = flags&flagFromOpen != 0
	h.To.Open = flags&flagToOpen != 0
	r := reader{b: msg[6:]}
	h.Session = r.uint64()
	h.Attempt = r.uint32()
	h.Start = r.uvarint()
	h.Partition = r.uint32()
	h.Timeline = r.uint32()
	h.Part = r.uint32()
	h.Parts = r.uint32()
	r.point(&h.From)
	r.point(&h.To)
	if r.bad || h.Part >= h.Parts {
		return h, nil, fmt.Errorf("%w: header cut or out of range", ErrFormat)
	}
	return h, r.b, nil
}

// reader takes fields off a byte slice; after the first field that doesn't fit it is bad, and gives zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uvarint()
	if v > 1<<32-1 {
		r.bad = true
	}
	return uint32(v)
}

func (r *reader) uint64() uint64 {
	if len(r.b) < 8 {
		r.bad, r.b = true, nil
		return 0
	}
	v := binary.BigEndian.Uint64(r.b)
	r.b = r.b[8:]
	return v
}

func (r *reader) point(p *Point) {
	p.LSN = decode.LSN(r.uvarint())
	p.End = decode.LSN(r.uvarint())
	if p.Open {
		p.Ordinal = r.uvarint()
		p.Hash = r.uint64()
	}
}
