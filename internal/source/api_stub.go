package source

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
)

var errStub = errors.New("source: not there yet")

// ResolveTables finds the tables that include and not exclude name.
func (c Config) ResolveTables(ctx context.Context, conn *pgx.Conn, include, exclude []names.Pattern) ([]Table, []string, error) {
	return nil, nil, errStub
}

// EnsurePublication makes or reconciles the publications.
func (c Config) EnsurePublication(ctx context.Context, conn *pgx.Conn, spec PublicationSpec) (Published, error) {
	return Published{}, errStub
}

// DropPublications drops both publications of a name.
func (c Config) DropPublications(ctx context.Context, conn *pgx.Conn, name string) error {
	return errStub
}

// Describe reads what a worker needs to know of a relation.
func Describe(ctx context.Context, conn *pgx.Conn, relation uint32, types []uint32) (decode.Description, error) {
	return decode.Description{}, errStub
}

// OldTransaction is one that slot creation waits for.
type OldTransaction struct {
	PID         int32 // 0 for a prepared transaction
	User        string
	Database    string
	Application string
	State       string
	Started     time.Time
	QueryStart  time.Time
	XID         uint32
	GID         string // of a prepared transaction
	Blocking    bool   // the one that is waited for right now
}

// NewSlot is a slot that was just made; its snapshot can be imported until Release.
type NewSlot struct {
	Name     string
	Point    decode.LSN
	Snapshot string
}

// Release ends the session that exported the snapshot, and with it a temporary slot.
func (s *NewSlot) Release(ctx context.Context) error { return errStub }

// CreateSlot makes a logical slot and exports its snapshot.
func (c Config) CreateSlot(ctx context.Context, name string, temporary bool, onWait func([]OldTransaction)) (*NewSlot, error) {
	return nil, errStub
}

// StreamConfig of StartStream.
type StreamConfig struct {
	Slot           string
	Publications   []string
	From           decode.LSN
	System         System
	StatusInterval time.Duration
}

// EventKind is what Next met.
type EventKind uint8

const (
	Frame     EventKind = iota + 1 // a pgoutput message
	Keepalive                      // the server's position, without data
	Idle                           // nothing within the wait
)

// Event of the stream.
type Event struct {
	Kind   EventKind
	Data   []byte     // of a Frame, valid until the next call
	WALEnd decode.LSN // of a Keepalive: nothing before it is still to come
}

// Stream is the replication connection. One goroutine owns it.
type Stream struct{}

// StartStream starts streaming.
func (c Config) StartStream(ctx context.Context, sc StreamConfig) (*Stream, error) {
	return nil, errStub
}

// Next waits for an event.
func (s *Stream) Next(wait time.Duration) (Event, error) { return Event{}, errStub }

// Tick sends feedback when due.
func (s *Stream) Tick(now time.Time) error { return errStub }

// Confirm sets the position that may be flushed.
func (s *Stream) Confirm(lsn decode.LSN) {}

// SetLazy allows lazy reading.
func (s *Stream) SetLazy(on bool) {}

// Received gives the highest position seen.
func (s *Stream) Received() decode.LSN { return 0 }

// Close ends the stream.
func (s *Stream) Close(ctx context.Context) error { return errStub }
