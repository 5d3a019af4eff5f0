package file

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

// content gives a complete file's objects.
func content(t testing.TB, dir, name string) []sinktest.Entry {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, gzipSuffix) {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if data, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	if strings.HasSuffix(plainName(name), ".json") {
		data = compact(t, data)
	}
	list, err := sinktest.ParseLines(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return list
}

// complete gives the manifest's files, having checked all that it says of them.
func complete(t testing.TB, dir string) []Entry {
	t.Helper()
	list, err := ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		var real Entry
		if err := real.measure(filepath.Join(dir, e.File)); err != nil {
			t.Fatal(err)
		}
		rows := content(t, dir, e.File)
		if real.Bytes != e.Bytes || real.SHA256 != e.SHA256 || int64(len(rows)) != e.Rows || e.Rows == 0 ||
			rows[0].ID != e.First || rows[len(rows)-1].ID != e.Last || e.Closed.Before(e.Opened) {
			t.Errorf("%s is not what its manifest says: %d bytes, %d rows; %+v", e.File, real.Bytes, len(rows), e)
		}
	}
	return list
}

// all gives what a folder's complete files hold, in the order of their numbers.
func all(t testing.TB, dir string) (rows []sinktest.Entry) {
	t.Helper()
	list := complete(t, dir)
	slices.SortFunc(list, func(a, b Entry) int { return int(a.Seq) - int(b.Seq) })
	for _, e := range list {
		rows = append(rows, content(t, dir, e.File)...)
	}
	return rows
}

// files gives the names of all that is in a folder, but for lock and manifest.
func files(t testing.TB, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name, _ := filepath.Rel(dir, path)
		if err == nil && !d.IsDir() && name != LockName && name != ManifestName {
			names = append(names, filepath.ToSlash(name))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// checkTidy wants nothing in the folder but what the manifest lists.
func checkTidy(t testing.TB, dir string) {
	t.Helper()
	var listed []string
	for _, e := range complete(t, dir) {
		listed = append(listed, e.File)
	}
	slices.Sort(listed)
	if there := slices.Sorted(slices.Values(files(t, dir))); !slices.Equal(there, listed) {
		t.Errorf("the folder holds %v\nthe manifest lists %v", there, listed)
	}
}

func TestRotatingSinkPassesTheSuite(t *testing.T) {
	for name, opts := range map[string][]Option{
		"Size":     {WithRotateSize(500)},
		"Gzip":     {WithGzip()},
		"Pretty":   {WithRotateSize(500), WithPretty()},
		"PerTable": {WithNames("{schema}/{table}/{time:2006-01-02}/{seq}"), WithGzip()},
	} {
		t.Run(name, func(t *testing.T) {
			sinktest.Run(t, func(t *testing.T) sinktest.Harness {
				dir := t.TempDir()
				return sinktest.Harness{
					Open: func(testing.TB) sink.Sink { return New(dir, opts...) },
					Read: func(t testing.TB) []sinktest.Entry {
						checkTidy(t, dir)
						return all(t, dir)
					},
					MaxValue: 1 << 20,
				}
			})
		})
	}
}

func TestFilesAreNamedByTableAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a fake clock: 2000-01-01
		dir := t.TempDir()
		s := New(dir, WithNames("{schema}/{table}/day={time:2006-01-02}/{time}-{seq}"))
		tx := &decode.Tx{CommitLSN: 7}
		table := func(schema, name string) *decode.Relation {
			return &decode.Relation{Schema: schema, Name: name, Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}
		}
		a, b := table("public", "a"), table(`S"./ü`, strings.Repeat("語", 21))
		row := decode.Row{decode.TextValue(text, []byte("1"))}
		mustWrite(t, s, &sink.Batch{Changes: []*decode.Change{
			{Op: decode.OpInsert, Tx: tx, Ordinal: 1, Relation: a, New: row},
			{Op: decode.OpInsert, Tx: tx, Ordinal: 2, Relation: b, New: row},
			{Op: decode.OpTruncate, Tx: tx, Ordinal: 3, Truncate: &decode.Truncate{Relations: []*decode.Relation{a, b}}},
			{Op: decode.OpMessage, Tx: tx, Ordinal: 4, Message: &decode.Message{Prefix: "x"}},
		}})
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := map[string]Entry{}
		for _, e := range complete(t, dir) {
			got[e.File] = e
		}
		tail := "/day=2000-01-01/20000101T000000Z-0000000"
		want := map[string][2]string{
			"public/a" + tail + "1.jsonl": {"public", "a"},
			"S%22.%2F%C3%BC/" + strings.Repeat("%E8%AA%9E", 9) + "%E~3dfdd3048d004c3e" + tail + "2.jsonl": {b.Schema, b.Name},
			"+other/+other" + tail + "3.jsonl": {"", ""},
		}
		for name, table := range want {
			e, ok := got[name]
			if !ok || e.Schema != table[0] || e.Table != table[1] {
				t.Errorf("%s: %v %+v; there are %v", name, ok, e, slices.Sorted(maps.Keys(got)))
			}
		}
		if rows := content(t, dir, "public/a"+tail+"1.jsonl"); len(rows) != 2 || rows[1].Op != "truncate" {
			t.Errorf("%v", rows)
		}
	})
}

func TestFilesAreRotatedBySize(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, WithRotateSize(1000))
	for lsn := range decode.LSN(30) {
		mustWrite(t, s, batch(lsn+1, 2, strings.Repeat("x", 100)))
		if list := files(t, dir); strings.HasSuffix(list[len(list)-1], openSuffix) && len(list) != len(complete(t, dir))+1 {
			t.Fatalf("%v", list)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	list := complete(t, dir)
	for i, e := range list {
		if e.Seq != uint64(i+1) || e.Bytes > 2000 || e.Bytes < 1000 && i < len(list)-1 {
			t.Errorf("%+v", e)
		}
	}
	if rows := all(t, dir); len(rows) != 60 || len(list) < 10 {
		t.Errorf("%d rows in %d files", len(rows), len(list))
	}
	checkTidy(t, dir)
}

func TestFilesAreRotatedByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := New(dir, WithRotateAge(time.Minute))
		mustWrite(t, s, batch(1, 1, "a"))
		time.Sleep(59 * time.Second)
		mustWrite(t, s, batch(2, 1, "b"))
		if list := complete(t, dir); len(list) != 0 {
			t.Errorf("%+v", list)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if list := complete(t, dir); len(list) != 1 || list[0].Rows != 2 { // though nothing more came
			t.Errorf("%+v", list)
		}
		mustWrite(t, s, batch(3, 1, "c"))
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		checkTidy(t, dir)
	})
}

func TestCompletionThatFailsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := New(dir, WithRotateAge(time.Minute), WithGzip())
		mustWrite(t, s, batch(1, 1, "a"))
		blocker := filepath.Join(dir, strings.TrimSuffix(files(t, dir)[0], openSuffix)+gzipSuffix+tempSuffix)
		if err := os.Mkdir(blocker, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := s.Write(t.Context(), batch(2, 1, "b")); err == nil || sink.IsPermanent(err) {
			t.Errorf("Write: %v", err)
		}
		if err := os.Remove(blocker); err != nil {
			t.Fatal(err)
		}
		time.Sleep(completeRetry)
		synctest.Wait()
		if list := complete(t, dir); len(list) != 1 {
			t.Errorf("%+v", list)
		}
		mustWrite(t, s, batch(2, 1, "b"))
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if rows := all(t, dir); len(rows) != 2 {
			t.Errorf("%v", rows)
		}
	})
}

func TestManyTablesNeedFewHandles(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, WithNames("{table}-{seq}"))
	tx := &decode.Tx{CommitLSN: 1}
	const tables, rounds = 3 * maxHandles, 3
	for round := range rounds {
		b := &sink.Batch{}
		for i := range tables {
			rel := &decode.Relation{Schema: "public", Name: "t" + strings.Repeat("x", i%50) + string(rune('a'+i/50)), Columns: []decode.Column{{Name: "id", Type: text}}}
			b.Changes = append(b.Changes, &decode.Change{Op: decode.OpInsert, Tx: tx, Ordinal: uint64(round*tables + i + 1), Relation: rel,
				New: decode.Row{decode.TextValue(text, []byte("1"))}})
		}
		mustWrite(t, s, b)
		open := 0
		for _, f := range s.rotated.files {
			if f.out != nil {
				open++
			}
		}
		if open > maxHandles {
			t.Errorf("%d files are open", open)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if list := complete(t, dir); len(list) != tables || list[0].Rows != rounds {
		t.Errorf("%d files", len(list))
	}
}

func TestFailedBatchIsTakenBackFromEveryFile(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, WithNames("{table}-{seq}"))
	two := func(lsn decode.LSN, value string) *sink.Batch {
		b := batch(lsn, 2, value)
		other := *b.Changes[0].Relation
		other.Name = "u"
		b.Changes[1].Relation = &other
		return b
	}
	mustWrite(t, s, two(1, "a"))
	bad := two(2, strings.Repeat("x", 2*flushBytes))
	bad.Changes = append(bad.Changes, &decode.Change{Op: 99})
	var reject *sink.RejectError
	if err := s.Write(t.Context(), bad); !errors.As(err, &reject) || reject.Index != 2 {
		t.Fatalf("%v", err)
	}
	mustWrite(t, s, two(3, "c"))
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, e := range complete(t, dir) {
		if e.Rows != 2 || !strings.HasPrefix(e.First, "0/1:") || !strings.HasPrefix(e.Last, "0/3:") {
			t.Errorf("%+v", e)
		}
	}
	checkTidy(t, dir)
}

func TestNamesAreNeverUsedTwice(t *testing.T) {
	dir := t.TempDir()
	write := func() {
		s := New(dir, WithNames("{seq}"))
		mustWrite(t, s, batch(1, 1, "a"))
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if err := os.Remove(filepath.Join(dir, ManifestName)); err != nil { // it starts to count afresh
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "00000002.jsonl.open"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	write()
	if got := files(t, dir); !slices.Equal(got, []string{"00000001.jsonl", "00000002.jsonl.open", "00000003.jsonl"}) {
		t.Errorf("%v", got)
	}
}

func TestFileThatIsTakenAwayIsNoticed(t *testing.T) {
	dir := t.TempDir()
	s := New(dir, WithRotateSize(1<<20))
	defer s.Close(context.Background())
	mustWrite(t, s, batch(1, 1, "a"))
	for _, f := range s.rotated.files {
		f.takeBack() // as after an error
	}
	if err := os.Remove(filepath.Join(dir, files(t, dir)[0])); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), batch(2, 1, "b")); err == nil || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("%v", err)
	}
}

func TestOptionsAreValidatedByTheFirstWrite(t *testing.T) {
	for name, opt := range map[string]Option{
		"size": WithRotateSize(0), "age": WithRotateAge(-1), "no seq": WithNames("{table}"), "unknown": WithNames("{seq}{x}"),
		"open brace": WithNames("{seq"), "above": WithNames("../{seq}"), "rooted": WithNames("/{seq}"), "folder": WithNames("{seq}/"),
		"layout": WithNames("{seq:2006}"), "empty": WithNames(""),
	} {
		dir := filepath.Join(t.TempDir(), "x")
		err := openSinkWith(t, dir, opt).Write(t.Context(), batch(1, 1, "a"))
		if !errors.Is(err, ErrInvalidOption) || !sink.IsPermanent(err) || New(dir, opt).Validate() == nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: the folder was made", name)
		}
	}
	wrong := func(dst []byte, _ *decode.Change) ([]byte, error) { return append(dst, `{"x":1}`...), nil }
	if err := openSinkWith(t, t.TempDir(), WithEncoder(wrong)).Write(t.Context(), batch(1, 1, "a")); !errors.Is(err, ErrEnvelope) || !sink.IsPermanent(err) {
		t.Errorf("%v", err)
	}
}

func openSinkWith(t *testing.T, dir string, opts ...Option) *Sink {
	s := New(dir, opts...)
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestIdentityIsReadFromBothEnvelopes(t *testing.T) {
	streamed := batch(0x16B3748, 3, "a").Changes[2]
	copied := *streamed
	copied.Tx, copied.Ordinal, copied.Copy = nil, 0, &decode.CopyID{Point: 1, Table: 2, Attempt: 3, Range: 4, Row: 5}
	for _, encode := range []decode.Encoder{decode.JSON, decode.Debezium("shop")} {
		for _, c := range []*decode.Change{streamed, &copied} {
			object, err := encode(nil, c)
			if err != nil {
				t.Fatal(err)
			}
			if got := identityOf(object); got != identity(c) {
				t.Errorf("%q from %s", got, object)
			}
		}
	}
	for _, bad := range []string{"", "{}", "[]", `{"lsn":"x"}`, `{"lsn":true}`} {
		if got := identityOf([]byte(bad)); got != "" {
			t.Errorf("%q from %s", got, bad)
		}
	}
}
