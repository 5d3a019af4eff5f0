package flo_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink/postgres"
)

// Two sources and rows of others share a destination: copies that are cut short, a resync and changes in between leave
// the others' rows alone, and of the sources' exactly what they hold.
func TestCopiesAreMergedAmongRowsOfOthers(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, `CREATE TABLE a (id int PRIMARY KEY, v text); ALTER TABLE a ALTER v SET STORAGE EXTERNAL; CREATE TABLE b (id int PRIMARY KEY, v text);
		INSERT INTO a SELECT i, repeat('a', 10000) FROM generate_series(1, 600) i; INSERT INTO b SELECT i, 'b' FROM generate_series(1001, 1100) i`)
	p.dst.Exec(t, `CREATE TABLE shared (id int PRIMARY KEY, v text, note text DEFAULT 'none'); INSERT INTO shared SELECT -i, 'others', 'kept' FROM generate_series(1, 50) i; INSERT INTO shared VALUES (7, 'others', 'kept')`)
	routes := flo.WithRules(rules.Route("a", "shared", rules.PassTruncate()), rules.Route("b", "shared", rules.PassTruncate()))
	rep := launch(t, ctx, p.replicator())
	worker := func() *run {
		return launch(t, ctx, p.worker(flo.WithSink(p.sink(postgres.WithMergeCopy("shared"))), routes))
	}
	same := func(what string) {
		t.Helper()
		const all = `SELECT id || ' ' || md5(v) FROM `
		want := fmt.Sprint(p.src.Query(t, all+`(SELECT * FROM a UNION ALL SELECT * FROM b) x ORDER BY id`))
		got := ""
		eventually(t, within(t, ctx, time.Minute), what, func() bool {
			got = fmt.Sprint(p.dst.Query(t, all+`shared WHERE id > 0 ORDER BY id`))
			return got == want
		})
		if n := p.dst.QueryString(t, `SELECT count(*) FROM shared WHERE id < 0 AND v = 'others' AND note = 'kept'`); n != "50" {
			t.Errorf("%s rows of others are left", n)
		}
	}
	begun := func() bool {
		return p.dst.QueryString(t, `SELECT count(*) FROM pg_tables WHERE schemaname = 'flo' AND tablename LIKE 'stage%'`) != "0"
	}
	for range 3 { // whatever each of them gets done
		w := worker()
		eventually(t, ctx, "the copy begins, or is done", func() bool { w.running(); return begun() || len(p.attempts()) > 0 })
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
	}
	w := worker()
	same("the copy is merged")
	if got := p.dst.QueryString(t, `SELECT note FROM shared WHERE id = 7`); got != "kept" {
		t.Errorf("a column that isn't copied is %q", got)
	}
	p.src.Exec(t, `DELETE FROM a WHERE id % 3 = 0; UPDATE a SET id = id + 2000 WHERE id % 7 = 1; INSERT INTO b SELECT i, 'streamed' FROM generate_series(1101, 1200) i`)
	same("changes are streamed")
	if err := rep.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `SELECT pg_drop_replication_slot('`+p.slot()+`')`)
	p.src.Exec(t, `DELETE FROM a WHERE id % 5 = 1; DELETE FROM b WHERE id > 1150; UPDATE b SET id = id + 3000 WHERE id < 1010; INSERT INTO a VALUES (1140, 'was b'), (5000, 'new')`)
	p.src.Exec(t, `DELETE FROM b WHERE id = 1140`)
	rep = launch(t, ctx, p.replicator(flo.WithResync("slot lost")))
	same("the copy of the resync is merged")
	p.src.Exec(t, `TRUNCATE a; INSERT INTO a VALUES (1, 'after')`)
	same("a TRUNCATE takes a source's own rows")
	w.running()
	rep.running()
}

// A table that gets its key late is copied again: its deletes were not replicated until then.
func TestARoundMergesAndTakesOutWhatIsGone(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, `CREATE TABLE log (id int NOT NULL, v text); INSERT INTO log SELECT i, 'copied' FROM generate_series(1, 20) i`)
	p.dst.Exec(t, `CREATE TABLE log (id int PRIMARY KEY, v text); INSERT INTO log VALUES (-1, 'others')`)
	start := func(ctx context.Context) *run { return p.launch(ctx, flo.WithSink(p.sink(postgres.WithMergeCopy()))) }
	r := start(ctx)
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO log VALUES (30, 'streamed'), (31, 'streamed'); DELETE FROM log WHERE id IN (1, 2, 30)`)
	p.catchUp(ctx)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `ALTER TABLE log ADD PRIMARY KEY (id); UPDATE log SET v = 'keyed' WHERE id = 3`)
	r = start(ctx)
	p.catchUp(ctx)
	p.src.Exec(t, `DELETE FROM log WHERE id = 4`)
	p.catchUp(ctx)
	const all = `SELECT coalesce(string_agg(id || '=' || v, ' ' ORDER BY id), '') FROM log`
	want, got := p.src.QueryString(t, all), p.dst.QueryString(t, all)
	if got != "-1=others "+want {
		t.Errorf("the destination has\n%s\nwant\n-1=others %s", got, want)
	}
	if a := p.attempts()["log"]; a != "2" || strings.Contains(got, "30=") {
		t.Errorf("attempt %s", a)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}
