package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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
	return s.read(ctx, "tail", func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return s.str.GetLastMsgForSubject(ctx, s.ChangesSubject())
	})
}

// Get reads the message at a sequence. ErrEmpty if it is not there.
func (s *Stream) Get(ctx context.Context, seq uint64) (Message, error) {
	if seq == 0 {
		return Message{}, fmt.Errorf("%w (sequence 0)", ErrEmpty)
	}
	return s.read(ctx, "message", func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return s.str.GetMsg(ctx, seq)
	})
}

// Next reads the first message at or above a sequence whose subject matches. ErrEmpty if there is
// none.
func (s *Stream) Next(ctx context.Context, seq uint64, subject string) (Message, error) {
	return s.read(ctx, "next message", func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
		return s.str.GetMsg(ctx, max(seq, 1), jetstream.WithGetMsgSubject(subject))
	})
}

// read asks the leader: with AllowDirect off, which checkConfig made sure of, the client uses
// $JS.API.STREAM.MSG.GET (NATS ADR-31 describes the direct reads that any replica answers).
func (s *Stream) read(ctx context.Context, what string, get func(context.Context) (*jetstream.RawStreamMsg, error)) (Message, error) {
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	raw, err := get(rctx)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		// Is it not there, or is it another stream?
		if _, err := s.Info(ctx); err != nil {
			return Message{}, err
		}
		return Message{}, fmt.Errorf("%w (%s of stream %s)", ErrEmpty, what, s.name)
	}
	if err != nil {
		return Message{}, fmt.Errorf("bus: read %s of stream %s: %w", what, s.name, mapError(err))
	}
	if !strings.HasPrefix(raw.Subject, s.prefix) {
		return Message{}, fmt.Errorf("%w (stream %s holds subject %q)", ErrStreamGone, s.name, raw.Subject)
	}
	return Message{Seq: raw.Sequence, Subject: raw.Subject, Data: raw.Data, Time: raw.Time}, nil
}
