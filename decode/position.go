package decode

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
)

// Position identifies a streamed change for ever: LSN is its transaction's commit LSN (final_lsn in
// pgoutput's Begin), Ordinal its number within the transaction, from 1. Inserts, updates, deletes,
// truncates (of n tables: one) and flo's own messages are counted, before any rule runs.
//
// PostgreSQL sends transactions in commit order, so positions only rise. The LSNs of single rows do
// not, and are never used.
type Position struct {
	LSN     LSN    `json:"lsn"`
	Ordinal uint64 `json:"ordinal"`
}

// Compare orders positions: -1 if p is before q, 0 if equal, 1 if behind.
func (p Position) Compare(q Position) int {
	if c := cmp.Compare(p.LSN, q.LSN); c != 0 {
		return c
	}
	return cmp.Compare(p.Ordinal, q.Ordinal)
}

// String gives "lsn:ordinal", for example "0/16B3748:3".
func (p Position) String() string { return fmt.Sprintf("%s:%d", p.LSN, p.Ordinal) }

// CopyID identifies a row, or a chunk of rows, of the initial copy.
type CopyID struct {
	Point   LSN    `json:"point"`   // the consistent point of the snapshot that was read
	Table   uint32 `json:"table"`   // the source table's OID
	Attempt uint32 `json:"attempt"` // from 1; rises when a table has to be copied afresh
	Range   uint32 `json:"range"`   // the page range within the table, from 0
	Row     uint64 `json:"row"`     // the row within the range, from 0 (of a chunk: its first row)
}

// String gives "point:table:attempt:range:row".
func (c CopyID) String() string { return string(c.append(nil)) }

func (c CopyID) append(dst []byte) []byte {
	dst = c.Point.append(dst)
	for _, n := range [...]uint64{uint64(c.Table), uint64(c.Attempt), uint64(c.Range), c.Row} {
		dst = strconv.AppendUint(append(dst, ':'), n, 10)
	}
	return dst
}

// Checkpoint says how far a worker's sink has come. It is opaque to sinks: a transactional sink
// stores its text (MarshalText) in the same transaction as the data and hands it back at Open.
type Checkpoint struct {
	Incarnation string `json:"incarnation"`       // of the stream that it counts in
	Seq         uint64 `json:"seq"`               // the stream's message that holds the last finished transaction's end
	LSN         LSN    `json:"lsn"`               // commit LSN of the last finished transaction
	End         LSN    `json:"end"`               // its end LSN
	Session     uint64 `json:"session,string"`    // the writer session of message Seq
	Attempt     uint32 `json:"attempt,omitempty"` // the copy attempt that is drained; 0: none

	// Before is the attempt that preceded Attempt in the stream: one between the two was begun when the stream had been
	// rolled back behind Attempt. 0: none, or it is not known.
	Before uint32 `json:"before,omitempty"`

	// While a copy is being drained: which attempt, and the copy message up to which all is written.
	CopyAttempt uint32 `json:"copy_attempt,omitempty"`
	CopySeq     uint64 `json:"copy_seq,omitempty"`
	// Skip names tables whose changes are left out up to a commit LSN, since a copy holds them:
	// "lsn:oid,oid" for each LSN, separated by spaces.
	Skip string `json:"skip,omitempty"`

	// Replayed names the dead letter that was written with this checkpoint, until the next change is.
	Replayed string `json:"replayed,omitempty"`
}

// IsZero reports whether nothing has been applied yet.
func (c Checkpoint) IsZero() bool { return c == Checkpoint{} }

// MarshalText writes the checkpoint as JSON, readable by people.
func (c Checkpoint) MarshalText() ([]byte, error) {
	type plain Checkpoint
	return json.Marshal(plain(c))
}

// UnmarshalText reads what MarshalText wrote. Empty text is the zero checkpoint.
func (c *Checkpoint) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*c = Checkpoint{}
		return nil
	}
	type plain Checkpoint
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return fmt.Errorf("decode: not a checkpoint: %w", err)
	}
	*c = Checkpoint(p)
	return nil
}

// MarshalJSON writes the checkpoint as a JSON object.
func (c Checkpoint) MarshalJSON() ([]byte, error) { return c.MarshalText() }

// UnmarshalJSON reads a JSON object.
func (c *Checkpoint) UnmarshalJSON(b []byte) error { return c.UnmarshalText(b) }
