package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/state"
)

// Worker reads a group's stream in order, applies rules, and writes batches to its sink.
type Worker struct {
	cfg     *config
	opt     *workerConfig
	log     *slog.Logger
	tx      sink.Transactional // nil unless the sink is one
	copy    sink.CopySink      // nil unless the sink is one
	running atomic.Bool
	status  workerStatus
	// claimant takes the lease, one session after the other.
	claimant *state.Claimant
	missed   repositionError // the last one of this Run
	last     context.Context // ends when a stop has to be over; of this Run
	hung     <-chan struct{} // the sink didn't return from a call of this Run; closed when it has
}

// NewWorker makes one worker: the one given by WithSink or WithWorker, of which there must be one. It
// validates the worker's options and does no I/O.
func NewWorker(opts ...Option) (*Worker, error) {
	c := newConfig(opts)
	c.validateCommon()
	c.validateWorkers()
	if len(c.workers) != 1 {
		c.bad("NewWorker: %d sinks are given (WithSink, WithWorker), want 1", len(c.workers))
	}
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	return newWorker(c, &c.workers[0]), nil
}

func newWorker(c *config, opt *workerConfig) *Worker {
	w := &Worker{
		cfg: c, opt: opt, claimant: state.NewClaimant(),
		log:    c.logger.With(slog.String("group", c.group), slog.String("worker", opt.name)),
		status: workerStatus{commonStatus: commonStatus{phase: PhaseStopped}, at: WorkerStatus{Name: opt.name}},
	}
	w.tx = sink.As[sink.Transactional](opt.sink)
	w.copy = sink.As[sink.CopySink](opt.sink)
	return w
}

// Name of the worker.
func (w *Worker) Name() string { return w.opt.name }

// Run works until ctx ends (and returns nil once the batch in the sink's hands is written), until a
// CopyOnly copy is applied, or until an error that trying again can't mend. It waits without limit for
// the stream to be made and for NATS and the sink to come back. At its end it closes the sink, if that is a
// sink.Closer: to run again, make a worker with a new one.
func (w *Worker) Run(ctx context.Context) error {
	if !w.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer w.running.Store(false)
	w.missed = repositionError{}
	last, done := outliving(ctx, w.cfg.stopTimeout)
	defer done()
	w.last, w.hung = last, nil
	err := retry(ctx, w.log, &w.status.commonStatus, w.session)
	c := sink.As[sink.Closer](w.opt.sink)
	switch {
	case c != nil && w.hung != nil: // a call is under way: it is closed behind that, if that ever ends
		go func(hung <-chan struct{}) {
			<-hung
			cctx, cancel := context.WithTimeout(context.Background(), closeBound)
			defer cancel()
			if err := c.Close(cctx); err != nil {
				w.log.Warn("closing the sink that did not return failed", slog.Any("error", err))
			}
		}(w.hung)
	case c != nil:
		cctx, cancel := context.WithTimeout(last, closeBound)
		defer cancel()
		if cerr := c.Close(cctx); cerr != nil && err == nil {
			err = fmt.Errorf("flo: worker %q: closing the sink: %w", w.opt.name, cerr)
		}
	}
	w.status.stop(err)
	return err
}

// working is one session of a worker: from a checkpoint until something breaks.
type working struct {
	*Worker
	stream *bus.Stream
	nc     *nats.Conn
	report *reporter
	epoch  uint64
	joined bool              // the worker's name is new to the group
	start  decode.Checkpoint // what the sink holds

	recorded decode.Checkpoint // what the worker's record says

	letters    *letters
	sought     *search // for a change that the sink refuses; the sink's stage has it
	unfinished bool    // the sink has taken batches with More, and not their transaction's end
	lag        lag     // of the sink's batches behind what is durable
}

func (w *Worker) session(ctx context.Context) error {
	w.status.set(PhaseConnecting)
	link, err := w.cfg.sessionNATS(ctx)
	if err != nil {
		return err
	}
	defer link.close()
	if _, _, err := w.waitForStream(ctx, link); err != nil {
		return err
	}
	store, err := state.NewNATS(ctx, link.state, w.cfg.group, w.cfg.replicas, false)
	if err != nil {
		return err
	}
	t, err := begin(ctx, w.claimant, store, state.WorkerLease(w.opt.name), w.cfg, &w.status.commonStatus, w.log)
	if err != nil {
		return err
	}
	defer t.end()
	return t.retried(t.judge(w.work(t, link)))
}

// work begins a session, as long as it has the lease.
func (w *Worker) work(t *tenure, link *link) error {
	ctx := t.stop
	w.status.set(PhaseConnecting)
	stream, store, err := w.waitForStream(ctx, link) // again: standing by may have lasted
	if err != nil {
		return err
	}
	s := &working{Worker: w, stream: stream, nc: link.nc, lag: newLag(w.opt.sink)}
	return w.followed(ctx, store, stream.Incarnation(), s.work(t, store))
}

// work does what a session is for.
func (s *working) work(t *tenure, store state.Store) error {
	ctx := t.stop
	if err := s.register(ctx, store); err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	if err := s.loadLetters(ctx); err != nil {
		return err
	}
	from, err := s.locate(ctx)
	if errors.Is(err, ErrHistoryGone) && s.joined {
		// It never worked: nobody must wait for it, neither the purge nor WaitFor.
		if derr := store.DeleteWorker(ctx, s.opt.name); derr != nil {
			s.log.WarnContext(ctx, "the worker's registration stays", slog.Any("error", derr))
		}
	}
	if err != nil {
		return err
	}
	if from.fresh {
		if err := s.keep(ctx, from); err != nil {
			return err
		}
	}
	for {
		if err = s.once(s.run(t, from)); !errors.Is(err, errResume) || ctx.Err() != nil {
			return err
		}
		s.unfinished = false
		if err := s.resume(ctx); err != nil {
			return err
		}
		if from, err = s.locate(ctx); err != nil {
			return err
		}
	}
}

// once makes a gap of the second message in a row that doesn't continue the worker's position: it was searched
// for by position in between, and nothing covers it.
func (s *working) once(err error) error {
	var missed *repositionError
	if !errors.As(err, &missed) {
		return err
	}
	if *missed == s.missed && missed.lacks != "" {
		return fmt.Errorf("%w: worker %q is at %s, where message %d stands for changes that the stream does not hold any more: %s; %s",
			ErrGap, s.opt.name, missed.from.End, missed.seq, missed.lacks, startOver)
	}
	if *missed == s.missed {
		return s.gap(missed.have, missed.seq, missed.from)
	}
	s.missed = *missed
	return err
}

// waitPoll is how often a worker looks for what the replicator makes at its first start.
const waitPoll = 100 * time.Millisecond

// waitForStream opens the group's stream and state, which the replicator makes.
func (w *Worker) waitForStream(ctx context.Context, link *link) (*bus.Stream, state.Store, error) {
	for said := false; ; {
		stream, unfit, err := openAny(ctx, w.cfg.bus(link))
		if err == nil && stream == nil {
			err = bus.ErrNoStream
		}
		if err == nil {
			var store state.Store
			if store, err = state.NewNATS(ctx, link.state, w.cfg.group, w.cfg.replicas, false); err == nil {
				var wait bool
				if wait, err = w.awaitsResync(ctx, stream, store); err == nil && !wait {
					return stream, store, unfit // one that is to be replaced need not fit
				}
				if wait && !said {
					said = true
					w.log.InfoContext(ctx, "waiting until the group's replicator has started over (WithResync)", slog.String("token", w.cfg.resync))
				}
				if wait {
					err = bus.ErrNoStream // not the one that is meant
				}
			}
		}
		if !errors.Is(err, bus.ErrNoStream) && !errors.Is(err, state.ErrNotFound) {
			return nil, nil, err
		}
		w.status.set(PhaseWaiting)
		if err := pollWait(ctx, waitPoll); err != nil {
			return nil, nil, err
		}
	}
}

// register takes the worker's name for this session: the epoch in its record rises, so that whoever
// held it before is found out at its next write.
func (s *working) register(ctx context.Context, store state.Store) error {
	for {
		rec, rev, err := store.Worker(ctx, s.opt.name)
		if err != nil && !errors.Is(err, state.ErrNotFound) {
			return err
		}
		s.joined = rev == 0
		rec.Name = s.opt.name
		// By the clock, so that a sink that knows the name from before a Drop doesn't see a lower epoch.
		rec.Epoch = max(rec.Epoch+1, uint64(time.Now().UnixMilli()))
		rec.Updated = time.Now().UTC()
		rev, err = store.PutWorker(ctx, rec, rev)
		if errors.Is(err, state.ErrConflict) {
			continue // somebody else registers; the later one wins
		}
		if err != nil {
			return err
		}
		s.epoch, s.start, s.recorded = rec.Epoch, rec.Checkpoint, rec.Checkpoint
		s.report = newReporter(store, rec, rev)
		return nil
	}
}

// open asks a transactional sink for its checkpoint, which then counts: it stands with the data.
func (s *working) open(ctx context.Context) (err error) {
	if s.start, err = s.replaced(ctx, s.start); err != nil || s.tx == nil {
		return err
	}
	cp, err := s.tx.Open(ctx, s.opening())
	if err != nil {
		return s.sinkError(nil, err)
	}
	if cp, err = s.replaced(ctx, cp); err != nil {
		return err
	}
	if rec := s.start; s.copy != nil && rec.Incarnation == s.stream.Incarnation() && rec.CopyAttempt > cp.Attempt && (cp.IsZero() || cp.Incarnation == rec.Incarnation) {
		// The sink knows each chunk; the record says which messages it needs no more.
		cp.Incarnation = rec.Incarnation
		cp.CopyAttempt, cp.CopySeq = rec.CopyAttempt, rec.CopySeq
	}
	s.start = cp
	return nil
}

// reopen rolls back what batches with More have begun, and makes sure that the sink then stands where
// the worker believes.
func (s *working) reopen(ctx context.Context, want decode.Checkpoint) error {
	if err := s.tx.Abort(ctx); err != nil {
		return err
	}
	cp, err := s.tx.Open(ctx, s.opening())
	if err == nil {
		cp, err = s.replaced(ctx, cp)
	}
	if err == nil && (cp.Seq != want.Seq || cp.End != want.End) {
		err = fmt.Errorf("flo: the sink stands at %s (message %d) where %s (message %d) was written", cp.End, cp.Seq, want.End, want.Seq)
	}
	return err
}

func (s *working) opening() sink.Start {
	return sink.Start{Group: s.cfg.group, Worker: s.opt.name, Incarnation: s.stream.Incarnation(), Epoch: s.epoch}
}

// waitOr waits for a session's goroutines, longer than work at most by closeBound, or in a stop until late: a
// sink that doesn't return when its context has ended is left behind.
func waitOr(work, late context.Context, g *errgroup.Group) (hung <-chan struct{}, err error) {
	done := make(chan error, 1)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		done <- g.Wait()
	}()
	select {
	case err := <-done:
		return nil, err
	case <-work.Done():
	}
	t := time.NewTimer(closeBound)
	defer t.Stop()
	began := time.Now()
	select {
	case err := <-done:
		return nil, err
	case <-t.C:
	case <-late.Done():
	}
	return returned, fmt.Errorf("%w: the sink has not returned %s after its context ended", ErrNotDrained, time.Since(began).Round(time.Millisecond))
}

// run reads, decodes and writes until ctx ends. The stages overlap: while one batch is written, the
// next one is decoded and the messages behind it are fetched.
func (s *working) run(t *tenure, from place) error {
	s.status.set(PhaseStreaming)
	s.status.applied(s.start)
	ctx := t.stop
	work, cancel := context.WithCancel(t.work) // what the sink has begun is finished
	defer cancel()

	f, err := newFeed(s, from)
	if err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(work)
	reading, stopReading := context.WithCancelCause(gctx)
	defer stopReading(nil)
	defer context.AfterFunc(ctx, func() { stopReading(context.Cause(ctx)) })()

	g.Go(func() error { return s.report.run(reading) })
	g.Go(func() error {
		defer close(f.out)
		err := f.run(reading)
		if ctx.Err() != nil && !fatal(err) {
			return nil
		}
		return err
	})
	g.Go(func() error {
		err := s.write(gctx, f.out)
		if err == nil {
			cancel() // nothing is left to report; an error (errFinished too) ends the group itself, and must be its first
		}
		return err
	})
	hung, err := waitOr(t.work, t.late, g)
	if hung != nil {
		s.hung = hung
		return err
	}
	flush, cancelFlush := context.WithTimeout(s.last, closeBound)
	defer cancelFlush()
	if ferr := s.report.flush(flush); err == nil && ferr != nil {
		err = ferr
	}
	return err
}
