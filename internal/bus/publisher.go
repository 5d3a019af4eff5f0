package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// State of a Publisher.
type State int

// States of a Publisher.
const (
	Sending  State = iota // answers come as expected
	Doubting              // an answer was missing or unexpected: asking the stream what it holds
	Stalled               // the stream is full: the first refused message is tried again and again
	Failed                // for good: see Err
)

// String gives the state's name.
func (s State) String() string {
	return [...]string{"sending", "in doubt", "stalled: the stream is full", "failed"}[s]
}

// Status is what a Publisher is doing, for people and for metrics.
type Status struct {
	State    State
	Since    time.Time // when it took that state
	Reason   error     // of Doubting and Stalled: the last one; of Failed: Err
	Groups   int       // groups unacknowledged
	Bytes    int       // their bytes
	Doubts   uint64    // how many times it doubted
	Stalls   uint64    // how many times the stream was found full
	Repeated uint64    // messages published more than once
}

// Publisher is the stream's single writer. Every message carries the sequence that it must follow
// (header Nats-Expected-Last-Sequence), so that the stream holds each exactly once and in order, and
// a second writer is noticed by both: the slower one gets ErrFenced.
//
// Pipelining is sound: once a message was refused, every later one expects a sequence that isn't
// there, and is refused too.
//
// Why a late copy of a message does no harm: within a publisher a sequence belongs to one message
// for ever. A copy that the network delivers late expects the same predecessor; either the original
// stands at that sequence and the copy is refused, or nothing stands there and the copy is what was
// meant to come. A copy that outlives its publisher is refused as soon as a successor has written
// one message, and before that it is a valid continuation, which the successor notices by being
// refused itself.
type Publisher struct {
	s       *Stream
	nc      *nats.Conn
	session uint64
	inbox   string // answers come to <inbox>.<generation>.<sequence>
	sub     *nats.Subscription
	status  chan nats.Status
	ctx     context.Context
	cancel  context.CancelFunc
	wake    chan struct{} // capacity 1: run looks at the state again
	turn    chan struct{} // capacity 1: held by the Publish whose group is next
	done    chan struct{} // closed when failed or closed
	ended   chan struct{} // closed when run has returned

	// What stands below the first message of this publisher.
	first        uint64 // the sequence of its first message
	firstBehind  uint64 // session of the message before that, 0 if unknown
	behindExists bool

	mu      sync.Mutex
	onAck   func(token any, lastSeq uint64)
	window  []entry  // window[i] has sequence base+i
	base    uint64   // the lowest unacknowledged sequence
	sent    int      // window[:sent] were sent in this generation
	sentNow int      // their bytes
	pace    pace     // of them
	maxSent uint64   // highest sequence ever sent
	gen     uint64   // of sending; answers to an older one are ignored: the stream was asked instead
	ready   []*group // acknowledged, their callback not called yet
	groups  int      // accepted, their callback not returned yet
	msgs    int      // their messages
	bytes   int      // their bytes
	changed chan struct{}
	moved   time.Time // last answer, or start of sending
	full    time.Time // since when the stream is full; zero: it isn't
	fails   int       // doubts since the last acknowledgement
	st      Status
	err     error
}

// entry is a message in the window.
type entry struct {
	subject string
	data    []byte
	group   *group
	acked   bool
	at      time.Time // when it was sent, in this generation
	ahead   int       // what was unanswered then, in bytes, itself included
}

// group is what one Publish was given.
type group struct {
	token any
	left  int // parts unacknowledged
	msgs  int
	bytes int
	last  uint64
}

// NewPublisher makes the stream's writer. session is the writer's random number, that all its
// messages carry (wire.Header.Session); last is the stream's last sequence as the caller has
// verified it. ctx bounds the publisher's life. Only one at a time may live in a group: an older one
// fails with ErrFenced once this one has published.
func (s *Stream) NewPublisher(ctx context.Context, session uint64, last uint64) (*Publisher, error) {
	p := &Publisher{
		s: s, nc: s.js.Conn(), session: session,
		wake: make(chan struct{}, 1), turn: make(chan struct{}, 1),
		done: make(chan struct{}), ended: make(chan struct{}),
		first: last + 1, base: last + 1, gen: 1, pace: newPace(s.cfg.WindowBytes),
		changed: make(chan struct{}),
		st:      Status{State: Sending, Since: time.Now()},
	}
	if last > 0 {
		m, err := s.Get(ctx, last)
		if err != nil && !errors.Is(err, ErrEmpty) { // purged: nothing to compare
			return nil, err
		}
		if err == nil {
			p.behindExists, p.firstBehind = true, m.session()
		}
	}
	p.inbox = p.nc.NewInbox()
	sub, err := p.nc.Subscribe(p.inbox+".>", p.answer)
	if err != nil {
		return nil, fmt.Errorf("bus: subscribe to acknowledgements: %w", err)
	}
	p.sub = sub
	p.status = p.nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	p.ctx, p.cancel = context.WithCancel(ctx)
	go p.run()
	return p, nil
}

// OnAck sets what is called for each group, in order, when all its messages are in the stream.
// lastSeq is the sequence of its last one. Set it before the first Publish. It is called from one
// goroutine, without locks; the group counts as in flight until it returns. It must not call
// Publish, Drained or Close.
func (p *Publisher) OnAck(f func(token any, lastSeq uint64)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onAck = f
}

// Publish puts the parts on consecutive sequences of the stream. It waits while the window is full,
// and returns before the parts are acknowledged: OnAck and token tell. It keeps the parts until then.
// A group that is larger than the window waits for an empty one.
//
// Errors: ctx's, ErrTooLarge, and Err's if the publisher failed; then the group was not accepted.
func (p *Publisher) Publish(ctx context.Context, subject string, parts [][]byte, token any) error {
	_, err := p.PublishAt(ctx, subject, parts, token)
	return err
}

// PublishAt is Publish. last is the sequence that the last part will have: within a publisher it is certain from
// here on, since the stream takes the part at no other.
func (p *Publisher) PublishAt(ctx context.Context, subject string, parts [][]byte, token any) (last uint64, err error) {
	if len(parts) == 0 {
		return 0, errors.New("bus: nothing to publish")
	}
	g := &group{token: token, left: len(parts), msgs: len(parts)}
	limit := p.s.MaxPayload()
	for _, part := range parts {
		if len(part) > limit {
			return 0, fmt.Errorf("%w: %d bytes, at most %d", ErrTooLarge, len(part), limit)
		}
		g.bytes += len(part)
	}
	select {
	case p.turn <- struct{}{}: // groups enter one after the other: a large one isn't overtaken
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-p.done:
		return 0, p.Err()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.wait(ctx, func() bool { return p.room(g) }); err != nil {
		return 0, err
	}
	for _, part := range parts {
		p.window = append(p.window, entry{subject: subject, data: part, group: g})
	}
	g.last = p.base + uint64(len(p.window)) - 1
	p.groups++
	p.msgs += g.msgs
	p.bytes += g.bytes
	p.pump()
	return g.last, nil
}

func (p *Publisher) room(g *group) bool {
	return p.groups == 0 || p.msgs+g.msgs <= p.s.cfg.WindowMsgs && p.bytes+g.bytes <= p.s.cfg.WindowBytes
}

// wait until ok, with p.mu held before and after.
func (p *Publisher) wait(ctx context.Context, ok func() bool) error {
	for {
		if p.err != nil {
			return p.err
		}
		if ok() {
			return nil
		}
		changed := p.changed
		p.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-p.done:
		case <-ctx.Done():
			err = ctx.Err()
		}
		p.mu.Lock()
		if err != nil {
			return err
		}
	}
}

// broadcast wakes all that wait. p.mu is held.
func (p *Publisher) broadcast() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// pump sends on the wire what fits into the window, and gets through a slow link in good time. p.mu is held. The part of a
// group that is larger waits here: nats-server refuses what its inbound queue of a stream can't take.
func (p *Publisher) pump() {
	for p.st.State == Sending && p.sent < len(p.window) {
		n := len(p.window[p.sent].data)
		if p.sent > 0 && (p.sent >= p.s.cfg.WindowMsgs || p.sentNow+n > p.pace.limit) {
			return
		}
		p.send()
	}
}

// send the next message. p.mu is held: the order on the wire is the order of the window.
func (p *Publisher) send() {
	e := &p.window[p.sent]
	seq := p.base + uint64(p.sent)
	e.at = time.Now()
	if p.sent == 0 {
		p.moved = e.at
	}
	p.sent++
	p.sentNow += len(e.data)
	e.ahead = p.sentNow
	if seq <= p.maxSent {
		p.st.Repeated++
	}
	p.maxSent = max(p.maxSent, seq)
	err := p.nc.PublishMsg(&nats.Msg{
		Subject: e.subject,
		Reply:   p.inbox + "." + strconv.FormatUint(p.gen, 10) + "." + strconv.FormatUint(seq, 10),
		Header:  nats.Header{"Nats-Expected-Last-Sequence": {strconv.FormatUint(seq-1, 10)}},
		Data:    e.data,
	})
	switch {
	case err == nil:
		if p.sent == 1 {
			p.poke() // run sets its timer
		}
	case errors.Is(err, nats.ErrMaxPayload):
		p.fail(fmt.Errorf("%w: %d bytes: a server with a lower limit than before answers now", ErrTooLarge, len(e.data)))
	case errors.Is(err, nats.ErrConnectionClosed):
		p.fail(fmt.Errorf("bus: publish: %w", err))
	default:
		p.doubt(fmt.Errorf("bus: publish: %w", err), false)
	}
}

// poke makes run look. It never blocks.
func (p *Publisher) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// setState with p.mu held.
func (p *Publisher) setState(s State, reason error) {
	if p.st.State != s {
		p.st.Since = time.Now()
	}
	p.st.State, p.st.Reason = s, reason
}

// fail for good. p.mu is held. The first reason counts.
func (p *Publisher) fail(err error) {
	if p.err != nil {
		return
	}
	p.err = err
	p.gen++
	p.setState(Failed, err)
	close(p.done)
	p.cancel()
	p.broadcast()
}

// Status says what the publisher is doing.
func (p *Publisher) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := p.st
	st.Groups, st.Bytes = p.groups, p.bytes
	if p.err == nil && !p.full.IsZero() {
		st.State, st.Since = Stalled, p.full
	}
	return st
}

// Inflight is how many groups are published and not yet acknowledged and handled by OnAck.
func (p *Publisher) Inflight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.groups
}

// Drained waits until nothing is in flight. Errors: ctx's, and Err's if the publisher failed.
func (p *Publisher) Drained(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wait(ctx, func() bool { return p.groups == 0 })
}

// Err says why the publisher failed: ErrFenced, ErrRolledBack, ErrStreamGone, *ConfigError,
// ErrTooLarge, ErrClosed after Close, the error of NewPublisher's context, or the connection's end.
// nil while it works.
func (p *Publisher) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Done is closed when the publisher has failed or was closed.
func (p *Publisher) Done() <-chan struct{} { return p.done }

// Close stops the publisher and waits for its goroutine. What is in flight may or may not get into
// the stream; OnAck isn't called for it any more. It may be called twice.
func (p *Publisher) Close() {
	p.mu.Lock()
	p.fail(ErrClosed)
	p.mu.Unlock()
	<-p.ended
}
