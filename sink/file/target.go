package file

import (
	"errors"
	"fmt"
	"io/fs"
)

// target is a file that batches are appended to: durably, or not at all.
type target struct {
	path    string
	mode    fs.FileMode
	framing framing
	ours    bool // nobody else may move or cut it

	out     *output // nil: not open
	size    int64   // of what is durable; -1 if not known
	healed  int64
	buf     []byte // to be written
	pending int64  // bytes written behind size
	synced  bool   // so are they
}

// open opens the file, if it isn't, and cuts off what is not known to be durable.
func (t *target) open() error {
	if t.out != nil {
		return nil
	}
	durable := t.size
	if durable >= 0 {
		durable += t.pending
	}
	out, cut, err := openOutput(t.path, t.mode, t.framing, durable)
	if err != nil {
		return err
	}
	if (t.pending > 0 || t.ours && durable >= 0) && out.size != durable {
		return errors.Join(fmt.Errorf("it has %d bytes, not the %d that were written", out.size, durable), out.file.Close())
	}
	t.out, t.size = out, out.size-t.pending
	t.healed += cut
	return nil
}

// flush writes what is gathered.
func (t *target) flush() error {
	if len(t.buf) == 0 {
		return nil
	}
	t.synced = false
	n, err := t.out.file.Write(t.buf)
	t.pending += int64(n)
	if cap(t.buf) > 4*flushBytes {
		t.buf = nil // grown for a huge row
	}
	t.buf = t.buf[:0]
	return err
}

func (t *target) sync() error {
	if t.synced {
		return nil
	}
	if err := t.out.sync(); err != nil {
		return err
	}
	t.synced = true
	return nil
}

// commit makes what was written and synced part of what is durable.
func (t *target) commit() {
	t.size += t.pending
	t.pending = 0
}

// takeBack cuts off what a failed batch has written, as far as that can be done now, and closes the
// file: after a failed sync its pages can't be trusted (they count as clean, and may be lost), so the
// next Write opens it again, and cuts again if need be.
func (t *target) takeBack() {
	t.buf, t.pending, t.synced = t.buf[:0], 0, false
	if t.out == nil {
		return
	}
	_ = t.out.truncate(t.size) // done again when it is opened
	_ = t.out.file.Close()
	t.out = nil
}

// close closes the file; what was written has to be synced before.
func (t *target) close() error {
	if t.out == nil {
		return nil
	}
	err := t.out.file.Close()
	t.out = nil
	return err
}
