package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// processTime is the CPU time of this process, user and system.
func processTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// serverTime is the CPU time of a PostgreSQL server, those of its processes that have ended included.
// https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
func serverTime(dataDir string) time.Duration {
	lines, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return 0
	}
	pid, _, _ := strings.Cut(string(lines), "\n")
	for {
		own, ticks := cpuTicks(pid, true), int64(0)
		stats, _ := filepath.Glob("/proc/[0-9]*/stat")
		for _, path := range stats {
			child := filepath.Base(filepath.Dir(path))
			if f := statFields(child); len(f) > 15 && f[1] == pid {
				ticks += cpuTicks(child, false)
			}
		}
		if cpuTicks(pid, true) == own { // otherwise one may have ended in between, and be counted nowhere
			return time.Duration(own+ticks) * time.Second / 100 // USER_HZ
		}
	}
}

// statFields gives the fields of /proc/<pid>/stat behind the name, the state being the first.
func statFields(pid string) []string {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return nil
	}
	return strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
}

// cpuTicks gives utime and stime, and those of children that were waited for.
func cpuTicks(pid string, children bool) (sum int64) {
	f := statFields(pid)
	if len(f) < 15 {
		return 0
	}
	end := 13
	if children {
		end = 15
	}
	for _, field := range f[11:end] {
		n, _ := strconv.ParseInt(field, 10, 64)
		sum += n
	}
	return sum
}

// resetPeak lets peakMemory begin anew.
// https://www.kernel.org/doc/html/latest/filesystems/proc.html (clear_refs)
func resetPeak() {
	// Where that isn't allowed the peak is that of the whole run.
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// peakMemory is the largest resident size since resetPeak, in bytes; 0 if unknown.
func peakMemory() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kb << 10
		}
	}
	return 0
}
