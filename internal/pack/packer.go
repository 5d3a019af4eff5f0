// Package pack turns pgoutput messages into the batch messages of package wire, without decoding rows:
// it looks at each message's type, at the positions in Begin and Commit, and at relation OIDs.
// It does no I/O.
package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/wire"
)

// ErrDiffers says that a transaction of which a part was published before is decoded otherwise now:
// the published part must be aborted and the transaction sent whole.
var ErrDiffers = errors.New("pack: a partly published transaction is decoded differently")

// ErrUnknownRelation says that a change came without its relation's description.
var ErrUnknownRelation = errors.New("pack: change of a relation that was not described")

// Config of a Packer.
type Config struct {
	Session  uint64
	Attempt  uint32
	CopyDone bool
	NoCopy   bool
	Start    uint64 // sequence of the attempt's Start message
	Timeline uint32
	Tail     wire.Point // where the stream stands: transactions below Tail.End are skipped
	// Target is the size in bytes at which a batch is full.
	Target int
}

// Packer builds one batch at a time. It is not safe for concurrent use.
type Packer struct {
	cfg    Config
	from   wire.Point // where the current batch begins
	at     wire.Point // where it has come to
	done   wire.Point // the end of the last finished transaction before at
	buf    []byte     // HeaderRoom, then the body
	count  int        // changes in the batch
	serial uint64     // of the batch, to know which relations stand in it
	hash   wire.Hasher

	relations map[uint32]*relation
	phase     phase
	xid       uint32 // of the transaction that is being received
	pending   []byte // Begin and Origin of a transaction that has no change yet
	seen      decode.LSN

	streams  streams
	streamed *wire.Streamed // ends the batch
}

type relation struct {
	records []byte // Describe, Type and Relation records
	batch   uint64 // serial of the last batch that holds them
	stamp   uint64 // when it was described, by streams.clock
}

// phase of the transaction that is being received.
type phase byte

const (
	outside   phase = iota // between transactions
	skipping               // the stream has it already
	replaying              // the stream has its beginning: counting and hashing up to there
	packing                // its changes are new
)

// New makes a packer that continues the stream at cfg.Tail.
func New(cfg Config) *Packer {
	p := &Packer{cfg: cfg, from: cfg.Tail, at: cfg.Tail, serial: 1, relations: map[uint32]*relation{}}
	p.done = wire.Point{LSN: cfg.Tail.LSN, End: cfg.Tail.End}
	p.buf = make([]byte, wire.HeaderRoom, wire.HeaderRoom+cfg.Target)
	return p
}

// XID is the number of the committed transaction that is being received, or was received last; 0: none yet.
func (p *Packer) XID() uint32 { return p.xid }

// SetRelation stores what has to stand before the first change of a relation in each batch: encoded
// records (Describe, Type, Relation).
func (p *Packer) SetRelation(oid uint32, records []byte) {
	p.relations[oid] = &relation{records: records, stamp: p.tick()}
}

// Frame takes one pgoutput message, but for Relation and Type, which SetRelation serves, and for the ends of
// streamed transactions, which StreamCommit and StreamAbort serve. The bytes are copied.
func (p *Packer) Frame(frame []byte) error {
	if len(frame) == 0 {
		return fmt.Errorf("%w: empty pgoutput message", decode.ErrMalformed)
	}
	switch frame[0] {
	case 'S':
		return p.streamStart(frame)
	case 'E':
		return p.streamStop()
	}
	if p.InBlock() {
		return p.staged(frame)
	}
	switch frame[0] {
	case 'B':
		return p.begin(frame)
	case 'C':
		return p.commit(frame)
	case 'O':
		if p.phase == packing && p.at.Ordinal == 0 {
			p.pending = wire.AppendFrame(p.pending, frame)
		}
		return nil
	case 'M':
		if p.phase == outside || !wire.IsChange(frame) {
			return nil
		}
		return p.change(frame)
	case 'I', 'U', 'D', 'T':
		return p.change(frame)
	case 'A': // PostgreSQL 18 sends it without having been asked to stream, too, see StreamAbort
		_, err := p.StreamAbort(frame)
		return err
	}
	return fmt.Errorf("%w: pgoutput message %q is not known", decode.ErrMalformed, frame[0])
}

func (p *Packer) begin(frame []byte) error {
	b, err := decode.ParseBegin(frame)
	if err != nil {
		return err
	}
	p.xid = b.XID
	switch {
	case b.CommitLSN < p.at.End:
		p.phase = skipping
	case p.at.Open:
		if b.CommitLSN != p.at.LSN {
			return fmt.Errorf("%w: transaction %s was begun in the stream, the server goes on with %s", ErrDiffers, p.at.LSN, b.CommitLSN)
		}
		p.phase = replaying
		p.hash = wire.Hasher{}
		p.at.Ordinal = 0
	default:
		p.phase = packing
		p.hash = wire.Hasher{}
		p.pending = wire.AppendFrame(p.pending[:0], frame)
		p.at = wire.Point{LSN: b.CommitLSN, End: p.done.End, Open: true}
	}
	return nil
}

func (p *Packer) change(frame []byte) error {
	switch p.phase {
	case skipping:
		return nil
	case replaying:
		p.at.Ordinal++
		p.hash.Add(frame)
		if p.at.Ordinal < p.from.Ordinal {
			return nil
		}
		if p.hash.Sum() != p.from.Hash {
			return fmt.Errorf("%w: transaction %s up to its change %d", ErrDiffers, p.at.LSN, p.at.Ordinal)
		}
		p.phase = packing
		return nil
	case outside:
		return fmt.Errorf("%w: change outside a transaction", decode.ErrMalformed)
	}
	if len(p.pending) > 0 {
		p.buf = append(p.buf, p.pending...)
		p.pending = p.pending[:0]
	}
	if err := p.describe(frame); err != nil {
		return err
	}
	p.buf = p.roomFor(p.buf, len(frame))
	p.buf = wire.AppendFrame(p.buf, frame)
	p.hash.Add(frame)
	p.at.Ordinal++
	p.count++
	return nil
}

// roomFor grows a body once for a huge row.
func (p *Packer) roomFor(buf []byte, frame int) []byte {
	if need := len(buf) + frame; need > 2*p.cfg.Target && need > cap(buf) {
		CollectBefore(need)
		return slices.Grow(buf, Grown(frame+hugeSlack, p.cfg.Target))
	}
	return buf
}

// hugeSlack is room for what may follow a huge row in its batch: a Commit, a marker.
const hugeSlack = 1 << 10

// describe puts the relations that a change uses before it, once a batch.
func (p *Packer) describe(frame []byte) error {
	return usedRelations(frame[0], frame[1:], p.describeRelation)
}

// usedRelations calls f for each relation that a change uses.
func usedRelations(kind byte, rest []byte, f func(oid uint32) error) error {
	switch kind {
	case 'M':
		return nil
	case 'T':
		// Truncate: Int32 number of relations, Int8 options, Int32 OIDs.
		if len(rest) < 5 {
			return fmt.Errorf("%w: Truncate cut", decode.ErrMalformed)
		}
		for oids := rest[5:]; len(oids) >= 4; oids = oids[4:] {
			if err := f(binary.BigEndian.Uint32(oids)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(rest) < 4 {
		return fmt.Errorf("%w: change cut", decode.ErrMalformed)
	}
	return f(binary.BigEndian.Uint32(rest))
}

func (p *Packer) describeRelation(oid uint32) error {
	r := p.relations[oid]
	if r == nil {
		return fmt.Errorf("%w: OID %d", ErrUnknownRelation, oid)
	}
	if r.batch != p.serial {
		p.buf = append(p.buf, r.records...)
		r.batch = p.serial
	}
	return nil
}

func (p *Packer) commit(frame []byte) error {
	c, err := decode.ParseCommit(frame)
	if err != nil {
		return err
	}
	was := p.phase
	p.phase = outside
	switch was {
	case skipping:
		return nil
	case replaying:
		return fmt.Errorf("%w: transaction %s ends after %d changes, the stream has %d", ErrDiffers, c.CommitLSN, p.at.Ordinal, p.from.Ordinal)
	case outside:
		return fmt.Errorf("%w: Commit outside a transaction", decode.ErrMalformed)
	}
	if p.at.Ordinal == 0 { // it is empty: it moves the position as idle time does
		p.pending = p.pending[:0]
		p.at = p.done
		p.Seen(c.EndLSN)
		return nil
	}
	p.buf = wire.AppendFrame(p.buf, frame)
	p.done = wire.Point{LSN: c.CommitLSN, End: c.EndLSN}
	p.at = p.done
	return nil
}

// Seen notes that the server has nothing more up to lsn (a keepalive, an empty transaction), given
// that all it sent before has been handed to Frame.
func (p *Packer) Seen(lsn decode.LSN) {
	if p.phase == outside && lsn > p.seen {
		p.seen = lsn
	}
}

// IdlePosition is the position that an Idle marker would bring, or zero: between transactions, with
// nothing waiting in the batch.
func (p *Packer) IdlePosition() decode.LSN {
	if p.phase != outside || p.at.Open || !p.Empty() || p.seen <= p.at.End {
		return 0
	}
	return p.seen
}

// Idle puts an Idle marker into the empty batch.
func (p *Packer) Idle() {
	if lsn := p.IdlePosition(); lsn != 0 {
		p.buf = wire.AppendRecord(p.buf, wire.RecIdle, nil)
		p.done.End = lsn
		p.at = p.done
	}
}

// CopyDone puts the marker into the batch; from it on headers say that the copy is whole.
func (p *Packer) CopyDone(finished bool) error {
	var err error
	p.buf, err = wire.AppendJSON(p.buf, wire.RecCopyDone, wire.CopyDone{Attempt: p.cfg.Attempt, Finished: finished})
	p.cfg.CopyDone = true
	return err
}

// Empty reports whether nothing waits to be published.
func (p *Packer) Empty() bool { return len(p.buf) == wire.HeaderRoom }

// Full reports whether the batch has reached its target size.
func (p *Packer) Full() bool { return len(p.buf) >= p.cfg.Target }

// InTransaction reports whether a transaction is being received, or stands in the stream unfinished.
func (p *Packer) InTransaction() bool { return p.phase != outside || p.at.Open }

// At is the point up to which frames were taken.
func (p *Packer) At() wire.Point { return p.at }

// Take cuts the batch off. buf, if it has room, is used for the next one.
func (p *Packer) Take(buf []byte) *Batch {
	to := p.reached()
	b := &Batch{
		Header: wire.Header{
			Kind: wire.Changes, Session: p.cfg.Session, Attempt: p.cfg.Attempt, CopyDone: p.cfg.CopyDone, NoCopy: p.cfg.NoCopy,
			Start: p.cfg.Start, Timeline: p.cfg.Timeline, From: p.from, To: to, Parts: 1,
		},
		Changes:  p.count,
		Streamed: p.streamed,
		buf:      p.buf,
	}
	p.streamed = nil
	p.from = to
	p.count = 0
	p.serial++
	if cap(buf) < wire.HeaderRoom {
		buf = make([]byte, wire.HeaderRoom, wire.HeaderRoom+p.cfg.Target)
	}
	p.buf = buf[:wire.HeaderRoom]
	return b
}

// reached is the point up to which the batch has come.
func (p *Packer) reached() wire.Point {
	switch {
	case !p.at.Open:
		return p.at
	case p.phase != packing: // the stream's own open transaction, not yet replayed
		return p.from
	case p.at.Ordinal == 0: // only its Begin was seen, and still waits
		return p.done
	}
	to := p.at
	to.Hash = p.hash.Sum()
	return to
}
