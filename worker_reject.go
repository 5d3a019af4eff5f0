package flo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// errResume ends a run of the stages that begins again at once, from the sink's checkpoint: a change has become a
// dead letter, or the one that the sink refuses is sought by smaller batches.
var errResume = errors.New("flo: the worker goes on from its checkpoint")

// search finds the change that a sink refuses without naming it. The worker begins again from the checkpoint and
// ends a batch behind the middle of what is suspected, so that each time half of it is cleared. The cut batch has
// More set, so the transaction's boundaries and checkpoints are what they are without a search. It clears a whole
// beginning: of changes that only together can't be taken the last one is found.
type search struct {
	taken  decode.Position // the sink took everything up to here
	hi     decode.Position // and refused something up to here
	mid    decode.Position // a batch ends behind it, and behind hi
	rounds int
}

// searchRounds bounds a search: a batch of a million changes needs 20, and as many more if smaller ones fail meanwhile.
const searchRounds = 60

// cuts reports whether a batch has to end behind a position.
func (s *search) cuts(at decode.Position) bool { return s != nil && (at == s.mid || at == s.hi) }

// took notes that the sink has taken a batch, and reports whether the search is over: what was refused was
// taken after all.
func (s *search) took(b *batch) bool {
	if n := len(b.Changes); n > 0 {
		if at := b.Changes[n-1].Position(); at.Compare(s.taken) > 0 {
			s.taken = at
		}
	}
	return !b.More && s.taken.Compare(s.hi) >= 0
}

// narrow takes a refused batch into account. It gives the change, or -1 and where to cut next.
func (s *search) narrow(b *batch) int {
	s.rounds++
	first, last := 0, len(b.Changes)-1
	for first <= last && b.Changes[first].Position().Compare(s.taken) <= 0 {
		first++
	}
	if first > last { // it had taken them: begin anew
		first, s.taken = 0, decode.Position{}
	}
	if first == last && b.More {
		return first
	}
	s.hi = b.Changes[last].Position()
	s.mid = b.Changes[first+(last-first)/2].Position()
	return -1
}

// refused takes a batch that the sink will never take as it is.
func (s *working) refused(ctx context.Context, b *batch, err error) error {
	stop := s.sinkError(b, err)
	if len(b.Changes) == 0 {
		return stop
	}
	i, ok := rejected(b, err)
	if !ok && b.Changes[0].Copy != nil {
		var serr error
		if i, serr = s.searchRows(ctx, b); serr != nil {
			return serr
		}
		if i == len(b.Changes) {
			return nil // they were taken one after the other
		}
		if ok = i >= 0; !ok {
			return stop
		}
	}
	if !ok {
		if s.sought == nil {
			s.sought = &search{}
			s.log.InfoContext(ctx, "the sink refuses a batch and names no change: searching", slog.Int("changes", len(b.Changes)), slog.Any("error", err))
		}
		if i = s.sought.narrow(b); i < 0 {
			if s.sought.rounds > searchRounds {
				return stop
			}
			return errResume
		}
	}
	s.sought = nil
	err = plainReason(err)
	if s.opt.policy != DeadLetter {
		e := &SinkError{Worker: s.opt.name, Err: err}
		e.locate(b.Changes[i])
		return e
	}
	if err := s.letters.refuse(ctx, &b.origins[i], err); err != nil {
		return err
	}
	return errResume
}

// rejected gives the index that the sink named.
func rejected(b *batch, err error) (int, bool) {
	var rej *sink.RejectError
	if errors.As(err, &rej) && rej.Index >= 0 && rej.Index < len(b.Changes) {
		return rej.Index, true
	}
	return 0, false
}

// plainReason leaves out the index within a batch that is cut anew each time.
func plainReason(err error) error {
	var rej *sink.RejectError
	if errors.As(err, &rej) && rej.Err != nil {
		return sink.Permanent(rej.Err)
	}
	return err
}

// cut reports whether the batch has to end behind the change that was just taken.
func (f *feed) cut() bool {
	return f.tx != nil && f.cuts.cuts(decode.Position{LSN: f.tx.CommitLSN, Ordinal: f.ordinal})
}

// origin of the change that is being taken.
func (f *feed) origin(frame []byte, rel *decode.Relation, t *decode.Truncate) origin {
	return origin{frame: frame, relation: rel, truncate: t, tx: f.tx, ordinal: f.ordinal}
}

// refuse does with a change that can't be decoded or ruled, or that follows a letter, what the policy says. It is
// given a copy: an origin must not escape to the heap for each change.
func (f *feed) refuse(ctx context.Context, o origin, reason error) error {
	return f.letters.refuse(ctx, &o, reason)
}

// undecodable takes a change whose bytes make no sense.
func (f *feed) undecodable(ctx context.Context, frame []byte, reason error) error {
	var rel *decode.Relation
	if len(frame) >= 5 && (frame[0] == 'I' || frame[0] == 'U' || frame[0] == 'D') {
		rel = f.parser.Lookup(binary.BigEndian.Uint32(frame[1:]))
	}
	return f.refuse(ctx, f.origin(frame, rel, nil), fmt.Errorf("the change can't be decoded: %w", reason))
}

// resume opens the sink again, for the next run of the stages from what it holds.
func (s *working) resume(ctx context.Context) error {
	s.start = s.report.last()
	return s.open(ctx)
}

// last is the checkpoint that was reported last.
func (r *reporter) last() decode.Checkpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rec.Checkpoint
}

// aboutChanges reports whether an error is about changes, not about the worker's right to write.
func aboutChanges(err error) bool {
	return sink.IsPermanent(err) && !errors.Is(err, sink.ErrLeaseLost)
}
