//go:build unix

package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/pgflo/flo/sink"
)

// moods is how often, in a thousand calls, a sink misbehaves, and how.
type moods struct {
	Seed   uint64
	Reject int           // fails, and has done nothing
	Late   int           // does it, and says that it failed
	Hang   int           // does nothing for Wait, and then fails
	Slow   int           // does it after Wait
	Wait   time.Duration // at most; drawn each time
}

// Bounds on the moods of one life of a sink: each failure costs a session, and a longer wait before the next.
const (
	failuresOfALife = 3
	slowOfALife     = 20
)

var errMood = errors.New("the sink was told to fail")

// faulty is a sink with moods before another one.
type faulty struct {
	sink.Sink
	moods
	mu  sync.Mutex
	rnd *rand.Rand
	bad int // failures so far
	lag int // slow calls so far
}

// faultyCopier is one that takes raw copies.
type faultyCopier struct {
	*faulty
	inner sink.CopySink
}

// withMoods puts moods before a sink. Open, Abort and Close are the sink's own.
func withMoods(s sink.Sink, m *moods) sink.Sink {
	if m == nil {
		return s
	}
	f := &faulty{Sink: s, moods: *m, rnd: random(m.Seed, 7)}
	if c := sink.As[sink.CopySink](s); c != nil {
		return &faultyCopier{faulty: f, inner: c}
	}
	return f
}

// Unwrap leads to the sink's other interfaces.
func (f *faulty) Unwrap() sink.Sink { return f.Sink }

// do calls the sink in some mood.
func (f *faulty) do(ctx context.Context, what string, call func() error) error {
	f.mu.Lock()
	n, wait := f.rnd.IntN(1000), between(f.rnd, 0, f.Wait)
	if n < f.Reject+f.Late+f.Hang {
		if f.bad++; f.bad > failuresOfALife {
			n = 1000
		}
	} else if n < f.Reject+f.Late+f.Hang+f.Slow {
		if f.lag++; f.lag > slowOfALife {
			n = 1000
		}
	}
	f.mu.Unlock()
	fails := func(how string) error { return fmt.Errorf("%w: %s: %s", errMood, what, how) }
	switch {
	case n < f.Reject:
		return fails("rejected")
	case n < f.Reject+f.Late:
		if err := call(); err != nil {
			return err
		}
		return fails("it was done")
	case n < f.Reject+f.Late+f.Hang:
		if err := pause(ctx, wait); err != nil {
			return err
		}
		return fails("it hung")
	case n < f.Reject+f.Late+f.Hang+f.Slow:
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
	return call()
}

func (f *faulty) Write(ctx context.Context, b *sink.Batch) error {
	return f.do(ctx, "Write", func() error { return f.Sink.Write(ctx, b) })
}

func (f *faultyCopier) Unwrap() sink.Sink { return f.Sink }

func (f *faultyCopier) BeginTable(ctx context.Context, t sink.CopyTable) error {
	return f.do(ctx, "BeginTable", func() error { return f.inner.BeginTable(ctx, t) })
}

func (f *faultyCopier) WriteChunk(ctx context.Context, c *sink.CopyChunk) error {
	return f.do(ctx, "WriteChunk", func() error { return f.inner.WriteChunk(ctx, c) })
}

func (f *faultyCopier) EndTable(ctx context.Context, t sink.CopyTable) error {
	return f.do(ctx, "EndTable", func() error { return f.inner.EndTable(ctx, t) })
}
