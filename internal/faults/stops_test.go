//go:build unix

package faults

import (
	"syscall"
	"testing"
	"time"

	"github.com/pgflo/flo"
)

// Children are asked to stop at random moments, in mid-transaction and in mid-copy, end without an
// error each time, and go on when they are started again.
func TestStopsInOrder(t *testing.T) {
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, 4*time.Minute, "", "")
	r.localNATS()
	r.both(mixedSchema)
	must(t, execute(r.ctx, r.source, `INSERT INTO append_log (writer, n, what) SELECT -1, i, 'before' FROM generate_series(1, 20000) i`))
	o := newOracle(r)
	l, writing := newLoad(r)
	startMixed(r, l, writing, s, 3)
	folder := t.TempDir()
	members := []*member{r.replicator(childConfig{}), r.worker(childConfig{BatchSize: 100}), r.worker(childConfig{Name: "file", Folder: folder})}
	phases := map[flo.Phase]int{}
	for range brief(runs, 12, 6) {
		m := members[rnd.IntN(len(members))]
		must(t, pause(r.ctx, between(rnd, 0, 700*time.Millisecond)))
		phases[m.process().last().Phase]++
		began := time.Now()
		if err := m.process().stop(r.ctx); err != nil {
			t.Fatalf("%s: stopping: %v", m.cfg.Name, err)
		}
		if took := time.Since(began); took > 8*time.Second {
			t.Errorf("%s took %s to stop", m.cfg.Name, took)
		}
		must(t, m.start())
	}
	r.logf("stopped in phases %v", phases)
	l.finish(r)
	r.catchUp()
	r.equal()
	r.stopAll()
	o.provesHistory(r, folder, func(url string) { must(t, execute(r.ctx, url, mixedSchema)) })
}

// A replicator and a worker are paused by SIGSTOP, others of the same group and name take over, and
// the paused ones go on by SIGCONT while those work: they stand by, and write nothing more.
func TestPausedProcessesAreSuperseded(t *testing.T) {
	t.Parallel()
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, 4*time.Minute, "", "")
	r.localNATS()
	r.both(mixedSchema)
	l, writing := newLoad(r)
	startMixed(r, l, writing, s, 3)
	repl, pg := r.replicator(childConfig{}), r.worker(childConfig{BatchSize: 100})
	r.streams(repl, pg)
	l.truncates.Store(true)
	goesOn := func(m *member) {
		t.Helper()
		must(t, m.await(r.ctx, "changes go through it", func(s childStatus) bool { return s.Phase == flo.PhaseStreaming && s.Changes > 0 }))
	}
	standsBy := func(s childStatus) bool { return s.Phase == flo.PhaseStandby }
	for round := range brief(runs, 2, 1) {
		must(t, pause(r.ctx, between(rnd, 0, time.Second)))
		must(t, pg.process().signal(syscall.SIGSTOP))
		pausedWorker := pg
		pg = r.worker(childConfig{BatchSize: 100})
		goesOn(pg)
		must(t, pausedWorker.process().signal(syscall.SIGCONT))
		must(t, pausedWorker.await(r.ctx, "it stands by", standsBy))
		if round%2 == 0 {
			must(t, pausedWorker.process().stop(r.ctx))
		}

		must(t, repl.process().signal(syscall.SIGSTOP))
		pausedRepl := repl
		repl = r.replicator(childConfig{})
		goesOn(repl)
		must(t, pausedRepl.process().signal(syscall.SIGCONT))
		must(t, pausedRepl.await(r.ctx, "it stands by", standsBy))
		goesOn(pg)
		if round%2 == 0 {
			must(t, pausedRepl.process().stop(r.ctx))
		}
	}
	l.finish(r)
	r.catchUp()
	r.equal()
	for _, m := range []*member{repl, pg} {
		if err := m.process().stop(r.ctx); err != nil {
			t.Errorf("%s: stopping: %v", m.cfg.Name, err)
		}
	}
}
