package flo_test

import (
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

// TPC-B goes on while its tables are altered at the source; nobody touches the destination, which has none of them
// at first.
func TestSchemaChangesUnderLoad(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	flotest.RequireOwnServer(t)
	p := newPipeline(t)
	bench := func(args ...string) error {
		_, err := p.src.Server.RunPgbench(ctx, p.src.Name, args...)
		return err
	}
	if err := bench("-i", "-q"); err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink(postgres.WithReplicaRole())))
	p.catchUp(ctx)
	loaded := make(chan error, 1)
	go func() { loaded <- bench("-n", "-c", "2", "-t", "400") }()
	for _, sql := range []string{
		`ALTER TABLE pgbench_accounts ADD COLUMN seen timestamptz NOT NULL DEFAULT now()`,
		`CREATE INDEX CONCURRENTLY accounts_by_balance ON pgbench_accounts (abalance)`,
		`ALTER TABLE pgbench_tellers RENAME COLUMN filler TO note`,
		`ALTER TABLE pgbench_branches ADD CONSTRAINT big CHECK (bbalance > -1000000000), ALTER COLUMN bbalance SET DEFAULT 0`,
		`CREATE TABLE audit (id int PRIMARY KEY, what text)`,
		`ALTER TABLE pgbench_tellers ALTER COLUMN tbalance TYPE bigint`,
		`ALTER TABLE pgbench_accounts DROP COLUMN filler`,
	} {
		p.src.Exec(t, sql)
	}
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `UPDATE pgbench_tellers SET note = 'x' WHERE tid = 1`)
	p.catchUp(ctx)
	p.equal(ctx, "public.pgbench_accounts", "public.pgbench_tellers", "public.pgbench_branches", "public.pgbench_history")
	const columns = `SELECT string_agg(attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod) || coalesce(pg_get_expr(adbin, adrelid), ''), ', ' ORDER BY attrelid::regclass::text, attname)
		FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid::regclass::text LIKE 'pgbench%' AND attnum > 0 AND NOT attisdropped`
	if was, is := p.src.QueryString(t, columns), p.dst.QueryString(t, columns); was != is {
		t.Errorf("the destination has\n%s\nwant\n%s", is, was)
	}
	if def := p.dst.QueryString(t, `SELECT coalesce(pg_get_indexdef(to_regclass('accounts_by_balance')), '')`); def == "" {
		t.Error("the index is missing")
	}
}
