package flo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/sink"
)

// copiedRow is a row of a chunk that the rules let pass.
type copiedRow struct {
	id     decode.CopyID
	line   []byte         // as it came, with its newline
	out    []byte         // as the sink's chunk has it
	change *decode.Change // nil where the chunk goes as it is
}

// deliver gives a chunk to the sink: whole if that goes, otherwise without the rows that can't be applied.
func (d *drainer) deliver(ctx context.Context, task *copyTask) error {
	if d.feed.copy == nil {
		return d.writeRows(ctx, task)
	}
	if d.letters.inChunk(&task.chunk) {
		return d.writeRemainder(ctx, task)
	}
	err := d.writeChunk(ctx, task)
	var refused *SinkError
	if !errors.As(err, &refused) {
		return err
	}
	d.log.InfoContext(ctx, "a chunk of copied rows was refused: searching the row", slog.String("chunk", task.chunk.ID.String()), slog.Any("error", refused.Err))
	return d.writeRemainder(ctx, task)
}

// rows decodes a chunk, if rules or the sink need that, and lets the rules run. Rows that have letters are left
// out, and those that fail get one, or stop the worker.
func (d *drainer) rows(ctx context.Context, task *copyTask) ([]copiedRow, error) {
	t, c := task.t, &task.chunk
	arena := decode.NewArena()
	rows := make([]copiedRow, 0, min(c.Rows, uint64(len(c.Data))))
	id := c.ID
	for data := c.Data; len(data) > 0; id.Row++ {
		end := bytes.IndexByte(data, '\n') + 1 // a newline within a value is escaped
		if end == 0 {
			end = len(data)
		}
		row := copiedRow{id: id, line: data[:end], out: data[:end]}
		data = data[end:]
		if d.letters.hasRow(id) {
			continue
		}
		if d.feed.copy != nil && t.binding.Copied == nil {
			rows = append(rows, row)
			continue
		}
		keep, err := row.rule(t, arena)
		if err == nil && keep && d.feed.copy != nil {
			row.out, err = decode.AppendCopyRow(nil, row.change.New)
		}
		if err != nil {
			if err := d.letters.refuse(ctx, row.origin(t), err); err != nil {
				return nil, err
			}
			continue
		}
		if keep {
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// rule decodes the row and runs the rules on it.
func (r *copiedRow) rule(t *copyTable, arena *decode.Arena) (keep bool, err error) {
	values, ok, err := decode.NewCopyReader(t.in, r.line).Next(arena)
	if err == nil && !ok {
		err = decode.ErrMalformed
	}
	if err != nil {
		return false, fmt.Errorf("the row can't be decoded: %w", err)
	}
	r.change = arena.CopiedRow(t.binding.Out, r.id, values)
	if t.binding.Copied == nil {
		return true, nil
	}
	if keep, err = t.binding.Copied(r.change); err != nil {
		err = fmt.Errorf("rule: %w", err)
	}
	return keep, err
}

func (r *copiedRow) origin(t *copyTable) *origin {
	id := r.id
	return &origin{frame: r.line, relation: t.in, copy: &id}
}

// writeRows gives a chunk's rows to a sink that takes no raw chunks. There is one writer then, so
// that batches come in order.
func (d *drainer) writeRows(ctx context.Context, task *copyTask) error {
	rows, err := d.rows(ctx, task)
	if err != nil {
		return err
	}
	b := &batch{}
	for i := range rows {
		b.add(rows[i].change, 0)
		if d.opt.policy == DeadLetter {
			b.origins = append(b.origins, *rows[i].origin(task.t))
		}
	}
	d.mu.Lock()
	b.Checkpoint = d.copyCheckpoint(task.mark.seq)
	d.mu.Unlock()
	return d.writeBatch(ctx, b)
}

// searchRows finds the first copied row that a sink without raw chunks refuses. One that is transactional forgets
// each try; another keeps what it takes. It
// gives -1 if only the batch as a whole is refused, the number of rows if they were all taken in the end.
func (s *working) searchRows(ctx context.Context, b *batch) (int, error) {
	lo, hi := 0, len(b.Changes) // the rows below lo were taken, those below hi, all together, not
	for lo < hi {
		mid := lo + (hi-lo)/2
		from := lo
		if s.tx != nil {
			from = 0
			if err := s.rewind(ctx); err != nil {
				return -1, err
			}
		}
		err := s.opt.sink.Write(ctx, &sink.Batch{Changes: b.Changes[from : mid+1], More: true, Epoch: s.epoch})
		switch {
		case err == nil:
			lo = mid + 1
		case aboutChanges(err):
			if i, ok := rejected(b, err); ok {
				return from + i, nil
			}
			hi = mid
		default:
			return -1, s.sinkError(nil, err)
		}
	}
	if lo < len(b.Changes) {
		return lo, nil
	}
	if s.tx != nil {
		return -1, nil
	}
	if err := s.opt.sink.Write(ctx, &sink.Batch{Checkpoint: b.Checkpoint, Epoch: s.epoch}); err != nil {
		return -1, s.sinkError(nil, err)
	}
	return lo, nil
}

// rewind takes back what the sink has of a transaction that is not to be.
func (s *working) rewind(ctx context.Context) error {
	if err := s.tx.Abort(ctx); err != nil {
		return s.sinkError(nil, err)
	}
	if _, err := s.tx.Open(ctx, s.opening()); err != nil {
		return s.sinkError(nil, err)
	}
	return nil
}

// writeRemainder writes a chunk under its own ID without the rows that have letters or can't be applied.
func (d *drainer) writeRemainder(ctx context.Context, task *copyTask) error {
	rows, err := d.rows(ctx, task)
	if err != nil {
		return err
	}
	t := task.t
	for good := 0; ; {
		err := d.feed.copy.WriteChunk(ctx, d.chunkOf(task, rows))
		if err == nil || !aboutChanges(err) {
			return d.copyError(t, task.chunk.ID, err)
		}
		i, found, serr := d.searchChunk(ctx, task, rows, good, err)
		if serr != nil {
			return d.copyError(t, task.chunk.ID, serr)
		}
		if !found {
			if sink.As[sink.ChunkTrier](d.opt.sink) == nil {
				err = fmt.Errorf("no row is named, and the sink is no sink.ChunkTrier, by which the worker could find it: %w", err)
			}
			return d.copyError(t, task.chunk.ID, err)
		}
		if err := d.letters.refuse(ctx, rows[i].origin(t), plainReason(err)); err != nil {
			return err
		}
		rows, good = slices.Delete(rows, i, i+1), i
	}
}

// searchChunk finds the first row because of which a chunk is refused; all below good are not.
func (d *drainer) searchChunk(ctx context.Context, task *copyTask, rows []copiedRow, good int, refused error) (int, bool, error) {
	var rej *sink.RejectError
	if errors.As(refused, &rej) && rej.Index >= 0 && rej.Index < len(rows) {
		return rej.Index, true, nil
	}
	trier := sink.As[sink.ChunkTrier](d.opt.sink)
	if trier == nil {
		return 0, false, nil
	}
	if err := trier.TryChunk(ctx, d.chunkOf(task, nil)); err != nil {
		if aboutChanges(err) {
			return 0, false, nil // not because of any row
		}
		return 0, false, err
	}
	lo, hi := good, len(rows) // rows[:lo] can be written, rows[:hi] can't
	for lo < hi {
		mid := lo + (hi-lo)/2
		err := trier.TryChunk(ctx, d.chunkOf(task, rows[:mid+1]))
		switch {
		case err == nil:
			lo = mid + 1
		case aboutChanges(err):
			hi = mid
		default:
			return 0, false, err
		}
	}
	return lo, lo < len(rows), nil
}

// chunkOf is the task's chunk with some of its rows only.
func (d *drainer) chunkOf(task *copyTask, rows []copiedRow) *sink.CopyChunk {
	size := 0
	for i := range rows {
		size += len(rows[i].out)
	}
	pack.CollectBefore(size)
	data := make([]byte, 0, size)
	for i := range rows {
		data = append(data, rows[i].out...)
	}
	return &sink.CopyChunk{Table: task.t.table, ID: task.chunk.ID, Rows: uint64(len(rows)), Data: data, Epoch: d.epoch, Lazy: task.lazy}
}
