package flocopy

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Defaults and limits of a Config.
const (
	// DefaultConnections reads tables over two connections: that halves the time of a copy, and more
	// seldom pay, as the destination is the dearer side.
	DefaultConnections = 2
	// MaxConnections is the highest number of connections that Run accepts.
	MaxConnections = 64
	// DefaultRangePages is the size of a range in blocks: 32 MiB with PostgreSQL's usual 8 KiB.
	DefaultRangePages = 4096
	// DefaultChunkBytes is the target size of a chunk.
	DefaultChunkBytes = 256 << 10
)

// Table is one table to copy: an ordinary table or a leaf partition, never a partitioned parent.
type Table struct {
	OID    uint32 // pg_class.oid; what is found under the name must be this table
	Schema string // exact, unquoted
	Name   string // exact, unquoted
	// Columns to read, in this order; none is a table without columns, whose rows are empty lines.
	Columns []string
	// RowFilter is an SQL boolean expression, as pg_publication_tables gives it; "" for none.
	RowFilter string
}

// String gives the table's name for people, quoted as SQL wants it.
func (t *Table) String() string { return pgx.Identifier{t.Schema, t.Name}.Sanitize() }

// Chunk is a run of whole rows of one range of one table.
type Chunk struct {
	Table *Table // points into Config.Tables
	Range uint32 // the page range within the table, from 0
	Row   uint64 // the first row's number within the range, from 0
	Rows  uint64 // how many rows Data holds
	// Data is rows in COPY's text format, each ended by '\n'. It belongs to the receiver.
	// https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2
	// With Config.Room, that many bytes before the rows are the receiver's to write, and Data begins with them.
	Data []byte
}

// Progress of one table.
type Progress struct {
	Table      *Table
	Bytes      int64  // its size on disk (with TOAST, without indexes) when the copy was planned
	Ranges     uint32 // planned
	RangesDone uint32
	Chunks     uint64 // of the ranges done
	Rows       uint64 // of the ranges done
	Data       uint64 // bytes of rows in COPY format, of the ranges done
}

// Config says what to copy and where it goes. Connect, Snapshot and Emit are required.
type Config struct {
	// Connect opens a connection with the session settings already applied (client_encoding,
	// DateStyle and so on: they decide what the rows look like). Run closes it. It is called
	// Connections times, concurrently.
	Connect func(ctx context.Context) (*pgx.Conn, error)
	// Snapshot is the name of an exported snapshot. The session that exported it has to keep it
	// until Started is called.
	Snapshot string
	// Tables to copy, each OID once. Run doesn't change them.
	Tables []Table
	// Connections that read at the same time, 1 to MaxConnections; 0 is DefaultConnections.
	Connections int
	// RangePages is how many blocks a range has, from 1; 0 is DefaultRangePages. A table that isn't
	// larger is one range, and so is every table below PostgreSQL 14, which can't scan a range of
	// TIDs. A table with much out-of-line (TOAST) data is cut finer, so that ranges weigh the same.
	RangePages int64
	// ChunkBytes is the size that a chunk doesn't exceed, from 1; 0 is DefaultChunkBytes. A row that
	// is larger is a chunk of its own.
	ChunkBytes int
	// Room is how many bytes Data leaves free before its rows, for a header. Default 0.
	Room int

	// Emit takes a chunk. It is called concurrently, by each connection for itself, the chunks of one
	// range in order. It may block, which holds up its connection: that is the back-pressure. It must
	// return when ctx ends. An error ends Run, which returns it.
	Emit func(ctx context.Context, c Chunk) error
	// TableDone, if set, is called once a table is whole: all of its chunks were emitted and the
	// table was not rewritten meanwhile. Calls for different tables may be concurrent. An error ends
	// Run, which returns it.
	TableDone func(ctx context.Context, t *Table, chunks, rows uint64) error
	// Started, if set, is called once, when all connections have imported the snapshot and before the
	// first row is read: from then on the exporting session may be released.
	Started func()
	// Progress, if set, is told how far a table is: once when it has been planned, then after each
	// range. Never called concurrently. It must not block.
	Progress func(Progress)
}

// ErrInvalidConfig says that Run was given a Config that it can't work with.
var ErrInvalidConfig = errors.New("flocopy: invalid configuration")

// withDefaults fills in what was left out, and reports all that is wrong at once.
func (c Config) withDefaults() (Config, error) {
	if c.Connections == 0 {
		c.Connections = DefaultConnections
	}
	if c.RangePages == 0 {
		c.RangePages = DefaultRangePages
	}
	if c.ChunkBytes == 0 {
		c.ChunkBytes = DefaultChunkBytes
	}
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrInvalidConfig}, args...)...))
	}
	if c.Connect == nil {
		bad("Connect is not set")
	}
	if c.Emit == nil {
		bad("Emit is not set")
	}
	if c.Snapshot == "" || strings.ContainsRune(c.Snapshot, 0) {
		bad("Snapshot %q is not the name of an exported snapshot", c.Snapshot)
	}
	if c.Connections < 1 || c.Connections > MaxConnections {
		bad("Connections is %d: want 1 to %d", c.Connections, MaxConnections)
	}
	if c.RangePages < 1 {
		bad("RangePages is %d: want 1 or more", c.RangePages)
	}
	if c.ChunkBytes < 1 {
		bad("ChunkBytes is %d: want 1 or more", c.ChunkBytes)
	}
	if c.Room < 0 {
		bad("Room is %d: want 0 or more", c.Room)
	}
	seen := make(map[uint32]bool, len(c.Tables))
	for i := range c.Tables {
		t := &c.Tables[i]
		if t.OID == 0 || t.Name == "" || t.Schema == "" {
			bad("table %d (%s) lacks its OID, schema or name", i, t)
		} else if seen[t.OID] {
			bad("table %s stands twice in the list", t)
		}
		seen[t.OID] = true
	}
	return c, errors.Join(errs...)
}
