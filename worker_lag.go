package flo

import (
	"context"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// flushInterval is how long, at most, a batch stays that the sink has taken and that is not durable.
const flushInterval = reportInterval

// lag is what a sink has taken and would lose if its server crashed now (sink.Flusher). As long as that is so, it is no
// checkpoint of the worker's record, by which the stream is purged.
type lag struct {
	flusher sink.Flusher      // nil: each batch is durable
	since   time.Time         // when the first one was written; zero: all are durable
	last    decode.Checkpoint // of the last one
	timer   *time.Timer
	due     <-chan time.Time // when to flush, if nothing else comes; nil: all are durable
}

func newLag(s sink.Sink) lag {
	f := sink.As[sink.Flusher](s)
	if f == nil || !f.Lags() {
		return lag{}
	}
	return lag{flusher: f}
}

// allows reports whether a batch may do without being durable. Under load it is each one for a while, and then one
// that takes all before it along.
func (l *lag) allows(b *batch) bool {
	return l.flusher != nil && !b.More && !b.finished && (l.since.IsZero() || time.Since(l.since) < flushInterval)
}

// wrote takes a batch that the sink has taken, which ends with a whole transaction.
func (s *working) wrote(b *batch) {
	l := &s.lag
	if !b.Lazy {
		s.durable(b.Checkpoint, b.finished)
		return
	}
	l.last = b.Checkpoint
	if !l.since.IsZero() {
		return
	}
	l.since = time.Now()
	if l.timer == nil {
		l.timer = time.NewTimer(flushInterval)
	} else {
		l.timer.Reset(flushInterval)
	}
	l.due = l.timer.C
}

// settle makes durable what isn't. Within a transaction it can't: the batch that ends it, late as it is, is durable.
func (s *working) settle(ctx context.Context) error {
	l := &s.lag
	if l.since.IsZero() || s.unfinished {
		return nil
	}
	if err := l.flusher.Flush(ctx); err != nil {
		return s.sinkError(nil, err)
	}
	s.durable(l.last, false)
	return nil
}

// durable reports a checkpoint.
func (s *working) durable(cp decode.Checkpoint, finished bool) {
	if l := &s.lag; l.timer != nil {
		l.timer.Stop()
		l.since, l.due = time.Time{}, nil
	}
	s.report.checkpoint(cp, finished)
}
