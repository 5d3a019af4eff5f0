package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

const (
	openSuffix = ".open"
	tempSuffix = ".tmp"
	// maxHandles is how many files are held open at a time; others that are being written are opened
	// again when something comes for them.
	maxHandles = 64
	// completeRetry is the pause before a file that could not be completed by age is tried again.
	completeRetry = time.Second
)

// rotation writes many files. A file goes through these steps, each durable before the next, so that a
// start behind a crash knows from the manifest what to look for:
//
//  1. a line "open" in the manifest
//  2. the file is made, with ".open" behind its name, and written batch by batch
//  3. with gzip: it is compressed into one with ".gz.tmp" behind its name
//  4. that is (or the file itself) renamed to its own name; with gzip the ".open" one is removed
//  5. a line "complete" in the manifest
type rotation struct {
	s        *Sink
	names    names
	manifest *manifest
	seq      uint64
	files    map[tableKey]*rotated
	due      []*rotated // to be completed before anything else is written
	healed   int64
	timers   sync.WaitGroup // those that are set or running
	use      uint64         // counts batches

	// at is called between the steps, by tests.
	at func(step string)
}

// rotated is one file on its way.
type rotated struct {
	target
	entry   Entry
	key     tableKey
	timer   *time.Timer
	used    uint64 // the last batch that wrote to it
	named   bool   // it has its own name
	renamed bool   // and all else is done: only the manifest doesn't know yet

	// Of the batch that is being written:
	rows        int64
	first, last string
}

func newRotation(s *Sink) *rotation {
	return &rotation{s: s, files: map[tableKey]*rotated{}, at: func(string) {}}
}

// open opens the manifest, and completes what a crash left open.
func (r *rotation) open() (err error) {
	if r.manifest != nil {
		return nil
	}
	if r.names, err = parseNames(r.s.names); err != nil {
		return sink.Permanent(err)
	}
	m, err := openManifest(r.s.dir, r.s.mode)
	if err != nil {
		return r.s.wrap("open the manifest in", err)
	}
	unfinished, seq, err := m.unfinished()
	if err == nil {
		r.manifest, r.seq = m, seq
		err = r.recover(unfinished)
	}
	if err != nil {
		r.manifest = nil
		return r.s.wrap("complete what was left open in", errors.Join(err, m.close()))
	}
	return nil
}

// write appends a batch to the files that it is for.
func (r *rotation) write(ctx context.Context, b *sink.Batch) error {
	if err := r.completeDue(); err != nil {
		return r.s.wrap("complete a file in", err)
	}
	r.use++
	err := r.append(ctx, b)
	if err == nil {
		err = r.sync()
	}
	for _, f := range r.files {
		if f.used == r.use && err != nil {
			f.takeBack()
			f.rows, f.first, f.last = 0, "", ""
		}
	}
	if err != nil {
		return err
	}
	for key, f := range r.files {
		if f.used != r.use {
			continue
		}
		f.commitBatch()
		if f.size >= r.s.maxSize {
			r.retire(key, f)
		}
	}
	_ = r.completeDue() // the batch is written whatever happens: the next one finds the error again
	return nil
}

func (r *rotation) append(ctx context.Context, b *sink.Batch) error {
	for i, c := range b.Changes {
		for _, part := range r.parts(c) {
			if err := r.appendChange(ctx, i, part.key, part.change); err != nil {
				return err
			}
		}
	}
	for _, f := range r.files {
		if f.used != r.use || len(f.buf) == 0 {
			continue
		}
		if err := r.flush(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// part is a change, or what of it is for one table.
type part struct {
	key    tableKey
	change *decode.Change
}

func (r *rotation) parts(c *decode.Change) []part {
	if !r.names.perTable {
		return []part{{change: c}}
	}
	switch {
	case c.Op == decode.OpTruncate && c.Truncate != nil && len(c.Truncate.Relations) > 0:
		var list []part
		for _, rel := range c.Truncate.Relations {
			one, truncate := *c, *c.Truncate
			truncate.Relations = []*decode.Relation{rel}
			one.Truncate = &truncate
			list = append(list, part{tableKey{schema: rel.Schema, table: rel.Name}, &one})
		}
		return list
	case c.Relation != nil:
		return []part{{tableKey{schema: c.Relation.Schema, table: c.Relation.Name}, c}}
	}
	return []part{{tableKey{other: true}, c}}
}

func (r *rotation) appendChange(ctx context.Context, i int, key tableKey, c *decode.Change) error {
	f := r.files[key]
	var into []byte
	if f != nil {
		into = f.buf
	}
	buf, n, err := r.s.format.Append(into, c)
	if err != nil {
		return sink.Reject(i, r.s.wrap("write", err))
	}
	if n == 0 {
		return nil
	}
	if err := r.s.checkEnvelope(buf[len(into):]); err != nil {
		return err
	}
	if f == nil {
		if f, err = r.begin(key); err != nil {
			return r.s.wrap("begin a file in", err)
		}
	}
	f.buf, f.used = buf, r.use
	f.rows += int64(n)
	f.last = identity(c)
	if f.first == "" {
		f.first = f.last
	}
	if len(buf) >= flushBytes {
		return r.flush(ctx, f)
	}
	return nil
}

func identity(c *decode.Change) string {
	if c.Copy != nil {
		return c.Copy.String()
	}
	return c.Position().String()
}

// begin makes a new file, under a name that nothing has.
func (r *rotation) begin(key tableKey) (*rotated, error) {
	now := time.Now().UTC()
	f := &rotated{key: key}
	for {
		r.seq++
		f.entry = Entry{File: r.names.path(key, now, r.seq) + r.suffix(), State: StateOpen, Seq: r.seq, Opened: now, Schema: key.schema, Table: key.table}
		taken, err := exists(r.final(f.entry), r.openPath(f.entry))
		if err != nil {
			return nil, err
		}
		if !taken {
			break
		}
	}
	if err := r.manifest.add(f.entry); err != nil {
		return nil, err
	}
	r.at("listed")
	if err := makeFolders(r.s.dir, filepath.Dir(filepath.FromSlash(f.entry.File))); err != nil {
		return nil, err
	}
	f.target = target{path: r.openPath(f.entry), mode: r.s.mode, framing: r.s.framing(), ours: true}
	r.files[key] = f
	if r.s.maxAge > 0 {
		r.setTimer(f, r.s.maxAge)
	}
	return f, nil
}

func (r *rotation) suffix() string {
	suffix := ".jsonl"
	if r.s.pretty {
		suffix = ".json"
	}
	if r.s.gzip {
		suffix += gzipSuffix
	}
	return suffix
}

func (r *rotation) final(e Entry) string {
	return filepath.Join(r.s.dir, filepath.FromSlash(e.File))
}

// openPath is where a file is written until it is complete; it is never compressed.
func (r *rotation) openPath(e Entry) string {
	return filepath.Join(r.s.dir, filepath.FromSlash(plainName(e.File))) + openSuffix
}

func exists(paths ...string) (bool, error) {
	for _, p := range paths {
		_, err := os.Lstat(p)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return false, nil
}

// flush writes what is gathered for a file, and closes others if too many are open.
func (r *rotation) flush(ctx context.Context, f *rotated) error {
	if f.out == nil {
		if err := r.limitHandles(f); err != nil {
			return r.s.wrap("close", err)
		}
		if err := f.target.open(); err != nil {
			return r.s.wrap("open "+f.entry.File+openSuffix+" in", err)
		}
		r.at("opened")
	}
	err := r.s.flush(ctx, &f.target)
	r.at("written")
	return err
}

// limitHandles closes those that were written to longest ago.
func (r *rotation) limitHandles(but *rotated) error {
	for {
		n := 0
		var oldest *rotated
		for _, f := range r.files {
			if f.out == nil || f == but {
				continue
			}
			n++
			if oldest == nil || f.used < oldest.used {
				oldest = f
			}
		}
		if n < maxHandles {
			return nil
		}
		if err := oldest.sync(); err != nil {
			return err
		}
		if err := oldest.close(); err != nil {
			return err
		}
	}
}

func (r *rotation) sync() error {
	for _, f := range r.files {
		if f.used != r.use || f.out == nil { // closed: synced before
			continue
		}
		if err := f.target.sync(); err != nil {
			return r.s.wrap("sync", err)
		}
	}
	r.at("synced")
	return nil
}

func (f *rotated) commitBatch() {
	f.commit()
	f.entry.Rows += f.rows
	f.entry.Last = f.last
	if f.entry.First == "" {
		f.entry.First = f.first
	}
	f.rows, f.first, f.last = 0, "", ""
}

// retire takes a file out of use; it is completed next.
func (r *rotation) retire(key tableKey, f *rotated) {
	delete(r.files, key)
	r.stopTimer(f)
	r.due = append(r.due, f)
}

// completeDue completes the retired files.
func (r *rotation) completeDue() error {
	for len(r.due) > 0 {
		if err := r.complete(r.due[0]); err != nil {
			return err
		}
		r.due = r.due[1:]
	}
	r.due = nil
	return nil
}

// setTimer lets a file be completed after a while. The timer's goroutine waits for its turn.
func (r *rotation) setTimer(f *rotated, d time.Duration) {
	r.timers.Add(1)
	f.timer = time.AfterFunc(d, func() {
		defer r.timers.Done()
		<-r.s.turn
		defer r.s.give()
		f.timer = nil
		if r.s.closed || r.files[f.key] != f && !r.isDue(f) {
			return
		}
		if r.files[f.key] == f {
			r.retire(f.key, f)
		}
		if r.completeDue() != nil {
			r.setTimer(f, completeRetry)
		}
	})
}

func (r *rotation) isDue(f *rotated) bool {
	for _, d := range r.due {
		if d == f {
			return true
		}
	}
	return false
}

func (r *rotation) stopTimer(f *rotated) {
	if f.timer != nil && f.timer.Stop() {
		r.timers.Done()
	}
	f.timer = nil
}

// close completes all files.
func (r *rotation) close() error {
	if r.manifest == nil {
		return nil
	}
	var errs []error
	for key, f := range r.files {
		r.retire(key, f)
	}
	for _, f := range r.due {
		r.stopTimer(f)
		if err := r.complete(f); err != nil {
			errs = append(errs, fmt.Errorf("%s stays %s until the next start: %w", f.entry.File, openSuffix, err))
		}
	}
	r.due = nil
	return errors.Join(append(errs, r.manifest.close())...)
}

// wait waits for timers that are running.
func (r *rotation) wait() { r.timers.Wait() }
