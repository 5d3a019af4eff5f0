package decode

import (
	"bytes"
	"encoding/binary"
	"time"
)

// The formats of pgoutput's messages, protocol versions 1 to 4, are those of
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
// Messages inside streamed transactions (between 'S' and 'E') carry a transaction ID in front: TakeXID.

// Begin opens a transaction ('B').
type Begin struct {
	CommitLSN  LSN // final_lsn: where the transaction's commit record stands
	CommitTime time.Time
	XID        uint32
}

// Commit closes a transaction ('C').
type Commit struct {
	CommitLSN  LSN // the same as Begin's
	EndLSN     LSN // behind the commit record: streaming resumes here
	CommitTime time.Time
}

// ParseBegin reads a Begin message. Errors wrap ErrMalformed.
func ParseBegin(frame []byte) (Begin, error) {
	r := open(frame, 'B')
	b := Begin{CommitLSN: r.lsn(), CommitTime: r.time(), XID: r.uint32()}
	if err := r.close("Begin"); err != nil {
		return Begin{}, err
	}
	return b, nil
}

// ParseCommit reads a Commit message. Errors wrap ErrMalformed.
func ParseCommit(frame []byte) (Commit, error) {
	r := open(frame, 'C')
	r.byte() // flags, unused
	c := Commit{CommitLSN: r.lsn(), EndLSN: r.lsn(), CommitTime: r.time()}
	if err := r.close("Commit"); err != nil {
		return Commit{}, err
	}
	return c, nil
}

// ParseOrigin reads an Origin message ('O'): the replication origin that the transaction came from
// and its commit LSN there. Errors wrap ErrMalformed.
func ParseOrigin(frame []byte) (name string, lsn LSN, err error) {
	r := open(frame, 'O')
	lsn = r.lsn()
	name = string(r.cstring())
	if err := r.close("Origin"); err != nil {
		return "", 0, err
	}
	return name, lsn, nil
}

// frameReader takes fields off a message; after the first one that doesn't fit it is bad and gives
// zeros, so that a caller checks once, at close.
type frameReader struct {
	b   []byte
	bad bool
}

func open(frame []byte, kind byte) frameReader {
	if len(frame) == 0 || frame[0] != kind {
		return frameReader{bad: true}
	}
	return frameReader{b: frame[1:]}
}

// close fails if a field was cut or bytes are left over.
func (r *frameReader) close(what string) error {
	if r.bad {
		return malformed("%s message: cut, or of another kind", what)
	}
	if len(r.b) != 0 {
		return malformed("%s message: %d bytes too many", what, len(r.b))
	}
	return nil
}

// take gives the next n bytes, aliasing the message.
func (r *frameReader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *frameReader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *frameReader) uint16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *frameReader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *frameReader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *frameReader) lsn() LSN { return LSN(r.uint64()) }

// postgresEpoch is 2000-01-01 00:00:00 UTC in Unix seconds, PostgreSQL's zero for timestamps.
const postgresEpoch = 946684800

// time reads microseconds since PostgreSQL's epoch.
func (r *frameReader) time() time.Time {
	us := int64(r.uint64())
	return time.Unix(postgresEpoch+us/1e6, us%1e6*1000).UTC()
}

// cstring gives the bytes before the next zero byte, which it skips.
func (r *frameReader) cstring() []byte {
	i := bytes.IndexByte(r.b, 0)
	if i < 0 {
		r.bad, r.b = true, nil
		return nil
	}
	s := r.b[:i:i]
	r.b = r.b[i+1:]
	return s
}
