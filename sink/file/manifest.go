package file

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// ManifestName of the file that says which files of a folder are complete. Each line is an Entry in
// JSON. It is only appended to, and only if files are rotated.
const ManifestName = "manifest.jsonl"

// State of a file in the manifest.
type State string

// The states that a file goes through: open, then complete or dropped.
const (
	StateOpen     State = "open"     // being written, under its name with ".open" behind it
	StateComplete State = "complete" // there, and never changed again
	StateDropped  State = "dropped"  // nothing was written to it, and it is gone
)

// Entry is a line of the manifest: a file, when it was begun and again when it was completed.
type Entry struct {
	// File is its name below the folder, with slashes, once it is complete.
	File  string `json:"file"`
	State State  `json:"state"`
	// Seq rises with each file of the folder. Files that were begun later hold later changes, apart from
	// repeats; of one table, in order.
	Seq uint64 `json:"seq"`
	// Schema and Table, if the files are split by table; empty as well for changes of no table.
	Schema string    `json:"schema,omitempty"`
	Table  string    `json:"table,omitempty"`
	Opened time.Time `json:"opened"`

	// Of complete files only:

	Closed time.Time `json:"closed,omitzero"`
	// First and Last are the identities ("lsn:ordinal", or a copied row's) of the first and the last
	// change in the file. They are empty if a crash kept the sink from knowing, and the file's envelope
	// is neither flo's own nor Debezium's.
	First string `json:"first,omitempty"`
	Last  string `json:"last,omitempty"`
	// Rows is the number of JSON objects.
	Rows int64 `json:"rows,omitempty"`
	// Bytes and SHA256 (hexadecimal) are of the file as it is, compressed or not.
	Bytes  int64  `json:"bytes,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// ReadManifest gives the complete files of a sink's folder, in the order in which they were completed.
// It may be called while a sink writes. A folder without a manifest has none.
func ReadManifest(dir string) ([]Entry, error) {
	f, err := os.Open(filepath.Join(dir, ManifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("file sink: %w", err)
	}
	defer f.Close()
	var list []Entry
	err = eachEntry(f, func(e Entry) {
		if e.State == StateComplete {
			list = append(list, e)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("file sink: %s: %w", f.Name(), err)
	}
	return list, nil
}

// eachEntry reads a manifest's whole lines: one that has no end is still being written.
func eachEntry(r io.Reader, f func(Entry)) error {
	b := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := b.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var e Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		f(e)
	}
}

// manifestFraming heals the manifest as it does the files.
var manifestFraming = framing{prefix: `{"file":"`, end: "\n"}

// manifest is the open manifest.
type manifest struct {
	target
}

func openManifest(dir string, mode fs.FileMode) (*manifest, error) {
	m := &manifest{target{path: filepath.Join(dir, ManifestName), mode: mode, framing: manifestFraming, size: -1}}
	if err := m.open(); err != nil {
		return nil, err
	}
	return m, nil
}

// unfinished gives the files that were begun and not completed, in the order in which they were begun,
// and the highest number that was ever given to a file.
func (m *manifest) unfinished() (list []Entry, seq uint64, err error) {
	var line []uint64 // their numbers, in order
	open := map[uint64]Entry{}
	err = eachEntry(io.NewSectionReader(m.out.file, 0, m.size), func(e Entry) {
		seq = max(seq, e.Seq)
		if e.State == StateOpen {
			line = append(line, e.Seq)
			open[e.Seq] = e
		} else {
			delete(open, e.Seq)
		}
		if len(line) > 2*len(open)+64 { // most are done
			line = keepOpen(line, open)
		}
	})
	for _, n := range keepOpen(line, open) {
		list = append(list, open[n])
	}
	return list, seq, err
}

func keepOpen(line []uint64, open map[uint64]Entry) []uint64 {
	kept := line[:0]
	for _, n := range line {
		if _, ok := open[n]; ok {
			kept = append(kept, n)
		}
	}
	return kept
}

// add appends an entry, durably or not at all.
func (m *manifest) add(e Entry) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e); err != nil {
		return err
	}
	if err := m.open(); err != nil {
		return err
	}
	m.buf = append(m.buf[:0], b.Bytes()...)
	err := m.flush()
	if err == nil {
		err = m.sync()
	}
	if err != nil {
		m.takeBack()
		return err
	}
	m.commit()
	return nil
}
