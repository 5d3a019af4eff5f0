package state

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Claimant is somebody who takes a lease again and again, one time after the other: a replicator or a worker over
// its sessions. It knows its own record again. One that it has left unreleased, because it was paused or cut off for
// longer than the lease lasts, or because an answer was lost, it takes back at once, as long as nobody else has taken
// it: whoever would have to be waited for is the claimant itself. It is a holder like any other then, with an epoch of its own.
//
// The zero value is not usable, see NewClaimant. A Claimant belongs to one goroutine.
type Claimant struct {
	id   string // Lease.Holder of all that it takes
	hold *Hold  // the last one
}

// NewClaimant makes one that has no record yet.
func NewClaimant() *Claimant { return &Claimant{id: rand.Text()} }

// ErrHeld says that a claimant asks for a lease while it has one.
var ErrHeld = errors.New("state: the claimant holds a lease: release it first")

// Acquire is the function Acquire, but that the claimant's own record is not waited for. It is ErrHeld as long as the
// last Hold was neither released nor lost: all that was done under it must have ended.
func (c *Claimant) Acquire(ctx context.Context, store Store, name string, ttl time.Duration, waiting func(Lease)) (*Hold, error) {
	if c.hold != nil {
		if c.hold.ctx.Err() == nil {
			return nil, fmt.Errorf("%w (lease %s)", ErrHeld, c.hold.lease.Name)
		}
		<-c.hold.ended // it renews no more
		c.hold = nil
	}
	var seen uint64 // revision
	var since time.Time
	for {
		l, rev, err := store.Lease(ctx, name)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		if rev != seen || since.IsZero() {
			seen, since = rev, time.Now()
		}
		if errors.Is(err, ErrNotFound) || l.Released || l.Holder == c.id || time.Since(since) >= l.TTL || l.Process.dead() {
			next := Lease{Name: name, Holder: c.id, Epoch: l.Epoch + 1, TTL: ttl, Process: thisProcess()}
			began := time.Now()
			rev, err := store.PutLease(ctx, next, rev)
			if err == nil {
				c.hold = newHold(ctx, store, next, rev, began)
				return c.hold, nil
			}
			if !errors.Is(err, ErrConflict) {
				return nil, err
			}
			continue // somebody else was faster, or a renewal of the claimant's own that was under way
		}
		if waiting != nil {
			waiting(l)
		}
		t := time.NewTimer(min(l.TTL, ttl) / (2 * beatsPerTTL))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		case <-t.C:
		}
	}
}
