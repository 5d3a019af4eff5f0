//go:build unix

package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/pgflo/flo"
)

// copySchema is a table that takes a few seconds at copyRate, and one without a key.
const copySchema = `
CREATE TABLE large (id bigint PRIMARY KEY, v text, "When" timestamptz);
CREATE TABLE "Large Keyless" (n bigint, v text);`

const copyFill = `
INSERT INTO large SELECT i, repeat(md5(i::text), 15 + i %% 5), now() FROM generate_series(1, %[1]d) i;
INSERT INTO "Large Keyless" SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, %[1]d / 4) i;`

const (
	copyRows = 40_000
	copyRate = 6e6 // bytes a second from the source, which make the copy last about four seconds
)

// Replicator and workers are killed in mid-copy, while writers race it; the copy that then goes
// through must leave no row of an earlier attempt and lose none.
func TestKillsDuringCopy(t *testing.T) {
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, 4*time.Minute, "", "")
	r.localNATS()
	r.both(mixedSchema + copySchema)
	must(t, execute(r.ctx, r.source, fmt.Sprintf(copyFill, copyRows)))
	o := newOracle(r)
	l, writing := newLoad(r)
	startMixed(r, l, writing, s, 2)
	way, slow := newThrottle(t, r.source, copyRate)
	folder := t.TempDir()
	repl := r.replicator(childConfig{Source: slow, CopyConnections: 2})
	pg := r.worker(childConfig{})
	lines := r.worker(childConfig{Name: "file", Folder: folder})

	copying := func(s childStatus) bool { return s.Phase == flo.PhaseCopying && s.CopyRows > 0 }
	mid := map[*member]func(childStatus) bool{
		repl:  func(s childStatus) bool { return !s.CopyDone && s.RangesDone < s.Ranges && s.CopyRows > 0 },
		pg:    copying,
		lines: copying,
	}
	order := []*member{repl, pg, repl, lines, pg, repl, pg, lines}
	rnd.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for i := range or(kills, len(order)) {
		m := order[i%len(order)]
		must(t, m.await(r.ctx, "it is in mid-copy", mid[m]))
		must(t, pause(r.ctx, between(rnd, 0, time.Second)))
		if now := m.process().last(); !mid[m](now) {
			t.Fatalf("%s has finished its copy before kill %d: make it slower (%+v)", m.cfg.Name, i, now)
		}
		st := m.kill()
		r.logf("%s killed in mid-copy: %d rows, %d of %d ranges", m.cfg.Name, st.CopyRows, st.RangesDone, st.Ranges)
		must(t, m.start())
	}
	way.set(0)
	r.streams(pg, lines)
	l.truncates.Store(true)
	l.finish(r)
	r.catchUp()
	r.logKills()
	r.equal()
	r.stopAll()
	o.provesHistory(r, folder, func(url string) { must(t, execute(r.ctx, url, mixedSchema+copySchema)) })
}
