package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// bouncer runs PgBouncer in front of a database, and gives the URL by which it is reached.
func bouncer(t *testing.T, db *flotest.DB, mode string) string {
	t.Helper()
	bin, err := exec.LookPath("pgbouncer")
	if err != nil {
		t.Skip("PgBouncer is not installed, so nothing is known here about poolers")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	dir := t.TempDir()
	file := filepath.Join(dir, "pgbouncer.ini")
	conf := fmt.Sprintf(`[databases]
%[1]s = host=127.0.0.1 port=%[2]s user=%[3]s password='%[4]s'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %[5]d
auth_type = any
pool_mode = %[6]s
unix_socket_dir =
logfile = /dev/null
`, db.Name, u.Port(), u.User.Username(), password, port, mode)
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	// It refuses to run as root.
	args := []string{"-q", file}
	if os.Geteuid() == 0 {
		args = []string{"-q", "-u", "nobody", file}
		for d := dir; d != filepath.Dir(os.TempDir()) && len(d) > 1; d = filepath.Dir(d) {
			if d != os.TempDir() {
				_ = os.Chmod(d, 0o755)
			}
		}
	}
	cmd := exec.Command(bin, args...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-exited })
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	for began := time.Now(); ; {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			break
		}
		select {
		case <-exited:
			t.Fatalf("PgBouncer ended: %s", out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(began) > 20*time.Second {
			t.Fatal("PgBouncer is not ready")
		}
	}
	u.Host = addr
	return u.String()
}

func TestAPoolerThatSharesSessionsIsRefusedBeforeAnythingIsSet(t *testing.T) {
	for _, mode := range []string{"transaction", "statement"} {
		t.Run(mode, func(t *testing.T) {
			db := flotest.Postgres(t)
			pooled := bouncer(t, db, mode)
			s, err := postgres.New(pooled, postgres.WithReplicaRole())
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close(t.Context())
			for range 3 {
				_, err = s.Open(t.Context(), sink.Start{Group: "g", Worker: "w", Incarnation: "i", Epoch: 1})
				if !errors.Is(err, postgres.ErrPooler) || !sink.IsPermanent(err) || !strings.Contains(err.Error(), "pool_mode = session") {
					t.Fatalf("Open: %v", err)
				}
			}
			// The pooler's sessions, which others get, are as they were.
			cfg, err := pgx.ParseConfig(pooled)
			if err != nil {
				t.Fatal(err)
			}
			cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
			conn, err := pgx.ConnectConfig(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())
			var role, path string
			if err := conn.QueryRow(t.Context(), `SELECT current_setting('session_replication_role'), current_setting('search_path')`).Scan(&role, &path); err != nil {
				t.Fatal(err)
			}
			if role != "origin" || path == "pg_catalog" {
				t.Errorf("the pooled session has session_replication_role %q and search_path %q", role, path)
			}
		})
	}
}

func TestAPoolerThatPoolsSessionsWorks(t *testing.T) {
	db := flotest.Postgres(t)
	s, err := postgres.New(bouncer(t, db, "session"))
	if err != nil {
		t.Fatal(err)
	}
	st := sink.Start{Group: "g", Worker: "w", Incarnation: "i", Epoch: 1}
	for range 2 {
		cp, err := s.Open(t.Context(), st)
		if err != nil {
			t.Fatal(err)
		}
		cp.Incarnation, cp.Seq = "i", cp.Seq+1
		if err := s.Write(t.Context(), &sink.Batch{Checkpoint: cp, Epoch: st.Epoch}); err != nil {
			t.Fatal(err)
		}
	}
	if got := db.QueryString(t, `SELECT (checkpoint::json)->>'seq' FROM flo.checkpoints`); got != "2" {
		t.Errorf("the checkpoint is at %s", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
}
