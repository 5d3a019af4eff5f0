package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"

	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/state"
)

// A copy that was cut short is taken up by another attempt, a round, of the tables that are not whole yet.
// The round's marker stands in `changes` before its snapshot is taken, so that the workers, who stop there until they
// have drained the round, have applied nothing of these tables that the snapshot doesn't hold; what follows
// the marker and is held by the snapshot they skip.

// errRound ends a session whose successor has tables to copy. It is an errAgain that needs no backoff.
var errRound = fmt.Errorf("%w: tables have to be copied afresh", errAgain)

// lineage is what the stream says of the copies: which attempt counts for each table.
type lineage struct {
	base   uint32            // the attempt of the latest Start; 0: unknown, since all of it is drained
	latest map[uint32]uint32 // the attempt of each table; unknown ones are drained
	due    []uint32          // the tables of the present attempt
}

// readLineage reads the message that began the present attempt. One that is gone was drained by everybody.
func (s *replication) readLineage(ctx context.Context) (lineage, error) {
	l := lineage{latest: map[uint32]uint32{}}
	msg, err := s.stream.Get(ctx, s.start)
	if errors.Is(err, bus.ErrEmpty) {
		return l, nil
	}
	if err != nil {
		return l, err
	}
	_, body, err := wire.Parse(msg.Data)
	if err != nil {
		return l, err
	}
	err = wire.Walk(body, func(rec wire.Record) error {
		switch rec.Type {
		case wire.RecStart:
			var st wire.Start
			if err := rec.JSON(&st); err != nil {
				return err
			}
			l.base, l.due = st.Attempt, st.Tables
			for _, oid := range st.Tables {
				l.latest[oid] = st.Attempt
			}
		case wire.RecRound:
			var r wire.Round
			if err := rec.JSON(&r); err != nil {
				return err
			}
			l.base, l.latest = r.Base, r.Latest()
			for oid, attempt := range l.latest {
				if attempt == r.Attempt {
					l.due = append(l.due, oid)
				}
			}
		}
		return nil
	})
	return l, err
}

// unfinished gives the present attempt's tables that are not whole in the stream.
func (s *replication) unfinished(ctx context.Context) ([]uint32, error) {
	ended := map[uint32]bool{}
	for seq := uint64(1); ; seq++ {
		msg, err := s.stream.Next(ctx, seq, s.stream.CopyEndFilter(s.attempt))
		if errors.Is(err, bus.ErrEmpty) {
			break
		}
		if err != nil {
			return nil, err
		}
		_, table, _ := s.stream.ParseCopySubject(msg.Subject)
		ended[table] = true
		seq = msg.Seq
	}
	return slices.DeleteFunc(slices.Clone(s.lineage.due), func(oid uint32) bool { return ended[oid] }), nil
}

// goOn resolves the tables again, and begins a round if any has to be copied: one whose copy was cut short, one
// that was added, or made again, since, and one that a worker needs afresh. A table that was taken out leaves.
func (s *replication) goOn(ctx context.Context) error {
	asked, added, err := s.askedFor(ctx)
	if err != nil {
		return err
	}
	due := map[uint32]bool{}
	cut := false // a table of the present attempt will never be whole
	if !s.copyDone {
		left, err := s.unfinished(ctx)
		if err != nil {
			return err
		}
		cut = len(left) > 0
		for _, oid := range left {
			due[oid] = true
		}
	}
	forgotten, err := s.forgotten(ctx, tableIDs(asked))
	if err != nil {
		return err
	}
	for _, oid := range slices.Concat(added, forgotten) {
		due[oid] = true
	}
	workers, err := s.store.Workers(ctx)
	if err != nil {
		return err
	}
	for i := range workers {
		for _, oid := range s.wanted(&workers[i], asked) {
			due[oid] = true
		}
	}
	if cut || len(due) > 0 {
		if err := s.beginRound(ctx, asked, due); err != nil {
			return err
		}
	}
	if !s.r.cfg.adopts() {
		seen := s.entries
		if err := s.ensurePublications(ctx, asked); err != nil {
			return err
		}
		wanted := make(map[uint32]bool, len(asked))
		for i := range asked {
			wanted[asked[i].OID] = true
		}
		if s.remade(seen, wanted, due) {
			return fmt.Errorf("%w: others have changed the publications meanwhile", errAgain)
		}
	}
	return s.adopted(ctx)
}

// askedFor gives the tables that the group is to have, and those that are new to it.
func (s *replication) askedFor(ctx context.Context) (asked []source.Table, added []uint32, err error) {
	if s.r.cfg.adopts() {
		if err = s.adopt(ctx); err == nil {
			added, err = s.editedByOthers(ctx, s.tables, s.entries)
		}
		return s.tables, added, err
	}
	if asked, err = s.resolve(ctx, s.conn); err != nil {
		return nil, nil, err
	}
	added, err = s.added(ctx, asked)
	return asked, added, err
}

// added gives the tables that the publications don't have: they are new to the group.
func (s *replication) added(ctx context.Context, asked []source.Table) ([]uint32, error) {
	name := s.r.cfg.publicationName()
	both := []string{name, name + source.KeylessSuffix}
	published, err := s.r.source.PublishedTables(ctx, s.conn, both)
	if err != nil {
		return nil, err
	}
	entries, err := s.r.source.OwnEntries(ctx, s.conn, both)
	if err != nil {
		return nil, err
	}
	s.entries = entries
	changed, err := s.editedByOthers(ctx, asked, entries)
	if err != nil || s.noCopy {
		return nil, err // they join from now on
	}
	keyless, err := s.r.source.PublishedTables(ctx, s.conn, []string{name + source.KeylessSuffix})
	if err != nil {
		return nil, err
	}
	if _, there := entries.Publications[name]; !there && len(asked) > 0 {
		return nil, fmt.Errorf("%w: publication %q, which flo made, does not exist any more: changes since then can't be read; %s", ErrTables, name, startOver)
	}
	have := map[uint32]bool{}
	for _, t := range published {
		have[t.OID] = true
	}
	for _, t := range keyless {
		if t.HasIdentity { // it has one now: its updates and deletes were left out until today
			delete(have, t.OID)
		}
	}
	added := changed
	for _, t := range asked {
		if slices.Contains(changed, t.OID) {
			continue
		}
		if !have[t.OID] {
			added = append(added, t.OID)
			s.log.InfoContext(ctx, "a table is new to the group, or to its updates and deletes: it is copied", slog.String("table", names.Qualified(t.Schema, t.Name)))
		}
	}
	return added, nil
}

// wanted gives the group's tables that a worker has asked to be copied afresh, and that were not since.
func (s *replication) wanted(w *state.Worker, group []source.Table) []uint32 {
	var tables []uint32
	for _, oid := range w.Recopy {
		inGroup := slices.ContainsFunc(group, func(t source.Table) bool { return t.OID == oid })
		if inGroup && s.lineage.latest[oid] <= w.RecopyAttempt {
			tables = append(tables, oid)
		}
	}
	return tables
}

// beginRound puts the marker of a round into the stream and waits until it is stored.
func (s *replication) beginRound(ctx context.Context, asked []source.Table, due map[uint32]bool) error {
	old := s.attempt
	next, err := s.nextAttempt(ctx)
	if err != nil {
		return err
	}
	latest := make(map[uint32]uint32, len(asked))
	s.round = nil
	for i := range asked {
		oid := asked[i].OID
		latest[oid] = s.lineage.latest[oid]
		if due[oid] {
			latest[oid] = next
			s.round = append(s.round, asked[i])
			// The rows of the attempt that was cut short are of no use to anybody.
			if err := s.stream.PurgeTable(ctx, old, oid, s.last); err != nil {
				return err
			}
		}
	}
	s.lineage.latest = latest
	if err := s.openPublisher(ctx); err != nil {
		return err
	}
	s.attempt, s.start, s.copyDone = next, 0, false
	if err := s.keepLineage(ctx, s.attempt, s.lineage.base, latest); err != nil {
		return err
	}
	body := room()
	if s.tail.Open { // the part of a transaction that the last session left: it comes again, whole
		body = wire.AppendRecord(body, wire.RecAbort, nil)
	}
	marker := wire.NewRound(s.attempt, s.lineage.base, latest)
	marker.Before = old
	body, err = wire.AppendJSON(body, wire.RecRound, marker)
	if err != nil {
		return err
	}
	if limit := s.stream.MaxPayload(); len(body) > limit {
		return fmt.Errorf("%w: the list of the group's %d tables takes %d bytes, and max_payload of the NATS server is %d: raise it", ErrTables, len(asked), len(body), limit)
	}
	if err := s.put(ctx, body, wire.Point{LSN: s.tail.LSN, End: s.tail.End}); err != nil {
		return err
	}
	if err := s.pub.Drained(ctx); err != nil {
		return s.publisherError(err)
	}
	s.start = s.verified.Load()
	s.log.InfoContext(ctx, "copying tables afresh beside the stream", slog.Int("tables", len(s.round)), slog.Uint64("attempt", uint64(s.attempt)))
	return nil
}

// takeSnapshot gives the round a snapshot: that of the slot that this session made, or a temporary slot's.
func (s *replication) takeSnapshot(ctx context.Context) error {
	if s.slot == nil {
		slot, err := s.makeSlot(ctx, "flo_copy_"+strconv.FormatUint(s.id, 36), true)
		if err != nil {
			return err
		}
		s.slot = slot
	}
	return s.describeTables(ctx)
}

// describeTables publishes what workers have to know of the round's tables. One that was altered since the snapshot was
// taken is left for another round.
func (s *replication) describeTables(ctx context.Context) error {
	conn, err := s.r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	now, err := s.structure(ctx, conn, tableIDs(s.round))
	if err != nil {
		return err
	}
	if s.altered = now.Altered; len(s.altered) > 0 {
		s.round = slices.DeleteFunc(s.round, func(t source.Table) bool { return slices.Contains(s.altered, t.OID) })
	}
	for i := range s.round {
		if t, ok := now.Tables[s.round[i].OID]; ok {
			s.round[i] = t
		}
	}
	if err := s.copies(s.round); err != nil {
		return err
	}
	body := room()
	for i := range s.round {
		// Of one that is gone nobody knows the structure, to which a destination would have to be brought. The workers wait: its
		// copy fails, and the next round leaves it out.
		if _, there := now.Shapes[s.round[i].OID]; s.schema.on && !there {
			continue
		}
		if body, err = s.appendCopyBegin(ctx, conn, body, &s.round[i], now.Shapes[s.round[i].OID], s.slot.Point); err != nil {
			return err
		}
		if len(body) > s.target() {
			if err := s.putCopy(ctx, s.stream.CopyBeginSubject(s.attempt), body); err != nil {
				return err
			}
			body = room()
		}
	}
	if len(body) == wire.HeaderRoom {
		return nil
	}
	return s.putCopy(ctx, s.stream.CopyBeginSubject(s.attempt), body)
}

// checkWants ends the session when a worker asks for tables to be copied afresh.
func (s *replication) checkWants(ctx context.Context) error {
	workers, err := s.store.Workers(ctx)
	if err != nil {
		return nil // asked again soon
	}
	for i := range workers {
		if w := &workers[i]; len(s.wanted(w, s.tables)) > 0 {
			s.log.WarnContext(ctx, "a worker needs tables afresh", slog.String("worker", w.Name), slog.Any("tables", w.Recopy))
			return errRound
		}
	}
	return nil
}

// tableIDs gives the tables' OIDs.
func tableIDs(tables []source.Table) []uint32 {
	ids := make([]uint32, len(tables))
	for i := range tables {
		ids[i] = tables[i].OID
	}
	return ids
}

// begun is the lineage of an attempt that begins with a slot of its own.
func begun(attempt uint32, tables []uint32) lineage {
	l := lineage{base: attempt, latest: make(map[uint32]uint32, len(tables)), due: tables}
	for _, oid := range tables {
		l.latest[oid] = attempt
	}
	return l
}
