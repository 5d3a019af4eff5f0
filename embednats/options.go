package embednats

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"
)

// MaxPayloadLimit is the largest message size, in bytes, that WithMaxPayload takes:
// nats-server refuses a max_payload above the bytes it holds back for one client
// (max_pending, 64 MiB).
const MaxPayloadLimit = 64 << 20

// Option changes a default of Start.
type Option func(*config)

type config struct {
	dir          string
	temp         bool
	listen       string        // "" for none
	syncSet      bool          // WithSyncInterval was given
	syncInterval time.Duration // 0: every write is synced
	maxPayload   int
	logger       *slog.Logger
}

func defaults() config {
	return config{maxPayload: 1 << 20, logger: slog.New(slog.DiscardHandler)}
}

func (c *config) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrInvalidOption}, args...)...))
	}
	if c.dir == "" && !c.temp {
		bad("no folder for the streams: use WithDir(path), or WithTempDir() for data that may vanish")
	}
	if c.listen != "" {
		if _, _, err := splitListen(c.listen); err != nil {
			errs = append(errs, err)
		}
	}
	if c.syncSet && c.syncInterval <= 0 {
		bad("WithSyncInterval(%s): must be above 0; to sync every write use WithSyncAlways", c.syncInterval)
	}
	if c.maxPayload < 1 || c.maxPayload > MaxPayloadLimit {
		bad("WithMaxPayload(%d): must be from 1 to %d bytes", c.maxPayload, MaxPayloadLimit)
	}
	if c.logger == nil {
		bad("WithLogger(nil): leave the option out for a silent server")
	}
	return errors.Join(errs...)
}

// splitListen takes "host:port" apart. Port 0 means any free one.
func splitListen(listen string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(listen)
	if err == nil && host == "" {
		err = errors.New(`host is missing (use "0.0.0.0" to listen everywhere)`)
	}
	if err == nil {
		var n uint64
		n, err = strconv.ParseUint(p, 10, 16)
		port = int(n)
	}
	if err != nil {
		return "", 0, fmt.Errorf(`%w: WithListen(%q): want "host:port": %w`, ErrInvalidOption, listen, err)
	}
	return host, port, nil
}

// WithDir names the folder that holds the streams. It is created if missing and
// survives Close: a later Start on it finds everything. No default. Of WithDir
// and WithTempDir the last one counts.
func WithDir(path string) Option { return func(c *config) { c.dir, c.temp = path, false } }

// WithTempDir keeps the streams in a new temporary folder that Close removes: for tests.
func WithTempDir() Option { return func(c *config) { c.dir, c.temp = "", true } }

// WithListen opens a TCP listener for clients of other processes, for example on
// "127.0.0.1:4222"; port 0 takes a free one. There is neither TLS nor a password: don't
// listen on an address that strangers reach. Default: no listener, Conn only.
func WithListen(hostport string) Option { return func(c *config) { c.listen = hostport } }

// WithSyncAlways syncs every write to the disk before it is acknowledged. The default.
func WithSyncAlways() Option {
	return func(c *config) { c.syncSet, c.syncInterval = false, 0 }
}

// WithSyncInterval acknowledges writes before they are on the disk and syncs them this
// often (above 0; nats-server's own default is 2 minutes). Faster on slow disks, but a
// power cut takes back acknowledged messages: flo then needs a replay window longer
// than the interval.
func WithSyncInterval(d time.Duration) Option {
	return func(c *config) { c.syncSet, c.syncInterval = true, d }
}

// WithMaxPayload sets the largest message in bytes, headers included, from 1 to
// MaxPayloadLimit. Default 1 MiB. nats-server warns above 8 MiB.
func WithMaxPayload(bytes int) Option { return func(c *config) { c.maxPayload = bytes } }

// WithLogger hands the server's log to a logger: notices become Info, fatal errors Error.
// Default: silent.
func WithLogger(l *slog.Logger) Option { return func(c *config) { c.logger = l } }
