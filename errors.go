package flo

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	flocopy "github.com/pgflo/flo/copy"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/state"
)

// The errors with which Run stops. Each is found by errors.Is; the message that wraps it says what
// happened and what to do. What is transient (connections lost, servers starting up, deadlocks) is
// retried with a backoff and never returned.
var (
	// ErrInvalidOption wraps each bad option that New found.
	ErrInvalidOption = errors.New("flo: invalid option")
	// ErrRunning: Run was called while another call of it is running.
	ErrRunning = errors.New("flo: already running")
	// ErrSlotLost: the replication slot is missing or invalidated, so changes may be missing.
	ErrSlotLost = errors.New("flo: replication slot lost")
	// ErrUndecodable: the source can't decode its own WAL for the slot (an internal error of PostgreSQL, such as "could not map
	// filenode"). If starting again meets the same error, the slot never gets past that place: start over, by WithResync.
	ErrUndecodable = errors.New("flo: the source can't decode its WAL for the slot")
	// ErrSourceChanged: the source is not the server (or not the history) that the stream was made from.
	ErrSourceChanged = errors.New("flo: source changed")
	// ErrGap: changes are missing between two positions.
	ErrGap = errors.New("flo: gap in the stream of changes")
	// ErrStreamLost: the JetStream stream was deleted, or is not the one that the slot or a sink's
	// checkpoint belongs to.
	ErrStreamLost = errors.New("flo: stream lost")
	// ErrStreamSettings: somebody gave the JetStream stream settings with which it can lose changes; the text names each.
	ErrStreamSettings = errors.New("flo: the stream's settings were changed")
	// ErrHistoryGone: a new worker needs the initial copy, which the stream no longer holds.
	ErrHistoryGone = errors.New("flo: the stream no longer holds the beginning")
	// ErrLeaseLost: another process works under the same name. Run doesn't return it: it stands by, and
	// takes over when that one is gone.
	ErrLeaseLost = sink.ErrLeaseLost
	// ErrTables: tables that were asked for cannot be replicated.
	ErrTables = errors.New("flo: tables cannot be replicated")
	// ErrCredentials: the source refused flo's role, its password, or its address (pg_hba.conf). A password that
	// WithPassword's function gives is asked for again instead.
	ErrCredentials = errors.New("flo: the source refused the login")
	// ErrSlotTaken: a replication slot of the name that the group needs belongs to somebody else, such as a group of the
	// same name that copies another database of the server.
	ErrSlotTaken = errors.New("flo: the slot's name is taken")
	// ErrNoWorker: RemoveWorker was given a name that no worker of the group has.
	ErrNoWorker = errors.New("flo: the group has no such worker")
	// ErrPrivilege: a role lacks a privilege at the source; the text names the GRANT.
	ErrPrivilege = errors.New("flo: privilege is missing")
	// ErrSourceSettings: the source's version or settings (wal_level, for one) don't allow logical replication.
	ErrSourceSettings = errors.New("flo: the source is not fit for logical replication")
	// ErrTransactionTooLarge: a transaction is larger than WithStreamMaxBytes lets the stream be.
	ErrTransactionTooLarge = errors.New("flo: transaction too large for the stream")
	// ErrMode: the group was begun in a mode that the one asked for doesn't go on with.
	ErrMode = errors.New("flo: the group was run in another mode")
	// ErrStopped: WaitFor was waiting when Run ended.
	ErrStopped = errors.New("flo: Run has ended")
	// ErrNATSClosed: the connection given by WithNATS or WithJetStream was closed by its owner.
	ErrNATSClosed = errors.New("flo: NATS connection closed")
	// ErrNotDrained: Run was stopped and could not finish what was under way within its bound, because
	// JetStream or the sink did not answer. Nothing is lost: the next start takes it up again.
	ErrNotDrained = errors.New("flo: stopped before everything under way was finished; the next start takes it up again")
	// ErrWALLimit: the slot kept more WAL at the source than WithWALLimit allows.
	ErrWALLimit = errors.New("flo: the slot keeps too much WAL")
	// ErrDeadLetters: a change would be one dead letter more than WithDeadLetterLimit allows, or, under Stop, it is
	// about a row that has one. It comes within a SinkError.
	ErrDeadLetters = errors.New("flo: dead letters")
	// ErrTableForgotten: changes are left of a table of which neither the source's catalog nor the group's state
	// knows anything any more.
	ErrTableForgotten = errors.New("flo: a table is gone of which changes are left")
	// ErrFinished: the group was run as CopyOnly and has finished.
	ErrFinished = errors.New("flo: the group's copy has finished")
)

// SinkError is a change that can't be decoded, or that the sink, or a rule, refused for good.
type SinkError struct {
	Worker   string
	Position decode.Position // of the change; zero for copied rows; Ordinal 0: the transaction, at its commit
	Copy     *decode.CopyID  // of a copied row, or of a chunk if no row of it is to blame
	Table    decode.Name
	Err      error
}

func (e *SinkError) Error() string {
	where := ""
	switch {
	case e.Copy != nil:
		where = fmt.Sprintf("copied rows %s of table %s: ", e.Copy, e.Table)
	case e.Position != (decode.Position{}):
		where = fmt.Sprintf("position %s of table %s: ", e.Position, e.Table)
		if e.Table == (decode.Name{}) { // a schema change: its error names what it is about
			where = fmt.Sprintf("position %s: ", e.Position)
		}
	}
	return fmt.Sprintf("flo: worker %q: %s%v", e.Worker, where, e.Err)
}

func (e *SinkError) Unwrap() error { return e.Err }

// fatal reports whether an error ends Run whatever wraps it.
func fatal(err error) bool {
	var se *SinkError
	if errors.As(err, &se) {
		return true
	}
	for _, e := range []error{ErrInvalidOption, ErrSlotLost, ErrUndecodable, ErrSourceChanged, ErrGap, ErrStreamLost, ErrStreamSettings, ErrHistoryGone, ErrTables, ErrCredentials, ErrSlotTaken, ErrPrivilege, ErrSourceSettings, ErrNATSClosed, ErrTransactionTooLarge, ErrMode, ErrTableForgotten, ErrFinished, ErrWALLimit} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// passing are the errors of flo's own packages behind which trying again makes sense.
var passing = []error{
	errAgain, errResume, errReposition, errNoLabels, errAbsent, pack.ErrDiffers,
	bus.ErrFenced, bus.ErrRolledBack, bus.ErrNoStream, bus.ErrClosed, bus.ErrUnreadable,
	source.ErrSlotActive, source.ErrPassword, source.ErrStreamClosed, flocopy.ErrSnapshotGone, flocopy.ErrLocked,
	state.ErrConflict, state.ErrNotFound, state.ErrLost, state.ErrUnreadable, ErrLeaseLost,
	nats.ErrTimeout, nats.ErrNoResponders, nats.ErrConnectionClosed, nats.ErrDisconnected, nats.ErrNoServers,
	nats.ErrConnectionReconnecting, nats.ErrConnectionDraining, nats.ErrReconnectBufExceeded, nats.ErrStaleConnection,
	jetstream.ErrNoHeartbeat, jetstream.ErrBucketNotFound, jetstream.ErrNoStreamResponse, jetstream.ErrConsumerNotFound, jetstream.ErrConsumerDeleted, jetstream.ErrServerShutdown,
	context.DeadlineExceeded, // a bound on one request: the caller's own context is looked at first
}

// transient reports whether an error may pass by itself.
func transient(err error) bool {
	if fatal(err) {
		return false
	}
	var again *retryable
	if errors.As(err, &again) || pgsession.Transient(err) {
		return true
	}
	var api *jetstream.APIError
	if errors.As(err, &api) && api.Code >= 500 {
		return true
	}
	for _, e := range passing {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// named gives the inner packages' errors the names that users know.
func named(err error) error {
	if err == nil || fatal(err) {
		return err
	}
	var settings *bus.ConfigError
	if errors.As(err, &settings) {
		return fmt.Errorf("%w: %w", ErrStreamSettings, err)
	}
	for inner, outer := range map[error]error{
		bus.ErrStreamGone:      ErrStreamLost,
		bus.ErrOtherSource:     ErrSourceChanged,
		source.ErrTimeline:     ErrSourceChanged,
		source.ErrSlotLost:     ErrSlotLost,
		source.ErrSlotMissing:  ErrSlotLost,
		source.ErrSlotMismatch: ErrSlotLost,
		source.ErrSlotExists:   ErrSlotTaken,
		source.ErrSlotAhead:    ErrGap,
		source.ErrTable:        ErrTables,
		source.ErrPrivilege:    ErrPrivilege,
		source.ErrCredentials:  ErrCredentials,
		source.ErrSource:       ErrSourceSettings,
		flocopy.ErrPermission:  ErrPrivilege,
		flocopy.ErrRowSecurity: ErrPrivilege,
	} {
		if errors.Is(err, inner) {
			return fmt.Errorf("%w: %w", outer, err)
		}
	}
	return err
}

func isDiffers(err error) bool { return errors.Is(err, pack.ErrDiffers) }
