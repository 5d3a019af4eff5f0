package flo_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink/postgres"
)

// writeBeside runs one statement after the other at the source, each with the next number as $1, until the returned
// function is called.
func (p *pipeline) writeBeside(ctx context.Context, statements ...string) (stop func()) {
	p.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			conn, err := pgx.Connect(ctx, p.src.URL)
			if err != nil {
				return err
			}
			defer conn.Close(context.WithoutCancel(ctx))
			for n := 1; ctx.Err() == nil; n++ {
				if _, err := conn.Exec(ctx, statements[n%len(statements)], n); err != nil && ctx.Err() == nil && !deadlocked(err) {
					return err
				}
			}
			return nil
		}()
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			p.t.Errorf("writing beside: %v", err)
		}
	}
	p.t.Cleanup(stop)
	return stop
}

// deadlocked reports whether the server chose a statement as a deadlock's victim. A row into a partition locks that before
// the partitioned table, attaching and detaching the other way round.
func deadlocked(err error) bool { return pgsession.SQLState(err) == "40P01" }

// alterBeside is for a command that writers may meet in a deadlock.
func (p *pipeline) alterBeside(ctx context.Context, sql string) {
	p.t.Helper()
	conn := p.src.Conn(p.t)
	for {
		_, err := conn.Exec(ctx, sql)
		if err == nil {
			return
		}
		if !deadlocked(err) {
			p.t.Fatalf("%s: %v", sql, err)
		}
	}
}

const attachable = `CREATE TABLE parts (id bigint PRIMARY KEY, v text) PARTITION BY RANGE (id);
	CREATE TABLE low PARTITION OF parts FOR VALUES FROM (0) TO (1000000);
	CREATE TABLE alone (id bigint PRIMARY KEY, v text, CHECK (id >= 1000000 AND id < 2000000))`

// A table of the group becomes a partition, and ceases to be one, while it is written to, by itself and through the
// partitioned table: nothing is lost and nothing comes twice.
func TestATableIsAttachedAndDetachedWhileItStreams(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, attachable)
	p.src.Exec(t, `INSERT INTO parts SELECT i, 'copied' FROM generate_series(500000, 501000) i; INSERT INTO alone SELECT i, 'copied' FROM generate_series(1500000, 1501000) i`)
	r := p.launch(ctx, flo.WithSink(p.sink(postgres.WithReplicaRole())))
	p.catchUp(ctx)
	stop := p.writeBeside(ctx, `INSERT INTO parts VALUES ($1, 'through the root')`, `INSERT INTO alone VALUES (1000000 + $1, 'by itself')`,
		`UPDATE alone SET v = v || '.' WHERE id = 1500000 + $1 % 1000`, `DELETE FROM alone WHERE id = 1000000 + $1 - 100`)
	const attach = `ALTER TABLE parts ATTACH PARTITION alone FOR VALUES FROM (1000000) TO (2000000)`
	for range 5 {
		p.alterBeside(ctx, attach)
		// Rows move between partitions, in the same transaction as others.
		p.src.Exec(t, `BEGIN; UPDATE parts SET id = id + 1000000 WHERE id IN (SELECT id FROM low WHERE id < 500000 ORDER BY id LIMIT 3); UPDATE parts SET v = 'both' WHERE id IN (500001, 1500001); COMMIT`)
		p.alterBeside(ctx, `ALTER TABLE parts DETACH PARTITION alone`)
	}
	p.alterBeside(ctx, attach)
	p.src.Exec(t, `UPDATE parts SET v = 'attached' WHERE id IN (500002, 1500002); TRUNCATE low; INSERT INTO parts VALUES (500001, 'anew')`)
	stop()
	p.catchUp(ctx)
	p.dst.Exec(t, attach) // without WithDDL the destination is its owner's matter
	p.equal(ctx, "public.low", "public.alone")
	p.src.Exec(t, `UPDATE parts SET v = 'behind' WHERE id % 7 = 0; DELETE FROM parts WHERE id % 11 = 0`)
	p.catchUp(ctx)
	p.equal(ctx, "public.low", "public.alone")
	r.running()
	for table, attempt := range p.attempts() {
		if attempt != "1" {
			t.Errorf("%s was copied again (attempt %s)", table, attempt)
		}
	}
}

// A table that is not the group's is attached to one that is: there is a warning by name, and the next start copies
// it; nothing of the others is copied again.
func TestANewTableThatIsAttachedIsNamedAndCopiedByTheNextStart(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, attachable)
	opts := func() []flo.Option {
		return []flo.Option{flo.WithTables("parts"), flo.WithIdleInterval(100 * time.Millisecond), flo.WithSink(p.sink(postgres.WithReplicaRole()))}
	}
	p.src.Exec(t, `INSERT INTO parts SELECT i, 'copied' FROM generate_series(500000, 501000) i; INSERT INTO alone SELECT i, 'before' FROM generate_series(1500000, 1501000) i`)
	r := p.launch(ctx, opts()...)
	p.catchUp(ctx)
	stop := p.writeBeside(ctx, `INSERT INTO parts VALUES ($1, 'through the root')`, `INSERT INTO alone VALUES (1000000 + $1, 'by itself')`,
		`UPDATE alone SET v = v || '.' WHERE id = 1500000 + $1 % 1000`)
	p.alterBeside(ctx, `ALTER TABLE parts ATTACH PARTITION alone FOR VALUES FROM (1000000) TO (2000000)`)
	eventually(t, ctx, "the new partition is warned of", func() bool {
		r.running()
		return strings.Contains(strings.Join(p.f.Status().Replicator.Warnings, "\n"), `"alone"`)
	})
	if n := p.dst.QueryString(t, `SELECT count(*) FROM alone`); n != "0" {
		t.Errorf("%s rows of a table that the group has not", n)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = p.launch(ctx, opts()...) // writers go on beside the copy
	eventually(t, ctx, "the new partition is copied", func() bool { r.running(); return p.attempts()["alone"] == "2" })
	stop()
	p.src.Exec(t, `UPDATE parts SET id = 1900000 WHERE id = 500003; DELETE FROM parts WHERE id = 1500009`)
	p.catchUp(ctx)
	p.equal(ctx, "public.low", "public.alone")
	if got := p.attempts()["low"]; got != "1" {
		t.Errorf("the other partition was copied again (attempt %s)", got)
	}
}

// The owner's publication of a partitioned table publishes a partition from the moment it is attached: what it held
// before is copied, and what is written meanwhile neither gets lost nor comes twice.
func TestAPartitionAttachedUnderTheOwnersPublicationIsCopied(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, attachable)
	p.src.Exec(t, `CREATE PUBLICATION shop_pub FOR TABLE parts; INSERT INTO parts SELECT i, 'copied' FROM generate_series(500000, 501000) i;
		INSERT INTO alone SELECT i, 'before' FROM generate_series(1500000, 1501000) i`)
	r := p.launch(ctx, flo.WithPublication("shop_pub"), flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink(postgres.WithReplicaRole())))
	p.catchUp(ctx)
	stop := p.writeBeside(ctx, `INSERT INTO parts VALUES ($1, 'through the root')`, `INSERT INTO alone VALUES (1000000 + $1, 'by itself')`,
		`UPDATE alone SET v = v || '.' WHERE id = 1500000 + $1 % 1000`, `DELETE FROM alone WHERE id = 1000000 + $1 - 100`)
	p.alterBeside(ctx, `ALTER TABLE parts ATTACH PARTITION alone FOR VALUES FROM (1000000) TO (2000000)`)
	eventually(t, ctx, "the partition is copied", func() bool { r.running(); return p.attempts()["alone"] != "" })
	stop()
	p.src.Exec(t, `UPDATE parts SET id = 1900000 WHERE id = 500003; DELETE FROM parts WHERE id = 1500009`)
	p.catchUp(ctx)
	p.equal(ctx, "public.low", "public.alone")
	r.running()
	if got := fmt.Sprint(p.attempts()); got != "map[alone:2 low:1]" {
		t.Errorf("copied by attempts %s", got)
	}
}

// TRUNCATE … CASCADE reaches what points at the table, at the destination as at the source: in one statement, in
// order with the rows around it, though the destination's keys forbid each TRUNCATE by itself.
func TestTruncateCascadeOverForeignKeysIsOneStatement(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE customers (id int PRIMARY KEY, v text);
		CREATE TABLE orders (id serial PRIMARY KEY, customer int NOT NULL REFERENCES customers, v text);
		CREATE TABLE items (id int, "order" int NOT NULL REFERENCES orders ON DELETE CASCADE, PRIMARY KEY (id, "order"));
		CREATE TABLE log (what text); CREATE TABLE untouched (id int PRIMARY KEY REFERENCES customers DEFERRABLE)`)
	const fill = `INSERT INTO customers SELECT i, 'c' FROM generate_series(1, 50) i; INSERT INTO orders (customer, v) SELECT 1 + i % 50, 'o' FROM generate_series(1, 200) i;
		INSERT INTO items SELECT i, o.id FROM orders o, generate_series(1, 3) i; INSERT INTO log VALUES ('filled')`
	p.src.Exec(t, fill)
	p.src.Exec(t, `ALTER TABLE untouched DROP CONSTRAINT untouched_id_fkey; INSERT INTO untouched VALUES (1), (2)`)
	p.dst.Exec(t, `ALTER TABLE untouched DROP CONSTRAINT untouched_id_fkey`)
	r := p.launch(ctx, flo.WithSink(p.sink(postgres.WithReplicaRole())))
	p.catchUp(ctx)
	p.equal(ctx)
	for _, sql := range []string{
		`INSERT INTO orders (customer, v) VALUES (1, 'before'); TRUNCATE customers RESTART IDENTITY CASCADE; ` + fill,
		`BEGIN; DELETE FROM items WHERE id = 2; TRUNCATE orders CASCADE; INSERT INTO orders (id, customer) VALUES (1000, 2); INSERT INTO items VALUES (1, 1000); SAVEPOINT s; TRUNCATE customers CASCADE; ROLLBACK TO s; COMMIT`,
		`BEGIN; TRUNCATE customers, log CASCADE; INSERT INTO customers VALUES (1, 'again'); TRUNCATE customers CASCADE; INSERT INTO customers VALUES (2, 'and again'); COMMIT`,
		`TRUNCATE items; TRUNCATE customers CASCADE`,
	} {
		p.src.Exec(t, sql)
		p.catchUp(ctx)
		p.equal(ctx)
	}
	if n := p.dst.QueryString(t, `SELECT count(*) FROM untouched`); n != "2" {
		t.Errorf("a table that nothing points from has %s rows, want its 2", n)
	}
	r.running()
}
