package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/internal/request"
	"github.com/pgflo/flo/internal/wire"
)

// Message of the stream.
type Message struct {
	Seq     uint64
	Subject string
	Data    []byte
	Time    time.Time // when the server stored it
}

// session of the message's writer; 0 for what is no message of flo.
func (m *Message) session() uint64 {
	h, _, err := wire.Parse(m.Data)
	if err != nil {
		return 0
	}
	return h.Session
}

// Tail reads the last message of `changes`. ErrEmpty if there is none.
func (s *Stream) Tail(ctx context.Context) (Message, error) {
	return s.read(ctx, question{what: "tail", subject: s.ChangesSubject(), last: true})
}

// Get reads the message at a sequence. ErrEmpty if it is not there.
func (s *Stream) Get(ctx context.Context, seq uint64) (Message, error) {
	if seq == 0 {
		return Message{}, fmt.Errorf("%w (sequence 0)", ErrEmpty)
	}
	return s.read(ctx, question{what: "message", seq: seq})
}

// Next reads the first message at or above a sequence whose subject matches. ErrEmpty if there is
// none.
func (s *Stream) Next(ctx context.Context, seq uint64, subject string) (Message, error) {
	return s.read(ctx, question{what: "next message", seq: max(seq, 1), subject: subject})
}

// question is for one message: that at a sequence, or the first one there or above whose subject matches, or the last one
// whose subject does.
type question struct {
	what    string
	seq     uint64
	subject string // empty: the one at seq
	last    bool
}

// read asks until the answer is a message, or its absence is confirmed, see absent.
func (s *Stream) read(ctx context.Context, q question) (Message, error) {
	for began := time.Now(); ; {
		m, err := s.ask(ctx, q)
		if !notFound(err) {
			return m, err
		}
		gone, aerr := s.absent(ctx, q)
		switch {
		case aerr != nil:
			return Message{}, aerr
		case gone:
			return Message{}, fmt.Errorf("%w (%s of stream %s)", ErrEmpty, q.what, s.name)
		case time.Since(began) > rollbackConfirm:
			return Message{}, fmt.Errorf("%w (%s of stream %s: %w)", ErrUnreadable, q.what, s.name, err)
		}
		if err := pause(ctx, backoffFirst*2); err != nil {
			return Message{}, err
		}
	}
}

// ask asks the leader: with AllowDirect off, which checkConfig made sure of, the client uses
// $JS.API.STREAM.MSG.GET (NATS ADR-31 describes the direct reads that any replica answers).
func (s *Stream) ask(ctx context.Context, q question) (Message, error) {
	var raw *jetstream.RawStreamMsg
	err := request.Again(ctx, s.js.Conn(), requestTimeout, func(ctx context.Context) (err error) {
		switch {
		case q.last:
			raw, err = s.str.GetLastMsgForSubject(ctx, q.subject)
		case q.subject != "":
			raw, err = s.str.GetMsg(ctx, q.seq, jetstream.WithGetMsgSubject(q.subject))
		default:
			raw, err = s.str.GetMsg(ctx, q.seq)
		}
		return err
	})
	if err != nil {
		return Message{}, fmt.Errorf("bus: read %s of stream %s: %w", q.what, s.name, err)
	}
	if !strings.HasPrefix(raw.Subject, s.prefix) {
		return Message{}, fmt.Errorf("%w (stream %s holds subject %q)", ErrStreamGone, s.name, raw.Subject)
	}
	return Message{Seq: raw.Sequence, Subject: raw.Subject, Data: raw.Data, Time: raw.Time}, nil
}

// notFound reports whether the server said that the message, or the stream, is not there.
func notFound(err error) bool {
	return errors.Is(err, jetstream.ErrMsgNotFound) || errors.Is(err, jetstream.ErrStreamNotFound)
}

// absent reports whether the stream as a whole agrees that a message that was not found is not there. nats-server says "no
// message found" whatever keeps its store from giving one: a file that can't be read, or a store that is closed already
// because the server is being stopped (jetstream_api.go, jsMsgGetRequest; filestore.go, LoadLastMsg). So a message behind
// the one that was asked for has to show that the store is read, or the stream's index, which is in memory and outlives
// the store, that it holds none. As a rule that is one request.
func (s *Stream) absent(ctx context.Context, q question) (bool, error) {
	if q.subject == "" {
		m, err := s.ask(ctx, question{what: q.what, seq: q.seq, subject: ">"})
		if !notFound(err) {
			return m.Seq > q.seq, err
		}
		q.subject = s.prefix + ">" // which, other than ">", finds the last one also if the last sequence was deleted
	}
	if !q.last {
		m, err := s.ask(ctx, question{what: q.what, subject: q.subject, last: true})
		if !notFound(err) {
			return m.Seq < q.seq, err
		}
	}
	info, err := s.info(ctx, jetstream.WithSubjectFilter(q.subject)) // which tells too whether it is another stream by now
	if err != nil {
		return false, err
	}
	return len(info.State.Subjects) == 0 || !q.last && info.State.LastSeq < q.seq, nil
}
