//go:build unix

package faults

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// killing is how many kills a process gets, and how fast one follows the other.
type killing struct {
	kills int
	early time.Duration // how long after a start a kill during it comes at the latest
	late  time.Duration // how long behind the first change the others come at the latest
}

// run kills a member and starts it again. One kill in three comes while the process starts, whatever
// it is doing then; the others once changes have gone through it.
func (k killing) run(ctx context.Context, m *member, rnd *rand.Rand) error {
	for range k.kills {
		wait := between(rnd, 0, k.early)
		if rnd.IntN(3) > 0 {
			if err := m.await(ctx, "changes go through it again", func(s childStatus) bool { return s.Phase == flo.PhaseStreaming && s.Changes > 0 }); err != nil {
				return err
			}
			wait = between(rnd, 0, k.late)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		m.kill()
		if err := pause(ctx, between(rnd, 0, 100*time.Millisecond)); err != nil {
			return err
		}
		if err := m.start(); err != nil {
			return err
		}
	}
	return nil
}

// Replicator, a worker with a PostgreSQL sink and one with a file sink are killed again and again,
// each by its own schedule, while pgbench and the mixed writers work.
func TestKillsWhileStreaming(t *testing.T) {
	t.Parallel()
	s := seed(t)
	r := newRig(t, 8*time.Minute, "", "")
	r.localNATS()
	r.both(mixedSchema)
	l, writing := newLoad(r)
	startPgbench(r, l, writing, 200)
	o := newOracle(r)
	startMixed(r, l, writing, s, 3)
	folder := t.TempDir()
	rnd := random(s, 100)
	pick := func(of ...int) int { return of[rnd.IntN(len(of))] }
	repl := r.replicator(childConfig{ReplayWindow: time.Duration(pick(0, 0, 2, 180)) * time.Second, StreamMaxBytes: int64(pick(0, 0, 32<<20))})
	pg := r.worker(childConfig{BatchSize: pick(0, 20, 1000)})
	lines := r.worker(childConfig{Name: "file", Folder: folder, BatchSize: pick(0, 20, 1000)})
	r.logf("replay window %s, the stream's limit %d bytes, batches of %d (PostgreSQL) and %d changes (file); 0: flo's default", repl.cfg.ReplayWindow, repl.cfg.StreamMaxBytes, pg.cfg.BatchSize, lines.cfg.BatchSize)
	r.streams(repl, pg, lines)
	l.truncates.Store(true)

	k := killing{kills: brief(kills, 4, 3), early: 300 * time.Millisecond, late: 800 * time.Millisecond}
	g, ctx := errgroup.WithContext(r.ctx)
	for i, m := range []*member{repl, pg, lines} {
		g.Go(func() error { return k.run(ctx, m, random(s, uint64(i))) })
	}
	must(t, g.Wait())
	l.finish(r)
	r.catchUp()
	r.streams(repl, pg, lines) // a replicator that goes on says that the copy is done, too
	if n := r.logKills(); n < 3*k.kills {
		t.Errorf("%d kills, want %d", n, 3*k.kills)
	}
	r.equal()
	r.stopAll()
	o.provesHistory(r, folder, func(url string) {
		must(t, execute(r.ctx, url, mixedSchema))
		if out, err := flotest.RunPgbench(r.ctx, url, "-i", "-q", "-I", "dtp"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
}
