package flo

import (
	"context"
	"errors"
	"fmt"

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
}

func (d *drainer) writeChunks(ctx context.Context) error {
	for task := range d.tasks {
		t := task.t
		if !t.dropped.Load() {
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
		d.progress(task.mark)
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
	chunk := &sink.CopyChunk{Table: t.table, ID: c.ID, Rows: c.Rows, Data: c.Data, Epoch: d.epoch}
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
