package flo_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/flotest"
)

// bigEnv makes some tests take their real size, and many minutes: FLO_BIG=1 go test -timeout 2h -run … -v .
const bigEnv = "FLO_BIG"

// sized gives a test's size: a small one unless bigEnv is set.
func sized(small, big int) int {
	if os.Getenv(bigEnv) != "" {
		return big
	}
	return small
}

// longTest skips a test that takes long whatever its size.
func longTest(t *testing.T) {
	t.Helper()
	if testing.Short() && os.Getenv(bigEnv) == "" {
		t.Skip("takes half a minute")
	}
}

// peak of a running process's memory in MiB.
func (m *measured) peak() int {
	m.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.cmd.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(string(rest)), " kB"))
			if err != nil {
				m.t.Fatal(err)
			}
			return kib >> 10
		}
	}
	m.t.Fatal("no VmHWM")
	return 0
}

// same compares a sum over all rows of a table.
func (m *measured) same(table string) {
	m.t.Helper()
	sum := `SELECT count(*) || ' ' || coalesce(sum(hashtextextended(r::text, 0)), 0) FROM ` + table + ` r`
	if s, d := m.src.QueryString(m.t, sum), m.dst.QueryString(m.t, sum); s != d {
		m.t.Errorf("%s: source %s, destination %s", table, s, d)
	}
}

// One transaction of 400,000 rows, under FLO_BIG of 10 million, with savepoints rolled back and key changes, and the
// process with replicator and worker killed inside it again and again.
func TestAHugeTransactionPassesThoughItsProcessIsKilledInsideIt(t *testing.T) {
	longTest(t)
	rows := sized(400_000, 10_000_000)
	m := newMeasured(t, `CREATE TABLE t (id bigint PRIMARY KEY, v int)`)
	m.caughtUp(t)
	part := rows / 4
	m.src.Exec(t, `BEGIN`)
	for i := range 4 {
		m.src.Exec(t, fmt.Sprintf(`INSERT INTO t SELECT i, i %% 1000 FROM generate_series(%d, %d) i`, 1+i*part, (i+1)*part))
		m.src.Exec(t, fmt.Sprintf(`SAVEPOINT s; INSERT INTO t SELECT -i, 0 FROM generate_series(1, %d) i; UPDATE t SET v = -1 WHERE id BETWEEN %d AND %d; ROLLBACK TO s`, part/10, 1+i*part, i*part+part/10))
		m.src.Exec(t, fmt.Sprintf(`UPDATE t SET id = id + 100000000 WHERE id BETWEEN %d AND %d; DELETE FROM t WHERE id BETWEEN %d AND %d`, 1+i*part, i*part+part/100, (i+1)*part-part/100, (i+1)*part))
	}
	began := time.Now()
	m.src.Exec(t, `COMMIT`)
	peaks, inside := 0, 0
	kills := sized(3, 2)
	for i := range kills { // while the worker, and at first the replicator, is in the midst of it
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		eventually(t, ctx, "the transaction is being applied", func() bool {
			return m.dst.QueryString(t, `SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'RowExclusiveLock'`) != "0"
		})
		if err := pause(ctx, time.Duration(i+1)*time.Duration(sized(150, 4000))*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		cancel()
		peaks = max(peaks, m.peak())
		m.kill()
		whole := m.dst.QueryString(t, `SELECT count(*) FROM t`) != "0"
		m.start()
		if whole {
			break
		}
		inside++
	}
	t.Logf("%d of %d kills came inside", inside, kills)
	if inside == 0 {
		t.Error("no kill came inside the transaction")
	}
	peaks = max(peaks, m.caughtUp(t))
	t.Logf("a transaction of %d rows, killed inside: %v, peak %d MiB", rows, time.Since(began).Round(time.Second), peaks)
	if peaks > memoryLimit {
		t.Errorf("peak %d MiB, want at most %d", peaks, memoryLimit)
	}
	m.same("t")
}

// 200 tables, under FLO_BIG 2,000: copied, then changed in transactions over all of them.
func TestManyTablesPass(t *testing.T) {
	longTest(t)
	n := sized(200, 2000)
	var schema, rows, change strings.Builder
	for i := range n {
		fmt.Fprintf(&schema, "CREATE TABLE t%d (id int PRIMARY KEY, v text);", i)
		fmt.Fprintf(&rows, "INSERT INTO t%d SELECT i, 'copied' FROM generate_series(1, 10) i;", i)
		fmt.Fprintf(&change, "UPDATE t%[1]d SET v = 'changed' WHERE id %% 2 = 0; INSERT INTO t%[1]d VALUES (11, 'streamed');", i)
	}
	m := newMeasured(t, schema.String())
	m.kill() // at its start, which finds no rows
	m.src.Exec(t, rows.String())
	began := time.Now()
	m.start()
	m.caughtUp(t)
	copied := time.Since(began)
	began = time.Now()
	m.src.Exec(t, change.String())
	peak := m.caughtUp(t)
	t.Logf("%d tables: copied in %v, a transaction over all of them in %v, peak %d MiB", n, copied.Round(100*time.Millisecond), time.Since(began).Round(100*time.Millisecond), peak)
	if peak > memoryLimit {
		t.Errorf("peak %d MiB, want at most %d", peak, memoryLimit)
	}
	flotest.Equal(t, t.Context(), m.src.URL, m.dst.URL)
}

// As many columns as a table can have.
func TestATableOf1600ColumnsPasses(t *testing.T) {
	var columns, values strings.Builder
	for i := range 1599 {
		fmt.Fprintf(&columns, ", c%d int", i)
		fmt.Fprintf(&values, ", g + %d", i)
	}
	m := newMeasured(t, `CREATE TABLE t (id int PRIMARY KEY`+columns.String()+`)`)
	m.caughtUp(t)
	insert := func(from, to int) string {
		return fmt.Sprintf(`INSERT INTO t SELECT g%s FROM generate_series(%d, %d) g`, values.String(), from, to)
	}
	n := sized(500, 5000)
	m.kill()
	m.src.Exec(t, insert(1, n))
	m.start()
	began := time.Now()
	m.caughtUp(t)
	m.src.Exec(t, insert(n+1, 2*n)+`; UPDATE t SET c1500 = NULL WHERE id % 3 = 0; DELETE FROM t WHERE id % 10 = 0`)
	peak := m.caughtUp(t)
	t.Logf("%d rows of 1,600 columns: %v, peak %d MiB", 2*n, time.Since(began).Round(100*time.Millisecond), peak)
	if peak > memoryLimit {
		t.Errorf("peak %d MiB, want at most %d", peak, memoryLimit)
	}
	m.same("t")
}

// What the source has kept while flo was down is several times what the stream may hold.
func TestABacklogLargerThanTheStreamPasses(t *testing.T) {
	longTest(t)
	mib := sized(150, 4000)
	m := newMeasured(t, `CREATE TABLE t (id bigserial PRIMARY KEY, v text)`)
	m.caughtUp(t)
	m.kill()
	m.limit = int64(sized(32<<20, 256<<20))
	for range mib / 10 {
		m.src.Exec(t, `INSERT INTO t (v) SELECT repeat(md5(i::text), 32) FROM generate_series(1, 10000) i`)
	}
	m.src.Exec(t, `UPDATE t SET v = 'short' WHERE id % 100 = 0`)
	began := time.Now()
	m.start()
	peak := m.caughtUp(t)
	t.Logf("a backlog of %d MiB through a stream of %d MiB: %v, peak %d MiB", mib, m.limit>>20, time.Since(began).Round(time.Second), peak)
	if peak > memoryLimit {
		t.Errorf("peak %d MiB, want at most %d", peak, memoryLimit)
	}
	m.same("t")
}
