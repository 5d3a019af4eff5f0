package flo

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/pgflo/flo/state"
)

// tenure is the time for which a session may act: from the lease it got to its end.
type tenure struct {
	// stop ends when the session has to stop: Run's context ended, or the lease was lost.
	stop context.Context
	// work outlives Run's context by drainBound, so that what is under way is finished; not a lost lease.
	work context.Context
	hold *state.Hold
	end  func()
}

// begin takes the lease, standing by as long as another process has it.
func begin(ctx context.Context, store state.Store, name string, lease time.Duration, st *commonStatus, log *slog.Logger) (*tenure, error) {
	hold, err := state.Acquire(ctx, store, name, lease, func(l state.Lease) {
		if st.standby(l.Process.String()) {
			log.InfoContext(ctx, "standing by: another one is active", slog.String("active", l.Process.String()))
		}
	})
	if err != nil {
		return nil, err
	}
	return newTenure(ctx, hold, log), nil
}

func newTenure(ctx context.Context, hold *state.Hold, log *slog.Logger) *tenure {
	stop, letGo := either(ctx, hold.Context())
	work, release := outliving(ctx, drainBound)
	work, cancel := context.WithCancelCause(work)
	unhook := context.AfterFunc(hold.Context(), func() { cancel(context.Cause(hold.Context())) })
	t := &tenure{stop: stop, work: work, hold: hold}
	t.end = func() {
		unhook()
		letGo()
		cancel(context.Canceled)
		release()
		rctx, done := context.WithTimeout(context.WithoutCancel(ctx), closeBound)
		defer done()
		if err := hold.Release(rctx); err != nil {
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
