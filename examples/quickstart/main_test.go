package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// output gives a file to write to, and what was written.
func output(t *testing.T) (*os.File, func() string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, func() string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestDemonstrationFindsNoDifference(t *testing.T) {
	flotest.RequireOwnServer(t)
	out, text := output(t)
	var errs strings.Builder
	if code := run(t.Context(), []string{"-scale", "1", "-load", "1s"}, out, &errs); code != 0 {
		t.Fatalf("exit code %d\n%s\n%s", code, text(), errs.String())
	}
	if !strings.Contains(text(), "differences: 0\n") {
		t.Errorf("the summary is missing:\n%s", text())
	}
	if strings.Contains(text(), "\x1b") {
		t.Errorf("control characters outside a terminal:\n%q", text())
	}
}

func TestBetweenServersGoesOnWhereItStopped(t *testing.T) {
	source, target, nats := flotest.Postgres(t), flotest.Postgres(t), flotest.NATS(t, embednats.WithListen("127.0.0.1:0"))
	for _, db := range []*flotest.DB{source, target} {
		db.Exec(t, "CREATE TABLE items (id int PRIMARY KEY, name text)")
	}
	source.Exec(t, "INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 1000) i")
	args := []string{"-source", source.URL, "-target", target.URL, "-nats", nats.URL(), "-group", "shop", "-tables", "items"}
	for _, change := range []string{"UPDATE items SET name = upper(name) WHERE id <= 10", "DELETE FROM items WHERE id <= 5"} {
		source.Exec(t, change)
		ctx, cancel := context.WithCancel(t.Context())
		out, text := output(t)
		var errs strings.Builder
		code := make(chan int, 1)
		go func() { code <- run(ctx, args, out, &errs) }()
		end := source.QueryString(t, "SELECT pg_current_wal_flush_lsn()")
		waitFor(t, source.URL, nats.URL(), end)
		cancel()
		if c := <-code; c != 0 {
			t.Fatalf("exit code %d\n%s\n%s", c, text(), errs.String())
		}
		flotest.Equal(t, t.Context(), source.URL, target.URL, "items")
	}
	out, text := output(t)
	if code := run(t.Context(), append(args, "-drop"), out, io.Discard); code != 0 {
		t.Fatalf("-drop: exit code %d\n%s", code, text())
	}
	if n := source.QueryString(t, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'flo_shop'"); n != "0" {
		t.Errorf("-drop left the slot")
	}
}

// waitFor waits, as another process would, until the group has applied everything up to a position.
func waitFor(t *testing.T, source, nats, position string) {
	t.Helper()
	var lsn flo.LSN
	if err := lsn.Scan(position); err != nil {
		t.Fatal(err)
	}
	f, err := pipeline(settings{group: "shop"}, source, source, flo.WithNATSURL(nats))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := f.WaitFor(ctx, lsn); err != nil {
		t.Fatal(err)
	}
}

func TestInterruptRemovesWhatIsTemporary(t *testing.T) {
	flotest.RequireOwnServer(t)
	out, _ := output(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var errs strings.Builder
	if code := run(ctx, []string{"-scale", "1", "-load", "1h"}, out, &errs); code != exitInterrupted {
		t.Errorf("exit code %d, want %d: %s", code, exitInterrupted, errs.String())
	}
}

func TestMissingPostgreSQLIsOneClearError(t *testing.T) {
	t.Setenv(flotest.EnvBin, t.TempDir())
	out, text := output(t)
	var errs strings.Builder
	if code := run(t.Context(), nil, out, &errs); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	if lines := strings.Count(errs.String(), "\n"); lines != 1 || !strings.Contains(errs.String(), flotest.EnvBin) {
		t.Errorf("want one line that names the folder's variable, got:\n%s", errs.String())
	}
	if text() != "" {
		t.Errorf("output before the error: %q", text())
	}
}

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		args string
		want error
	}{
		{"", nil},
		{"-scale 0", errUsage},
		{"-load -1s", errUsage},
		{"-source a", errUsage},
		{"-source a -target b", errUsage},
		{"-source a -target b -nats c", nil},
		{"-drop", errUsage},
		{"stray", errUsage},
	} {
		_, err := parse(strings.Fields(c.args), io.Discard)
		if !errors.Is(err, c.want) {
			t.Errorf("%q: %v, want %v", c.args, err, c.want)
		}
	}
}

func TestMeter(t *testing.T) {
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m := meter{began: began}
	st := flo.Status{
		Replicator: flo.ReplicatorStatus{Tables: []flo.TableStatus{{Bytes: 999, Rows: 500, Ranges: 4, Done: 2}}},
		Workers:    []flo.WorkerStatus{{CopyRows: 250, CopyTables: 1}},
	}
	m.take(st, began.Add(time.Second))
	if m.fraction != 0.25 || !m.copied.IsZero() {
		t.Errorf("half read and half of that written: fraction %v, copied %v", m.fraction, m.copied)
	}
	st.Replicator.CopyDone = true
	st.Workers[0].CopyRows, st.Workers[0].CopiedSo = 1000, 1
	m.take(st, began.Add(2*time.Second))
	if m.fraction != 1 || m.copied.IsZero() {
		t.Errorf("copied: fraction %v, copied %v", m.fraction, m.copied)
	}
	for i := range 5 {
		commit := began.Add(time.Duration(10+i) * time.Second)
		st.Workers[0].CommitTime, st.Workers[0].AppliedAt = commit, commit.Add(time.Duration(i+1)*time.Millisecond)
		m.take(st, commit)
	}
	if p50, most := m.percentile(0.5), m.percentile(1); p50 != 3*time.Millisecond || most != 5*time.Millisecond {
		t.Errorf("lag p50 %s, max %s, want 3ms and 5ms", p50, most)
	}
	if rows, changes := m.rates(); rows <= 0 || changes != 0 {
		t.Errorf("rates %v rows, %v changes", rows, changes)
	}
	if s := thousands(1234567); s != "1,234,567" {
		t.Errorf("thousands: %s", s)
	}
}

func TestMissingTableAtTheTargetIsMendedByMakingIt(t *testing.T) {
	source, target, nats := flotest.Postgres(t), flotest.Postgres(t), flotest.NATS(t, embednats.WithListen("127.0.0.1:0"))
	source.Exec(t, "CREATE TABLE items (id int PRIMARY KEY); INSERT INTO items VALUES (1)")
	out, text := output(t)
	var errs strings.Builder
	args := []string{"-source", source.URL, "-target", target.URL, "-nats", nats.URL(), "-group", "shop"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if code := run(ctx, args, out, &errs); code != exitFailed || !strings.Contains(errs.String(), "pg_dump --schema-only") {
		t.Errorf("exit code %d\n%s\n%s", code, text(), errs.String())
	}
	target.Exec(t, "CREATE TABLE items (id int PRIMARY KEY)")
	ctx, cancel = context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() { code <- run(ctx, args, out, &errs) }()
	waitFor(t, source.URL, nats.URL(), source.QueryString(t, "SELECT pg_current_wal_flush_lsn()"))
	cancel()
	if c := <-code; c != 0 {
		t.Fatalf("exit code %d\n%s\n%s", c, text(), errs.String())
	}
	flotest.Equal(t, t.Context(), source.URL, target.URL, "items")
}
