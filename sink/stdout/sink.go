// Package stdout is a sink that writes each change as one line of JSON, to standard output or any
// io.Writer, for a pipe into another program or to see what flows. The fields of a line are described
// at decode.Change.AppendJSON; WithEncoder takes another envelope, WithPretty indents it for people.
package stdout

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/records"
	"github.com/pgflo/flo/sink"
)

// flushBytes is how much is gathered before it is written, if a batch is larger than that.
const flushBytes = 4 << 20

// Sink writes lines. It is at least once: after a failure or a restart changes come again, in order,
// each with its identity (lsn and ordinal, or copy) to drop repeats by. "Durable" is what the writer
// makes of it.
type Sink struct {
	w       io.Writer
	encode  decode.Encoder
	pretty  bool
	format  *records.Format
	buf     []byte
	pending chan error // the result of a write that outlived its context
	torn    bool       // the last write ended within a line
}

// Option changes what New makes.
type Option func(*Sink)

// WithWriter writes to w in place of os.Stdout. Each Write of w gets whole lines. w is not closed.
func WithWriter(w io.Writer) Option { return func(s *Sink) { s.w = w } }

// WithEncoder is the envelope of a change, for example decode.Debezium("shop"). Default, and what nil
// means: decode.JSON.
func WithEncoder(e decode.Encoder) Option { return func(s *Sink) { s.encode = e } }

// WithPretty indents the objects over several lines. A reader of JSON values takes them as well; one of
// lines doesn't.
func WithPretty() Option { return func(s *Sink) { s.pretty = true } }

// New makes a sink that writes to os.Stdout. It does no I/O.
func New(opts ...Option) *Sink {
	s := &Sink{w: os.Stdout}
	for _, o := range opts {
		o(s)
	}
	s.format = records.NewFormat(s.encode, s.pretty)
	return s
}

// Write writes a batch in one piece, a large one (above 4 MiB of lines) in several.
//
// A reader that does not read blocks it; when ctx ends it returns all the same, and the next Write
// first waits for what is still being written. A line that a failed write left torn is ended before
// anything else is written, so that only that one line is broken, and comes again whole.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("stdout sink: %w", err)
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	s.buf = s.buf[:0]
	if s.torn {
		s.buf = append(s.buf, '\n')
	}
	for i, c := range b.Changes {
		buf, _, err := s.format.Append(s.buf, c)
		if err != nil {
			return sink.Reject(i, fmt.Errorf("stdout sink: %w", err))
		}
		s.buf = buf
		if len(s.buf) >= flushBytes {
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
	}
	if len(b.Changes) == 0 {
		return nil
	}
	return s.flush(ctx)
}

// flush writes the buffer on a goroutine of its own, since a write to a pipe can't be interrupted. If
// ctx ends first the goroutine keeps the buffer.
func (s *Sink) flush(ctx context.Context) error {
	if len(s.buf) == 0 {
		return nil
	}
	buf, done := s.buf, make(chan error, 1)
	s.buf, s.pending = nil, done
	go func() {
		n, err := s.w.Write(buf)
		if err == nil && n < len(buf) {
			err = io.ErrShortWrite
		}
		if err != nil {
			err = &writeError{torn: n > 0 && n <= len(buf) && buf[n-1] != '\n', n: n, err: err}
		}
		done <- err
	}()
	if err := s.settle(ctx); err != nil {
		return err
	}
	if cap(buf) <= 2*flushBytes { // a huge row's buffer is not kept
		s.buf = buf[:0]
	}
	return nil
}

// settle waits for the write that is under way, if one is.
func (s *Sink) settle(ctx context.Context) error {
	if s.pending == nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("stdout sink: the reader does not read: %w", context.Cause(ctx))
	case err := <-s.pending:
		s.pending = nil
		return s.wrote(err)
	}
}

// wrote remembers how the output ends: in mid-line, or not.
func (s *Sink) wrote(err error) error {
	w, failed := err.(*writeError)
	if !failed {
		s.torn = false
		return err
	}
	if w.n > 0 {
		s.torn = w.torn
	}
	return w
}

// writeError is a failed write, and where it left the output.
type writeError struct {
	torn bool
	n    int
	err  error
}

func (e *writeError) Error() string { return fmt.Sprintf("stdout sink: write: %v", e.err) }
func (e *writeError) Unwrap() error { return e.err }
