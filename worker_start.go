package flo

import (
	"context"
	"errors"
	"fmt"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/sink"
)

// StartPoint is where a worker begins whose name is new to the group.
type StartPoint string

const (
	// StartAtBeginning takes the copy and all changes behind it. Where the stream no longer holds them, since all
	// other workers had them, Run ends with ErrHistoryGone.
	StartAtBeginning StartPoint = "beginning"
	// StartAtNow takes no copy and none of the changes that the stream holds by then: it begins behind the last
	// transaction that is whole in the stream. While the initial copy is under way, it waits for its end. The
	// sink is given that position at once, as the checkpoint of an empty batch, so that "now" is decided once.
	StartAtNow StartPoint = "now"
)

// WithStartAt sets where the worker begins if its name is new. A worker that has a checkpoint goes on from there,
// whatever is said here. Default: StartAtBeginning.
func WithStartAt(p StartPoint) WorkerOption { return func(w *workerConfig) { w.startAt = p } }

// atNow reports whether the worker is to begin at now.
func (s *working) atNow(cp *decode.Checkpoint) bool {
	return s.opt.startAt == StartAtNow && cp.Seq == 0 && cp.CopyAttempt == 0
}

// locateNow finds the end of the last whole transaction in the stream.
func (s *working) locateNow(ctx context.Context) (place, error) {
	if rec := s.recorded; rec.Incarnation == s.stream.Incarnation() && rec.Seq > 0 {
		return place{}, fmt.Errorf("%w: worker %q had applied everything up to %s, and its sink holds no checkpoint any more: to start at now, and leave out what came since, call RemoveWorker(%[2]q) first",
			ErrGap, s.opt.name, rec.End)
	}
	for {
		tail, err := s.stream.Tail(ctx)
		if err != nil && !errors.Is(err, bus.ErrEmpty) {
			return place{}, err
		}
		if err == nil {
			h, body, err := wire.Parse(tail.Data)
			if err != nil {
				return place{}, err
			}
			if finishedCopy(&h, body) {
				return place{}, fmt.Errorf("%w: the group was CopyOnly and nothing follows its copy, so worker %q can't start at now", ErrHistoryGone, s.opt.name)
			}
			if h.CopyDone && h.Start != 0 {
				return s.beginAt(ctx, &h)
			}
		}
		s.status.set(PhaseWaiting)
		if err := pollWait(ctx, rolledBackPoll); err != nil {
			return place{}, err
		}
	}
}

// finishedCopy reports whether a message ends a CopyOnly group.
func finishedCopy(h *wire.Header, body []byte) (finished bool) {
	if h.Parts > 1 {
		return false
	}
	_ = wire.Walk(body, func(rec wire.Record) error { // what can't be read is the feed's matter
		var d wire.CopyDone
		if rec.Type == wire.RecCopyDone && rec.JSON(&d) == nil {
			finished = d.Finished
		}
		return nil
	})
	return finished
}

// beginAt finds the message in which the last whole transaction of the stream ends. A transaction that is
// open in the tail comes whole: its beginning stands there or behind it, and is kept for those who need it too.
func (s *working) beginAt(ctx context.Context, tail *wire.Header) (place, error) {
	at := place{pos: wire.Point{End: tail.To.End}}
	if !tail.To.Open {
		at.pos.LSN = tail.To.LSN
	}
	at, err := s.search(ctx, at)
	if err != nil {
		return place{}, err
	}
	msg, err := s.stream.Get(ctx, at.seq)
	if errors.Is(err, bus.ErrEmpty) {
		return place{}, fmt.Errorf("%w: message %d was purged while it was looked at", errReposition, at.seq)
	}
	if err != nil {
		return place{}, err
	}
	h, _, err := wire.Parse(msg.Data)
	if err != nil {
		return place{}, err
	}
	m, err := s.latestMarker(ctx)
	if err != nil {
		return place{}, err
	}
	at.cp = decode.Checkpoint{
		Incarnation: s.stream.Incarnation(), Seq: msg.Seq, LSN: at.pos.LSN, End: at.pos.End, Session: h.Session, Attempt: tail.Attempt, Before: m.before,
	}
	at.fresh = true
	return at, nil
}

// keep makes the position from which a worker starts at now its checkpoint, before anything is read.
func (s *working) keep(ctx context.Context, at place) error {
	if err := s.writeBatch(ctx, &batch{Batch: sink.Batch{Checkpoint: at.cp}}); err != nil {
		return err
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.start = at.cp
	return s.report.flush(ctx)
}
