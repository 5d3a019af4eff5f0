package sink

import "context"

// ChunkTrier is for a CopySink that can try rows and take them back. The worker then finds the row because of
// which a chunk is refused for good: it tries ever smaller beginnings of the chunk, and writes the chunk without
// the row, under its own ID. Without it, and if WriteChunk's error doesn't name the row (Reject counts from the
// chunk's first one), a chunk that is refused for good stops the worker, whatever its error policy.
type ChunkTrier interface {
	// TryChunk does what WriteChunk does, and leaves nothing behind. It records nothing: the rows of c may be
	// any of the chunk's.
	TryChunk(ctx context.Context, c *CopyChunk) error
}
