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
	// closed, as after a restart. The suite closes what it opens, if it is a sink.Closer.
	Open func(t testing.TB) sink.Sink
	// Read gives what the destination holds, in the order in which it was written. Nil leaves out all
	// tests of content.
	Read func(t testing.TB) []Entry
	// MaxValue is the largest value that the suite writes, in bytes; 0 is 8 MiB.
	MaxValue int
}

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
		New               map[string]json.RawMessage
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
	if l.New != nil {
		e.New = make(map[string]*string, len(l.New))
	}
	for name, raw := range l.New {
		s := string(raw)
		if s == "null" {
			e.New[name] = nil
			continue
		}
		if raw[0] == '"' {
			if err := json.Unmarshal(raw, &s); err != nil {
				return Entry{}, err
			}
		}
		e.New[name] = &s
	}
	return e, nil
}
