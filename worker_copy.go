package flo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
)

// attempt is a copy that the worker has to drain before it goes on in `changes`.
type attempt struct {
	start  wire.Start
	seq    uint64 // of the Start message
	tables map[uint32]*copyTable
}

type copyTable struct {
	in      *decode.Relation // as the chunks have it
	binding *rules.Binding
	table   sink.CopyTable

	mu      sync.Mutex
	pending int    // chunks in the sink's hands
	seen    uint64 // chunks that were handed out in this session
	end     *wire.CopyEnd
	ended   *sequenceMark
}

// attemptPoll is how often a worker that waits for a copy looks whether a later attempt has begun.
const attemptPoll = time.Second

// errSuperseded says that an attempt was given up for a later one.
var errSuperseded = errors.New("flo: the copy was begun again")

// started takes an attempt's Start: what came before it counts no more.
func (f *feed) started(ctx context.Context, seq uint64, h *wire.Header, rec wire.Record) error {
	var st wire.Start
	if err := rec.JSON(&st); err != nil {
		return err
	}
	if st.Attempt <= f.cp.Attempt {
		return nil
	}
	if err := f.aborted(ctx); err != nil {
		return err
	}
	if f.batch.moved {
		if err := f.emit(ctx); err != nil {
			return err
		}
	}
	f.pos = wire.Point{LSN: f.pos.LSN, End: st.Point}
	f.superseded = 0
	if st.Copies == 0 {
		f.cp.Attempt = st.Attempt
		return nil
	}
	gone, err := f.laterAttempt(ctx, st.Attempt)
	if err != nil {
		return err
	}
	if gone {
		f.superseded = st.Attempt
		return nil
	}
	f.copying = &attempt{start: st, seq: seq, tables: map[uint32]*copyTable{}}
	return nil
}

func (f *feed) laterAttempt(ctx context.Context, than uint32) (bool, error) {
	tail, err := f.stream.Tail(ctx)
	if errors.Is(err, bus.ErrEmpty) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	h, _, err := wire.Parse(tail.Data)
	return h.Attempt > than, err
}

// copyBegin collects the attempt's tables; behind the last one the copy is drained.
func (f *feed) copyBegin(ctx context.Context, seq uint64, h *wire.Header, rec wire.Record) error {
	a := f.copying
	var cb wire.CopyBegin
	if err := rec.JSON(&cb); err != nil {
		return err
	}
	if a == nil || cb.Attempt != a.start.Attempt {
		return nil // drained already, or given up
	}
	rel, err := f.parser.Relation(cb.Relation)
	if err != nil {
		return err
	}
	b, err := f.bind(ctx, rel)
	if err != nil {
		return &SinkError{Worker: f.opt.name, Copy: &decode.CopyID{Point: cb.Point, Table: cb.Table, Attempt: cb.Attempt}, Table: rel.Qualified(), Err: fmt.Errorf("rule: %w", err)}
	}
	a.tables[cb.Table] = &copyTable{in: rel, binding: b, table: sink.CopyTable{Relation: b.Out, Source: cb.Table, Attempt: cb.Attempt, Point: cb.Point, Filtered: b.Copied != nil}}
	if len(a.tables) < a.start.Copies {
		return nil
	}
	if cb.Attempt == 1 { // the first one has all tables
		f.warnOfUnmet(ctx)
	}
	f.status.set(PhaseCopying)
	err = f.drain(ctx, a)
	f.copying = nil
	if errors.Is(err, errSuperseded) {
		f.superseded = a.start.Attempt
		return nil
	}
	if err != nil {
		return err
	}
	f.status.set(PhaseStreaming)
	f.cp = decode.Checkpoint{Attempt: a.start.Attempt}
	f.finish(seq, h, wire.Point{LSN: f.pos.LSN, End: a.start.Point})
	return f.emit(ctx)
}

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

// drainer drains one attempt's copy into the sink.
type drainer struct {
	*feed
	*attempt
	marks  sequenceMarks
	joined []byte
	part   uint32
	prev   uint64    // sequence of the last part
	torn   time.Time // when a part was found missing; zero: none is
	tasks  chan copyTask
	mu     sync.Mutex
	whole  int // tables that are whole without a hole before them
}

type copyTask struct {
	t     *copyTable
	chunk wire.CopyChunk
	mark  *sequenceMark
}

// copyQueue is how many chunks wait for a free connection of the sink.
const copyQueue = 2

// drain reads the attempt's copy messages from where the worker's record says, hands the chunks to the sink on
// several goroutines, and returns when every table is whole.
func (f *feed) drain(ctx context.Context, a *attempt) error {
	d := &drainer{feed: f, attempt: a, tasks: make(chan copyTask, copyQueue)}
	from := a.seq + 1
	if f.place.cp.CopyAttempt == a.start.Attempt {
		from, d.whole = max(from, f.place.cp.CopySeq+1), f.place.cp.CopyTables
	}
	d.marks.done = from - 1
	f.status.copying(a.start.Copies)
	if err := f.barrier(ctx); err != nil {
		return err
	}
	ended := d.whole
	g, gctx := errgroup.WithContext(ctx)
	writers := 1
	for _, t := range a.tables {
		t.table.Resumed = from > a.seq+1
	}
	if f.copy != nil {
		for _, t := range a.tables {
			if err := f.copyError(t, decode.CopyID{Attempt: a.start.Attempt, Table: t.table.Source, Point: t.table.Point}, f.copy.BeginTable(ctx, t.table)); err != nil {
				return err
			}
		}
		if p := sink.As[interface{ Parallel() int }](f.opt.sink); p != nil {
			writers = max(1, p.Parallel())
		}
	}
	for range writers {
		g.Go(func() error { return d.writeChunks(gctx) })
	}
	g.Go(func() error {
		defer close(d.tasks)
		return d.read(gctx, from, ended)
	})
	return g.Wait()
}

// read hands out what the stream holds until all tables have ended.
func (d *drainer) read(ctx context.Context, from uint64, ended int) error {
	r := d.stream.Read(ctx, d.stream.CopyFilter(d.start.Attempt), from, bus.ReaderOptions{PullMaxBytes: prefetchBytes})
	defer r.Close()
	for ended < d.start.Copies {
		wait, cancel := context.WithTimeout(ctx, attemptPoll)
		m, err := r.Next(wait)
		cancel()
		if !d.torn.IsZero() {
			if err := d.giveUp(ctx); err != nil {
				return err
			}
		}
		if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			gone, err := d.laterAttempt(ctx, d.start.Attempt)
			if err != nil {
				return err
			}
			if gone {
				return errSuperseded
			}
			continue
		}
		if err != nil {
			return err
		}
		n, err := d.message(ctx, m)
		if err != nil {
			return err
		}
		ended += n
	}
	return nil
}

// tornBound is how long a worker waits for the attempt that has to follow one that can't be whole.
const tornBound = time.Minute

// giveUp ends a torn attempt when a later one has begun.
func (d *drainer) giveUp(ctx context.Context) error {
	gone, err := d.laterAttempt(ctx, d.start.Attempt)
	switch {
	case err != nil:
		return err
	case gone:
		return errSuperseded
	case time.Since(d.torn) > tornBound:
		return fmt.Errorf("%w: worker %q: parts of copied rows are missing in the stream, and no new copy has begun. Call Drop and start over with a fresh copy", ErrGap, d.opt.name)
	}
	return nil
}

// message takes one message of the copy and gives how many tables it ends.
func (d *drainer) message(ctx context.Context, m bus.Message) (ended int, err error) {
	h, body, err := wire.Parse(m.Data)
	if err != nil {
		return 0, fmt.Errorf("flo: copy message %d: %w", m.Seq, err)
	}
	if h.Parts > 1 {
		if h.Part == 0 {
			d.joined, d.part = joinBuffer(&h, body), 0
		}
		follows := h.Part == 0 || m.Seq == d.prev+1 // parts stand on consecutive sequences
		d.prev = m.Seq
		if h.Part != d.part || !follows {
			// The rest of a message whose beginning is gone: this attempt can't be whole any more. A later
			// one purges what it left, and is about to say so.
			if d.joined, d.part = nil, 0; d.torn.IsZero() {
				d.torn = time.Now()
			}
			return 0, nil
		}
		d.joined = append(d.joined, body...)
		if d.part++; d.part < h.Parts {
			return 0, nil
		}
		body, d.joined, d.part = d.joined, nil, 0
	}
	err = wire.Walk(body, func(rec wire.Record) error {
		switch rec.Type {
		case wire.RecCopyChunk:
			return d.chunk(ctx, m.Seq, rec)
		case wire.RecCopyEnd:
			if err := d.end(ctx, m.Seq, rec); err != nil {
				return err
			}
			if d.torn.IsZero() { // a torn attempt never ends
				ended++
			}
			return nil
		}
		return fmt.Errorf("%w: record %#x in copy message %d", wire.ErrFormat, byte(rec.Type), m.Seq)
	})
	return ended, err
}

func (d *drainer) chunk(ctx context.Context, seq uint64, rec wire.Record) error {
	c, err := wire.ParseCopyChunk(rec.Data)
	if err != nil {
		return err
	}
	t := d.tables[c.ID.Table]
	if t == nil {
		return fmt.Errorf("%w: copied rows of table %d, which the attempt did not announce", wire.ErrFormat, c.ID.Table)
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
	if t == nil {
		return fmt.Errorf("%w: end of table %d, which the attempt did not announce", wire.ErrFormat, e.Table)
	}
	t.mu.Lock()
	if !t.table.Resumed && t.seen != e.Chunks { // a later attempt has purged the others already
		t.mu.Unlock()
		if d.torn.IsZero() {
			d.torn = time.Now()
		}
		return nil
	}
	t.end, t.ended = &e, d.marks.add(seq)
	last := t.pending == 0
	t.mu.Unlock()
	if last {
		return d.endTable(ctx, t)
	}
	return nil
}

func (d *drainer) endTable(ctx context.Context, t *copyTable) error {
	if d.copy != nil {
		table := t.table
		table.Chunks, table.Rows = t.end.Chunks, t.end.Rows
		id := decode.CopyID{Attempt: d.start.Attempt, Table: t.table.Source, Point: t.table.Point}
		if err := d.copyError(t, id, d.copy.EndTable(ctx, table)); err != nil {
			return err
		}
	}
	d.status.tableCopied()
	d.progress(t.ended, true)
	return nil
}

// progress records how far the copy is drained without a hole.
func (d *drainer) progress(m *sequenceMark, table bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	m.table = table
	if seq, tables, moved := d.marks.finish(m); moved {
		d.whole += tables
		d.report.checkpoint(d.copyCheckpoint(seq), false)
	}
}

// copyCheckpoint is the checkpoint within the copy; d.mu is held.
func (d *drainer) copyCheckpoint(seq uint64) decode.Checkpoint {
	cp := d.cp
	cp.Incarnation = d.stream.Incarnation()
	cp.CopyAttempt, cp.CopySeq, cp.CopyTables = d.start.Attempt, seq, d.whole
	return cp
}

func (d *drainer) writeChunks(ctx context.Context) error {
	for task := range d.tasks {
		if err := d.writeChunk(ctx, &task); err != nil {
			return err
		}
		t := task.t
		t.mu.Lock()
		t.pending--
		last := t.pending == 0 && t.end != nil
		t.mu.Unlock()
		d.status.rowsCopied(task.chunk.Rows)
		d.progress(task.mark, false)
		if last {
			if err := d.endTable(ctx, t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *drainer) writeChunk(ctx context.Context, task *copyTask) error {
	t, c := task.t, &task.chunk
	raw := t.binding.Copied == nil
	if d.copy == nil {
		return d.writeRows(ctx, task)
	}
	chunk := &sink.CopyChunk{Table: t.table, ID: c.ID, Rows: c.Rows, Data: c.Data, Epoch: d.epoch}
	if !raw {
		var err error
		if chunk.Data, chunk.Rows, err = ruledChunk(t, c); err != nil {
			return d.copyError(t, c.ID, sink.Permanent(err))
		}
	}
	pack.CollectBefore(len(chunk.Data))
	return d.copyError(t, c.ID, d.copy.WriteChunk(ctx, chunk))
}

// ruledChunk is the chunk as the rules leave it.
func ruledChunk(t *copyTable, c *wire.CopyChunk) (data []byte, rows uint64, err error) {
	data = make([]byte, 0, len(c.Data))
	err = eachRow(t, c, func(ch *decode.Change) error {
		rows++
		data, err = decode.AppendCopyRow(data, ch.New)
		return err
	})
	return data, rows, err
}

// eachRow decodes a chunk and gives the rows that the rules let pass.
func eachRow(t *copyTable, c *wire.CopyChunk, f func(*decode.Change) error) error {
	arena := decode.NewArena()
	r := decode.NewCopyReader(t.in, c.Data)
	id := c.ID
	for {
		row, ok, err := r.Next(arena)
		if err != nil || !ok {
			return err
		}
		ch := arena.CopiedRow(t.binding.Out, id, row)
		id.Row++
		if t.binding.Copied != nil {
			keep, err := t.binding.Copied(ch)
			if err != nil {
				return fmt.Errorf("rule: %w", err)
			}
			if !keep {
				continue
			}
		}
		if err := f(ch); err != nil {
			return err
		}
	}
}

// writeRows gives a chunk's rows to a sink that takes no raw chunks. There is one writer then, so
// that batches come in order.
func (d *drainer) writeRows(ctx context.Context, task *copyTask) error {
	b := &batch{}
	err := eachRow(task.t, &task.chunk, func(ch *decode.Change) error {
		b.add(ch, 0)
		return nil
	})
	if err != nil {
		return d.copyError(task.t, task.chunk.ID, sink.Permanent(err))
	}
	d.mu.Lock()
	b.Checkpoint = d.copyCheckpoint(task.mark.seq)
	d.mu.Unlock()
	return d.writeBatch(ctx, b)
}

// copyError says where a sink's error happened during the copy.
func (f *feed) copyError(t *copyTable, id decode.CopyID, err error) error {
	if err == nil {
		return nil
	}
	err = f.sinkError(nil, err)
	var e *SinkError
	if errors.As(err, &e) {
		e.Copy, e.Table = &id, t.in.Qualified()
	}
	return err
}
