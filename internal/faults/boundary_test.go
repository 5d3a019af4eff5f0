//go:build unix

package faults

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/pgflo/flo/internal/crashpoint"
)

// Replicator and workers are killed at each boundary between two steps of a change's way, several times each: at the
// slot's making and in the copy, and then, in an order from the seed, where changes are received, published,
// acknowledged, confirmed, fetched, committed at the sink, checkpointed and purged.
func TestKilledAtEveryBoundary(t *testing.T) {
	t.Parallel()
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, runLimit, "", "")
	r.exe = childBinary(t)
	r.localNATS()
	r.both(mixedSchema)
	must(t, execute(r.ctx, r.source, `INSERT INTO append_log (writer, n, what) SELECT -1, i, repeat('before', 20) FROM generate_series(1, 20000) i;
		INSERT INTO "Mixed Case" (id, note) SELECT i, 'before' FROM generate_series(1, 400) i`))
	o := newOracle(r)
	l, writing := newLoad(r)
	l.large, l.pace = 300, 30*time.Millisecond
	startMixed(r, l, writing, s, 2)
	b := &boundary{rig: r, rnd: rnd, reached: map[crashpoint.Point]int{}}

	repl := r.replicator(childConfig{ReplayWindow: 0})
	b.die(repl, crashpoint.SlotMade, 1)
	for n := range 3 {
		b.die(repl, crashpoint.CopySent, 1+n)
	}
	must(t, repl.start())
	folder := t.TempDir()
	pg := r.worker(childConfig{BatchSize: 50})
	lines := r.worker(childConfig{Name: "file", Folder: folder, BatchSize: 50})
	for n := range 3 {
		b.die(pg, crashpoint.CopyWritten, 1+n)
	}
	must(t, pg.start())
	r.streams(repl, pg, lines)
	l.truncates.Store(true)

	type target struct {
		m *member
		p crashpoint.Point
	}
	var all []target
	for range brief(runs, 2, 1) {
		for _, p := range []crashpoint.Point{crashpoint.Received, crashpoint.Published, crashpoint.Acknowledged, crashpoint.Confirmed, crashpoint.Purged} {
			all = append(all, target{repl, p})
		}
		for _, p := range []crashpoint.Point{crashpoint.Fetched, crashpoint.SinkCommitted, crashpoint.Checkpointed} {
			all = append(all, target{pg, p}, target{lines, p})
		}
	}
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, a := range all {
		n := 1 + rnd.IntN(3)
		if a.p == crashpoint.Purged {
			n = 1 // it comes every five seconds
		}
		b.die(a.m, a.p, n)
		must(t, a.m.start())
	}
	l.finish(r)
	r.catchUp()
	r.logf("killed at %v", b.reached)
	r.equal()
	r.stopAll()
	o.provesHistory(r, folder, func(url string) { must(t, execute(r.ctx, url, mixedSchema)) })
}

type boundary struct {
	*rig
	rnd     *rand.Rand
	reached map[crashpoint.Point]int
}

// die ends the present life of a member, and the next one where a boundary is reached for the n-th time. That one
// has to come.
func (b *boundary) die(m *member, p crashpoint.Point, n int) {
	b.t.Helper()
	m.kill()
	must(b.t, m.startArmed(fmt.Sprintf("%s:%d", p, n)))
	select {
	case <-m.process().exited:
		b.reached[p]++
	case <-b.ctx.Done():
		b.t.Fatalf("%s never reached %q for the %d. time: %+v", m.cfg.Name, p, n, m.process().last())
	}
}
