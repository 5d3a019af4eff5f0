package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/internal/request"
)

// DefaultPullMaxBytes bounds what a reader has fetched and not yet handed out.
const DefaultPullMaxBytes = 8 << 20

const (
	pullBatch     = 4096             // messages of one request
	pullExpires   = 30 * time.Second // of one request
	pullHeartbeat = 2 * time.Second  // from the server while a request is open and nothing comes
	// idleCheck is how often a reader that gets nothing asks whether the stream is what it was.
	idleCheck = 5 * time.Second
	// consumerIdle is how long the server keeps the consumer of a reader that asks for nothing.
	consumerIdle = 2 * time.Minute
	// messageRoom is more than subject, reply and headers of a message take, in bytes.
	messageRoom = 4096
)

// ReaderOptions of a Reader.
type ReaderOptions struct {
	// PullMaxBytes bounds what is fetched ahead, in bytes. Default 8 MiB; at least two of the
	// server's largest messages.
	PullMaxBytes int
}

// Reader gives the messages that match a filter, in rising order of their sequences, none left out
// that is in the stream and none twice, over lost connections and restarts of servers. Where its
// start was purged it begins at the first message that is there: the message's sequence and what it
// says of itself tell.
//
// It reads by a consumer of its own without acknowledgements, kept in memory, and makes a new one
// from the message that is due whenever the consumer's count of deliveries shows a gap, the
// connection changed, or heartbeats stay away. Each time, and now and then while nothing comes, it
// checks that the stream still is what it was. A Reader belongs to one goroutine.
type Reader struct {
	s      *Stream
	ctx    context.Context
	filter string
	limit  int // bytes fetched ahead

	next uint64    // lowest sequence that is due
	last uint64    // of the last message given out, 0: none yet
	when time.Time // its time

	sub      *nats.Subscription // nil: no consumer
	msgs     chan *nats.Msg     // unbuffered; what waits for it is bounded by credit
	stop     chan struct{}      // closed to let go of sub's goroutine
	status   chan nats.Status
	consumer string
	count    uint64 // deliveries of the consumer so far
	credit   int    // bytes that the server may still send
	small    int    // requests in a row that were too small for the next message
	heard    time.Time
	checked  time.Time
	fails    int
	err      error // why it ended for good
}

// Read makes a reader from a sequence on (0 is 1), of the messages whose subject matches filter: a
// subject or a pattern of this stream, see ChangesSubject and CopyFilter. It does no I/O yet. ctx
// bounds the reader's life; call Close in any case.
func (s *Stream) Read(ctx context.Context, filter string, from uint64, opt ReaderOptions) *Reader {
	if opt.PullMaxBytes <= 0 {
		opt.PullMaxBytes = DefaultPullMaxBytes
	}
	return &Reader{s: s, ctx: ctx, filter: filter, limit: opt.PullMaxBytes, next: max(from, 1)}
}

// Next waits for the next message. It tries for ever while NATS is away. The message is the
// caller's. Errors: those of the two contexts, ErrRolledBack when the stream no longer holds what
// the reader has seen or was told to start behind, ErrStreamGone, *ConfigError, ErrClosed. After an
// error of a context it may be called again; the others last.
func (r *Reader) Next(ctx context.Context) (Message, error) {
	m, err := r.wait(ctx)
	if err != nil && permanent(err) && r.err == nil {
		r.drop()
		r.err = err
	}
	return m, err
}

func (r *Reader) wait(ctx context.Context) (Message, error) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if err := r.ready(ctx); err != nil {
			return Message{}, err
		}
		timer.Reset(max(min(time.Until(r.heard.Add(5*pullHeartbeat/2)), time.Until(r.checked.Add(idleCheck))), 0))
		select {
		case m := <-r.msgs:
			r.heard = time.Now()
			msg, ok, err := r.take(m)
			if ok || err != nil {
				return msg, err
			}
		case <-r.status:
			r.reset(errors.New("the connection changed"))
		case <-timer.C:
			if err := r.idle(ctx); err != nil {
				return Message{}, err
			}
		case <-ctx.Done():
			return Message{}, ctx.Err()
		case <-r.ctx.Done():
			return Message{}, r.ctx.Err()
		}
	}
}

// Pos is the lowest sequence that Next may still return.
func (r *Reader) Pos() uint64 { return r.next }

// Close ends the reader. It may be called twice.
func (r *Reader) Close() {
	r.drop()
	if r.err == nil {
		r.err = ErrClosed
	}
}

// ready sees that there is a consumer and an open request.
func (r *Reader) ready(ctx context.Context) error {
	for {
		switch {
		case r.err != nil:
			return r.err
		case r.ctx.Err() != nil:
			return r.ctx.Err()
		case ctx.Err() != nil:
			return ctx.Err()
		case r.sub != nil && r.credit > r.limit/2:
			return nil
		case r.sub != nil:
			if err := r.pull(); err != nil {
				r.reset(err)
			}
			continue
		}
		if r.fails > 0 {
			if err := pause(ctx, backoff(r.fails)); err != nil {
				return err
			}
		}
		err := r.open(ctx)
		if err == nil {
			continue
		}
		r.fails++
		r.drop()
		if permanent(err) || errors.Is(err, nats.ErrConnectionClosed) || r.s.js.Conn().IsClosed() {
			return err
		}
		r.s.cfg.Logger.Warn("reading: trying again", "stream", r.s.name, "error", err)
	}
}

// open makes a consumer from r.next on.
func (r *Reader) open(ctx context.Context) error {
	if err := r.verify(ctx); err != nil {
		return err
	}
	nc := r.s.js.Conn()
	r.status = nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.CLOSED)
	var c jetstream.Consumer
	// One that is made twice is left to consumerIdle.
	err := request.Again(ctx, nc, requestTimeout, func(ctx context.Context) (err error) {
		c, err = r.s.js.CreateConsumer(ctx, r.s.name, jetstream.ConsumerConfig{
			Description:       "flo",
			DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
			OptStartSeq:       r.next,
			AckPolicy:         jetstream.AckNonePolicy,
			ReplayPolicy:      jetstream.ReplayInstantPolicy,
			FilterSubject:     r.filter,
			InactiveThreshold: consumerIdle,
			Replicas:          1,
			MemoryStorage:     true,
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("bus: read stream %s: %w", r.s.name, r.s.failed(ctx, err))
	}
	r.consumer = c.CachedInfo().Name
	msgs, stop := make(chan *nats.Msg), make(chan struct{})
	r.msgs, r.stop = msgs, stop
	r.sub, err = nc.Subscribe(nc.NewInbox(), func(m *nats.Msg) {
		select {
		case msgs <- m:
		case <-stop:
		}
	})
	if err != nil {
		return fmt.Errorf("bus: read stream %s: %w", r.s.name, err)
	}
	// The server sends no more than was asked for: nothing may be dropped here.
	if err := r.sub.SetPendingLimits(-1, -1); err != nil {
		return fmt.Errorf("bus: read stream %s: %w", r.s.name, err)
	}
	r.limit = max(r.limit, 2*(int(nc.MaxPayload())+messageRoom))
	r.count, r.credit, r.small, r.heard = 0, 0, 0, time.Now()
	return nil
}

// verify that the stream holds what this reader has seen. A last sequence that is too low has to
// stay so: a leader that was just elected may still be applying what it has.
func (r *Reader) verify(ctx context.Context) error {
	for start := time.Now(); ; {
		info, err := r.s.Info(ctx)
		if err != nil {
			return err
		}
		if info.LastSeq+1 >= r.next {
			break
		}
		if time.Since(start) > rollbackConfirm {
			return fmt.Errorf("%w: last sequence %d, read up to %d", ErrRolledBack, info.LastSeq, r.next-1)
		}
		if err := pause(ctx, backoffFirst*2); err != nil {
			return err
		}
	}
	r.checked = time.Now()
	if r.last == 0 {
		return nil
	}
	m, err := r.s.Get(ctx, r.last)
	if errors.Is(err, ErrEmpty) { // purged
		return nil
	}
	if err == nil && !m.Time.Equal(r.when) {
		return fmt.Errorf("%w: sequence %d is another message than the one that was read", ErrRolledBack, r.last)
	}
	return err
}

// idle is called when nothing came for a while.
func (r *Reader) idle(ctx context.Context) error {
	if time.Since(r.heard) >= 5*pullHeartbeat/2 {
		r.reset(errors.New("heartbeats stayed away"))
		return nil
	}
	if time.Since(r.checked) < idleCheck {
		return nil
	}
	if err := r.verify(ctx); err != nil {
		if permanent(err) {
			return err
		}
		r.reset(err)
	}
	return nil
}

// reset lets go of the consumer; ready makes another one.
func (r *Reader) reset(reason error) {
	r.s.cfg.Logger.Debug("reading: new consumer", "stream", r.s.name, "from", r.next, "reason", reason)
	r.fails++
	r.drop()
}

func (r *Reader) drop() {
	nc := r.s.js.Conn()
	if r.stop != nil {
		close(r.stop)
	}
	if r.sub != nil {
		_ = r.sub.Unsubscribe() // it fails only on a closed connection
	}
	if r.status != nil {
		nc.RemoveStatusListener(r.status)
	}
	if r.consumer != "" && nc.IsConnected() {
		// The server removes it anyway after consumerIdle.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), time.Second)
		_ = r.s.js.DeleteConsumer(ctx, r.s.name, r.consumer)
		cancel()
	}
	r.sub, r.msgs, r.stop, r.status, r.consumer = nil, nil, nil, nil, ""
}

// pullRequest is the body of a request for messages (NATS ADR-13).
type pullRequest struct {
	Expires   time.Duration `json:"expires"`
	Batch     int           `json:"batch"`
	MaxBytes  int           `json:"max_bytes"`
	Heartbeat time.Duration `json:"idle_heartbeat"`
}

// pull asks for what there is room for. The bytes are counted as the server counts them (nats-server
// consumer.go, getNextMsg): subject, reply, headers and data.
func (r *Reader) pull() error {
	body, err := json.Marshal(pullRequest{Expires: pullExpires, Batch: pullBatch, MaxBytes: r.limit - r.credit, Heartbeat: pullHeartbeat})
	if err != nil {
		return err
	}
	if err := r.s.js.Conn().PublishRequest(r.s.apiSubject("CONSUMER.MSG.NEXT."+r.s.name+"."+r.consumer), r.sub.Subject, body); err != nil {
		return fmt.Errorf("bus: read stream %s: %w", r.s.name, err)
	}
	r.credit = r.limit
	return nil
}

// apiSubject is a subject of the JetStream API for the given JetStream's prefix or domain.
func (s *Stream) apiSubject(rest string) string {
	o := s.js.Options()
	switch {
	case o.APIPrefix != "":
		prefix := o.APIPrefix
		if prefix[len(prefix)-1] != '.' {
			prefix += "."
		}
		return prefix + rest
	case o.Domain != "":
		return "$JS." + o.Domain + ".API." + rest
	default:
		return jetstream.DefaultAPIPrefix + rest
	}
}

// take a message off the subscription: one of the stream, or a status.
func (r *Reader) take(m *nats.Msg) (msg Message, ok bool, err error) {
	if code := m.Header.Get("Status"); code != "" && len(m.Data) == 0 {
		r.statusMsg(code, m)
		return Message{}, false, nil
	}
	meta, err := m.Metadata()
	if err != nil {
		r.reset(fmt.Errorf("bus: a message without metadata: %w", err))
		return Message{}, false, nil
	}
	if meta.Sequence.Consumer != r.count+1 {
		r.reset(fmt.Errorf("bus: delivery %d came after %d", meta.Sequence.Consumer, r.count))
		return Message{}, false, nil
	}
	seq := meta.Sequence.Stream
	if seq < r.next {
		return Message{}, false, fmt.Errorf("%w: sequence %d came after %d", ErrRolledBack, seq, r.next-1)
	}
	r.count++
	r.small, r.fails = 0, 0
	r.credit -= m.Size()
	r.next, r.last, r.when = seq+1, seq, meta.Timestamp
	r.checked = time.Now()
	return Message{Seq: seq, Subject: m.Subject, Data: m.Data, Time: meta.Timestamp}, true, nil
}

// statusMsg handles what the server says of requests (NATS ADR-13).
func (r *Reader) statusMsg(code string, m *nats.Msg) {
	if code == "100" { // heartbeat
		return
	}
	left, err := strconv.Atoi(m.Header.Get("Nats-Pending-Bytes"))
	if code != "408" && code != "409" || err != nil {
		// No responders, consumer deleted, leadership changed, and whatever else ends all requests.
		r.reset(fmt.Errorf("bus: request ended with status %s %s", code, m.Header.Get("Description")))
		return
	}
	// A request ended with bytes left: its time was over, its count was full, or the next message
	// was larger than the rest.
	r.credit -= left
	if m.Header.Get("Description") == "Message Size Exceeds MaxBytes" {
		if r.small++; r.small > 2 { // a message from when the server's max_payload was higher
			r.limit *= 2
			r.small = 0
		}
	}
}
