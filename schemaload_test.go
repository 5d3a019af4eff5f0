package flo_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

// TPC-B goes on while its tables are altered at the source; nobody touches the destination, which has none of them
// at first. Under FLO_BIG it goes on for a minute, with a schema change every second or so.
func TestSchemaChangesUnderLoad(t *testing.T) {
	long(t)
	parallel(t)
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout+time.Duration(sized(0, 5))*time.Minute)
	t.Cleanup(cancel)
	flotest.RequireOwnServer(t)
	p := newPipeline(t)
	bench := func(args ...string) (string, error) { return p.src.Server.RunPgbench(ctx, p.src.Name, args...) }
	if _, err := bench("-i", "-q"); err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink(postgres.WithReplicaRole())))
	p.catchUp(ctx)
	minute := sized(0, 60)
	load := []string{"-n", "-c", "2", "-t", "400"}
	if minute > 0 {
		load = []string{"-n", "-c", "2", "-T", strconv.Itoa(minute)}
	}
	loaded := make(chan error, 1)
	began, said := time.Now(), ""
	go func() {
		out, err := bench(load...)
		said = out
		loaded <- err
	}()
	changes := []string{
		`ALTER TABLE pgbench_accounts ADD COLUMN seen timestamptz NOT NULL DEFAULT now()`,
		`CREATE INDEX CONCURRENTLY accounts_by_balance ON pgbench_accounts (abalance)`,
		`ALTER TABLE pgbench_tellers RENAME COLUMN filler TO note`,
		`ALTER TABLE pgbench_branches ADD CONSTRAINT big CHECK (bbalance > -1000000000), ALTER COLUMN bbalance SET DEFAULT 0`,
		`CREATE TABLE audit (id int PRIMARY KEY, what text)`,
		`ALTER TABLE pgbench_tellers ALTER COLUMN tbalance TYPE bigint`,
		`ALTER TABLE pgbench_accounts DROP COLUMN filler`,
	}
	const often = `ALTER TABLE pgbench_accounts ADD COLUMN extra_@ int DEFAULT @; CREATE INDEX CONCURRENTLY extra_@ ON pgbench_accounts (aid, extra_@);
		ALTER TABLE pgbench_history RENAME COLUMN filler TO filler_@; ALTER TABLE pgbench_accounts RENAME COLUMN extra_@ TO renamed_@;
		DROP INDEX CONCURRENTLY extra_@; ALTER TABLE pgbench_accounts DROP COLUMN renamed_@; ALTER TABLE pgbench_history RENAME COLUMN filler_@ TO filler`
	for i := range sized(0, 7) {
		changes = append(changes, strings.Split(strings.ReplaceAll(often, "@", strconv.Itoa(i)), ";")...)
	}
	for i, sql := range changes {
		p.src.Exec(t, sql)
		due := time.Duration(i+1) * time.Duration(minute) * time.Second / time.Duration(len(changes)+2)
		if err := pause(ctx, due-time.Since(began)); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-loaded; err != nil {
		t.Fatal(err)
	}
	ended := time.Now()
	p.src.Exec(t, `UPDATE pgbench_tellers SET note = 'x' WHERE tid = 1`)
	p.catchUp(ctx)
	behind := time.Since(ended)
	p.equal(ctx, "public.pgbench_accounts", "public.pgbench_tellers", "public.pgbench_branches", "public.pgbench_history")
	const columns = `SELECT string_agg(attrelid::regclass || '.' || attname || ' ' || format_type(atttypid, atttypmod) || coalesce(pg_get_expr(adbin, adrelid), ''), ', ' ORDER BY attrelid::regclass::text, attname)
		FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum WHERE attrelid::regclass::text LIKE 'pgbench%' AND attnum > 0 AND NOT attisdropped`
	if was, is := p.src.QueryString(t, columns), p.dst.QueryString(t, columns); was != is {
		t.Errorf("the destination has\n%s\nwant\n%s", is, was)
	}
	if def := p.dst.QueryString(t, `SELECT coalesce(pg_get_indexdef(to_regclass('accounts_by_balance')), '')`); def == "" {
		t.Error("the index is missing")
	}
	transactions := p.src.QueryString(t, `SELECT count(*) FROM pgbench_history`)
	rate := ""
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "tps") {
			rate = strings.TrimSpace(line)
		}
	}
	t.Logf("%s transactions (%s) and %d schema changes in %s; equal %s behind the last one", transactions, rate, len(changes), ended.Sub(began).Round(time.Millisecond), behind.Round(time.Millisecond))
}
