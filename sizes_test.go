package flo_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

// childEnv makes the test binary run a pipeline instead of tests, so that its memory can be measured
// apart from the servers': "source destination nats limit", the limit of the stream in bytes, and "streaming" behind them.
const childEnv = "FLO_TEST_CHILD"

// childMain runs a pipeline until standard input ends. It waits for each LSN that it reads, and answers
// with the peak of its resident memory in KiB.
func childMain(urls string) int {
	if err := runChild(urls); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func runChild(urls string) error {
	ctx := context.Background()
	url := strings.Fields(urls)
	s, err := postgres.New(url[1])
	if err != nil {
		return err
	}
	limit, err := strconv.ParseInt(url[3], 10, 64)
	if err != nil {
		return err
	}
	f, err := flo.New(flo.WithGroup("sizes"), flo.WithSource(url[0]), flo.WithNATSURL(url[2]), flo.WithStreamMaxBytes(limit), flo.WithSink(s),
		flo.WithStreaming(slices.Contains(url, "streaming")))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		err := f.Run(ctx)
		cancel()
		done <- err
	}()
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		lsn, err := decode.ParseLSN(in.Text())
		if err != nil {
			return err
		}
		if err := f.WaitFor(ctx, lsn); err != nil {
			return err
		}
		peak, err := peakMemory()
		if err != nil {
			return err
		}
		fmt.Println(peak)
	}
	cancel()
	return errors.Join(in.Err(), <-done)
}

// peakMemory of this process in KiB (proc(5), VmHWM).
func peakMemory() (int, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			return strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		}
	}
	return 0, fmt.Errorf("no VmHWM in /proc/self/status")
}

// measured is a pipeline in a process of its own.
type measured struct {
	t        *testing.T
	src, dst *flotest.DB
	nats     string
	limit    int64  // of the stream, in bytes
	words    string // behind it
	cmd      *exec.Cmd
	in       io.WriteCloser
	out      *bufio.Scanner
}

func newMeasured(t *testing.T, schema string, words ...string) *measured {
	if raceDetector {
		t.Skip("the race detector takes several times the memory, so that the peak says nothing")
	}
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("the peak of a process's memory is read from /proc, which this system doesn't have")
	}
	m := &measured{t: t, src: flotest.Postgres(t), dst: flotest.Postgres(t), words: strings.Join(words, " ")}
	m.src.Exec(t, schema)
	m.dst.Exec(t, schema)
	m.nats = flotest.NATS(t, embednats.WithListen("127.0.0.1:0")).URL()
	t.Cleanup(func() {
		if m.cmd == nil {
			return
		}
		m.in.Close()
		if err := m.cmd.Wait(); err != nil && !t.Failed() {
			t.Errorf("the pipeline's process: %v", err)
		}
	})
	m.start()
	return m
}

// start starts the pipeline's process.
func (m *measured) start() {
	m.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %d %s", childEnv, m.src.URL, m.dst.URL, m.nats, m.limit, m.words))
	cmd.Stderr = m.t.Output()
	var err error
	if m.in, err = cmd.StdinPipe(); err != nil {
		m.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	m.out = bufio.NewScanner(out)
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.cmd = cmd
}

// kill ends the pipeline's process by SIGKILL.
func (m *measured) kill() {
	m.t.Helper()
	if err := m.cmd.Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	m.cmd.Wait() // it was killed
	m.cmd = nil
}

// caughtUp waits until all is applied, and gives the process's peak of memory in MiB.
func (m *measured) caughtUp(t *testing.T) int {
	t.Helper()
	if _, err := fmt.Fprintln(m.in, m.src.QueryString(t, "SELECT pg_current_wal_flush_lsn()")); err != nil {
		t.Fatal(err)
	}
	if !m.out.Scan() {
		t.Fatalf("the pipeline's process ended: %v", m.out.Err())
	}
	kib, err := strconv.Atoi(m.out.Text())
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// memoryLimit is what a process may hold beyond the largest row, in MiB.
const memoryLimit = 300

func TestATransactionOfTwoMillionRowsPassesInFlatMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	m := newMeasured(t, `CREATE TABLE t (id bigint PRIMARY KEY, v int, filler text)`)
	m.caughtUp(t)
	m.largeTransaction(t, fmt.Sprintf(`INSERT INTO t SELECT i, i, repeat('x', 80) FROM generate_series(1, %d) i`, largeRows))
}

// The same, read before it commits, with savepoints of which every other one is rolled back.
func TestAStreamedTransactionOfTwoMillionRowsPassesInFlatMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	m := newMeasured(t, `CREATE TABLE t (id bigint PRIMARY KEY, v int, filler text)`, "streaming")
	m.src.Exec(t, `ALTER DATABASE "`+m.src.Name+`" SET logical_decoding_work_mem = '1MB'`)
	m.caughtUp(t)
	m.largeTransaction(t, fmt.Sprintf(`DO $$ BEGIN
		FOR n IN 0..399 LOOP
			BEGIN
				INSERT INTO t SELECT n * 10000 + i, i, repeat('x', 80) FROM generate_series(1, 2 * %d / 400) i;
				IF n %% 2 = 1 THEN
					RAISE 'no';
				END IF;
			EXCEPTION WHEN others THEN NULL;
			END;
		END LOOP;
	END $$`, largeRows))
}

const largeRows = 2_000_000

// largeTransaction runs one of largeRows.
func (m *measured) largeTransaction(t *testing.T, sql string) {
	t.Helper()
	began := time.Now()
	m.src.Exec(t, sql)
	committed := time.Now()
	peak := m.caughtUp(t)
	t.Logf("%d rows in one transaction: %v, %v of it behind the commit, peak %d MiB", largeRows,
		time.Since(began).Round(time.Second), time.Since(committed).Round(time.Second), peak)
	if peak > memoryLimit {
		t.Errorf("peak %d MiB, want at most %d", peak, memoryLimit)
	}
	const sum = `SELECT count(*) || ' ' || sum(v) FROM t`
	if s, d := m.src.QueryString(t, sum), m.dst.QueryString(t, sum); s != d {
		t.Errorf("source %s, destination %s", s, d)
	}
}

// A row of 64 MiB, and under FLO_BIG of 200 MiB.
func TestAHugeRowPassesInStreamAndCopy(t *testing.T) {
	size := sized(64<<20, 200<<20)
	m := newMeasured(t, `CREATE TABLE t (id bigint PRIMARY KEY, v text)`)
	m.src.Exec(t, `ALTER TABLE t ALTER v SET STORAGE EXTERNAL`)
	m.src.Exec(t, fmt.Sprintf(`INSERT INTO t SELECT 1, repeat(md5('a'), %d)`, size/32))
	copied := m.caughtUp(t)
	m.src.Exec(t, fmt.Sprintf(`INSERT INTO t SELECT 2, repeat(md5('b'), %d)`, size/32))
	streamed := m.caughtUp(t)
	t.Logf("a row of %d MiB: peak %d MiB copied, %d MiB then streamed", size>>20, copied, streamed)
	if peak := max(copied, streamed); peak > memoryLimit+sized(1, 2)*size>>20 { // a large one costs about three times its size in all
		t.Errorf("peak %d MiB, want at most %d beyond the row", peak, memoryLimit)
	}
	const sum = `SELECT string_agg(id || md5(v), ',' ORDER BY id) FROM t`
	if s, d := m.src.QueryString(t, sum), m.dst.QueryString(t, sum); s != d {
		t.Errorf("source %s, destination %s", s, d)
	}
}
