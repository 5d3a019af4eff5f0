package state

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ErrUnreadable says that NATS doesn't give a record that it counts among what the bucket holds. It may pass.
var ErrUnreadable = errors.New("state: NATS contradicts itself about what the bucket holds: the server is stopping, or can't read its store (its log says why)")

const (
	// absentConfirm is how long the bucket may contradict itself about a key.
	absentConfirm = time.Second
	absentPoll    = 100 * time.Millisecond
)

// missing confirms that a key that was not found is not there: nats-server says so whatever keeps its store from giving a message
// (jetstream_api.go, jsMsgGetRequest). It gives nil if it is to be asked for again, and ErrNotFound if it isn't there.
func (s *natsStore) missing(ctx context.Context, key string, since time.Time) error {
	absent, err := s.absent(ctx, "$KV."+s.bucket+"."+key)
	switch {
	case err != nil:
		return fmt.Errorf("state: read %s: %w", key, err)
	case absent:
		return fmt.Errorf("%w: %s", ErrNotFound, key)
	case time.Since(since) > absentConfirm:
		return fmt.Errorf("%w: %s", ErrUnreadable, key)
	}
	t := time.NewTimer(absentPoll)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// absent reports whether a subject's message is the marker of a deletion, or, if there is none, whether the stream's index, which
// is in memory, knows of none either.
func (s *natsStore) absent(ctx context.Context, subject string) (bool, error) {
	var m *jetstream.RawStreamMsg
	err := s.again(ctx, func(ctx context.Context) (err error) {
		m, err = s.stream.GetLastMsgForSubject(ctx, subject)
		return err
	})
	if err == nil {
		return m.Header.Get("KV-Operation") != "", nil // NATS ADR-8: DEL or PURGE
	}
	if !errors.Is(err, jetstream.ErrMsgNotFound) {
		return gone(err), notGone(err)
	}
	var info *jetstream.StreamInfo
	err = s.again(ctx, func(ctx context.Context) (err error) {
		info, err = s.stream.Info(ctx, jetstream.WithSubjectFilter(subject))
		return err
	})
	if err != nil {
		return gone(err), notGone(err)
	}
	return len(info.State.Subjects) == 0, nil
}

// notGone gives an error unless it says that the bucket is gone.
func notGone(err error) error {
	if gone(err) {
		return nil
	}
	return err
}
