package flo

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/wire"
)

// round is a copy that the worker drains where it meets its marker in `changes`, before it goes on.
type round struct {
	attempt  uint32
	base     uint32   // what attempts below it copied counts no more
	tables   []uint32 // to drain
	kept     []uint32 // the group's others
	seq      uint64   // of the marker
	session  uint64   // that wrote it
	copyOnly bool
}

// errSuperseded says that all of an attempt was given up for a later one with a slot of its own.
var errSuperseded = errors.New("flo: the copy was begun again")

// started takes an attempt's Start: what came before it counts no more.
func (f *feed) started(ctx context.Context, seq uint64, h *wire.Header, rec wire.Record) error {
	var st wire.Start
	if err := rec.JSON(&st); err != nil {
		return err
	}
	if st.Attempt <= f.cp.Attempt {
		f.missed(ctx, st.Attempt, st.Tables)
		return nil
	}
	if err := f.clear(ctx); err != nil {
		return err
	}
	f.pos = wire.Point{LSN: f.pos.LSN, End: st.Point}
	f.superseded = 0
	f.skips = nil
	if len(st.Tables) == 0 {
		f.cp.Attempt, f.cp.Before, f.cp.Skip = st.Attempt, st.Before, ""
		return nil
	}
	r := &round{attempt: st.Attempt, base: st.Attempt, tables: st.Tables, seq: seq, session: h.Session, copyOnly: st.Mode == string(CopyOnly)}
	if err := f.drain(ctx, r); err != nil {
		return ignoreSuperseded(err)
	}
	f.cp = decode.Checkpoint{Attempt: st.Attempt, Before: st.Before}
	return f.drained(ctx, seq, h)
}

// roundBegun takes a Round: its tables are drained here.
func (f *feed) roundBegun(ctx context.Context, seq uint64, h *wire.Header, rec wire.Record) error {
	var w wire.Round
	if err := rec.JSON(&w); err != nil {
		return err
	}
	if w.Attempt <= f.cp.Attempt {
		var tables []uint32
		for _, t := range w.Tables {
			if t.Attempt == w.Attempt {
				tables = t.Tables
			}
		}
		f.missed(ctx, w.Attempt, tables)
		return nil
	}
	if err := f.clear(ctx); err != nil {
		return err
	}
	r := &round{attempt: w.Attempt, base: w.Base, seq: seq, session: h.Session}
	f.skips = maps.Clone(f.skips)
	group := w.Latest()
	maps.DeleteFunc(f.skips, func(table uint32, _ decode.LSN) bool { _, in := group[table]; return !in }) // it has left
	for _, t := range w.Tables {
		if t.Attempt == w.Attempt {
			r.tables = append(r.tables, t.Tables...)
		} else {
			r.kept = append(r.kept, t.Tables...)
		}
	}
	if err := f.drain(ctx, r); err != nil {
		return ignoreSuperseded(err)
	}
	f.cp.Attempt, f.cp.Before = w.Attempt, w.Before
	f.cp.Seq = 0 // so that the checkpoint moves, wherever it stands
	return f.drained(ctx, seq, h)
}

// missed takes the marker of an attempt that is not above the one that the worker has met: mostly one that it has met, too.
func (f *feed) missed(ctx context.Context, attempt uint32, tables []uint32) {
	if !forgot(&f.cp, attempt) {
		return
	}
	f.skips = f.unmet(ctx, f.cp.Attempt, attempt, maps.Clone(f.skips), tables)
	f.cp.Seq = 0 // so that the checkpoint moves with them
}

func ignoreSuperseded(err error) error {
	if errors.Is(err, errSuperseded) {
		return nil
	}
	return err
}

// clear hands over all that came before a marker, and forgets a transaction that was left open.
func (f *feed) clear(ctx context.Context) error {
	if err := f.aborted(ctx); err != nil {
		return err
	}
	if f.batch.moved {
		return f.emit(ctx)
	}
	return nil
}

// drained moves the checkpoint to a marker whose copy is in the sink.
func (f *feed) drained(ctx context.Context, seq uint64, h *wire.Header) error {
	f.status.set(PhaseStreaming)
	f.finish(seq, h, wire.Point{LSN: f.pos.LSN, End: f.pos.End})
	return f.emit(ctx)
}

// markers takes the Rounds of a message whose position the worker has passed already: after a rollback of the
// stream one may stand there. Its snapshot is younger than all that the worker has applied.
func (f *feed) markers(ctx context.Context, seq uint64, h *wire.Header, body []byte) error {
	if h.Attempt <= f.cp.Attempt && !forgot(&f.cp, h.Attempt) {
		return nil
	}
	return wire.Walk(body, func(rec wire.Record) error {
		if rec.Type != wire.RecRound {
			return nil
		}
		return f.roundBegun(ctx, seq, h, rec)
	})
}

// missesMarker reports whether a message belongs to an attempt whose marker the worker has not met.
func (f *feed) missesMarker(h *wire.Header) bool { return h.Start != 0 && h.Attempt > f.cp.Attempt }

// supersede looks whether later attempts have taken tables over, which then will never be whole in this one. It
// fails with errSuperseded if all that the worker drains was given up.
func (d *drainer) supersede(ctx context.Context) error {
	if err := d.stands(ctx); err != nil {
		return err
	}
	base, latest, err := d.laterRound(ctx)
	if err != nil || latest == nil && base == 0 {
		return err
	}
	if base > d.round.attempt {
		d.superseded = base - 1
		return errSuperseded
	}
	for table := range maps.Clone(d.unread) {
		if a, in := latest[table]; !in || a > d.round.attempt {
			d.drop(table)
		}
	}
	return nil
}

// stands makes sure that the marker is where the worker has met it. A stream that was rolled back behind it may go on with an
// attempt of a lower number, begun on a machine whose clock is behind: what is drained would never come.
func (d *drainer) stands(ctx context.Context) error {
	m, err := d.stream.Get(ctx, d.round.seq)
	if errors.Is(err, bus.ErrEmpty) {
		return nil // too low as yet: looked at again soon
	}
	if err != nil {
		return err
	}
	h, _, err := wire.Parse(m.Data)
	if err == nil && h.Session != d.round.session {
		err = fmt.Errorf("%w: the stream was rolled back behind the beginning of copy attempt %d", errAgain, d.round.attempt)
	}
	return err
}

// laterRound reads the latest attempt, if it is a later one that was not read before.
func (d *drainer) laterRound(ctx context.Context) (base uint32, latest map[uint32]uint32, err error) {
	tail, err := d.stream.Tail(ctx)
	if errors.Is(err, bus.ErrEmpty) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	h, body, err := wire.Parse(tail.Data)
	if err != nil || h.Attempt <= max(d.round.attempt, d.later) {
		return 0, nil, err
	}
	if h.Start != 0 {
		m, err := d.stream.Get(ctx, h.Start)
		if errors.Is(err, bus.ErrEmpty) {
			return 0, nil, nil // rolled back since: read again soon
		}
		if err != nil {
			return 0, nil, err
		}
		if _, body, err = wire.Parse(m.Data); err != nil {
			return 0, nil, err
		}
	}
	err = wire.Walk(body, func(rec wire.Record) error {
		switch rec.Type {
		case wire.RecInit, wire.RecStart:
			base = h.Attempt
		case wire.RecRound:
			var r wire.Round
			if err := rec.JSON(&r); err != nil {
				return err
			}
			base, latest = r.Base, r.Latest()
		}
		return nil
	})
	if err == nil && base <= d.round.attempt {
		d.later = h.Attempt // an Init may be followed by a Start with the same number
	}
	return base, latest, err
}

// drop gives a table up: a later attempt copies it. Until then its changes are left out.
func (d *drainer) drop(table uint32) {
	delete(d.unread, table)
	d.dropped[table] = true
	if t := d.tables[table]; t != nil {
		t.dropped.Store(true)
	}
}

// want asks the replicator to copy tables afresh.
func (d *drainer) want(ctx context.Context, why string, tables ...uint32) {
	d.log.WarnContext(ctx, "asking for a fresh copy", slog.String("reason", why), slog.Any("tables", tables))
	d.report.want(tables, d.round.attempt)
}

// pending marks a table whose changes are left out until a later round has copied it.
const pending = decode.LSN(math.MaxUint64)

// awaitsCopy reports whether a checkpoint names such a table.
func awaitsCopy(cp *decode.Checkpoint) bool { return strings.Contains(cp.Skip, pending.String()+":") }

// formatSkips gives what Checkpoint.Skip holds.
func formatSkips(skips map[uint32]decode.LSN) string {
	by := map[decode.LSN][]uint32{}
	for oid, lsn := range skips {
		by[lsn] = append(by[lsn], oid)
	}
	var b strings.Builder
	for i, lsn := range slices.Sorted(maps.Keys(by)) {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(lsn.String())
		sep := byte(':')
		slices.Sort(by[lsn])
		for _, oid := range by[lsn] {
			b.WriteByte(sep)
			b.WriteString(strconv.FormatUint(uint64(oid), 10))
			sep = ','
		}
	}
	return b.String()
}

// parseSkips reads what formatSkips gave.
func parseSkips(text string) (map[uint32]decode.LSN, error) {
	var skips map[uint32]decode.LSN
	for _, part := range strings.Fields(text) {
		at, list, _ := strings.Cut(part, ":")
		lsn, err := decode.ParseLSN(at)
		if err != nil {
			return nil, fmt.Errorf("flo: a checkpoint's skip %q: %w", text, err)
		}
		for _, s := range strings.Split(list, ",") {
			oid, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("flo: a checkpoint's skip %q: %w", text, err)
			}
			if skips == nil {
				skips = map[uint32]decode.LSN{}
			}
			skips[uint32(oid)] = lsn
		}
	}
	return skips, nil
}

// setSkip leaves a table's changes out up to a commit LSN.
func (f *feed) setSkip(table uint32, lsn decode.LSN) {
	if f.skips == nil {
		f.skips = map[uint32]decode.LSN{}
	}
	f.skips[table] = lsn
}

// pruneSkips forgets those that the position has passed.
func (f *feed) pruneSkips(at decode.LSN) {
	for oid, lsn := range f.skips {
		if lsn <= at {
			delete(f.skips, oid)
		}
	}
}

// skipped reports whether a change frame is of a table whose copy holds it.
func (f *feed) skipped(frame []byte) bool {
	if len(f.skips) == 0 || len(frame) < 5 || frame[0] == 'M' || frame[0] == 'T' {
		return false
	}
	return f.tx.CommitLSN < f.skips[binary.BigEndian.Uint32(frame[1:])]
}

// keepTruncated takes such tables out of a Truncate, and reports whether any is left.
func (f *feed) keepTruncated(c *decode.Change) bool {
	if len(f.skips) == 0 || c.Truncate == nil {
		return true
	}
	t := *c.Truncate
	t.Relations = slices.DeleteFunc(slices.Clone(t.Relations), func(rel *decode.Relation) bool {
		return f.tx.CommitLSN < f.skips[rel.OID]
	})
	c.Truncate = &t
	return len(t.Relations) > 0
}
