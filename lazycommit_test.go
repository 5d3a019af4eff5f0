package flo_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
	"github.com/pgflo/flo/state"
)

// The destination's server, which commits without waiting for its disk, is killed again and again and loses what it had
// shown. What it lost is always in the stream still, so that in the end it has everything once.
func TestADestinationThatLosesItsLastCommitsGetsThemAgain(t *testing.T) {
	long(t)
	flotest.RequireOwnServer(t)
	ctx := testContext(t)
	seed := flotest.Seed(t)
	random := rand.New(rand.NewPCG(seed, 0))
	p := newPipeline(t)
	server := flotest.NewServer(t, flotest.WithSetting("wal_writer_delay", "10s"), flotest.WithSetting("wal_writer_flush_after", "1GB"), flotest.WithSetting("autovacuum", "off"))
	p.dst = server.NewDB(t)
	for _, db := range []*flotest.DB{p.src, p.dst} {
		db.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, n int, v text)`)
	}
	p.src.Exec(t, `INSERT INTO t SELECT i, 0, 'copied' FROM generate_series(1, 500) i`)
	stands := func() (cp decode.Checkpoint) {
		t.Helper()
		if err := cp.UnmarshalText([]byte(p.dst.QueryString(t, `SELECT coalesce(max(checkpoint), '') FROM flo.checkpoints`))); err != nil {
			t.Fatal(err)
		}
		return cp
	}
	start := func() {
		p.start(ctx, flo.WithSink(p.sink(postgres.WithSynchronousCommit(postgres.CommitOff))))
	}
	start()
	p.catchUp(ctx)
	store, err := state.NewNATS(ctx, p.jetStream(), "shop", 1, false)
	if err != nil {
		t.Fatal(err)
	}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	written := make(chan error, 1)
	go func() {
		random := rand.New(rand.NewPCG(seed, 1))
		for id := 1000; writing.Err() == nil; id++ {
			sql := fmt.Sprintf(`INSERT INTO t VALUES (%d, 0, 'streamed')`, id)
			switch random.IntN(6) {
			case 0:
				sql += fmt.Sprintf(`; UPDATE t SET n = n + 1 WHERE id BETWEEN %d AND %d`, id-50, id-40)
			case 1:
				sql += fmt.Sprintf(`; DELETE FROM t WHERE id = %d`, id-random.IntN(100))
			}
			err := p.src.TryExec(ctx, sql)
			if err == nil {
				err = pause(ctx, 3*time.Millisecond)
			}
			if err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	lost := 0
	rounds := sized(6, 100)
	var last decode.LSN
	for round := range rounds {
		eventually(t, ctx, "it goes on", func() bool { return p.f.Status().Workers[0].Applied > last })
		if err := pause(ctx, time.Duration(50+random.IntN(300))*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		shown := p.f.Status().Workers[0].Applied
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := p.stop(); err != nil { // with what it had reported by then
			t.Logf("round %d: %v", round, err)
		}
		record, _, err := store.Worker(ctx, "default")
		if err != nil {
			t.Fatal(err)
		}
		if err := server.Start(ctx); err != nil {
			t.Fatal(err)
		}
		cp := stands()
		if cp.End < shown {
			lost++
		}
		if cp.End < record.Checkpoint.End {
			t.Fatalf("round %d: the destination stands at %s, and the stream may be purged up to %s", round, cp.End, record.Checkpoint.End)
		}
		last = cp.End
		start()
	}
	stop()
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	p.catchUp(ctx)
	p.equal(ctx)
	t.Logf("%d of %d crashes lost commits that were shown", lost, rounds)
}

// The destination's server is killed again and again while a table is copied into it, and loses chunks that it had taken:
// none of them counted as drained.
func TestADestinationThatLosesCopiedChunksGetsThemAgain(t *testing.T) {
	long(t)
	flotest.RequireOwnServer(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.nats = flotest.NATS(t, embednats.WithMaxPayload(64<<10))
	p.link = flo.WithNATSServer(p.nats)
	server := flotest.NewServer(t, flotest.WithSetting("wal_writer_delay", "10s"), flotest.WithSetting("wal_writer_flush_after", "1GB"), flotest.WithSetting("autovacuum", "off"))
	p.dst = server.NewDB(t)
	for _, db := range []*flotest.DB{p.src, p.dst} {
		db.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	}
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat(md5(i::text), 4) FROM generate_series(1, 400000) i`)
	chunks := func() int {
		n, err := strconv.Atoi(p.dst.QueryString(t, `SELECT CASE WHEN to_regclass('flo.copy_chunks') IS NULL THEN '0' ELSE
			(xpath('/row/n/text()', query_to_xml('SELECT count(*) AS n FROM flo.copy_chunks', false, true, '')))[1]::text END`))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	kills, lost := 0, 0
	for had := 0; ; {
		p.start(ctx, flo.WithSink(p.sink()))
		ended := false
		eventually(t, ctx, "it goes on, or is whole", func() bool {
			st := p.f.Status().Workers[0]
			ended = st.CopiedSo == 1 || p.dst.QueryString(t, `SELECT count(*) > 0 FROM pg_tables WHERE schemaname = 'flo' AND tablename = 'copies'`) == "true" &&
				p.dst.QueryString(t, `SELECT count(*) FROM flo.copies WHERE state = 'done'`) == "1"
			return ended || chunks() >= had+60
		})
		if ended {
			break
		}
		shown := chunks()
		if err := server.Kill(); err != nil {
			t.Fatal(err)
		}
		kills++
		if err := p.stop(); err != nil {
			t.Logf("kill %d: %v", kills, err)
		}
		if err := server.Start(ctx); err != nil {
			t.Fatal(err)
		}
		if had = chunks(); had < shown {
			lost++
		}
	}
	p.catchUp(ctx)
	p.equal(ctx)
	t.Logf("%d of %d crashes lost chunks that were there", lost, kills)
	if kills == 0 {
		t.Error("the copy was whole before any crash")
	}
}
