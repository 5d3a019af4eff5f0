//go:build unix

package flotest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgflo/flo/flotest"
)

// Each of these tests runs this test binary again as a child in another environment.

const envChild = "FLOTEST_CHILD"

func child(ctx context.Context, t *testing.T, run string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(ctx, exe, "-test.run=^"+run+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), append(env, envChild+"=1")...)
	return cmd
}

// TestChildServer is what TestServerGoesWithTheProcess runs.
func TestChildServer(t *testing.T) {
	if os.Getenv(envChild) == "" {
		t.Skip("only in a child process")
	}
	s := flotest.Postgres(t).Server
	fmt.Printf("\nserver %s\n", s.DataDir())
	os.Stdin.Read(make([]byte, 1)) // until killed
}

func TestServerGoesWithTheProcess(t *testing.T) {
	flotest.RequireOwnServer(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := child(ctx, t, "TestChildServer", flotest.EnvURL+"=")
	stdin, err := cmd.StdinPipe()
	must(t, err)
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var data string
	for sc := bufio.NewScanner(stdout); data == "" && sc.Scan(); {
		data, _ = strings.CutPrefix(sc.Text(), "server ")
		if !strings.HasPrefix(sc.Text(), "server ") {
			data = ""
		}
	}
	pidFile, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	must(t, err)
	line, _, _ := strings.Cut(string(pidFile), "\n")
	pid, err := strconv.Atoi(line)
	must(t, err)
	must(t, cmd.Process.Kill())
	cmd.Wait() // killed: an error by design

	gone := func() bool {
		_, err := os.Stat(filepath.Dir(data))
		return errors.Is(err, os.ErrNotExist) && !runs(pid)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !gone() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("the server (pid %d, %s) outlived its process", pid, data)
		}
	}
}

// runs is false for zombies too: whose child it was may not reap it.
func runs(pid int) bool {
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil {
		return !strings.Contains(string(b), ") Z ")
	}
	return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
}

func TestGivenServer(t *testing.T) {
	s := flotest.NewServer(t)
	for name, url := range map[string]string{
		"URL":      s.URL("postgres"),
		"keywords": fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres password=%s", filepath.Dir(s.DataDir()), s.Port(), password(t, s)),
	} {
		t.Run(name, func(t *testing.T) {
			out, err := child(t.Context(), t, "TestQueryGivesText", flotest.EnvURL+"="+url).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS") {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
	out, err := child(t.Context(), t, "TestBadSettingShowsTheLog|TestSetSettingAndReload",
		flotest.EnvURL+"="+s.URL("postgres"), flotest.EnvBin+"=/nowhere").CombinedOutput()
	if !strings.Contains(string(out), "SKIP: TestSetSettingAndReload") || !strings.Contains(string(out), "needs a server of its own") {
		t.Errorf("without binaries NewServer didn't skip: %v\n%s", err, out)
	}
}

func password(t *testing.T, s *flotest.Server) string {
	b, err := os.ReadFile(filepath.Join(s.DataDir(), "flotest.password"))
	must(t, err)
	return string(b)
}

func TestMissingBinariesFailTheTest(t *testing.T) {
	out, err := child(t.Context(), t, "TestQueryGivesText", flotest.EnvURL+"=", flotest.EnvBin+"=/nowhere").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--- FAIL: TestQueryGivesText") || !strings.Contains(string(out), "$FLO_TEST_POSTGRES_BIN is /nowhere") {
		t.Errorf("%v\n%s", err, out)
	}
}

// A process that runs as root often has a TMPDIR closed to the server's user.
func TestClosedTempFolderIsPassedBy(t *testing.T) {
	closed := t.TempDir()
	must(t, os.Chmod(closed, 0o700))
	out, err := child(t.Context(), t, "TestQueryGivesText", flotest.EnvURL+"=", "TMPDIR="+closed).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}
