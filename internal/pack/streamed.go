package pack

import (
	"errors"
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/wire"
)

// ErrAmbiguous says that a streamed transaction holds a logical message of which nobody can tell whether it was
// rolled back: PostgreSQL names the whole transaction's XID in it, whatever subtransaction wrote it
// (ReorderBufferApplyMessage in src/backend/replication/logical/reorderbuffer.c). The transaction has to be read
// without streaming.
var ErrAmbiguous = errors.New("pack: a message may be of a subtransaction that was rolled back")

// streams are the transactions that the server sends before they end. Their changes go to staged batches, one
// of which is being built at a time.
type streams struct {
	open  map[uint32]*stream // by XID
	block *stream            // of which a block is being received; nil between blocks
	types []byte             // Type messages that belong to the block's next Relation

	holder *stream // whose changes stand in buf
	buf    []byte  // HeaderRoom, then the body; nil until there is something
	count  int     // changes in buf
	serial uint64  // of the batch
	tagged bool    // sub stands in buf
	sub    uint32  // the subtransaction of the last change in buf
	done   bool    // holder has ended: what is in buf goes, full or not

	clock uint64 // of Relation messages, streamed or not
}

// stream is one of them.
type stream struct {
	xid       uint32
	origin    string
	top       uint32 // highest subtransaction so far, as a distance from xid
	aborted   wire.XIDSet
	relations map[uint32]*streamedRelation // as they are now
	uses      map[tableUse]*use
	batches   int
	changes   int
	message   bool // a message came of which it is not clear yet whether it was rolled back
	ambiguous bool // and something was rolled back since
}

type streamedRelation struct {
	relation        // its records have no description
	frame    []byte // the Relation message
	types    []byte // Type records
	stamp    uint64
}

// tableUse is a table under one name.
type tableUse struct {
	oid  uint32
	name decode.Name
}

type use struct {
	sub   uint32 // first seen in
	types map[uint32]bool
	rel   *decode.Relation
}

// Committed is a streamed transaction that has committed, and is about to be published.
type Committed struct {
	Record wire.Streamed // without sequences and descriptions
	Tables []Used
	s      *stream
}

// Used is a table, by one of its names, that a streamed transaction changed.
type Used struct {
	Relation *decode.Relation
	Types    []uint32 // of all columns that it had
}

// InBlock reports whether a block of a streamed transaction is being received: Relation and Type messages are then
// for StagedRelation and StagedType.
func (p *Packer) InBlock() bool { return p.streams.block != nil }

func (p *Packer) streamStart(frame []byte) error {
	b, err := decode.ParseStreamStart(frame)
	if err != nil {
		return err
	}
	if p.phase != outside || p.streams.block != nil {
		return fmt.Errorf("%w: Stream Start within a transaction", decode.ErrMalformed)
	}
	s := p.streams.open[b.XID]
	if s == nil {
		if !b.First {
			return fmt.Errorf("%w: transaction %d goes on and was not begun", decode.ErrMalformed, b.XID)
		}
		s = &stream{xid: b.XID, relations: map[uint32]*streamedRelation{}, uses: map[tableUse]*use{}}
		if p.streams.open == nil {
			p.streams.open = map[uint32]*stream{}
		}
		p.streams.open[b.XID] = s
	}
	s.origin = ""
	p.streams.block, p.streams.types = s, p.streams.types[:0]
	return nil
}

func (p *Packer) streamStop() error {
	if p.streams.block == nil {
		return fmt.Errorf("%w: Stream Stop without a start", decode.ErrMalformed)
	}
	p.streams.block = nil
	return nil
}

// StagedType takes a Type message of a block.
func (p *Packer) StagedType(frame []byte) error {
	_, kind, rest, err := decode.TakeXID(frame)
	if err != nil {
		return err
	}
	p.streams.types = wire.AppendSplitFrame(p.streams.types, kind, rest)
	return nil
}

// StagedRelation takes a Relation message of a block, apart from its XID, and what it says. Each transaction has
// relations of its own, until it commits: its changes are of a catalog that others don't see.
func (p *Packer) StagedRelation(xid uint32, frame []byte, rel *decode.Relation) {
	st := &p.streams
	s := st.block
	r := &streamedRelation{frame: frame, types: slices.Clone(st.types), stamp: p.tick()}
	r.records = wire.AppendFrame(slices.Clone(st.types), frame)
	s.relations[rel.OID] = r
	st.types = st.types[:0]
	at := tableUse{rel.OID, rel.Qualified()}
	u := s.uses[at]
	if u == nil {
		u = &use{sub: xid - s.xid, types: map[uint32]bool{}}
		s.uses[at] = u
	}
	u.rel = rel
	for i := range rel.Columns {
		u.types[rel.Columns[i].Type.OID] = true
	}
}

func (p *Packer) tick() uint64 {
	p.streams.clock++
	return p.streams.clock
}

// staged takes a frame of a block, but for Relation and Type.
func (p *Packer) staged(frame []byte) error {
	st := &p.streams
	s := st.block
	if frame[0] == 'O' { // it alone has no XID
		name, _, err := decode.ParseOrigin(frame)
		s.origin = name
		return err
	}
	xid, kind, rest, err := decode.TakeXID(frame)
	if err != nil {
		return err
	}
	sub := xid - s.xid
	switch kind {
	case 'M':
		return p.StagedMessage(append([]byte{kind}, rest...))
	case 'I', 'U', 'D', 'T':
		if sub == 0 { // no subtransaction is open here, and those before it have come to their ends
			s.message = false
		}
	default:
		return fmt.Errorf("%w: pgoutput message %q in a streamed transaction", decode.ErrMalformed, kind)
	}
	return p.stageChange(sub, kind, rest)
}

// StagedMessage takes a logical message of a block, without its XID, or what is to be published in its place.
func (p *Packer) StagedMessage(frame []byte) error {
	if !wire.IsChange(frame) {
		return nil
	}
	// Of which subtransaction it is nobody knows: a rollback behind it makes the transaction ambiguous.
	p.streams.block.message = true
	return p.stageChange(0, frame[0], frame[1:])
}

// stageChange puts a change into the staged batch.
func (p *Packer) stageChange(sub uint32, kind byte, rest []byte) error {
	st := &p.streams
	s := st.block
	if st.buf == nil {
		st.buf = make([]byte, wire.HeaderRoom, wire.HeaderRoom+p.cfg.Target)
	}
	if st.holder == nil {
		st.holder = s
	} else if st.holder != s {
		return errors.New("pack: a staged batch was not taken before another transaction's block")
	}
	if !st.tagged || st.sub != sub {
		st.buf = wire.AppendSub(st.buf, sub)
		st.tagged, st.sub = true, sub
	}
	if err := usedRelations(kind, rest, p.describeStaged); err != nil {
		return err
	}
	st.buf = p.roomFor(st.buf, len(rest)+1)
	st.buf = wire.AppendSplitFrame(st.buf, kind, rest)
	s.top = max(s.top, sub)
	s.changes++
	st.count++
	return nil
}

// describeStaged puts a relation that the block's transaction uses into the staged batch, once.
func (p *Packer) describeStaged(oid uint32) error {
	st := &p.streams
	r := st.block.relations[oid]
	if r == nil {
		return fmt.Errorf("%w: OID %d in streamed transaction %d", ErrUnknownRelation, oid, st.block.xid)
	}
	if r.batch != st.serial+1 {
		st.buf = append(st.buf, r.records...)
		r.batch = st.serial + 1
	}
	return nil
}

// StagedDue reports whether a staged batch has to be taken before the next frame.
func (p *Packer) StagedDue() bool {
	st := &p.streams
	if st.holder == nil {
		return false
	}
	return st.done || len(st.buf) >= p.cfg.Target || st.block != nil && st.block != st.holder
}

// TakeStaged cuts the staged batch off. buf, if it has room, is used for the next one.
func (p *Packer) TakeStaged(buf []byte) *Batch {
	st := &p.streams
	b := &Batch{
		Header: wire.Header{
			Kind: wire.Staged, Session: p.cfg.Session, Attempt: p.cfg.Attempt, CopyDone: p.cfg.CopyDone, NoCopy: p.cfg.NoCopy,
			Start: p.cfg.Start, Timeline: p.cfg.Timeline, Parts: 1,
		},
		Changes: st.count, XID: st.holder.xid, buf: st.buf,
	}
	st.holder.batches++
	p.emptyStaged()
	st.buf = nil
	if cap(buf) >= wire.HeaderRoom {
		st.buf = buf[:wire.HeaderRoom]
	}
	return b
}

// emptyStaged forgets what is in the staged batch.
func (p *Packer) emptyStaged() {
	st := &p.streams
	if cap(st.buf) > 4*p.cfg.Target { // of a huge row
		st.buf = nil
	}
	st.buf = st.buf[:min(len(st.buf), wire.HeaderRoom)]
	st.holder, st.count, st.tagged, st.done = nil, 0, false, false
	st.serial++
}

// StreamAbort takes a rollback. gone is the XID of a transaction that is rolled back as a whole and of which
// batches were taken; 0: none.
func (p *Packer) StreamAbort(frame []byte) (gone uint32, err error) {
	a, err := decode.ParseStreamAbort(frame)
	if err != nil {
		return 0, err
	}
	st := &p.streams
	if st.block != nil {
		return 0, fmt.Errorf("%w: Stream Abort of transaction %d within a block", decode.ErrMalformed, a.XID)
	}
	s := st.open[a.XID]
	if s == nil {
		// From PostgreSQL 18 on a transaction that was rolled back before it was read is not sent, but the aborts of its
		// subtransactions are: they are marked as streamed when their changes are thrown away
		// (ReorderBufferTruncateTXN in src/backend/replication/logical/reorderbuffer.c).
		return 0, nil
	}
	if a.Sub == a.XID {
		return p.forget(s), nil
	}
	sub := a.Sub - a.XID
	s.aborted = s.aborted.Abort(sub, s.top)
	s.ambiguous = s.ambiguous || s.message
	for at, u := range s.uses {
		if u.sub >= sub {
			delete(s.uses, at)
		}
	}
	// The server describes all relations again: whatever was sent of them may have been of what was rolled back
	// (cleanup_rel_sync_cache in src/backend/replication/pgoutput/pgoutput.c).
	clear(s.relations)
	return 0, nil
}

// forget drops a transaction. gone is as in StreamAbort.
func (p *Packer) forget(s *stream) (gone uint32) {
	st := &p.streams
	if st.holder == s {
		p.emptyStaged()
	}
	delete(st.open, s.xid)
	if s.batches > 0 {
		gone = s.xid
	}
	return gone
}

// StreamCommit takes the commit of a streamed transaction. Then what is staged has to be taken, and then comes
// Streamed. c is nil if there is nothing to publish, and gone then as in StreamAbort. ErrDiffers is as for other
// transactions. ErrAmbiguous says that it has to be read without streaming; its commit LSN is in c.
func (p *Packer) StreamCommit(frame []byte) (c *Committed, gone uint32, err error) {
	e, err := decode.ParseStreamCommit(frame)
	if err != nil {
		return nil, 0, err
	}
	st := &p.streams
	s := st.open[e.XID]
	if s == nil || st.block != nil || p.phase != outside {
		return nil, 0, fmt.Errorf("%w: Stream Commit of transaction %d, which is not open", decode.ErrMalformed, e.XID)
	}
	if e.CommitLSN < p.at.End { // the stream has it
		return nil, p.forget(s), nil
	}
	c = &Committed{s: s, Record: wire.Streamed{
		XID: e.XID, Commit: e.CommitLSN, End: e.EndLSN, Time: e.CommitTime, Origin: s.origin, Aborted: s.aborted,
	}}
	if s.ambiguous {
		return c, p.forget(s), fmt.Errorf("%w: transaction %d, committed at %s", ErrAmbiguous, e.XID, e.CommitLSN)
	}
	if p.at.Open && (e.CommitLSN != p.at.LSN || s.changes == 0) {
		return nil, 0, fmt.Errorf("%w: transaction %s was begun in the stream, the server goes on with %s", ErrDiffers, p.at.LSN, e.CommitLSN)
	}
	if s.changes == 0 {
		p.forget(s)
		p.Seen(e.EndLSN)
		return nil, 0, nil
	}
	for _, u := range s.uses {
		used := Used{Relation: u.rel}
		for oid := range u.types {
			used.Types = append(used.Types, oid)
		}
		slices.Sort(used.Types)
		c.Tables = append(c.Tables, used)
	}
	slices.SortFunc(c.Tables, func(a, b Used) int {
		if a.Relation.OID != b.Relation.OID {
			return int(int64(a.Relation.OID) - int64(b.Relation.OID))
		}
		return slices.Compare([]string{a.Relation.Schema, a.Relation.Name}, []string{b.Relation.Schema, b.Relation.Name})
	})
	st.done = st.holder == s
	return c, 0, nil
}

// AbortOpen puts an Abort marker into the empty batch, if the stream's tail holds the beginning of a transaction: it
// comes again, streamed. The batch has to be taken before Streamed.
func (p *Packer) AbortOpen() bool {
	if !p.at.Open || p.phase != outside {
		return false
	}
	p.buf = wire.AppendRecord(p.buf, wire.RecAbort, nil)
	p.at = p.done
	return true
}

// Streamed ends the batch with a streamed transaction: it has to be taken next. Whoever publishes it appends the
// record, once the staged messages have their sequences. The relations' descriptions are in c.Record by now.
func (p *Packer) Streamed(c *Committed) {
	s := c.s
	described := map[tableUse][]byte{}
	for i := range c.Record.Relations {
		d := &c.Record.Relations[i]
		described[tableUse{d.OID, d.Name}] = d.Description
	}
	// The server takes them for known from now on (cleanup_rel_sync_cache again), unless it has described them
	// to others since.
	for oid, r := range s.relations {
		if have := p.relations[oid]; have != nil && have.stamp > r.stamp {
			continue
		}
		var records []byte
		if _, name, err := decode.RelationName(r.frame); err == nil {
			if d := described[tableUse{oid, name}]; d != nil {
				records = wire.AppendRecord(nil, wire.RecDescribe, d)
			}
		}
		records = append(records, r.types...)
		p.relations[oid] = &relation{records: wire.AppendFrame(records, r.frame), stamp: r.stamp}
	}
	p.count += s.changes
	p.streamed = &c.Record
	p.done = wire.Point{LSN: c.Record.Commit, End: c.Record.End}
	p.at = p.done
	p.forget(s)
}
