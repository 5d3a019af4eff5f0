//go:build unix

package faults

import (
	"context"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// What flo stands between dies under it: the NATS server by SIGKILL, either database by an immediate
// shutdown, the walsender by termination. The replicator and the workers live on.
func TestServersDieWhileStreaming(t *testing.T) {
	t.Parallel()
	s := seed(t)
	rnd := random(s, 0)
	source, dest := flotest.NewServer(t), flotest.NewServer(t)
	r := newRig(t, 8*time.Minute, source.NewDB(t).URL, dest.NewDB(t).URL)
	nats := r.natsProcess()
	r.both(mixedSchema)
	o := newOracle(r)
	l, writing := newLoad(r)
	startMixed(r, l, writing, s, 3)
	folder := t.TempDir()
	repl := r.replicator(childConfig{})
	pg := r.worker(childConfig{BatchSize: 1000})
	lines := r.worker(childConfig{Name: "file", Folder: folder})
	r.streams(repl, pg, lines)
	l.truncates.Store(true)

	crash := func(s *flotest.Server) func(context.Context) error {
		return func(ctx context.Context) error {
			if _, err := s.Stop(ctx, flotest.Immediate); err != nil {
				return err
			}
			if err := pause(ctx, between(rnd, 0, 500*time.Millisecond)); err != nil {
				return err
			}
			return s.Start(ctx)
		}
	}
	type fault struct {
		name string
		do   func(context.Context) error
	}
	faults := []fault{
		{"NATS server killed", func(ctx context.Context) error {
			nats.kill()
			if err := pause(ctx, between(rnd, 0, 500*time.Millisecond)); err != nil {
				return err
			}
			return nats.start()
		}},
		{"source stopped at once", crash(source)},
		{"destination stopped at once", crash(dest)},
		{"walsender terminated", func(ctx context.Context) error {
			return execute(ctx, r.source, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active`)
		}},
	}
	var schedule []fault
	for range or(runs, 1) {
		schedule = append(schedule, faults...)
	}
	rnd.Shuffle(len(schedule), func(i, j int) { schedule[i], schedule[j] = schedule[j], schedule[i] })
	for _, f := range schedule {
		if rnd.IntN(4) > 0 { // else while the last fault is being recovered from
			seen := repl.process().last().Published
			must(t, repl.await(r.ctx, "it publishes again", func(s childStatus) bool { return s.Phase == flo.PhaseStreaming && s.Published > seen }))
			seen = pg.process().last().Applied
			must(t, pg.await(r.ctx, "it applies again", func(s childStatus) bool { return s.Phase == flo.PhaseStreaming && s.Applied > seen }))
		}
		must(t, pause(r.ctx, between(rnd, 0, time.Second)))
		before := repl.process().last()
		r.logf("%s, the replicator being %s at %s", f.name, before.Phase, before.Published)
		must(t, f.do(r.ctx))
	}
	l.finish(r)
	r.catchUp()
	for _, m := range []*member{repl, pg, lines} {
		r.logf("%s was interrupted %d times", m.cfg.Name, m.process().last().Retries)
	}
	r.equal()
	r.stopAll()
	o.provesHistory(r, folder, func(url string) { must(t, execute(r.ctx, url, mixedSchema)) })
}
