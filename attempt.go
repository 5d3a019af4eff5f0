package flo

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/wire"
)

// attemptEpoch is when the numbers of copy attempts begin.
var attemptEpoch = time.Date(2025, time.January, 1, 0, 0, 0, 0, time.UTC)

// attemptAfter numbers the attempt that follows another one. It follows the clock, in seconds, so that a stream that
// was rolled back behind the beginning of an attempt doesn't get another one of the same number: workers and sinks
// that have met the first would take the second for it, and its tables for copied.
func attemptAfter(before uint32) uint32 {
	return max(before+1, uint32(max(time.Since(attemptEpoch)/time.Second, 0)))
}

// newAttempts gives what numbers the attempts of one replicator: by the clock, and never twice the same, also not within
// a second in which the stream was rolled back.
func newAttempts() func(before uint32) uint32 {
	var last uint32
	return func(before uint32) uint32 {
		last = max(attemptAfter(before), last+1)
		return last
	}
}

// nextAttempt numbers the attempt that this session is about to begin: above the stream's last, and above all that
// workers have told of. A clock may have run ahead when the last was numbered, and the stream have lost that since.
func (s *replication) nextAttempt(ctx context.Context) (uint32, error) {
	workers, err := s.store.Workers(ctx)
	if err != nil {
		return 0, err
	}
	highest := s.attempt
	for i := range workers {
		cp := &workers[i].Checkpoint
		highest = max(highest, cp.Attempt, cp.CopyAttempt, workers[i].RecopyAttempt)
	}
	return s.r.cfg.attemptAfter(highest), nil
}

// forgot reports whether an attempt was begun when the stream no longer held the one that the checkpoint names, and
// had a lower number all the same: the worker must not take its tables for drained.
func forgot(cp *decode.Checkpoint, attempt uint32) bool {
	return cp.Before != 0 && cp.Before < attempt && attempt < cp.Attempt
}

// unmet leaves the changes of such an attempt's tables out until a later one has copied them, above all that the worker
// has met.
func (s *working) unmet(ctx context.Context, met, attempt uint32, skips map[uint32]decode.LSN, tables []uint32) map[uint32]decode.LSN {
	if len(tables) == 0 {
		return skips
	}
	s.log.WarnContext(ctx, "a copy was begun while the stream had lost a later one, which the sink holds: asking for its tables again",
		slog.Uint64("attempt", uint64(attempt)), slog.Uint64("met", uint64(met)), slog.Any("tables", tables))
	s.report.want(tables, met)
	if skips == nil {
		skips = map[uint32]decode.LSN{}
	}
	for _, oid := range tables {
		skips[oid] = pending
	}
	return skips
}

// unmetAttempts looks whether such attempts stand in the stream where a checkpoint's message was gone from it: they may
// have been begun below the checkpoint's position. The place's checkpoint then names their tables.
func (s *working) unmetAttempts(ctx context.Context, at *place) error {
	if at.cp.Before == 0 {
		return nil
	}
	m, err := s.latestMarker(ctx)
	if err != nil {
		return err
	}
	by := map[uint32][]uint32{} // tables by their attempt
	for oid, attempt := range m.latest {
		if forgot(&at.cp, attempt) {
			by[attempt] = append(by[attempt], oid)
		}
	}
	if len(by) == 0 {
		return nil
	}
	skips, err := parseSkips(at.cp.Skip)
	if err != nil {
		return err
	}
	for attempt, tables := range by {
		slices.Sort(tables)
		skips = s.unmet(ctx, at.cp.Attempt, attempt, skips, tables)
	}
	at.cp.Skip = formatSkips(skips)
	return nil
}

// marker is what a Start or a Round says.
type marker struct {
	before uint32
	latest map[uint32]uint32 // the attempt that counts for each table
}

// latestMarker reads the stream's last Start or Round; an empty one if it is gone.
func (s *working) latestMarker(ctx context.Context) (m marker, err error) {
	tail, err := s.stream.Tail(ctx)
	if errors.Is(err, bus.ErrEmpty) {
		return m, nil
	}
	if err != nil {
		return m, err
	}
	h, body, err := wire.Parse(tail.Data)
	if err != nil {
		return m, err
	}
	if h.Start != 0 {
		begin, err := s.stream.Get(ctx, h.Start)
		if errors.Is(err, bus.ErrEmpty) {
			return m, nil
		}
		if err != nil {
			return m, err
		}
		if h, body, err = wire.Parse(begin.Data); err != nil {
			return m, err
		}
	}
	if h.Parts > 1 {
		return m, nil
	}
	return m, wire.Walk(body, func(rec wire.Record) error {
		switch rec.Type {
		case wire.RecStart:
			var st wire.Start
			if err := rec.JSON(&st); err != nil {
				return err
			}
			m.before, m.latest = st.Before, begun(st.Attempt, st.Tables).latest
		case wire.RecRound:
			var r wire.Round
			if err := rec.JSON(&r); err != nil {
				return err
			}
			m.before, m.latest = r.Before, r.Latest()
		}
		return nil
	})
}
