package flo_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

// changedWhileDown runs flo on base, does sql while it is down, a transaction for each command, and runs it until it has caught up.
func changedWhileDown(t *testing.T, ctx context.Context, sync bool, base string, sql []string) *pipeline {
	t.Helper()
	p := newPipeline(t)
	p.src.Exec(t, base)
	opts := []postgres.Option{postgres.WithReplicaRole()}
	if sync {
		flotest.RequireDump(t, p.src)
		opts = append(opts, postgres.WithSchemaSync(p.src.URL))
	}
	p.ranOnce(ctx, flo.WithDDL(), flo.WithSink(p.sink(opts...)))
	oneByOne(t, p.src, strings.Join(sql, ";"))
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink(opts...)))
	p.catchUp(ctx)
	return p
}

// Partitions change places while flo is down, so that the copies of new ones come before the stream tells of what became of the old.
func TestPartitionsThatChangePlacesWhileFloIsDown(t *testing.T) {
	long(t)
	parallel(t)
	const base = `CREATE TABLE td (id int, p int, c text, PRIMARY KEY (id, p)) PARTITION BY RANGE (p); CREATE TABLE td1 PARTITION OF td FOR VALUES FROM (0) TO (25);
		INSERT INTO td SELECT i, i, 'x' FROM generate_series(0, 24) i; CREATE TABLE tx (id int, p int, c text, PRIMARY KEY (id, p))`
	for name, sql := range map[string][]string{
		"overlap":      {`ALTER TABLE td DETACH PARTITION td1`, `CREATE TABLE tdn PARTITION OF td FOR VALUES FROM (0) TO (25)`, `INSERT INTO td VALUES (100, 5, 'y')`},
		"default":      {`ALTER TABLE td DETACH PARTITION td1`, `CREATE TABLE tdd PARTITION OF td DEFAULT`, `INSERT INTO td VALUES (100, 5, 'y')`},
		"made again":   {`DROP TABLE td1`, `CREATE TABLE td1 PARTITION OF td FOR VALUES FROM (0) TO (25)`, `INSERT INTO td VALUES (100, 5, 'y')`},
		"split":        {`ALTER TABLE td DETACH PARTITION td1; CREATE TABLE a PARTITION OF td FOR VALUES FROM (0) TO (10); CREATE TABLE b PARTITION OF td FOR VALUES FROM (10) TO (25); INSERT INTO td SELECT * FROM td1; DROP TABLE td1`, `UPDATE td SET c = 'z' WHERE p = 3`},
		"other bounds": {`ALTER TABLE td DETACH PARTITION td1`, `UPDATE td1 SET p = 40`, `ALTER TABLE td ATTACH PARTITION td1 FOR VALUES FROM (40) TO (50)`, `CREATE TABLE td2 PARTITION OF td FOR VALUES FROM (0) TO (25)`, `INSERT INTO td VALUES (100, 5, 'y'), (101, 46, 'z')`},
		"rewritten":    {`ALTER TABLE td ADD n float8 DEFAULT random()`, `ALTER TABLE td DETACH PARTITION td1`, `UPDATE td1 SET p = 40`, `ALTER TABLE td ATTACH PARTITION td1 FOR VALUES FROM (40) TO (50)`},
		"rewritten and replaced": {`ALTER TABLE tx ADD n float8`, `ALTER TABLE td ADD n float8 DEFAULT random()`, `ALTER TABLE td DETACH PARTITION td1`, `ALTER TABLE td ATTACH PARTITION tx FOR VALUES FROM (0) TO (25)`,
			`INSERT INTO td VALUES (100, 5, 'y', 1); UPDATE td1 SET c = 'z' WHERE p < 5`},
		"rewritten and moved": {`ALTER TABLE tx ADD n float8`, `ALTER TABLE td ADD n float8 DEFAULT random()`, `ALTER TABLE td DETACH PARTITION td1`, `ALTER TABLE td ATTACH PARTITION tx DEFAULT`,
			`INSERT INTO td VALUES (100, 5, 'y', 1)`, `ALTER TABLE td DETACH PARTITION tx`, `ALTER TABLE td ATTACH PARTITION tx FOR VALUES FROM (0) TO (30)`, `UPDATE td1 SET p = 40`, `ALTER TABLE td ATTACH PARTITION td1 FOR VALUES FROM (40) TO (50)`},
		"names that change": {`ALTER TABLE td ADD r float8 DEFAULT random()`, `ALTER TABLE td RENAME c TO sw`, `ALTER TABLE td RENAME id TO c`, `ALTER TABLE td RENAME sw TO id`, `INSERT INTO td VALUES (100, 5, 'y', 1)`},
		"another name":      {`ALTER TABLE td RENAME TO old`, `CREATE TABLE td (id int PRIMARY KEY, v text)`, `INSERT INTO td VALUES (1, 'new'); INSERT INTO old VALUES (100, 5, 'y')`},
	} {
		for _, sync := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s schema sync %v", name, sync), func(t *testing.T) {
				t.Parallel()
				ctx := testContext(t)
				p := changedWhileDown(t, ctx, sync, base, sql)
				const tables = `SELECT string_agg(relname || ' ' || coalesce(pg_get_expr(relpartbound, oid), ''), ', ' ORDER BY relname) FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace`
				if got, want := p.dst.QueryString(t, tables), p.src.QueryString(t, tables); got != want {
					t.Errorf("the destination has %s, want %s", got, want)
				}
				p.equal(ctx)
			})
		}
	}
}

// Without event triggers a partition's new columns are its root's.
func TestPartitionsAreAlteredByTheirRootWithoutEventTriggers(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	const base = `CREATE TABLE td (id int, p int, c text, PRIMARY KEY (id, p)) PARTITION BY RANGE (p); CREATE TABLE td1 PARTITION OF td FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
		CREATE TABLE td1a PARTITION OF td1 DEFAULT; CREATE TABLE td2 PARTITION OF td FOR VALUES FROM (10) TO (20)`
	p.src.Exec(t, base+`; INSERT INTO td SELECT i, i, 'x' FROM generate_series(0, 19) i`)
	p.dst.Exec(t, base)
	p.start(ctx, flo.WithDDLFromRelations(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	for _, sql := range []string{
		`INSERT INTO td VALUES (100, 5, 'y'), (101, 15, 'y')`, `ALTER TABLE td ADD n int DEFAULT 7`, `UPDATE td SET n = 8 WHERE id = 3; INSERT INTO td VALUES (102, 5, 'y', 5), (103, 15, 'y', 6)`,
		`ALTER TABLE td ALTER n TYPE bigint`, `INSERT INTO td VALUES (104, 5, 'y', 10000000000)`, `ALTER TABLE td DROP c`, `INSERT INTO td VALUES (105, 5, 9), (106, 15, 9)`,
	} {
		p.src.Exec(t, sql)
		p.catchUp(ctx)
	}
	p.equal(ctx, "td1a", "td2")
}

// Names of tables, indexes and constraints are given to new tables while flo is down: the copies of these come first.
func TestNamesThatChangeHandsWhileFloIsDown(t *testing.T) {
	long(t)
	parallel(t)
	const base = `CREATE TABLE ta (id int PRIMARY KEY, c int, CONSTRAINT uq UNIQUE (c)); CREATE INDEX i1 ON ta (c); INSERT INTO ta VALUES (1, 1)`
	for name, sql := range map[string][]string{
		"a key":        {`ALTER TABLE ta RENAME TO tb; ALTER TABLE tb RENAME CONSTRAINT ta_pkey TO k1`, `CREATE TABLE ta (id int PRIMARY KEY)`, `INSERT INTO ta VALUES (1); INSERT INTO tb VALUES (2)`},
		"an index":     {`ALTER TABLE ta RENAME TO tz; ALTER INDEX i1 RENAME TO i2; ALTER INDEX ta_pkey RENAME TO k`, `CREATE TABLE ta (id int PRIMARY KEY, c int)`, `CREATE INDEX i1 ON ta (c)`, `INSERT INTO tz VALUES (7)`},
		"dropped":      {`DROP INDEX i1`, `CREATE TABLE tb (id int PRIMARY KEY, c int)`, `CREATE INDEX i1 ON tb (c)`, `INSERT INTO tb VALUES (1)`},
		"a constraint": {`ALTER TABLE ta DROP CONSTRAINT uq`, `CREATE TABLE tb (id int PRIMARY KEY, c int, CONSTRAINT uq UNIQUE (c))`, `INSERT INTO tb VALUES (1); INSERT INTO ta VALUES (2, 1)`},
		"a table":      {`DROP TABLE ta`, `CREATE TABLE tb (id int CONSTRAINT ta_pkey PRIMARY KEY, c int)`, `INSERT INTO tb VALUES (1)`},
		"renamed":      {`ALTER INDEX i1 RENAME TO i2`, `CREATE TABLE tb (id int PRIMARY KEY, c int)`, `CREATE INDEX i1 ON tb (c)`, `INSERT INTO tb VALUES (1)`},
	} {
		for _, sync := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s schema sync %v", name, sync), func(t *testing.T) {
				t.Parallel()
				ctx := testContext(t)
				p := changedWhileDown(t, ctx, sync, base, sql)
				const all = `SELECT string_agg(c.relname || coalesce(' of ' || t.relname, ''), ', ' ORDER BY c.relname) FROM pg_class c
					LEFT JOIN pg_index i ON i.indexrelid = c.oid LEFT JOIN pg_class t ON t.oid = i.indrelid WHERE c.relkind IN ('r', 'i') AND c.relnamespace = 'public'::regnamespace`
				if got, want := p.dst.QueryString(t, all), p.src.QueryString(t, all); got != want {
					t.Errorf("the destination has %s, want %s", got, want)
				}
				p.equal(ctx)
			})
		}
	}
}

// A table that is made while flo is down refers to a row that the stream has yet to bring.
func TestAForeignKeyToARowThatComesLater(t *testing.T) {
	parallel(t)
	const base = `CREATE TABLE pa (id int PRIMARY KEY); INSERT INTO pa VALUES (1)`
	for name, sql := range map[string][]string{
		"a table":       {`INSERT INTO pa VALUES (5)`, `CREATE TABLE ch (id int PRIMARY KEY, p int CONSTRAINT fk REFERENCES pa)`, `INSERT INTO ch VALUES (1, 5), (2, 1)`},
		"a partitioned": {`INSERT INTO pa VALUES (5)`, `CREATE TABLE ch (id int PRIMARY KEY, p int CONSTRAINT fk REFERENCES pa) PARTITION BY RANGE (id); CREATE TABLE ch1 PARTITION OF ch DEFAULT`, `INSERT INTO ch VALUES (1, 5), (2, 1)`},
	} {
		for _, sync := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s schema sync %v", name, sync), func(t *testing.T) {
				t.Parallel()
				ctx := testContext(t)
				p := changedWhileDown(t, ctx, sync, base, sql)
				if n := p.dst.QueryString(t, `SELECT count(*) FROM pg_constraint WHERE conname = 'fk' AND conrelid = 'ch'::regclass`); n != "1" {
					t.Errorf("the destination has %s foreign keys", n)
				}
				p.equal(ctx)
			})
		}
	}
}
