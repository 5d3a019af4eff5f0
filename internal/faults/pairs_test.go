//go:build unix

package faults

import (
	"syscall"
	"testing"
	"time"
)

// Two replicators of one group and two workers of one name run all the time. Each is killed and started
// again, or paused past its lease and resumed, at random moments; whichever is left does the work, and no
// two ever do it at once: a row that came twice would show in the table without a key.
func TestPairsOfReplicatorsAndWorkersKilledAndPaused(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	t.Parallel()
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, 4*time.Minute, "", "")
	r.localNATS()
	r.both(mixedSchema)
	l, writing := newLoad(r)
	startMixed(r, l, writing, s, 3)
	members := []*member{
		r.replicator(childConfig{}), r.replicator(childConfig{}),
		r.worker(childConfig{BatchSize: 100}), r.worker(childConfig{BatchSize: 100}),
	}
	kills, pauses := 0, 0
	for i := range or(runs, 8) {
		m := members[i%len(members)] // each as often
		must(t, pause(r.ctx, between(rnd, 0, 1500*time.Millisecond)))
		if rnd.IntN(2) == 0 {
			m.kill()
			must(t, m.start())
			kills++
			continue
		}
		must(t, m.process().signal(syscall.SIGSTOP))
		must(t, pause(r.ctx, between(rnd, 0, 2*leaseTime)))
		must(t, m.process().signal(syscall.SIGCONT))
		pauses++
	}
	l.finish(r)
	r.catchUp()
	r.logf("%d kills, %d pauses", kills, pauses)
	r.logKills()
	r.equal()
	r.stopAll()
}

// Ten SIGKILLs at moments that nothing chooses, from before the slot is made to behind the copy's end, with
// writers racing the copy. TestKillsDuringCopy chooses its moments.
func TestRandomKillsFromTheStartOfTheCopyToItsEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	t.Parallel()
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, 5*time.Minute, "", "")
	r.localNATS()
	r.both(mixedSchema + copySchema)
	must(t, execute(r.ctx, r.source, copyFill))
	l, writing := newLoad(r)
	startMixed(r, l, writing, s, 1)
	way, slow := newThrottle(t, r.source, 4*copyRate)
	repl, pg := r.replicator(childConfig{Source: slow, CopyConnections: 2}), r.worker(childConfig{})
	inCopy := 0
	for range or(kills, 10) {
		must(t, pause(r.ctx, between(rnd, 0, 2*time.Second)))
		m := repl
		if rnd.IntN(2) == 0 {
			m = pg
		}
		if !repl.process().last().CopyDone {
			inCopy++
		}
		m.kill()
		must(t, m.start())
	}
	way.set(weather{})
	r.streams(repl, pg)
	l.finish(r)
	r.catchUp()
	r.logf("%d kills before the copy was whole", inCopy)
	r.logKills()
	r.equal()
	r.stopAll()
}
