package source

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/crashpoint"
)

// EventKind is what Next met.
type EventKind uint8

const (
	Frame     EventKind = iota + 1 // a pgoutput message
	Keepalive                      // the server's position, without data
	Idle                           // nothing came within the wait
)

// Event of the stream.
type Event struct {
	Kind EventKind
	Data []byte // of a Frame: the pgoutput message; valid until the next call of Next
	// WALEnd of a Keepalive: every transaction that ends before it has been sent. It may be confirmed
	// once everything received before the event is safe. Of a Frame it orders nothing.
	WALEnd decode.LSN
}

// Stream is the replication connection while it streams. One goroutine owns it and calls its methods.
//
// Feedback runs on its own clock: Next sends it when due, also in the middle of a message and under
// load; an owner that is busy elsewhere calls Tick at least twice per StatusInterval.
type Stream struct {
	conn     net.Conn // TLS or plain
	paced    *pacedConn
	frontend *pgproto3.Frontend
	ctx      context.Context
	detach   func() bool // of the interrupt from ctx

	interval time.Duration // of the feedback
	received decode.LSN    // the highest position seen
	flushed  decode.LSN    // the highest position confirmed
	pending  decode.LSN    // to be confirmed next; 0: none
	frames   uint32
	reads    uint64 // of paced, when the clock was last looked at
	status   [2 * statusLen]byte
	err      error // the stream's end
	closed   bool
}

// clockFrames is how many buffered frames may pass without a look at the clock.
const clockFrames = 256

// writeTimeout bounds the sending of a status message.
const writeTimeout = 30 * time.Second

// Next gives the next event. It waits up to wait for the first byte of it; a wait of 0 takes what has
// arrived already, or does so within about 100 µs. While lazy reading is on and the source under load,
// up to 10 ms may pass on top.
//
// An error is the end of the stream: ctx's error if that ended, a *pgconn.PgError if the server said
// why, otherwise the connection's fault (pgsession.Transient tells). Later calls repeat it.
func (s *Stream) Next(wait time.Duration) (Event, error) {
	if s.err != nil {
		return Event{}, s.err
	}
	s.paced.wait, s.paced.until = wait, time.Time{}
	s.frames++
	if s.pending != 0 || s.frames >= clockFrames || s.reads != s.paced.reads {
		if err := s.Tick(time.Now()); err != nil {
			return Event{}, err
		}
	}
	for {
		msg, err := s.frontend.Receive()
		if err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return Event{}, s.fail(fmt.Errorf("source: replication stream: %w", err))
			}
			if err := s.ctx.Err(); err != nil {
				return Event{}, s.fail(err)
			}
			now := time.Now()
			if err := s.Tick(now); err != nil {
				return Event{}, err
			}
			if s.paced.until.IsZero() || now.Before(s.paced.until) {
				continue
			}
			return Event{Kind: Idle}, nil
		}
		event, ok, err := s.handle(msg)
		if err != nil {
			return Event{}, s.fail(err)
		}
		if ok {
			return event, nil
		}
	}
}

// handle reads one message of the protocol; ok is false if it is of no concern to the owner.
func (s *Stream) handle(msg pgproto3.BackendMessage) (event Event, ok bool, err error) {
	switch m := msg.(type) {
	case *pgproto3.CopyData:
		return s.data(m.Data)
	case *pgproto3.ErrorResponse:
		return event, false, fmt.Errorf("source: replication stream: %w", pgconn.ErrorResponseToPgError(m))
	case *pgproto3.NoticeResponse, *pgproto3.ParameterStatus:
		return event, false, nil
	case *pgproto3.CopyDone, *pgproto3.CommandComplete, *pgproto3.ReadyForQuery:
		// A server that shuts down ends the stream before it ends the connection.
		return event, false, fmt.Errorf("source: %w", ErrEnded)
	default:
		return event, false, fmt.Errorf("source: replication stream: unexpected message %T", msg)
	}
}

// ErrEnded is a stream that the server ended, as it does when it shuts down. It passes
// (pgsession.Transient).
var ErrEnded error = endedError{}

type endedError struct{}

func (endedError) Error() string {
	return "the server ended the replication stream (it may be shutting down)"
}

// Unwrap gives what pgsession.Transient knows.
func (endedError) Unwrap() error { return net.ErrClosed }

// data reads the payload of a CopyData message: XLogData or a primary keepalive.
// https://www.postgresql.org/docs/current/protocol-replication.html
func (s *Stream) data(b []byte) (Event, bool, error) {
	if len(b) == 0 {
		return Event{}, false, errors.New("source: replication stream: an empty message")
	}
	switch b[0] {
	case 'w':
		const header = 1 + 8 + 8 + 8
		if len(b) < header {
			return Event{}, false, fmt.Errorf("source: replication stream: XLogData of %d bytes", len(b))
		}
		start := decode.LSN(binary.BigEndian.Uint64(b[1:]))
		end := decode.LSN(binary.BigEndian.Uint64(b[9:]))
		s.received = max(s.received, start, end)
		return Event{Kind: Frame, Data: b[header:], WALEnd: end}, true, nil
	case 'k':
		const length = 1 + 8 + 8 + 1
		if len(b) < length {
			return Event{}, false, fmt.Errorf("source: replication stream: keepalive of %d bytes", len(b))
		}
		end := decode.LSN(binary.BigEndian.Uint64(b[1:]))
		s.received = max(s.received, end)
		if b[length-1] != 0 {
			if err := s.reply(time.Now()); err != nil {
				return Event{}, false, err
			}
		}
		return Event{Kind: Keepalive, WALEnd: end}, true, nil
	}
	return Event{}, false, fmt.Errorf("source: replication stream: unknown message %q", b[0])
}

// Tick sends feedback if it is due at now, or if a position waits to be confirmed. It reads nothing, so
// a keepalive that sits in the socket stays there; any reply satisfies the server.
func (s *Stream) Tick(now time.Time) error {
	if s.err != nil {
		return s.err
	}
	s.frames, s.reads = 0, s.paced.reads
	if s.pending == 0 && now.Before(s.paced.due) {
		return nil
	}
	if err := s.reply(now); err != nil {
		return s.fail(err)
	}
	return nil
}

// reply sends a status update. Flush is 0, so that a shutdown of the source waits for nothing but our
// having read everything; a reply that advances the slot is followed at once by one that takes it back.
func (s *Stream) reply(now time.Time) error {
	b := s.status[:0]
	if s.pending != 0 {
		b = appendStatus(b, s.received, s.pending, now)
	}
	b = appendStatus(b, s.received, 0, now)
	if err := s.conn.SetWriteDeadline(now.Add(writeTimeout)); err != nil {
		return fmt.Errorf("source: sending feedback: %w", err)
	}
	if _, err := s.conn.Write(b); err != nil {
		return fmt.Errorf("source: sending feedback: %w", err)
	}
	if s.pending != 0 {
		s.flushed, s.pending = s.pending, 0
		crashpoint.Reached(crashpoint.Confirmed)
	}
	s.paced.due = now.Add(s.interval)
	return nil
}

// Confirm says that everything before lsn is safe, so that the server may forget it. The next call of
// Next or Tick tells the server. Positions only rise; one beyond what was received is cut to that.
func (s *Stream) Confirm(lsn decode.LSN) {
	lsn = min(lsn, s.received)
	if lsn > s.flushed {
		s.pending = max(s.pending, lsn)
	}
}

// Confirmed gives the highest position that the server was told, at first where the slot stood.
func (s *Stream) Confirmed() decode.LSN { return s.flushed }

// Received gives the highest position that the server has named.
func (s *Stream) Received() decode.LSN { return s.received }

// SetLazy allows lazy reading: while the source is under load, up to 10 ms pass before a read that
// follows one that has emptied the socket. An idle source is read as it comes. Off at first.
func (s *Stream) SetLazy(on bool) { s.paced.lazy = on }

// Buffered gives the bytes that have been read from the socket and not yet handed out.
func (s *Stream) Buffered() int { return s.frontend.ReadBufferLen() + s.paced.buffered() }

// StatusInterval is the longest time between two feedbacks; Tick wants to be called twice as often.
func (s *Stream) StatusInterval() time.Duration { return s.interval }

// fail ends the stream with err. The connection stays until Close.
func (s *Stream) fail(err error) error {
	if ctxErr := s.ctx.Err(); ctxErr != nil && !errors.Is(err, ctxErr) {
		err = errors.Join(ctxErr, err)
	}
	s.err = err
	return err
}

// endTimeout bounds the polite end of a stream.
const endTimeout = 2 * time.Second

// ErrStreamClosed is what the methods of a closed Stream return.
var ErrStreamClosed = errors.New("source: replication stream is closed")

// Close ends the stream: a position that waits to be confirmed is sent, then CopyDone, and what the
// server still sends is thrown away for up to 2 s or until ctx ends; then the connection is closed.
// It may be called again.
func (s *Stream) Close(ctx context.Context) error {
	if s.closed {
		return nil
	}
	s.closed = true
	s.detach()
	broken := s.err != nil && s.ctx.Err() == nil
	s.err = ErrStreamClosed
	if !broken {
		s.leave(ctx)
	}
	if err := s.conn.Close(); err != nil && !broken && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("source: closing the replication connection: %w", err)
	}
	return nil
}

// leave says goodbye; every fault on the way means that the server is gone already.
func (s *Stream) leave(ctx context.Context) {
	now := time.Now()
	limit := now.Add(endTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	s.paced.resume()
	defer context.AfterFunc(ctx, s.paced.interrupt)()
	if err := s.reply(now); err != nil {
		return
	}
	_ = s.conn.SetWriteDeadline(limit)
	if _, err := s.conn.Write([]byte{'c', 0, 0, 0, 4}); err != nil {
		return
	}
	s.paced.lazy, s.paced.due, s.paced.wait, s.paced.until = false, limit, endTimeout, limit
	for {
		msg, err := s.frontend.Receive()
		if err != nil {
			return
		}
		switch msg.(type) {
		case *pgproto3.ReadyForQuery, *pgproto3.ErrorResponse:
			_, _ = s.conn.Write([]byte{'X', 0, 0, 0, 4})
			return
		}
	}
}

// defaultInterval of the feedback, and the share of wal_sender_timeout that it must stay below.
const (
	defaultInterval = 10 * time.Second
	timeoutShare    = 4
)

// interval of the feedback under a wal_sender_timeout; 0 there means none.
func interval(wanted, timeout time.Duration) time.Duration {
	if wanted <= 0 {
		wanted = defaultInterval
	}
	if timeout <= 0 {
		timeout = math.MaxInt64
	}
	return min(wanted, timeout/timeoutShare)
}
