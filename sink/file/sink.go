// Package file is a sink that appends each change as one line of JSON to a file, and syncs it before
// a batch counts as written. The fields of a line are described at decode.Change.AppendJSON; WithEncoder
// takes another envelope.
//
// It is at least once: after a failure or a restart the last changes may come again, in order, each
// with its identity (lsn and ordinal, or copy) to drop repeats by. Lines are always whole: what a crash
// left torn is cut off at the next start, and comes again.
//
// # One file, or many
//
// By default there is one file, changes.jsonl, which only grows. WithRotateSize, WithRotateAge, WithNames
// and WithGzip, each of them, make it many: a file is written under its name with ".open" behind it, and
// when it is complete (by size or age, or because the sink is closed) it gets its name by one rename, and
// a line in the manifest with its number of rows, its first and last position and its checksum. It
// never changes again. What a crash leaves open is completed at the next start. A reader takes the files
// that ReadManifest lists.
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
	"github.com/pgflo/flo/internal/records"
	"github.com/pgflo/flo/sink"
)

var (
	_ sink.Sink   = (*Sink)(nil)
	_ sink.Closer = (*Sink)(nil)
)

const (
	// Name of the file in the sink's folder, unless files are rotated.
	Name = "changes.jsonl"
	// PrettyName is its name with WithPretty.
	PrettyName = "changes.json"
	// LockName of the file that carries the folder's lock. It stays when the sink is closed.
	LockName = folderlock.Name

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
	// ErrEnvelope: the encoder of WithEncoder doesn't write what decode.Encoder says.
	ErrEnvelope = errors.New(`the encoder's objects must begin with {"op":"`)
)

// Sink writes to the files of one folder.
type Sink struct {
	config
	dir    string
	format *records.Format

	turn   chan struct{} // holds one token: Write, Close and the age's timer take turns
	unlock func() error
	closed bool

	single  *target   // nil if files are rotated
	rotated *rotation // nil if not
}

// New makes a sink that writes into dir. It does no I/O: the first Write makes the folder if it isn't
// there, locks it and opens the file. Options that can't be used are the first Write's error, which is
// ErrInvalidOption and permanent.
func New(dir string, opts ...Option) *Sink {
	c := defaults()
	for _, o := range opts {
		o(&c)
	}
	s := &Sink{config: c, dir: dir, format: records.NewFormat(c.encode, c.pretty), turn: make(chan struct{}, 1)}
	s.turn <- struct{}{}
	if c.rotate {
		s.rotated = newRotation(s)
	} else {
		s.single = &target{path: s.Path(), mode: c.mode, framing: c.framing(), size: -1}
	}
	return s
}

// Validate reports options that can't be used, as an ErrInvalidOption. The first Write does so too.
func (s *Sink) Validate() error { return s.validate() }

// Path of the file that is written; "" if files are rotated.
func (s *Sink) Path() string {
	switch {
	case s.rotate:
		return ""
	case s.pretty:
		return filepath.Join(s.dir, PrettyName)
	}
	return filepath.Join(s.dir, Name)
}

// Healed gives how many bytes of torn lines were cut off when files were opened. It must not be called
// beside Write.
func (s *Sink) Healed() int64 {
	if s.rotate {
		return s.rotated.healed
	}
	return s.single.healed
}

// Write appends a batch and syncs it. After an error the files are taken back to where they were before
// the batch. It returns an error that is ErrFolderInUse while another sink has the folder, and ErrNotOurs
// if the file holds something else; the system's own reason (no space, no permission) is wrapped.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if err := s.take(ctx); err != nil {
		return s.wrap("write", err)
	}
	defer s.give()
	if s.closed {
		return sink.Permanent(s.wrap("write", ErrClosed))
	}
	if len(b.Changes) == 0 {
		return nil
	}
	if err := s.open(); err != nil {
		return err
	}
	if s.rotate {
		return s.rotated.write(ctx, b)
	}
	err := s.writeSingle(ctx, b)
	if err != nil {
		s.single.takeBack()
		return err
	}
	s.single.commit()
	return nil
}

// take takes the turn, give gives it on.
func (s *Sink) take(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	select {
	case <-s.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Sink) give() { s.turn <- struct{}{} }

func (s *Sink) writeSingle(ctx context.Context, b *sink.Batch) error {
	t := s.single
	if err := t.open(); err != nil {
		return s.wrap("open", err)
	}
	for i, c := range b.Changes {
		from := len(t.buf)
		buf, _, err := s.format.Append(t.buf, c)
		if err != nil {
			return sink.Reject(i, s.wrap("write", err))
		}
		t.buf = buf
		if err := s.checkEnvelope(buf[from:]); err != nil {
			return err
		}
		if len(t.buf) >= flushBytes {
			if err := s.flush(ctx, t); err != nil {
				return err
			}
		}
	}
	if err := s.flush(ctx, t); err != nil {
		return err
	}
	if err := t.sync(); err != nil {
		return s.wrap("sync", err)
	}
	return nil
}

func (s *Sink) flush(ctx context.Context, t *target) error {
	if ctx.Err() != nil {
		return s.wrap("write", context.Cause(ctx))
	}
	if err := t.flush(); err != nil {
		return s.wrap("write", err)
	}
	return nil
}

// checkEnvelope makes sure that what is written can be told from somebody else's file later.
func (s *Sink) checkEnvelope(object []byte) error {
	prefix := s.format.Prefix()
	if len(object) == 0 || len(object) >= len(prefix) && string(object[:len(prefix)]) == prefix {
		return nil
	}
	return sink.Permanent(s.wrap("write", ErrEnvelope))
}

// open makes the sink ready to write: options, folder, lock, and with rotation the manifest.
func (s *Sink) open() error {
	if s.unlock == nil {
		if err := s.validate(); err != nil {
			return sink.Permanent(err)
		}
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
	if s.rotate {
		return s.rotated.open()
	}
	return nil
}

// Close completes the files that are open, if files are rotated, and gives the folder free. What was
// written is already durable. ctx bounds the wait for a file that is just being completed by age.
func (s *Sink) Close(ctx context.Context) error {
	select {
	case <-s.turn: // an ended context leaves nothing open
	default:
		if err := s.take(ctx); err != nil {
			return s.wrap("close", err)
		}
	}
	err := s.close()
	s.give()
	if s.rotate {
		s.rotated.wait()
	}
	if err != nil {
		return s.wrap("close", err)
	}
	return nil
}

func (s *Sink) close() error {
	s.closed = true
	var errs []error
	if s.rotate {
		errs = append(errs, s.rotated.close())
	} else {
		errs = append(errs, s.single.close())
	}
	if s.unlock != nil {
		errs = append(errs, s.unlock())
		s.unlock = nil
	}
	return errors.Join(errs...)
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
	place := s.dir
	if !s.rotate {
		place = s.Path()
	}
	return fmt.Errorf("file sink: %s %s: %w%s", what, place, err, remedy)
}
