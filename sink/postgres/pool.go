package postgres

import (
	"context"
	"fmt"

	"github.com/pgflo/flo/sink"
)

// errClosed says that the sink was closed.
const errClosed = refusal("sink/postgres: the sink is closed")

// pool holds the sessions of the copy. A slot is a session, or nil for one that is not connected yet; who
// holds a slot owns it.
type pool struct {
	slots  chan *session
	size   int
	closed chan struct{}
}

func newPool(size int) *pool {
	p := &pool{slots: make(chan *session, size), size: size, closed: make(chan struct{})}
	for range size {
		p.slots <- nil
	}
	return p
}

// with runs f on a session of the pool, in no transaction before and none after.
func (s *Sink) with(ctx context.Context, f func(c *session, st *sink.Start) error) error {
	st := s.start.Load()
	if st == nil {
		return fmt.Errorf("sink/postgres: %w", ErrNotOpen)
	}
	if s.pool.isClosed() {
		return errClosed
	}
	var c *session
	select {
	case c = <-s.pool.slots:
	case <-s.pool.closed:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() {
		if c != nil && !c.reset(ctx) {
			c = nil
		}
		if c != nil && s.pool.isClosed() { // close may have given up waiting
			c.close(ctx)
			c = nil
		}
		s.pool.slots <- c
	}()
	if c == nil {
		fresh, err := s.connect(ctx, *st)
		if err != nil {
			return judge(err, -1)
		}
		c = fresh
	}
	if c.recorded != st {
		if err := s.books.register(ctx, c.pg, *st); err != nil {
			return s.books.explain(judge(err, -1))
		}
		c.recorded = st
	}
	now := s.generation.Load()
	if c.generation != now {
		c.bindings.clear()
		c.generation = now
	}
	err := f(c, st)
	if s.generation.Load() != now && staleCatalog(err) {
		return err // the table was altered meanwhile: seen afresh the next time
	}
	return s.books.explain(judge(err, -1))
}

func (p *pool) isClosed() bool {
	select {
	case <-p.closed:
		return true
	default:
		return false
	}
}

// close ends all sessions, waiting for those in use until ctx ends; those end when they are given back. One that is
// free is ended in any case.
func (p *pool) close(ctx context.Context) error {
	if p.isClosed() {
		return nil
	}
	close(p.closed)
	for range p.size {
		var c *session
		select {
		case c = <-p.slots:
		default:
			select {
			case c = <-p.slots:
			case <-ctx.Done():
				return fmt.Errorf("sink/postgres: closing while chunks are being written: %w", ctx.Err())
			}
		}
		if c != nil {
			c.close(ctx)
		}
	}
	return nil
}
