// Package sinktest is a suite of tests that every sink passes: flo's own, and yours.
//
//	func TestMySink(t *testing.T) {
//		sinktest.Run(t, func(t *testing.T) sinktest.Harness {
//			place := newPlace(t) // an empty destination for one test
//			return sinktest.Harness{
//				Open: func(t testing.TB) sink.Sink { return mysink.New(place) },
//				Read: func(t testing.TB) []sinktest.Entry { return place.entries(t) },
//			}
//		})
//	}
//
// A destination that holds tables rather than changes has Rows in place of Read. What a sink can do
// beside Write (sink.Transactional, sink.CopySink) is found as a worker finds it, and tested too.
package sinktest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// Factory makes a fresh, empty destination for one test. It may use t.Cleanup.
type Factory func(t *testing.T) Harness

// Harness is one destination.
type Harness struct {
	// Open makes a sink that writes to the destination. It is called again after the sink before was
	// closed, as after a restart; of a transactional sink also while that is still open, as when another
	// process takes over. The suite closes what it opens, if it is a sink.Closer.
	Open func(t testing.TB) sink.Sink
	// Read gives what the destination holds, in the order in which it was written. It is called when the
	// sink is closed; of a transactional sink at any time, and gives what is committed then.
	Read func(t testing.TB) []Entry
	// Rows gives the rows that the destination holds of a table, in any order: for one that applies
	// changes to tables. It is called at any time, and gives what is committed then. Without Read and
	// Rows all tests of content are left out.
	Rows func(t testing.TB, table *decode.Relation) []Row
	// Prepare, if set, is called before a table is written to, once a table. All columns are text; that
	// named "id" is the key.
	Prepare func(t testing.TB, table *decode.Relation)
	// MaxValue is the largest value that the suite writes, in bytes; 0 is 8 MiB.
	MaxValue int
}

// Row is a row of a table: column name to PostgreSQL's text, nil for NULL.
type Row = map[string]*string

// Entry is one change as the destination holds it.
type Entry struct {
	// ID is decode.Position's text, "lsn:ordinal", or of a copied row decode.CopyID's.
	ID     string
	Op     string
	Schema string
	Table  string
	// New is the new row: column name to PostgreSQL's text, nil for NULL. Absent and unchanged columns
	// are not in it. Nil if there is no new row.
	New map[string]*string
	// Old is the old row, as New; of one that is known by its key the key. An insert has it if it takes that
	// row's place (decode.Change.Old): a reader of the destination needs it to find the row.
	Old map[string]*string
	// Unchanged columns, if the destination tells them from absent ones.
	Unchanged []string
}

// ParseLines reads flo's JSON lines (decode.Change.AppendJSON), for the sinks that write them. Values
// are given as PostgreSQL's text for text columns, as JSON otherwise.
func ParseLines(r io.Reader) ([]Entry, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var list []Entry
	for line := range bytes.Lines(data) {
		e, err := parseLine(line)
		if err != nil {
			return nil, fmt.Errorf("sinktest: line %d: %w", len(list)+1, err)
		}
		list = append(list, e)
	}
	return list, nil
}

func parseLine(line []byte) (Entry, error) {
	if !bytes.HasSuffix(line, []byte{'\n'}) {
		return Entry{}, fmt.Errorf("torn: %.80q", line)
	}
	var l struct {
		Op, Schema, Table string
		New, Old          map[string]json.RawMessage
		Unchanged         []string
		LSN               decode.LSN
		Ordinal           uint64
		Copy              string
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Entry{}, fmt.Errorf("%w: %.80q", err, line)
	}
	e := Entry{ID: l.Copy, Op: l.Op, Schema: l.Schema, Table: l.Table, Unchanged: l.Unchanged}
	if e.ID == "" {
		e.ID = decode.Position{LSN: l.LSN, Ordinal: l.Ordinal}.String()
	}
	var err error
	if e.New, err = texts(l.New); err == nil {
		e.Old, err = texts(l.Old)
	}
	return e, err
}

// texts gives a row of JSON values as text.
func texts(row map[string]json.RawMessage) (map[string]*string, error) {
	if row == nil {
		return nil, nil
	}
	out := make(map[string]*string, len(row))
	for name, raw := range row {
		s := string(raw)
		if s == "null" {
			out[name] = nil
			continue
		}
		if raw[0] == '"' {
			if err := json.Unmarshal(raw, &s); err != nil {
				return nil, err
			}
		}
		out[name] = &s
	}
	return out, nil
}
