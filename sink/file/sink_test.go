package file

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

func entries(t testing.TB, dir string) []sinktest.Entry {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, Name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := sinktest.ParseLines(f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestSinkPassesTheSuite(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		dir := filepath.Join(t.TempDir(), "made", "here")
		return sinktest.Harness{
			Open: func(testing.TB) sink.Sink { return New(dir) },
			Read: func(t testing.TB) []sinktest.Entry { return entries(t, dir) },
		}
	})
}

func TestPrettySinkPassesTheSuite(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		dir := t.TempDir()
		return sinktest.Harness{
			Open: func(testing.TB) sink.Sink { return New(dir, WithPretty()) },
			Read: func(t testing.TB) []sinktest.Entry {
				data, err := os.ReadFile(filepath.Join(dir, PrettyName))
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				list, err := sinktest.ParseLines(bytes.NewReader(compact(t, data)))
				if err != nil {
					t.Fatal(err)
				}
				return list
			},
		}
	})
}

// compact takes JSON values to lines again.
func compact(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for d := json.NewDecoder(bytes.NewReader(data)); ; out.WriteByte('\n') {
		var v json.RawMessage
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) {
			return out.Bytes()
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Compact(&out, v); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTornPrettyEndIsCutOffAtTheStart(t *testing.T) {
	whole := t.TempDir()
	mustWrite(t, openSinkWith(t, whole, WithPretty()), batch(1, 2, strings.Repeat("b\n}\n{", 20_000))) // longer than a block
	data, err := os.ReadFile(filepath.Join(whole, PrettyName))
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.Index(data, []byte("\n}\n")) + 3
	for _, n := range []int{0, 1, 5, 20, first - 3, first - 2, first - 1, first, first + 1, first + 2, first + 10, first + 64<<10, len(data) - 3, len(data) - 2, len(data) - 1, len(data)} {
		for _, tail := range []string{"", "\x00\x00\x00"} {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, PrettyName), append(bytes.Clone(data[:n]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			s := openSinkWith(t, dir, WithPretty())
			mustWrite(t, s, batch(2, 1, "a"))
			got, err := os.ReadFile(s.Path())
			if err != nil {
				t.Fatal(err)
			}
			want := map[bool]int{true: 0, false: first}[n < first]
			if n == len(data) {
				want = n
			}
			if !bytes.HasPrefix(got, data[:want]) || !bytes.HasPrefix(got[want:], []byte(framedPretty.prefix)) || s.Healed() != int64(n+len(tail)-want) {
				t.Errorf("cut at %d: healed %d, want %d", n, s.Healed(), n+len(tail)-want)
			}
		}
	}
}

var text = &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}

// batch of one transaction, n inserts.
func batch(lsn decode.LSN, n int, value string) *sink.Batch {
	rel := &decode.Relation{OID: 1, Schema: "public", Name: "t", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}
	b, tx := &sink.Batch{}, &decode.Tx{CommitLSN: lsn}
	for i := range n {
		b.Changes = append(b.Changes, &decode.Change{Op: decode.OpInsert, Tx: tx, Ordinal: uint64(i + 1), Relation: rel,
			New: decode.Row{decode.TextValue(text, []byte(value))}})
	}
	return b
}

func openSink(t *testing.T, dir string) *Sink {
	s := New(dir)
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustWrite(t *testing.T, s *Sink, b *sink.Batch) {
	t.Helper()
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func TestNewTouchesNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	s := New(dir)
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("New or Close made the folder: %v", err)
	}
	if err := s.Write(t.Context(), batch(1, 1, "x")); !errors.Is(err, ErrClosed) || !sink.IsPermanent(err) {
		t.Errorf("Write behind Close: %v", err)
	}
}

func TestTornEndIsCutOffAtTheStart(t *testing.T) {
	line := func(v string) string {
		out, err := batch(1, 1, v).Changes[0].AppendJSON(nil)
		if err != nil {
			t.Fatal(err)
		}
		return string(out) + "\n"
	}
	a, b := line("a"), line(strings.Repeat("b", 200_000)) // longer than a block
	for name, c := range map[string]struct{ content, want string }{
		"missing":                    {"", ""},
		"whole":                      {a + b, a + b},
		"half a line":                {a + b[:150_000], a},
		"all but the newline":        {a + b[:len(b)-1], a},
		"half the first line":        {a[:20], ""},
		"three bytes":                {a[:3], ""},
		"long torn line":             {a + b + b[:len(b)-2], a + b},
		"line that isn't JSON":       {a + b[:100] + "\n", a},
		"zeros":                      {a + strings.Repeat("\x00", 100_000), a},
		"zeros and a newline":        {a + strings.Repeat("\x00", 50) + "\n", a},
		"zeros then a torn line":     {a + strings.Repeat("\x00", 50) + b[500:1000], a},
		"several broken lines":       {a + b[:10] + "\n" + b[:20] + "\n\n", a},
		"nothing but zeros":          {strings.Repeat("\x00", 5000), ""},
		"JSON of another kind":       {a + "{}\n", a},
		"a whole line behind a torn": {a + b[:10] + "\n" + a, a + b[:10] + "\n" + a}, // nobody but the last sync's end is looked at
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, Name)
			if c.content != "" {
				if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := openSink(t, dir)
			mustWrite(t, s, batch(1, 1, "a"))
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != c.want+a || s.Healed() != int64(len(c.content)-len(c.want)) {
				t.Errorf("%d bytes, want %d; healed %d", len(got), len(c.want+a), s.Healed())
			}
		})
	}
}

func TestFilesOfOthersAreLeftAlone(t *testing.T) {
	for _, content := range []string{"my notes\n", "my notes", "{\n  \"pretty\": 1\n}\n", "[]", "{\"a\":1}\n", "\n"} {
		dir := t.TempDir()
		path := filepath.Join(dir, Name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := openSink(t, dir).Write(t.Context(), batch(1, 1, "a"))
		got, _ := os.ReadFile(path)
		if !errors.Is(err, ErrNotOurs) || string(got) != content {
			t.Errorf("%q: %v; now %q", content, err, got)
		}
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, Name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := openSink(t, dir).Write(t.Context(), batch(1, 1, "a")); err == nil {
		t.Error("a folder was taken for the file")
	}
}

func TestOneSinkAFolder(t *testing.T) {
	dir := t.TempDir()
	first, second := openSink(t, dir), openSink(t, dir)
	mustWrite(t, first, batch(1, 1, "a"))
	err := second.Write(t.Context(), batch(2, 1, "a"))
	if !errors.Is(err, ErrFolderInUse) || !strings.Contains(err.Error(), dir) || sink.IsPermanent(err) {
		t.Errorf("second sink: %v", err)
	}
	mustWrite(t, first, batch(2, 1, "a"))
	if err := first.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, second, batch(3, 1, "a"))
	if list := entries(t, dir); len(list) != 3 {
		t.Errorf("%d lines", len(list))
	}
}

func TestFailedBatchLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	s := openSink(t, dir)
	mustWrite(t, s, batch(1, 3, "a"))
	before, _ := os.ReadFile(s.Path())
	unchanged := func(when string) {
		t.Helper()
		if now, _ := os.ReadFile(s.Path()); !bytes.Equal(now, before) {
			t.Errorf("%s: %d bytes, before %d", when, len(now), len(before))
		}
	}

	bad := batch(2, 40, strings.Repeat("x", 100_000)) // several pieces are written before the bad one
	bad.Changes[35].New = nil
	bad.Changes[35].Relation = nil
	var reject *sink.RejectError
	if err := s.Write(t.Context(), bad); !errors.As(err, &reject) || reject.Index != 35 {
		t.Errorf("%v", err)
	}
	unchanged("a change that can't be written")

	if err := s.single.open(); err != nil {
		t.Fatal(err)
	}
	readOnly, err := os.Open(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	s.single.out.file.Close()
	s.single.out.file = readOnly // writes fail
	if err := s.Write(t.Context(), batch(2, 1, "a")); err == nil {
		t.Error("a write to a read-only file succeeded")
	}
	unchanged("a failed write")

	// The taking back itself failed: it is made up for when the file is opened again.
	if err := os.WriteFile(s.Path(), append(bytes.Clone(before), before...), 0o600); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, batch(2, 1, "a"))
	if list := entries(t, dir); len(list) != 4 || s.Healed() != 0 {
		t.Errorf("%d lines, healed %d", len(list), s.Healed())
	}
}

func TestFolderThatCannotBeMadeIsNamed(t *testing.T) {
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := openSink(t, filepath.Join(blocked, "dir")).Write(t.Context(), batch(1, 1, "a"))
	if err == nil || !strings.Contains(err.Error(), blocked) {
		t.Errorf("%v", err)
	}
}

func TestFileThatWasMovedAwayIsMadeAgainAfterARestart(t *testing.T) {
	dir := t.TempDir()
	s := openSink(t, dir)
	mustWrite(t, s, batch(1, 2, "a"))
	s.single.takeBack() // as after an error
	if err := os.Rename(s.Path(), s.Path()+".1"); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, s, batch(2, 1, "a"))
	if list := entries(t, dir); len(list) != 1 || list[0].ID != "0/2:1" {
		t.Errorf("%v", list)
	}
}
