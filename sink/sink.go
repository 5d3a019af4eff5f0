// Package sink holds what flo's worker hands to a destination, and the interfaces that a destination
// implements. One method is required; the others are found once at start, also through an
// Unwrap() Sink method.
package sink

import (
	"context"
	"fmt"

	"github.com/pgflo/flo/decode"
)

// Sink is a destination.
//
// Write is never called concurrently. Batches come in commit order. If Write returns an error, the
// same changes come again, after a backoff, unless the error is Permanent; they may be cut into
// batches differently. A nil from a batch whose More is false means durable. Write must return soon
// after ctx ends.
type Sink interface {
	Write(ctx context.Context, b *Batch) error
}

// Func makes a Sink of a function.
type Func func(ctx context.Context, b *Batch) error

// Write calls f.
func (f Func) Write(ctx context.Context, b *Batch) error { return f(ctx, b) }

// Batch is a run of changes in commit order.
type Batch struct {
	// Changes and their bytes are valid until Write returns: Clone what is kept. May be empty when
	// only the checkpoint moves (an idle source, or all changes filtered).
	Changes []*decode.Change
	// More: the last transaction goes on in the next batch. A nil then means accepted, otherwise
	// durable. Only transactional sinks are given a transaction before its end is known.
	More bool
	// Checkpoint is opaque. A transactional sink stores it with the data. Zero while More.
	Checkpoint decode.Checkpoint
	// Epoch of the worker that writes: rises with each takeover; a sink may refuse a lower one.
	Epoch uint64
	// Lazy: a Flusher may return before the batch is durable. Others make nothing of it.
	Lazy bool
}

// Start tells a transactional sink who writes.
type Start struct {
	Group       string
	Worker      string
	Incarnation string // of the stream
	Epoch       uint64
}

// Transactional is a sink that keeps the checkpoint with the data, atomically. What it holds is then
// exactly once.
type Transactional interface {
	Sink
	// Open is called before the first Write, and again after an error, in which case what was open
	// is rolled back first. It returns the checkpoint that stands with the data (zero if none), of
	// whichever incarnation: the worker judges it. It fails with ErrLeaseLost if a later epoch than
	// s.Epoch has opened it.
	Open(ctx context.Context, s Start) (decode.Checkpoint, error)
	// Abort forgets the transaction that batches with More have begun.
	Abort(ctx context.Context) error
}

// CopySink takes raw COPY bytes for the initial copy.
//
// Of one table, BeginTable comes first, then WriteChunk on several goroutines in any order, then
// EndTable. After a crash all of them may come again: BeginTable with the same attempt must keep what
// the chunks of that attempt have written, with another attempt (or another incarnation) it must
// empty the table of what an earlier attempt wrote; WriteChunk must do nothing for a chunk that it
// has written before. A table may be left before its end, for a later attempt; that one may come between
// streamed changes of others.
type CopySink interface {
	Sink
	BeginTable(ctx context.Context, t CopyTable) error
	WriteChunk(ctx context.Context, c *CopyChunk) error
	EndTable(ctx context.Context, t CopyTable) error
}

// CopyTable is one table of one copy attempt.
type CopyTable struct {
	// Relation names the destination (routing has been done) and its columns, in the order in which
	// they stand in the chunks.
	Relation *decode.Relation
	// From is the table as the source has it, before rules and routing; nil if that is not known.
	From    *decode.Relation
	Source  uint32 // the source table's OID
	Attempt uint32
	Point   decode.LSN // the snapshot's consistent point
	// Chunks and Rows of the whole table at the source; set for EndTable only.
	Chunks, Rows uint64
	// Resumed: the worker has handed over chunks of this attempt before, and some of them may no longer
	// be in the stream. A sink that knows nothing of the attempt must then fail, since it has lost them.
	Resumed bool
	// Base and Kept tell what of earlier attempts still counts: of this incarnation's attempts below Base
	// nothing does; of later ones, and of streamed changes, the rows that came from the source tables in
	// Kept do, should they stand in the same destination table. BeginTable must leave those, and empty the table of
	// what other sources, this one in an earlier attempt included, have brought; if it can't tell them apart it
	// fails with a *TogetherError. A destination table into which one source table goes needs neither.
	Base uint32
	Kept []uint32
	// Filtered: rules may have dropped rows, so that fewer than Rows were written.
	Filtered bool
	// Schema is how the table stands at Point, where schema changes are replicated (flo.WithDDL), as a Baseline: the
	// table itself, those that it is a partition of, and their types, as the rules leave them. Point may be later
	// than the last schema change that the sink was given, and those up to Point don't come any more.
	Schema *decode.SchemaChange
}

// TogetherError is BeginTable's answer when rows of other source tables, which still count, stand in the
// destination table among rows that have to go. The worker then has all of them copied afresh together.
type TogetherError struct {
	Table   string   // the destination
	Sources []uint32 // OIDs, this source's included
}

func (e *TogetherError) Error() string {
	return fmt.Sprintf("rows of %d source tables stand in %s: they have to be copied afresh together", len(e.Sources), e.Table)
}

// CopyChunk is a run of whole rows in PostgreSQL's COPY text format, each row ended by '\n'.
// https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2
type CopyChunk struct {
	Table CopyTable
	ID    decode.CopyID // Row is the first row's number in its range
	Rows  uint64
	Data  []byte // valid until WriteChunk returns
	Epoch uint64
	// Lazy: it needn't be durable when WriteChunk returns. A later WriteChunk that is not lazy, or EndTable, makes
	// what was written before it began durable; what a crash loses before that comes again. A sink may ignore it.
	Lazy bool
}

// Validator is for sinks whose constructor returns no error: flo.New asks it, and reports what is wrong
// with all other bad options. It does no I/O.
type Validator interface {
	Validate() error
}

// Closer is for sinks that hold something. Close is called once, after the last call.
type Closer interface {
	Close(ctx context.Context) error
}
