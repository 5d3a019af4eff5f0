// Package ledger keeps what the random fault runs of package faults did: a line of JSON a run, in a file that stands
// in the repository.
package ledger

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// OK is the result of a run without a difference and without an error.
const OK = "ok"

// Failed is the result of any other run. It has what the run did until then.
const Failed = "failed"

// Entry is one run.
type Entry struct {
	Seed     uint64  `json:"seed"`
	Commit   string  `json:"commit"`             // of the code, abbreviated
	Seconds  float64 `json:"s"`                  // wall-clock time
	Kills    int     `json:"kills"`              // processes ended by SIGKILL
	Cuts     int     `json:"cuts"`               // links cut, half-open or refused; sessions terminated
	Restarts int     `json:"starts"`             // databases stopped at once and started, NATS stores rolled back
	Rows     int64   `json:"rows"`               // compared and equal
	Commits  int64   `json:"commits"`            // transactions written while the faults happened
	Streamed int64   `json:"streamed,omitempty"` // of them, sent before their ends
	Schema   int64   `json:"ddl,omitempty"`      // schema changes among them
	Result   string  `json:"result"`             // OK, Failed, or in old entries what was wrong
	Reason   string  `json:"reason,omitempty"`   // of a run that failed, the first lines of what it failed with
}

// Read gives a ledger's entries; of a file that isn't there, none. A last line that an interrupt tore is left out.
func Read(path string) (all []Entry, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return all, err
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return all, fmt.Errorf("%s, line %d: %w", path, n, err)
		}
		all = append(all, e)
	}
}

// Append adds a run at the end.
func Append(path string, e Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Close())
}

// Next is the lowest seed from a first one on that a ledger hasn't got: with several runs at a time an interrupt may
// leave a gap.
func Next(all []Entry, first uint64) uint64 {
	for slices.ContainsFunc(all, func(e Entry) bool { return e.Seed == first }) {
		first++
	}
	return first
}

// Totals of some runs.
type Totals struct {
	Runs, Failed          int
	Kills, Cuts, Restarts int
	Rows, Commits         int64
	Streamed, Schema      int64
	Seconds               float64
	Commit                map[string]int // runs of each commit
}

// Sum adds runs up.
func Sum(all []Entry) Totals {
	t := Totals{Commit: map[string]int{}}
	for _, e := range all {
		t.Runs++
		if e.Result != OK {
			t.Failed++
		}
		t.Kills += e.Kills
		t.Cuts += e.Cuts
		t.Restarts += e.Restarts
		t.Rows += e.Rows
		t.Commits += e.Commits
		t.Streamed += e.Streamed
		t.Schema += e.Schema
		t.Seconds += e.Seconds
		t.Commit[e.Commit]++
	}
	return t
}

// String is for people.
func (t Totals) String() string {
	return fmt.Sprintf("%d runs, %d failed; %d kills, %d cuts, %d restarts; %d rows compared, %d transactions written, %d of them sent before their ends, %d schema changes; %.0f s of runs",
		t.Runs, t.Failed, t.Kills, t.Cuts, t.Restarts, t.Rows, t.Commits, t.Streamed, t.Schema, t.Seconds)
}
