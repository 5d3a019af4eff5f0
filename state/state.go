// Package state keeps what flo remembers besides the stream itself: where the replicator is (for
// people) and how far each worker has come (so that the stream can be purged, and for sinks that
// don't keep their own checkpoint).
package state

import (
	"context"
	"errors"
	"time"

	"github.com/pgflo/flo/decode"
)

// ErrConflict says that a record was changed by somebody else since it was read.
var ErrConflict = errors.New("state: changed by another process since it was read")

// ErrNotFound says that there is no such record.
var ErrNotFound = errors.New("state: no such record")

// Store keeps a group's records. All reads are of the latest state.
type Store interface {
	Replicator(ctx context.Context) (Replicator, error) // ErrNotFound
	PutReplicator(ctx context.Context, r Replicator) error
	Workers(ctx context.Context) ([]Worker, error)
	// Worker reads one record and its revision.
	Worker(ctx context.Context, name string) (Worker, uint64, error) // ErrNotFound
	// PutWorker writes a record if its revision is still rev (0: it must not exist), else ErrConflict.
	PutWorker(ctx context.Context, w Worker, rev uint64) (uint64, error)
	DeleteWorker(ctx context.Context, name string) error
	// Lease reads a lease and its revision. Names are ReplicatorLease and WorkerLease's.
	Lease(ctx context.Context, name string) (Lease, uint64, error) // ErrNotFound
	// PutLease writes a lease if its revision is still rev (0: it must not exist), else ErrConflict.
	PutLease(ctx context.Context, l Lease, rev uint64) (uint64, error)
	// Tables gives what is remembered of the published tables, in the order of their OIDs; none is no error.
	Tables(ctx context.Context) ([]Table, error)
	// AddTables adds what is not in the record yet: names and ancestors are never taken out of it, so that
	// two writers don't undo each other. It must be stored when it returns.
	AddTables(ctx context.Context, tables []Table) error
	// ForgetTables takes all tables out of the record.
	ForgetTables(ctx context.Context) error
	// Adopted gives the tables of the group's publications and what publishes them, as PutAdopted wrote them: ErrNotFound if it
	// never did. Only the holder of ReplicatorLease may write them.
	Adopted(ctx context.Context) (Adopted, error)
	PutAdopted(ctx context.Context, a Adopted) error
	// Resync gives what is remembered of requests to start over, and its revision; both zero if there was none.
	Resync(ctx context.Context) (Resync, uint64, error)
	// PutResync writes that if its revision is still rev (0: it must not exist), else ErrConflict. Only the holder of
	// ReplicatorLease may.
	PutResync(ctx context.Context, r Resync, rev uint64) (uint64, error)
	// Drop deletes all of the group's records.
	Drop(ctx context.Context) error
}

// Replicator is what the replicator says of itself, for people: nothing is resumed from it, though a source is
// compared with it.
type Replicator struct {
	Group       string     `json:"group"`
	Incarnation string     `json:"incarnation"`
	System      string     `json:"system"`
	Database    string     `json:"database"`
	Slot        string     `json:"slot"`
	Mode        string     `json:"mode"`
	Phase       string     `json:"phase"`
	LastLSN     decode.LSN `json:"last_lsn"`  // end of the last transaction in the stream
	Confirmed   decode.LSN `json:"confirmed"` // what the slot was told
	WALKept     int64      `json:"wal_kept"`  // bytes of WAL that the source keeps for the slot
	// Publications are the names that the slot is read with, quoted, separated by commas.
	Publications string `json:"publications,omitempty"`
	// LastCommit is a transaction that was read, and when it was committed: by it a source that was restored from
	// a backup is recognised.
	LastCommit     decode.LSN `json:"last_commit,omitzero"`
	LastCommitTime time.Time  `json:"last_commit_time,omitzero"`
	Updated        time.Time  `json:"updated"`
}

// Worker is a worker's registration and progress.
type Worker struct {
	Name       string            `json:"name"`
	Epoch      uint64            `json:"epoch"` // rises at each start
	Checkpoint decode.Checkpoint `json:"checkpoint"`
	Finished   bool              `json:"finished,omitempty"` // a CopyOnly group's worker has applied all
	// Recopy are source tables that the worker needs copied afresh, by an attempt above RecopyAttempt.
	Recopy        []uint32  `json:"recopy,omitempty"`
	RecopyAttempt uint32    `json:"recopy_attempt,omitempty"`
	Updated       time.Time `json:"updated"`
}
