package webhook

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/pgflo/flo/sink"
)

// KeyHeader carries the request's identity.
const KeyHeader = "Idempotency-Key"

const (
	minPause = 100 * time.Millisecond
	maxPause = 2 * time.Second

	// maxDrained is how much of an answer is read, so that its connection can be used again.
	maxDrained = 64 << 10
	// maxExcerpt is how much of an answer stands in an error.
	maxExcerpt = 256
	// maxAnswerHeader bounds the answer's header, with the sink's own client.
	maxAnswerHeader = 64 << 10
	maxRedirects    = 5
)

// StatusError is an answer that was not 2xx.
type StatusError struct {
	Code int
	Host string // of the endpoint
	// Excerpt is the beginning of the answer's body, at most 256 bytes, without the secrets that the
	// sink knows. It is what the endpoint wrote: it may hold data of the change.
	Excerpt string
	// RetryAfter is what the endpoint asked for; 0 if nothing.
	RetryAfter time.Duration

	redirect string // the host that a redirect leads to
}

// Error gives the status, the host and the excerpt.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("%s answered %d %s", e.Host, e.Code, http.StatusText(e.Code))
	if e.redirect != "" {
		text += " to " + e.redirect
	}
	if e.Excerpt != "" {
		text += fmt.Sprintf(": %q", e.Excerpt)
	}
	return text
}

// Unwrap gives ErrRedirect if the answer was a redirect.
func (e *StatusError) Unwrap() error {
	if e.Code/100 == 3 {
		return ErrRedirect
	}
	return nil
}

// passing reports whether the same request may be answered otherwise later.
func (e *StatusError) passing() bool {
	switch e.Code {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return e.Code >= 500
}

// refusal reports whether the answer is about the request's content, not about the endpoint.
func (e *StatusError) refusal() bool {
	switch e.Code {
	case http.StatusUnauthorized, http.StatusPaymentRequired, http.StatusForbidden, http.StatusNotFound,
		http.StatusMethodNotAllowed, http.StatusProxyAuthRequired, http.StatusGone:
		return false
	}
	return e.Code/100 == 4 && !e.passing()
}

func isRefusal(err error) bool {
	var status *StatusError
	return errors.As(err, &status) && status.refusal()
}

// makeClient sets the client up: the user's, copied, or one of our own.
func (s *Sink) makeClient() {
	if s.user != nil {
		c := *s.user
		s.client = &c
	} else {
		s.own = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    10 * time.Second,
			IdleConnTimeout:        90 * time.Second,
			MaxIdleConnsPerHost:    1, // requests go one after the other
			MaxResponseHeaderBytes: maxAnswerHeader,
			DisableCompression:     true, // a small answer could become a huge one
		}
		s.client = &http.Client{Transport: s.own}
	}
	s.client.CheckRedirect = follow
}

// follow allows a redirect to the same place that keeps the method. net/http makes a GET without a body
// of a 301, 302 or 303, whose success would say nothing; and another host must not get the data, nor
// another port or scheme.
func follow(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) > maxRedirects || req.Method != http.MethodPost || req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		return http.ErrUseLastResponse
	}
	return nil
}

// send sends the body until it is taken, the retries are used up, or the error lasts.
func (s *Sink) send(ctx context.Context, key string) error {
	body := s.body.Bytes()
	if s.gzip {
		s.packed.Reset()
		z := gzip.NewWriter(&s.packed)
		_, err := z.Write(body)
		if err := errors.Join(err, z.Close()); err != nil {
			return fmt.Errorf("webhook sink: gzip: %w", err)
		}
		body = s.packed.Bytes()
	}
	for attempt := 0; ; attempt++ {
		if err := s.pause(ctx, attempt); err != nil {
			return fmt.Errorf("webhook sink: %w", err)
		}
		err := s.post(ctx, key, body)
		if err == nil {
			return nil
		}
		var status *StatusError
		answered := errors.As(err, &status)
		err = fmt.Errorf("webhook sink: changes %s: %w", key, err)
		switch {
		case answered && !status.passing():
			return sink.Permanent(err)
		case ctx.Err() != nil || attempt >= s.retries:
			return err
		}
	}
}

// pause waits between attempts, and for as long as the endpoint has asked for.
func (s *Sink) pause(ctx context.Context, attempt int) error {
	var wait time.Duration
	if attempt > 0 {
		wait = min(maxPause, minPause<<min(attempt-1, 10))
		wait = wait/2 + rand.N(wait/2)
	}
	if wait = max(wait, time.Until(s.notBefore)); wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errTimeout is the cause that a request's own deadline has.
var errTimeout = errors.New("no answer within the timeout")

// post sends the request once.
func (s *Sink) post(ctx context.Context, key string, body []byte) error {
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, errTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url.String(), bytes.NewReader(body))
	if err != nil {
		return s.clean(ctx, err)
	}
	s.setHeader(req.Header, key, body)
	resp, err := s.client.Do(req)
	if err != nil {
		return s.clean(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		// The status is what counts: a connection lost behind it only can't be used again.
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrained)
		return nil
	}
	e := &StatusError{Code: resp.StatusCode, Host: s.url.Host, Excerpt: s.excerpt(resp.Body)}
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrained)
	if to, err := resp.Location(); err == nil && e.Code/100 == 3 {
		e.redirect = to.Scheme + "://" + to.Host
	}
	if e.passing() {
		e.RetryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
		s.notBefore = time.Now().Add(min(e.RetryAfter, s.maxRetryAfter))
	}
	return e
}

func (s *Sink) setHeader(h http.Header, key string, body []byte) {
	h.Set("Content-Type", "application/json")
	h.Set("User-Agent", "flo-webhook")
	for name, values := range s.header {
		h[name] = values
	}
	if s.bearer != "" {
		h.Set("Authorization", "Bearer "+s.bearer)
	}
	if s.gzip {
		h.Set("Content-Encoding", "gzip")
	}
	h.Set(KeyHeader, key)
	if len(s.secrets) > 0 {
		h.Set(SignatureHeader, sign(time.Now(), body, s.secrets))
	}
}

// excerpt gives the beginning of an answer, fit for a log. It is cleaned of secrets before it is cut,
// so that no half of one is left, and only the part that was read whole is shown.
func (s *Sink) excerpt(r io.Reader) string {
	longest := 0
	if len(s.scrub) > 0 {
		longest = min(len(s.scrub[0]), maxDrained)
	}
	data, _ := io.ReadAll(io.LimitReader(r, int64(maxExcerpt+longest)))
	text := s.redact(strings.ToValidUTF8(string(data), "?"))
	if len(text) > maxExcerpt {
		text = strings.ToValidUTF8(text[:maxExcerpt], "") + "…"
	}
	return text
}

const redacted = "[redacted]"

func (s *Sink) redact(text string) string {
	for _, secret := range s.scrub {
		text = strings.ReplaceAll(text, secret, redacted)
	}
	return text
}

// clean takes the address out of a client's error: net/http puts it in, path, query and all. The rest
// may name the proxy or the host, but is cleaned of the sink's secrets too.
func (s *Sink) clean(ctx context.Context, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); cause != errTimeout {
			return fmt.Errorf("POST to %s: %w", s.url.Host, cause)
		}
		return fmt.Errorf("POST to %s: %w (%s)", s.url.Host, errTimeout, s.timeout)
	}
	return &clientError{text: s.redact(fmt.Sprintf("POST to %s: %v", s.url.Host, err)), err: err}
}

// clientError is an error of the HTTP client without secrets in its text.
type clientError struct {
	text string
	err  error
}

func (e *clientError) Error() string { return e.text }
func (e *clientError) Unwrap() error { return e.err }

// retryAfter reads seconds or a date (RFC 9110, section 10.2.3). What it can't read is 0.
func retryAfter(value string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return max(0, at.Sub(now))
}
