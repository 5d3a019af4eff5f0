//go:build unix

package faults

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/crashpoint"
	"github.com/pgflo/flo/sink"
)

// lane is what runs, one after the other, share: the servers of source and destination.
type lane struct {
	source, dest *flotest.Server
	exe          string          // the children's binary, with crash points
	ctx          context.Context // ends when no more runs are wanted
}

func newLane(t testing.TB, ctx context.Context) *lane {
	t.Helper()
	return &lane{
		source: flotest.NewServer(t, flotest.WithSetting("wal_sender_timeout", "3s")),
		dest:   flotest.NewServer(t),
		exe:    childBinary(t),
		ctx:    ctx,
	}
}

// child is this package's test binary, built with crash points when a test first wants it.
var child struct {
	mu  sync.Mutex
	exe string
	err error
}

// childBinary gives it; a binary that has crash points serves itself.
func childBinary(t testing.TB) string {
	t.Helper()
	if crashpoint.Enabled {
		exe, err := os.Executable()
		must(t, err)
		return exe
	}
	child.mu.Lock()
	defer child.mu.Unlock()
	if child.exe == "" {
		dir, err := os.MkdirTemp("", "flo-faults-")
		must(t, err)
		child.exe = filepath.Join(dir, "child.test")
		child.err = buildChild(child.exe)
	}
	must(t, child.err)
	return child.exe
}

func buildChild(exe string) error {
	args := []string{"test", "-c", "-tags", "flocrash", "-o", exe}
	if underRace {
		args = append(args, "-race")
	}
	if out, err := exec.Command("go", append(args, ".")...).CombinedOutput(); err != nil {
		return fmt.Errorf("building the children with crash points: %w\n%s", err, out)
	}
	return nil
}

// builtChild gives what there is to remove at the end, "" if nothing.
func builtChild() string {
	child.mu.Lock()
	defer child.mu.Unlock()
	return child.exe
}

// tally is what a run did.
type tally struct {
	Kills, Cuts, Restarts int
	Rows                  int64
	Changes               int64
	Streamed, Schema      int64  // transactions that were streamed before their end, as far as the source still counts them; schema changes
	Reason                string // the first failure
}

// randomRun is a plan being carried out.
type randomRun struct {
	*rig
	lane    *lane
	plan    *plan
	load    *load
	replica *member // the replicator
	nats    *member
	workers []*member
	links   []*link
	backup  string // of NATS's store
	holds   sync.WaitGroup
	tally   tally
	urls    map[string]string // of the destinations, by worker
}

// runLimit bounds a run on a busy machine; a usual one takes some seconds.
const runLimit = 4 * time.Minute

// run carries a plan out, and compares. done gets what it did, also where it fails.
func (l *lane) run(t testing.TB, p *plan, done *tally) {
	t.Helper()
	source := l.source.NewDB(t)
	noted := &firstFailure{TB: t}
	t = noted
	var r *randomRun
	t.Cleanup(func() { // the last one: nobody counts any more
		if r == nil {
			return
		}
		if r.load != nil {
			r.tally.Changes, r.tally.Schema = r.load.commits.Load(), r.load.altered.Load()
		}
		*done = r.tally
		done.Reason = noted.reason(context.Cause(r.ctx))
	})
	r = &randomRun{rig: newRig(t, runLimit, source.URL, l.dest.NewDB(t).URL), lane: l, plan: p, urls: map[string]string{}}
	r.group, r.rig.exe = groupOf(source.Name), l.exe
	t.Cleanup(r.holds.Wait)
	r.logf("%s", p)
	r.start()
	if o := r.pipeline(); o != nil {
		defer func() {
			if !t.Failed() {
				o.provesHistoryIn(r.rig, r.folder(), l.dest.NewDB(t).URL, func(url string) { must(t, execute(r.ctx, url, mixedSchema+moreSchema)) })
			}
		}()
	}
	for i, f := range p.faults {
		if r.ctx.Err() != nil {
			t.Fatalf("the run ended before fault %d: %v", i+1, context.Cause(r.ctx))
		}
		r.meet(i, f)
	}
	r.finish()
}

// start makes databases, NATS and links.
func (r *randomRun) start() {
	r.t.Helper()
	r.nats = r.natsProcessOf(r.plan.nats)
	r.urls["default"] = r.dest
	for _, w := range r.plan.workers {
		if w.Name == "second" {
			r.urls[w.Name] = r.lane.dest.NewDB(r.t).URL
		}
	}
	must(r.t, execute(r.ctx, r.source, mixedSchema+moreSchema))
	if r.plan.streaming {
		must(r.t, streamEarly(r.ctx, r.source))
	}
	if !r.plan.bare {
		for _, url := range r.urls {
			must(r.t, execute(r.ctx, url, mixedSchema+moreSchema))
		}
	}
	if n := r.plan.rows; n > 0 {
		must(r.t, execute(r.ctx, r.source, fmt.Sprintf(`
			INSERT INTO append_log (writer, n, what) SELECT -1, i, repeat('before ', 1 + i %% 30) FROM generate_series(1, %[1]d) i;
			INSERT INTO "Mixed Case" (id, "Wide Text", note) SELECT i, repeat(md5(i::text), 200), 'before' FROM generate_series(1, %[1]d / 10) i;
			INSERT INTO parts SELECT CASE i %% 3 WHEN 0 THEN 'north' WHEN 1 THEN 'south' ELSE 'west' END, i, 'before' FROM generate_series(1, %[1]d / 10) i;
			INSERT INTO whole SELECT i %% 20, 'b', NULL FROM generate_series(1, %[1]d / 20) i;`, n)))
	}
}

// way makes a link.
func (r *randomRun) way(name, url string) string {
	k, u := newLink(r.t, name, url)
	r.links = append(r.links, k)
	return u
}

// folder of the file sink.
func (r *randomRun) folder() string {
	for _, w := range r.workers {
		if w.cfg.Folder != "" {
			return w.cfg.Folder
		}
	}
	return ""
}

// pipeline starts the writers and the children, and gives an oracle if there is a file to prove.
func (r *randomRun) pipeline() (o *oracle) {
	r.t.Helper()
	for _, w := range r.plan.workers {
		if w.Name == "file" {
			o = newOracle(r.rig)
		}
	}
	l, writing := newLoad(r.rig)
	r.load, l.large, l.pace, l.tires, l.more = l, r.plan.large, r.plan.pace, 50, true
	l.streaming = r.plan.streaming
	l.truncates.Store(r.plan.truncates)
	startMixed(r.rig, l, writing, r.plan.seed, r.plan.writers)
	if r.plan.ddl {
		startAlterations(r.rig, l, writing, r.plan.seed, r.known)
	}
	server := r.rig.nats
	cfg := r.plan.replicator
	cfg.Source, cfg.NATS = r.way("replicator-source", r.source), r.way("replicator-nats", server)
	r.replica = r.replicator(cfg)
	for _, cfg := range r.plan.workers {
		cfg.NATS = r.way(cfg.Name+"-nats", server)
		if cfg.Name == "file" {
			cfg.Folder = filepath.Join(r.t.TempDir(), "lines")
		} else {
			cfg.Destination = r.way(cfg.Name+"-destination", r.urls[cfg.Name])
		}
		r.workers = append(r.workers, r.worker(cfg))
	}
	if !r.plan.early {
		r.streams(r.all()...)
		l.truncates.Store(true)
	}
	return o
}

func (r *randomRun) all() []*member { return append([]*member{r.replica}, r.workers...) }

// finish ends faults and writers, waits, and compares.
func (r *randomRun) finish() {
	r.t.Helper()
	r.holds.Wait()
	for _, k := range r.links {
		k.set(weather{})
	}
	r.load.finish(r.rig)
	r.settle()
	for name, url := range r.urls {
		report, err := flotest.Diff(r.ctx, r.source, url)
		must(r.t, err)
		if !report.Equal() {
			r.t.Errorf("worker %s: the destination differs from the source:\n%s", name, report)
		}
		r.tally.Rows += report.Rows()
		if r.plan.ddl {
			r.sameCatalog(name, url)
		}
	}
	for _, m := range r.all() {
		if err := m.process().stop(r.ctx); err != nil {
			r.t.Errorf("%s: stopping: %v", m.cfg.Name, err)
		}
	}
	r.tally.Changes, r.tally.Schema = r.load.commits.Load(), r.load.altered.Load()
	if r.plan.streaming {
		r.tally.Streamed = value[int64](r.rig, r.source, `SELECT coalesce(sum(stream_txns), 0)::bigint FROM pg_stat_replication_slots WHERE slot_name = 'flo_'||$1`, r.group)
	}
	r.logf("%d kills, %d cuts, %d restarts, %d rows equal, %d transactions, %d streamed, %d schema changes",
		r.tally.Kills, r.tally.Cuts, r.tally.Restarts, r.tally.Rows, r.tally.Changes, r.tally.Streamed, r.tally.Schema)
}

// patience is for how long a child may wait for its next attempt at the end of a run that isn't to be left alone.
const patience = 500 * time.Millisecond

// settle waits until all is applied.
func (r *randomRun) settle() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.ctx)
	defer cancel()
	if !r.plan.alone {
		r.holds.Go(func() { r.hurry(ctx) })
	}
	f, err := flo.New(flo.WithGroup(r.group), flo.WithSource(r.source), flo.WithNATSURL(r.rig.nats),
		flo.WithSink(sink.Func(func(context.Context, *sink.Batch) error { return nil })))
	must(r.t, err)
	lsn, err := decode.ParseLSN(value[string](r.rig, r.source, `SELECT pg_current_wal_flush_lsn()::text`))
	must(r.t, err)
	if r.plan.ddl {
		r.joined()
		lsn, err = decode.ParseLSN(value[string](r.rig, r.source, `SELECT pg_current_wal_flush_lsn()::text`))
		must(r.t, err)
	}
	// A group that has not got to its copy yet can't be waited for.
	r.awaitAll("it streams", func(m *member, s childStatus) bool {
		return s.Phase == flo.PhaseStreaming && (m != r.replica || s.CopyDone)
	})
	began := time.Now()
	err = f.WaitFor(r.ctx, lsn)
	cancel()
	r.holds.Wait()
	if err != nil {
		for _, m := range r.all() {
			r.logf("%s: %+v", m.cfg.Name, m.process().last())
		}
		r.t.Fatal(err)
	}
	r.logf("caught up with %s in %s", lsn, time.Since(began).Round(time.Millisecond))
}

// joined waits until tables that were made have joined the group: who waits for a position waits for those that had by then.
func (r *randomRun) joined() {
	r.t.Helper()
	for !value[bool](r.rig, r.source, `SELECT NOT EXISTS (SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
		EXCEPT SELECT prrelid FROM pg_publication_rel JOIN pg_publication p ON p.oid = prpubid WHERE pubname LIKE 'flo%')`) {
		must(r.t, pause(r.ctx, 20*time.Millisecond))
	}
}

// awaitAll polls, since hurry may start a child again meanwhile.
func (r *randomRun) awaitAll(what string, ok func(*member, childStatus) bool) {
	r.t.Helper()
	for _, m := range r.all() {
		for !ok(m, m.process().last()) {
			if err := pause(r.ctx, 20*time.Millisecond); err != nil {
				r.t.Fatalf("%s: waiting until %s (%+v): %v", m.cfg.Name, what, m.process().last(), err)
			}
		}
	}
}

// hurry starts children again that wait long after the faults that they met.
func (r *randomRun) hurry(ctx context.Context) {
	since := map[*member]time.Time{}
	for pause(ctx, 50*time.Millisecond) == nil {
		for _, m := range r.all() {
			s := m.process().last()
			if s.LastError == "" || s.Phase == flo.PhaseStreaming || s.Phase == flo.PhaseCopying {
				delete(since, m)
				continue
			}
			if since[m].IsZero() {
				since[m] = time.Now()
			}
			if time.Since(since[m]) > patience {
				delete(since, m)
				m.kill()
				r.tally.Kills++
				if err := m.start(); err != nil {
					r.fail(err)
				}
			}
		}
	}
}

// repeat is the command that does a run again.
func repeat(seed uint64, without []kind, few int) string {
	s := fmt.Sprintf("go test ./internal/faults -run TestRandomFaults -seed %d -runs 1", seed)
	if len(without) > 0 {
		var names []string
		for _, k := range without {
			names = append(names, string(k))
		}
		s += " -without " + strings.Join(names, ",")
	}
	if few > 0 {
		s += fmt.Sprint(" -faults ", few)
	}
	return s
}
