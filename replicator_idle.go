package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/state"
)

// IdleWorker is a worker that is registered and doesn't run, in whatever process. The stream is kept for it, and
// WaitFor waits for it, until it runs again or RemoveWorker.
type IdleWorker struct {
	Name     string
	Since    time.Time // when it last wrote its record, by its own clock
	Applied  LSN       // what its sink holds
	Messages uint64    // of the stream that it has not finished
	Bytes    uint64    // that those take, estimated from the stream's average message
}

// idleWatch is what a session has seen of the workers' leases: their time is measured by its own clock.
type idleWatch struct {
	leases map[string]seenLease
	idle   map[string]time.Time // since when each was seen not to run
	warned map[string]bool
}

type seenLease struct {
	epoch, beat uint64
	released    bool
	at          time.Time
}

// idleGrace is how long a worker may be away before it is warned of: 60 s by default, so that a deployment says
// nothing.
func (s *replication) idleGrace() time.Duration { return max(6*s.r.cfg.idleInterval, time.Second) }

const warnIdle = "worker is idle: "

// watchWorkers reports the workers that are registered and don't run.
func (s *replication) watchWorkers(ctx context.Context, info bus.Info) error {
	workers, err := s.store.Workers(ctx)
	if err != nil {
		return err
	}
	w := &s.workers
	if w.leases == nil {
		w.leases, w.idle, w.warned = map[string]seenLease{}, map[string]time.Time{}, map[string]bool{}
	}
	var idle []IdleWorker
	for i := range workers {
		rec := &workers[i]
		runs, err := s.runs(ctx, rec)
		if err != nil {
			return err
		}
		if runs {
			delete(w.idle, rec.Name)
			delete(w.warned, rec.Name)
			continue
		}
		if w.idle[rec.Name].IsZero() {
			w.idle[rec.Name] = time.Now()
		}
		idle = append(idle, s.holds(rec, info))
	}
	s.r.status.update(func(st *ReplicatorStatus) { st.Idle = idle })
	s.r.status.clearWarnings(warnIdle)
	for _, x := range idle {
		if time.Since(w.idle[x.Name]) < s.idleGrace() {
			continue
		}
		text := fmt.Sprintf("%s%q is registered and has not run since %s; the stream keeps %d messages (about %d bytes) that it has not finished: start it, or call RemoveWorker",
			warnIdle, x.Name, x.Since.UTC().Format(time.RFC3339), x.Messages, x.Bytes)
		s.r.status.warn(text)
		if !w.warned[x.Name] { // the log has it once, the status as it is now
			w.warned[x.Name] = true
			s.log.WarnContext(ctx, text)
		}
	}
	for name := range w.idle {
		if !slices.ContainsFunc(workers, func(r state.Worker) bool { return r.Name == name }) {
			delete(w.idle, name)
			delete(w.warned, name)
			delete(w.leases, name)
		}
	}
	return nil
}

// runs reports whether somebody renews the worker's lease. One that died without giving it back counts as
// running until its time is over.
func (s *replication) runs(ctx context.Context, rec *state.Worker) (bool, error) {
	if rec.Finished {
		return true, nil // a CopyOnly group's, done: it holds nothing
	}
	l, _, err := s.store.Lease(ctx, state.WorkerLease(rec.Name))
	switch {
	case errors.Is(err, state.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case l.Released && l.Back == 0:
		return false, nil
	}
	seen, now := s.workers.leases[rec.Name], seenLease{l.Epoch, l.Beat, l.Released, time.Now()}
	if seen.at.IsZero() || seen.epoch != now.epoch || seen.beat != now.beat || seen.released != now.released {
		s.workers.leases[rec.Name] = now
		return true, nil
	}
	if l.Released { // it waits between two tries
		return time.Since(seen.at) < l.Back, nil
	}
	return time.Since(seen.at) < l.TTL, nil
}

// holds says what the stream keeps for a worker.
func (s *replication) holds(rec *state.Worker, info bus.Info) IdleWorker {
	x := IdleWorker{Name: rec.Name, Since: rec.Updated, Applied: rec.Checkpoint.End, Messages: info.Msgs}
	if cp := rec.Checkpoint; cp.Incarnation == s.stream.Incarnation() && cp.Seq > 0 && cp.Seq <= info.LastSeq {
		x.Messages = min(info.Msgs, info.LastSeq-cp.Seq)
	}
	if info.Msgs > 0 {
		x.Bytes = uint64(float64(info.Bytes) / float64(info.Msgs) * float64(x.Messages))
	}
	return x
}

// lookAtWorkers is watchWorkers for the upkeep, where nothing depends on it.
func (s *replication) lookAtWorkers(ctx context.Context, info bus.Info) {
	if err := s.watchWorkers(ctx, info); err != nil && ctx.Err() == nil && !transient(err) {
		s.log.WarnContext(ctx, "looking at the workers failed", slog.Any("error", err))
	}
}
