package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	backoffFirst = 50 * time.Millisecond
	backoffMost  = 5 * time.Second
	// resolveTimeout bounds one question to the stream while in doubt: a connection that is just
	// being replaced may lose a request.
	resolveTimeout = 2 * time.Second
	// rollbackConfirm is how long a last sequence must stay too low before it is believed: a leader
	// that was just elected may still be applying what it has.
	rollbackConfirm = time.Second
)

// backoff before attempt n (from 1), with jitter.
func backoff(n int) time.Duration {
	d := backoffFirst << min(n-1, 10)
	d = min(d, backoffMost)
	return d/2 + rand.N(d/2+1)
}

// pause waits, or returns ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// doubt stops sending until run has asked the stream. p.mu is held.
func (p *Publisher) doubt(reason error, full bool) {
	if p.err != nil || p.st.State == Doubting {
		return
	}
	p.gen++ // answers that are under way don't count any more
	p.sent, p.sentNow = 0, 0
	for i := range p.window {
		p.window[i].acked = false
	}
	p.fails++
	p.st.Doubts++
	if full && p.full.IsZero() {
		p.full = time.Now()
		p.st.Stalls++
	}
	p.setState(Doubting, reason)
	if p.fails == 1 {
		p.s.cfg.Logger.Warn("publishing in doubt: asking the stream", "stream", p.s.name, "error", reason)
	}
	p.poke()
}

// run owns the callbacks, the deadline and the doubts.
func (p *Publisher) run() {
	defer close(p.ended)
	defer p.nc.RemoveStatusListener(p.status)
	defer func() { _ = p.sub.Unsubscribe() }() // it fails only on a closed connection
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		p.callbacks()
		p.mu.Lock()
		doubting, failed := p.st.State == Doubting, p.err != nil
		wait := time.Hour
		if p.sent > 0 {
			wait = time.Until(p.moved.Add(p.s.cfg.PublishTimeout))
		}
		p.mu.Unlock()
		if failed {
			return
		}
		if p.ctx.Err() != nil { // also in doubt, which else would go on
			p.mu.Lock()
			p.fail(context.Cause(p.ctx))
			p.mu.Unlock()
			return
		}
		if doubting {
			p.resolve()
			continue
		}
		timer.Reset(wait)
		select {
		case <-p.wake:
		case st := <-p.status:
			p.connection(st)
		case <-timer.C:
			p.expire()
		case <-p.ctx.Done():
			p.mu.Lock()
			p.fail(context.Cause(p.ctx))
			p.mu.Unlock()
		}
	}
}

// callbacks tells of what was acknowledged, and gives its room back.
func (p *Publisher) callbacks() {
	for {
		p.mu.Lock()
		if len(p.ready) == 0 || p.err != nil {
			p.mu.Unlock()
			return
		}
		g := p.ready[0]
		p.ready = p.ready[1:]
		f := p.onAck
		p.mu.Unlock()
		if f != nil {
			f(g.token, g.last)
		}
		p.mu.Lock()
		p.groups--
		p.msgs -= g.msgs
		p.bytes -= g.bytes
		p.broadcast()
		p.mu.Unlock()
	}
}

// connection hears of the connection's changes: what was sent over the old one may be lost, and its
// answers are.
func (p *Publisher) connection(st nats.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case st == nats.CLOSED:
		p.fail(fmt.Errorf("bus: publisher: %w", nats.ErrConnectionClosed))
	case p.sent > 0:
		p.doubt(errors.New("bus: the connection was lost with publishes unanswered"), false)
	}
}

func (p *Publisher) expire() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent > 0 && time.Since(p.moved) >= p.s.cfg.PublishTimeout {
		p.doubt(fmt.Errorf("bus: no answer to a publish within %s", p.s.cfg.PublishTimeout), false)
	}
}

// resolve ends a doubt: it asks the stream's leader what is stored, and publishes the rest again, or
// fails. It tries until the publisher ends.
func (p *Publisher) resolve() {
	p.mu.Lock()
	n := p.fails - 1
	p.mu.Unlock()
	var low time.Time   // since when the last sequence is too low
	var verified uint64 // messages below it are known: a bad connection must not undo all the work
	for ; ; n++ {
		if n > 0 && pause(p.ctx, backoff(n)) != nil {
			return // run sees the context
		}
		p.forget()
		stored, err := p.stored(&verified)
		switch {
		case err == nil:
			p.forget() // what is sent now goes over the connection that answered, or a newer one
			p.resume(stored)
			return
		case p.ctx.Err() != nil:
			return
		case errors.Is(err, ErrRolledBack):
			if low.IsZero() {
				low = time.Now()
			}
			if time.Since(low) < rollbackConfirm {
				continue
			}
		default:
			low = time.Time{}
		}
		p.mu.Lock()
		if permanent(err) || errors.Is(err, nats.ErrConnectionClosed) {
			p.fail(err)
			p.mu.Unlock()
			return
		}
		p.st.Reason = err
		p.mu.Unlock()
	}
}

// forget changes of the connection: the stream is asked anyway. A closed connection shows in the
// next request.
func (p *Publisher) forget() {
	for {
		select {
		case <-p.status:
		default:
			return
		}
	}
}

// stored says up to which sequence the stream holds what this publisher has sent, or why it can't go
// on: every message from the one below the window up to the stream's last must be of this session
// (below its first: of the session that stood there). Messages that are gone were purged, which only
// the active writer's process does.
func (p *Publisher) stored(verified *uint64) (uint64, error) {
	ask := func(f func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(p.ctx, resolveTimeout)
		defer cancel()
		return f(ctx)
	}
	var info Info
	err := ask(func(ctx context.Context) (err error) { info, err = p.s.Info(ctx); return err })
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	base, maxSent := p.base, p.maxSent
	p.mu.Unlock()
	if info.LastSeq+1 < base {
		return 0, fmt.Errorf("%w: last sequence %d, acknowledged %d", ErrRolledBack, info.LastSeq, base-1)
	}
	if info.LastSeq >= base && info.LastSeq > maxSent {
		return 0, fmt.Errorf("%w: last sequence %d, this writer sent up to %d", ErrFenced, info.LastSeq, maxSent)
	}
	if info.LastSeq+1 < *verified {
		*verified = 0
	}
	for seq := max(base-1, *verified, 1); seq <= info.LastSeq; seq++ {
		*verified = seq
		var m Message
		err := ask(func(ctx context.Context) (err error) { m, err = p.s.Get(ctx, seq); return err })
		if errors.Is(err, ErrEmpty) {
			continue
		}
		if err != nil {
			return 0, err
		}
		want := p.session
		if seq < p.first {
			if !p.behindExists {
				continue
			}
			want = p.firstBehind
		}
		if got := m.session(); got != want {
			return 0, fmt.Errorf("%w: sequence %d is of session %x, expected %x", ErrFenced, seq, got, want)
		}
	}
	return info.LastSeq, nil
}

// resume acknowledges what is stored and sends the rest; into a full stream only the first message.
func (p *Publisher) resume(stored uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	if stored >= p.base {
		p.fails = 0
		for i := range p.window[:stored-p.base+1] {
			p.window[i].acked = true
		}
		p.take()
	}
	if len(p.window) == 0 {
		p.full = time.Time{}
	}
	if !p.full.IsZero() {
		p.setState(Stalled, p.st.Reason)
		p.send()
		return
	}
	p.setState(Sending, nil)
	p.pump()
}
