package flotest_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/flotest"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestServerStopStartKeepsPortAndData(t *testing.T) {
	ctx := t.Context()
	s := flotest.NewServer(t)
	db := s.NewDB(t)
	db.Exec(t, "CREATE TABLE x AS SELECT 1 AS a")
	port := s.Port()
	for _, mode := range []flotest.StopMode{flotest.Fast, flotest.Immediate} {
		took, err := s.Stop(ctx, mode)
		must(t, err)
		if took <= 0 || took > 30*time.Second {
			t.Errorf("stop mode %d took %s", mode, took)
		}
		if _, err := s.Stop(ctx, mode); !errors.Is(err, flotest.ErrStopped) {
			t.Errorf("second Stop: %v", err)
		}
		must(t, s.Start(ctx))
		if s.Port() != port {
			t.Errorf("port was %d, is %d", port, s.Port())
		}
	}
	must(t, s.Kill())
	must(t, s.Start(ctx))
	if !strings.Contains(s.Log(), "not properly shut down") {
		t.Error("Kill left a clean shutdown: ", s.Log())
	}
	db2 := s.URL(db.Name)
	conn, err := pgconn.Connect(ctx, db2)
	must(t, err)
	defer conn.Close(ctx)
	r, err := conn.Exec(ctx, "SELECT a FROM x").ReadAll()
	must(t, err)
	if got := string(r[0].Rows[0][0]); got != "1" {
		t.Errorf("a = %s", got)
	}
}

func TestSmartStopWaitsForSessions(t *testing.T) {
	s := flotest.NewServer(t)
	conn, err := pgconn.Connect(t.Context(), s.URL("postgres"))
	must(t, err)
	defer conn.Close(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Stop(ctx, flotest.Smart); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("smart stop with a session open: %v", err)
	}
	must(t, conn.Close(t.Context()))
	if _, err := s.Stop(t.Context(), flotest.Smart); err != nil && !errors.Is(err, flotest.ErrStopped) {
		t.Fatal(err)
	}
}

func TestSetSettingAndReload(t *testing.T) {
	s := flotest.NewServer(t, flotest.WithSetting("work_mem", "1MB"))
	db := s.NewDB(t)
	if got := db.QueryString(t, "SHOW work_mem"); got != "1MB" {
		t.Fatalf("WithSetting: work_mem %s", got)
	}
	must(t, s.SetSetting("work_mem", "2MB"))
	must(t, s.SetSetting("log_line_prefix", `it's \ here: `))
	must(t, s.Reload(t.Context()))
	conn := db.Conn(t)
	var mem, prefix string
	must(t, conn.QueryRow(t.Context(), "SELECT current_setting('work_mem'), current_setting('log_line_prefix')").Scan(&mem, &prefix))
	if mem != "2MB" || prefix != `it's \ here: ` {
		t.Fatalf("after Reload: work_mem %s, log_line_prefix %q", mem, prefix)
	}
}

func TestServerOptions(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "flo-test-data-") // reachable for the server's user
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	bin, err := flotest.FindBinaries()
	must(t, err)
	data := dir + "/d"
	must(t, os.Chmod(dir, 0o755))
	opts := []flotest.ServerOption{flotest.WithBinDir(bin), flotest.WithData(data), flotest.WithInitdbArgs("--data-checksums")}
	if os.Geteuid() != 0 {
		t.Log("as an ordinary user")
	}
	a, err := flotest.StartServer(t.Context(), opts...)
	must(t, err)
	defer a.Close()
	if a.DataDir() != data || a.BinDir() != bin {
		t.Errorf("DataDir %s, BinDir %s", a.DataDir(), a.BinDir())
	}
	db := a.NewDB(t)
	for name, want := range map[string]string{"data_checksums": "on", "fsync": "on", "wal_level": "logical",
		"port": strconv.Itoa(a.Port()), "listen_addresses": "127.0.0.1"} {
		if got := db.QueryString(t, "SELECT current_setting($1)", name); got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	_, err = a.CreateDatabase(t.Context(), `Odd "name'`)
	must(t, err)
	port := a.Port()
	must(t, a.Close())

	b, err := flotest.StartServer(t.Context(), flotest.WithData(data), flotest.WithPort(port))
	must(t, err)
	defer b.Close()
	if b.Port() != port {
		t.Errorf("WithPort(%d): %d", port, b.Port())
	}
	for _, url := range []string{b.URL(`Odd "name'`), b.SocketURL(`Odd "name'`)} {
		conn, err := pgconn.Connect(t.Context(), url)
		if err != nil {
			t.Fatalf("%s: %v", url, err)
		}
		conn.Close(t.Context())
	}
	must(t, b.DropDatabase(t.Context(), `Odd "name'`))
	must(t, b.Close())
	if _, err := os.Stat(data + "/PG_VERSION"); err != nil {
		t.Errorf("Close removed the caller's folder: %v", err)
	}
}

func TestBadSettingShowsTheLog(t *testing.T) {
	_, err := flotest.StartServer(t.Context(), flotest.WithSetting("no_such_setting", "1"))
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Fatalf("error doesn't show the server's log: %v", err)
	}
}

func TestTakenPortIsAnError(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	s, err := flotest.StartServer(t.Context(), flotest.WithPort(l.Addr().(*net.TCPAddr).Port))
	if err == nil {
		s.Close()
		t.Fatal("no error")
	}
}

func TestStoppedSharedServerComesBack(t *testing.T) {
	flotest.RequireOwnServer(t)
	db := flotest.Postgres(t)
	db.Exec(t, "SELECT 1")
	_, err := db.Server.Stop(t.Context(), flotest.Immediate)
	must(t, err)
	other := flotest.Postgres(t)
	if got := other.QueryString(t, "SELECT 1"); got != "1" {
		t.Error(got)
	}
	db.Exec(t, "SELECT 1") // on a new session
}

func TestExecInCleanup(t *testing.T) {
	db := flotest.Postgres(t)
	t.Cleanup(func() { db.Exec(t, "SELECT 1") })
}

func TestPgbench(t *testing.T) {
	db := flotest.Postgres(t)
	for _, args := range [][]string{{"-i", "-q"}, {"-n", "-t", "5", "-c", "2"}} {
		if _, err := db.Server.RunPgbench(t.Context(), db.Name, args...); err != nil {
			t.Fatal(err)
		}
	}
	if got := db.QueryString(t, "SELECT count(*) FROM pgbench_history"); got != "10" {
		t.Errorf("%s rows in the history", got)
	}
}
