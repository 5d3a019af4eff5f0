package state

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// thisProcess describes this process so that others on the machine can tell whether it is alive.
func thisProcess() Process {
	host, _ := os.Hostname()
	p := Process{Host: host, PID: os.Getpid(), Space: processSpace()}
	p.Start, _ = startOf(p.PID)
	return p
}

// processSpace names the boot and the PID namespace: only within both do PIDs mean the same.
func processSpace() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(boot)) + " " + ns
}

// dead reports whether the process is known to have ended: it counted in this very space, and its PID
// is free or somebody else's now.
func (p Process) dead() bool {
	if p.Space == "" || p.Start == "" || p.Space != processSpace() {
		return false
	}
	start, err := startOf(p.PID)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return true
	}
	return err == nil && start != p.Start
}

// startOf gives when a process started, field 22 of /proc/pid/stat (proc(5)), in clock ticks since the
// boot; a zombie has ended.
func startOf(pid int) (string, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	// The second field is the command's name in parentheses, which may hold anything.
	rest := string(b)
	if i := strings.LastIndexByte(rest, ')'); i >= 0 {
		rest = rest[i+1:]
	}
	fields := strings.Fields(rest)
	if len(fields) < 20 {
		return "", errors.New("state: /proc/pid/stat is not as expected")
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return "", os.ErrNotExist
	}
	return fields[19], nil
}
