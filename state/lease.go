package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Lease says who does a job that only one process may do. Its time is measured by each observer's own
// monotonic clock, from the last change that it saw: no two clocks are ever compared.
type Lease struct {
	Name     string        `json:"name"`
	Holder   string        `json:"holder"` // random, of one Claimant
	Epoch    uint64        `json:"epoch"`  // rises with each holder
	Beat     uint64        `json:"beat"`   // rises with each renewal
	TTL      time.Duration `json:"ttl_ns"`
	Process  Process       `json:"process"` // for people, and to notice a death on this machine at once
	Released bool          `json:"released,omitempty"`
	Back     time.Duration `json:"back_ns,omitempty"` // of a released one: its holder means to have it again within this time
}

// Process names a process among all that share its machine.
type Process struct {
	Host  string `json:"host"`
	PID   int    `json:"pid"`
	Start string `json:"start,omitempty"` // when it started, in the kernel's ticks
	Space string `json:"space,omitempty"` // the boot and the PID namespace in which PID counts
}

// String gives "host/pid".
func (p Process) String() string { return fmt.Sprintf("%s/%d", p.Host, p.PID) }

// Elsewhere reports whether it is another process than this one, and not known to have ended.
func (p Process) Elsewhere() bool { return p != thisProcess() && !p.dead() }

// ReplicatorLease is the name of the group's replicator lease.
const ReplicatorLease = "replicator"

// WorkerLease is the name of a worker's lease.
func WorkerLease(worker string) string { return leasesOfWorkers + worker }

const leasesOfWorkers = "worker."

func checkLease(name string) error {
	if name == ReplicatorLease {
		return nil
	}
	return CheckName(strings.TrimPrefix(name, leasesOfWorkers))
}

// ErrLost says that a lease was lost: somebody else has it, or it could not be renewed in time.
var ErrLost = errors.New("state: the lease was lost")

// Hold is a lease that this process has. It is renewed until Release, or until it is lost.
type Hold struct {
	store  Store
	ctx    context.Context
	cancel context.CancelCauseFunc
	ended  chan struct{}
	once   sync.Once

	lease Lease // all but Beat stays as it was acquired; Beat and rev are the renewing goroutine's until it has ended
	rev   uint64
}

const (
	// beatsPerTTL is how often a lease is renewed within its time.
	beatsPerTTL = 3
	// triesPerTTL is the part of a lease's time for which a renewal waits for its answer before it comes again.
	triesPerTTL = 2
)

// Acquire takes a lease, waiting as long as somebody else holds it and renews it; waiting, if set, is
// told of that each time it was looked at. ctx bounds the waiting only: the Hold lives until Release.
// Errors of the store are returned: nothing was then acquired.
func Acquire(ctx context.Context, store Store, name string, ttl time.Duration, waiting func(Lease)) (*Hold, error) {
	return NewClaimant().Acquire(ctx, store, name, ttl, waiting)
}

func newHold(ctx context.Context, store Store, l Lease, rev uint64, began time.Time) *Hold {
	h := &Hold{store: store, ended: make(chan struct{}), lease: l, rev: rev}
	h.ctx, h.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	go h.renew(began)
	return h
}

// Context ends when the lease is lost (its cause then wraps ErrLost) or released.
func (h *Hold) Context() context.Context { return h.ctx }

// Epoch of this holder.
func (h *Hold) Epoch() uint64 { return h.lease.Epoch }

func (h *Hold) renew(last time.Time) {
	defer close(h.ended)
	ttl := h.lease.TTL
	tick := time.NewTicker(ttl / beatsPerTTL)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
		}
		if time.Since(last) >= ttl { // paused, or starved: somebody else may have it by now
			h.lose(fmt.Errorf("not renewed for %s", time.Since(last).Round(time.Millisecond)))
			return
		}
		began := time.Now()
		try := began.Add(ttl / triesPerTTL) // a request that a lost connection has swallowed is never answered
		if end := last.Add(ttl); try.After(end) {
			try = end
		}
		ctx, cancel := context.WithDeadline(h.ctx, try)
		err := h.beat(ctx)
		cancel()
		switch {
		case err == nil:
			last = began
		case errors.Is(err, ErrLost):
			h.lose(err)
			return
		}
	}
}

// beat renews once. A write whose answer was lost shows as a conflict with ourselves.
func (h *Hold) beat(ctx context.Context) error {
	next := h.lease
	next.Beat++
	rev, err := h.store.PutLease(ctx, next, h.rev)
	if errors.Is(err, ErrConflict) {
		var now Lease
		now, rev, err = h.store.Lease(ctx, h.lease.Name)
		switch {
		case err == nil && (now.Holder != h.lease.Holder || now.Epoch != h.lease.Epoch):
			return fmt.Errorf("%w: %s took it over", ErrLost, now.Process)
		case errors.Is(err, ErrNotFound):
			return fmt.Errorf("%w: its record was deleted", ErrLost)
		case err == nil:
			next.Beat = now.Beat + 1
			rev, err = h.store.PutLease(ctx, next, rev)
		}
	}
	if err != nil {
		return err
	}
	h.lease.Beat, h.rev = next.Beat, rev
	return nil
}

func (h *Hold) lose(err error) {
	if !errors.Is(err, ErrLost) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	h.cancel(fmt.Errorf("%w (lease %s)", err, h.lease.Name))
}

// Forget ends the renewing without giving the lease up: of a store that is gone.
func (h *Hold) Forget() {
	h.once.Do(func() {
		h.cancel(context.Canceled)
		<-h.ended
	})
}

// Release gives the lease up, so that whoever stands by takes over at once. It, or Forget,
// may be called twice.
func (h *Hold) Release(ctx context.Context) error { return h.Leave(ctx, 0) }

// Leave is Release by a holder that means to come back within a time, if nobody else takes over: it waits before it tries
// something again.
func (h *Hold) Leave(ctx context.Context, back time.Duration) error {
	var err error
	h.once.Do(func() {
		lost := errors.Is(context.Cause(h.ctx), ErrLost)
		h.cancel(context.Canceled)
		<-h.ended
		if lost || errors.Is(context.Cause(h.ctx), ErrLost) {
			return
		}
		l := h.lease
		l.Released, l.Back = true, back
		if _, err = h.store.PutLease(ctx, l, h.rev); !errors.Is(err, ErrConflict) {
			return
		}
		// A renewal that was cut short by this may have been written; or somebody else has it already.
		now, rev, rerr := h.store.Lease(ctx, l.Name)
		switch {
		case errors.Is(rerr, ErrNotFound) || rerr == nil && (now.Holder != l.Holder || now.Epoch != l.Epoch):
			err = nil
		case rerr != nil:
			err = rerr
		default:
			l.Beat = now.Beat
			_, err = h.store.PutLease(ctx, l, rev)
		}
	})
	return err
}
