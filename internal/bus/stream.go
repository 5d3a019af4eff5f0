// Package bus is flo's one JetStream stream per group: a fenced publisher for its single writer, an
// ordered reader for its workers, and the few requests that both need, all answered by the stream's
// leader.
package bus

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/internal/request"
)

// Defaults of Config.
const (
	DefaultPublishTimeout = 10 * time.Second
	DefaultWindowBytes    = 16 << 20
	DefaultWindowMsgs     = 128
)

// requestTimeout bounds one request to the JetStream API; a context may end it sooner.
const requestTimeout = 10 * time.Second

// Config of a group's stream.
type Config struct {
	JS    jetstream.JetStream
	Group string // letters, digits, '_' and '-', at most 64
	// Replicas of the stream when it is made. Default 1.
	Replicas int
	// MaxBytes is the server's hard limit in bytes: what goes beyond it is refused. 0: none.
	MaxBytes int64
	// Logger for what needs an operator's eye. Default: none.
	Logger *slog.Logger
	// PublishTimeout is how long a publish may stay unanswered before it is in doubt. Default 10 s.
	PublishTimeout time.Duration
	// WindowBytes and WindowMsgs bound what is published and unacknowledged. Default 16 MiB, 128.
	WindowBytes int
	WindowMsgs  int
	// Resync is what a stream that Create makes says of itself.
	Resync Resync
	// Making, if set, is asked by Create before it makes a stream; its error is Create's.
	Making func(context.Context) error
}

func (c Config) withDefaults() (Config, error) {
	if c.JS == nil {
		return c, fmt.Errorf("%w: no JetStream", ErrConfig)
	}
	if !ValidGroup(c.Group) {
		return c, fmt.Errorf("%w: group %q: want 1 to 64 of the characters A-Z a-z 0-9 _ -", ErrConfig, c.Group)
	}
	if c.Replicas < 0 || c.Replicas > 5 || c.MaxBytes < 0 || c.PublishTimeout < 0 || c.WindowBytes < 0 || c.WindowMsgs < 0 {
		return c, fmt.Errorf("%w: Replicas must be 0 to 5, and no limit below 0", ErrConfig)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.PublishTimeout == 0 {
		c.PublishTimeout = DefaultPublishTimeout
	}
	if c.WindowBytes == 0 {
		c.WindowBytes = DefaultWindowBytes
	}
	if c.WindowMsgs == 0 {
		c.WindowMsgs = DefaultWindowMsgs
	}
	return c, nil
}

// ValidGroup reports whether a group's name can be part of stream names and subjects.
func ValidGroup(name string) bool {
	if len(name) < 1 || len(name) > 64 {
		return false
	}
	return strings.IndexFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '_' || r == '-')
	}) < 0
}

// StreamName of a group.
func StreamName(group string) string { return "flo_" + group }

// Keys of the stream's metadata.
const (
	metaIncarnation = "flo.incarnation"
	metaSystem      = "flo.system"
	metaDatabase    = "flo.database"
	metaVersion     = "flo.version"

	layoutVersion = "1" // of stream and subjects; wire.Version is that of the messages
)

// Stream is a group's stream as it was opened: one incarnation of it. Its methods may be called from
// several goroutines, and give ErrStreamGone once that incarnation is gone.
type Stream struct {
	cfg         Config
	js          jetstream.JetStream
	str         jetstream.Stream
	name        string
	incarnation string
	prefix      string // "flo.<group>.<incarnation>."
	created     time.Time
	system      string
	database    string
	resync      Resync
	gone        atomic.Bool // it was not found for a while: that needs no confirmation any more
}

// Create opens the group's stream, or makes it and binds it to a source: system is PostgreSQL's
// system identifier, database its name. Two processes may call it at once: one of them makes it.
// Errors: *ConfigError, ErrOtherSource, ErrConfig, and those of JetStream.
func Create(ctx context.Context, cfg Config, system, database string) (s *Stream, created bool, err error) {
	cfg, err = cfg.withDefaults()
	if err != nil {
		return nil, false, err
	}
	s, err = open(ctx, cfg)
	if errors.Is(err, ErrNoStream) {
		if cfg.Making != nil {
			if err := cfg.Making(ctx); err != nil {
				return nil, false, err
			}
		}
		created = true
		s, err = create(ctx, cfg, system, database)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // somebody was faster
			created = false
			s, err = open(ctx, cfg)
		}
	}
	if err != nil {
		return nil, false, err
	}
	if err := s.adjust(ctx); err != nil {
		return nil, false, err
	}
	if s.system != system || s.database != database {
		return nil, false, fmt.Errorf("%w: stream %s is of system %s, database %q, this is system %s, database %q",
			ErrOtherSource, s.name, s.system, s.database, system, database)
	}
	return s, created, nil
}

// Open opens the group's stream. Errors: ErrNoStream, *ConfigError, ErrConfig, and those of JetStream.
func Open(ctx context.Context, cfg Config) (*Stream, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	return open(ctx, cfg)
}

func open(ctx context.Context, cfg Config) (*Stream, error) {
	var str jetstream.Stream
	err := request.Again(ctx, cfg.JS.Conn(), requestTimeout, func(ctx context.Context) (err error) {
		str, err = cfg.JS.Stream(ctx, StreamName(cfg.Group))
		return err
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil, fmt.Errorf("%w (stream %s)", ErrNoStream, StreamName(cfg.Group))
	}
	if err != nil {
		return nil, fmt.Errorf("bus: open stream %s: %w", StreamName(cfg.Group), err)
	}
	return newStream(cfg, str)
}

func create(ctx context.Context, cfg Config, system, database string) (*Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	incarnation := strings.ToLower(rand.Text()[:10])
	maxBytes := cfg.MaxBytes
	if maxBytes == 0 {
		maxBytes = -1
	}
	metadata := map[string]string{
		metaIncarnation: incarnation,
		metaSystem:      system,
		metaDatabase:    database,
		metaVersion:     layoutVersion,
	}
	if cfg.Resync.Token != "" {
		text, err := cfg.Resync.metadata()
		if err != nil {
			return nil, err
		}
		metadata[metaResync] = text
	}
	str, err := cfg.JS.CreateStream(ctx, jetstream.StreamConfig{
		Name:              StreamName(cfg.Group),
		Description:       "flo: changes of " + database,
		Subjects:          []string{subjectPrefix(cfg.Group, incarnation) + ">"},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Replicas:          max(cfg.Replicas, 1),
		Discard:           jetstream.DiscardNew,
		MaxBytes:          maxBytes,
		MaxMsgs:           -1,
		MaxMsgsPerSubject: -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		// No message carries an id, so there is nothing to remember; this is the server's least.
		Duplicates: 100 * time.Millisecond,
		// A direct read may be answered by a replica that is behind.
		AllowDirect: false,
		Metadata:    metadata,
	})
	if err != nil {
		return nil, fmt.Errorf("bus: create stream %s: %w", StreamName(cfg.Group), err)
	}
	return newStream(cfg, str)
}

func subjectPrefix(group, incarnation string) string { return "flo." + group + "." + incarnation + "." }

func newStream(cfg Config, str jetstream.Stream) (*Stream, error) {
	info := str.CachedInfo()
	m := info.Config.Metadata
	s := &Stream{
		cfg: cfg, js: cfg.JS, str: str, name: info.Config.Name,
		incarnation: m[metaIncarnation],
		prefix:      subjectPrefix(cfg.Group, m[metaIncarnation]),
		created:     info.Created,
		system:      m[metaSystem],
		database:    m[metaDatabase],
		resync:      readResync(m),
	}
	return s, s.checkConfig(&info.Config)
}

// checkConfig compares what the stream must be, whoever opens it.
func (s *Stream) checkConfig(c *jetstream.StreamConfig) error {
	var differs []string
	check := func(ok bool, setting string, is, want any) {
		if !ok {
			differs = append(differs, fmt.Sprintf("%s is %v, must be %v", setting, is, want))
		}
	}
	check(s.incarnation != "", "metadata "+metaIncarnation, "missing", "there (is this a stream of flo?)")
	check(c.Metadata[metaVersion] == layoutVersion, "metadata "+metaVersion, strconv.Quote(c.Metadata[metaVersion]), strconv.Quote(layoutVersion))
	check(len(c.Subjects) == 1 && c.Subjects[0] == s.prefix+">", "subjects", c.Subjects, s.prefix+">")
	check(c.Retention == jetstream.LimitsPolicy, "retention", c.Retention, jetstream.LimitsPolicy)
	check(c.Storage == jetstream.FileStorage, "storage", c.Storage, jetstream.FileStorage)
	check(c.Discard == jetstream.DiscardNew, "discard", c.Discard, jetstream.DiscardNew)
	check(c.MaxAge == 0, "max age", c.MaxAge, "unlimited")
	check(c.MaxMsgs <= 0, "max messages", c.MaxMsgs, "unlimited")
	check(c.MaxMsgsPerSubject <= 0, "max messages per subject", c.MaxMsgsPerSubject, "unlimited")
	check(c.MaxMsgSize <= 0, "max message size", c.MaxMsgSize, "unlimited")
	check(!c.AllowDirect, "allow direct", c.AllowDirect, false)
	check(!c.NoAck, "no ack", c.NoAck, false)
	check(!c.Sealed, "sealed", c.Sealed, false)
	check(!c.DenyPurge, "deny purge", c.DenyPurge, false)
	check(c.Mirror == nil && len(c.Sources) == 0, "mirror or sources", "set", "none")
	check(c.SubjectTransform == nil, "subject transform", "set", "none")
	if differs != nil {
		return &ConfigError{Stream: s.name, Differs: differs}
	}
	return nil
}

// adjust brings the stream's size and replicas to what the group's writer asks for now; 0 asks for nothing.
func (s *Stream) adjust(ctx context.Context) error {
	c := s.str.CachedInfo().Config
	was := c
	if s.cfg.Replicas != 0 {
		c.Replicas = s.cfg.Replicas
	}
	if s.cfg.MaxBytes != 0 {
		c.MaxBytes = s.cfg.MaxBytes
	}
	if c.Replicas == was.Replicas && c.MaxBytes == was.MaxBytes {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	str, err := s.js.UpdateStream(ctx, c)
	if err != nil {
		return fmt.Errorf("bus: change stream %s from %d replicas and %d bytes to %d and %d: %w", s.name, was.Replicas, was.MaxBytes, c.Replicas, c.MaxBytes, mapError(err))
	}
	s.str = str
	return nil
}

// Incarnation is the random token that the stream got when it was made.
func (s *Stream) Incarnation() string { return s.incarnation }

// Created says when the stream was made, by the server's clock.
func (s *Stream) Created() time.Time { return s.created }

// System is the source's PostgreSQL system identifier.
func (s *Stream) System() string { return s.system }

// Database is the source's database.
func (s *Stream) Database() string { return s.database }

// Replicas that the stream had when it was opened.
func (s *Stream) Replicas() int { return s.str.CachedInfo().Config.Replicas }

// JetStream is what the stream was opened with.
func (s *Stream) JetStream() jetstream.JetStream { return s.js }

// Name of the stream in JetStream.
func (s *Stream) Name() string { return s.name }

// headerRoom is more than the NATS headers of a message take, in bytes.
const headerRoom = 128

// MaxPayload is the most bytes that one message's data may have, by the server that the connection
// is on now.
func (s *Stream) MaxPayload() int { return int(s.js.Conn().MaxPayload()) - headerRoom }

// ChangesSubject is the subject of changes and markers.
func (s *Stream) ChangesSubject() string { return s.prefix + "changes" }

// CopySubject is the subject of a table's copied rows in one attempt.
func (s *Stream) CopySubject(attempt, table uint32) string {
	return s.prefix + "copy." + decimal(attempt) + "." + decimal(table)
}

// CopyBeginSubject is the subject of what describes an attempt's tables. It stays until the attempt is
// finished with, unlike the rows.
func (s *Stream) CopyBeginSubject(attempt uint32) string {
	return s.prefix + "copy." + decimal(attempt) + ".0.begin"
}

// CopyEndSubject is the subject of the marker that a table's copy is whole. It stays as CopyBeginSubject's do.
func (s *Stream) CopyEndSubject(attempt, table uint32) string {
	return s.CopySubject(attempt, table) + ".end"
}

// CopyEndFilter matches the end markers of an attempt.
func (s *Stream) CopyEndFilter(attempt uint32) string {
	return s.prefix + "copy." + decimal(attempt) + ".*.end"
}

// CopyFilter matches all of an attempt's copy, or with 0 of all attempts.
func (s *Stream) CopyFilter(attempt uint32) string {
	if attempt == 0 {
		return s.prefix + "copy.>"
	}
	return s.prefix + "copy." + decimal(attempt) + ".>"
}

// copyRowsFilter matches the copied rows of all attempts.
func (s *Stream) copyRowsFilter() string { return s.prefix + "copy.*.*" }

func decimal(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// ParseCopySubject takes a subject of an attempt's copy apart. table is 0 for CopyBeginSubject.
func (s *Stream) ParseCopySubject(subject string) (attempt, table uint32, ok bool) {
	rest, ok := strings.CutPrefix(subject, s.prefix+"copy.")
	if !ok {
		return 0, 0, false
	}
	a, t, ok := strings.Cut(rest, ".")
	t, kind, _ := strings.Cut(t, ".")
	x, err1 := strconv.ParseUint(a, 10, 32)
	y, err2 := strconv.ParseUint(t, 10, 32)
	return uint32(x), uint32(y), ok && err1 == nil && err2 == nil && (kind == "" || kind == "begin" || kind == "end")
}

// Info is the stream's state.
type Info struct {
	FirstSeq, LastSeq uint64 // LastSeq stays when messages are purged
	Msgs, Bytes       uint64
}

// Info asks the stream's leader for its state.
func (s *Stream) Info(ctx context.Context) (Info, error) {
	info, err := s.info(ctx)
	if err != nil {
		return Info{}, err
	}
	st := info.State
	return Info{FirstSeq: st.FirstSeq, LastSeq: st.LastSeq, Msgs: st.Msgs, Bytes: st.Bytes}, nil
}

// info asks, and makes sure that it is still this incarnation, with the settings that it must have. A stream that is not found
// has to stay so: a server that is being stopped, or a cluster that is just electing, may say that of one that it has.
func (s *Stream) info(ctx context.Context, opts ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	for began := time.Now(); ; {
		info, err := s.infoOnce(ctx, opts...)
		if !errors.Is(err, jetstream.ErrStreamNotFound) || s.gone.Load() {
			return info, err
		}
		if time.Since(began) > rollbackConfirm {
			s.gone.Store(true)
			return info, err
		}
		if err := pause(ctx, backoffFirst*2); err != nil {
			return nil, err
		}
	}
}

// failed names the error of a request that may need the confirmation that info gives.
func (s *Stream) failed(ctx context.Context, err error) error {
	if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return err
	}
	if _, ierr := s.info(ctx); ierr != nil {
		return ierr
	}
	return fmt.Errorf("%w (%w)", ErrUnreadable, err)
}

func (s *Stream) infoOnce(ctx context.Context, opts ...jetstream.StreamInfoOpt) (*jetstream.StreamInfo, error) {
	var info *jetstream.StreamInfo
	err := request.Again(ctx, s.js.Conn(), requestTimeout, func(ctx context.Context) (err error) {
		info, err = s.str.Info(ctx, opts...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("bus: stream %s: %w", s.name, mapError(err))
	}
	if got := info.Config.Metadata[metaIncarnation]; got != s.incarnation {
		return nil, fmt.Errorf("%w (stream %s: it is %q now, was %q)", ErrStreamGone, s.name, got, s.incarnation)
	}
	return info, s.checkConfig(&info.Config)
}

// Delete the stream with all that it holds, if it is still this incarnation. One that is gone
// already is no error.
func (s *Stream) Delete(ctx context.Context) error {
	if _, err := s.info(ctx); err != nil {
		var ce *ConfigError
		if errors.Is(err, ErrStreamGone) {
			return nil
		} else if !errors.As(err, &ce) {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := s.js.DeleteStream(ctx, s.name); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("bus: delete stream %s: %w", s.name, err)
	}
	return nil
}
