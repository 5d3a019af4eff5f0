// Package file is a sink that appends each change as one line of JSON to a file, and syncs it before
// a batch counts as written. The fields of a line are described at decode.Change.AppendJSON.
//
// It is at least once: after a failure or a restart the last changes may come again, in order, each
// with its identity (lsn and ordinal, or copy) to drop repeats by. Lines are always whole: what a crash
// left torn is cut off at the next start, and comes again.
package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/pgflo/flo/internal/folderlock"
	"github.com/pgflo/flo/sink"
)

const (
	// Name of the file in the sink's folder.
	Name = "changes.jsonl"
	// LockName of the file that carries the folder's lock. It stays when the sink is closed.
	LockName = folderlock.Name
	// DefaultFileMode of the file when it is made, before the umask.
	DefaultFileMode fs.FileMode = 0o640

	folderMode fs.FileMode = 0o750
	// flushBytes is how much is gathered before it is written; a batch has one sync in any case.
	flushBytes = 1 << 20
)

// What an error of the sink can be found to be, by errors.Is.
var (
	// ErrFolderInUse: another sink, in this process or another one, has the folder open.
	ErrFolderInUse = errors.New("another sink has this folder open")
	// ErrNotOurs: the file holds something else than lines of changes. It is left as it is.
	ErrNotOurs = errors.New("the file was not written by flo")
	// ErrClosed: Write was called behind Close.
	ErrClosed = errors.New("the sink is closed")
)

// Sink appends to dir/changes.jsonl.
type Sink struct {
	dir  string
	mode fs.FileMode

	out    *output // nil until the first Write, and after an error
	unlock func() error
	size   int64 // of what is durable; -1 if not known
	healed int64
	buf    []byte
	closed bool
}

// Option changes what New makes.
type Option func(*Sink)

// WithFileMode is the mode of the file when it is made, before the umask. Default DefaultFileMode.
func WithFileMode(mode fs.FileMode) Option { return func(s *Sink) { s.mode = mode } }

// New makes a sink that writes into dir. It does no I/O: the first Write makes the folder if it isn't
// there, locks it and opens the file.
func New(dir string, opts ...Option) *Sink {
	s := &Sink{dir: dir, mode: DefaultFileMode, size: -1}
	for _, o := range opts {
		o(s)
	}
	return s
}

// Path of the file that is written.
func (s *Sink) Path() string { return filepath.Join(s.dir, Name) }

// Healed gives how many bytes of torn lines were cut off when the file was opened.
func (s *Sink) Healed() int64 { return s.healed }

// Write appends a batch and syncs it. After an error the file is taken back to where it was before the
// batch. It returns an error that is ErrFolderInUse while another sink has the folder, and ErrNotOurs
// if the file holds something else; the system's own reason (no space, no permission) is wrapped.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if s.closed {
		return sink.Permanent(s.wrap("write", ErrClosed))
	}
	if err := ctx.Err(); err != nil {
		return s.wrap("write", err)
	}
	if len(b.Changes) == 0 {
		return nil
	}
	if err := s.open(); err != nil {
		return err
	}
	n, err := s.append(ctx, b)
	if err == nil {
		if err = s.out.sync(); err != nil {
			err = s.wrap("sync", err)
		}
	}
	if err != nil {
		s.takeBack()
		return err
	}
	s.size += n
	return nil
}

// append writes the lines of a batch, and gives their bytes.
func (s *Sink) append(ctx context.Context, b *sink.Batch) (total int64, err error) {
	flush := func() error {
		if err := ctx.Err(); err != nil {
			return s.wrap("write", err)
		}
		n, err := s.out.file.Write(s.buf)
		total += int64(n)
		if err != nil {
			return s.wrap("write", err)
		}
		if cap(s.buf) > 4*flushBytes {
			s.buf = nil // grown for a huge row
		}
		s.buf = s.buf[:0]
		return nil
	}
	s.buf = s.buf[:0]
	for i, c := range b.Changes {
		line, err := c.AppendJSON(s.buf)
		if err != nil {
			return total, sink.Reject(i, s.wrap("write", err))
		}
		s.buf = append(line, '\n')
		if len(s.buf) >= flushBytes {
			if err := flush(); err != nil {
				return total, err
			}
		}
	}
	if len(s.buf) > 0 {
		err = flush()
	}
	return total, err
}

// open makes the sink ready to write: folder, lock, file, torn end.
func (s *Sink) open() error {
	if s.out != nil {
		return nil
	}
	if s.unlock == nil {
		made, err := makeFolder(s.dir)
		if err != nil {
			return s.wrap("make the folder", err)
		}
		if s.unlock, err = lockFolder(s.dir); err != nil {
			return s.wrap("lock the folder", err)
		}
		if made {
			if err := syncFolder(filepath.Dir(filepath.Clean(s.dir))); err != nil {
				return s.wrap("sync the folder above", err)
			}
		}
	}
	out, cut, err := openOutput(s.Path(), s.mode, s.size)
	if err != nil {
		return s.wrap("open", err)
	}
	s.out, s.size = out, out.size
	s.healed += cut
	return nil
}

// takeBack cuts off what a failed batch has written, as far as that can be done now, and closes the
// file: after a failed sync its pages can't be trusted (they count as clean, and may be lost), so the
// next Write opens it again, and cuts again if need be.
func (s *Sink) takeBack() {
	_ = s.out.truncate(s.size) // done again when it is opened
	_ = s.out.file.Close()
	s.out = nil
}

// Close closes the file and gives the folder free. What was written is already durable.
func (s *Sink) Close(context.Context) error {
	s.closed = true
	var errs []error
	if s.out != nil {
		errs = append(errs, s.out.file.Close())
		s.out = nil
	}
	if s.unlock != nil {
		errs = append(errs, s.unlock())
		s.unlock = nil
	}
	if err := errors.Join(errs...); err != nil {
		return s.wrap("close", err)
	}
	return nil
}

// wrap says where an error happened, and what to do if that is known.
func (s *Sink) wrap(what string, err error) error {
	remedy := ""
	switch {
	case errors.Is(err, ErrFolderInUse):
		remedy = "; stop that one, or give this one a folder of its own"
	case errors.Is(err, ErrNotOurs):
		remedy = "; move the file away, or give the sink a folder of its own"
	case errors.Is(err, syscall.ENOSPC):
		remedy = "; free some space: the batch is tried again"
	case errors.Is(err, os.ErrPermission):
		remedy = "; let this process's user write there"
	}
	return fmt.Errorf("file sink: %s %s: %w%s", what, s.Path(), err, remedy)
}
