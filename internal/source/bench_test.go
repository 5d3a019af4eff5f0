//go:build unix

package source

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pgflo/flo/flotest"
)

// BenchmarkBacklog reads a backlog of transactions of one row; it shows what lazy reading is worth, and
// what the reader itself costs (cpu, of this process).
func BenchmarkBacklog(b *testing.B) {
	const transactions = 100_000
	db := flotest.Postgres(b)
	db.Exec(b, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(b, db.URL)
	p, point := publish(b, c, "t")
	insertMany(b, db, 1, transactions)
	for _, lazy := range []bool{false, true} {
		b.Run(fmt.Sprintf("lazy=%v", lazy), func(b *testing.B) {
			for b.Loop() {
				s := start(b, b.Context(), c, p, point)
				s.SetLazy(lazy)
				walsender := db.QueryString(b, "SELECT active_pid::text FROM pg_replication_slots WHERE slot_name = $1", slotName(c))
				before := cpu(b)
				for commits := 0; commits < transactions; {
					e, err := s.Next(time.Second)
					must(b, err)
					if e.Kind == Frame && e.Data[0] == 'C' {
						commits++
					}
				}
				b.ReportMetric((cpu(b) - before).Seconds(), "cpu-s/op")
				b.ReportMetric(cpuOf(walsender).Seconds(), "walsender-cpu-s/op") // Linux
				b.ReportMetric(float64(s.paced.reads), "reads/op")
				must(b, s.Close(b.Context()))
				eventually(b, "the slot to be free", nil, func() bool {
					return db.QueryString(b, "SELECT active FROM pg_replication_slots WHERE slot_name = $1", slotName(c)) == "f"
				})
			}
		})
	}
}

// cpuOf is the CPU time of another process so far; 0: unknown.
// https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
func cpuOf(pid string) time.Duration {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return 0
	}
	var ticks int64
	for _, field := range strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[11:13] {
		n, _ := strconv.ParseInt(field, 10, 64)
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100 // USER_HZ
}

// cpu of this process so far.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var r syscall.Rusage
	must(t, syscall.Getrusage(syscall.RUSAGE_SELF, &r))
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
