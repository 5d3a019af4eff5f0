package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Resync is what a group remembers of requests to start over. The stream that answers one says so too: what is
// here bridges the time in which there is no stream.
type Resync struct {
	Pending     string    `json:"pending,omitempty"`     // a request that was begun, and whose stream is not made yet
	Token       string    `json:"token,omitempty"`       // the last one that was answered …
	Incarnation string    `json:"incarnation,omitempty"` // … by this stream
	Tokens      []string  `json:"tokens,omitempty"`      // all that were answered, the latest last, at most ResyncMemory
	Replaces    []string  `json:"replaces,omitempty"`    // incarnations whose checkpoints count no more
	Updated     time.Time `json:"updated"`
}

// ResyncMemory is how many requests, and how many incarnations, are remembered.
const ResyncMemory = 64

// Answers reports whether a request was answered.
func (r Resync) Answers(token string) bool { return slices.Contains(r.Tokens, token) }

const (
	keyResync = "resync"
	// metaPending is the key of a bucket's metadata that says that it was made for a request: a group whose bucket
	// was deleted must not be able to go on with an empty one.
	metaPending = "flo.resync"
)

// NewNATSForResync is NewNATS with create set, for a group whose bucket is gone: until PutResync, the new one's Resync
// says that token is pending.
func NewNATSForResync(ctx context.Context, js jetstream.JetStream, group string, replicas int, token string) (Store, error) {
	return newNATS(ctx, js, group, replicas, true, token)
}

// Resync implements Store.
func (s *natsStore) Resync(ctx context.Context) (r Resync, rev uint64, err error) {
	if rev, err = s.get(ctx, keyResync, &r); errors.Is(err, ErrNotFound) {
		return Resync{Pending: s.pending}, 0, nil
	}
	return r, rev, err
}

// PutResync implements Store. An error other than ErrConflict leaves open whether it was written.
func (s *natsStore) PutResync(ctx context.Context, r Resync, rev uint64) (uint64, error) {
	return s.swap(ctx, keyResync, r, rev)
}

// Resync implements Store.
func (m *Memory) Resync(ctx context.Context) (Resync, uint64, error) {
	if err := ctx.Err(); err != nil {
		return Resync{}, 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.resync, m.resyncRev, nil
}

// PutResync implements Store.
func (m *Memory) PutResync(ctx context.Context, r Resync, rev uint64) (uint64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.resyncRev != rev {
		return 0, fmt.Errorf("%w: %s is at revision %d, not %d", ErrConflict, keyResync, m.resyncRev, rev)
	}
	m.revision++
	r.Tokens, r.Replaces = slices.Clone(r.Tokens), slices.Clone(r.Replaces)
	m.resync, m.resyncRev = r, m.revision
	return m.resyncRev, nil
}
