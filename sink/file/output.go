package file

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pgflo/flo/internal/records"
)

// framing is how the objects of a file begin and end.
type framing struct {
	prefix string // of an object
	end    string // of an object; it stands nowhere within one
}

// The framings of package records.
var (
	framedLines  = framing{prefix: records.Prefix, end: "\n"}
	framedPretty = framing{prefix: records.PrettyPrefix, end: "\n}\n"}
)

// output is one open file that whole objects are appended to.
type output struct {
	file    *os.File
	framing framing
	size    int64 // when it was opened
}

// openOutput opens or makes the file, and cuts it back to whole objects, and to what is known to be
// durable (unless that is negative). It gives how many bytes of torn objects it cut off.
func openOutput(path string, mode fs.FileMode, f framing, durable int64) (*output, int64, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, mode)
	if err != nil {
		return nil, 0, err
	}
	o := &output{file: file, framing: f}
	cut, err := o.prepare(durable)
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return nil, 0, errors.Join(err, file.Close())
	}
	return o, cut, nil
}

func (o *output) prepare(durable int64) (cut int64, err error) {
	info, err := o.file.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: it is no regular file (%s)", ErrNotOurs, info.Mode())
	}
	size := info.Size()
	if durable >= 0 && size > durable {
		if err := o.truncate(durable); err != nil {
			return 0, err
		}
		size = durable
	}
	if o.size, err = o.framing.whole(o.file, size); err != nil {
		return 0, err
	}
	if o.size < size {
		if err := o.truncate(o.size); err != nil {
			return 0, err
		}
	}
	return size - o.size, o.sync()
}

// truncate to size, never to more than there is.
func (o *output) truncate(size int64) error {
	info, err := o.file.Stat()
	if err != nil || info.Size() <= size {
		return err
	}
	return o.file.Truncate(size)
}

func (o *output) sync() error { return o.file.Sync() }

// whole gives the size of the file without the torn objects at its end. A kill leaves an object without
// its end. A power cut may leave more: the file's length can reach the disk before its content, which
// then reads as zeros. Neither can reach back beyond the last sync, so what is cut was never
// reported as written.
func (f framing) whole(file io.ReaderAt, size int64) (int64, error) {
	end := size
	for end > 0 {
		start, err := f.start(file, end)
		if err != nil {
			return 0, err
		}
		ok, err := f.isObject(file, start, end)
		if err != nil {
			return 0, err
		}
		if ok {
			return end, nil
		}
		end = start
	}
	if size > 0 {
		return 0, f.checkOurs(file, size)
	}
	return 0, nil
}

// start finds where the object that ends at end begins: behind the end of the one before. It reads
// backwards in blocks, which overlap so that none hides an end.
func (f framing) start(file io.ReaderAt, end int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for hi := end - 1; hi > 0; {
		lo := max(hi-int64(len(buf)), 0)
		block := buf[:hi-lo]
		if err := readFull(file, block, lo); err != nil {
			return 0, err
		}
		if i := bytes.LastIndex(block, []byte(f.end)); i >= 0 {
			return lo + int64(i+len(f.end)), nil
		}
		if lo == 0 {
			break
		}
		hi = lo + int64(len(f.end)) - 1
	}
	return 0, nil
}

// isObject reports whether the bytes from start to end are a whole object. It holds the object in
// memory, as writing it did.
func (f framing) isObject(file io.ReaderAt, start, end int64) (bool, error) {
	tail := make([]byte, len(f.end))
	if end-start < int64(len(tail)) {
		return false, nil
	}
	if err := readFull(file, tail, end-int64(len(tail))); err != nil || string(tail) != f.end {
		return false, err
	}
	object := make([]byte, end-start)
	if err := readFull(file, object, start); err != nil {
		return false, err
	}
	return bytes.HasPrefix(object, []byte(f.prefix)) && json.Valid(object), nil
}

// checkOurs guards somebody else's file: one without a single whole object is only emptied if it can be
// the torn beginning of ours.
func (f framing) checkOurs(file io.ReaderAt, size int64) error {
	head := make([]byte, min(size, int64(len(f.prefix))))
	if err := readFull(file, head, 0); err != nil {
		return err
	}
	if strings.HasPrefix(f.prefix, string(bytes.TrimRight(head, "\x00"))) {
		return nil
	}
	return ErrNotOurs
}

func readFull(f io.ReaderAt, p []byte, at int64) error {
	n, err := f.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	return err
}
