// Package pgsession gives every PostgreSQL session of flo, at the source and at a destination, the
// same settings, and tells passing faults from lasting ones.
//
// The settings fix how values are written as text and take away every limit of time that a server's,
// role's or database's defaults may set: flo's sessions live long and are quiet by nature.
package pgsession

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// applyTimeout bounds the one round trip that sets a new session up.
const applyTimeout = 30 * time.Second

// setting is one parameter, and the server_version_num from which it exists.
type setting struct {
	name, value string
	since       int
}

// settings of every session. client_encoding stands first: it decides how the rest is read.
// https://www.postgresql.org/docs/current/runtime-config-client.html
func settings() []setting {
	return []setting{
		{"client_encoding", "UTF8", 0},
		{"standard_conforming_strings", "on", 0},
		{"DateStyle", "ISO", 0},
		{"IntervalStyle", "postgres", 0},
		{"extra_float_digits", "3", 0},
		{"TimeZone", "UTC", 0},
		{"bytea_output", "hex", 0},
		{"lc_monetary", "C", 0},
		{"xmloption", "content", 0},
		{"search_path", "pg_catalog", 0},
		// A policy that filters COPY in silence becomes an error.
		{"row_security", "off", 0},
		{"default_transaction_isolation", "read committed", 0},
		{"default_transaction_read_only", "off", 0},
		{"default_transaction_deferrable", "off", 0},
		{"statement_timeout", "0", 0},
		{"lock_timeout", "0", 0},
		{"idle_in_transaction_session_timeout", "0", 90600},
		{"idle_session_timeout", "0", 140000},
		{"transaction_timeout", "0", 170000},
	}
}

// Apply sets flo's session settings, then extra, on an open connection, ordinary or replication. It is
// one statement of the simple query protocol: poolers refuse startup parameters, and a walsender before
// PostgreSQL 15 takes neither several statements in one string nor the extended protocol.
// A name in extra that is also one of flo's wins. It waits at most 30 s.
func Apply(ctx context.Context, conn *pgconn.PgConn, extra map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	if _, err := conn.Exec(ctx, statement(Version(conn), extra)).ReadAll(); err != nil {
		return fmt.Errorf("pgsession: setting up the session: %w", err)
	}
	return nil
}

// statement is the SELECT that sets everything a server of this version knows. set_config is SET as a
// function. https://www.postgresql.org/docs/current/functions-admin.html
func statement(version int, extra map[string]string) string {
	var b strings.Builder
	b.WriteString("SELECT ")
	set := func(name, value string) {
		if b.Len() > len("SELECT ") {
			b.WriteString(", ")
		}
		b.WriteString("pg_catalog.set_config(" + Literal(name) + ", " + Literal(value) + ", false)")
	}
	for _, s := range settings() {
		if version >= s.since {
			set(s.name, s.value)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(extra)) {
		set(name, extra[name])
	}
	return b.String()
}

// Literal quotes a string as an SQL literal that means the same whatever standard_conforming_strings is.
func Literal(s string) string {
	s = strings.ReplaceAll(s, "'", "''")
	if strings.Contains(s, `\`) {
		return "E'" + strings.ReplaceAll(s, `\`, `\\`) + "'"
	}
	return "'" + s + "'"
}

// Version gives the server's version in the form of server_version_num (150018 for 15.18), read from
// what the server reported when it connected; 0 if it said nothing that is understood.
func Version(conn *pgconn.PgConn) int {
	return parseVersion(conn.ParameterStatus("server_version"))
}

// parseVersion reads "15.18 (Debian 15.18-1)", "17beta2" and "9.6.24".
func parseVersion(s string) int {
	end := strings.IndexFunc(s, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end >= 0 {
		s = s[:end]
	}
	var part [3]int
	for i, p := range strings.SplitN(s, ".", 3) {
		n, err := strconv.Atoi(p)
		if err != nil || n > 9999 {
			return 0
		}
		part[i] = n
	}
	if part[0] >= 10 {
		return part[0]*10000 + part[1]
	}
	return part[0]*10000 + part[1]*100 + part[2]
}

// Options of a session.
type Options struct {
	// AppName is application_name, at most 63 bytes; empty: what the connection's own parameters say.
	AppName string
	// Password, if set, is asked at each connect and replaces the configured password.
	Password func(ctx context.Context) (string, error)
	// Extra parameters, set after flo's own.
	Extra map[string]string
}

// Configure makes every connection opened from cfg one of flo's: TCP keepalives, and Apply with o's
// settings before anybody else gets it. A DialFunc that the host has set stays and
// gets its TCP connections the same keepalives; its AfterConnect stays too and runs first.
// The password callback is Connect's matter: pgconn reads the password from cfg.
func Configure(cfg *pgconn.Config, o Options) {
	extra := maps.Clone(o.Extra)
	if o.AppName != "" {
		if extra == nil {
			extra = make(map[string]string, 1)
		}
		extra["application_name"] = o.AppName
	}
	cfg.DialFunc = keepalive(cfg.DialFunc)
	before := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		if before != nil {
			if err := before(ctx, conn); err != nil {
				return err
			}
		}
		return Apply(ctx, conn, extra)
	}
}

// Prepare copies cfg, asks o's password callback, and configures the copy.
func Prepare(ctx context.Context, cfg *pgx.ConnConfig, o Options) (*pgx.ConnConfig, error) {
	c := cfg.Copy()
	if o.Password != nil {
		password, err := o.Password(ctx)
		if err != nil {
			return nil, fmt.Errorf("pgsession: the password callback failed: %w", err)
		}
		c.Password = password
	}
	Configure(&c.Config, o)
	return c, nil
}

// Connect opens an ordinary session with flo's settings. cfg must come from pgx.ParseConfig and is not
// changed. No error of it holds the password.
func Connect(ctx context.Context, cfg *pgx.ConnConfig, o Options) (*pgx.Conn, error) {
	c, err := Prepare(ctx, cfg, o)
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("pgsession: %w", err)
	}
	return conn, nil
}
