package sink

import "context"

// Flusher is for a transactional sink that may return from Write before a batch would survive a crash of the
// destination's server. Only batches that are Lazy may be left so; a nil from any other one means that it is durable,
// and so is all that was written before it.
//
// The worker lets nobody throw away what a batch was made of before it is durable, and calls Flush within a tenth of a
// second. A crash in between takes the sink back to a checkpoint of before, from which Open lets it go on: what is lost
// comes again.
type Flusher interface {
	Transactional
	// Flush returns once all that Write has returned nil for is durable. It is called by the goroutine that calls
	// Write, and not while a transaction goes on (More). After an error Open has to be called.
	Flush(ctx context.Context) error
	// Lags reports whether Write makes use of Lazy at all.
	Lags() bool
}
