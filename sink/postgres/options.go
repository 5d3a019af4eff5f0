package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/names"
)

// Defaults and limits of the options.
const (
	DefaultSchema      = "flo"
	DefaultConnections = 2
	MaxConnections     = 32
)

// Option changes a default of New.
type Option func(*config)

type config struct {
	conn        *pgx.ConnConfig
	password    func(context.Context) (string, error)
	replica     bool
	missingOK   bool
	truncate    bool
	connections int
	lanes       int
	schema      string
	logger      *slog.Logger
	sync        *schemaSync
	tolerated   []MisfitKind
	ddl         ddlPolicy
	commit      string // synchronous_commit; "": what is set
	commitSet   bool

	merge         []string // patterns of WithMergeCopy
	mergeAll      bool
	mergePatterns []names.Pattern

	rowByRow bool // for tests: no COPY
}

// WithReplicaRole sets session_replication_role to replica: foreign keys and ordinary triggers of the
// destination rest while flo writes, as in PostgreSQL's own logical replication, and an UPDATE or
// DELETE that meets no row is ErrRowMissing. It takes a superuser, or from PostgreSQL 15 on
// GRANT SET ON PARAMETER session_replication_role. Without it, tables with such triggers or foreign
// keys are refused with ErrTriggers.
func WithReplicaRole() Option { return func(c *config) { c.replica = true } }

// WithMissingRowsCounted only counts the UPDATEs and DELETEs that meet no row (Stats.MissingRows), also
// under WithReplicaRole. It is for workers whose rules filter rows: a row that a filter kept away may be
// updated later. Without WithReplicaRole this is so anyway.
func WithMissingRowsCounted() Option { return func(c *config) { c.missingOK = true } }

// WithTruncateBeforeCopy empties a destination table in the transaction that begins its copy. Default: a
// table that holds rows which flo itself has not written is refused with ErrNotEmpty.
func WithTruncateBeforeCopy() Option { return func(c *config) { c.truncate = true } }

// WithConnections says how many connections write copied chunks side by side, beside the one for
// changes. Default 2, at most 32.
func WithConnections(n int) Option { return func(c *config) { c.connections = n } }

// WithSchema names the schema at the destination that holds flo's own tables. It is created if missing.
// Default "flo".
func WithSchema(name string) Option { return func(c *config) { c.schema = name } }

// WithPassword asks f for the password at each connect, for credentials that rotate. It replaces the
// one in the URL. One that is refused is asked for again, without limit.
func WithPassword(f func(ctx context.Context) (string, error)) Option {
	return func(c *config) { c.password = f }
}

// WithLogger tells l about takeovers and emptied tables. Default: silent.
func WithLogger(l *slog.Logger) Option { return func(c *config) { c.logger = l } }

// newConfig applies opts over the defaults and reports all that is wrong at once.
func newConfig(conn *pgx.ConnConfig, opts []Option) (config, error) {
	c := config{
		conn:        conn,
		connections: DefaultConnections,
		lanes:       1,
		schema:      DefaultSchema,
		logger:      slog.New(slog.DiscardHandler),
		ddl:         ddlPolicy{wait: DefaultDDLLockTimeout},
	}
	for _, o := range opts {
		if o != nil {
			o(&c)
		}
	}
	var bad []error
	invalid := func(format string, args ...any) {
		bad = append(bad, fmt.Errorf("sink/postgres: %w: %s", ErrInvalidOption, fmt.Sprintf(format, args...)))
	}
	if c.connections < 1 || c.connections > MaxConnections {
		invalid("WithConnections(%d): want 1 to %d", c.connections, MaxConnections)
	}
	if c.lanes < 1 || c.lanes > MaxConnections {
		invalid("WithApplyConnections(%d): want 1 to %d", c.lanes, MaxConnections)
	}
	// NAMEDATALEN-1, https://www.postgresql.org/docs/current/sql-syntax-lexical.html
	if c.schema == "" || len(c.schema) > 63 {
		invalid("WithSchema(%q): want 1 to 63 bytes", c.schema)
	}
	if c.logger == nil {
		invalid("WithLogger(nil): leave the option out for silence")
	}
	c.sync.validate(invalid)
	c.ddl.validate(invalid)
	c.validateCommit(invalid)
	c.parseMerge(invalid)
	for _, k := range c.tolerated {
		if !slices.Contains(tolerable[:], k) {
			invalid("WithTolerated(%q): want MisfitType or MisfitKey", string(k))
		}
	}
	return c, errors.Join(bad...)
}
