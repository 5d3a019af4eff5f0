package flotest

import (
	"fmt"
	"os"
	"os/exec"
)

// guard ends a server and removes its folder when the test process is gone, however it
// went: by SIGKILL, a test timeout, os.Exit. It is a shell that waits for the end of its
// standard input, a pipe whose only write end is in this process; the kernel closes it
// with the process. Unlike Linux's parent-death signal this is tied to no thread, works
// on every Unix, and survives restarts of the server, for it finds the server by the
// folder's postmaster.pid.
type guard struct {
	cmd  *exec.Cmd
	pipe *os.File
}

// guardScript takes the data folder and the folder to remove ("" for none). The pid is
// trusted only while its command line names the folder: a stale file may name a stranger.
const guardScript = `trap '' INT TERM HUP
cat >/dev/null
pid=$(head -n 1 "$1/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
  args=$(ps -ww -o args= -p "$pid" 2>/dev/null || tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null)
  case "$args" in *"$1"*)
    kill -QUIT "$pid" 2>/dev/null
    n=0
    while kill -0 "$pid" 2>/dev/null && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done
    kill -KILL "$pid" 2>/dev/null;;
  esac
fi
[ -z "$2" ] || rm -rf "$2"`

func startGuard(data, remove string) (*guard, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("flotest: guard: %w", err)
	}
	defer r.Close()
	cmd := exec.Command("/bin/sh", "-c", guardScript, "flotest-guard", data, remove)
	cmd.Stdin = r
	cmd.Dir = "/"
	cmd.SysProcAttr = account{}.attr()
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, fmt.Errorf("flotest: guard: %w", err)
	}
	return &guard{cmd, w}, nil
}

// release lets the guard do its work now and waits for it.
func (g *guard) release() error {
	g.pipe.Close()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("flotest: guard: %w", err)
	}
	return nil
}
