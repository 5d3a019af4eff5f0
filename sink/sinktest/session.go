package sinktest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// patience is how long a sink may take to return after its context ended, and to close.
const patience = 5 * time.Second

// openPatience bounds Open, which may have to wait for a predecessor.
const openPatience = time.Minute

// session is a sink that is open, as a worker has it.
type session struct {
	t      testing.TB
	sink   sink.Sink
	tx     sink.Transactional // nil if it isn't one
	copy   sink.CopySink      // so is this
	start  sink.Start
	closed bool
}

func start(epoch uint64) sink.Start {
	return sink.Start{Group: "sinktest", Worker: "default", Incarnation: incarnation, Epoch: epoch}
}

// open opens a sink as the first worker does.
func open(t *testing.T, h Harness) *session {
	t.Helper()
	s, _ := openAs(t, h, start(1))
	return s
}

// openAs opens a sink, which must succeed, and gives the checkpoint that it holds.
func openAs(t *testing.T, h Harness, st sink.Start) (*session, decode.Checkpoint) {
	t.Helper()
	s := newSession(t, h, st)
	return s, s.open()
}

// newSession makes a sink without opening it.
func newSession(t *testing.T, h Harness, st sink.Start) *session {
	t.Helper()
	s := &session{t: t, sink: h.Open(t), start: st}
	s.tx, s.copy = sink.As[sink.Transactional](s.sink), sink.As[sink.CopySink](s.sink)
	t.Cleanup(s.close)
	return s
}

// open calls Open, if the sink has it.
func (s *session) open() decode.Checkpoint {
	s.t.Helper()
	cp, err := s.tryOpen()
	if err != nil {
		s.t.Fatalf("Open: %v", err)
	}
	return cp
}

func (s *session) tryOpen() (decode.Checkpoint, error) {
	if s.tx == nil {
		return decode.Checkpoint{}, nil
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), openPatience)
	defer cancel()
	return s.tx.Open(ctx, s.start)
}

func (s *session) close() {
	if s.closed {
		return
	}
	s.closed = true
	c := sink.As[closer](s.sink)
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		s.t.Errorf("Close: %v", err)
	}
}

type closer interface {
	Close(ctx context.Context) error
}

func (s *session) write(b *sink.Batch) {
	s.t.Helper()
	if err := s.tryWrite(s.t.Context(), b); err != nil {
		s.t.Fatalf("Write: %v", err)
	}
}

func (s *session) tryWrite(ctx context.Context, b *sink.Batch) error {
	b.Epoch = s.start.Epoch
	return s.sink.Write(ctx, b)
}

// ended calls f with a context that has ended. It gives what f said, which is checked.
func ended(t testing.TB, what string, f func(context.Context) error) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	err := f(ctx)
	if took := time.Since(begin); took > patience {
		t.Errorf("%s took %s after its context had ended", what, took)
	}
	if sink.IsPermanent(err) {
		t.Errorf("the end of the context is no permanent error: %s: %v", what, err)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("%s: %v; want context.Canceled in its chain", what, err)
	}
	return err
}
