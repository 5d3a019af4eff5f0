package flo_test

import (
	"context"
	"errors"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

// copiedAlone runs a replicator until the initial copy is in the stream, and f with nobody there to apply it.
func (p *pipeline) copiedAlone(ctx context.Context, f func(r *flo.Replicator), opts ...flo.Option) {
	p.t.Helper()
	r := p.replicator(opts...)
	running := launch(p.t, ctx, r)
	p.published(ctx, r)
	eventually(p.t, ctx, "the copy is in the stream", func() bool { return r.Status().Phase == flo.PhaseStreaming })
	f(r)
	p.published(ctx, r)
	if err := running.stop(); err != nil {
		p.t.Fatal(err)
	}
}

// startSynced starts flo with schema changes, into a destination that it makes itself, and waits until it has caught up.
func (p *pipeline) startSynced(ctx context.Context) {
	p.t.Helper()
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink(postgres.WithSchemaSync(p.src.URL), postgres.WithReplicaRole())))
	p.catchUp(ctx)
}

// pg_dump tells how tables stand when the worker comes to their copy. Those that were altered or dropped since are
// made as they were copied, and the stream brings what has been done to them.
func TestAWorkerThatIsBehindMakesTablesAsTheyWereCopied(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	p.src.Exec(t, `CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (a int, b text);
		CREATE TABLE dropped_column (id int PRIMARY KEY, c text DEFAULT 'old', kept text UNIQUE);
		CREATE TABLE points_at_it (id int PRIMARY KEY, d int REFERENCES dropped_column);
		CREATE TABLE other_type (id int PRIMARY KEY, c text DEFAULT 'old', u int REFERENCES points_at_it);
		CREATE TABLE new_name (id int PRIMARY KEY, c text DEFAULT 'old');
		CREATE TABLE gone (id int PRIMARY KEY, z int);
		CREATE TABLE stricter (id int PRIMARY KEY, v int, w int);
		CREATE TABLE typed (id int PRIMARY KEY, m mood, p pair);
		CREATE TABLE parted (id int, v text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
		CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100); CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
		CREATE INDEX parted_v ON parted (v);
		CREATE TABLE same (id serial PRIMARY KEY, v text); CREATE INDEX same_v ON same (v);
		INSERT INTO dropped_column SELECT i, i, i FROM generate_series(1, 10) i; INSERT INTO points_at_it SELECT i, i FROM generate_series(1, 10) i;
		INSERT INTO other_type SELECT i, i, i FROM generate_series(1, 10) i; INSERT INTO new_name SELECT i, i FROM generate_series(1, 10) i;
		INSERT INTO gone VALUES (1, 1); INSERT INTO stricter VALUES (1), (2); INSERT INTO typed VALUES (1, 'sad', (1, 'x'));
		INSERT INTO parted VALUES (1, 'a'), (101, 'b'); INSERT INTO same (v) VALUES ('a')`)
	p.copiedAlone(ctx, func(*flo.Replicator) {
		for _, sql := range []string{
			`ALTER TABLE dropped_column DROP COLUMN c; INSERT INTO dropped_column (id) VALUES (20)`,
			`ALTER TABLE other_type RENAME COLUMN c TO d; ALTER TABLE other_type ADD COLUMN c int DEFAULT 5; INSERT INTO other_type (id) VALUES (20)`,
			`ALTER TABLE new_name ADD COLUMN n text DEFAULT 'x'`, `INSERT INTO new_name (id) VALUES (20)`, `ALTER TABLE new_name RENAME n TO m`,
			`DROP TABLE gone`,
			`UPDATE stricter SET v = id, w = id`, `ALTER TABLE stricter ALTER v SET NOT NULL, ADD UNIQUE (w), ADD CHECK (w IS NOT NULL)`,
			`ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'`, `ALTER TYPE pair DROP ATTRIBUTE a`, `INSERT INTO typed VALUES (2, 'blue', ROW('y'))`,
			`ALTER TABLE parted DROP COLUMN v; ALTER TABLE parted ADD w int; INSERT INTO parted VALUES (2, 2), (102, 3)`,
			`INSERT INTO same (v) VALUES ('b')`,
		} {
			p.src.Exec(t, sql)
		}
	}, flo.WithDDL())
	p.startSynced(ctx)
	p.sameTables(ctx, "what was altered before the worker came")
	p.src.Exec(t, `ALTER TABLE new_name DROP COLUMN m; ALTER TABLE new_name ADD COLUMN m int DEFAULT 7; INSERT INTO parted VALUES (3, 3)`)
	p.catchUp(ctx)
	p.sameTables(ctx, "what was altered behind it")
}

// A table that joins a group and is dropped again before the worker comes to its copy.
func TestATableThatCameAndWentBeforeTheWorkerStopsNothing(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	p.src.Exec(t, `CREATE TABLE keep (id int PRIMARY KEY); INSERT INTO keep VALUES (1)`)
	p.startSynced(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.copiedAlone(ctx, func(r *flo.Replicator) {
		p.src.Exec(t, `BEGIN; CREATE TABLE x (id int PRIMARY KEY, v text); INSERT INTO x VALUES (1, 'by the copy'); COMMIT`)
		eventually(t, ctx, "its copy is in the stream", func() bool { return p.holds(ctx, "shop", "by the copy") && r.Status().Phase == flo.PhaseStreaming })
		p.src.Exec(t, `DROP TABLE x`)
		p.src.Exec(t, `INSERT INTO keep VALUES (2)`)
	}, flo.WithDDL())
	p.startSynced(ctx)
	p.sameTables(ctx, "the dropped table")
}

// Without event triggers nobody tells how the tables stood.
func TestWithoutDDLATableThatWasAlteredSinceItsCopyIsAClearStop(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	p.src.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, c text); CREATE TABLE gone (id int PRIMARY KEY); INSERT INTO t VALUES (1, 'x'); INSERT INTO gone VALUES (1)`)
	p.copiedAlone(ctx, func(*flo.Replicator) { p.src.Exec(t, `ALTER TABLE t DROP COLUMN c; DROP TABLE gone`) })
	r := p.launch(ctx, flo.WithSink(p.sink(postgres.WithSchemaSync(p.src.URL))))
	err := r.ends(ctx)
	if wantStop(t, err, postgres.ErrSchemaAltered, "public.t", "WithResync"); !errors.As(err, new(*postgres.FitError)) {
		t.Errorf("%v tells nothing of what doesn't fit", err)
	}
}

// Names that were given to other tables while flo was away, which are altered in turn before the worker comes to their copy.
func TestNamesThatOtherTablesHaveByTheirCopy(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	flotest.RequireDump(t, p.src)
	for _, name := range []string{"a", "b", "c"} {
		p.src.Exec(t, `CREATE TABLE `+name+` (id int PRIMARY KEY, n int); INSERT INTO `+name+` SELECT i, i FROM generate_series(1, 10) i`)
	}
	p.startSynced(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `DROP TABLE a; CREATE TABLE a (id int PRIMARY KEY, other text); INSERT INTO a VALUES (1, 'o')`)
	p.src.Exec(t, `ALTER TABLE b RENAME TO b_old; CREATE TABLE b (id int PRIMARY KEY, other text); INSERT INTO b VALUES (1, 'o'); INSERT INTO b_old VALUES (77, 77)`)
	p.src.Exec(t, `BEGIN; CREATE TABLE c_new (LIKE c INCLUDING ALL); INSERT INTO c_new SELECT * FROM c; ALTER TABLE c_new ADD x int DEFAULT 3; ALTER TABLE c RENAME TO c_old; ALTER TABLE c_new RENAME TO c; DROP TABLE c_old; COMMIT`)
	p.src.Exec(t, `INSERT INTO c VALUES (60, 6, 5)`)
	p.copiedAlone(ctx, func(*flo.Replicator) {
		p.src.Exec(t, `ALTER TABLE a RENAME other TO another; INSERT INTO a VALUES (2, 'p'); ALTER TABLE b DROP other; INSERT INTO b VALUES (2)`)
	}, flo.WithDDL())
	p.startSynced(ctx)
	p.sameTables(ctx, "the names' new tables")
}

// DROP TYPE … CASCADE takes attributes of composite types along, and nothing else says so.
func TestAnAttributeGoesWithItsType(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE DOMAIN d AS text; CREATE TYPE e AS ENUM ('a'); CREATE TYPE c AS (a int, d d, e e); CREATE TABLE t (id int PRIMARY KEY, c c, e e)`)
	p.src.Exec(t, `INSERT INTO t VALUES (1, (1, 'x', 'a'), 'a')`)
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink(postgres.WithReplicaRole())))
	p.catchUp(ctx)
	p.src.Exec(t, `DROP DOMAIN d CASCADE; INSERT INTO t VALUES (2, ROW(1, 'a')::c, 'a')`)
	p.src.Exec(t, `DROP TYPE e CASCADE; INSERT INTO t VALUES (3, ROW(1)::c)`)
	p.src.Exec(t, `ALTER TYPE c ADD ATTRIBUTE f int; INSERT INTO t VALUES (4, (1, 2))`)
	p.catchUp(ctx)
	p.sameTables(ctx, "the dropped types")
}
