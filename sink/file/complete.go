package file

import (
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgflo/flo/decode"
)

const gzipSuffix = ".gz"

// plainName is a file's name before it was compressed.
func plainName(name string) string { return strings.TrimSuffix(name, gzipSuffix) }

// complete gives a file its name and tells the manifest. After an error it can be called again.
func (r *rotation) complete(f *rotated) error {
	if !f.renamed {
		if err := r.finish(f); err != nil {
			return err
		}
		f.renamed = true
		f.entry.Closed = time.Now().UTC()
		r.healed += f.healed
	}
	if err := r.manifest.add(f.entry); err != nil {
		return err
	}
	r.at("complete")
	return nil
}

// finish does all but the manifest: the file is cut back to what is durable, compressed, renamed.
func (r *rotation) finish(f *rotated) error {
	final := r.final(f.entry)
	if !f.named {
		if err := errors.Join(f.target.open(), f.target.close()); err != nil {
			return err
		}
		if f.size == 0 {
			f.entry.State = StateDropped
			if err := os.Remove(f.path); err != nil {
				return err
			}
			return syncFolder(filepath.Dir(f.path))
		}
		if err := r.name(f, final); err != nil {
			return err
		}
		f.named = true
	}
	if err := syncFolder(filepath.Dir(final)); err != nil {
		return err
	}
	if isCompressed(f.entry) {
		if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		r.at("removed")
		if err := syncFolder(filepath.Dir(final)); err != nil {
			return err
		}
	}
	f.entry.State = StateComplete
	return f.entry.measure(final)
}

func isCompressed(e Entry) bool { return strings.HasSuffix(e.File, gzipSuffix) }

// name gives the file, or its compressed copy, its own name by one rename.
func (r *rotation) name(f *rotated, final string) error {
	from := f.path
	if isCompressed(f.entry) {
		from = final + tempSuffix
		if err := r.compress(f.path, from); err != nil {
			return err
		}
		r.at("compressed")
	}
	if err := os.Rename(from, final); err != nil {
		return err
	}
	r.at("renamed")
	return nil
}

// compress writes a compressed copy, durably. One that was left behind is overwritten.
func (r *rotation) compress(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, r.s.mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	z := gzip.NewWriter(out)
	if _, err := io.Copy(z, in); err != nil {
		return err
	}
	r.at("compressing")
	if err := z.Close(); err != nil {
		return err
	}
	return out.Sync()
}

// measure reads a complete file's size and checksum.
func (e *Entry) measure(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if e.Bytes, err = io.Copy(h, f); err != nil {
		return err
	}
	e.SHA256 = hex.EncodeToString(h.Sum(nil))
	return nil
}

// recover completes what was being written when the last sink of the folder died.
func (r *rotation) recover(unfinished []Entry) error {
	for _, e := range unfinished {
		if !filepath.IsLocal(filepath.FromSlash(e.File)) {
			return fmt.Errorf("the manifest names %q, which is outside of the folder", e.File)
		}
		if err := r.recoverFile(e); err != nil {
			return fmt.Errorf("%s: %w", e.File, err)
		}
	}
	return nil
}

func (r *rotation) recoverFile(e Entry) error {
	final, open := r.final(e), r.openPath(e)
	if err := os.Remove(final + tempSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	renamed, err := exists(final)
	if err != nil {
		return err
	}
	f := &rotated{entry: e, renamed: renamed}
	if renamed { // the rename is what makes a file complete: only the manifest doesn't know
		if both, err := exists(open); err != nil || both && !isCompressed(e) {
			return errors.Join(err, fmt.Errorf("%s is there too, which the sink didn't do: move one of them away", filepath.Base(open)))
		}
		if err := os.Remove(open); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := syncFolder(filepath.Dir(final)); err != nil {
			return err
		}
		f.entry.State, f.entry.Closed = StateComplete, time.Now().UTC()
		if err := errors.Join(f.entry.survey(final), f.entry.measure(final)); err != nil {
			return err
		}
		return r.complete(f)
	}
	there, err := exists(open)
	if err != nil {
		return err
	}
	if !there { // listed, but not made yet
		f.renamed, f.entry.State = true, StateDropped
		return r.complete(f)
	}
	framing := framedLines
	if strings.HasSuffix(plainName(e.File), ".json") {
		framing = framedPretty
	}
	f.target = target{path: open, mode: r.s.mode, framing: framing, size: -1, ours: true}
	if err := f.target.open(); err != nil { // cuts off what is torn
		return err
	}
	if err := f.target.close(); err != nil {
		return err
	}
	if err := f.entry.survey(open); err != nil {
		return err
	}
	return r.complete(f)
}

// survey reads a file's objects: how many they are, and what the first and the last one are.
func (e *Entry) survey(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var in io.Reader = bufio.NewReaderSize(f, 1<<20)
	if strings.HasSuffix(path, gzipSuffix) {
		if in, err = gzip.NewReader(in); err != nil {
			return err
		}
	}
	var first, last json.RawMessage
	for d := json.NewDecoder(in); ; e.Rows++ {
		var object json.RawMessage
		err := d.Decode(&object)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if first == nil {
			first = object
		}
		last = object
	}
	e.First, e.Last = identityOf(first), identityOf(last)
	return nil
}

// identityOf reads a change's identity from flo's own envelope or Debezium's, "" if it is neither.
func identityOf(object json.RawMessage) string {
	type place struct {
		LSN     json.RawMessage
		Ordinal uint64
		Copy    string
	}
	var o struct {
		place
		Source place
	}
	if json.Unmarshal(object, &o) != nil {
		return ""
	}
	p := o.place
	if p.LSN == nil && p.Copy == "" {
		p = o.Source
	}
	if p.Copy != "" {
		return p.Copy
	}
	var text string
	var number uint64
	switch {
	case json.Unmarshal(p.LSN, &text) == nil:
		lsn, err := decode.ParseLSN(text)
		if err != nil {
			return ""
		}
		return decode.Position{LSN: lsn, Ordinal: p.Ordinal}.String()
	case json.Unmarshal(p.LSN, &number) == nil:
		return decode.Position{LSN: decode.LSN(number), Ordinal: p.Ordinal}.String()
	}
	return ""
}
