package decode

import "time"

// Op is what a change does.
type Op uint8

const (
	OpInsert Op = iota + 1
	OpUpdate
	OpDelete
	OpTruncate
	OpSchema  // a schema change (DDL)
	OpMessage // pg_logical_emit_message
)

// String gives the lower-case word: "insert", "update", "delete", "truncate", "schema", "message".
func (o Op) String() string {
	switch o {
	case OpInsert:
		return "insert"
	case OpUpdate:
		return "update"
	case OpDelete:
		return "delete"
	case OpTruncate:
		return "truncate"
	case OpSchema:
		return "schema"
	case OpMessage:
		return "message"
	}
	return "unknown"
}

// Tx is the transaction a change belongs to; one pointer for all of its changes.
type Tx struct {
	XID        uint32
	CommitLSN  LSN
	EndLSN     LSN // where PostgreSQL resumes behind it; 0 until the transaction's end has been read
	CommitTime time.Time
	Origin     string // replication origin, "" if none
}

// Change is one change of one row, or a truncation, schema change or message.
type Change struct {
	Op       Op
	Tx       *Tx     // nil for copied rows
	Ordinal  uint64  // within the transaction, from 1
	Copy     *CopyID // set for copied rows, whose Op is OpInsert
	Relation *Relation
	// Old is the row before, as far as PostgreSQL sent it: nil if not at all; only its key columns
	// when OldKey, the others being Absent; else the whole row (REPLICA IDENTITY FULL).
	// An insert has one only from rules.Where: the key of a row that it takes the place of, if it is there.
	Old    Row
	OldKey bool
	New    Row // nil for a delete

	Truncate *Truncate
	Schema   *SchemaChange
	Message  *Message
}

// Position of a streamed change; zero for copied rows.
func (c *Change) Position() Position {
	if c.Tx == nil {
		return Position{}
	}
	return Position{LSN: c.Tx.CommitLSN, Ordinal: c.Ordinal}
}

// Truncate of one or more tables in one statement.
type Truncate struct {
	Relations       []*Relation
	Cascade         bool
	RestartIdentity bool
}

// Message is what pg_logical_emit_message wrote.
type Message struct {
	Prefix        string
	Content       []byte
	Transactional bool
}
