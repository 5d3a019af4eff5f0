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
)

// output is one open file that lines are appended to. Rotation will open another one.
type output struct {
	file *os.File
	size int64 // when it was opened
}

// openOutput opens or makes the file, and cuts it back to whole lines, and to what is known to be
// durable (unless that is negative). It gives how many bytes of torn lines it cut off.
func openOutput(path string, mode fs.FileMode, durable int64) (*output, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, mode)
	if err != nil {
		return nil, 0, err
	}
	o := &output{file: f}
	cut, err := o.prepare(durable)
	if err == nil {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
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
	if o.size, err = wholeLines(o.file, size); err != nil {
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

// linePrefix is how every line begins (decode.Change.AppendJSON).
const linePrefix = `{"op":"`

// wholeLines gives the size of the file without the torn lines at its end. A kill leaves a line without
// its end. A power cut may leave more: the file's length can reach the disk before its content, which
// then reads as zeros. Neither can reach back beyond the last sync, so what is cut was never
// reported as written.
func wholeLines(f io.ReaderAt, size int64) (int64, error) {
	end := size
	for end > 0 {
		start, err := lineStart(f, end)
		if err != nil {
			return 0, err
		}
		ok, err := isLine(f, start, end)
		if err != nil {
			return 0, err
		}
		if ok {
			return end, nil
		}
		end = start
	}
	if size > 0 {
		return 0, checkOurs(f, size)
	}
	return 0, nil
}

// lineStart finds where the line that ends at end begins; its own newline at end-1, if there is one,
// doesn't count. It reads backwards in blocks.
func lineStart(f io.ReaderAt, end int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for hi := end - 1; hi > 0; {
		lo := max(hi-int64(len(buf)), 0)
		block := buf[:hi-lo]
		if err := readFull(f, block, lo); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(block, '\n'); i >= 0 {
			return lo + int64(i) + 1, nil
		}
		hi = lo
	}
	return 0, nil
}

// isLine reports whether the bytes from start to end are a whole line. It holds the line in memory, as
// writing it did.
func isLine(f io.ReaderAt, start, end int64) (bool, error) {
	var edge [1]byte
	if err := readFull(f, edge[:], end-1); err != nil || edge[0] != '\n' {
		return false, err
	}
	line := make([]byte, end-1-start)
	if err := readFull(f, line, start); err != nil {
		return false, err
	}
	return bytes.HasPrefix(line, []byte(linePrefix)) && json.Valid(line), nil
}

// checkOurs guards somebody else's file: one without a single whole line is only emptied if it can be
// the torn beginning of ours.
func checkOurs(f io.ReaderAt, size int64) error {
	head := make([]byte, min(size, int64(len(linePrefix))))
	if err := readFull(f, head, 0); err != nil {
		return err
	}
	if bytes.HasPrefix([]byte(linePrefix), head) || len(bytes.Trim(head, "\x00")) == 0 {
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
