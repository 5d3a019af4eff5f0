package pgsession

import (
	"context"
	"math/rand/v2"
	"time"
)

// Bounds of a Backoff that leaves them at zero.
const (
	DefaultBase = 100 * time.Millisecond
	DefaultCap  = 15 * time.Second
)

// Backoff spaces attempts out exponentially with full jitter: the n-th wait is random between 0 and
// min(Cap, Base·2ⁿ). The zero value is ready. One goroutine uses it.
type Backoff struct {
	Base time.Duration // first bound; default 100 ms
	Cap  time.Duration // last bound; default 15 s

	attempt uint
}

// Wait sleeps until the next attempt is due, or returns ctx's error if that ends first.
func (b *Backoff) Wait(ctx context.Context) error {
	timer := time.NewTimer(b.next())
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Attempts gives how many waits there were since the last Reset.
func (b *Backoff) Attempts() int { return int(b.attempt) }

// Reset starts again at Base, after a success.
func (b *Backoff) Reset() { b.attempt = 0 }

// next draws the next wait.
func (b *Backoff) next() time.Duration {
	bound := b.bound()
	b.attempt++
	return time.Duration(rand.Int64N(int64(bound) + 1))
}

// bound is the upper end of the next wait.
func (b *Backoff) bound() time.Duration {
	base, limit := b.Base, b.Cap
	if base <= 0 {
		base = DefaultBase
	}
	if limit <= 0 {
		limit = DefaultCap
	}
	for range b.attempt {
		if base >= limit/2 {
			return limit
		}
		base *= 2
	}
	return min(base, limit)
}
