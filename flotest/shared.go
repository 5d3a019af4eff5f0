// Package flotest gives tests a real PostgreSQL and a real JetStream, made on the spot
// and thrown away afterwards: for flo's tests and for those of its users.
//
//	func TestMain(m *testing.M) { os.Exit(flotest.Main(m)) }
//
//	func TestMine(t *testing.T) {
//		db := flotest.Postgres(t) // a fresh database; the server is shared by the binary
//		nc := flotest.NATSConn(t) // a server of its own
//		…
//	}
//
// The PostgreSQL server runs from installed binaries (FindBinaries), as another user if
// the tests run as root, and ends with the test process, even if that is killed. With
// FLO_TEST_POSTGRES_URL set, databases are made on that server instead.
package flotest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// EnvURL names the environment variable with the connection string of a server to use
// instead of a throwaway one. Its role must be a superuser, wal_level must be logical.
const EnvURL = "FLO_TEST_POSTGRES_URL"

// shared is the one server of this test binary: tests have no other place to meet.
var shared sharedServer

type sharedServer struct {
	mu     sync.Mutex
	server *Server
	err    error // of the first attempt: later tests needn't wait for the same failure
}

func (s *sharedServer) get(ctx context.Context) (*Server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil && s.err == nil {
		s.server, s.err = StartServer(ctx, testServerOptions()...)
	}
	if s.err == nil && !s.server.up() {
		// A test stopped it: that must not fail those that follow.
		return s.server, s.server.Start(ctx)
	}
	return s.server, s.err
}

func (s *sharedServer) stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server == nil {
		return nil
	}
	err := s.server.Close()
	s.server = nil
	return err
}

// Postgres returns a fresh database for this test on the test binary's shared server,
// which is started when first asked for, with WithOddSettings and fsync off. The
// database, its slots and sessions go when the test ends. Without PostgreSQL binaries
// the test fails with ErrNoPostgres's advice.
func Postgres(t testing.TB) *DB {
	t.Helper()
	if conn := os.Getenv(EnvURL); conn != "" {
		return newDB(t, conn, nil)
	}
	// Not the test's context: the server outlives it.
	s, err := shared.get(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return newDB(t, s.URL("postgres"), s)
}

// databasePrefix begins the name of every test's database.
const databasePrefix = "flotest_"

// dropTimeout bounds the dropping of a test's database.
const dropTimeout = 30 * time.Second

func newDB(t testing.TB, adminURL string, s *Server) *DB {
	t.Helper()
	name := databasePrefix + strings.ToLower(rand.Text()[:12])
	if err := createDatabase(t.Context(), adminURL, name); err != nil {
		t.Fatal(err)
	}
	d := &DB{logFrom: s.logSize(), URL: inDatabase(adminURL, name), Name: name, Server: s, adminURL: adminURL}
	t.Cleanup(func() { d.cleanup(t) })
	return d
}

func (d *DB) cleanup(t testing.TB) {
	if t.Failed() && d.Server != nil {
		t.Logf("the server's log since the test began:\n%s", logOf(d.Name, d.Server.logSince(d.logFrom)))
	}
	ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
	defer cancel()
	d.mu.Lock()
	if d.conn != nil {
		d.conn.Close(ctx) // dropped by force anyway
	}
	d.mu.Unlock()
	if d.Server != nil && !d.Server.up() {
		return // stopped by the test: the data goes with the server
	}
	if err := dropDatabase(ctx, d.adminURL, d.Name); err != nil {
		t.Error(err)
	}
}

// RequireOwnServer skips a test that has to stop, kill or configure servers if the tests
// run against a given one (FLO_TEST_POSTGRES_URL) and there are no binaries; without a
// given one, missing binaries fail it.
func RequireOwnServer(t testing.TB) {
	t.Helper()
	_, err := FindBinaries()
	switch {
	case err == nil:
	case os.Getenv(EnvURL) != "":
		t.Skipf("this test needs a server of its own besides $%s: %v", EnvURL, err)
	default:
		t.Fatal(err)
	}
}

// MainOption changes what Main does.
type MainOption func(*mainConfig)

type mainConfig struct {
	leaks    bool
	leakOpts []goleak.Option
}

// CheckLeaks makes Main look for goroutines that outlived the tests.
func CheckLeaks(opts ...goleak.Option) MainOption {
	return func(c *mainConfig) { c.leaks, c.leakOpts = true, opts }
}

// Main runs the tests and then stops the shared server; it returns the exit code:
//
//	func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }
//
// Without Main the shared server still ends with the process, a moment later.
func Main(m *testing.M, opts ...MainOption) int {
	var cfg mainConfig
	for _, o := range opts {
		o(&cfg)
	}
	code := m.Run()
	err := errors.Join(shared.stop(), templates.drop())
	if err == nil && code == 0 && cfg.leaks {
		err = goleak.Find(cfg.leakOpts...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return max(code, 1)
	}
	return code
}

// LeakOptions leave out flotest's own goroutines, one for each running server, in a leak
// check inside a test: goleak.VerifyNone(t, flotest.LeakOptions()...).
func LeakOptions() []goleak.Option {
	return []goleak.Option{goleak.IgnoreAnyFunction("github.com/pgflo/flo/flotest.(*process).reap")}
}
