package flo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/crashpoint"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/sink"
)

type copyTask struct {
	t     *copyTable
	chunk wire.CopyChunk
	mark  *sequenceMark
	lazy  bool // the sink may lose it, until something that it may not lose is written behind it
}

// looseInterval is how long, at most, chunks stay loose: taken by the sink, perhaps not durable, and no part of the
// worker's checkpoint.
const looseInterval = reportInterval

// looseChunks are those that were written lazily, and that no later write has made durable.
type looseChunks struct {
	mu    sync.Mutex
	marks []*sequenceMark
	gone  int       // how many there were before
	firm  time.Time // when a write that is not lazy began last
}

// begin begins the writing of a chunk: lazily, or so that all that were loose by now, up to a number, are durable with it.
func (l *looseChunks) begin(now time.Time) (lazy bool, upTo int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if lazy = now.Sub(l.firm) < looseInterval; !lazy {
		l.firm = now
	}
	return lazy, l.gone + len(l.marks)
}

// add takes a chunk that was written lazily.
func (l *looseChunks) add(m *sequenceMark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks = append(l.marks, m)
}

// take gives those up to a number.
func (l *looseChunks) take(upTo int) []*sequenceMark {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(max(0, upTo-l.gone), len(l.marks))
	taken := slices.Clone(l.marks[:n])
	l.marks = append(l.marks[:0], l.marks[n:]...)
	l.gone += n
	return taken
}

func (d *drainer) writeChunks(ctx context.Context) error {
	for task := range d.tasks {
		t, upTo := task.t, 0
		dropped := t.dropped.Load()
		if !dropped {
			task.lazy, upTo = d.loose.begin(time.Now())
			if err := d.deliver(ctx, &task); err != nil {
				return err
			}
		}
		crashpoint.Reached(crashpoint.CopyWritten)
		t.mu.Lock()
		t.pending--
		last := t.pending == 0 && t.end != nil
		t.mu.Unlock()
		d.status.rowsCopied(task.chunk.Rows)
		if !dropped && task.lazy {
			d.loose.add(task.mark)
		} else {
			d.progress(append(d.loose.take(upTo), task.mark)...)
		}
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
	chunk := &sink.CopyChunk{Table: t.table, ID: c.ID, Rows: c.Rows, Data: c.Data, Epoch: d.epoch, Lazy: task.lazy}
	if t.binding.Copied != nil {
		var err error
		if chunk.Data, chunk.Rows, err = ruledChunk(t, c); err != nil {
			return d.copyError(t, c.ID, sink.Permanent(err))
		}
	}
	pack.CollectBefore(len(chunk.Data))
	return d.copyError(t, c.ID, d.feed.copy.WriteChunk(ctx, chunk))
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
