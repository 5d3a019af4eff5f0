//go:build flocrash && unix

package crashpoint

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Enabled tells whether points do anything in this build.
const Enabled = true

// armed is what the environment asks for; a build for tests may keep it for the process.
var armed = sync.OnceValue(func() (a arming) {
	parts := strings.Split(os.Getenv(Env), ":")
	if len(parts) < 2 {
		return a
	}
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || n < 1 {
		return a
	}
	a.point, a.left = Point(parts[0]), new(atomic.Int64)
	a.left.Store(n)
	if a.signal = syscall.SIGKILL; len(parts) > 2 && parts[2] == "stop" {
		a.signal = syscall.SIGSTOP
	}
	return a
})

type arming struct {
	point  Point
	left   *atomic.Int64
	signal syscall.Signal
}

// Reached ends or pauses the process, if the environment has asked for it here and now.
func Reached(p Point) {
	a := armed()
	if a.point != p || a.left.Add(-1) != 0 {
		return
	}
	_ = syscall.Kill(os.Getpid(), a.signal) // of itself: it can't be refused
	if a.signal == syscall.SIGKILL {
		select {} // nothing of what comes next
	}
}
