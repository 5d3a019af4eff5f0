package flo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/crashpoint"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/rules"
)

// feed is the decoding stage: it reads messages in order, checks that each continues the worker's
// own position, and makes batches of them.
type feed struct {
	*working
	out    chan *batch // unbuffered: the sink's stage takes a batch when it is free
	place  place
	parser *decode.Parser
	rules  *rules.Binder
	arenas [batchArenas]arenaSlot
	turn   int
	batch  *batch
	since  time.Time // when the batch got its first change; noTime: it is empty

	pos      wire.Point        // taken up to here
	cp       decode.Checkpoint // the last finished transaction that was taken
	accepted int               // messages taken in this session
	parts    joiner
	msgs     <-chan bus.Message // what comes next
	ahead    *bus.Message       // that was looked at already

	tx       *decode.Tx // nil outside transactions and while skipping
	ordinal  uint64
	skipping bool
	handed   bool // a batch of the open transaction was emitted

	cuts *search // batches end where it says; nil: nothing is sought

	superseded uint32                // an attempt that was given up: nothing counts until a later one starts
	skips      map[uint32]decode.LSN // tables whose changes are left out up to a commit LSN
	noCopy     bool                  // the group doesn't copy

	shapes map[uint32]*decode.Relation // that rows were met of, see observe
	shape  *decode.Relation            // the last row's
}

var noTime time.Time

func newFeed(s *working, at place) (*feed, error) {
	skips, err := parseSkips(at.cp.Skip)
	if err != nil {
		return nil, err
	}
	f := &feed{skips: skips, working: s, out: make(chan *batch), place: at, pos: at.pos, cp: at.cp, parser: decode.NewParser(), shapes: map[uint32]*decode.Relation{}, rules: rules.NewBinder(s.opt.rules)}
	if s.sought != nil {
		cuts := *s.sought // the sink's stage goes on with its own
		f.cuts = &cuts
	}
	f.batch = f.newBatch()
	var again []uint32 // asked for before, if that got through
	for oid, lsn := range skips {
		if lsn == pending {
			again = append(again, oid)
		}
	}
	s.report.want(again, at.cp.Attempt)
	return f, nil
}

// errReposition says that a message doesn't continue the worker's position: the session begins again
// and searches the stream by position.
var errReposition = errors.New("flo: the stream does not continue the worker's position")

// repositionError is an errReposition that tells where.
type repositionError struct {
	have, from wire.Point
	seq        uint64
	lacks      string // what the stream lacks, if not the position
}

func (e *repositionError) Error() string {
	if e.lacks != "" {
		return fmt.Sprintf("%v: message %d at %s: %s", errReposition, e.seq, e.from.End, e.lacks)
	}
	return fmt.Sprintf("%v: at %s, message %d continues %s", errReposition, e.have.End, e.seq, e.from.End)
}

func (e *repositionError) Unwrap() error { return errReposition }

// run reads until ctx ends or something breaks.
func (f *feed) run(ctx context.Context) error {
	reader := f.stream.Read(ctx, f.stream.ChangesSubject(), f.place.seq, bus.ReaderOptions{PullMaxBytes: prefetchBytes})
	defer reader.Close()
	msgs := make(chan bus.Message)
	f.msgs, f.ahead = msgs, nil
	failed := make(chan error, 1)
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pump := make(chan struct{})
	go func() {
		defer close(pump)
		for {
			m, err := reader.Next(rctx)
			if err != nil {
				failed <- err
				return
			}
			select {
			case msgs <- m:
			case <-rctx.Done():
				return
			}
		}
	}()
	defer func() { cancel(); <-pump }()
	return f.loop(ctx, failed)
}

// loop takes messages, and hands batches over, until there are no more.
func (f *feed) loop(ctx context.Context, failed <-chan error) error {
	for {
		if m := f.ahead; m != nil {
			f.ahead = nil
			if err := f.message(ctx, *m); err != nil {
				return err
			}
			continue
		}
		out, due := f.offer()
		select {
		case m := <-f.msgs:
			if err := f.message(ctx, m); err != nil {
				return err
			}
		case out <- f.batch:
			f.sent()
		case <-due:
		case err := <-failed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// offer readies the batch for the sink's stage, if it may go now; otherwise due says when to ask again.
func (f *feed) offer() (out chan<- *batch, due <-chan time.Time) {
	if !f.ready() {
		return nil, nil
	}
	if f.since == noTime {
		f.since = time.Now()
	}
	if wait := f.opt.flushInterval - time.Since(f.since); wait > 0 && !f.full() {
		return nil, time.After(wait)
	}
	f.seal()
	return f.out, nil
}

// message takes one message of `changes`.
func (f *feed) message(ctx context.Context, m bus.Message) error {
	crashpoint.Reached(crashpoint.Fetched)
	h, body, err := wire.Parse(m.Data)
	if err != nil {
		return fmt.Errorf("flo: message %d of the stream: %w", m.Seq, err)
	}
	if body, ok, _ := f.parts.add(m.Seq, &h, body); ok { // of a torn one the next message shows whether it matters
		if err := f.whole(ctx, m.Seq, &h, body); err != nil {
			return err
		}
		f.accepted++
	}
	return nil
}

// whole takes one whole message, if it continues the worker's position.
func (f *feed) whole(ctx context.Context, seq uint64, h *wire.Header, body []byte) error {
	if f.superseded != 0 && h.Attempt <= f.superseded {
		return nil
	}
	if !f.continues(h) {
		if !f.newAttempt(h, body) {
			if h.To.End <= f.pos.End && !h.To.Open && !f.pos.Open {
				return f.markers(ctx, seq, h, body) // the rest is applied: filled up again after a rollback
			}
			if f.accepted > 0 {
				return &repositionError{have: f.pos, from: h.From, seq: seq}
			}
			return f.gap(f.pos, seq, h.From)
		}
	}
	if f.missesMarker(h) {
		return &repositionError{have: f.pos, from: h.From, seq: seq}
	}
	f.noCopy = h.NoCopy
	if h.From.Open && !f.pos.Open {
		f.skipping = true // the rest of a transaction that is applied
	}
	rec := wire.Record{}
	var err error
	for len(body) > 0 {
		if rec, body, err = wire.Next(body); err != nil {
			return fmt.Errorf("flo: message %d of the stream: %w", seq, err)
		}
		if err := f.record(ctx, seq, h, rec); err != nil {
			return err
		}
	}
	if f.superseded == 0 {
		f.reach(seq, h)
	}
	return nil
}

// continues reports whether a message goes on where the worker stands: exactly, or by holding
// transactions that are applied already before the next one.
func (f *feed) continues(h *wire.Header) bool {
	if f.pos.Open {
		return h.From.Open && h.From.LSN == f.pos.LSN && h.From.Ordinal == f.pos.Ordinal && h.From.End == f.pos.End
	}
	if h.From.Open {
		// Only the rest of an applied transaction can be skipped; of another one the beginning is missing.
		return h.From.LSN < f.pos.End && h.From.End <= f.pos.End && (h.To.End >= f.pos.End || h.To.Open)
	}
	return h.From.End == f.pos.End || h.From.End < f.pos.End && (h.To.End > f.pos.End || h.To.Open)
}

// newAttempt reports whether a message starts a later copy attempt, which counts wherever the worker stands.
func (f *feed) newAttempt(h *wire.Header, body []byte) bool {
	if h.Attempt <= f.cp.Attempt {
		return false
	}
	rec, _, err := wire.Next(body)
	return err == nil && (rec.Type == wire.RecInit || rec.Type == wire.RecStart)
}

// reach moves the position to the message's end.
func (f *feed) reach(seq uint64, h *wire.Header) {
	if !h.To.Open && h.To.End < f.pos.End {
		return // it ended within what is applied
	}
	if h.To.Open && h.To.LSN < f.pos.End {
		return // within a transaction that is applied
	}
	f.pos = h.To
	if !h.To.Open {
		f.finish(seq, h, h.To)
	}
}

// finish moves the checkpoint to a finished transaction's end (or an idle position).
func (f *feed) finish(seq uint64, h *wire.Header, at wire.Point) {
	if f.cp.Seq == seq && f.cp.End == at.End {
		return
	}
	skip := ""
	if len(f.skips) > 0 {
		f.pruneSkips(at.End)
		skip = formatSkips(f.skips)
	}
	f.cp = decode.Checkpoint{
		Incarnation: f.stream.Incarnation(), Seq: seq, LSN: at.LSN, End: at.End, Session: h.Session, Attempt: f.cp.Attempt, Before: f.cp.Before, Skip: skip,
	}
	f.batch.moved = true
	f.batch.whole = len(f.batch.Changes)
	f.batch.Checkpoint = f.cp
}

func (f *feed) midTransaction() bool { return f.tx != nil }

// record takes one record of a message.
func (f *feed) record(ctx context.Context, seq uint64, h *wire.Header, rec wire.Record) error {
	switch rec.Type {
	case wire.RecDescribe:
		return f.parser.DescribeJSON(rec.Data)
	case 'Y':
		return f.parser.Type(rec.Data)
	case 'R':
		_, err := f.parser.Relation(rec.Data)
		return err
	case 'B':
		return f.begin(ctx, seq, h, rec.Data)
	case 'C':
		return f.commit(ctx, seq, h, rec.Data)
	case 'O':
		if f.tx != nil {
			name, _, err := decode.ParseOrigin(rec.Data)
			f.tx.Origin = name
			return err
		}
		return nil
	case 'I', 'U', 'D', 'T', 'M':
		return f.change(ctx, rec.Data)
	case wire.RecStreamed:
		return f.streamed(ctx, seq, h, rec)
	case wire.RecAbort:
		return f.aborted(ctx)
	case wire.RecInit:
		var in wire.Init
		if err := rec.JSON(&in); err != nil {
			return err
		}
		if in.Attempt > f.cp.Attempt {
			f.superseded = in.Attempt - 1 // whoever waits for a position must not find it before the copy is drained
		}
		return nil
	case wire.RecIdle, wire.RecBarrier:
		return nil
	case wire.RecStart:
		return f.started(ctx, seq, h, rec)
	case wire.RecRound:
		return f.roundBegun(ctx, seq, h, rec)
	case wire.RecCopyDone:
		return f.copyDone(rec)
	}
	return fmt.Errorf("%w: record %#x in message %d is not known: upgrade the worker", wire.ErrFormat, byte(rec.Type), seq)
}

func (f *feed) begin(ctx context.Context, seq uint64, h *wire.Header, frame []byte) error {
	b, err := decode.ParseBegin(frame)
	if err != nil {
		return err
	}
	if b.CommitLSN < f.pos.End {
		f.skipping = true
		return nil
	}
	if h.To.Open && h.To.LSN == b.CommitLSN {
		if err := f.spans(ctx, h); err != nil {
			return err
		}
		if f.tx0() {
			aborted, err := f.lookAhead(ctx, seq, b.CommitLSN)
			if err != nil {
				return err
			}
			if aborted {
				f.skipping = true
				return nil
			}
		}
	}
	f.skipping = false // the end of what was skipped may have stood in a message that was passed over
	f.tx = &decode.Tx{XID: b.XID, CommitLSN: b.CommitLSN, CommitTime: b.CommitTime}
	f.ordinal, f.handed = 0, false
	f.pos = wire.Point{LSN: b.CommitLSN, End: f.pos.End, Open: true}
	return nil
}

// spans is called before a transaction that goes on in other messages. It gets batches of its own, so that those
// before it don't wait for its end: but not if the next message is here, with the end, before the sink is free. Under load
// nearly every message ends within a transaction, and batches would be no larger than messages.
func (f *feed) spans(ctx context.Context, h *wire.Header) error {
	if !f.batch.moved {
		return nil
	}
	const enough = 4 // of five parts: it would be full within the transaction
	if f.tx0() || f.cuts != nil || 5*len(f.batch.Changes) > enough*f.opt.batchSize || 5*f.batch.bytes > enough*f.opt.batchBytes {
		return f.emit(ctx)
	}
	b := f.seal()
	select {
	case f.out <- b:
		f.sent()
		return nil
	case m := <-f.msgs:
		f.ahead = &m
		if endsIn(h, m.Data) {
			return nil
		}
		return f.emit(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// endsIn reports whether a message holds the end of the transaction that is open at the end of another one, and all
// that comes before.
func endsIn(open *wire.Header, data []byte) bool {
	h, body, err := wire.Parse(data)
	if err != nil || h.Parts > 1 || h.Session != open.Session || h.Attempt != open.Attempt || h.From != open.To || h.To.Open && h.To.LSN == open.To.LSN {
		return false
	}
	aborted := false
	err = wire.Walk(body, func(rec wire.Record) error {
		aborted = aborted || rec.Type == wire.RecAbort
		return nil
	})
	return err == nil && !aborted
}

// tx0 reports whether the sink may be shown a transaction only once its end is in the stream.
func (f *feed) tx0() bool { return f.working.tx == nil }

func (f *feed) commit(ctx context.Context, seq uint64, h *wire.Header, frame []byte) error {
	if f.tx == nil {
		f.skipping = false
		return nil
	}
	c, err := decode.ParseCommit(frame)
	if err != nil {
		return err
	}
	return f.end(ctx, seq, h, wire.Point{LSN: c.CommitLSN, End: c.EndLSN})
}

// end finishes the open transaction.
func (f *feed) end(ctx context.Context, seq uint64, h *wire.Header, at wire.Point) error {
	f.tx.EndLSN = at.End
	f.tx = nil
	f.pos = at
	f.finish(seq, h, f.pos)
	f.batch.moved = true
	if f.handed || f.full() {
		f.handed = false
		return f.emit(ctx)
	}
	return nil
}

func (f *feed) change(ctx context.Context, frame []byte) error {
	if f.skipping {
		return nil
	}
	if f.tx == nil {
		return fmt.Errorf("%w: change outside a transaction", decode.ErrMalformed)
	}
	f.ordinal++
	if f.skipped(frame) || f.letters.has(decode.Position{LSN: f.tx.CommitLSN, Ordinal: f.ordinal}) {
		return nil
	}
	c, err := f.parser.Change(frame, f.batch.arena)
	if err != nil {
		return f.undecodable(ctx, frame, err)
	}
	c.Tx, c.Ordinal = f.tx, f.ordinal
	if !f.keepTruncated(c) || c.Op == decode.OpMessage && c.Message.Prefix == decode.SchemaPrefix { // a schema change of nothing in the group
		return nil
	}
	if c.Schema != nil && !f.supersede(c.Schema) {
		return nil
	}
	if c.Relation != nil {
		if err := f.observe(ctx, frame, c.Relation); err != nil {
			return f.refuse(ctx, f.origin(frame, c.Relation, nil), err)
		}
		if f.skipped(frame) {
			return nil
		}
	}
	rel, truncate := c.Relation, c.Truncate // as they came
	if id := f.letters.holds(c); id != "" {
		return f.refuse(ctx, f.origin(frame, rel, truncate), follow(id))
	}
	keep, err := applyRules(f.rules, c)
	if unknownLabel(err) != nil {
		c, keep, err = f.relabelled(ctx, frame, err)
	}
	if errors.Is(err, errNoLabels) || ctx.Err() != nil && err != nil {
		return err
	}
	if err != nil {
		return f.refuse(ctx, f.origin(frame, rel, truncate), err)
	}
	if keep && truncate != nil {
		if err := f.letters.truncated(ctx, c.Position(), truncate); err != nil {
			return err
		}
	}
	if c.Schema != nil {
		f.schemaTaken(ctx, c.Schema)
	}
	if keep {
		f.batch.add(c, len(frame))
		if f.opt.policy == DeadLetter {
			f.batch.origins = append(f.batch.origins, f.origin(frame, rel, truncate))
		}
	}
	if f.full() || f.cut() {
		f.handed = true
		return f.emit(ctx)
	}
	return nil
}

// aborted forgets the open transaction: it comes again, whole.
func (f *feed) aborted(ctx context.Context) error {
	f.skipping = false
	if f.tx == nil {
		return nil
	}
	if err := f.letters.aborted(ctx, f.tx.CommitLSN); err != nil {
		return err
	}
	f.tx = nil
	f.pos = wire.Point{LSN: f.cp.LSN, End: f.pos.End}
	f.batch.Changes = f.batch.Changes[:f.batch.whole]
	f.batch.origins = f.batch.origins[:min(f.batch.whole, len(f.batch.origins))]
	if !f.handed {
		return nil
	}
	f.handed = false
	f.batch.abort = true
	return f.emit(ctx)
}

// lookAhead finds out, for a sink that can't take a transaction back, how one that goes on in later
// messages ends: it waits until its end is in the stream. Only headers are kept.
func (f *feed) lookAhead(ctx context.Context, seq uint64, lsn decode.LSN) (aborted bool, err error) {
	r := f.stream.Read(ctx, f.stream.ChangesSubject(), seq+1, bus.ReaderOptions{PullMaxBytes: prefetchBytes})
	defer r.Close()
	for {
		m, err := r.Next(ctx)
		if err != nil {
			return false, err
		}
		h, body, err := wire.Parse(m.Data)
		if err != nil {
			return false, err
		}
		if h.To.Open && h.To.LSN == lsn || h.Part+1 < h.Parts {
			continue
		}
		if h.Parts > 1 {
			return false, nil // markers are never cut
		}
		err = wire.Walk(body, func(rec wire.Record) error {
			aborted = aborted || rec.Type == wire.RecAbort
			return nil
		})
		return aborted, err
	}
}
