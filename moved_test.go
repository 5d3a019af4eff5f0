package flo_test

import (
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink/postgres"
)

// Without schema changes in the stream a renamed table is a new name to the destination. Its changes must not go to
// another table than its copy went to, whoever made one of that name.
func TestARenamedTableGoesOnOnlyInTheTableThatItWasCopiedInto(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i`)
	p.ranOnce(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `ALTER TABLE t RENAME TO u; UPDATE u SET v = 'changed' WHERE id = 5`)
	p.dst.Exec(t, `CREATE TABLE u (LIKE t INCLUDING ALL)`)
	for range 2 {
		wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), postgres.ErrMoved, "public.t", "rename")
	}
	p.dst.Exec(t, `DROP TABLE u; ALTER TABLE t RENAME TO u`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	if got := p.dst.QueryString(t, `SELECT count(*) || ' ' || max(v) FILTER (WHERE id = 5) FROM u`); got != "100 changed" {
		t.Errorf("u has %q", got)
	}
	if err := p.stop(); err != nil { // the copy afresh knows its own rows, under the new name
		t.Fatal(err)
	}
	p.start(ctx, flo.WithSink(p.sink()), flo.WithResync("again"))
	p.catchUp(ctx)
	if got := p.dst.QueryString(t, `SELECT count(*) FROM u`); got != "100" {
		t.Errorf("u has %s rows after a resync", got)
	}
}

func TestTablesThatSwapTheirNamesDoNotMixTheirRows(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable, `CREATE TABLE u (id bigint PRIMARY KEY, v text)`)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'of t' FROM generate_series(1, 10) i; INSERT INTO u SELECT i, 'of u' FROM generate_series(1, 20) i`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	eventually(t, ctx, "both are copied", func() bool {
		return p.dst.QueryString(t, `SELECT (SELECT count(*) FROM t) || ' ' || (SELECT count(*) FROM u)`) == "10 20"
	})
	p.src.Exec(t, `BEGIN; ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u; UPDATE u SET v = 'of t, changed' WHERE id = 5; COMMIT`)
	wantStop(t, r.ends(ctx), postgres.ErrMoved, "rename that one there", "WithResync")
	p.dst.Exec(t, `ALTER TABLE t RENAME TO x; ALTER TABLE u RENAME TO t; ALTER TABLE x RENAME TO u`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	if got := p.dst.QueryString(t, `SELECT (SELECT string_agg(DISTINCT v, ';') FROM t) || ' | ' || (SELECT string_agg(DISTINCT v, ';' ORDER BY v) FROM u)`); got != "of u | of t;of t, changed" {
		t.Errorf("%q", got)
	}
}
