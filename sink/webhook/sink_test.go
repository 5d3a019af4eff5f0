package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

func mustWrite(t *testing.T, s *Sink, b *sink.Batch) {
	t.Helper()
	if err := s.Write(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func TestRequestsAreCutByCountAndBytes(t *testing.T) {
	r := newReceiver(t)
	b := batch(1, "a", "b", "c", "d", strings.Repeat("x", 2000), "e")
	mustWrite(t, newSink(t, r.URL, WithMaxChanges(3), WithMaxBytes(1000)), b)
	want := []string{"0/1:1..0/1:3", "0/1:4", "0/1:5", "0/1:6"}
	if got := r.keys(); !slices.Equal(got, want) {
		t.Errorf("requests %v, want %v", got, want)
	}
	for _, q := range r.requests {
		var list []map[string]any
		if err := json.Unmarshal(q.body, &list); err != nil || q.header.Get("Content-Type") != "application/json" {
			t.Errorf("%v: %.100s", err, q.body)
		}
	}
}

func TestSingleSendsObjects(t *testing.T) {
	r := newReceiver(t)
	mustWrite(t, newSink(t, r.URL, WithSingle(), WithKeyPrefix("shop/")), batch(1, "a", "b"))
	if got, want := r.keys(), []string{"shop/0/1:1", "shop/0/1:2"}; !slices.Equal(got, want) {
		t.Errorf("requests %v, want %v", got, want)
	}
	if got := string(r.requests[1].body); !strings.HasPrefix(got, `{"op":"insert"`) || !json.Valid([]byte(got)) {
		t.Errorf("body %s", got)
	}
}

func TestDebeziumEnvelope(t *testing.T) {
	b := batch(1, "b")
	b.Changes[0].Op, b.Changes[0].OldKey = decode.OpUpdate, true // the key changes: two events
	b.Changes[0].Old = decode.Row{decode.TextValue(text, []byte("a"))}
	for name, opts := range map[string][]Option{"array": nil, "single": {WithSingle()}} {
		r := newReceiver(t)
		mustWrite(t, newSink(t, r.URL, append(opts, WithEncoder(decode.Debezium("shop")))...), b)
		var ops []string
		for line := range strings.Lines(r.lines.String()) {
			var e struct{ Op string }
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatal(err)
			}
			ops = append(ops, e.Op)
		}
		if !slices.Equal(ops, []string{"d", "c"}) {
			t.Errorf("%s: events %v", name, ops)
		}
		if want := []string{"0/1:1", "0/1:1/2"}; name == "single" && !slices.Equal(r.keys(), want) {
			t.Errorf("keys %v, want %v", r.keys(), want)
		}
	}
}

func TestHeaders(t *testing.T) {
	r := newReceiver(t)
	mustWrite(t, newSink(t, r.URL, WithBearerToken("token"), WithHeader("x-tenant", "a"), WithHeader("X-Tenant", "b"),
		WithHeader("Content-Type", "application/cloudevents+json")), batch(1, "a"))
	h := r.requests[0].header
	if h.Get("Authorization") != "Bearer token" || !slices.Equal(h.Values("X-Tenant"), []string{"a", "b"}) || h.Get("Content-Type") != "application/cloudevents+json" {
		t.Errorf("%v", h)
	}
}

func TestSignatureHoldsForWhatWasSent(t *testing.T) {
	r := newReceiver(t)
	old, fresh := []byte("old secret"), []byte("fresh secret")
	mustWrite(t, newSink(t, r.URL, WithGzip(), WithSecret(old), WithSecret(fresh)), batch(1, "a"))
	q := r.requests[0]
	for _, secret := range [][]byte{old, fresh} {
		if err := Verify(q.header, q.raw, secret, time.Minute); err != nil {
			t.Error(err)
		}
	}
	bad := func(h http.Header, body, secret []byte) {
		t.Helper()
		if err := Verify(h, body, secret, time.Minute); !errors.Is(err, ErrSignature) {
			t.Errorf("taken: %v", err)
		}
	}
	bad(q.header, q.raw, []byte("another"))
	bad(q.header, append(slices.Clone(q.raw), ' '), old)
	bad(http.Header{}, q.raw, old)
	for _, value := range []string{"", "t=1", "v1=00", "t=x,v1=00", sign(time.Now().Add(-time.Hour), q.raw, [][]byte{old}), sign(time.Now().Add(time.Hour), q.raw, [][]byte{old})} {
		bad(http.Header{SignatureHeader: {value}}, q.raw, old)
	}
	if err := Verify(http.Header{SignatureHeader: {sign(time.Unix(0, 0), q.raw, [][]byte{old})}}, q.raw, old, 0); err != nil {
		t.Errorf("tolerance 0: %v", err)
	}
	// The example of Verify's documentation.
	if got := sign(time.Unix(1714979289, 0), []byte("[]"), [][]byte{[]byte("secret")}); got != documentedSignature {
		t.Errorf("the documentation's signature is of another scheme: %s", got)
	}
}

const documentedSignature = "t=1714979289,v1=7833c5fbb9099bee09156e3cb60b680dfe45ac511fb8467953d2db6967bc5737"

func TestStatusDecides(t *testing.T) {
	for _, c := range []struct {
		code, requests    int
		permanent, reject bool
	}{
		{200, 1, false, false}, {204, 1, false, false},
		{408, 2, false, false}, {425, 2, false, false}, {429, 2, false, false},
		{500, 2, false, false}, {501, 2, false, false}, {503, 2, false, false},
		{400, 1, true, true}, {409, 1, true, true}, {413, 1, true, true}, {422, 1, true, true}, {499, 1, true, true},
		{401, 1, true, false}, {403, 1, true, false}, {404, 1, true, false}, {405, 1, true, false}, {410, 1, true, false},
		{300, 1, true, false}, {304, 1, true, false},
	} {
		for _, single := range []bool{false, true} {
			r := newReceiver(t)
			r.answer = func(_ int, _ request, w http.ResponseWriter) bool { w.WriteHeader(c.code); return true }
			opts := []Option{WithRetries(1)}
			if single {
				opts = append(opts, WithSingle())
			}
			err := newSink(t, r.URL, opts...).Write(t.Context(), batch(1, "a"))
			var status *StatusError
			var reject *sink.RejectError
			switch {
			case (err == nil) != (c.code < 300):
				t.Errorf("%d: %v", c.code, err)
			case err != nil && (!errors.As(err, &status) || status.Code != c.code):
				t.Errorf("%d: no StatusError: %v", c.code, err)
			}
			if sink.IsPermanent(err) != c.permanent || errors.As(err, &reject) != c.reject {
				t.Errorf("%d: permanent %v, rejected %v: %v", c.code, sink.IsPermanent(err), errors.As(err, &reject), err)
			}
			if len(r.requests) != c.requests {
				t.Errorf("%d: %d requests, want %d", c.code, len(r.requests), c.requests)
			}
		}
	}
}

func TestRefusedChangeIsNamed(t *testing.T) {
	r := newReceiver(t)
	r.answer = func(_ int, q request, w http.ResponseWriter) bool {
		refuse := strings.Contains(string(q.body), "poison")
		if refuse {
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
		return refuse
	}
	var reject *sink.RejectError
	err := newSink(t, r.URL, WithSingle()).Write(t.Context(), batch(1, "a", "b", "poison", "c"))
	if !errors.As(err, &reject) || reject.Index != 2 || !sink.IsPermanent(err) {
		t.Errorf("%v", err)
	}
	err = newSink(t, r.URL).Write(t.Context(), batch(1, "a", "b", "poison", "c"))
	if errors.As(err, &reject) || !sink.IsPermanent(err) {
		t.Errorf("one of an array: %v", err)
	}
	bad := batch(1, "a", "b")
	bad.Changes[1].New = nil
	bad.Changes[1].Relation = nil
	if err := newSink(t, r.URL).Write(t.Context(), bad); !errors.As(err, &reject) || reject.Index != 1 {
		t.Errorf("a change without JSON: %v", err)
	}
}

func TestTooLargeIsCut(t *testing.T) {
	r := newReceiver(t)
	r.answer = func(_ int, q request, w http.ResponseWriter) bool {
		refuse := len(q.body) > 300
		if refuse {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}
		return refuse
	}
	values := strings.Split(strings.Repeat("v,", 49)+"v", ",")
	mustWrite(t, newSink(t, r.URL), batch(1, values...))
	if list := r.entries(t); len(list) != 50 || !slices.IsSortedFunc(list, func(a, b sinktest.Entry) int { return len(a.ID) - len(b.ID) }) {
		t.Errorf("%d changes", len(list))
	}
	var reject *sink.RejectError
	err := newSink(t, r.URL).Write(t.Context(), batch(1, "a", strings.Repeat("x", 300)))
	if !errors.As(err, &reject) || reject.Index != 1 {
		t.Errorf("%v", err)
	}
}

func TestRepeatedRequestIsTheSame(t *testing.T) {
	r := newReceiver(t)
	r.answer = func(n int, _ request, w http.ResponseWriter) bool {
		if n < 2 {
			w.WriteHeader(http.StatusBadGateway)
		}
		return n < 2
	}
	mustWrite(t, newSink(t, r.URL), batch(1, "a", "b"))
	for _, q := range r.requests {
		if q.header.Get(KeyHeader) != "0/1:1..0/1:2" || string(q.body) != string(r.requests[0].body) {
			t.Errorf("%v %s", q.header, q.body)
		}
	}
	if len(r.requests) != 3 {
		t.Errorf("%d requests", len(r.requests))
	}
}

func TestRedirects(t *testing.T) {
	other := newReceiver(t)
	for _, code := range []int{301, 302, 303, 307, 308} {
		for _, same := range []bool{true, false} {
			r := newReceiver(t)
			to := other.URL + "/there?token=abcdef"
			if same {
				to = "/there"
			}
			r.answer = func(n int, _ request, w http.ResponseWriter) bool {
				if n == 0 {
					w.Header().Set("Location", to)
					w.WriteHeader(code)
				}
				return n == 0
			}
			err := newSink(t, r.URL, WithBearerToken("bearer-token")).Write(t.Context(), batch(1, "a"))
			if followed := same && code >= 307; followed != (err == nil) || len(r.entries(t)) != map[bool]int{true: 1}[followed] {
				t.Errorf("%d, same host %v: %v; %d requests", code, same, err, len(r.requests))
			} else if err != nil && (!errors.Is(err, ErrRedirect) || !sink.IsPermanent(err) || strings.Contains(err.Error(), "abcdef")) {
				t.Errorf("%d: %v", code, err)
			}
		}
	}
	if len(other.requests) != 0 {
		t.Errorf("another host was sent %d requests", len(other.requests))
	}
	loop := newReceiver(t)
	loop.answer = func(_ int, _ request, w http.ResponseWriter) bool {
		w.Header().Set("Location", "/")
		w.WriteHeader(http.StatusTemporaryRedirect)
		return true
	}
	if err := newSink(t, loop.URL).Write(t.Context(), batch(1, "a")); !errors.Is(err, ErrRedirect) || len(loop.requests) != maxRedirects+1 {
		t.Errorf("a loop: %v after %d requests", err, len(loop.requests))
	}
}

func TestErrorsHoldNoSecrets(t *testing.T) {
	r := newReceiver(t)
	r.answer = func(_ int, q request, w http.ResponseWriter) bool {
		w.WriteHeader(http.StatusInternalServerError)
		for _, values := range q.header {
			w.Write([]byte(strings.Join(values, " ") + "\n"))
		}
		w.Write([]byte("path-secret query-secret url-password " + strings.Repeat("z", 10_000)))
		return true
	}
	opts := []Option{WithRetries(0), WithBearerToken("bearer-token"), WithHeader("X-Api-Key", "api-key-value"), WithSecret([]byte("hmac-secret"))}
	path := "/path-secret?token=query-secret"
	dead := newReceiver(t)
	dead.Close()
	for name, endpoint := range map[string]string{
		"answered":    strings.Replace(r.URL, "http://", "http://user:url-password@", 1) + path,
		"refused":     strings.Replace(dead.URL, "http://", "http://user:url-password@", 1) + path,
		"no such TLS": strings.Replace(r.URL, "http://", "https://user:url-password@", 1) + path,
	} {
		err := newSink(t, endpoint, opts[:min(len(opts), 4)]...).Write(t.Context(), batch(1, "a"))
		if err == nil || sink.IsPermanent(err) {
			t.Fatalf("%s: %v", name, err)
		}
		for _, secret := range []string{"bearer-token", "api-key-value", "hmac-secret", "query-secret", "url-password"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("%s: %q in %v", name, secret, err)
			}
		}
		if len(err.Error()) > 1000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
	}
	if _, err := New("://user:url-password@host"); err == nil || strings.Contains(err.Error(), "url-password") {
		t.Errorf("%v", err)
	}
}

func TestOptionsAreValidated(t *testing.T) {
	for name, opt := range map[string]Option{
		"encoder": WithEncoder(nil), "changes": WithMaxChanges(0), "bytes": WithMaxBytes(0), "timeout": WithTimeout(0),
		"retries": WithRetries(-1), "many retries": WithRetries(MaxRetries + 1), "retry after": WithMaxRetryAfter(-1),
		"client": WithClient(nil), "token": WithBearerToken("a\nb"), "secret": WithSecret(nil), "prefix": WithKeyPrefix("\r\n"),
		"header name": WithHeader("a b", "c"), "header value": WithHeader("a", "b\r\nc: d"), "own header": WithHeader("idempotency-key", "c"),
	} {
		if _, err := New("http://localhost", opt); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, endpoint := range []string{"", "localhost", "ftp://host/", "http://", "/path", "http://[::1"} {
		if _, err := New(endpoint); !errors.Is(err, ErrInvalidOption) {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

func TestWriteBehindClose(t *testing.T) {
	s := newSink(t, "http://localhost")
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(t.Context(), batch(1, "a")); !errors.Is(err, ErrClosed) || !sink.IsPermanent(err) {
		t.Errorf("%v", err)
	}
}
