//go:build unix

package faults

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

// group of every test: each has a NATS server and databases of its own, but slots are the server's,
// so the databases' name is added.
func groupOf(name string) string {
	if len(name) > 30 {
		name = name[len(name)-30:]
	}
	return "g_" + name
}

// rig is a source, a destination, a NATS server, and the children between them.
type rig struct {
	t       testing.TB
	ctx     context.Context // ends with the test's time, or when a child ends unasked
	fail    context.CancelCauseFunc
	group   string
	source  string // URLs
	dest    string
	nats    string
	exe     string // the children's binary
	members []*member
	began   time.Time
}

// logf says something with the time since the run began.
func (r *rig) logf(format string, args ...any) {
	r.t.Helper()
	r.t.Logf("%6.1f s: "+format, append([]any{time.Since(r.began).Seconds()}, args...)...)
}

// newRig makes the databases on the shared server, unless it is given URLs, and a NATS server in this process, unless the
// test brings one of its own later.
func newRig(t testing.TB, limit time.Duration, source, dest string) *rig {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	exe, err := os.Executable()
	must(t, err)
	r := &rig{t: t, source: source, dest: dest, exe: exe, began: time.Now()}
	r.ctx, r.fail = context.WithCancelCause(ctx)
	t.Cleanup(func() { r.fail(nil) })
	name := "faults"
	if source == "" {
		db := flotest.Postgres(t)
		r.source, name = db.URL, db.Name
	}
	if dest == "" {
		r.dest = flotest.Postgres(t).URL
	}
	r.group = groupOf(name)
	t.Cleanup(r.end)
	return r
}

// localNATS starts the NATS server in the test's process.
func (r *rig) localNATS() {
	r.t.Helper()
	r.nats = flotest.NATS(r.t, embednats.WithListen("127.0.0.1:0")).URL()
}

// end kills what still lives, and shows the logs of a test that failed.
func (r *rig) end() {
	for i := len(r.members) - 1; i >= 0; i-- {
		if m := r.members[i]; m.now != nil {
			m.now.kill()
		}
	}
	for _, m := range r.members {
		if strings.Contains(m.log.String(), "DATA RACE") {
			r.t.Errorf("%s: the race detector found something", m.cfg.Name)
		}
	}
	if !r.t.Failed() {
		return
	}
	if cause := context.Cause(r.ctx); cause != nil {
		r.logf("the run ended early: %v", cause)
	}
	for _, m := range r.members {
		r.logf("the end of %s's log:\n%s", m.cfg.Name, m.log)
	}
}

// add starts a child.
func (r *rig) add(role string, cfg childConfig) *member {
	r.t.Helper()
	cfg.Group = r.group
	if cfg.NATS == "" {
		cfg.NATS = r.nats
	}
	if cfg.Source == "" {
		cfg.Source = r.source
	}
	m := &member{role: role, exe: r.exe, cfg: cfg, fail: r.fail, log: &tail{}, phases: map[string]int{}}
	if *logs != "" {
		f, err := os.Create(filepath.Join(*logs, strings.ReplaceAll(r.t.Name(), "/", "_")+"_"+cfg.Name+".log"))
		must(r.t, err)
		r.t.Cleanup(func() { f.Close() })
		m.log.all = f
	}
	r.members = append(r.members, m)
	must(r.t, m.start())
	return m
}

func (r *rig) replicator(cfg childConfig) *member {
	r.t.Helper()
	cfg.Name = roleReplicator
	return r.add(roleReplicator, cfg)
}

func (r *rig) worker(cfg childConfig) *member {
	r.t.Helper()
	if cfg.Name == "" {
		cfg.Name = "default"
	}
	if cfg.Folder == "" && cfg.Destination == "" {
		cfg.Destination = r.dest
	}
	return r.add(roleWorker, cfg)
}

// natsProcess starts the NATS server as a child, which keeps its address when it is started again.
func (r *rig) natsProcess() *member { return r.natsProcessOf(childConfig{}) }

func (r *rig) natsProcessOf(cfg childConfig) *member {
	r.t.Helper()
	cfg.Name, cfg.Listen, cfg.Dir = roleNATS, "127.0.0.1:0", filepath.Join(r.t.TempDir(), "store")
	m := r.add(roleNATS, cfg)
	must(r.t, m.await(r.ctx, "NATS listens", func(s childStatus) bool { return s.Address != "" }))
	r.nats = m.process().last().Address
	m.cfg.Listen = r.nats[len("nats://"):]
	return m
}

// both runs SQL on the source and on the destination.
func (r *rig) both(sql string) {
	r.t.Helper()
	must(r.t, execute(r.ctx, r.source, sql))
	must(r.t, execute(r.ctx, r.dest, sql))
}

func execute(ctx context.Context, url, sql string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// query gives one value.
func query[T any](ctx context.Context, url, sql string, args ...any) (v T, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return v, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, sql, args...).Scan(&v)
	return v, err
}

func value[T any](r *rig, url, sql string, args ...any) T {
	r.t.Helper()
	v, err := query[T](r.ctx, url, sql, args...)
	must(r.t, err)
	return v
}

// catchUp waits until every worker has what the source has committed by now.
func (r *rig) catchUp() {
	r.t.Helper()
	f, err := flo.New(flo.WithGroup(r.group), flo.WithSource(r.source), flo.WithNATSURL(r.nats),
		flo.WithSink(sink.Func(func(context.Context, *sink.Batch) error { return errors.New("never run") })))
	must(r.t, err)
	lsn, err := decode.ParseLSN(value[string](r, r.source, `SELECT pg_current_wal_flush_lsn()::text`))
	must(r.t, err)
	began := time.Now()
	if err := f.WaitFor(r.ctx, lsn); err != nil {
		for _, m := range r.members {
			r.logf("%s: %+v", m.cfg.Name, m.process().last())
		}
		r.t.Fatal(err)
	}
	r.logf("caught up with %s in %s", lsn, time.Since(began).Round(time.Millisecond))
}

// equal compares all tables.
func (r *rig) equal() {
	r.t.Helper()
	report, err := flotest.Diff(r.ctx, r.source, r.dest)
	must(r.t, err)
	if !report.Equal() {
		r.t.Errorf("the destination differs from the source:\n%s", report)
		return
	}
	r.logf("%d rows of %d tables are equal on both sides", report.Rows(), len(report.Tables))
}

// streams waits until the copy is over for everybody.
func (r *rig) streams(members ...*member) {
	r.t.Helper()
	for _, m := range members {
		must(r.t, m.await(r.ctx, "it streams", func(s childStatus) bool {
			return s.Phase == flo.PhaseStreaming && (m.role != roleReplicator || s.CopyDone) && (m.role != roleWorker || s.Applied > 0)
		}))
	}
}

// stopAll ends the children in order, workers last, and wants each to end without an error.
func (r *rig) stopAll() {
	r.t.Helper()
	for _, m := range r.members {
		if m.role == roleNATS {
			continue
		}
		if err := m.process().stop(r.ctx); err != nil {
			r.t.Errorf("%s: stopping: %v", m.cfg.Name, err)
		}
	}
}

func (r *rig) logKills() (total int) {
	for _, m := range r.members {
		if m.kills > 0 {
			r.logf("%s: %d kills: %v", m.cfg.Name, m.kills, m.phases)
		}
		total += m.kills
	}
	return total
}
