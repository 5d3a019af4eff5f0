package flo

import (
	"context"
	"fmt"
	"unsafe"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
)

// batch is what the decoding stage builds and the sink's stage writes.
type batch struct {
	sink.Batch
	arena    *decode.Arena
	origins  []origin // of Changes, as they came; only where they may become dead letters
	bytes    int
	whole    int           // changes up to the end of the last finished transaction
	moved    bool          // the checkpoint moved, though perhaps no change came
	abort    bool          // the sink has to forget the transaction that batches with More began
	finished bool          // a CopyOnly group ends here
	barrier  chan struct{} // closed once all batches before it are written; it carries nothing itself
}

// batchArenas is how many batches exist: one being decoded, one being written, and one between.
const batchArenas = 3

// newBatch takes an arena that the sink's stage is done with.
func (f *feed) newBatch() *batch {
	f.turn = (f.turn + 1) % batchArenas
	slot := &f.arenas[f.turn]
	if slot.arena == nil {
		slot.arena = decode.NewArena()
	}
	slot.arena.Reset()
	slot.batch = &batch{arena: slot.arena}
	slot.batch.Changes = slot.changes[:0]
	clear(slot.origins) // lets go of the frames
	slot.batch.origins = slot.origins[:0]
	slot.batch.Checkpoint = f.cp
	return slot.batch
}

type arenaSlot struct {
	arena   *decode.Arena
	changes []*decode.Change
	origins []origin
	batch   *batch
}

// add appends a change that passed the rules. What the decoded values take counts, too: in a table of many columns
// that is more than what came.
func (b *batch) add(c *decode.Change, bytes int) {
	b.Changes = append(b.Changes, c)
	b.bytes += bytes + (len(c.New)+len(c.Old))*int(unsafe.Sizeof(decode.Value{}))
}

func (f *feed) full() bool {
	return len(f.batch.Changes) >= f.opt.batchSize || f.batch.bytes >= f.opt.batchBytes
}

// ready reports whether the batch may go as it is: it ends with a whole transaction, and there is
// something to say.
func (f *feed) ready() bool {
	return f.batch.moved && f.batch.whole == len(f.batch.Changes)
}

// emit hands the batch over and begins another one.
func (f *feed) emit(ctx context.Context) error {
	b := f.seal()
	select {
	case f.out <- b:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	f.sent()
	return nil
}

// barrier returns when the sink has written all that was handed over: from then on it may be called
// from elsewhere.
func (f *feed) barrier(ctx context.Context) error {
	done := make(chan struct{})
	select {
	case f.out <- &batch{barrier: done}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// seal readies the batch for the sink.
func (f *feed) seal() *batch {
	b := f.batch
	b.More = b.whole != len(b.Changes) || f.midTransaction() && !b.moved
	b.Checkpoint = f.cp
	if b.More {
		b.Checkpoint = decode.Checkpoint{}
	}
	return b
}

// sent begins another batch. The slot's slice is kept with what it has grown to.
func (f *feed) sent() {
	slot := &f.arenas[f.turn]
	slot.changes, slot.origins = slot.batch.Changes, slot.batch.origins
	if f.tx != nil && f.batch.More { // the sink reads the Tx that it has; its end is written into another
		tx := *f.tx
		f.tx = &tx
	}
	f.batch = f.newBatch()
	f.since = noTime
}

// applyRules runs the rules on a change, and reports whether it stays.
func applyRules(binder *rules.Binder, c *decode.Change) (bool, error) {
	if c.Truncate != nil {
		t, keep, err := binder.Truncate(c.Truncate)
		if err != nil {
			return false, fmt.Errorf("rule: %w", err)
		}
		c.Truncate = t
		return keep, nil
	}
	if c.Schema != nil {
		s, err := binder.Schema(c.Schema)
		if err != nil {
			return false, fmt.Errorf("rule: %w", err)
		}
		c.Schema = s
		return true, nil
	}
	if c.Relation == nil {
		return true, nil
	}
	b, err := binder.Bind(c.Relation)
	if err != nil {
		return false, fmt.Errorf("rule: %w", err)
	}
	c.Relation = b.Out
	run := b.Func
	if c.Copy != nil {
		run = b.Copied
	}
	if run == nil {
		return true, nil
	}
	keep, err := run(c)
	if err != nil {
		return false, fmt.Errorf("rule: %w", err)
	}
	return keep, nil
}
