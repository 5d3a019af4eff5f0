package flo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
)

// copyTable is a table of a round.
type copyTable struct {
	in      *decode.Relation // as the chunks have it
	binding *rules.Binding
	table   sink.CopyTable
	dropped atomic.Bool // a later attempt copies it

	mu      sync.Mutex
	pending int    // chunks in the sink's hands
	seen    uint64 // chunks that were handed out in this session
	end     *wire.CopyEnd
	ended   *sequenceMark
}

const (
	// attemptPoll is how often a worker that waits for a copy looks whether a later attempt has begun.
	attemptPoll = time.Second
	// beginPoll is how often it looks for the copy's beginning, which waits for the snapshot; and the first time of one that
	// waits for the stream's.
	beginPoll = 50 * time.Millisecond
)

func (f *feed) copyDone(rec wire.Record) error {
	var d wire.CopyDone
	if err := rec.JSON(&d); err != nil {
		return err
	}
	if d.Finished {
		f.batch.finished, f.batch.moved = true, true
		f.batch.whole = len(f.batch.Changes)
	}
	return nil
}

// drainer drains one round into the sink.
type drainer struct {
	*feed
	round *round
	// Of the goroutine that reads:
	unread  map[uint32]bool // tables whose end was not read yet
	dropped map[uint32]bool // tables that a later attempt copies
	later   uint32          // the latest attempt that was looked at
	parts   joiner
	torn    time.Time // when a CopyOnly copy was found incomplete; zero: it was not

	skip   string // of the checkpoints within the copy
	tables map[uint32]*copyTable
	marks  sequenceMarks
	loose  looseChunks
	tasks  chan copyTask
	mu     sync.Mutex
}

// copyQueue is how many chunks wait for a free connection of the sink.
const copyQueue = 2

// drain reads a round's copy from where the worker's record says, hands the chunks to the sink on several
// goroutines, and returns when every table is whole, or is left to a later round.
func (f *feed) drain(ctx context.Context, r *round) error {
	d := &drainer{feed: f, round: r, unread: map[uint32]bool{}, dropped: map[uint32]bool{}, tables: map[uint32]*copyTable{}, tasks: make(chan copyTask, copyQueue)}
	for _, table := range r.tables {
		d.unread[table] = true
		f.setSkip(table, pending)
	}
	d.skip = formatSkips(f.skips)
	f.status.set(PhaseCopying)
	f.status.copying(len(r.tables))
	if err := f.barrier(ctx); err != nil {
		return err
	}
	from := r.seq + 1
	if f.place.cp.CopyAttempt == r.attempt {
		from = max(from, f.place.cp.CopySeq+1)
	}
	d.report.checkpoint(d.copyCheckpoint(from-1), false) // so that WaitFor sees that tables wait for their copy
	if err := d.supersede(ctx); err != nil {
		return err
	}
	d.keepTogether(ctx)
	if err := d.describe(ctx); err != nil {
		return err
	}
	if err := d.resume(ctx, from); err != nil {
		return err
	}
	if err := d.planned(ctx, func() error {
		if err := d.beginTables(ctx, from > r.seq+1); err != nil {
			return err
		}
		return d.copy(ctx, from)
	}); err != nil {
		return err
	}
	for _, table := range r.tables {
		switch t := d.tables[table]; {
		case t == nil || d.dropped[table]:
			f.setSkip(table, pending)
		default:
			f.setSkip(table, t.table.Point)
		}
	}
	f.report.got(slices.DeleteFunc(slices.Clone(r.tables), func(t uint32) bool { return d.dropped[t] }))
	return f.report.flush(ctx) // what is wanted, before the checkpoint moves
}

// planned copies between the calls by which a sink.CopyPlanner is told of all tables.
func (d *drainer) planned(ctx context.Context, copyAll func() error) error {
	planner := sink.As[sink.CopyPlanner](d.opt.sink)
	if planner == nil {
		return copyAll()
	}
	tables := func() (out []sink.CopyTable) {
		for _, oid := range slices.Sorted(maps.Keys(d.tables)) {
			if !d.dropped[oid] {
				out = append(out, d.tables[oid].table)
			}
		}
		return out
	}
	for {
		if len(tables()) == 0 {
			return nil
		}
		err := planner.BeginCopy(ctx, tables())
		if err == nil {
			break
		}
		var ahead *sink.AheadError
		if errors.As(err, &ahead) && d.putOff(ctx, ahead) {
			continue
		}
		if given, serr := d.givenUp(ctx); serr != nil || !given {
			return errors.Join(serr, d.sinkError(nil, err))
		}
	}
	if err := copyAll(); err != nil {
		return err
	}
	d.keepTogether(ctx)
	if whole := tables(); len(whole) > 0 {
		if err := planner.EndCopy(ctx, whole); err != nil {
			var ahead *sink.AheadError
			if errors.As(err, &ahead) && d.putOff(ctx, ahead) {
				return nil
			}
			return d.sinkError(nil, err)
		}
	}
	return nil
}

// putOff leaves tables to a later copy. It reports whether it has left out any.
func (d *drainer) putOff(ctx context.Context, ahead *sink.AheadError) bool {
	if d.round.copyOnly { // no stream, and its tables are of one snapshot
		return false
	}
	before := len(d.dropped)
	d.want(ctx, ahead.Error(), ahead.Sources...)
	for _, table := range ahead.Sources {
		if d.tables[table] != nil {
			d.drop(table)
		}
	}
	d.keepTogether(ctx)
	return len(d.dropped) > before
}

// givenUp looks, after an error of the sink, whether it was about tables that a later attempt has taken over: renamed
// or dropped, perhaps, since their copy began.
func (d *drainer) givenUp(ctx context.Context) (bool, error) {
	before := len(d.dropped)
	if err := d.supersede(ctx); err != nil {
		return false, err
	}
	d.keepTogether(ctx)
	return len(d.dropped) > before, nil
}

// keepTogether gives all tables up if one was given up and the sink wants them all together: it then waits for a
// round that has all of them.
func (d *drainer) keepTogether(ctx context.Context) {
	planner := sink.As[sink.CopyPlanner](d.opt.sink)
	if planner == nil || !planner.CopiesTogether() {
		return
	}
	mine := map[uint32]bool{}
	for _, table := range d.round.tables {
		mine[table] = true
	}
	all := slices.Clone(d.round.tables)
	for table, lsn := range d.skips {
		if lsn == pending && !mine[table] && slices.Contains(d.round.kept, table) {
			all = append(all, table)
		}
	}
	if len(d.dropped) == 0 && len(all) == len(d.round.tables) {
		return
	}
	d.want(ctx, "the sink makes tables' keys and foreign keys behind a copy that has all of them", all...)
	for _, table := range d.round.tables {
		d.drop(table)
	}
}

// resume takes out the tables that ended below from: all of them is in the sink.
func (d *drainer) resume(ctx context.Context, from uint64) error {
	d.marks.done = from - 1
	for seq := d.round.seq + 1; seq < from; seq++ {
		m, err := d.stream.Next(ctx, seq, d.stream.CopyEndFilter(d.round.attempt))
		if errors.Is(err, bus.ErrEmpty) {
			return nil
		}
		if err != nil {
			return err
		}
		if m.Seq >= from {
			return nil
		}
		seq = m.Seq
		_, table, _ := d.stream.ParseCopySubject(m.Subject)
		if d.unread[table] {
			delete(d.unread, table)
			d.status.tableCopied()
		}
	}
	return nil
}

// beginTables readies the sink.
func (d *drainer) beginTables(ctx context.Context, resumed bool) error {
	for _, table := range slices.Sorted(maps.Keys(d.unread)) {
		t := d.tables[table]
		t.table.Resumed = resumed
		if d.feed.copy == nil {
			continue
		}
		err := d.feed.copy.BeginTable(ctx, t.table)
		var together *sink.TogetherError
		if errors.As(err, &together) {
			d.want(ctx, err.Error(), together.Sources...)
			d.drop(table)
			continue
		}
		id := decode.CopyID{Attempt: d.round.attempt, Table: table, Point: t.table.Point}
		if err := d.copyError(t, id, err); err != nil {
			if given, serr := d.givenUp(ctx); serr != nil || !given || !d.dropped[table] {
				return errors.Join(serr, err)
			}
		}
	}
	return nil
}

// copy hands the chunks to the sink.
func (d *drainer) copy(ctx context.Context, from uint64) error {
	writers := 1
	if p := sink.As[interface{ Parallel() int }](d.opt.sink); p != nil && d.feed.copy != nil {
		writers = max(1, p.Parallel())
	}
	g, gctx := errgroup.WithContext(ctx)
	for range writers {
		g.Go(func() error { return d.writeChunks(gctx) })
	}
	g.Go(func() error {
		defer close(d.tasks)
		return d.read(gctx, from)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	d.progress(d.loose.take(math.MaxInt)...) // of tables that were given up
	return nil
}

// read hands out what the stream holds until all tables have ended.
func (d *drainer) read(ctx context.Context, from uint64) error {
	if len(d.unread) == 0 {
		return nil
	}
	r := d.stream.Read(ctx, d.stream.CopyFilter(d.round.attempt), from, bus.ReaderOptions{PullMaxBytes: prefetchBytes})
	defer r.Close()
	for len(d.unread) > 0 {
		wait, cancel := context.WithTimeout(ctx, attemptPoll)
		m, err := r.Next(wait)
		cancel()
		idle := err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded)
		if idle || !d.torn.IsZero() {
			if err := d.supersede(ctx); err != nil {
				return err
			}
			if !d.torn.IsZero() && time.Since(d.torn) > tornBound {
				return fmt.Errorf("%w: worker %q: copied rows are missing in the stream, and no new copy has begun; %s", ErrGap, d.opt.name, startOver)
			}
		}
		if idle {
			continue
		}
		if err != nil {
			return err
		}
		if err := d.message(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// tornBound is how long a worker waits for the attempt that has to follow a CopyOnly copy that can't be whole.
const tornBound = time.Minute

// incomplete gives up a table of which something is missing in the stream.
func (d *drainer) incomplete(ctx context.Context, table uint32) error {
	if err := d.supersede(ctx); err != nil || !d.unread[table] {
		return err
	}
	if d.round.copyOnly { // its tables are of one snapshot: they can only be copied again all together
		if d.torn.IsZero() {
			d.torn = time.Now()
			d.want(ctx, "copied rows are missing in the stream", table)
		}
		return nil
	}
	d.want(ctx, "copied rows are missing in the stream", table)
	d.drop(table)
	return nil
}

// message takes one message of the copy.
func (d *drainer) message(ctx context.Context, m bus.Message) error {
	h, body, err := wire.Parse(m.Data)
	if err != nil {
		return fmt.Errorf("flo: copy message %d: %w", m.Seq, err)
	}
	body, ok, torn := d.parts.add(m.Seq, &h, body)
	if torn { // this attempt can't be whole any more; a later one purges what it left, and is about to say so
		_, table, _ := d.stream.ParseCopySubject(m.Subject)
		return d.incomplete(ctx, table)
	}
	if !ok {
		return nil
	}
	return wire.Walk(body, func(rec wire.Record) error {
		switch rec.Type {
		case wire.RecCopyChunk:
			return d.chunk(ctx, m.Seq, rec)
		case wire.RecCopyEnd:
			return d.end(ctx, m.Seq, rec)
		case wire.RecDescribe, wire.RecCopyBegin:
			return nil // taken before
		}
		return fmt.Errorf("%w: record %#x in copy message %d", wire.ErrFormat, byte(rec.Type), m.Seq)
	})
}

func (d *drainer) chunk(ctx context.Context, seq uint64, rec wire.Record) error {
	c, err := wire.ParseCopyChunk(rec.Data)
	if err != nil {
		return err
	}
	t := d.tables[c.ID.Table]
	if !d.unread[c.ID.Table] {
		d.progress(d.marks.add(seq))
		return nil
	}
	t.mu.Lock()
	t.pending++
	t.seen++
	t.mu.Unlock()
	select {
	case d.tasks <- copyTask{t: t, chunk: c, mark: d.marks.add(seq)}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// end notes that all of a table's chunks were handed out; whoever writes the last one ends the table.
func (d *drainer) end(ctx context.Context, seq uint64, rec wire.Record) error {
	var e wire.CopyEnd
	if err := rec.JSON(&e); err != nil {
		return err
	}
	t := d.tables[e.Table]
	if !d.unread[e.Table] {
		d.progress(d.marks.add(seq))
		return nil
	}
	t.mu.Lock()
	if !t.table.Resumed && t.seen != e.Chunks { // NATS has lost some, or a later attempt has purged them already
		t.mu.Unlock()
		return d.incomplete(ctx, e.Table)
	}
	t.end, t.ended = &e, d.marks.add(seq)
	last := t.pending == 0
	t.mu.Unlock()
	delete(d.unread, e.Table)
	if last {
		return d.endTable(ctx, t)
	}
	return nil
}

func (d *drainer) endTable(ctx context.Context, t *copyTable) error {
	_, upTo := d.loose.begin(time.Now())
	if d.feed.copy != nil {
		table := t.table
		table.Chunks, table.Rows = t.end.Chunks, t.end.Rows-min(t.end.Rows, d.letters.copied(t.table.Source, t.table.Attempt))
		id := decode.CopyID{Attempt: d.round.attempt, Table: t.table.Source, Point: t.table.Point}
		if err := d.copyError(t, id, d.feed.copy.EndTable(ctx, table)); err != nil {
			return err
		}
	}
	d.status.tableCopied()
	d.progress(append(d.loose.take(upTo), t.ended)...)
	return nil
}

// progress records how far the copy is drained without a hole.
func (d *drainer) progress(marks ...*sequenceMark) {
	d.mu.Lock()
	defer d.mu.Unlock()
	reached, moved := uint64(0), false
	for _, m := range marks {
		if seq, ok := d.marks.finish(m); ok {
			reached, moved = seq, true
		}
	}
	if moved {
		d.report.checkpoint(d.copyCheckpoint(reached), false)
	}
}

// copyCheckpoint is the checkpoint within the copy.
func (d *drainer) copyCheckpoint(seq uint64) decode.Checkpoint {
	cp := d.cp
	cp.Incarnation = d.stream.Incarnation()
	cp.CopyAttempt, cp.CopySeq, cp.Skip = d.round.attempt, seq, d.skip
	return cp
}
