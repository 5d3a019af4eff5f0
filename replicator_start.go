package flo

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/crashpoint"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/state"
)

// replication is one session of a replicator: from the tail of the stream until something breaks.
type replication struct {
	r      *Replicator
	work   context.Context // outlives the stop, see tenure
	log    *slog.Logger
	link   *link
	sys    source.System
	stream *bus.Stream
	store  state.Store
	conn   *pgx.Conn // for the catalog; one goroutine at a time
	id     uint64

	// What the tail says, and what begin makes of it.
	last     uint64 // the stream's last sequence
	tailSeq  uint64
	tail     wire.Point
	tailTime time.Time // of the commit of the tail's last transaction; zero if the tail doesn't tell
	attempt  uint32
	before   uint32 // the attempt that the stream had before; of a Start
	copyDone bool   // or was, when the session began
	noCopy   bool   // the attempt began without a copy
	start    uint64 // sequence of the message that began the attempt
	timeline uint32 // of the source when the tail was written
	started  bool   // the attempt has a Start, not just an Init
	finished bool   // a CopyOnly copy is whole

	pub       *bus.Publisher
	published []string       // names of the publications
	tables    []source.Table // of the group
	entries   source.Entries // what publishes them
	known     state.Adopted  // as the group's record has it
	lineage   lineage
	// lineageSeq is the message that says the same, 0 if this session wrote none.
	lineageSeq uint64
	round      []source.Table // those that this session copies
	altered    []uint32       // those that it leaves for another round
	trust      slotTrust
	slot       *source.NewSlot // holds the snapshot until the copy has imported it
	made       bool            // this session made the group's slot
	lineages   lineages
	schema     schemaTracking

	acked      ackedPositions
	lastCommit atomic.Pointer[commitStamp] // of the last transaction that was received
	recorded   decode.LSN                  // of it in the record; the upkeep's
	swept      bool                        // nothing of a copy is in the stream any more
	whole      atomic.Bool                 // the copy is whole, and the stream says so
	verified   atomic.Uint64               // the last sequence that this session knows to be stored
	stored     atomic.Pointer[wire.Point]  // where `changes` ends in the stream
	gate       byteGate
	workers    idleWatch // the upkeep's

	sweptStaged bool // nothing of older sessions is staged in vain
	discards    struct {
		sync.Mutex
		list []discarded
	}
}

// newSession draws the name under which a session writes.
func newSession() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails: https://pkg.go.dev/crypto/rand#Read
	return binary.BigEndian.Uint64(b[:])
}

// closeBound is how long the end of a session may take for each thing it holds.
const closeBound = 5 * time.Second

func (s *replication) close() {
	ctx, cancel := context.WithTimeout(s.r.last, closeBound)
	defer cancel()
	if s.slot != nil {
		s.slot.Release(ctx)
	}
	if s.pub != nil {
		s.pub.Close()
	}
	s.conn.Close(ctx)
}

// readTail reads where the stream stands. The stream is the truth: nothing else is resumed from.
func (s *replication) readTail(ctx context.Context) error {
	info, err := s.stream.Info(ctx)
	if err != nil {
		return err
	}
	s.last = info.LastSeq
	msg, err := s.stream.Tail(ctx)
	if errors.Is(err, bus.ErrEmpty) {
		return nil
	}
	if err != nil {
		return err
	}
	if msg.Seq > s.last {
		return fmt.Errorf("%w: another replicator writes", errAgain)
	}
	h, body, err := wire.Parse(msg.Data)
	if err != nil {
		return err
	}
	s.tailSeq, s.tail, s.timeline = msg.Seq, h.To, h.Timeline
	s.attempt, s.copyDone, s.start, s.started = h.Attempt, h.CopyDone, h.Start, h.Start != 0
	s.noCopy = h.NoCopy
	s.verified.Store(msg.Seq)
	if h.Parts > 1 {
		return nil
	}
	if s.tailTime, err = commitTime(body); err != nil {
		return err
	}
	return wire.Walk(body, func(rec wire.Record) error {
		switch rec.Type {
		case wire.RecStart, wire.RecRound:
			s.start, s.started = msg.Seq, true
		case wire.RecCopyDone:
			var d wire.CopyDone
			if err := rec.JSON(&d); err != nil {
				return err
			}
			s.finished = d.Finished
		}
		return nil
	})
}

// decide tells whether an attempt has to begin (true) or the stream goes on, and refuses to go on
// where changes would be missing.
func (s *replication) decide(ctx context.Context) (bool, error) {
	mode := s.r.cfg.mode
	if s.finished {
		if mode == CopyOnly {
			return false, errFinished
		}
		return false, fmt.Errorf("%w: group %q was run as CopyOnly: to run it as %s, choose another group, or start over (WithResync and a new token, or Drop)", ErrFinished, s.r.cfg.group, mode)
	}
	slot, err := s.r.source.Slot(ctx, s.conn, s.r.cfg.slot)
	missing := errors.Is(err, source.ErrSlotMissing)
	if err != nil && !missing {
		return false, err
	}
	if err := s.checkMode(); err != nil {
		return false, err
	}
	if !missing && slot.Active && s.started {
		s.endPredecessor(ctx, slot.ActivePID)
		return false, fmt.Errorf("%w: slot %q is in use by process %d at the source", source.ErrSlotActive, s.r.cfg.slot, slot.ActivePID)
	}
	if s.tailSeq == 0 {
		if !missing {
			return false, s.orphaned(ctx)
		}
		return true, nil
	}
	if !s.started || s.r.afresh.CompareAndSwap(true, false) {
		return true, nil // the slot was never made, or is of no use
	}
	if s.lineage, err = s.readLineage(ctx); err != nil {
		return false, err
	}
	if mode == CopyOnly && s.lineage.base != s.attempt {
		return false, s.streamed()
	}
	if mode == CopyOnly {
		return true, nil // all of it has to be of one snapshot
	}
	err = s.checkResume(slot, missing)
	if err == nil {
		err = s.checkTimeline(ctx)
	}
	if err != nil && !s.copyDone && s.lineage.base == s.attempt && lostHistory(err) {
		s.log.WarnContext(ctx, "everything is copied again: the first copy is not whole, and the stream behind it can't go on", slog.Any("error", err))
		return true, nil
	}
	return false, err
}

// orphaned is a slot without a stream.
func (s *replication) orphaned(ctx context.Context) error {
	way := "run WithResync and a new token to start over"
	rec, err := s.store.Replicator(ctx)
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return err
	}
	if slot := s.r.cfg.slot; rec.Slot != slot && slot != defaultSlot(s.r.cfg.group) { // which WithResync leaves alone
		way = fmt.Sprintf("drop it (SELECT pg_drop_replication_slot('%s')) and run WithResync and a new token to start over", slot)
	}
	return fmt.Errorf("%w: the slot %q exists at the source, and the stream holds nothing: the stream was deleted or emptied, or another application's slot has this name. "+
		"If it is this group's, %s; if it is another's, choose another group, or another slot by WithSlot", ErrStreamLost, s.r.cfg.slot, way)
}

// lostHistory reports whether an error says that the stream can't be continued.
func lostHistory(err error) bool {
	return errors.Is(err, ErrSlotLost) || errors.Is(err, ErrGap) || errors.Is(err, ErrSourceChanged)
}

// checkMode refuses a mode that doesn't go on with what the group did before.
func (s *replication) checkMode() error {
	const remedy = modeRemedy
	switch mode := s.r.cfg.mode; {
	case !s.started:
		return nil
	case mode == CopyAndStream && s.noCopy:
		return fmt.Errorf("%w: group %q was begun as StreamOnly, so the stream holds no copy; %s", ErrMode, s.r.cfg.group, remedy)
	case mode == StreamOnly && !s.copyDone:
		return fmt.Errorf("%w: the copy of group %q was cut short, and StreamOnly would leave the destination with a part of it; %s", ErrMode, s.r.cfg.group, remedy)
	case mode == CopyOnly && s.copyDone:
		return s.streamed()
	}
	return nil
}

func (s *replication) streamed() error {
	return fmt.Errorf("%w: group %q has streamed; %s", ErrMode, s.r.cfg.group, modeRemedy)
}

const modeRemedy = "run it as before, or " + startOver

// endPredecessor ends the walsender of a replicator of this group that no longer has the lease: one that
// is paused, or whose machine is gone and whose connection isn't yet.
func (s *replication) endPredecessor(ctx context.Context, pid int32) {
	s.r.endWalsender(ctx, s.conn, pid)
}

func (r *Replicator) endWalsender(ctx context.Context, conn *pgx.Conn, pid int32) {
	_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND application_name = $2 AND usename = current_user`,
		pid, r.source.AppName)
	if err != nil {
		r.source.Logger.WarnContext(ctx, "the old replication connection could not be ended", slog.Int("pid", int(pid)), slog.Any("error", err))
	}
}

// checkResume compares the tail with the slot and the server. START_REPLICATION itself would go on
// silently at the higher of the requested and the confirmed position.
// https://www.postgresql.org/docs/current/protocol-replication.html#PROTOCOL-REPLICATION-START-REPLICATION-SLOT-LOGICAL
func (s *replication) checkResume(slot source.SlotInfo, missing bool) error {
	const remedy = "changes may be missing: " + startOver
	name := s.r.cfg.slot
	switch {
	case missing:
		return fmt.Errorf("%w: slot %q no longer exists, though the stream stands at %s; %s", ErrSlotLost, name, s.tail.End, remedy)
	case slot.Lost():
		why, how := slot.LostBecause()
		return fmt.Errorf("%w: slot %q was invalidated: %s; %s, and %s", ErrSlotLost, name, why, remedy, how)
	case slot.Plugin != "pgoutput" || slot.Database != s.sys.Database:
		return fmt.Errorf("%w: slot %q is of plugin %q and database %q, not pgoutput and %q; %s", ErrSlotLost, name, slot.Plugin, slot.Database, s.sys.Database, remedy)
	case slot.ConfirmedFlush > s.tail.End:
		return fmt.Errorf("%w: slot %q was confirmed up to %s, the stream ends at %s: NATS has lost more than the replay window, or the slot was moved or made again; %s",
			ErrGap, name, slot.ConfirmedFlush, s.tail.End, remedy)
	case s.tail.End > s.sys.Pos:
		return fmt.Errorf("%w: the stream stands at %s, the server only at %s: it was restored from a backup, or is another server; %s",
			ErrSourceChanged, s.tail.End, s.sys.Pos, remedy)
	}
	return nil
}

// tailTimeline is what messages name as the timeline that they stand on: 0 if that may become another one while they are
// read, which it does when the standby that is read from is promoted, or follows another that is.
func (s *replication) tailTimeline() uint32 {
	if s.sys.InRecovery {
		return 0
	}
	return uint32(s.sys.Timeline)
}

// checkTimeline refuses a server whose history left the tail's timeline before the tail: a standby
// that was promoted without having received all of it.
func (s *replication) checkTimeline(ctx context.Context) error {
	if s.timeline == 0 || s.timeline == uint32(s.sys.Timeline) {
		return nil
	}
	at, err := s.r.source.TimelineSwitch(ctx, int32(s.timeline))
	if err != nil {
		return err
	}
	if s.tail.End > at {
		return fmt.Errorf("%w: the stream stands at %s of timeline %d, and the server's history left that timeline at %s: a standby was promoted that had not received everything; %s",
			ErrSourceChanged, s.tail.End, s.timeline, at, startOver)
	}
	return nil
}

// begin starts a new attempt: publications, then the intent in the stream, then the slot, then its
// start in the stream. The order matters: a slot that is found behind an intent without a start has
// never been read.
func (s *replication) begin(ctx context.Context) error {
	s.r.status.set(PhaseStarting)
	if err := s.publish(ctx); err != nil {
		return err
	}
	// What earlier attempts copied is of no use to anybody, and a stream that is full of it has no room for
	// this one's first message.
	if err := s.stream.DropCopies(ctx, s.last); err != nil {
		return err
	}
	next, err := s.nextAttempt(ctx)
	if err != nil {
		return err
	}
	s.before, s.attempt, s.start, s.copyDone, s.noCopy = s.attempt, next, 0, false, false
	if err := s.openPublisher(ctx); err != nil {
		return err
	}
	body, err := wire.AppendJSON(room(), wire.RecInit, wire.Init{Attempt: s.attempt, Slot: s.r.cfg.slot})
	if err != nil {
		return err
	}
	if s.tail.Open { // the part of a transaction that the last attempt left
		body = wire.AppendRecord(body, wire.RecAbort, nil)
	}
	to := wire.Point{LSN: s.tail.LSN, End: s.tail.End}
	if err := s.put(ctx, body, to); err != nil {
		return err
	}
	if err := s.pub.Drained(ctx); err != nil {
		return err
	}
	if err := s.createSlot(ctx); err != nil {
		return err
	}
	if err := s.publishStart(ctx); err != nil {
		return err
	}
	return s.adopted(ctx)
}

// publish resolves the tables and makes the publications, before the slot: a slot made first would
// decode with a catalog that doesn't know them.
func (s *replication) publish(ctx context.Context) error {
	if s.r.cfg.adopts() {
		return s.adopt(ctx)
	}
	tables, err := s.resolve(ctx, s.conn)
	if err != nil {
		return err
	}
	if len(tables) == 0 {
		s.warn(ctx, "no table is replicated: the database has none that is asked for; tables made later are not included")
	}
	return s.ensurePublications(ctx, tables)
}

func (s *replication) resolve(ctx context.Context, conn *pgx.Conn) ([]source.Table, error) {
	include, err := names.ParseAll(s.r.cfg.tables)
	if err != nil {
		return nil, err
	}
	exclude, err := names.ParseAll(s.r.cfg.exclude)
	if err != nil {
		return nil, err
	}
	tables, warnings, err := s.r.source.ResolveTables(ctx, conn, include, exclude)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		s.warn(ctx, w)
	}
	return tables, nil
}

func (s *replication) ensurePublications(ctx context.Context, tables []source.Table) error {
	if s.r.cfg.mode != StreamOnly {
		if err := s.r.source.CheckSelect(ctx, s.conn, tables); err != nil {
			return err
		}
	}
	p, err := s.r.source.EnsurePublication(ctx, s.conn, source.PublicationSpec{Name: s.r.cfg.publicationName(), Tables: tables})
	if state := pgsession.SQLState(err); state == undefinedTable || state == duplicateObject || state == invalidParameter || errors.Is(err, source.ErrRenamed) {
		return fmt.Errorf("%w: a table was dropped, renamed, or made unlogged since it was looked for: %w", errAgain, err)
	}
	if err != nil {
		return err
	}
	for _, w := range p.Warnings {
		s.warn(ctx, w)
	}
	s.published, s.tables, s.entries = p.Names, p.Tables, p.Entries
	return s.remember(ctx, s.conn, s.tables)
}

// warn says something once.
func (s *replication) warn(ctx context.Context, text string) {
	s.r.warn(ctx, text)
}

func (s *replication) warnOfNew(ctx context.Context, t *source.Table) {
	s.warn(ctx, fmt.Sprintf("table %s is not replicated yet: it was made, or renamed, since the replicator started; start the replicator again to copy and include it", names.Qualified(t.Schema, t.Name)))
}

func (c *config) publicationName() string { return "flo_" + c.group }

func (s *replication) createSlot(ctx context.Context) error {
	if err := s.r.source.DropSlot(ctx, s.r.cfg.slot); err != nil { // one that is missing is no error
		return err
	}
	s.r.status.set(PhaseCreatingSlot)
	slot, err := s.makeSlot(ctx, s.r.cfg.slot, s.r.cfg.mode == CopyOnly)
	if err != nil {
		return err
	}
	s.slot, s.made = slot, true
	crashpoint.Reached(crashpoint.SlotMade)
	return nil
}

// makeSlot makes a slot, and says whom it waits for.
func (s *replication) makeSlot(ctx context.Context, name string, temporary bool) (*source.NewSlot, error) {
	const waiting = "waiting for an older transaction: "
	slot, err := s.r.source.CreateSlot(ctx, name, temporary, func(old []source.OldTransaction) {
		for _, t := range old {
			if s.r.status.warn(waiting + t.String()) {
				s.log.WarnContext(ctx, "the replication slot can't be created yet: an older transaction is open", slog.String("transaction", t.String()))
			}
		}
	})
	s.r.status.clearWarnings(waiting)
	return slot, err
}

// publishStart publishes where changes begin and which tables are copied, and waits until it is stored.
func (s *replication) publishStart(ctx context.Context) error {
	s.round = slices.Clone(s.tables) // it is written to while others read the group's
	if s.r.cfg.mode == StreamOnly {
		s.round, s.copyDone, s.noCopy = nil, true, true
	}
	s.lineage = begun(s.attempt, tableIDs(s.round))
	if !s.noCopy {
		if err := s.keepLineage(ctx, s.attempt, s.lineage.base, s.lineage.latest); err != nil {
			return err
		}
	}
	point := s.slot.Point
	body, err := wire.AppendJSON(room(), wire.RecStart, wire.Start{
		Attempt: s.attempt, Point: point, Slot: s.r.cfg.slot, System: s.sys.ID, Database: s.sys.Database,
		Timeline: int32(s.sys.Timeline), Mode: string(s.r.cfg.mode), Tables: s.lineage.due, Before: s.before,
	})
	if err != nil {
		return err
	}
	if err := s.put(ctx, body, wire.Point{LSN: s.tail.LSN, End: point}); err != nil {
		return err
	}
	if err := s.pub.Drained(ctx); err != nil {
		return err
	}
	s.start, s.started = s.verified.Load(), true
	if s.r.cfg.mode == StreamOnly { // nobody imports the snapshot: held any longer it would hold vacuum back
		if err := s.slot.Release(ctx); err != nil {
			s.log.WarnContext(ctx, "ending the session that made the slot failed", slog.Any("error", err))
		}
	}
	return nil
}

func (s *replication) appendCopyBegin(ctx context.Context, conn *pgx.Conn, body []byte, t *source.Table, shape json.RawMessage, point decode.LSN) ([]byte, error) {
	rel := &decode.Relation{OID: t.OID, Schema: t.Schema, Name: t.Name, Identity: t.Identity, Columns: t.Columns}
	frame := decode.AppendRelation(nil, rel)
	body, err := s.appendDescription(ctx, conn, body, rel)
	if err != nil {
		return nil, err
	}
	return wire.AppendJSON(body, wire.RecCopyBegin, wire.CopyBegin{Table: t.OID, Attempt: s.attempt, Point: point, Relation: frame, Schema: shape})
}

// appendDescription appends what the relation's own message leaves out, if there is anything.
func (s *replication) appendDescription(ctx context.Context, conn *pgx.Conn, body []byte, rel *decode.Relation) ([]byte, error) {
	oids := make([]uint32, 0, len(rel.Columns))
	for _, c := range rel.Columns {
		oids = append(oids, c.Type.OID)
	}
	d, err := s.describe(ctx, conn, rel, oids)
	if err != nil {
		return nil, err
	}
	if len(d.Ancestors) == 0 && len(d.OtherNames) == 0 && len(d.Types) == 0 && !d.New {
		return body, nil
	}
	return wire.AppendJSON(body, wire.RecDescribe, d)
}

// room is the beginning of a body: the header's place.
func room() []byte { return make([]byte, wire.HeaderRoom, wire.HeaderRoom+1024) }

// openPublisher takes the pen: from here on nobody else's message can come between.
func (s *replication) openPublisher(ctx context.Context) error {
	if s.pub != nil {
		return nil
	}
	pub, err := s.stream.NewPublisher(s.work, s.id, s.last)
	if err != nil {
		return err
	}
	s.acked.init(s.r.cfg.replayWindow, s.tail.End)
	tail := s.tail
	s.stored.Store(&tail)
	pub.OnAck(s.onAck)
	s.pub = pub
	return nil
}

// put publishes markers: body begins with room for the header. to is where they bring the stream.
func (s *replication) put(ctx context.Context, body []byte, to wire.Point) error {
	b := pack.NewBatch(wire.Header{
		Kind: wire.Changes, Session: s.id, Attempt: s.attempt, CopyDone: s.copyDone, NoCopy: s.noCopy, Start: s.start, Timeline: s.tailTimeline(), From: s.tail, To: to,
	}, body)
	s.tail = to
	return s.pub.Publish(ctx, s.stream.ChangesSubject(), b.Messages(s.stream.MaxPayload()), b)
}

// target is the size at which a batch is full.
func (s *replication) target() int {
	return min(batchTarget, s.stream.MaxPayload()-wire.HeaderRoom)
}

// batchTarget is the size of a full batch: what NATS and a reader handle at full speed.
const batchTarget = 512 << 10
