package flo_test

import (
	"testing"

	"github.com/pgflo/flo"
)

// A copy that was numbered by a clock that runs ahead, and that NATS has lost since, must not hide the copies that
// follow it with lower numbers: neither one that a running worker meets, nor one that was begun while it was away.
func TestACopyBehindALostOneOfAHigherNumberIsNotIgnored(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	for name, away := range map[string]bool{"met": false, "begun while the worker was away": true} {
		t.Run(name, func(t *testing.T) {
			p := newPipeline(t, smallTable)
			store, window := lazyStore(p)
			p.src.Exec(t, `INSERT INTO t VALUES (1, 'copied')`)
			r := p.launch(ctx, window, flo.WithSink(p.sink()))
			p.catchUp(ctx)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			backup := store.save()
			add := func(table string) {
				t.Helper()
				for _, db := range []interface {
					Exec(testing.TB, string, ...any)
				}{p.src, p.dst} {
					db.Exec(t, `CREATE TABLE `+table+` (id int PRIMARY KEY, v text)`)
				}
				p.src.Exec(t, `INSERT INTO `+table+` SELECT i, 'copied' FROM generate_series(1, 10) i`)
			}
			add("early")
			r = p.launch(ctx, window, flo.WithSink(p.sink()), flo.WithAttemptsAhead(1_000_000))
			p.catchUp(ctx)
			p.equal(ctx)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			store.close()
			store.restore(backup)
			store.start()
			add("late")
			if away {
				rep := p.replicator(window)
				alone := launch(t, ctx, rep)
				p.published(ctx, rep)
				if err := alone.stop(); err != nil {
					t.Fatal(err)
				}
			}
			p.launch(ctx, window, flo.WithSink(p.sink()))
			p.catchUp(ctx)
			eventually(t, ctx, "the last table's rows", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM late`) == "10" })
			p.src.Exec(t, `UPDATE late SET v = 'streamed' WHERE id < 4; DELETE FROM early WHERE id = 5`)
			p.catchUp(ctx)
			p.equal(ctx)
		})
	}
}
