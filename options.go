package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
)

// Mode says what a replicator does.
type Mode string

const (
	// CopyAndStream copies the tables as they are, then streams every change behind the copy.
	CopyAndStream Mode = "copy-and-stream"
	// StreamOnly streams every change from the moment of the first start.
	StreamOnly Mode = "stream-only"
	// CopyOnly copies the tables once; Run returns when all is applied.
	CopyOnly Mode = "copy-only"
)

// Option of New, NewReplicator or NewWorker. Options of the half that is not asked for are ignored,
// so one list serves every process.
type Option interface{ apply(*config) }

// CommonOption concerns both halves.
type CommonOption func(*config)

// ReplicatorOption concerns the replicator (PostgreSQL to NATS).
type ReplicatorOption func(*config)

// WorkerOption concerns a worker (NATS to sink): given to New it is the default of all workers, given
// to WithWorker it is that worker's.
type WorkerOption func(*workerConfig)

func (o CommonOption) apply(c *config) {
	if o != nil {
		o(c)
	}
}

func (o ReplicatorOption) apply(c *config) {
	if o != nil {
		o(c)
	}
}

func (o WorkerOption) apply(c *config) {
	if o != nil {
		o(&c.worker)
	}
}

type config struct {
	group  string
	logger *slog.Logger
	nats   natsConfig

	source          *pgx.ConnConfig
	sourceErrs      []error // a source was given and refused: the replicator's matter
	password        func(context.Context) (string, error)
	slot            string
	slotFailover    bool
	adoptGiven      bool     // WithPublication was
	publications    []string // of another owner; none: flo's own
	tables          []string
	exclude         []string
	mode            Mode
	copyConnections int
	replicas        int
	maxBytes        int64
	replayWindow    time.Duration
	windowGiven     bool
	lease           time.Duration
	attemptAfter    func(before uint32) uint32
	idleInterval    time.Duration
	stopTimeout     time.Duration
	resync          string
	walLimit        int64
	walAction       WALAction
	ddl             bool
	streaming       bool

	worker  workerConfig // defaults
	workers []workerConfig
	errs    []error // of both halves, and of the half that was validated
}

type workerConfig struct {
	name          string
	sink          sink.Sink
	rules         []rules.Rule
	batchSize     int
	batchBytes    int
	flushInterval time.Duration
	startAt       StartPoint
	policy        ErrorPolicy
	letterLimit   int
	observe       bool // WithDDLFromRelations
	own           []WorkerOption
}

type natsConfig struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	url    string
	opts   []nats.Option
	server NATSServer
	bad    bool // one was given, and refused
}

// NATSServer is a JetStream server inside the process: *embednats.Server.
type NATSServer interface {
	Conn(ctx context.Context, opts ...nats.Option) (*nats.Conn, error)
	// SyncAlways reports whether what is acknowledged is on the disk.
	SyncAlways() bool
}

func (c *config) bad(format string, args ...any) {
	c.errs = append(c.errs, invalid(format, args...))
}

func (c *config) badNATS(format string, args ...any) {
	c.nats.bad = true
	c.bad(format, args...)
}

func (c *config) badSource(format string, args ...any) {
	c.sourceErrs = append(c.sourceErrs, invalid(format, args...))
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalidOption, fmt.Errorf(format, args...))
}

// isNil also finds the nil pointer or function that an interface holds, which would panic when used.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	return (r.Kind() == reflect.Pointer || r.Kind() == reflect.Func) && r.IsNil()
}

// WithGroup names the group: its slot, publications, stream and state. Required. One to 40 of
// lower-case letters, digits and underscores, a letter first.
func WithGroup(name string) CommonOption { return func(c *config) { c.group = name } }

// WithLogger sets where flo logs. Default: nowhere.
func WithLogger(l *slog.Logger) CommonOption {
	return func(c *config) {
		if l != nil {
			c.logger = l
		}
	}
}

// WithNATS uses a connection that the caller opened and closes. Give it unlimited reconnects
// (nats.MaxReconnects(-1)). Leases are renewed over it, too: flo puts no more under way at a time than gets through in about
// a second, and a worker fetches up to 4 MiB ahead, which a link should carry within a third of WithLeaseTime.
func WithNATS(nc *nats.Conn) CommonOption {
	return func(c *config) {
		if nc == nil {
			c.badNATS("WithNATS: the connection is nil")
			return
		}
		c.nats.conn = nc
	}
}

// WithNATSURL opens connections of flo's own, with credentials, TLS and so on as nats.Option: two for the replicator and for
// each worker, one of which is for leases and the other records, so that those never stand in line behind data. They
// reconnect without limit. Several servers' URLs are separated by commas. No error or log holds any of
// it: what is neither a letter nor a digit in user and password has to be percent-encoded.
func WithNATSURL(url string, opts ...nats.Option) CommonOption {
	return func(c *config) {
		if err := checkNATSURLs(url); err != nil {
			c.badNATS("WithNATSURL: %w", err)
			return
		}
		c.nats.url, c.nats.opts = url, opts
	}
}

// checkNATSURLs parses what nats.Connect will parse, in the same way. What url.Parse has to say quotes
// the URL, or parts of it that may be a password's, so the error is in words of flo's own.
func checkNATSURLs(list string) error {
	n := 0
	for _, one := range strings.Split(list, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		n++
		if !strings.Contains(one, "://") {
			one = "nats://" + one
		}
		u, err := url.Parse(one)
		switch {
		case err != nil:
			return fmt.Errorf("URL %d of the list cannot be parsed: %s", n, urlFault(err))
		case u.Hostname() == "":
			return fmt.Errorf("URL %d of the list has no host: want nats://user:password@host:port", n)
		case strings.Contains(u.Path+"?"+u.RawQuery+"#"+u.Fragment, "@"):
			return fmt.Errorf("URL %d of the list has an '@' behind the host: %s", n, encodeUserinfo)
		}
	}
	if n == 0 {
		return errors.New("there is no URL: want nats://host:port")
	}
	return nil
}

const encodeUserinfo = "want nats://user:password@host:port, where user and password are percent-encoded"

func urlFault(err error) string {
	var escape url.EscapeError
	var host url.InvalidHostError
	var whole *url.Error
	switch {
	case errors.As(err, &escape):
		return "a '%' is not followed by two hexadecimal digits; " + encodeUserinfo
	case errors.As(err, &host):
		return "a character that no host name has; " + encodeUserinfo
	case errors.As(err, &whole) && strings.HasPrefix(whole.Err.Error(), "invalid port"):
		return "the port is not a number; " + encodeUserinfo
	}
	return encodeUserinfo
}

// WithJetStream uses a JetStream context that the caller made, for domains and API prefixes.
func WithJetStream(js jetstream.JetStream) CommonOption {
	return func(c *config) {
		if isNil(js) {
			c.badNATS("WithJetStream: the context is nil")
			return
		}
		c.nats.js = js
	}
}

// WithNATSServer uses a JetStream server inside the process (package embednats). Unless
// WithReplayWindow says otherwise, the replay window is 0 if it syncs always.
func WithNATSServer(s NATSServer) CommonOption {
	return func(c *config) {
		if isNil(s) {
			c.badNATS("WithNATSServer: the server is nil")
			return
		}
		c.nats.server = s
	}
}

// WithLeaseTime sets after how long without a sign of life a replicator or worker counts as gone, so that
// one that stands by takes over. A death on the same machine (Linux) is noticed at once, and so is a
// stop. 1 s to 10 minutes, default 10 s.
func WithLeaseTime(d time.Duration) CommonOption { return func(c *config) { c.lease = d } }

// WithStopTimeout bounds a stop: Run returns within d of its context's end. Until then what was read goes into
// the stream, and the batch that the sink has is written; what JetStream or the sink haven't answered by then is
// given up with ErrNotDrained, and comes again at the next start. The last quarter of d, at most 2 s, is for
// saying goodbye to databases and NATS. 100 ms to 10 minutes, default 10 s.
func WithStopTimeout(d time.Duration) CommonOption { return func(c *config) { c.stopTimeout = d } }

// WithSource gives the source database as a connection string: a URL or keywords and values.
// https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING
func WithSource(connString string) ReplicatorOption {
	return func(c *config) {
		cfg, err := pgsession.ParseConfig(connString)
		if err != nil {
			c.badSource("WithSource: %w", err)
			return
		}
		c.source = cfg
	}
}

// WithSourceConfig gives the source database as a configuration made by pgx.ParseConfig. It is copied.
func WithSourceConfig(cfg *pgx.ConnConfig) ReplicatorOption {
	return func(c *config) {
		if cfg == nil {
			c.badSource("WithSourceConfig: the configuration is nil")
			return
		}
		c.source = cfg.Copy()
	}
}

// WithPassword asks f for the source's password before each connection, for credentials that rotate. One that
// is refused is asked for again, without limit: see LastError.
func WithPassword(f func(context.Context) (string, error)) ReplicatorOption {
	return func(c *config) { c.password = f }
}

// WithTables names what is replicated: "schema.table", exact, no folding of case; without a schema it
// is "public"; '*' stands for any characters; '"' quotes. None: all tables that exist at start. Each has to match a
// table when Run starts, else it ends with ErrTables.
func WithTables(patterns ...string) ReplicatorOption {
	return func(c *config) { c.tables = append(c.tables, patterns...) }
}

// WithExcludeTables leaves tables out; patterns as in WithTables.
func WithExcludeTables(patterns ...string) ReplicatorOption {
	return func(c *config) { c.exclude = append(c.exclude, patterns...) }
}

// WithMode sets what the replicator does. Default: CopyAndStream.
func WithMode(m Mode) ReplicatorOption { return func(c *config) { c.mode = m } }

// WithSlot names the replication slot. Default: "flo_" and the group.
func WithSlot(name string) ReplicatorOption { return func(c *config) { c.slot = name } }

// WithSlotFailover makes the slot one that PostgreSQL synchronizes to standbys, so that the group goes on at a standby
// that was promoted. A slot that exists is changed at the next start. It takes PostgreSQL 17 or later (before that Run
// ends with ErrSourceSettings), sync_replication_slots and hot_standby_feedback at the standby, and
// synchronized_standby_slots at the primary; without the last one a promotion may find the stream ahead of the
// new primary: ErrSourceChanged.
// https://www.postgresql.org/docs/current/logicaldecoding-explanation.html#LOGICALDECODING-REPLICATION-SLOTS-SYNCHRONIZATION
func WithSlotFailover() ReplicatorOption { return func(c *config) { c.slotFailover = true } }

// WithPublication uses publications that somebody else has made, and leaves them alone, in Drop too: so a role
// with REPLICATION, and SELECT on the tables for the copy, is enough. Which tables are replicated, which of their
// rows (row filters) and columns (column lists) is what the publications say, for the copy as well; WithTables
// and WithExcludeTables can't be given besides. They have to publish insert, update, delete and truncate (a table
// without replica identity may stand in one of insert and truncate only), each table in one of them, and
// not via the partition root; anything else ends Run with ErrTables or ErrSourceSettings. A table that the owner adds
// later is copied beside the stream, as is one whose publication was changed for a while, see docs/operations.md.
func WithPublication(names ...string) ReplicatorOption {
	return func(c *config) { c.publications, c.adoptGiven = append([]string(nil), names...), true }
}

// WithCopyConnections sets how many connections read the initial copy. 1 to 64, default 2.
func WithCopyConnections(n int) ReplicatorOption { return func(c *config) { c.copyConnections = n } }

// WithStreamReplicas sets the stream's replicas. 1, 3 or 5, default 1.
func WithStreamReplicas(n int) ReplicatorOption { return func(c *config) { c.replicas = n } }

// WithStreamMaxBytes limits the stream, in bytes; a full stream holds the replicator back. At least
// 16 MiB. Default 0: no limit.
func WithStreamMaxBytes(n int64) ReplicatorOption { return func(c *config) { c.maxBytes = n } }

// WithStreaming lets PostgreSQL 14 and later send large transactions while they are still open: those that take more
// than logical_decoding_work_mem at the source. They flow into JetStream before they commit, so that the source spills
// nothing to its disk and the last change is in JetStream sooner behind the commit; workers see nothing of them before, and nothing
// of what is rolled back, which goes through NATS nevertheless. All of the group's workers have to be of a version
// that knows it. With WithStreamMaxBytes, open transactions may take 40 % of it; if they take more, all
// transactions are read as a whole until Run ends. Default: off.
func WithStreaming(on bool) ReplicatorOption { return func(c *config) { c.streaming = on } }

// WithReplayWindow sets how far the slot's confirmed position trails behind what JetStream has
// acknowledged: a NATS server that loses up to that much of its store is filled up again. JetStream
// syncs to disk every 2 minutes by default, so the default is 3 minutes; 0 if NATS syncs always.
func WithReplayWindow(d time.Duration) ReplicatorOption {
	return func(c *config) { c.replayWindow, c.windowGiven = d, true }
}

// WithIdleInterval sets how often, at most, an idle source's position is written to the stream, so
// that its slot holds no WAL. Default 10 s, at least 100 ms.
func WithIdleInterval(d time.Duration) ReplicatorOption {
	return func(c *config) { c.idleInterval = d }
}

// WithWALLimit sets how much WAL the slot may keep at the source, in bytes, and what to do when it keeps more:
// WarnOnWAL, StopOnWAL or DropSlotOnWAL. At least 16 MiB; 0 for no limit. Default: DefaultWALLimit (10 GiB),
// WarnOnWAL. It is looked at every WithIdleInterval, 10 s at most, whether NATS is there or not. A start that
// finds more than the limit may drain it: it is ended only if a quarter of the limit comes on top.
//
// The limit has to leave room for what is kept in any case: the WAL of the replay window, and of the longest
// transaction.
func WithWALLimit(bytes int64, action WALAction) ReplicatorOption {
	return func(c *config) { c.walLimit, c.walAction = bytes, action }
}

// WithSink adds the worker "default" with that sink.
func WithSink(s sink.Sink) CommonOption {
	return func(c *config) { c.workers = append(c.workers, workerConfig{name: "default", sink: s}) }
}

// WithWorker adds a worker: a name (one to 64 of letters, digits, '_' and '-'), a sink of its own, and
// options of its own. Each worker gets every change of the group.
func WithWorker(name string, s sink.Sink, opts ...WorkerOption) CommonOption {
	return func(c *config) { c.workers = append(c.workers, workerConfig{name: name, sink: s, own: opts}) }
}

// WithRules sets the rules that changes pass before the sink, in order.
func WithRules(r ...rules.Rule) WorkerOption {
	return func(w *workerConfig) { w.rules = append([]rules.Rule(nil), r...) }
}

// WithBatchSize limits a batch, in changes. 1 to 1,000,000, default 20,000.
func WithBatchSize(n int) WorkerOption { return func(w *workerConfig) { w.batchSize = n } }

// WithBatchBytes limits a batch, in bytes of its changes as they came and of their decoded values; a larger change makes a batch of its own.
// 1 KiB to 1 GiB, default 8 MiB.
func WithBatchBytes(n int) WorkerOption { return func(w *workerConfig) { w.batchBytes = n } }

// WithFlushInterval lets a batch that isn't full wait for more changes, for sinks that like large
// batches. 0 to 1 hour, default 0: a batch goes as soon as the sink is free.
func WithFlushInterval(d time.Duration) WorkerOption {
	return func(w *workerConfig) { w.flushInterval = d }
}

// ErrorPolicy says what a worker does with a change that can never be decoded, ruled or applied: the sink's error
// is sink.Permanent (or sink.Reject), or a rule failed. Other errors are tried again without limit under both.
type ErrorPolicy string

const (
	// Stop ends Run with a *SinkError that names the change. The next start meets it again.
	Stop ErrorPolicy = "stop"
	// DeadLetter stores the change in a stream of its own, "flo-dead_" and the group, and goes on with the rest of
	// its transaction. Later changes of the same row follow it there, so that order per row holds when they are
	// replayed. See Flo.DeadLetters and Flo.Replay.
	DeadLetter ErrorPolicy = "dead-letter"
)

// WithErrorPolicy sets what a worker does with a change that can never be applied. Default: Stop.
func WithErrorPolicy(p ErrorPolicy) WorkerOption { return func(w *workerConfig) { w.policy = p } }

// WithDeadLetterLimit sets how many dead letters a worker may have at a time: one more stops it with
// ErrDeadLetters, so that a broken destination doesn't drain the stream into them. Replayed and discarded ones
// count no more. 1 to 100,000, default 1,000.
func WithDeadLetterLimit(n int) WorkerOption { return func(w *workerConfig) { w.letterLimit = n } }

const (
	defaultLetterLimit = 1000
	// maxLetterLimit bounds the memory that a worker needs to know its letters: about 300 bytes each.
	maxLetterLimit = 100_000
)

const (
	defaultReplayWindow    = 3 * time.Minute
	defaultIdleInterval    = 10 * time.Second
	defaultLease           = 10 * time.Second
	defaultStopTimeout     = 10 * time.Second
	defaultCopyConnections = 2
	defaultBatchSize       = 20_000
	defaultBatchBytes      = 8 << 20
	minStreamBytes         = 16 << 20
)

func newConfig(opts []Option) *config {
	c := &config{
		logger:          slog.New(slog.DiscardHandler),
		mode:            CopyAndStream,
		copyConnections: defaultCopyConnections,
		replicas:        1,
		replayWindow:    defaultReplayWindow,
		idleInterval:    defaultIdleInterval,
		stopTimeout:     defaultStopTimeout,
		walLimit:        DefaultWALLimit,
		walAction:       WarnOnWAL,
		lease:           defaultLease,
		attemptAfter:    newAttempts(),
		worker: workerConfig{
			batchSize: defaultBatchSize, batchBytes: defaultBatchBytes, startAt: StartAtBeginning,
			policy: Stop, letterLimit: defaultLetterLimit,
		},
	}
	for _, o := range opts {
		if o != nil {
			o.apply(c)
		}
	}
	for i := range c.workers {
		w := c.worker
		w.name, w.sink = c.workers[i].name, c.workers[i].sink
		for _, o := range c.workers[i].own {
			if o != nil {
				o(&w)
			}
		}
		c.workers[i] = w
	}
	return c
}
