package flotest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DB is a fresh database for one test, dropped with all its slots when the test ends.
type DB struct {
	// URL is the address of the database, user and password included.
	URL string
	// Name is the database's name.
	Name string
	// Server is the server it is on; nil for a given one (FLO_TEST_POSTGRES_URL).
	Server *Server

	adminURL string
	logFrom  int64 // the size of the server's log when the test began

	mu   sync.Mutex
	conn *pgx.Conn // of Exec and Query, opened when first needed
}

// plainSession undoes WithOddSettings for flotest's own sessions, so that what Query
// returns as text does not depend on the server.
var plainSession = []string{
	"client_encoding", "UTF8", "DateStyle", "ISO, YMD", "IntervalStyle", "postgres",
	"TimeZone", "UTC", "bytea_output", "hex", "extra_float_digits", "3",
	"xmloption", "content", "lc_monetary", "C",
}

// dial opens a session with plain settings, set by SET: poolers refuse some of them as
// startup parameters.
func dial(ctx context.Context, url string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("flotest: connect: %w", err)
	}
	var b strings.Builder
	for i := 0; i < len(plainSession); i += 2 {
		fmt.Fprintf(&b, "SET %s = '%s';", plainSession[i], plainSession[i+1])
	}
	if _, err := conn.PgConn().Exec(ctx, b.String()).ReadAll(); err != nil {
		return nil, errors.Join(fmt.Errorf("flotest: session settings: %w", err), conn.Close(ctx))
	}
	return conn, nil
}

func withConn(ctx context.Context, url string, f func(*pgx.Conn) error) error {
	conn, err := dial(ctx, url)
	if err != nil {
		return err
	}
	err = f(conn)
	closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return errors.Join(err, conn.Close(closeCtx))
}

// closeTimeout bounds the goodbye of a session.
const closeTimeout = 5 * time.Second

// do runs f with the DB's own session, opened afresh if it was lost.
func (d *DB) do(ctx context.Context, f func(*pgx.Conn) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil && d.conn.Ping(ctx) != nil {
		d.conn.Close(ctx) // the server went, and may be back
		d.conn = nil
	}
	if d.conn == nil {
		conn, err := dial(ctx, d.URL)
		if err != nil {
			return err
		}
		d.conn = conn
	}
	return f(d.conn)
}

// Exec runs SQL, or fails the test. Without arguments it may be several statements. It
// uses one session for all calls and takes turns between goroutines; from goroutines
// other than the test's own use Conn or TryExec.
func (d *DB) Exec(t testing.TB, sql string, args ...any) {
	t.Helper()
	ctx, cancel := testContext(t)
	defer cancel()
	if err := d.TryExec(ctx, sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// TryExec is Exec that returns its error.
func (d *DB) TryExec(ctx context.Context, sql string, args ...any) error {
	return d.do(ctx, func(c *pgx.Conn) error {
		if len(args) == 0 {
			_, err := c.PgConn().Exec(ctx, sql).ReadAll()
			return err
		}
		_, err := c.Exec(ctx, sql, args...)
		return err
	})
}

// testContext is the test's context, or in a cleanup, when that has ended, another one.
func testContext(t testing.TB) (context.Context, context.CancelFunc) {
	ctx := t.Context()
	if ctx.Err() == nil {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(context.WithoutCancel(ctx), dropTimeout)
}

// Null is how Query shows a NULL.
const Null = "NULL"

// Query returns the rows of one statement as text, NULL as Null, or fails the test.
// Session settings are PostgreSQL's usual ones with ISO dates and UTC.
func (d *DB) Query(t testing.TB, sql string, args ...any) [][]string {
	t.Helper()
	ctx, cancel := testContext(t)
	defer cancel()
	var rows [][]string
	err := d.do(ctx, func(c *pgx.Conn) error {
		if len(args) > 0 {
			args = append([]any{pgx.QueryResultFormats{pgx.TextFormatCode}}, args...)
		} else {
			args = []any{pgx.QueryExecModeSimpleProtocol}
		}
		r, err := c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		defer r.Close()
		for r.Next() {
			rows = append(rows, textRow(r.RawValues()))
		}
		return r.Err()
	})
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return rows
}

func textRow(raw [][]byte) []string {
	row := make([]string, len(raw))
	for i, v := range raw {
		if row[i] = string(v); v == nil {
			row[i] = Null
		}
	}
	return row
}

// QueryString returns the only column of the only row as text, or fails the test.
func (d *DB) QueryString(t testing.TB, sql string, args ...any) string {
	t.Helper()
	rows := d.Query(t, sql, args...)
	if len(rows) != 1 || len(rows[0]) != 1 {
		t.Fatalf("%s: %d rows, want one row of one column: %v", sql, len(rows), rows)
	}
	return rows[0][0]
}

// Conn opens a session of its own, with plain settings, closed when the test ends.
func (d *DB) Conn(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := dial(t.Context(), d.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		conn.Close(ctx) // the database goes anyway
	})
	return conn
}

// RunPgbench runs pgbench against a database and returns what it wrote. Arguments are
// pgbench's, without the connection's.
func (s *Server) RunPgbench(ctx context.Context, db string, args ...string) (string, error) {
	return RunPgbench(ctx, s.URL(db), args...)
}

// RunPgbench runs pgbench against any server.
func RunPgbench(ctx context.Context, dbURL string, args ...string) (string, error) {
	bin, err := Pgbench()
	if err != nil {
		return "", err
	}
	cfg, err := pgconn.ParseConfig(dbURL)
	if err != nil {
		return "", fmt.Errorf("flotest: pgbench: %w", err)
	}
	// The password goes by the environment: arguments are there for all to see.
	more := []string{"PGPASSWORD=" + cfg.Password, "PGSSLMODE=prefer"}
	all := append([]string{"-h", cfg.Host, "-p", fmt.Sprint(cfg.Port), "-U", cfg.User}, args...)
	cmd := exec.CommandContext(ctx, bin, append(all, cfg.Database)...)
	cmd.Env = toolEnv(more)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("flotest: pgbench: %w\n%s", err, out)
	}
	return string(out), nil
}

// CreateDatabase creates an empty database on the server and returns its URL.
func (s *Server) CreateDatabase(ctx context.Context, name string) (string, error) {
	err := createDatabase(ctx, s.URL("postgres"), name)
	return s.URL(name), err
}

// DropDatabase drops a database with its slots, subscriptions, sessions and prepared
// transactions.
func (s *Server) DropDatabase(ctx context.Context, name string) error {
	return dropDatabase(ctx, s.URL("postgres"), name)
}

// NewDB creates a database on this server for one test.
func (s *Server) NewDB(t testing.TB) *DB {
	t.Helper()
	return newDB(t, s.URL("postgres"), s)
}

func createDatabase(ctx context.Context, adminURL, name string) error {
	return withConn(ctx, adminURL, func(c *pgx.Conn) error {
		if _, err := c.Exec(ctx, "CREATE DATABASE "+quote(name)); err != nil {
			return fmt.Errorf("flotest: create database: %w", err)
		}
		return nil
	})
}

func quote(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

// inDatabase points a connection string, URL or keywords, at another database.
func inDatabase(conn, db string) string {
	if u, err := url.Parse(conn); err == nil && (u.Scheme == "postgres" || u.Scheme == "postgresql") {
		u.Path = "/" + db
		q := u.Query()
		q.Del("dbname")
		u.RawQuery = q.Encode()
		return u.String()
	}
	return conn + " dbname='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(db) + "'"
}
