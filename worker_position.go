package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/wire"
)

// place is where a worker begins to read.
type place struct {
	seq uint64     // the first message to read
	pos wire.Point // what is applied up to there
	cp  decode.Checkpoint

	fresh bool // a worker that starts at now: the sink knows nothing of cp yet
}

// rolledBackPoll is how often a worker that is ahead of the stream looks whether it was filled up.
const rolledBackPoll = 500 * time.Millisecond

// locate finds the message from which the worker has to go on: the one that its checkpoint names, if
// it is still that one, otherwise the one that holds the checkpoint's position.
func (s *working) locate(ctx context.Context) (place, error) {
	cp := s.start
	if cp.Seq == 0 && (cp.Incarnation == "" || cp.Incarnation == s.stream.Incarnation()) {
		if s.atNow(&cp) {
			return s.locateNow(ctx)
		}
		return s.locateBeginning(ctx, cp)
	}
	if cp.Incarnation != s.stream.Incarnation() {
		return place{}, fmt.Errorf("%w: the sink of worker %q holds a checkpoint of stream %q, and this stream is %q: the stream was deleted and made again. "+
			"To let this stream's copy replace what the sink holds, start replicator and worker WithResync and a new token, or make the sink forget its checkpoint (sink/postgres: DELETE FROM flo.checkpoints WHERE group_name = '%s' AND worker = '%s'); "+
			"or give the worker another name and destination",
			ErrStreamLost, s.opt.name, cp.Incarnation, s.stream.Incarnation(), s.cfg.group, s.opt.name)
	}
	at := place{pos: wire.Point{LSN: cp.LSN, End: cp.End}, cp: cp}
	msg, err := s.stream.Get(ctx, cp.Seq)
	switch {
	case err == nil:
		h, _, err := wire.Parse(msg.Data)
		if err != nil {
			return place{}, err
		}
		if h.Kind == wire.Changes && h.Session == cp.Session && holds(&h, cp.End) {
			at.seq = msg.Seq - uint64(h.Part)
			return at, nil
		}
	case !errors.Is(err, bus.ErrEmpty):
		return place{}, err
	}
	s.log.WarnContext(ctx, "the message that the checkpoint names is gone or another one; searching by position",
		slog.Uint64("sequence", cp.Seq), slog.String("position", cp.End.String()))
	if at, err = s.search(ctx, at); err != nil {
		return place{}, err
	}
	if err := s.unmetAttempts(ctx, &at); err != nil {
		return place{}, err
	}
	return at, nil
}

func holds(h *wire.Header, end decode.LSN) bool { return h.From.End <= end && end <= h.To.End }

// locateBeginning is for a worker that has applied nothing: it needs the stream from its beginning,
// or from the latest attempt's.
func (s *working) locateBeginning(ctx context.Context, cp decode.Checkpoint) (place, error) {
	for poll := beginPoll; ; poll = min(2*poll, rolledBackPoll) {
		msg, err := s.stream.Next(ctx, 1, s.stream.ChangesSubject())
		if errors.Is(err, bus.ErrEmpty) {
			s.status.set(PhaseWaiting)
			if err := pollWait(ctx, poll); err != nil {
				return place{}, err
			}
			continue
		}
		if err != nil {
			return place{}, err
		}
		h, body, err := wire.Parse(msg.Data)
		if err != nil {
			return place{}, err
		}
		if h.Part == 0 && isBeginning(&h, body) {
			cp.Incarnation = s.stream.Incarnation()
			return place{seq: msg.Seq, pos: h.From, cp: cp}, nil
		}
		return place{}, fmt.Errorf("%w: worker %q is new, and what was copied and streamed before sequence %d was purged since all other workers had it. "+
			"Start the group over, for all of its workers (WithResync and a new token, or Drop), or start this one WithStartAt(StartAtNow), without what was before", ErrHistoryGone, s.opt.name, msg.Seq)
	}
}

func isBeginning(h *wire.Header, body []byte) bool {
	if h.From == (wire.Point{}) {
		return true
	}
	rec, _, err := wire.Next(body)
	return err == nil && h.Parts <= 1 && (rec.Type == wire.RecInit || rec.Type == wire.RecStart)
}

// search finds the first message that reaches the position, or that belongs to a later copy attempt, by halving:
// positions and attempts rise with sequences. A stream that ends below the position was rolled back: its replicator fills it up
// again from the slot, and the worker waits for that.
func (s *working) search(ctx context.Context, at place) (place, error) {
	for {
		tail, err := s.stream.Tail(ctx)
		if err != nil && !errors.Is(err, bus.ErrEmpty) {
			return place{}, err
		}
		if err == nil {
			h, _, err := wire.Parse(tail.Data)
			if err != nil {
				return place{}, err
			}
			if h.To.End >= at.pos.End {
				return s.halve(ctx, at, tail.Seq)
			}
			s.log.WarnContext(ctx, "the stream was rolled back behind what the sink holds; waiting until it is filled up again",
				slog.String("stream", h.To.End.String()), slog.String("sink", at.pos.End.String()))
		}
		s.status.set(PhaseAhead)
		if err := pollWait(ctx, rolledBackPoll); err != nil {
			return place{}, err
		}
	}
}

// reachedBy reports whether a message holds something behind the place: it reaches its position, it begins a
// transaction that goes on in the next message and is not applied (where the position was an idle one that a
// rollback took away, transactions may begin below it in the stream), or it is of a later attempt.
func (p *place) reachedBy(h *wire.Header) bool {
	return h.To.End >= p.pos.End || h.To.Open && h.To.LSN >= p.pos.End || h.Attempt > p.cp.Attempt
}

func (s *working) halve(ctx context.Context, at place, last uint64) (place, error) {
	subject := s.stream.ChangesSubject()
	read := func(seq uint64) (uint64, wire.Header, error) {
		msg, err := s.stream.Next(ctx, seq, subject)
		if err != nil {
			return 0, wire.Header{}, err
		}
		h, _, err := wire.Parse(msg.Data)
		return msg.Seq, h, err
	}
	lo, hi := uint64(1), last // the message sought is at hi or below
	for lo < hi {
		mid := lo + (hi-lo)/2
		seq, h, err := read(mid)
		if err != nil {
			return place{}, err
		}
		switch {
		case at.reachedBy(&h):
			hi = mid
		case seq >= hi:
			lo = hi
		default:
			lo = seq + 1
		}
	}
	seq, h, err := read(lo)
	if err != nil {
		return place{}, err
	}
	if !at.reachedBy(&h) { // the stream was rolled back, or filled up again, while it was searched
		return place{}, fmt.Errorf("%w: sequence %d ends at %s, below %s", errReposition, seq, h.To.End, at.pos.End)
	}
	if h.From.End > at.pos.End {
		return place{}, s.gap(at.pos, seq, h.From)
	}
	at.seq = seq - uint64(h.Part)
	return at, nil
}

func (s *working) gap(have wire.Point, seq uint64, from wire.Point) error {
	return fmt.Errorf("%w: worker %q has applied everything up to %s, and the stream goes on at %s (sequence %d): what lies between is not in it; %s",
		ErrGap, s.opt.name, have.End, from.End, seq, startOver)
}
