package deadletter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/request"
)

const (
	// requestTimeout bounds one request; a context may end it sooner.
	requestTimeout = 10 * time.Second
	// headerRoom is more than the NATS headers of a message take, in bytes.
	headerRoom = 512
	// minPiece is the least that a part of a letter carries, whatever the server's max_payload.
	minPiece = 256
)

// ErrStream says that the stream of the dead letters can't be made, or has settings that flo can't work with.
var ErrStream = errors.New("deadletter: the stream of dead letters is not there")

// ErrNotFound says that a letter is gone, or lacks parts.
var ErrNotFound = errors.New("deadletter: no such letter")

// StreamName of a group's dead letters. No group's own stream or bucket begins like that: those begin with "flo_".
func StreamName(group string) string { return "flo-dead_" + group }

// Head is what people read of a letter: the JSON line at the beginning of its message.
type Head struct {
	Group      string           `json:"group"`
	Worker     string           `json:"worker"`
	Position   *decode.Position `json:"position,omitempty"`
	Copy       *decode.CopyID   `json:"copy,omitempty"`
	Table      decode.Name      `json:"table"`
	Op         string           `json:"op"`
	Reason     string           `json:"reason"`
	Time       time.Time        `json:"time"`
	XID        uint32           `json:"xid,omitempty"`
	CommitTime *time.Time       `json:"commit_time,omitempty"`
	Origin     string           `json:"origin,omitempty"`
	Parts      int              `json:"parts"` // how many messages the letter has
	Bytes      int              `json:"bytes"` // of the body
}

// Store keeps the letters of one worker. Its methods may be called from several goroutines, but for List, which
// looks whether the stream is there.
type Store struct {
	js       jetstream.JetStream
	group    string
	prefix   string // "flo-dead.<group>.<incarnation>.<worker>."
	worker   string
	replicas int
	stream   jetstream.Stream // nil: there is none, as far as is known
}

// Open gives a worker's letters of one incarnation of the group's stream. It does no I/O: the stream, of so many
// replicas, is made with the first letter.
func Open(js jetstream.JetStream, group, incarnation, worker string, replicas int) *Store {
	return &Store{js: js, group: group, worker: worker, replicas: max(1, replicas), prefix: "flo-dead." + group + "." + incarnation + "." + worker + "."}
}

// again makes a request that may be made twice.
func (s *Store) again(ctx context.Context, f func(context.Context) error) error {
	return request.Again(ctx, s.js.Conn(), requestTimeout, f)
}

func (s *Store) look(ctx context.Context) error {
	var stream jetstream.Stream
	err := s.again(ctx, func(ctx context.Context) (err error) {
		stream, err = s.js.Stream(ctx, StreamName(s.group))
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s.stream = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("deadletter: open stream %s: %w", StreamName(s.group), err)
	}
	s.stream = stream
	c := &stream.CachedInfo().Config
	if c.MaxAge != 0 || c.MaxMsgs > 0 || c.MaxMsgsPerSubject > 0 || c.MaxBytes > 0 && c.Discard != jetstream.DiscardNew || c.Retention != jetstream.LimitsPolicy || c.Mirror != nil || c.Sealed {
		return fmt.Errorf("%w: %s would lose letters: it must have limits retention, no age, message or per-subject limit, be no mirror and not sealed, and discard the new if it has a size limit "+
			"(nats stream edit %s)", ErrStream, StreamName(s.group), StreamName(s.group))
	}
	return nil
}

// Create makes the stream if it is missing.
func (s *Store) Create(ctx context.Context) error {
	if s.stream != nil {
		return nil
	}
	cctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	stream, err := s.js.CreateStream(cctx, jetstream.StreamConfig{
		Name:              StreamName(s.group),
		Description:       "flo: changes that workers of group " + s.group + " could not apply",
		Subjects:          []string{"flo-dead." + s.group + ".>"},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Replicas:          s.replicas,
		Discard:           jetstream.DiscardNew,
		MaxBytes:          -1,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		Duplicates:        100 * time.Millisecond, // subjects tell repeats; this is the server's least
	})
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		if err := s.look(ctx); err != nil || s.stream != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %s cannot be made, and without it no change may be passed over: let the account have one more stream of %d replicas: %w", ErrStream, StreamName(s.group), s.replicas, err)
	}
	s.stream = stream
	return nil
}

// Put stores a letter. It returns nil once JetStream has acknowledged all of it, also if it was there before: one
// position has one letter. A long one is cut into several messages, of which the one with the head comes last and
// makes it count. The stream must be there (Create).
func (s *Store) Put(ctx context.Context, e *Entry, h Head, body []byte) error {
	limit := int(s.js.Conn().MaxPayload()) - headerRoom
	h.Group, h.Worker, h.Parts, h.Bytes = s.group, s.worker, 1, len(body)
	h.Time = h.Time.UTC()
	head, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("deadletter: %w", err)
	}
	first := min(len(body), max(limit-len(head)-16, 0))
	if rest := body[first:]; len(rest) > 0 {
		piece := max(limit, minPiece)
		h.Parts = 1 + (len(rest)+piece-1)/piece
		if head, err = json.Marshal(h); err != nil {
			return fmt.Errorf("deadletter: %w", err)
		}
		for i := h.Parts - 1; i > 0; i-- {
			if err := s.put(ctx, e, i, rest[(i-1)*piece:min(i*piece, len(rest))]); err != nil {
				return err
			}
		}
	}
	return s.put(ctx, e, 0, slices.Concat(head, []byte{'\n'}, body[:first]))
}

// put stores one message, unless its subject has one.
func (s *Store) put(ctx context.Context, e *Entry, part int, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := s.js.Publish(ctx, s.prefix+e.subject()+"."+strconv.Itoa(part), data,
		jetstream.WithExpectLastSequencePerSubject(0), jetstream.WithExpectStream(StreamName(s.group)))
	var api *jetstream.APIError
	if errors.As(err, &api) && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deadletter: storing %s: %w", e.ID(), err)
	}
	return nil
}

// List gives all letters and marks in the order of the source. It looks for the stream first; none has none.
func (s *Store) List(ctx context.Context) ([]Entry, error) {
	if err := s.look(ctx); err != nil || s.stream == nil {
		return nil, err
	}
	var info *jetstream.StreamInfo
	err := s.again(ctx, func(ctx context.Context) (err error) {
		info, err = s.stream.Info(ctx, jetstream.WithSubjectFilter(s.prefix+"*.*.*.0"))
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s.stream = nil
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("deadletter: listing stream %s: %w", StreamName(s.group), err)
	}
	all := make([]Entry, 0, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		e, ok := parseEntry(strings.TrimSuffix(strings.TrimPrefix(subject, s.prefix), ".0"))
		if !ok {
			return nil, fmt.Errorf("%w: subject %s in stream %s is none of flo's: remove its messages", ErrStream, subject, StreamName(s.group))
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return compare(&a, &b) })
	return all, nil
}

// Get reads a letter.
func (s *Store) Get(ctx context.Context, e *Entry) (Head, []byte, error) {
	var h Head
	data, err := s.get(ctx, e, 0)
	if err != nil {
		return h, nil, err
	}
	line, body, ok := bytes.Cut(data, []byte{'\n'})
	if err := json.Unmarshal(line, &h); !ok || err != nil || h.Bytes < 0 {
		return h, nil, fmt.Errorf("%w: %s in stream %s is not as flo writes it (%w)", ErrNotFound, e.ID(), StreamName(s.group), err)
	}
	for i := 1; i < h.Parts; i++ {
		piece, err := s.get(ctx, e, i)
		if err != nil {
			return h, nil, err
		}
		body = append(body, piece...)
	}
	if len(body) != h.Bytes {
		return h, nil, fmt.Errorf("%w: %s has %d bytes, its head says %d", ErrNotFound, e.ID(), len(body), h.Bytes)
	}
	return h, body, nil
}

func (s *Store) get(ctx context.Context, e *Entry, part int) ([]byte, error) {
	if s.stream == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, e.ID())
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m, err := s.stream.GetLastMsgForSubject(ctx, s.prefix+e.subject()+"."+strconv.Itoa(part))
	if errors.Is(err, jetstream.ErrMsgNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w: part %d of %s", ErrNotFound, part, e.ID())
	}
	if err != nil {
		return nil, fmt.Errorf("deadletter: reading %s: %w", e.ID(), err)
	}
	return m.Data, nil
}

// Last gives the head of the letter that was stored last.
func (s *Store) Last(ctx context.Context) (h Head, err error) {
	if s.stream == nil {
		return h, ErrNotFound
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	m, err := s.stream.GetLastMsgForSubject(ctx, s.prefix+"*.*.*.0")
	if err != nil {
		return h, fmt.Errorf("deadletter: reading the last letter: %w", err)
	}
	line, _, _ := bytes.Cut(m.Data, []byte{'\n'})
	return h, json.Unmarshal(line, &h)
}

// Delete removes a letter with all its parts. What is gone already is no error.
func (s *Store) Delete(ctx context.Context, e *Entry) error { return s.purge(ctx, e.subject()+".*") }

// DeleteAll removes the worker's letters. The stream has to be known: List comes first.
func (s *Store) DeleteAll(ctx context.Context) error { return s.purge(ctx, ">") }

func (s *Store) purge(ctx context.Context, rest string) error {
	if s.stream == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	err := s.stream.Purge(ctx, jetstream.WithPurgeSubject(s.prefix+rest))
	if err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("deadletter: removing from stream %s: %w", StreamName(s.group), err)
	}
	return nil
}

// Drop deletes a group's stream of dead letters. One that is gone already is no error.
func Drop(ctx context.Context, js jetstream.JetStream, group string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := js.DeleteStream(ctx, StreamName(group)); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("deadletter: delete stream %s: %w", StreamName(group), err)
	}
	return nil
}
