package bus

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// pubAnswer is the server's answer to a publish (nats-server stream.go, JSPubAckResponse).
type pubAnswer struct {
	Error     *jetstream.APIError `json:"error"`
	Stream    string              `json:"stream"`
	Sequence  uint64              `json:"seq"`
	Duplicate bool                `json:"duplicate"`
}

// Error codes of nats-server, jetstream_errors_generated.go.
const (
	codeAccountResources = 10002 // resource limits exceeded for account
	codeInsufficient     = 10023 // insufficient resources
	codeMemory           = 10028 // insufficient memory resources available
	codeStorage          = 10047 // insufficient storage resources available
	codeMsgTooLarge      = 10054 // message size exceeds maximum allowed
	codeStoreFailed      = 10077 // of a stream with DiscardNew: maximum bytes or messages exceeded
	codeHeaderTooLarge   = 10097
	codeSealed           = 10109
)

// answer takes a publish's answer. nats.go calls it from one goroutine.
func (p *Publisher) answer(m *nats.Msg) {
	gen, seq, ok := p.address(m.Subject)
	if !ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil || gen != p.gen || seq < p.base || seq >= p.base+uint64(p.sent) {
		return // of an older generation: the stream itself was asked, or is being asked
	}
	if len(m.Data) == 0 { // status 503: nobody listens to the subject
		p.doubt(fmt.Errorf("bus: publish: %w (status %s)", nats.ErrNoResponders, m.Header.Get("Status")), false)
		return
	}
	var a pubAnswer
	if err := json.Unmarshal(m.Data, &a); err != nil {
		p.doubt(fmt.Errorf("bus: answer to a publish: %w", err), false)
		return
	}
	switch {
	case a.Error != nil:
		p.refused(a.Error, len(p.window[seq-p.base].data))
	case a.Duplicate || a.Sequence != seq || a.Stream != p.s.name:
		p.doubt(fmt.Errorf("bus: publish of sequence %d was stored as %d of stream %s, duplicate %t", seq, a.Sequence, a.Stream, a.Duplicate), false)
	default:
		e := &p.window[seq-p.base]
		e.acked = true
		p.moved = time.Now()
		p.pace.answered(e.ahead, len(e.data), p.moved.Sub(e.at))
		p.fails = 0
		p.take()
		if p.st.State == Stalled {
			p.full = time.Time{}
			p.setState(Sending, nil)
		}
		p.pump()
	}
}

func (p *Publisher) refused(e *jetstream.APIError, bytes int) {
	err := fmt.Errorf("bus: publish refused: %w", e)
	switch e.ErrorCode {
	case codeMsgTooLarge, codeHeaderTooLarge:
		p.fail(fmt.Errorf("%w: %d bytes (%w)", ErrTooLarge, bytes, err))
	case codeSealed:
		p.fail(err)
	case codeAccountResources, codeInsufficient, codeMemory, codeStorage, codeStoreFailed:
		p.doubt(err, true)
	default:
		p.doubt(err, false)
	}
}

// address reads generation and sequence off an answer's subject.
func (p *Publisher) address(subject string) (gen, seq uint64, ok bool) {
	rest, ok := strings.CutPrefix(subject, p.inbox+".")
	if !ok {
		return 0, 0, false
	}
	g, q, _ := strings.Cut(rest, ".")
	gen, err1 := strconv.ParseUint(g, 10, 64)
	seq, err2 := strconv.ParseUint(q, 10, 64)
	return gen, seq, errors.Join(err1, err2) == nil
}

// take moves what is acknowledged without a gap off the window's front. p.mu is held.
func (p *Publisher) take() {
	n := 0
	for n < len(p.window) && p.window[n].acked {
		e := &p.window[n]
		if e.group.left--; e.group.left == 0 {
			p.ready = append(p.ready, e.group)
		}
		if n < p.sent {
			p.sentNow -= len(e.data)
		}
		*e = entry{} // lets go of the bytes
		n++
	}
	if n == 0 {
		return
	}
	p.window = p.window[n:]
	p.base += uint64(n)
	p.sent = max(p.sent-n, 0)
	if len(p.ready) > 0 {
		p.poke()
	}
}
