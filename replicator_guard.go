package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/source"
)

// WALAction is what a replicator does when its slot keeps more WAL at the source than WithWALLimit allows.
type WALAction string

const (
	// WarnOnWAL says so in Status.Warnings and in the log, and goes on.
	WarnOnWAL WALAction = "warn"
	// StopOnWAL ends Run with ErrWALLimit. The slot stays, and with it the WAL, which goes on growing until
	// the replicator is started again and has drained it, or until Drop.
	StopOnWAL WALAction = "stop"
	// DropSlotOnWAL ends Run with ErrWALLimit and drops the slot, so that the source gets its disk back. What
	// the slot held is lost to the group: it takes a fresh copy to go on, by WithResync.
	DropSlotOnWAL WALAction = "drop slot"
)

// DefaultWALLimit is how much WAL the slot may keep before flo warns, in bytes: 10 GiB.
const DefaultWALLimit = 10 << 30

// minWALLimit is the size of a WAL segment as PostgreSQL makes it, which is the least that a slot keeps.
const minWALLimit = 16 << 20

const (
	// guardInterval is how often, at most and by default, the slot is looked at.
	guardInterval = 10 * time.Second
	// minGuardInterval bounds it from below, with a short WithIdleInterval.
	minGuardInterval = 200 * time.Millisecond
	// guardTimeout bounds one look: a source that doesn't answer is the session's matter.
	guardTimeout = 10 * time.Second
)

// walGuard judges what the slot keeps, over all sessions of one Run. A Run that begins with more than the
// limit may drain it: what it found counts as its limit, with some room, until less than the limit is kept.
type walGuard struct {
	limit  int64 // 0: none
	extra  int64 // what may be kept at present, where that is more than limit
	warned bool
	begun  bool
}

// over takes a reading, and reports whether it is above the limit, and whether it is time to act.
func (g *walGuard) over(kept int64) (over, act bool) {
	over = g.limit > 0 && kept > g.limit
	switch {
	case !over:
		g.extra = 0
	case !g.begun:
		g.extra = kept + g.limit/4
	}
	g.begun = true
	return over, over && kept > g.extra
}

// guarded runs a replicator's sessions beside the guard. The guard needs neither NATS nor the lease: when NATS
// is away no session lives, and just then the slot keeps WAL.
func (r *Replicator) guarded(ctx context.Context, run func(context.Context) error) error {
	gctx, trip := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() {
		err := r.watchWAL(gctx)
		trip(err)
		done <- err
	}()
	err := run(gctx)
	trip(context.Canceled)
	limit := <-done
	if limit == nil {
		return err
	}
	if r.cfg.walAction == DropSlotOnWAL {
		limit = r.dropOverLimit(ctx, limit)
	} else {
		limit = fmt.Errorf("%w. Start again to go on where it stopped, or start over by WithResync, or call Drop: until then the slot keeps the WAL, and more of it", limit)
	}
	r.source.Logger.ErrorContext(ctx, "stopped", slog.Any("error", limit))
	if err != nil {
		return fmt.Errorf("%w; besides: %w", limit, err)
	}
	return limit
}

// dropOverLimit drops the slot that Run was ended for. The group's sessions have ended; whoever else uses the
// slot keeps it.
func (r *Replicator) dropOverLimit(ctx context.Context, limit error) error {
	dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.stopTimeout)
	defer cancel()
	if err := r.source.DropSlot(dctx, r.cfg.slot); err != nil {
		return fmt.Errorf("%w. The slot was to be dropped, and is still there (SELECT pg_drop_replication_slot('%s')): %w", limit, r.cfg.slot, err)
	}
	r.status.update(func(st *ReplicatorStatus) { st.WALKept, st.WALStatus = 0, "" })
	return fmt.Errorf("%w. The slot was dropped: to go on, %s", limit, startOver)
}

// guardEvery is how often the slot is looked at.
func (r *Replicator) guardEvery() time.Duration {
	return min(max(r.cfg.idleInterval, minGuardInterval), guardInterval)
}

// watchWAL reads what the slot keeps until ctx ends (nil), or until the limit asks for an end of Run. It holds
// one connection of its own.
func (r *Replicator) watchWAL(ctx context.Context) error {
	g := walGuard{limit: r.cfg.walLimit}
	var conn *pgx.Conn
	hangUp := func() {
		if conn == nil {
			return
		}
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(cctx)
		conn = nil
	}
	defer hangUp()
	for {
		if r.status.Phase() != PhaseStandby { // otherwise another one looks
			err := func() (err error) {
				lctx, cancel := context.WithTimeout(ctx, guardTimeout)
				defer cancel()
				if conn == nil {
					if conn, err = r.source.Connect(lctx); err != nil {
						return err
					}
				}
				return r.lookAtWAL(lctx, conn, &g)
			}()
			if errors.Is(err, ErrWALLimit) {
				return err
			}
			if err != nil {
				r.source.Logger.DebugContext(ctx, "looking at the slot failed", slog.Any("error", err))
				hangUp()
			}
		} else {
			hangUp()
			g = walGuard{limit: g.limit} // taking over is a beginning
		}
		if pollWait(ctx, r.guardEvery()) != nil {
			return nil
		}
	}
}

// Beginnings of the guard's warnings, by which they are taken back.
const (
	warnWALKept   = "the slot keeps WAL: "
	warnWALStatus = "the slot's WAL is in danger: "
)

// lookAtWAL takes one reading of the slot.
func (r *Replicator) lookAtWAL(ctx context.Context, conn *pgx.Conn, g *walGuard) error {
	slot, err := r.source.Slot(ctx, conn, r.cfg.slot)
	if errors.Is(err, source.ErrSlotMissing) {
		slot, err = source.SlotInfo{}, nil // not made yet, or the session's matter
	}
	if err != nil {
		return err
	}
	r.status.update(func(st *ReplicatorStatus) { st.WALKept, st.WALStatus = slot.RetainedBytes, slot.WALStatus })
	switch {
	case slot.Lost():
		why, how := slot.LostBecause()
		r.warn(ctx, fmt.Sprintf("%s%q was invalidated: %s; %s", warnWALStatus, r.cfg.slot, why, how))
	case slot.WALStatus != "unreserved":
		r.status.clearWarnings(warnWALStatus)
	default:
		r.warn(ctx, fmt.Sprintf("%swal_status of %q is %s: the source is short of max_slot_wal_keep_size", warnWALStatus, r.cfg.slot, slot.WALStatus))
	}
	over, act := g.over(slot.RetainedBytes)
	if !over {
		r.status.clearWarnings(warnWALKept)
		g.warned = false
		return nil
	}
	if act && r.cfg.walAction != WarnOnWAL {
		return fmt.Errorf("%w: slot %q keeps %d bytes of WAL, the limit is %d: changes did not get into the stream, because NATS was away, the stream full, or the source too fast; "+
			"see LastError", ErrWALLimit, r.cfg.slot, slot.RetainedBytes, g.limit)
	}
	text := fmt.Sprintf("%s%q keeps more than %d bytes at the source; is NATS away, or the stream full?", warnWALKept, r.cfg.slot, g.limit)
	if !g.warned {
		g.warned = true
		r.warn(ctx, text)
	}
	return nil
}

// warn says something once.
func (r *Replicator) warn(ctx context.Context, text string) {
	if r.status.warn(text) {
		r.source.Logger.WarnContext(ctx, text)
	}
}
