package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/state"
)

const (
	// upkeepInterval is how often the stream's size is read, in a stream with a limit.
	upkeepInterval = 500 * time.Millisecond
	// purgeInterval is how often what all workers have finished is purged, and the replicator's
	// record for people is written.
	purgeInterval = 5 * time.Second
)

// watchBound is how long a look at the source's catalog may take: a table that the host has locked holds it up, and
// the stream is to be purged meanwhile.
const watchBound = 2 * time.Second

// upkeep purges the stream, watches its size, and writes the replicator's record, until ctx ends. It
// ends the session if the publisher gives up.
func (s *replication) upkeep(ctx context.Context) error {
	tick := time.NewTicker(upkeepInterval)
	defer tick.Stop()
	var purged time.Time
	looked := time.Now()
	s.gate.setLimit(s.r.cfg.maxBytes)
	defer s.lastRecord()
	for {
		due := time.Since(purged) >= purgeInterval
		if due || s.r.cfg.maxBytes > 0 {
			info, err := s.stream.Info(ctx)
			if errors.Is(err, bus.ErrStreamGone) { // an idle replicator would notice only at its next message
				return err
			}
			if err == nil {
				s.gate.set(int64(info.Bytes))
				if due {
					s.lookAtWorkers(ctx, info)
				}
			}
		}
		// A stream that holds somebody back is purged at once.
		if due || s.gate.closed() {
			purged = time.Now()
			if err := s.purge(ctx); err != nil && ctx.Err() == nil && !transient(err) {
				s.log.WarnContext(ctx, "purging the stream failed", slog.Any("error", err))
			}
			s.writeRecord(ctx)
			if err := s.checkWants(ctx); err != nil {
				return err
			}
		} else if s.recorded == 0 && s.lastCommit.Load() != nil { // soon, see anchor
			s.writeRecord(ctx)
		}
		if s.schema.lookSoon.Swap(false) || time.Since(looked) >= s.tablesInterval() {
			if err := s.checkDDL(ctx); err != nil && (fatal(named(err)) || errors.Is(err, errAgain)) {
				return err
			}
			wctx, cancel := context.WithTimeout(ctx, watchBound)
			if s.promoted(wctx) {
				cancel()
				return fmt.Errorf("%w: the source was a standby, and was promoted", errAgain)
			}
			err := s.watchTables(wctx)
			late := wctx.Err() != nil
			cancel()
			if changed := (*adoptedChanged)(nil); errors.Is(err, errRound) || errors.As(err, &changed) {
				return err
			}
			if err != nil && !late && !transient(err) {
				s.log.WarnContext(ctx, "looking for new tables failed", slog.Any("error", err))
			}
			looked = time.Now()
		}
		if err := s.tooLarge(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.pub.Done():
			if err := s.pub.Err(); err != nil {
				return err
			}
			return nil
		case <-tick.C:
		}
	}
}

// writeRecord writes what people read; nothing is resumed from it, so a failure is only logged.
func (s *replication) writeRecord(ctx context.Context) {
	st, last := s.r.status.snapshot(), s.lastCommit.Load()
	if last == nil {
		last = &commitStamp{}
	}
	err := s.store.PutReplicator(ctx, state.Replicator{
		Group: s.r.cfg.group, Incarnation: s.stream.Incarnation(), System: s.sys.ID, Database: s.sys.Database,
		Slot: s.r.cfg.slot, Mode: string(s.r.cfg.mode), Phase: string(st.Phase), LastLSN: st.Published, Confirmed: st.Confirmed,
		WALKept: st.WALKept, Publications: publicationList(s.published), LastCommit: last.lsn, LastCommitTime: last.time, Updated: time.Now().UTC(),
	})
	if err == nil {
		s.recorded = last.lsn
	} else if ctx.Err() == nil {
		s.log.DebugContext(ctx, "writing the replicator's record failed", slog.Any("error", err))
	}
}

// lastRecord writes the record at the end of a session, if there is something new in it that the next one wants.
func (s *replication) lastRecord() {
	if last := s.lastCommit.Load(); last == nil || last.lsn == s.recorded {
		return
	}
	ctx, cancel := context.WithTimeout(s.work, time.Second)
	defer cancel()
	s.writeRecord(ctx)
}

// purge deletes what all registered workers have finished: strictly below the message that each
// checkpoint names, since that message is needed to verify it. Only checkpoints that were verified
// by position count, and nothing above what this session knows to be stored is touched: a purge
// beyond the last sequence would wipe a stream that was rolled back.
//
// While an attempt's copy is not whole, its marker and the ends of its tables stay, whoever has drained them:
// the next session learns from them what is still to be copied.
func (s *replication) purge(ctx context.Context) error {
	if err := s.purgeDiscarded(ctx); err != nil {
		return err
	}
	whole := s.whole.Load()
	workers, err := s.store.Workers(ctx)
	if err != nil || len(workers) == 0 {
		return err
	}
	verified := s.verified.Load()
	changes, rows, drained := verified, verified, s.attempt
	position := decode.LSN(math.MaxUint64) // what ends up to here is applied
	for i := range workers {
		w := &workers[i]
		needed, ok, err := s.verifyCheckpoint(ctx, w)
		if err != nil {
			return err
		}
		if !ok {
			return nil
		}
		changes = min(changes, needed)
		position = min(position, w.Checkpoint.End)
		rows = min(rows, s.copiedBy(w))
		drained = min(drained, w.Checkpoint.Attempt)
	}
	if !whole {
		changes = min(changes, s.start)
	}
	if rows > 0 {
		if err := s.stream.PurgeRows(ctx, rows, verified); err != nil {
			return err
		}
	}
	if whole && drained == s.attempt && !s.swept {
		if err := s.stream.PurgeCopy(ctx, 0, verified, verified); err != nil {
			return err
		}
		s.swept = true
	}
	if s.lineageSeq > 0 && s.lineageSeq <= verified {
		if err := s.stream.PurgeLineage(ctx, s.lineageSeq, verified); err != nil {
			return err
		}
		s.lineageSeq = 0
	}
	if changes == 0 {
		return nil
	}
	if err := s.stream.PurgeChanges(ctx, changes, verified); err != nil || !whole {
		return err
	}
	return s.purgeStaged(ctx, position, verified)
}

// tablesInterval is how often the source's catalog is looked at: 30 s by default.
func (s *replication) tablesInterval() time.Duration { return max(3*s.r.cfg.idleInterval, time.Second) }

// watchTables warns of tables (partitions, above all) that were made since the group began and are not
// replicated, and moves a table that has lost its replica identity to the publication without updates and
// deletes: otherwise the host's own would fail. One that got an identity goes the other way, in a new session.
func (s *replication) watchTables(ctx context.Context) error {
	if s.r.cfg.adopts() {
		return s.watchAdopted(ctx)
	}
	conn, err := s.r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	asked, err := s.resolve(ctx, conn)
	if err != nil {
		return err
	}
	published, err := s.r.source.PublishedTables(ctx, conn, s.published)
	if err != nil {
		return err
	}
	streams, identified := make(map[uint32]bool, len(published)), map[uint32]bool{}
	for _, t := range published {
		streams[t.OID], identified[t.OID] = true, t.HasIdentity
	}
	ours := make(map[uint32]bool, len(s.tables))
	named := make(map[string]bool, len(s.tables))
	for _, t := range s.tables {
		ours[t.OID] = true
		named[names.Qualified(t.Schema, t.Name)] = true
	}
	entries, err := s.r.source.OwnEntries(ctx, conn, s.published)
	if err != nil {
		return err
	}
	if err := s.remember(ctx, conn, s.tables); err != nil { // partitions that come and go between two Relation messages
		return err
	}
	var tables []source.Table
	lost := false
	for _, t := range asked {
		// By what publishes it, not by what it had when the session began: it may have changed between the one look and the other.
		whole := slices.ContainsFunc(entries.Tables[t.OID], func(e source.Entry) bool { return e.Publication == s.r.cfg.publicationName() })
		if name := names.Qualified(t.Schema, t.Name); !ours[t.OID] && named[name] && !s.noCopy {
			s.log.WarnContext(ctx, "a table was dropped and made again: it is copied afresh", slog.String("table", name))
			return errRound
		}
		if !ours[t.OID] && s.schema.on {
			if err := s.r.source.CheckJoin(ctx, conn, t, s.r.cfg.mode != StreamOnly); err != nil {
				if !errors.Is(err, source.ErrPrivilege) {
					return err
				}
				s.warn(ctx, fmt.Sprintf("table %s can't join the group: %v", names.Qualified(t.Schema, t.Name), err))
				continue
			}
			s.log.InfoContext(ctx, "a table joins the group: it was made, or renamed", slog.String("table", names.Qualified(t.Schema, t.Name)))
			return errRound
		}
		if !ours[t.OID] {
			s.warnOfNew(ctx, &t)
			continue
		}
		if !streams[t.OID] {
			s.log.WarnContext(ctx, "a table was taken out of the publication: it is put back and copied afresh", slog.String("table", names.Qualified(t.Schema, t.Name)))
			return errRound
		}
		if err := s.edited(ctx, &t, entries); err != nil {
			return err
		}
		if !whole && t.HasIdentity && identified[t.OID] {
			s.log.WarnContext(ctx, "a table got a replica identity: its updates and deletes are replicated from now on, and it is copied afresh, unless the mode is StreamOnly", slog.String("table", names.Qualified(t.Schema, t.Name)))
			return errRound
		}
		tables = append(tables, t)
		if whole && !t.HasIdentity {
			lost = true
		}
	}
	if !lost {
		return nil
	}
	p, err := s.r.source.EnsurePublication(ctx, conn, source.PublicationSpec{Name: s.r.cfg.publicationName(), Tables: tables})
	for _, w := range p.Warnings {
		s.warn(ctx, w)
	}
	if err != nil {
		return err
	}
	if s.entries = p.Entries; reflect.DeepEqual(s.record(), s.known) {
		return nil
	}
	return s.adopted(ctx)
}

// promoted reports whether the source was a standby when the session began and is none now: a session that begins
// behind that knows the timeline that its messages stand on.
func (s *replication) promoted(ctx context.Context) bool {
	if !s.sys.InRecovery {
		return false
	}
	sys, err := s.r.source.Identify(ctx)
	return err == nil && sys.ID == s.sys.ID && !sys.InRecovery
}

// stallBound is how long a full stream may stand still, with nothing left to purge.
const stallBound = 5 * time.Second

// tooLarge reports a transaction that can't get into the stream: the stream is full, and all workers have finished
// what it holds in front of that transaction.
func (s *replication) tooLarge(ctx context.Context) error {
	at := s.stored.Load()
	st := s.pub.Status()
	if st.State != bus.Stalled || time.Since(st.Since) < stallBound || !at.Open && !s.whole.Load() {
		return nil // copied rows make room once they are drained
	}
	workers, err := s.store.Workers(ctx)
	if err != nil || len(workers) == 0 {
		return nil // asked again soon
	}
	for _, w := range workers {
		if w.Checkpoint.End < at.End || !at.Open && w.Checkpoint.Attempt < s.attempt {
			return nil
		}
	}
	if !at.Open {
		return fmt.Errorf("%w: the next transaction behind %s does not fit into a stream of %d bytes, from which everything else is gone: raise WithStreamMaxBytes, and start again: it goes on where it stopped",
			ErrTransactionTooLarge, at.End, s.r.cfg.maxBytes)
	}
	return fmt.Errorf("%w: transaction %s does not fit into a stream of %d bytes, of which %d changes are stored: raise WithStreamMaxBytes, and start again: it goes on where it stopped",
		ErrTransactionTooLarge, at.LSN, s.r.cfg.maxBytes, at.Ordinal)
}

// copiedBy tells below which sequence a worker needs no copied rows any more.
func (s *replication) copiedBy(w *state.Worker) uint64 {
	cp := &w.Checkpoint
	switch {
	case cp.Attempt >= s.attempt:
		return s.verified.Load() // all of it, though it stands behind the message that the checkpoint names
	case cp.CopyAttempt > cp.Attempt:
		return cp.CopySeq + 1
	}
	return cp.Seq // the rows of the attempts that it has to drain stand behind their markers
}

// verifyCheckpoint compares a checkpoint with the message that it names. needed is that message's first
// sequence: of one in parts the worker needs all, since the checkpoint may lie within it.
func (s *replication) verifyCheckpoint(ctx context.Context, w *state.Worker) (needed uint64, ok bool, err error) {
	cp := w.Checkpoint
	if cp.Incarnation == s.stream.Incarnation() && cp.Seq == 0 {
		return 0, true, nil // it has written nothing but copied rows
	}
	if cp.Incarnation != s.stream.Incarnation() || cp.Seq > s.verified.Load() {
		return 0, false, nil
	}
	msg, err := s.stream.Get(ctx, cp.Seq)
	if err != nil {
		return 0, false, err
	}
	h, _, err := wire.Parse(msg.Data)
	if err != nil {
		return 0, false, err
	}
	return cp.Seq - uint64(h.Part), h.Session == cp.Session && holds(&h, cp.End), nil
}

// byteGate holds writers back while the stream is larger than flo's own limits, which lie below the
// server's: changes stop first, between transactions, so that a full stream can't keep the copy
// that its workers wait for out.
type byteGate struct {
	mu     sync.Mutex
	limit  int64
	bytes  int64
	held   int64         // of bytes: those of transactions that have not ended, which nobody can take yet
	opened chan struct{} // closed and replaced at each reading
}

// Shares of the server's limit at which flo stops writing.
const (
	changesShare = 0.6
	copyShare    = 0.8
	// stagedShare is how much of it transactions that have not ended may take. What is between it and
	// changesShare can be taken by workers, so that a closed gate opens again.
	stagedShare = 0.4
)

// hold counts bytes of transactions that have not ended, and reports whether they are too many.
func (g *byteGate) hold(n int64) (over bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.held += n
	return g.limit > 0 && float64(g.held) > stagedShare*float64(g.limit)
}

func (g *byteGate) setLimit(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = n
}

func (g *byteGate) set(n int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes = n
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// add counts what is published between two readings.
func (g *byteGate) add(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.bytes += int64(n)
}

func (g *byteGate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limit > 0 && float64(g.bytes) >= changesShare*float64(g.limit)
}

// waitChanges lets changes through when there is room, and, closed or not, as long as pass says so: it is asked when
// its channel is closed. When stop is closed the few batches that were read go: nobody makes room any more.
func (g *byteGate) waitChanges(ctx context.Context, stop, closed <-chan struct{}, pass func() bool) error {
	return g.wait(ctx, changesShare, stop, closed, pass)
}

func (g *byteGate) waitCopy(ctx context.Context) error { return g.wait(ctx, copyShare, nil, nil, nil) }

func (g *byteGate) wait(ctx context.Context, share float64, stop, closed <-chan struct{}, pass func() bool) error {
	for {
		g.mu.Lock()
		if g.limit == 0 || float64(g.bytes) < share*float64(g.limit) {
			g.mu.Unlock()
			return nil
		}
		if g.opened == nil {
			g.opened = make(chan struct{})
		}
		ch := g.opened
		g.mu.Unlock()
		select {
		case <-ch:
		case <-closed:
			if pass() {
				return nil
			}
			closed = nil
		case <-stop:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
