//go:build unix

package faults

import (
	"fmt"
	"testing"
	"time"

	"github.com/pgflo/flo"
)

// copySchema is tables that take long at copyRate, some without a key.
var copySchema, copyFill = manyTables(6, 4000)

func manyTables(tables, rows int) (schema, fill string) {
	for i := range tables {
		schema += fmt.Sprintf("CREATE TABLE large_%[1]d (id bigint PRIMARY KEY, v text, \"When\" timestamptz);\n", i)
		fill += fmt.Sprintf("INSERT INTO large_%d SELECT i, repeat(md5(i::text), 15 + i %% 5), now() FROM generate_series(1, %d) i;\n", i, rows)
	}
	schema += `CREATE TABLE "Large Keyless" (n bigint, v text);`
	fill += fmt.Sprintf(`INSERT INTO "Large Keyless" SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, %d) i;`, 2*rows)
	return schema, fill
}

// copyRate is in bytes a second from the source. The rest of the copy goes at full speed once the kills are over.
const copyRate = 1e6

// Replicator and workers are killed in mid-copy, while writers race it. What was whole stays, what was not is
// copied again beside the stream: no row of an earlier attempt is left, and none is lost.
func TestKillsDuringCopy(t *testing.T) {
	t.Parallel()
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, 8*time.Minute, "", "")
	r.localNATS()
	r.both(mixedSchema + copySchema)
	must(t, execute(r.ctx, r.source, copyFill))
	o := newOracle(r)
	l, writing := newLoad(r)
	startMixed(r, l, writing, s, 1)
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
	order := []*member{repl, pg, lines, repl}
	rnd.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for i := range brief(kills, len(order), 3) {
		m := order[i%len(order)]
		// A worker that has drained what an ended attempt left streams until it meets the next attempt.
		for hit := false; !hit; hit = mid[m](m.process().last()) {
			must(t, m.await(r.ctx, "it is in mid-copy", mid[m]))
			must(t, pause(r.ctx, between(rnd, 0, time.Second)))
			if now := repl.process().last(); now.CopyDone {
				t.Fatalf("the copy is over before kill %d: make it slower (%+v)", i, now)
			}
		}
		st := m.kill()
		r.logf("%s killed in mid-copy: %d rows, %d of %d ranges", m.cfg.Name, st.CopyRows, st.RangesDone, st.Ranges)
		must(t, m.start())
	}
	way.set(weather{})
	r.streams(pg, lines)
	l.truncates.Store(true)
	l.finish(r)
	r.catchUp()
	r.logKills()
	r.equal()
	r.stopAll()
	r.logf("tables by the attempt that copied them: %s", value[string](r, r.dest, `SELECT json_object_agg(attempt, n) FROM (SELECT attempt, count(*) AS n FROM flo.copies WHERE worker = 'default' GROUP BY 1) t`))
	o.provesHistory(r, folder, func(url string) { must(t, execute(r.ctx, url, mixedSchema+copySchema)) })
}
