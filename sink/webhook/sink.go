// Package webhook is a sink that POSTs changes as JSON to an HTTP endpoint.
//
// A request carries a JSON array of changes in commit order, or with WithSingle one change. The next
// request begins when the one before it was answered with a 2xx status, so the order holds from end to
// end. The objects are described at decode.Change.AppendJSON, or are what WithEncoder makes.
//
// It is at least once: after a failure or a restart changes come again, in order, each with its identity
// (lsn and ordinal, or copy) to drop repeats by. The same request sent again has the same
// Idempotency-Key; after a restart changes may be cut into requests differently, so a receiver that has
// to be exact looks at the changes' own identities.
//
// # Headers
//
//	Content-Type      application/json
//	Content-Encoding  gzip, with WithGzip
//	Idempotency-Key   identity of the request's first change, and ".." and that of its last one if it
//	                  holds several: "0/16B3748:1..0/16B37F0:2"; see WithKeyPrefix
//	Flo-Signature     with WithSecret: see Verify
//	Authorization     with WithBearerToken
//
// # Answers
//
// 2xx is success. 408, 425, 429, 5xx and failures of the network are tried again a few times, after
// Retry-After if the answer has it, then returned to the worker, which tries again for as long as it
// takes. 413 cuts the request in half. Everything else lasts (sink.IsPermanent): 401, 402, 403, 404, 405,
// 407, 410 and redirects are the endpoint's trouble, other 4xx the request's: if that held one change
// only it is named by sink.Reject.
//
// Redirects are followed to the same scheme, host and port, and only if they keep the method (307,
// 308). Errors hold neither the endpoint's path and query nor any header that was set, since those
// often are secrets.
package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

var (
	_ sink.Sink   = (*Sink)(nil)
	_ sink.Closer = (*Sink)(nil)
)

// What an error of the sink can be found to be, by errors.Is.
var (
	// ErrInvalidOption: New was given something that it can't use.
	ErrInvalidOption = errors.New("webhook sink: invalid option")
	// ErrClosed: Write was called behind Close.
	ErrClosed = errors.New("webhook sink: the sink is closed")
	// ErrRedirect: the endpoint redirects to where the sink doesn't follow.
	ErrRedirect = errors.New("redirect not followed: give the sink the address that it leads to")
)

// Sink sends changes to one endpoint.
type Sink struct {
	config
	url    *url.URL
	client *http.Client
	own    *http.Transport // nil if the client is the user's
	scrub  []string        // what no error may hold

	body      bytes.Buffer // of the request, as it is before compression
	packed    bytes.Buffer // as it is sent, if compressed
	one       []byte       // a change's JSON
	limit     int          // changes a request, lower than maxChanges behind a 413
	notBefore time.Time    // what the endpoint asked for by Retry-After
	closed    bool
}

// New makes a sink for an http or https endpoint. It validates and does no I/O; errors wrap
// ErrInvalidOption and don't hold the address.
func New(endpoint string, opts ...Option) (*Sink, error) {
	c := defaults()
	for _, o := range opts {
		o(&c)
	}
	u, err := parseEndpoint(endpoint)
	if err := errors.Join(err, c.validate()); err != nil {
		return nil, err
	}
	s := &Sink{config: c, url: u, limit: c.maxChanges}
	s.makeClient()
	s.scrub = c.secretTexts(u)
	return s, nil
}

func parseEndpoint(endpoint string) (*url.URL, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf(`%w: the endpoint's address: want "https://host/path"`, ErrInvalidOption)
	}
	u.Fragment = ""
	return u, nil
}

// Write sends a batch, in as many requests as it takes. It returns nil once all of them were answered
// with 2xx. Behind an error those before the failed one have been taken; the worker sends all of them
// again.
func (s *Sink) Write(ctx context.Context, b *sink.Batch) error {
	if s.closed {
		return sink.Permanent(ErrClosed)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("webhook sink: %w", err)
	}
	for from := 0; from < len(b.Changes); {
		n, err := s.next(ctx, b.Changes[from:])
		if err != nil {
			return place(err, from)
		}
		from += n
	}
	return nil
}

// next sends one request, of one change if need be several, and gives how many changes were taken.
func (s *Sink) next(ctx context.Context, changes []*decode.Change) (int, error) {
	if s.single {
		return 1, s.sendOne(ctx, changes[0])
	}
	for {
		n, err := s.gather(changes)
		if err != nil {
			return 0, err
		}
		if s.body.Len() == 0 {
			return n, nil // the envelope says nothing about them
		}
		err = s.send(ctx, s.key(changes[:n], 0))
		var status *StatusError
		switch {
		case err == nil:
			s.limit = min(s.maxChanges, s.limit*2)
			return n, nil
		case errors.As(err, &status) && status.Code == http.StatusRequestEntityTooLarge && n > 1:
			s.limit = n / 2
			continue
		case n == 1 && isRefusal(err):
			return 0, sink.Reject(0, err)
		}
		return 0, err
	}
}

// gather makes an array of the first changes, at most limit, and more than maxBytes only if one change
// alone is larger. It gives how many.
func (s *Sink) gather(changes []*decode.Change) (int, error) {
	s.reset()
	n := 0
	for ; n < len(changes) && n < s.limit; n++ {
		one, err := s.encode(s.one[:0], changes[n])
		if err != nil {
			if n > 0 {
				break // what stands before it goes first
			}
			return 0, sink.Reject(0, fmt.Errorf("webhook sink: %w", err))
		}
		s.one = one
		if len(one) == 0 {
			continue
		}
		if s.body.Len() > 0 && s.body.Len()+len(one)+2 > s.maxBytes {
			break
		}
		if s.body.Len() == 0 {
			s.body.WriteByte('[')
		} else {
			s.body.WriteByte(',')
		}
		// An envelope may have several objects for a change, split by newlines.
		s.body.Write(bytes.ReplaceAll(one, []byte{'\n'}, []byte{','}))
	}
	if s.body.Len() > 0 {
		s.body.WriteByte(']')
	}
	return n, nil
}

// sendOne sends a change in a request of its own, or in one for each object that its envelope has.
func (s *Sink) sendOne(ctx context.Context, c *decode.Change) error {
	one, err := s.encode(s.one[:0], c)
	if err != nil {
		return sink.Reject(0, fmt.Errorf("webhook sink: %w", err))
	}
	s.one = one
	for i := 0; len(one) > 0; i++ {
		object, rest, _ := bytes.Cut(one, []byte{'\n'})
		s.reset()
		s.body.Write(object)
		if err := s.send(ctx, s.key([]*decode.Change{c}, i)); err != nil {
			if isRefusal(err) {
				return sink.Reject(0, err)
			}
			return err
		}
		one = rest
	}
	return nil
}

// reset makes room for the next body; buffers that a huge row made grow are let go.
func (s *Sink) reset() {
	for _, b := range []*bytes.Buffer{&s.body, &s.packed} {
		if b.Cap() > 4*s.maxBytes {
			*b = bytes.Buffer{}
		}
		b.Reset()
	}
	if cap(s.one) > 4*s.maxBytes {
		s.one = nil
	}
}

// key is the request's Idempotency-Key: part counts the objects of one change.
func (s *Sink) key(changes []*decode.Change, part int) string {
	key := s.keyPrefix + identity(changes[0])
	if len(changes) > 1 {
		key += ".." + identity(changes[len(changes)-1])
	}
	if part > 0 {
		key += fmt.Sprintf("/%d", part+1)
	}
	return key
}

func identity(c *decode.Change) string {
	if c.Copy != nil {
		return c.Copy.String()
	}
	return c.Position().String()
}

// place moves a rejection's index from a part of the batch to the batch.
func place(err error, from int) error {
	var r *sink.RejectError
	if errors.As(err, &r) {
		return sink.Reject(from+r.Index, r.Err)
	}
	return err
}

// Close lets idle connections go. A client that was given by WithClient is left as it is.
func (s *Sink) Close(context.Context) error {
	s.closed = true
	if s.own != nil {
		s.own.CloseIdleConnections()
	}
	return nil
}
