// Package postgres is the sink that applies changes to a PostgreSQL database, version 12 or later,
// exactly once: the checkpoint stands in the same transaction as the data.
//
// A batch becomes one transaction at the destination. A source transaction that spans several batches
// (Batch.More) becomes one too; any error within it rolls all of it back, and the worker starts it over
// after Open. Identity columns, generated columns, deferrable keys, whole-row replica identities and
// unchanged TOAST values are taken care of; what cannot be applied is refused with the change's index.
//
// Of a batch with many changes, those of a table are reduced to one a key and applied by sets or COPY,
// where nothing depends on their order; what the server refuses then is undone and applied one by one, in
// order. A value that the same batch overwrites may so never be seen by the destination's constraints.
//
// The sink keeps its own tables in schema "flo" of the destination: checkpoints, backends (the sessions
// that write, so that a successor can end those of a half-dead predecessor), copies, copy_chunks and structures.
// Sessions have to be the sink's own: a pooler in between must pool whole sessions, not transactions (ErrPooler).
package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

var (
	_ sink.Transactional = (*Sink)(nil)
	_ sink.CopySink      = (*Sink)(nil)
	_ sink.Closer        = (*Sink)(nil)
)

// Sink writes to one PostgreSQL database on behalf of one worker. Write, Open, Abort and Close belong to
// one goroutine; BeginTable, WriteChunk and EndTable may be called from several beside it.
type Sink struct {
	config config
	books  books
	pool   *pool

	// start is set by a successful Open and read by the copy's goroutines.
	start atomic.Pointer[sink.Start]

	// What follows belongs to the goroutine that calls Write.
	main     *session
	prepared bool   // the bookkeeping tables are known to be there
	open     bool   // Open has succeeded and no error came since
	stored   string // the checkpoint's text at the destination, as this sink left it
	tx       transaction
	afresh   bool // the catalog was looked up afresh because of an error, and no commit came since

	// heal makes inserts overwrite rows that have the same deferrable key. At first they don't: such a
	// key may stand twice until the source's transaction ends, and a row overwritten then would be lost.
	// Only if the commit finds it twice was there a stale row, and the transaction comes again with heal.
	heal bool

	pidsMu sync.Mutex
	pids   map[uint32]struct{} // backends of this Sink's own live sessions

	stats  *counters    // of all lanes
	schema *schemaState // of all lanes

	lanes   lanes
	mark    laneMark   // what a lane stores with a batch
	merging sync.Map   // attempts whose rows go into a table of their own, by source
	keys    *knownKeys // of all lanes
	asides  *asides    // of all lanes

	// generation counts the schema changes that were applied, by all lanes: what was looked up before may be wrong.
	generation *atomic.Uint64
}

// transaction is the state of the destination transaction that is open between batches.
type transaction struct {
	begun    bool
	ended    bool // COMMIT has succeeded
	deferred bool // SET CONSTRAINTS ALL DEFERRED was sent
	changes  uint64
	missing  uint64

	custom    bool            // statements are planned for their parameters
	savepoint bool            // one stands in front of the last group
	schema    bool            // a schema change was applied
	rewritten map[uint32]bool // see ddl.anew
}

// Stats counts what this Sink has done since New.
type Stats struct {
	Transactions  uint64 // committed at the destination, the copy's left out
	Changes       uint64 // committed
	MissingRows   uint64 // UPDATEs and DELETEs, committed, that met no row
	Chunks        uint64 // copied
	ChunksSkipped uint64 // came again and were skipped
	CopiedRows    uint64
}

type counters struct {
	transactions, changes, missing, chunks, skipped, copied atomic.Uint64
	runs, sets, undone                                      atomic.Uint64 // of inserts by COPY; of rows; of groups
	spread                                                  atomic.Uint64 // batches that several connections applied
	swift                                                   atomic.Uint64 // transactions, see writing.swift
}

// New makes a Sink for the database at url (a URL or a keyword/value string, as libpq takes it, and the
// PG… environment variables). It validates and does no I/O. Errors wrap ErrInvalidOption and hold
// nothing of url.
func New(url string, opts ...Option) (*Sink, error) {
	conn, err := pgsession.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: %w: %w", ErrInvalidOption, err)
	}
	return NewConfig(conn, opts...)
}

// NewConfig is New for a configuration that pgx.ParseConfig has made. It is copied.
func NewConfig(conn *pgx.ConnConfig, opts ...Option) (*Sink, error) {
	if conn == nil {
		return nil, fmt.Errorf("sink/postgres: %w: no connection configuration", ErrInvalidOption)
	}
	c, err := newConfig(conn.Copy(), opts)
	if err != nil {
		return nil, err
	}
	s := &Sink{config: c, books: newBooks(c.schema), pids: make(map[uint32]struct{}), stats: new(counters), keys: new(knownKeys), asides: new(asides), schema: new(schemaState), generation: new(atomic.Uint64)}
	s.pool = newPool(c.connections)
	return s, nil
}

// Parallel says how many goroutines may call WriteChunk to some use.
func (s *Sink) Parallel() int { return s.config.connections }

// Stats gives the counters. It may be called at any time.
func (s *Sink) Stats() Stats {
	return Stats{
		Transactions:  s.stats.transactions.Load(),
		Changes:       s.stats.changes.Load(),
		MissingRows:   s.stats.missing.Load(),
		Chunks:        s.stats.chunks.Load(),
		ChunksSkipped: s.stats.skipped.Load(),
		CopiedRows:    s.stats.copied.Load(),
	}
}

// Open connects, creates flo's own tables if they are missing, and takes the worker's checkpoint row
// over for st.Epoch. A predecessor's session that still holds the row is ended; if that is not
// permitted Open waits for it until ctx ends. What an earlier Open left unfinished is rolled back. It
// fails with sink.ErrLeaseLost if a later epoch is there.
func (s *Sink) Open(ctx context.Context, st sink.Start) (decode.Checkpoint, error) {
	cp, err := s.openOne(ctx, st)
	if err != nil {
		return cp, s.books.explain(err)
	}
	if cp, err = s.openLanes(ctx, st, cp); err != nil {
		s.fail(ctx)
		return decode.Checkpoint{}, judge(err, -1)
	}
	return cp, nil
}

// openOne opens this connection.
func (s *Sink) openOne(ctx context.Context, st sink.Start) (decode.Checkpoint, error) {
	var none decode.Checkpoint
	if st.Group == "" || st.Worker == "" {
		return none, sink.Permanent(fmt.Errorf("sink/postgres: %w: Open needs a group and a worker name", ErrInvalidOption))
	}
	if s.pool.isClosed() {
		return none, sink.Permanent(errClosed)
	}
	s.open = false
	s.rollback(ctx)
	if s.main == nil {
		conn, err := s.connect(ctx, st)
		if err != nil {
			return none, judge(err, -1)
		}
		s.main = conn
	}
	text, err := s.prepareAndTakeOver(ctx, st)
	if err != nil {
		s.rollback(ctx)
		return none, judge(err, -1)
	}
	var cp decode.Checkpoint
	if err := cp.UnmarshalText([]byte(text)); err != nil {
		return none, sink.Permanent(fmt.Errorf("sink/postgres: %s.checkpoints of group %q, worker %q: %w", s.config.schema, st.Group, st.Worker, err))
	}
	keys, err := s.readKeys(ctx, s.main.pg, keysPrefix(&st))
	if err != nil {
		s.rollback(ctx)
		return none, judge(err, -1)
	}
	s.keys.set(keys)
	if err := s.readAsides(ctx, s.main.pg, &st); err != nil {
		s.rollback(ctx)
		return none, judge(err, -1)
	}
	s.stored, s.open = text, true
	s.start.Store(&st)
	return cp, nil
}

func (s *Sink) prepareAndTakeOver(ctx context.Context, st sink.Start) (string, error) {
	if !s.prepared {
		if err := s.books.create(ctx, s.main.pg); err != nil {
			return "", err
		}
		s.prepared = true
	}
	text, err := s.takeOver(ctx, s.main, st)
	if err != nil {
		// The tables may have been dropped while this Sink lived.
		if code := pgsession.SQLState(err); code == "42P01" || code == "3F000" {
			s.prepared = false
		}
		return "", err
	}
	return text, nil
}

// Write applies a batch. It returns nil once a batch without More is committed with its checkpoint. After
// any error the destination transaction is rolled back, all of it, and Open has to be called; what has
// to come again is what lies behind the checkpoint that Open returns.
//
// A connection lost during COMMIT is an error too, though the commit may have taken place: Open tells.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if s.open && len(s.lanes.all) > 0 {
		return s.books.explain(s.lanes.write(ctx, b))
	}
	return s.books.explain(s.writeOne(ctx, b))
}

// writeOne applies a batch by this connection.
func (s *Sink) writeOne(ctx context.Context, b *sink.Batch) error {
	if !s.open {
		return fmt.Errorf("sink/postgres: %w", ErrNotOpen)
	}
	if st := s.start.Load(); b.Epoch != st.Epoch {
		s.fail(ctx)
		return sink.Permanent(fmt.Errorf("sink/postgres: batch of epoch %d, opened for %d: %w", b.Epoch, st.Epoch, sink.ErrLeaseLost))
	}
	resumed := s.tx.begun
	if now := s.generation.Load(); !resumed && s.main.generation != now {
		if err := s.main.forget(ctx); err != nil {
			s.fail(ctx)
			return judge(err, -1)
		}
		s.main.generation = now
	}
	err := s.write(ctx, b)
	var again *againError
	for errors.As(err, &again) {
		altered := s.tx.schema // by which tables of keys may have been, and Open reads those
		if !s.recover(ctx) || resumed || altered {
			break // the worker starts the transaction over
		}
		err = s.write(ctx, b)
	}
	if err != nil {
		s.fail(ctx)
		return err
	}
	if !b.More {
		s.heal, s.afresh = false, false
	}
	return nil
}

// recover rolls back and forgets what is known of the tables; it reports whether the session lives.
func (s *Sink) recover(ctx context.Context) bool {
	s.rollback(ctx)
	return s.main != nil && s.main.forget(ctx) == nil
}

// Abort rolls back the transaction that batches with More have begun. Open has to be called before the
// next Write.
func (s *Sink) Abort(ctx context.Context) error {
	for _, lane := range s.lanes.all {
		lane.fail(ctx)
	}
	s.fail(ctx)
	return nil
}

// fail rolls back; the next call has to be Open.
func (s *Sink) fail(ctx context.Context) {
	s.open = false
	s.rollback(ctx)
}

// rollback ends the open transaction, with the connection if need be.
func (s *Sink) rollback(ctx context.Context) {
	altered := s.tx.schema
	s.tx = transaction{}
	if s.main != nil && !s.main.reset(ctx) {
		s.main = nil
	}
	if s.main != nil && altered { // what was looked up since is not so
		s.generation.Add(1)
		if s.main.forget(ctx) != nil {
			s.main.close(ctx)
			s.main = nil
		}
	}
}

// Close ends all sessions. Those that are still writing chunks are waited for until ctx ends.
func (s *Sink) Close(ctx context.Context) error {
	s.open = false
	s.tx = transaction{}
	err := s.lanes.close(ctx)
	if s.main != nil {
		s.main.close(ctx)
		s.main = nil
	}
	return errors.Join(err, s.pool.close(ctx))
}
