package flo_test

import (
	"context"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// No message is sent again because the sink is slow: the consumers ask for no acknowledgement, so that no wait for one can
// run out, and one that the server removed meanwhile, because nobody asked it for more, is followed by another one at the same place.
func TestASinkSlowerThanAnyAckWaitGetsNothingTwice(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var mu sync.Mutex
	seen := map[decode.Position]int{}
	p.start(ctx, flo.WithMode(flo.StreamOnly), flo.WithBatchSize(5), flo.WithSink(sink.Func(func(ctx context.Context, b *sink.Batch) error {
		mu.Lock()
		for _, c := range b.Changes {
			seen[c.Position()]++
		}
		mu.Unlock()
		once.Do(func() {
			close(held)
			select {
			case <-release:
			case <-ctx.Done():
			}
		})
		return ctx.Err()
	})))
	p.catchUp(ctx)
	for i := range 20 {
		p.src.Exec(t, `INSERT INTO t VALUES ($1, 'x')`, i)
	}
	select {
	case <-held:
	case <-ctx.Done():
		t.Fatal("the sink got nothing")
	}
	s, removed := p.stream(ctx), 0
	consumers := s.ListConsumers(ctx)
	for c := range consumers.Info() {
		if c.Config.AckPolicy != jetstream.AckNonePolicy {
			t.Errorf("consumer %s waits %v for an acknowledgement", c.Name, c.Config.AckWait)
		}
		if err := s.DeleteConsumer(ctx, c.Name); err != nil {
			t.Fatal(err)
		}
		removed++
	}
	if err := consumers.Err(); err != nil || removed == 0 {
		t.Fatalf("%d consumers: %v", removed, err)
	}
	p.src.Exec(t, `INSERT INTO t SELECT i, 'y' FROM generate_series(100, 149) i`)
	close(release)
	p.catchUp(ctx)
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 70 {
		t.Errorf("%d changes, want 70", len(seen))
	}
	for at, n := range seen {
		if n != 1 {
			t.Errorf("the change at %s came %d times", at, n)
		}
	}
}

// A row whose identity has NULLs is found by them, and no other one with it.
func TestANullInAnIdentityFindsItsRow(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE f (a int, b text, c int); ALTER TABLE f REPLICA IDENTITY FULL`)
	p.src.Exec(t, `INSERT INTO f VALUES (1, NULL, 1), (1, 'x', 1), (NULL, NULL, 2), (NULL, 'y', 2), (NULL, NULL, NULL), (2, NULL, 3), (2, NULL, 3)`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	for _, sql := range []string{
		`UPDATE f SET a = 5 WHERE a = 1 AND b IS NULL`, `DELETE FROM f WHERE c IS NULL`, `UPDATE f SET b = 'z' WHERE a IS NULL AND b IS NULL`,
		`DELETE FROM f WHERE ctid = (SELECT min(ctid) FROM f WHERE a = 2)`, `UPDATE f SET a = NULL, b = NULL, c = NULL WHERE b = 'y'`,
	} {
		p.src.Exec(t, sql)
		p.catchUp(ctx)
		p.equal(ctx)
	}
}

// A destination that can't serialize a transaction with others takes it later: a constraint there says so twice of copied
// rows, and then twice of streamed ones. The table without a key shows what would come twice.
func TestASerializationFailureAtTheDestinationIsTriedAgain(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, keylessTable)
	p.dst.Exec(t, `CREATE SEQUENCE tries;
		CREATE FUNCTION serializes() RETURNS bool LANGUAGE plpgsql AS 'BEGIN
			IF nextval(''public.tries'') <= 2 THEN RAISE ''could not serialize access due to concurrent update'' USING ERRCODE = ''serialization_failure''; END IF;
			RETURN true; END';
		ALTER TABLE log ADD CHECK (serializes())`)
	p.src.Exec(t, `INSERT INTO log (what) SELECT 'copied' FROM generate_series(1, 100)`)
	arrived := func() {
		t.Helper()
		p.catchUp(ctx)
		p.equal(ctx, "log")
		if n := p.dst.QueryString(t, `SELECT last_value > 2 FROM tries`); n != "t" {
			t.Error("nothing was refused")
		}
	}
	p.start(ctx, flo.WithSink(p.sink()))
	arrived()
	p.dst.Exec(t, `ALTER SEQUENCE tries RESTART`)
	for range 10 {
		p.src.Exec(t, `INSERT INTO log (what) VALUES ('streamed'), ('too')`)
	}
	arrived()
}
