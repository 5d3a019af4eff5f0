package stdout_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
	"github.com/pgflo/flo/sink/stdout"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func entries(t testing.TB, r io.Reader) []sinktest.Entry {
	t.Helper()
	list, err := sinktest.ParseLines(r)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestSinkPassesTheSuite(t *testing.T) {
	for name, opts := range map[string][]stdout.Option{"Lines": nil, "Pretty": {stdout.WithPretty()}} {
		t.Run(name, func(t *testing.T) {
			sinktest.Run(t, func(*testing.T) sinktest.Harness {
				var place bytes.Buffer
				return sinktest.Harness{
					Open: func(testing.TB) sink.Sink { return stdout.New(append(opts, stdout.WithWriter(&place))...) },
					Read: func(t testing.TB) []sinktest.Entry { return entries(t, bytes.NewReader(compact(t, place.Bytes()))) },
				}
			})
		})
	}
}

// compact takes JSON values to lines again.
func compact(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for d := json.NewDecoder(bytes.NewReader(data)); ; out.WriteByte('\n') {
		var v json.RawMessage
		err := d.Decode(&v)
		if err == io.EOF {
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

func TestDebeziumEnvelope(t *testing.T) {
	var w bytes.Buffer
	if err := stdout.New(stdout.WithWriter(&w), stdout.WithEncoder(decode.Debezium("shop"))).Write(t.Context(), batch(1, 2, "x")); err != nil {
		t.Fatal(err)
	}
	var e struct {
		Op     string
		After  map[string]string
		Source struct{ Name, Table string }
	}
	first, rest, _ := bytes.Cut(w.Bytes(), []byte{'\n'})
	if err := json.Unmarshal(first, &e); err != nil || e.Op != "c" || e.After["id"] != "x" || e.Source.Name != "shop" || e.Source.Table != "t" {
		t.Errorf("%v %s", err, first)
	}
	if bytes.Count(rest, []byte{'\n'}) != 1 {
		t.Errorf("%s", w.Bytes())
	}
}

var text = &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}

func relation() *decode.Relation {
	return &decode.Relation{OID: 1, Schema: "public", Name: "t", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}
}

// batch of one transaction, n inserts.
func batch(lsn decode.LSN, n int, value string) *sink.Batch {
	rel, tx := relation(), &decode.Tx{CommitLSN: lsn}
	b := &sink.Batch{}
	for i := range n {
		b.Changes = append(b.Changes, &decode.Change{Op: decode.OpInsert, Tx: tx, Ordinal: uint64(i + 1), Relation: rel,
			New: decode.Row{decode.TextValue(text, []byte(value))}})
	}
	return b
}

// calls counts the writes.
type calls struct {
	bytes.Buffer
	n int
}

func (c *calls) Write(p []byte) (int, error) { c.n++; return c.Buffer.Write(p) }

func TestBatchIsOneWrite(t *testing.T) {
	var w calls
	if err := stdout.New(stdout.WithWriter(&w)).Write(t.Context(), batch(1, 500, "x")); err != nil {
		t.Fatal(err)
	}
	if list := entries(t, &w); w.n != 1 || len(list) != 500 {
		t.Errorf("%d writes, %d lines", w.n, len(list))
	}
}

// failing takes n bytes, once, then fails once.
type failing struct {
	bytes.Buffer
	n    int
	done bool
}

var errPipe = errors.New("broken pipe")

func (f *failing) Write(p []byte) (int, error) {
	if f.done || len(p) <= f.n {
		return f.Buffer.Write(p)
	}
	f.done = true
	n, _ := f.Buffer.Write(p[:f.n])
	return n, errPipe
}

func TestFailedWriteBreaksOneLineOnly(t *testing.T) {
	for _, n := range []int{0, 10, 150} {
		w := &failing{n: n}
		s := stdout.New(stdout.WithWriter(w))
		b := batch(1, 5, "value")
		if err := s.Write(t.Context(), b); !errors.Is(err, errPipe) {
			t.Fatalf("%d: %v", n, err)
		}
		if err := s.Write(t.Context(), b); err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		broken, whole := 0, 0
		for line := range bytes.Lines(w.Bytes()) {
			if _, err := sinktest.ParseLines(bytes.NewReader(line)); err != nil {
				broken++
			} else {
				whole++
			}
		}
		if broken > 1 || whole < 5 {
			t.Errorf("%d: %d broken lines, %d whole ones:\n%s", n, broken, whole, w.String())
		}
	}
}

func TestReaderThatDoesNotReadDoesNotHoldUpTheEnd(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := stdout.New(stdout.WithWriter(w))
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	big := batch(1, 20, strings.Repeat("x", 100_000)) // more than a pipe holds
	go func() { result <- s.Write(ctx, big) }()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil { // it is in the middle of the write
		t.Fatal(err)
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatalf("Write: %v", err)
	}
	// The reader comes back: the write that was left goes on, then the batch comes again.
	all := make(chan []byte)
	go func() {
		data, _ := io.ReadAll(r)
		all <- append([]byte("{"), data...)
	}()
	if err := s.Write(t.Context(), big); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if list := entries(t, bytes.NewReader(<-all)); len(list) != 40 || list[0].ID != list[20].ID {
		t.Errorf("%d lines", len(list))
	}
	r.Close()
}

func TestChangeThatCannotBeWrittenIsNamed(t *testing.T) {
	b := batch(1, 3, "x")
	b.Changes[1].New = b.Changes[1].New[:0]
	err := stdout.New(stdout.WithWriter(io.Discard)).Write(t.Context(), b)
	var reject *sink.RejectError
	if !errors.As(err, &reject) || reject.Index != 1 {
		t.Errorf("%v", err)
	}
}
