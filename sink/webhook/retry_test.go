package webhook

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgflo/flo/sink"
)

// scripted answers without a network, so that a fake clock can run.
type scripted struct {
	answers []func(*http.Request) (*http.Response, error)
	times   []time.Time
}

func (s *scripted) RoundTrip(r *http.Request) (*http.Response, error) {
	n := len(s.times)
	s.times = append(s.times, time.Now())
	if n >= len(s.answers) {
		return answer(200, "")(r)
	}
	return s.answers[n](r)
}

func answer(code int, retryAfter string) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		h := http.Header{}
		if retryAfter != "" {
			h.Set("Retry-After", retryAfter)
		}
		return &http.Response{StatusCode: code, Header: h, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
	}
}

func silence(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func scriptedSink(t *testing.T, opts []Option, answers ...func(*http.Request) (*http.Response, error)) (*Sink, *scripted) {
	rt := &scripted{answers: answers}
	return newSink(t, "http://host/", append(opts, WithClient(&http.Client{Transport: rt}))...), rt
}

func TestPausesAreShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }
		s, rt := scriptedSink(t, nil, down, down, down, down, down)
		begin := time.Now()
		err := s.Write(t.Context(), batch(1, "a"))
		if !errors.Is(err, io.ErrUnexpectedEOF) || sink.IsPermanent(err) || len(rt.times) != 1+DefaultRetries {
			t.Errorf("%v after %d requests", err, len(rt.times))
		}
		if took := time.Since(begin); took < 350*time.Millisecond || took > 700*time.Millisecond {
			t.Errorf("it took %s", took)
		}
	})
}

func TestRetryAfterIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rt := scriptedSink(t, []Option{WithRetries(1)}, answer(429, "20"), answer(503, "3600"), answer(200, ""))
		begin := time.Now()
		if err := s.Write(t.Context(), batch(1, "a")); err == nil {
			t.Fatal("no error")
		}
		if wait := rt.times[1].Sub(begin); wait != 20*time.Second {
			t.Errorf("the second request came after %s", wait)
		}
		// The worker asks again at once: the sink still waits, but for no more than the bound.
		if err := s.Write(t.Context(), batch(1, "a")); err != nil {
			t.Fatal(err)
		}
		if wait := rt.times[2].Sub(rt.times[1]); wait != DefaultMaxRetryAfter {
			t.Errorf("the third request came after %s", wait)
		}
	})
}

func TestRetryAfterDate(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "soon": 0, "99999999999999999999": 0,
		"Mon, 06 May 2024 07:09:09 GMT": time.Minute, "Mon, 06 May 2024 07:00:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

func TestEndOfContextEndsEveryWait(t *testing.T) {
	for name, first := range map[string]func(*http.Request) (*http.Response, error){
		"an answer": silence, "the pause": answer(503, "60"),
	} {
		synctest.Test(t, func(t *testing.T) {
			s, _ := scriptedSink(t, nil, first, silence)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			begin := time.Now()
			err := s.Write(ctx, batch(1, "a"))
			if !errors.Is(err, context.DeadlineExceeded) || sink.IsPermanent(err) || time.Since(begin) != time.Second {
				t.Errorf("waiting for %s: %v after %s", name, err, time.Since(begin))
			}
		})
	}
}

func TestTimeoutIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, rt := scriptedSink(t, []Option{WithTimeout(5 * time.Second)}, silence)
		begin := time.Now()
		if err := s.Write(t.Context(), batch(1, "a")); err != nil {
			t.Fatal(err)
		}
		if len(rt.times) != 2 || time.Since(begin) < 5*time.Second {
			t.Errorf("%d requests in %s", len(rt.times), time.Since(begin))
		}
		s, _ = scriptedSink(t, []Option{WithTimeout(5 * time.Second), WithRetries(0)}, silence)
		if err := s.Write(t.Context(), batch(1, "a")); !errors.Is(err, errTimeout) {
			t.Errorf("%v", err)
		}
	})
}
