package flo

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/deadletter"
	"github.com/pgflo/flo/internal/wire"
)

// letters is what a session knows of its worker's dead letters. A change that has a letter is passed over wherever
// it is met, so that a letter that was stored before a crash is neither stored nor applied again; and a change of
// a row that has a letter follows it, so that they can be replayed in order.
type letters struct {
	*Worker
	store *deadletter.Store

	storing sync.Mutex // held while the stream is written to

	mu      sync.RWMutex
	list    []deadletter.Entry
	marks   []deadletter.Entry // those of list
	changes map[decode.Position]bool
	copies  map[decode.CopyID]bool
	rows    map[heldRow]holder
	held    map[uint32]bool   // tables of rows
	tables  map[uint32]holder // held as a whole
	count   int               // without marks
	present atomic.Bool       // there are some: the others cost nothing
}

// heldRow is a row that has a letter.
type heldRow struct {
	table uint32
	row   deadletter.Row
}

// holder is the first letter of a row or table: what comes behind it follows it.
type holder struct {
	id string // "": none
	at decode.Position
}

// first gives the one that comes first.
func (h holder) first(o holder) holder {
	if h.id == "" || o.at.Compare(h.at) < 0 {
		return o
	}
	return h
}

// holds reports whether a change comes behind it.
func (h holder) holds(at decode.Position) bool { return h.id != "" && h.at.Compare(at) < 0 }

// loadLetters reads which letters there are. One that was replayed, and not removed since, goes.
func (s *working) loadLetters(ctx context.Context) error {
	l := &letters{Worker: s.Worker, store: deadletter.Open(s.stream.JetStream(), s.cfg.group, s.stream.Incarnation(), s.opt.name, s.stream.Replicas())}
	list, err := l.store.List(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		if id := list[i].ID(); id == s.start.Replayed && list[i].Kind != deadletter.Emptied {
			if err := l.store.Delete(ctx, &list[i]); err != nil {
				return err
			}
			list = slices.Delete(list, i, i+1)
			break
		}
	}
	l.list = list
	l.index()
	reason := ""
	if l.count > 0 {
		h, err := l.store.Last(ctx)
		if err != nil {
			return err
		}
		reason = h.Reason
	}
	s.status.letters(l.count, reason)
	s.letters = l
	return nil
}

// index makes the maps of the list. l.mu is held, or nobody else knows l yet.
func (l *letters) index() {
	l.changes, l.copies, l.count = map[decode.Position]bool{}, map[decode.CopyID]bool{}, 0
	l.rows, l.held, l.tables = map[heldRow]holder{}, map[uint32]bool{}, map[uint32]holder{}
	l.marks = nil
	for i := range l.list {
		if l.list[i].Kind == deadletter.Emptied {
			l.marks = append(l.marks, l.list[i])
		}
	}
	for i := range l.list {
		l.note(&l.list[i])
	}
	l.present.Store(len(l.list) > 0)
}

// note adds one entry to the maps.
func (l *letters) note(e *deadletter.Entry) {
	if e.Kind == deadletter.Emptied {
		return
	}
	l.count++
	h := holder{e.ID(), e.Position}
	if e.Kind == deadletter.Copied {
		l.copies[e.Copy] = true
		h.at = decode.Position{LSN: e.Copy.Point} // before all changes behind the copy
	} else {
		l.changes[e.Position] = true
	}
	if slices.ContainsFunc(l.marks, func(m deadletter.Entry) bool { return e.Obsolete(&m) }) {
		return // the row is gone
	}
	for _, t := range e.Tables {
		if e.Whole {
			l.tables[t] = l.tables[t].first(h)
		}
		for _, r := range e.Rows {
			at := heldRow{t, r}
			l.rows[at], l.held[t] = l.rows[at].first(h), true
		}
	}
}

// has reports whether a change has a letter.
func (l *letters) has(at decode.Position) bool {
	if !l.present.Load() {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.changes[at]
}

// hasRow reports whether a copied row has one.
func (l *letters) hasRow(id decode.CopyID) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.copies[id]
}

// holds gives the letter that a change, as it came from the source, has to follow; "" if none.
func (l *letters) holds(c *decode.Change) string {
	if !l.present.Load() || c.Relation == nil { // a truncation makes letters obsolete, and follows none
		return ""
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	at := c.Position()
	if h := l.tables[c.Relation.OID]; h.holds(at) {
		return h.id
	}
	if !l.held[c.Relation.OID] {
		return ""
	}
	for _, r := range rowsOf(c) {
		if h := l.rows[heldRow{c.Relation.OID, r}]; h.holds(at) {
			return h.id
		}
	}
	return ""
}

// copied counts the letters of a table's copied rows in one attempt.
func (l *letters) copied(table, attempt uint32) (n uint64) {
	if !l.present.Load() {
		return 0
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	for i := range l.list {
		if e := &l.list[i]; e.Kind == deadletter.Copied && e.Copy.Table == table && e.Copy.Attempt == attempt {
			n++
		}
	}
	return n
}

// inChunk reports whether rows of a chunk have letters.
func (l *letters) inChunk(c *wire.CopyChunk) bool {
	if !l.present.Load() {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return slices.ContainsFunc(l.list, func(e deadletter.Entry) bool {
		first := c.ID
		first.Row = e.Copy.Row
		return e.Kind == deadletter.Copied && e.Copy == first && e.Copy.Row >= c.ID.Row && e.Copy.Row-c.ID.Row < c.Rows
	})
}

// maxReason bounds a letter's reason, in bytes: an error may quote a row.
const maxReason = 1024

func reasonOf(err error) string {
	text := err.Error()
	if len(text) <= maxReason {
		return text
	}
	text = text[:maxReason]
	for !utf8.ValidString(text) && len(text) > maxReason-utf8.UTFMax {
		text = text[:len(text)-1]
	}
	return text + "…"
}

// refuse does with a change what the policy says: an error that stops the worker, or a letter. After nil the change
// is to be passed over.
func (l *letters) refuse(ctx context.Context, o *origin, reason error) error {
	stop := &SinkError{Worker: l.opt.name, Position: o.position(), Copy: o.copy, Table: o.table(), Err: reason}
	if l.opt.policy != DeadLetter {
		return stop
	}
	e, head, body := o.letter()
	if len(e.Tables) > deadletter.MaxTables {
		stop.Err = fmt.Errorf("a TRUNCATE of %d tables is too large for a dead letter: %w", len(e.Tables), reason)
		return stop
	}
	head.Reason, head.Time = reasonOf(reason), time.Now()
	l.storing.Lock()
	defer l.storing.Unlock()
	l.mu.RLock()
	count, known := l.count, l.changes[e.Position] || l.copies[e.Copy]
	l.mu.RUnlock()
	if known {
		return nil
	}
	if count >= l.opt.letterLimit {
		stop.Err = fmt.Errorf("%w: %d changes lie there (WithDeadLetterLimit): mend the destination and call Replay, or raise the limit: %w", ErrDeadLetters, count, reason)
		return stop
	}
	if err := l.keep(ctx, e, head, body); err != nil {
		return fmt.Errorf("flo: worker %q: storing the dead letter %s (%w): %w", l.opt.name, e.ID(), reason, err)
	}
	l.status.letters(count+1, head.Reason)
	l.log.ErrorContext(ctx, "a change became a dead letter", slog.String("letter", e.ID()), slog.String("table", head.Table.String()),
		slog.String("op", head.Op), slog.String("reason", head.Reason), slog.Int("letters", count+1))
	return nil
}

// keep stores a letter or a mark, and remembers it. l.storing is held.
func (l *letters) keep(ctx context.Context, e *deadletter.Entry, head deadletter.Head, body []byte) error {
	if err := l.store.Create(ctx); err != nil {
		return err
	}
	if err := l.store.Put(ctx, e, head, body); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, *e)
	if e.Kind == deadletter.Emptied {
		l.index()
	} else {
		l.note(e)
	}
	l.present.Store(true)
	return nil
}

// follow is the reason of a change that comes behind a letter of its row.
func follow(id string) error {
	return fmt.Errorf("%w: it changes a row that has the dead letter %s, and has to be applied behind it: call Replay", ErrDeadLetters, id)
}

// truncated makes the letters of emptied tables obsolete, from the moment on at which the truncation is applied.
func (l *letters) truncated(ctx context.Context, at decode.Position, t *decode.Truncate) error {
	if !l.present.Load() {
		return nil
	}
	for _, rel := range t.Relations {
		e := deadletter.Entry{Kind: deadletter.Emptied, Position: at, Tables: []uint32{rel.OID}}
		l.mu.RLock()
		marked := slices.ContainsFunc(l.marks, func(m deadletter.Entry) bool { return m.Position == at && m.Tables[0] == rel.OID })
		some := slices.ContainsFunc(l.list, func(o deadletter.Entry) bool { return o.Obsolete(&e) })
		l.mu.RUnlock()
		if marked || !some {
			continue
		}
		l.storing.Lock()
		err := l.keep(ctx, &e, deadletter.Head{
			Position: &at, Table: rel.Qualified(), Op: decode.OpTruncate.String(), Time: time.Now(),
			Reason: "no letter: the table was emptied here, so that its letters from before are out of date",
		}, nil)
		l.storing.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// remove deletes all entries that match.
func (l *letters) remove(ctx context.Context, match func(*deadletter.Entry) bool) (n int, err error) {
	if !l.present.Load() {
		return 0, nil
	}
	l.storing.Lock()
	defer l.storing.Unlock()
	var kept []deadletter.Entry
	for i := range l.list { // only holders of storing write to it
		e := &l.list[i]
		if err == nil && match(e) {
			if err = l.store.Delete(ctx, e); err == nil {
				n++
				continue
			}
		}
		kept = append(kept, *e)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = kept
	l.index()
	l.status.letters(l.count, "")
	return n, err
}

// aborted forgets the letters of a transaction that comes again, whole and perhaps in another form.
func (l *letters) aborted(ctx context.Context, lsn decode.LSN) error {
	_, err := l.remove(ctx, func(e *deadletter.Entry) bool { return e.Kind != deadletter.Copied && e.Position.LSN == lsn })
	return err
}

// copiedAfresh forgets the letters of a table whose copy begins again at a point: the destination is emptied of
// what they would follow.
func (l *letters) copiedAfresh(ctx context.Context, cb *wire.CopyBegin) error {
	n, err := l.remove(ctx, func(e *deadletter.Entry) bool {
		if e.Kind == deadletter.Copied {
			return e.Copy.Table == cb.Table && e.Copy.Attempt < cb.Attempt
		}
		return len(e.Tables) == 1 && e.Tables[0] == cb.Table && e.Position.LSN < cb.Point
	})
	if n > 0 {
		l.log.InfoContext(ctx, "dead letters are out of date: their table is copied afresh", slog.Int("letters", n), slog.Uint64("table", uint64(cb.Table)))
	}
	return err
}
