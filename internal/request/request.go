// Package request asks NATS for what may be asked for twice.
package request

import (
	"context"
	"errors"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// tries is the part of a request's bound for which an answer is waited for before it is asked for again.
	tries = 4
	// look is how often the connection is looked at while no answer comes.
	look = 50 * time.Millisecond
)

// Again makes a request within bound, and makes it again soon after the connection was replaced, or when no answer has come for a
// quarter of the bound: a request that was lost with its connection is never answered, and nats.go, other than for what a
// lost connection had not taken yet, tells nobody. f has to be of a kind that may be done twice, such as a read.
func Again(ctx context.Context, nc *nats.Conn, bound time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	for {
		ended, err := once(ctx, nc, bound/tries, f)
		if err == nil || !ended || ctx.Err() != nil || nc.IsClosed() {
			return err
		}
	}
}

// once ends f's context when the time is over, or when the connection is another one than that which it began with; it reports
// whether it did.
func once(ctx context.Context, nc *nats.Conn, wait time.Duration, f func(context.Context) error) (ended bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	before := nc.Stats().Reconnects
	done := make(chan struct{})
	defer close(done)
	go func() {
		tick := time.NewTicker(look)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				if nc.Stats().Reconnects != before {
					cancel()
					return
				}
			}
		}
	}()
	err = f(ctx)
	return ctx.Err() != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)), err
}
