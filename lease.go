package flo

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/state"
)

// tenure is the time for which a session may act: from the lease it got to its end.
type tenure struct {
	// stop ends when the session has to stop: Run's context ended, or the lease was lost.
	stop context.Context
	// work outlives Run's context by the time that a stop has for work, so that what is under way is finished;
	// not a lost lease.
	work context.Context
	// late ends a little after work: whatever was cut then has had its time to return.
	late context.Context
	hold *state.Hold
	back time.Duration // within which the next session begins; 0: there may be none
	end  func()
}

// comeBack is within what time a session that was interrupted is followed by the next one.
const comeBack = pgsession.DefaultCap + 5*time.Second

// maxGoodbye is how much of a stop's time is kept for the end of connections and leases, at most.
const maxGoodbye = 2 * time.Second

// stopShares divides a stop's time: until when work under way goes on, until when its return is waited for, and
// until when the lease is given back. The rest is for the connections.
func stopShares(bound time.Duration) (work, wait, release time.Duration) {
	goodbye := min(bound/4, maxGoodbye)
	return bound - goodbye, bound - goodbye/2, bound - goodbye/4
}

// begin takes the lease, standing by as long as another process has it. The session before must have ended.
func begin(ctx context.Context, claimant *state.Claimant, store state.Store, name string, cfg *config, st *commonStatus, log *slog.Logger) (*tenure, error) {
	hold, err := claimant.Acquire(ctx, store, name, cfg.lease, func(l state.Lease) {
		if st.standby(l.Process.String()) {
			log.InfoContext(ctx, "standing by: another one is active", slog.String("active", l.Process.String()))
		}
	})
	if err != nil {
		return nil, err
	}
	return newTenure(ctx, hold, cfg, log), nil
}

func newTenure(ctx context.Context, hold *state.Hold, cfg *config, log *slog.Logger) *tenure {
	stop, letGo := either(ctx, hold.Context())
	forWork, forWait, forRelease := stopShares(cfg.stopTimeout)
	work, endWork := outliving(ctx, forWork)
	late, endLate := outliving(ctx, forWait)
	releasing, endReleasing := outliving(ctx, forRelease)
	work, cancel := context.WithCancelCause(work)
	unhook := context.AfterFunc(hold.Context(), func() { cancel(context.Cause(hold.Context())) })
	t := &tenure{stop: stop, work: work, late: late, hold: hold}
	t.end = func() {
		unhook()
		letGo()
		cancel(context.Canceled)
		endWork()
		endLate()
		defer endReleasing()
		rctx, done := context.WithTimeout(releasing, closeBound)
		defer done()
		if err := hold.Leave(rctx, t.back); err != nil {
			log.DebugContext(ctx, "the lease was not released; it runs out by itself", slog.Any("error", err))
		}
	}
	return t
}

// judge names the reason when a session ends because the tenure did. A lost lease is never a good end: the
// session has to begin again.
func (t *tenure) judge(err error) error {
	if cause := context.Cause(t.hold.Context()); errors.Is(cause, state.ErrLost) && !fatal(err) && !errors.Is(err, errFinished) {
		return errors.Join(cause, err)
	}
	if err == nil {
		return nil
	}
	return undrained(t.work, err)
}

// retried takes the error of a session which another one follows if that passes.
func (t *tenure) retried(err error) error {
	if err != nil && transient(err) && t.stop.Err() == nil {
		t.back = comeBack
	}
	return err
}
