package flotest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Server is a PostgreSQL server of this process: made by StartServer or NewServer,
// listening on 127.0.0.1 and on a socket in a folder of its own, ended with the process
// at the latest. Its methods may be called from several goroutines, those that start and
// stop it one after the other.
type Server struct {
	binDir   string
	base     string // holds log and socket, and data unless the caller gave that
	data     string
	keepData bool
	password string
	acc      account
	guard    *guard
	port     int

	life sync.Mutex // held over Start, Stop, Kill and Close

	mu       sync.Mutex // guards what follows
	settings map[string]string
	proc     *process // nil when stopped
	closed   bool
}

// process is one postmaster.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has been waited for
}

// reap waits for the postmaster's end. It lives as long as the server runs, and has a
// name so that leak checks can leave it out (see LeakOptions).
func (p *process) reap() {
	p.cmd.Wait() // how it ended is in its log
	close(p.exited)
}

func (p *process) gone() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// startTimeout bounds the wait for a server to accept connections when ctx has no
// deadline; a crash recovery is part of it.
const startTimeout = 2 * time.Minute

// portTries bounds how often another free port is tried: between finding one and
// listening on it, somebody else may take it.
const portTries = 5

// StartServer makes a cluster and starts a server on it. Without binaries the error
// wraps ErrNoPostgres. Close ends it.
func StartServer(ctx context.Context, opts ...ServerOption) (*Server, error) {
	cfg := serverDefaults()
	for _, o := range opts {
		o(&cfg)
	}
	bin := cfg.binDir
	if bin == "" {
		var err error
		if bin, err = FindBinaries(); err != nil {
			return nil, err
		}
	}
	s := &Server{binDir: bin, acc: serverAccount(), settings: cfg.settings, port: cfg.port}
	if err := s.prepare(ctx, cfg); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	var err error
	for range portTries {
		if cfg.port == 0 {
			if s.port, err = freePort(); err != nil {
				break
			}
		}
		var exit *exitError
		if err = s.Start(ctx); err == nil || !errors.As(err, &exit) || cfg.port != 0 {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// NewServer starts a server for one test, which ends with it. It has WithOddSettings and
// fsync off unless told otherwise. It fails the test if there are no binaries, and skips
// it if the tests run against a given server (FLO_TEST_POSTGRES_URL) besides.
func NewServer(t testing.TB, opts ...ServerOption) *Server {
	t.Helper()
	RequireOwnServer(t)
	s, err := StartServer(t.Context(), append(testServerOptions(), opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the server on port %d:\n%s", s.port, s.Log())
		}
		if err := s.Close(); err != nil {
			t.Errorf("close server: %v", err)
		}
	})
	return s
}

func testServerOptions() []ServerOption {
	return []ServerOption{WithOddSettings(), WithSetting("fsync", "off")}
}

// prepare makes the folders, the cluster and the guard.
func (s *Server) prepare(ctx context.Context, cfg serverConfig) (err error) {
	if s.base, err = s.acc.tempFolder("flo-pg-"); err != nil {
		return err
	}
	s.data = filepath.Join(s.base, "data")
	if cfg.data != "" {
		s.keepData = true
		if s.data, err = filepath.Abs(cfg.data); err != nil {
			return fmt.Errorf("flotest: data folder: %w", err)
		}
		if !s.acc.canReach(filepath.Dir(s.data)) {
			return fmt.Errorf("flotest: data folder %s: %s can't pass through the folders above it: choose another place", s.data, s.acc)
		}
	}
	if s.guard, err = startGuard(s.data, s.base); err != nil {
		return err
	}
	if err := s.ensureCluster(ctx, cfg.initdbArgs); err != nil {
		return err
	}
	pw, err := os.ReadFile(filepath.Join(s.data, passwordFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("flotest: %w", err)
	}
	s.password = string(pw) // none in a foreign cluster: then it must trust
	return s.includeSettings()
}

func (s *Server) ensureCluster(ctx context.Context, args []string) error {
	entries, err := os.ReadDir(s.data)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("flotest: data folder: %w", err)
	}
	if len(entries) == 0 {
		return templates.copyTo(ctx, s.acc, s.binDir, s.data, args)
	}
	if err := os.Chmod(s.data, 0o700); err != nil { // PostgreSQL insists on it
		return fmt.Errorf("flotest: data folder: %w", err)
	}
	return ownAll(s.acc, s.data)
}

// includeSettings adds our settings file to postgresql.conf, once.
func (s *Server) includeSettings() error {
	const line = "include_if_exists = '" + settingsFile + "'\n"
	conf := filepath.Join(s.data, "postgresql.conf")
	old, err := os.ReadFile(conf)
	if err != nil {
		return fmt.Errorf("flotest: %s is no cluster: %w", s.data, err)
	}
	if strings.HasSuffix(string(old), line) {
		return nil
	}
	return writeFor(s.acc, conf, string(old)+"\n"+line)
}

// writeSettings writes the settings file. The caller holds mu.
func (s *Server) writeSettings() error {
	all := maps.Clone(s.settings)
	all["listen_addresses"] = "127.0.0.1"
	all["port"] = strconv.Itoa(s.port)
	all["unix_socket_directories"] = s.socketDir()
	var b strings.Builder
	quote := strings.NewReplacer(`'`, `''`, `\`, `\\`)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(&b, "%s = '%s'\n", name, quote.Replace(all[name]))
	}
	return writeFor(s.acc, filepath.Join(s.data, settingsFile), b.String())
}

// socketDir is "" where the path would not fit into a socket address (sun_path holds
// 104 bytes on macOS, 108 on Linux).
func (s *Server) socketDir() string {
	if len(s.base)+len("/.s.PGSQL.65535") > 103 {
		return ""
	}
	return s.base
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("flotest: free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// exitError is a postmaster that ended instead of starting.
type exitError struct {
	state *os.ProcessState
	log   string
}

func (e *exitError) Error() string {
	return fmt.Sprintf("flotest: the server ended at its start: %s; its log ends:\n%s", e.state, e.log)
}

// URL returns the address of a database of this server, with user and password.
func (s *Server) URL(db string) string {
	u := url.URL{Scheme: "postgres", User: s.user(), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path: "/" + db, RawQuery: "sslmode=disable"}
	return u.String()
}

// SocketURL is URL over the Unix socket; "" if the temporary folder's path is too long
// for one.
func (s *Server) SocketURL(db string) string {
	if s.socketDir() == "" {
		return ""
	}
	q := url.Values{"host": {s.base}, "port": {strconv.Itoa(s.port)}, "sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: s.user(), Path: "/" + db, RawQuery: q.Encode()}
	return u.String()
}

func (s *Server) user() *url.Userinfo {
	if s.password == "" {
		return url.User(superuser)
	}
	return url.UserPassword(superuser, s.password)
}

// Port returns the TCP port on 127.0.0.1. It stays the same over Stop and Start.
func (s *Server) Port() int { return s.port }

// DataDir returns the data folder.
func (s *Server) DataDir() string { return s.data }

// BinDir returns the folder of the binaries.
func (s *Server) BinDir() string { return s.binDir }

// SetSetting changes a server parameter in the configuration file. It takes effect with
// Reload, or with Stop and Start for those that need it.
func (s *Server) SetSetting(name, value string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settings[name] = value
	return s.writeSettings()
}

// up reports whether the postmaster runs.
func (s *Server) up() bool {
	p := s.running()
	return p != nil && !p.gone()
}

// signal goes by os.Process, never by a bare pid, which might be another process's by now.
func (s *Server) signal(sig syscall.Signal) error {
	p := s.running()
	if p == nil {
		return ErrStopped
	}
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("flotest: signal the server: %w", err)
	}
	return nil
}
