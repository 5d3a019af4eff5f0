package webhook

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/pgflo/flo/decode"
)

// Defaults and limits of the options.
const (
	DefaultMaxChanges    = 500
	DefaultMaxBytes      = 1 << 20
	DefaultTimeout       = 30 * time.Second
	DefaultRetries       = 3
	DefaultMaxRetryAfter = time.Minute

	// MaxRetries is the most that WithRetries takes: the worker tries again in any case.
	MaxRetries = 20
)

// Option changes a default of New.
type Option func(*config)

type config struct {
	encode        decode.Encoder
	single        bool
	maxChanges    int
	maxBytes      int
	gzip          bool
	header        http.Header
	badHeaders    []string
	bearer        string
	secrets       [][]byte
	keyPrefix     string
	timeout       time.Duration
	retries       int
	maxRetryAfter time.Duration
	user          *http.Client
	userSet       bool
}

func defaults() config {
	return config{
		encode:        decode.JSON,
		maxChanges:    DefaultMaxChanges,
		maxBytes:      DefaultMaxBytes,
		header:        http.Header{},
		timeout:       DefaultTimeout,
		retries:       DefaultRetries,
		maxRetryAfter: DefaultMaxRetryAfter,
	}
}

// WithEncoder is the envelope of a change. Default decode.JSON. Where decode.Debezium has several
// events for one change, an array holds all of them, and with WithSingle each has a request, whose
// Idempotency-Key has "/2" behind it from the second one on.
func WithEncoder(e decode.Encoder) Option { return func(c *config) { c.encode = e } }

// WithSingle sends each change in a request of its own, as an object in place of an array. Slow, as each
// waits for the answer to the one before it; but the endpoint can refuse a single change.
func WithSingle() Option { return func(c *config) { c.single = true } }

// WithMaxChanges is how many changes a request holds at most, from 1. Default DefaultMaxChanges.
func WithMaxChanges(n int) Option { return func(c *config) { c.maxChanges = n } }

// WithMaxBytes is the size of a request's body, in bytes before compression, above which no further
// change is put into it, from 1. A change that is larger goes alone. Default DefaultMaxBytes.
func WithMaxBytes(n int) Option { return func(c *config) { c.maxBytes = n } }

// WithGzip compresses the bodies. The endpoint has to understand Content-Encoding: gzip in requests.
func WithGzip() Option { return func(c *config) { c.gzip = true } }

// WithHeader adds a header to every request; again with the same name, one more value. Its value counts
// as a secret. The headers that the sink sets itself (see the package's documentation) are refused,
// but for Content-Type and, without WithBearerToken, Authorization.
func WithHeader(name, value string) Option {
	return func(c *config) {
		name := textproto.CanonicalMIMEHeaderKey(name)
		if !validHeader(name, value) || slices.Contains(reserved, name) {
			c.badHeaders = append(c.badHeaders, name)
			return
		}
		c.header.Add(name, value)
	}
}

// WithBearerToken sends "Authorization: Bearer token".
func WithBearerToken(token string) Option { return func(c *config) { c.bearer = token } }

// WithSecret signs every request; see Verify. Again, it adds one signature more, so that a secret can be
// replaced without a gap: the receiver takes either.
func WithSecret(secret []byte) Option {
	secret = slices.Clone(secret)
	return func(c *config) { c.secrets = append(c.secrets, secret) }
}

// WithKeyPrefix stands before every Idempotency-Key, for an endpoint that several pipelines send to: two
// sources can have changes at the same position. Default none.
func WithKeyPrefix(prefix string) Option { return func(c *config) { c.keyPrefix = prefix } }

// WithTimeout bounds one request, from connecting to the end of its answer, above 0. Default
// DefaultTimeout. A timeout is tried again.
func WithTimeout(d time.Duration) Option { return func(c *config) { c.timeout = d } }

// WithRetries is how often the sink itself sends a request again, 0 to MaxRetries, with pauses from 0.1
// to 2 seconds. Default DefaultRetries. Then the worker tries again, with longer pauses.
func WithRetries(n int) Option { return func(c *config) { c.retries = n } }

// WithMaxRetryAfter bounds the wait that the endpoint can ask for by Retry-After, from 0 (which ignores
// it). Default DefaultMaxRetryAfter.
func WithMaxRetryAfter(d time.Duration) Option { return func(c *config) { c.maxRetryAfter = d } }

// WithClient sends by a client of yours: for TLS settings, a proxy or tracing. It is copied; its
// CheckRedirect is replaced, its Jar and Timeout hold. Close leaves its connections alone. Default: a
// client of the sink's own with http.DefaultTransport's settings.
func WithClient(client *http.Client) Option {
	return func(c *config) { c.user, c.userSet = client, true }
}

// reserved headers are the sink's own or the transport's.
var reserved = []string{"Content-Length", "Content-Encoding", "Transfer-Encoding", "Connection", "Host", "Trailer", "Te", "Upgrade", KeyHeader, SignatureHeader}

func validHeader(name, value string) bool {
	if name == "" {
		return false
	}
	for _, r := range []byte(name) {
		// RFC 9110, section 5.6.2: a token.
		if !('a' <= r|0x20 && r|0x20 <= 'z' || '0' <= r && r <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", r) >= 0) {
			return false
		}
	}
	return validHeaderValue(value)
}

func validHeaderValue(value string) bool {
	return strings.IndexFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) < 0
}

func (c *config) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrInvalidOption}, args...)...))
	}
	for _, name := range c.badHeaders {
		bad("WithHeader(%q, …): no valid header, or one that the sink sets itself", name)
	}
	if c.encode == nil {
		bad("WithEncoder(nil): leave the option out for decode.JSON")
	}
	if c.maxChanges < 1 {
		bad("WithMaxChanges(%d): must be at least 1", c.maxChanges)
	}
	if c.maxBytes < 1 {
		bad("WithMaxBytes(%d): must be at least 1", c.maxBytes)
	}
	if c.timeout <= 0 {
		bad("WithTimeout(%s): must be above 0", c.timeout)
	}
	if c.retries < 0 || c.retries > MaxRetries {
		bad("WithRetries(%d): must be from 0 to %d", c.retries, MaxRetries)
	}
	if c.maxRetryAfter < 0 {
		bad("WithMaxRetryAfter(%s): must not be negative", c.maxRetryAfter)
	}
	if c.userSet && c.user == nil {
		bad("WithClient(nil): leave the option out for a client of the sink's own")
	}
	if !validHeaderValue(c.bearer) {
		bad("WithBearerToken: the token holds characters that no header can")
	}
	if c.bearer != "" && c.header.Get("Authorization") != "" {
		bad("WithBearerToken and WithHeader both set Authorization: use one of them")
	}
	if !validHeaderValue(c.keyPrefix) {
		bad("WithKeyPrefix(%q): holds characters that no header can", c.keyPrefix)
	}
	for _, secret := range c.secrets {
		if len(secret) == 0 {
			bad("WithSecret: the secret is empty")
		}
	}
	return errors.Join(errs...)
}

// minScrub is the shortest text that is looked for in errors: a shorter one would match by chance.
const minScrub = 4

// secretTexts are what an error may not hold, the longest first.
func (c *config) secretTexts(u *url.URL) []string {
	list := []string{c.bearer, u.RawQuery, u.RequestURI(), u.Path}
	for _, values := range u.Query() {
		list = append(list, values...)
	}
	if u.User != nil {
		password, _ := u.User.Password()
		list = append(list, password, u.User.String())
	}
	for _, values := range c.header {
		list = append(list, values...)
		for _, v := range values {
			list = append(list, strings.Fields(v)...) // "Basic …"
		}
	}
	for _, secret := range c.secrets {
		list = append(list, string(secret))
	}
	list = slices.DeleteFunc(list, func(s string) bool { return len(s) < minScrub })
	slices.SortFunc(list, func(a, b string) int { return len(b) - len(a) })
	return list
}
