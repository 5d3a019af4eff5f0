package decode

import "time"

// StreamStart opens a block of a transaction that PostgreSQL sends before it ends ('S'). Up to the Stream
// Stop message ('E') each frame but Origin carries the XID of its subtransaction in front (see TakeXID).
type StreamStart struct {
	XID   uint32 // of the whole transaction
	First bool   // it is the transaction's first block
}

// StreamCommit ends such a transaction ('c').
type StreamCommit struct {
	XID        uint32
	CommitLSN  LSN
	EndLSN     LSN // behind the commit record: streaming resumes here
	CommitTime time.Time
}

// StreamAbort takes a part of such a transaction back, or all of it ('A').
type StreamAbort struct {
	XID uint32 // of the whole transaction
	Sub uint32 // of the subtransaction that was rolled back; XID: all of it
}

// ParseStreamStart reads a Stream Start message. Errors wrap ErrMalformed.
func ParseStreamStart(frame []byte) (StreamStart, error) {
	r := open(frame, 'S')
	s := StreamStart{XID: r.uint32(), First: r.byte() == 1}
	if err := r.close("Stream Start"); err != nil {
		return StreamStart{}, err
	}
	return s, nil
}

// ParseStreamCommit reads a Stream Commit message. Errors wrap ErrMalformed.
func ParseStreamCommit(frame []byte) (StreamCommit, error) {
	r := open(frame, 'c')
	c := StreamCommit{XID: r.uint32()}
	r.byte() // flags, unused
	c.CommitLSN, c.EndLSN, c.CommitTime = r.lsn(), r.lsn(), r.time()
	if err := r.close("Stream Commit"); err != nil {
		return StreamCommit{}, err
	}
	return c, nil
}

// ParseStreamAbort reads a Stream Abort message as it comes with streaming 'on' (with 'parallel' it is longer).
// Errors wrap ErrMalformed.
func ParseStreamAbort(frame []byte) (StreamAbort, error) {
	r := open(frame, 'A')
	a := StreamAbort{XID: r.uint32(), Sub: r.uint32()}
	if err := r.close("Stream Abort"); err != nil {
		return StreamAbort{}, err
	}
	return a, nil
}

// TakeXID splits a frame of a block: its subtransaction, its type, and what follows behind the XID. The
// frame without the XID is the one that PostgreSQL would have sent at the transaction's commit. Errors wrap
// ErrMalformed.
func TakeXID(frame []byte) (xid uint32, kind byte, rest []byte, err error) {
	if len(frame) < 5 {
		return 0, 0, nil, malformed("a streamed transaction's message of %d bytes", len(frame))
	}
	r := frameReader{b: frame[1:]}
	return r.uint32(), frame[0], frame[5:], nil
}

// RelationName reads the OID and the name off a Relation message ('R'). Errors wrap ErrMalformed.
func RelationName(frame []byte) (oid uint32, name Name, err error) {
	r := open(frame, 'R')
	oid = r.uint32()
	name = Name{Schema: string(r.cstring()), Name: string(r.cstring())}
	if r.bad {
		return 0, Name{}, malformed("Relation message: cut, or of another kind")
	}
	if name.Schema == "" {
		name.Schema = catalogSchema
	}
	return oid, name, nil
}
