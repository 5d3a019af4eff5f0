package webhook

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// receiver keeps what it has taken.
type receiver struct {
	*httptest.Server
	mu       sync.Mutex
	lines    bytes.Buffer
	requests []request
	answer   func(n int, r request, w http.ResponseWriter) bool // true: it has answered; n counts from 0
}

type request struct {
	header http.Header
	raw    []byte // as it came
	body   []byte
}

func newReceiver(t testing.TB) *receiver {
	r := &receiver{}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	q := request{header: req.Header}
	q.raw, _ = io.ReadAll(req.Body)
	q.body = q.raw
	if req.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(bytes.NewReader(q.raw))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		q.body, _ = io.ReadAll(z)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, q)
	if r.answer != nil && r.answer(len(r.requests)-1, q, w) {
		return
	}
	if err := r.take(q.body); err != nil || req.Method != http.MethodPost {
		http.Error(w, "bad", http.StatusBadRequest)
	}
}

func (r *receiver) take(body []byte) error {
	var list []json.RawMessage
	if !bytes.HasPrefix(body, []byte{'['}) {
		list = append(list, body)
	} else if err := json.Unmarshal(body, &list); err != nil {
		return err
	}
	for _, l := range list {
		r.lines.Write(l)
		r.lines.WriteByte('\n')
	}
	return nil
}

func (r *receiver) entries(t testing.TB) []sinktest.Entry {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	list, err := sinktest.ParseLines(bytes.NewReader(r.lines.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func (r *receiver) keys() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []string
	for _, q := range r.requests {
		list = append(list, q.header.Get(KeyHeader))
	}
	return list
}

func newSink(t testing.TB, endpoint string, opts ...Option) *Sink {
	t.Helper()
	s, err := New(endpoint, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSinkPassesTheSuite(t *testing.T) {
	for name, opts := range map[string][]Option{
		"Batches": nil,
		"Single":  {WithSingle()},
		"Gzip":    {WithGzip(), WithSecret([]byte("secret"))},
		"Small":   {WithMaxChanges(3), WithMaxBytes(500)},
	} {
		t.Run(name, func(t *testing.T) {
			sinktest.Run(t, func(t *testing.T) sinktest.Harness {
				r := newReceiver(t)
				return sinktest.Harness{
					Open: func(t testing.TB) sink.Sink { return newSink(t, r.URL, opts...) },
					Read: r.entries,
					// The others' way with a row is the same, whatever its size.
					MaxValue: map[string]int{"Batches": 8 << 20}[name] + 1<<20,
				}
			})
		})
	}
}

var text = &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}

var relation = &decode.Relation{OID: 1, Schema: "public", Name: "t", Identity: decode.IdentityDefault,
	Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}

// batch of one transaction, an insert for each value.
func batch(lsn decode.LSN, values ...string) *sink.Batch {
	b, tx := &sink.Batch{}, &decode.Tx{CommitLSN: lsn}
	for i, v := range values {
		b.Changes = append(b.Changes, &decode.Change{Op: decode.OpInsert, Tx: tx, Ordinal: uint64(i + 1), Relation: relation,
			New: decode.Row{decode.TextValue(text, []byte(v))}})
	}
	return b
}
