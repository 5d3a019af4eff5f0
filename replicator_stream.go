package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/crashpoint"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/internal/wire"
)

const (
	// maxPartial is how many messages may be unacknowledged before a batch that isn't full waits: so
	// batches grow by themselves under load, and go at once when the source is quiet.
	maxPartial = 3
	// sendQueue is how many full batches wait for the publisher's window.
	sendQueue = 2
	// spareBuffers is how many batch buffers are kept for reuse.
	spareBuffers = 8
	// quietWait is how long the owner of the replication connection waits for data before it looks
	// at everything else.
	quietWait = 50 * time.Millisecond
	// busyWait is the same while a batch waits for an acknowledgement.
	busyWait = time.Millisecond
	// housekeepingFrames is after how many messages it looks at everything else under load.
	housekeepingFrames = 512
)

// streaming is the part of a session that reads the replication connection and sends what it packs.
// One goroutine, the owner, reads, packs and gives feedback; it never waits for JetStream.
type streaming struct {
	*replication
	conn   *source.Stream
	packer *pack.Packer
	types  []byte           // Type messages, encoded, that belong to the next Relation
	parser *decode.Parser   // for the relations only
	out    chan *pack.Batch // to the sender
	spare  chan []byte      // buffers given back
	copied <-chan struct{}  // closed when the copy is whole in the publisher's hands
	// whenCopied is the same; the sender's.
	whenCopied <-chan struct{}
	stopping   <-chan struct{} // closed when the session has to stop
	ask        <-chan struct{} // somebody waits for the idle position
	idleNext   time.Time       // no idle marker before
	frames     int
	anchor     anchor
	began      time.Time
	early      bool                  // large transactions come before they end
	staged     map[uint32]*stagedRun // of those, by XID; the sender's
	visible    uint32                // the last transaction that the catalog was asked as of
}

// run streams, and copies beside it where the attempt still has to, until ctx ends or something breaks.
func (s *replication) run(ctx context.Context) error {
	if s.published == nil {
		if err := s.goOn(ctx); err != nil {
			return err
		}
	}
	if err := s.openPublisher(ctx); err != nil {
		return err
	}
	if err := s.fenceStaged(ctx); err != nil {
		return err
	}
	if err := s.trackSchema(ctx); err != nil {
		return err
	}
	work, cancel := context.WithCancel(s.work)
	defer cancel()
	asks, stopAsks, err := s.listenForAsks()
	if err != nil {
		return err
	}
	defer stopAsks()
	if s.copyDone {
		s.whole.Store(true)
		s.r.status.copied()
	}
	copied := make(chan struct{})
	g, gctx := errgroup.WithContext(work)
	if !s.copyDone {
		g.Go(func() error {
			cctx, done := either(gctx, ctx)
			defer done()
			if err := s.copyTables(cctx, copied); err != nil && ctx.Err() == nil {
				return err
			}
			return nil
		})
	}
	if err := s.r.source.EnsureFailover(ctx, s.conn, s.r.cfg.slot); err != nil {
		cancel()
		g.Wait()
		return err
	}
	anchored, early := s.anchorOf(ctx), s.streamsBeforeCommit()
	conn, err := s.r.source.StartStream(work, source.StreamConfig{
		Slot: s.r.cfg.slot, Publications: s.published, From: s.tail.End, Since: anchored.since(), System: s.sys, Streaming: early,
	})
	if err != nil {
		cancel()
		g.Wait()
		return err
	}
	st := &streaming{
		replication: s, conn: conn, parser: decode.NewParser(), out: make(chan *pack.Batch, sendQueue), spare: make(chan []byte, spareBuffers),
		copied: copied, whenCopied: copied, stopping: ctx.Done(), ask: asks, began: time.Now(), early: early, staged: map[uint32]*stagedRun{}, anchor: anchored.above(conn.Confirmed()),
	}
	s.acked.spare = st.spare
	conn.SetLazy(true) // it notices load itself
	st.packer = pack.New(pack.Config{
		Session: s.id, Attempt: s.attempt, CopyDone: s.copyDone, NoCopy: s.noCopy, Start: s.start, Timeline: s.tailTimeline(), Tail: s.tail, Target: s.target(),
	})
	g.Go(func() error { return st.send(gctx) })
	g.Go(func() error {
		actx, done := either(gctx, ctx)
		defer done()
		return s.answerLabels(actx)
	})
	g.Go(func() error {
		dctx, done := either(gctx, ctx)
		defer done()
		return s.describeSchema(dctx)
	})
	g.Go(func() error {
		uctx, done := either(gctx, ctx)
		defer done()
		return s.upkeep(uctx)
	})
	g.Go(func() error {
		defer conn.Close(work)
		defer close(st.out)
		return st.own(gctx, ctx)
	})
	return g.Wait()
}

// undrained tells an error that comes of the bound on a stop from others.
func undrained(work context.Context, err error) error {
	if err != nil && errors.Is(context.Cause(work), ErrNotDrained) && !errors.Is(err, ErrNotDrained) {
		return fmt.Errorf("%w: %w", ErrNotDrained, err)
	}
	return err
}

// either gives a context that ends when one of two ends, and what lets go of it.
func either(ctx, stop context.Context) (context.Context, func()) {
	c, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(stop, func() { cancel(context.Cause(stop)) })
	return c, func() {
		unhook()
		cancel(context.Canceled)
	}
}

// outliving gives a context that ends bound later than ctx, with ErrNotDrained as its cause: what is under way
// when ctx ends can be finished, and what hangs doesn't hold up the stop.
func outliving(ctx context.Context, bound time.Duration) (context.Context, func()) {
	c, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(ctx, func() {
		select {
		case <-c.Done():
		case <-time.After(bound):
			cancel(ErrNotDrained)
		}
	})
	return c, func() {
		unhook()
		cancel(context.Canceled)
	}
}

func (s *replication) listenForAsks() (<-chan struct{}, func(), error) {
	asks := make(chan struct{}, 1)
	sub, err := s.link.nc.Subscribe(markSubject(s.r.cfg.group), func(*nats.Msg) {
		select {
		case asks <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("flo: subscribing to %s: %w", markSubject(s.r.cfg.group), err)
	}
	return asks, func() { sub.Unsubscribe() }, nil
}

// own is the owner's loop. stop ends it in order: what was read is handed on.
func (st *streaming) own(ctx, stop context.Context) error {
	st.r.status.set(PhaseStreaming)
	if !st.copyDone {
		st.r.status.set(PhaseCopying) // and streaming beside it
	}
	for stop.Err() == nil && ctx.Err() == nil {
		inflight := st.pub.Inflight() + len(st.out)
		ev, err := st.conn.Next(st.wait(inflight))
		if err != nil {
			if stop.Err() != nil || ctx.Err() != nil {
				break
			}
			return st.undecodable(ctx, err)
		}
		switch ev.Kind {
		case source.Frame:
			crashpoint.Reached(crashpoint.Received)
			if err := st.anchor.frame(ev.Data); err != nil {
				return err
			}
			if err := st.frame(ctx, ev.Data); err != nil {
				return err
			}
			if st.frames++; st.frames%housekeepingFrames != 0 && !st.copyEnded() {
				continue
			}
		case source.Keepalive:
			if err := st.anchor.keepalive(ev.WALEnd); err != nil {
				return err
			}
			st.packer.Seen(ev.WALEnd)
		case source.Idle:
			if !st.packer.Empty() && inflight < maxPartial {
				if err := st.hand(ctx); err != nil {
					return err
				}
			}
		}
		if err := st.lookAround(ctx); err != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if st.packer.Empty() {
		return nil
	}
	return st.hand(ctx)
}

// copyEnded reports whether the end of the copy is still to be marked. The marker may not wait: while it is not there
// nothing of `changes` is purged, and what stands in front of it goes past a closed gate.
func (st *streaming) copyEnded() bool {
	select {
	case <-st.copied:
		return true
	default:
		return false
	}
}

// undecodable is what an internal error of the server in mid-stream means. While PostgreSQL makes a
// slot it forgets what transactions that were open over its full snapshot have done to the catalog
// (SnapBuildCommitTxn and xact_decode in src/backend/replication/logical/snapbuild.c and decode.c): a
// transaction that wrote to a table behind such a TRUNCATE and committed behind the slot's point can't be decoded,
// at no later time either ("could not map filenode"). Until the copy is whole nothing is lost with
// the slot: the copy begins again with another one.
func (st *streaming) undecodable(ctx context.Context, err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && st.anchor.lsn != 0 && !st.r.unanchored.Swap(true) {
		return fmt.Errorf("%w: without the transaction before: %w", errAgain, err)
	}
	if errors.As(err, &pg) && pg.Code == undefinedObject {
		return st.publicationGone(ctx, err)
	}
	if !errors.As(err, &pg) || pg.Code != internalError {
		return err
	}
	if !st.made { // by an earlier session
		return fmt.Errorf("%w %q: %w; if starting again meets the same error, %s", ErrUndecodable, st.r.cfg.slot, err, startOver)
	}
	st.r.afresh.Store(true) // also when the copy is whole by now
	st.log.WarnContext(ctx, "the copy begins again with another slot: the source can't decode a transaction that was open when this one was made", slog.Any("error", err))
	return fmt.Errorf("%w: %w", errAgain, err)
}

// internalError is PostgreSQL's SQLSTATE for what should not happen.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
const internalError = "XX000"

// undefinedObject is its SQLSTATE for a publication, among others, that is not there.
const undefinedObject = "42704"

// undefinedTable is its SQLSTATE for a table that is not there, duplicateObject for one that a publication has already.
const (
	undefinedTable  = "42P01"
	duplicateObject = "42710"
	// invalidParameter is that for one that can't be published, such as an unlogged one.
	invalidParameter = "22023"
)

// wait is how long to wait for the server: not at all if a batch could go right now.
func (st *streaming) wait(inflight int) time.Duration {
	switch {
	case st.packer.Empty():
		return quietWait
	case inflight < maxPartial:
		return 0
	}
	return busyWait
}

// frame takes one pgoutput message.
func (st *streaming) frame(ctx context.Context, data []byte) error {
	if st.early {
		if ok, err := st.streamed(ctx, data); ok {
			return err
		}
	}
	switch data[0] {
	case 'R':
		return st.relation(ctx, data)
	case 'Y':
		st.types = wire.AppendFrame(st.types, data)
		return nil
	}
	if data[0] == 'M' && wire.IsChange(data) {
		var err error
		if data, err = st.message(ctx, data, false); err != nil {
			return err
		}
	}
	if err := st.packer.Frame(data); err != nil {
		return st.abortIfDiffers(ctx, err)
	}
	st.noteCommit(data)
	// While the stream is full a batch ends with its transaction: one that goes on in the next batch has to get through.
	if st.packer.Full() || data[0] == 'C' && st.gate.closed() && !st.packer.Empty() {
		return st.hand(ctx)
	}
	return nil
}

// relation describes a relation for all batches to come.
func (st *streaming) relation(ctx context.Context, data []byte) error {
	rel, err := st.parser.Relation(data)
	if err != nil {
		return err
	}
	if err := st.meets(rel); err != nil {
		return err
	}
	frame := append([]byte(nil), data...)
	var records []byte
	err = st.asOf(ctx, st.packer.XID(), func() error {
		joins, err := st.joins(ctx, st.replication.conn, rel.OID)
		if joins {
			err = errRound
		}
		if err == nil {
			records, err = st.appendDescription(ctx, st.replication.conn, nil, rel)
		}
		return err
	})
	if err != nil {
		return err
	}
	records = append(records, st.types...)
	st.types = st.types[:0]
	st.packer.SetRelation(rel.OID, wire.AppendFrame(records, frame))
	return nil
}

// aside runs what asks the catalog on another goroutine, so that feedback goes on.
func (st *streaming) aside(f func() error) error {
	ch := make(chan error, 1)
	go func() { ch <- f() }()
	tick := time.NewTicker(quietWait)
	defer tick.Stop()
	for {
		select {
		case err := <-ch:
			return err
		case <-tick.C:
			if err := st.conn.Tick(time.Now()); err != nil {
				<-ch
				return err
			}
		}
	}
}

// asOf is aside for what asks the catalog as a decoded transaction has left it, or later.
func (st *streaming) asOf(ctx context.Context, xid uint32, f func() error) error {
	return st.aside(func() error {
		if xid == st.visible {
			return f()
		}
		ok, err := source.AwaitVisible(ctx, st.replication.conn, st.r.cfg.slot, xid, visiblePatience, func() {
			st.warn(ctx, fmt.Sprintf("transaction %d is in the WAL and not visible yet, so that the stream waits: does its commit wait for a standby of synchronous_standby_names?", xid))
		})
		if err != nil {
			return err
		}
		st.visible = xid // also if it wasn't: the wait is once for all of a transaction's tables
		if !ok {
			st.warn(ctx, "flo is one of the source's synchronous_standby_names: commits wait for JetStream, and what a transaction has "+
				"just done to a table's names, types and partitions may be seen too late for its own rows; name the standbys that are meant")
		}
		return f()
	})
}

// visiblePatience is how long a transaction that was decoded may stay invisible without a warning.
const visiblePatience = 10 * time.Second

// hand gives the batch to the sender.
func (st *streaming) hand(ctx context.Context) error {
	return st.give(ctx, st.packer.Take(st.buffer()))
}

// buffer gives one that was given back; nil if there is none.
func (st *streaming) buffer() (spare []byte) {
	select {
	case spare = <-st.spare:
	default:
	}
	return spare
}

// give hands a batch to the sender, and keeps the connection alive while that one is busy.
func (st *streaming) give(ctx context.Context, b *pack.Batch) error {
	select {
	case st.out <- b:
		return nil
	default:
	}
	tick := time.NewTicker(quietWait)
	defer tick.Stop()
	for {
		select {
		case st.out <- b:
			return nil
		case <-tick.C:
			st.confirm()
			if err := st.conn.Tick(time.Now()); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lookAround does what is due besides reading: confirm, mark the copy's end, mark idle time.
func (st *streaming) lookAround(ctx context.Context) error {
	st.confirm()
	if err := st.streamsAgain(); err != nil {
		return err
	}
	select {
	case <-st.copied:
		st.copied = nil
		if err := st.packer.CopyDone(false); err != nil {
			return err
		}
		st.copyDone = true
		if err := st.hand(ctx); err != nil {
			return err
		}
		st.r.status.copied()
		st.r.status.set(PhaseStreaming)
	default:
	}
	lsn := st.packer.IdlePosition()
	if lsn == 0 {
		return nil
	}
	now := time.Now()
	select {
	case <-st.ask:
	default:
		if now.Before(st.idleNext) {
			return nil
		}
	}
	st.idleNext = now.Add(st.r.cfg.idleInterval)
	st.packer.Idle()
	return st.hand(ctx)
}

// confirm tells the source what has been safe for a replay window.
func (st *streaming) confirm() {
	if st.anchor.lsn != 0 { // not before the server is known to be the one that the stream was made from
		return
	}
	now := time.Now()
	if n := st.r.settle.Load(); st.r.settled.Swap(n) != n {
		st.acked.settle()
	}
	if lsn, moved := st.acked.confirmable(now); moved {
		st.conn.Confirm(lsn)
		st.r.status.confirmed(lsn)
	}
}

// abortIfDiffers makes the workers forget the part of a transaction that the stream holds, when the
// server decodes it otherwise now. The next session sends it whole.
func (st *streaming) abortIfDiffers(ctx context.Context, err error) error {
	if !isDiffers(err) {
		return err
	}
	st.log.WarnContext(ctx, "a partly published transaction is sent again whole: "+err.Error())
	to := wire.Point{LSN: st.tail.LSN, End: st.tail.End}
	if err := st.put(ctx, wire.AppendRecord(room(), wire.RecAbort, nil), to); err != nil {
		return err
	}
	if err := st.pub.Drained(ctx); err != nil {
		return err
	}
	return fmt.Errorf("%w: %w", errAgain, err)
}

// send publishes what the owner hands over, in order. At the end it waits for JetStream's word.
func (st *streaming) send(ctx context.Context) error {
	limit := st.stream.MaxPayload()
	for b := range st.out {
		if b.Header.Kind == wire.Staged {
			if err := st.stage(ctx, b); err != nil {
				return err
			}
			continue
		}
		if b.Streamed != nil { // it makes room by and by
			if err := st.record(ctx, b); err != nil {
				return err
			}
		} else if !b.Header.From.Open {
			if err := st.waitForRoom(ctx); err != nil {
				return err
			}
		}
		st.gate.add(len(b.Body()))
		if err := st.pub.Publish(ctx, st.stream.ChangesSubject(), b.Messages(limit), b); err != nil {
			return st.publisherError(err)
		}
		crashpoint.Reached(crashpoint.Published)
	}
	if err := st.pub.Drained(ctx); err != nil {
		return st.publisherError(err)
	}
	return nil
}

// waitForRoom holds changes back while the stream is full. But when the copy is whole, what stands in front of
// the marker that says so goes on, a few batches: nothing of `changes` is purged before.
func (st *streaming) waitForRoom(ctx context.Context) error {
	return st.gate.waitChanges(ctx, st.stopping, st.whenCopied, func() bool { return !st.whole.Load() })
}

// publisherError prefers the reason for which the publisher gave up to the symptom.
func (s *replication) publisherError(err error) error {
	if s.pub != nil && s.pub.Err() != nil {
		return s.pub.Err()
	}
	return err
}

// onAck is called by the publisher, in order, for each message that is stored.
func (s *replication) onAck(token any, seq uint64) {
	crashpoint.Reached(crashpoint.Acknowledged)
	s.verified.Store(seq)
	b, ok := token.(*pack.Batch)
	if !ok {
		return // copied rows
	}
	if b.Header.Kind == wire.Staged { // which nothing is confirmed by
		s.acked.recycle(b)
		return
	}
	to := b.Header.To
	s.stored.Store(&to)
	if b.Header.CopyDone && !s.whole.Load() {
		s.whole.Store(true)
	}
	s.acked.add(time.Now(), to.End)
	s.r.status.published(b.Header.To.End, b.Changes)
	s.acked.recycle(b)
}
