package bus

import (
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// Errors of this package, found by errors.Is.
var (
	// ErrNoStream says that the group has no stream yet.
	ErrNoStream = errors.New("bus: the group has no stream: start its replicator first")
	// ErrOtherSource says that the stream was made from another PostgreSQL cluster or database.
	ErrOtherSource = errors.New("bus: the stream belongs to another source: use another group name, or start over (WithResync and a new token, or Drop)")
	// ErrStreamGone says that the stream was deleted, or deleted and made again. Nothing that was
	// known about it holds any more.
	ErrStreamGone = errors.New("bus: the stream was deleted or made again: start anew from the stream that is there now; " +
		"sinks that hold the old one's data need a fresh copy (WithResync and a new token, or Drop)")
	// ErrEmpty says that the stream holds no message that was asked for.
	ErrEmpty = errors.New("bus: no such message in the stream")
	// ErrUnreadable says that NATS doesn't give something, and then counts it among what the stream holds. It may pass.
	ErrUnreadable = errors.New("bus: NATS contradicts itself about what the stream holds: the server is stopping, or can't read its store (its log says why)")
	// ErrFenced says that another writer has written to the stream: this one is out of date.
	ErrFenced = errors.New("bus: another writer has written to the stream: only one replicator of a group may be active; begin again from the tail")
	// ErrRolledBack says that the stream has lost messages that it had acknowledged: the NATS server
	// came back with an older state.
	ErrRolledBack = errors.New("bus: the stream lost acknowledged messages (the NATS server came back with an older state): begin again from the tail")
	// ErrTooLarge says that a message is larger than the server takes: cut it (Stream.MaxPayload).
	ErrTooLarge = errors.New("bus: message is larger than the server's max_payload")
	// ErrBeyondTail says that a purge was asked for beyond what is known to be in the stream.
	ErrBeyondTail = errors.New("bus: refused to purge beyond the verified tail")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("bus: closed")
	// ErrConfig is wrapped by errors about a Config.
	ErrConfig = errors.New("bus: invalid configuration")
)

// ConfigError says that the stream exists with settings that flo can't work with.
type ConfigError struct {
	Stream  string
	Differs []string // one "setting is x, must be y" each
}

// Error names what differs and what to do.
func (e *ConfigError) Error() string {
	return fmt.Sprintf("bus: stream %s has settings that flo can't work with: %s; change them back (nats stream edit %s), or, where that is not possible or messages are missing, copy afresh (WithResync and a new token, or Drop)",
		e.Stream, strings.Join(e.Differs, "; "), e.Stream)
}

// permanent reports whether trying again can't help.
func permanent(err error) bool {
	var ce *ConfigError
	return errors.Is(err, ErrStreamGone) || errors.Is(err, ErrClosed) || errors.Is(err, ErrFenced) ||
		errors.Is(err, ErrRolledBack) || errors.As(err, &ce)
}

// mapError gives the API's errors the names of this package.
func mapError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return fmt.Errorf("%w (%w)", ErrStreamGone, err)
	default:
		return err
	}
}
