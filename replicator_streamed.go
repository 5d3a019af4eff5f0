package flo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/crashpoint"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/internal/wire"
)

// Large transactions come before they end, if WithStreaming asks for that. What they change is published on
// subjects of its own, where no worker looks. At the commit one record on `changes` stands for the whole
// transaction; a transaction that is rolled back leaves nothing there.

// wholeForGood, as the commit LSN up to which transactions are read as a whole, is beyond all others.
const wholeForGood = math.MaxUint64

// streamsBeforeCommit reports whether the session is to ask for transactions before they end.
func (s *replication) streamsBeforeCommit() bool {
	if !s.r.cfg.streaming || s.sys.Version < source.StreamingVersion {
		return false
	}
	if s.tail.Open && s.r.cfg.maxBytes > 0 {
		// What it has on `changes` can't be purged before it ends, and what was staged of it would come on top.
		s.readWhole(s.tail.LSN)
	}
	return s.tail.End > decode.LSN(s.r.unstreamed.Load())
}

// readWhole makes sessions read transactions as a whole up to a commit LSN.
func (s *replication) readWhole(lsn decode.LSN) {
	for {
		was := s.r.unstreamed.Load()
		if was >= uint64(lsn) || s.r.unstreamed.CompareAndSwap(was, uint64(lsn)) {
			return
		}
	}
}

// streamsAgain ends a session that reads transactions as a whole, when the one is past for which it does.
func (st *streaming) streamsAgain() error {
	if st.early || !st.r.cfg.streaming || st.sys.Version < source.StreamingVersion {
		return nil
	}
	// A transaction that can't be streamed is often one of several.
	if time.Since(st.began) < max(6*st.r.cfg.idleInterval, time.Second) {
		return nil
	}
	// What is stored counts: the next session begins there.
	if at := st.stored.Load(); at == nil || at.Open || at.End <= decode.LSN(st.r.unstreamed.Load()) {
		return nil
	}
	return fmt.Errorf("%w: large transactions are read before they end again", errAgain)
}

// streamed takes a message of a streamed transaction. ok is false if it is none.
func (st *streaming) streamed(ctx context.Context, data []byte) (ok bool, err error) {
	switch data[0] {
	case 'c':
		return true, st.streamCommit(ctx, data)
	case 'A':
		gone, err := st.packer.StreamAbort(data)
		if err == nil && gone != 0 {
			err = st.give(ctx, pack.NewGone(gone))
		}
		return true, err
	case 'R', 'Y':
		if !st.packer.InBlock() {
			return false, nil
		}
		return true, st.stagedRelation(data)
	case 'S':
	case 'M':
		if !st.packer.InBlock() {
			return false, nil
		}
		_, kind, rest, err := decode.TakeXID(data)
		if err == nil && wire.IsSplitChange(kind, rest) {
			var frame []byte
			if frame, err = st.message(ctx, append([]byte{kind}, rest...), true); err == nil {
				err = st.packer.StagedMessage(frame)
			}
		}
		if err != nil {
			return true, err
		}
		return true, st.giveStaged(ctx)
	default:
		if !st.packer.InBlock() {
			return false, nil
		}
	}
	if err := st.packer.Frame(data); err != nil {
		return true, err
	}
	return true, st.giveStaged(ctx)
}

// stagedRelation takes a Relation or Type message of a block. What the catalog has to add is asked for at the
// commit: until then it may know nothing of a table or type.
func (st *streaming) stagedRelation(data []byte) error {
	xid, kind, rest, err := decode.TakeXID(data)
	if err != nil {
		return err
	}
	if kind == 'Y' {
		return st.packer.StagedType(data)
	}
	frame := append([]byte{kind}, rest...)
	rel, err := st.parser.Relation(frame)
	if err != nil {
		return err
	}
	st.packer.StagedRelation(xid, frame, rel)
	return nil
}

// giveStaged hands the staged batch over if it is due.
func (st *streaming) giveStaged(ctx context.Context) error {
	if !st.packer.StagedDue() {
		return nil
	}
	return st.give(ctx, st.packer.TakeStaged(st.buffer()))
}

// streamCommit publishes the record of a streamed transaction.
func (st *streaming) streamCommit(ctx context.Context, data []byte) error {
	c, gone, err := st.packer.StreamCommit(data)
	switch {
	case errors.Is(err, pack.ErrAmbiguous):
		st.readWhole(c.Record.Commit)
		return fmt.Errorf("%w: %w", errAgain, err)
	case err != nil:
		return st.abortIfDiffers(ctx, err)
	case gone != 0:
		return st.give(ctx, pack.NewGone(gone))
	case c == nil:
		return nil
	}
	if err := st.giveStaged(ctx); err != nil {
		return err
	}
	if err := st.asOf(ctx, c.Record.XID, func() error { return st.describeUsed(ctx, c) }); err != nil {
		return err
	}
	if st.packer.AbortOpen() {
		if err := st.hand(ctx); err != nil {
			return err
		}
	}
	st.packer.Streamed(c)
	st.noteCommit(data)
	return st.hand(ctx)
}

// describeUsed completes the record by what the catalog knows of the transaction's tables.
func (st *streaming) describeUsed(ctx context.Context, c *pack.Committed) error {
	for i := 1; i < len(c.Tables); i++ { // of a table with several names all of them are to be known first
		if rel := c.Tables[i].Relation; rel.OID == c.Tables[i-1].Relation.OID {
			if _, err := st.describe(ctx, st.replication.conn, rel, nil); err != nil {
				return err
			}
		}
	}
	for i := range c.Tables {
		t := &c.Tables[i]
		if joins, err := st.joins(ctx, st.replication.conn, t.Relation.OID); err != nil || joins {
			return cmp.Or(err, errRound)
		}
		d, err := st.describe(ctx, st.replication.conn, t.Relation, t.Types)
		if err != nil {
			return err
		}
		if len(d.Ancestors) == 0 && len(d.OtherNames) == 0 && len(d.Types) == 0 && !d.New {
			continue
		}
		text, err := json.Marshal(d)
		if err != nil {
			return fmt.Errorf("flo: describing %s: %w", t.Relation.Qualified(), err)
		}
		c.Record.Relations = append(c.Record.Relations, wire.StreamedRelation{OID: t.Relation.OID, Name: t.Relation.Qualified(), Description: text})
	}
	return nil
}

// stagedRun is what the session has published of a transaction that has not ended yet.
type stagedRun struct {
	first, last, messages uint64
	bytes                 int64
}

// discarded is what was staged of a transaction that was rolled back.
type discarded struct {
	id   bus.StagedID
	last uint64 // its last sequence
}

// stage publishes a staged batch, or gives up what was staged of a transaction. It is the sender's.
func (st *streaming) stage(ctx context.Context, b *pack.Batch) error {
	id := bus.StagedID{Session: st.id, XID: b.XID}
	run := st.staged[b.XID]
	if b.Gone {
		if run != nil {
			delete(st.staged, b.XID)
			st.gate.hold(-run.bytes)
			st.discard(discarded{id, run.last})
		}
		return nil
	}
	if err := st.waitForRoom(ctx); err != nil {
		return err
	}
	if run == nil {
		run = &stagedRun{}
		st.staged[b.XID] = run
	}
	size := len(b.Body())
	parts := b.Messages(st.stream.MaxPayload())
	last, err := st.pub.PublishAt(ctx, st.stream.StagedSubject(id), parts, b)
	if err != nil {
		return st.publisherError(err)
	}
	crashpoint.Reached(crashpoint.Staged)
	n := uint64(len(parts))
	if run.messages == 0 {
		run.first = last - n + 1
	}
	run.last = last
	run.messages += n
	run.bytes += int64(size)
	st.gate.add(size)
	if st.gate.hold(int64(size)) {
		st.readWhole(wholeForGood)
		st.warn(ctx, "WithStreaming has no effect any more: transactions that have not ended yet take too large a part of WithStreamMaxBytes; raise it, and start again")
		return fmt.Errorf("%w: too much is staged for a stream of %d bytes", errAgain, st.r.cfg.maxBytes)
	}
	return nil
}

// record completes the record of a streamed transaction, and publishes what says how long its staged messages are
// needed. That stands in front of the record: a record without it must never be. It is the sender's.
func (st *streaming) record(ctx context.Context, b *pack.Batch) error {
	rec := b.Streamed
	run := st.staged[rec.XID]
	if run == nil {
		return fmt.Errorf("flo: streamed transaction %d ends and nothing of it was staged", rec.XID)
	}
	rec.First, rec.Last, rec.Messages = run.first, run.last, run.messages
	delete(st.staged, rec.XID)
	st.gate.hold(-run.bytes)
	body, err := wire.AppendJSON(room(), wire.RecStagedEnd, wire.StagedEnd{XID: rec.XID, End: rec.End})
	if err != nil {
		return err
	}
	end := pack.NewBatch(wire.Header{
		Kind: wire.Staged, Session: st.id, Attempt: b.Header.Attempt, CopyDone: b.Header.CopyDone, NoCopy: b.Header.NoCopy, Start: b.Header.Start, Timeline: b.Header.Timeline,
	}, body)
	if err := st.pub.Publish(ctx, st.stream.StagedEndsSubject(), end.Messages(st.stream.MaxPayload()), nil); err != nil {
		return st.publisherError(err)
	}
	crashpoint.Reached(crashpoint.StagedEnded)
	return b.Append(wire.RecStreamed, rec)
}

func (s *replication) discard(d discarded) {
	s.discards.Lock()
	defer s.discards.Unlock()
	s.discards.list = append(s.discards.list, d)
}

// stagedPurging bounds how long one round of the upkeep deletes staged messages; the next one goes on.
const stagedPurging = purgeInterval / 2

// purgeDiscarded deletes what this session has staged of transactions that were rolled back, and, once, what
// older sessions have staged of transactions that no record names. A message of this session must have been
// stored before: from then on no older session can publish a record.
func (s *replication) purgeDiscarded(ctx context.Context) error {
	verified := s.verified.Load()
	if verified <= s.last {
		return nil
	}
	if !s.sweptStaged {
		if err := s.sweepStaged(ctx, verified); err != nil {
			return err
		}
		s.sweptStaged = true
	}
	s.discards.Lock()
	list := s.discards.list
	s.discards.list = nil
	s.discards.Unlock()
	began := time.Now()
	for i, d := range list {
		if d.last < verified && time.Since(began) < stagedPurging {
			err := s.stream.PurgeStaged(ctx, d.id, d.last+1, verified)
			if err == nil {
				continue
			}
			s.keepDiscards(list[i:])
			return err
		}
		s.discard(d)
	}
	return nil
}

func (s *replication) keepDiscards(list []discarded) {
	for _, d := range list {
		s.discard(d)
	}
}

// fenceStaged publishes a message that means nothing, if something is staged: once it is stored, what older sessions have
// staged in vain can be swept. Otherwise that might leave no room for this session's first message.
func (s *replication) fenceStaged(ctx context.Context) error {
	if s.verified.Load() > s.last {
		return nil
	}
	list, err := s.stream.Staged(ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	fence := pack.NewBatch(wire.Header{
		Kind: wire.Staged, Session: s.id, Attempt: s.attempt, CopyDone: s.copyDone, NoCopy: s.noCopy, Start: s.start, Timeline: s.tailTimeline(),
	}, room())
	return s.pub.Publish(ctx, s.stream.StagedEndsSubject(), fence.Messages(s.stream.MaxPayload()), nil)
}

// sweepStaged deletes what older sessions have staged and not ended.
func (s *replication) sweepStaged(ctx context.Context, verified uint64) error {
	list, err := s.stream.Staged(ctx)
	if err != nil || len(list) == 0 {
		return err
	}
	ended := map[bus.StagedID]bool{}
	for seq := uint64(1); ; seq++ {
		end, at, err := s.stagedEnd(ctx, seq)
		if errors.Is(err, bus.ErrEmpty) || err == nil && at > s.last {
			break
		}
		if err != nil {
			return err
		}
		ended[end.id], seq = true, at
	}
	n := 0
	for _, id := range list {
		if id.Session == s.id || ended[id] {
			continue
		}
		if err := s.stream.PurgeStaged(ctx, id, s.last+1, verified); err != nil {
			return err
		}
		n++
	}
	if n > 0 {
		s.log.InfoContext(ctx, "what earlier sessions had staged of unfinished transactions was removed", slog.Int("transactions", n))
	}
	return nil
}

// stagedEnd is a StagedEnd record and whose it is.
type stagedEnd struct {
	id  bus.StagedID
	end decode.LSN
}

// stagedEnd reads the first one at or above a sequence.
func (s *replication) stagedEnd(ctx context.Context, from uint64) (e stagedEnd, seq uint64, err error) {
	msg, err := s.stream.Next(ctx, from, s.stream.StagedEndsSubject())
	if err != nil {
		return e, 0, err
	}
	h, body, err := wire.Parse(msg.Data)
	if err != nil {
		return e, 0, err
	}
	err = wire.Walk(body, func(rec wire.Record) error {
		if rec.Type != wire.RecStagedEnd {
			return nil
		}
		var r wire.StagedEnd
		err := rec.JSON(&r)
		e = stagedEnd{bus.StagedID{Session: h.Session, XID: r.XID}, r.End}
		return err
	})
	return e, msg.Seq, err
}

// purgeStaged deletes the staged messages of transactions that end at or before a position: the messages with
// their records are purged.
func (s *replication) purgeStaged(ctx context.Context, upTo decode.LSN, verified uint64) error {
	var done uint64
	for began := time.Now(); time.Since(began) < stagedPurging; {
		end, seq, err := s.stagedEnd(ctx, done+1)
		if errors.Is(err, bus.ErrEmpty) || err == nil && (end.end > upTo || seq >= verified) {
			break
		}
		if err != nil {
			return err
		}
		if err := s.stream.PurgeStaged(ctx, end.id, seq, verified); err != nil {
			return err
		}
		done = seq
	}
	if done == 0 {
		return nil
	}
	return s.stream.PurgeStagedEnds(ctx, done+1, verified)
}
