package flo_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/rules"
)

// twoLarge are tables of 16 and 14 MB, copied in this order, and a small one.
const (
	twoLarge = `CREATE TABLE first (id int PRIMARY KEY, v text); CREATE TABLE second (id int PRIMARY KEY, v text); CREATE TABLE small (id int PRIMARY KEY, v text)`
	fillTwo  = `ALTER TABLE first ALTER v SET STORAGE EXTERNAL; ALTER TABLE second ALTER v SET STORAGE EXTERNAL;
		INSERT INTO first SELECT i, repeat('x', 10000) FROM generate_series(1, 1800) i;
		INSERT INTO second SELECT i, repeat('y', 10000) FROM generate_series(1, 1750) i;
		INSERT INTO small SELECT i, 'z' FROM generate_series(1, 100) i`
)

// holdBack runs a replicator alone until the stream's limit stops the copy in the middle of the second table. What is
// on its way then, up to a publisher's window of 8 MiB, still gets in.
func holdBack(t *testing.T, ctx context.Context, p *pipeline, opts ...flo.Option) (*flo.Replicator, *run) {
	t.Helper()
	rep := p.replicator(append(opts, flo.WithStreamMaxBytes(32<<20), flo.WithCopyConnections(1))...)
	r := launch(t, ctx, rep)
	s := p.madeStream(ctx)
	eventually(t, ctx, "the copy is held back", func() bool {
		r.running()
		info, err := s.Info(ctx)
		return err == nil && info.State.Bytes > 24<<20
	})
	return rep, r
}

// attempts gives the attempt by which each source table was copied, as the sink has noted it.
func (p *pipeline) attempts() map[string]string {
	p.t.Helper()
	attempts := map[string]string{}
	if p.dst.QueryString(p.t, `SELECT coalesce(to_regclass('flo.copies')::text, '')`) == "" {
		return attempts
	}
	for _, pair := range strings.Fields(p.dst.QueryString(p.t, `SELECT coalesce(string_agg(dest_table || '=' || attempt, ' '), '') FROM flo.copies`)) {
		table, attempt, _ := strings.Cut(pair, "=")
		attempts[table] = attempt
	}
	return attempts
}

func TestAnInterruptedCopyGoesOnWithWhatIsNotWhole(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, twoLarge)
	p.src.Exec(t, fillTwo)
	_, r := holdBack(t, ctx, p)
	p.src.Exec(t, `UPDATE first SET v = 'beside' WHERE id % 100 = 0; DELETE FROM second WHERE id % 100 = 1; INSERT INTO second VALUES (-1, 'beside')`)
	if err := r.stop(); err != nil && !errors.Is(err, flo.ErrNotDrained) { // the stream is full
		t.Fatal(err)
	}
	p.src.Exec(t, `UPDATE first SET v = 'between' WHERE id % 100 = 2; UPDATE second SET id = -id WHERE id % 100 = 3; INSERT INTO second VALUES (-2, 'between')`)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithStreamMaxBytes(32<<20))
	p.src.Exec(t, `UPDATE second SET v = 'behind' WHERE id % 100 = 4; DELETE FROM small WHERE id < 10`)
	p.catchUp(ctx)
	p.equal(ctx)
	if got := p.attempts(); got["first"] != "1" || got["second"] != "2" || got["small"] != "2" {
		t.Errorf("copied by attempts %v, want the first table by 1 and the others by 2", got)
	}
	if cp := p.dst.QueryString(t, `SELECT checkpoint FROM flo.checkpoints`); strings.Contains(cp, "skip") {
		t.Errorf("the checkpoint still names tables to skip: %s", cp)
	}
}

func TestATableThatJoinsIsCopiedAndOneThatLeavesIsNot(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable, twoLarge)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'); INSERT INTO small VALUES (1, 'a')`)
	p.ranOnce(ctx, flo.WithTables("t"), flo.WithSink(p.sink()))
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'b'); INSERT INTO small VALUES (2, 'b')`)
	p.start(ctx, flo.WithTables("t", "small"), flo.WithSink(p.sink()))
	p.src.Exec(t, `UPDATE small SET v = 'c' WHERE id = 1; INSERT INTO small VALUES (3, 'c'); INSERT INTO t VALUES (3, 'c')`)
	p.catchUp(ctx)
	p.equal(ctx, "t", "small")
	if got := p.attempts(); got["t"] != "1" || got["small"] != "2" {
		t.Errorf("copied by attempts %v", got)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithTables("small"), flo.WithSink(p.sink()))
	eventually(t, ctx, "it streams", func() bool { return p.f.Status().Replicator.Phase == flo.PhaseStreaming })
	p.src.Exec(t, `INSERT INTO t VALUES (4, 'd'); INSERT INTO small VALUES (4, 'd')`)
	p.catchUp(ctx)
	p.equal(ctx, "small")
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "3" {
		t.Errorf("the table that left has %s rows at the destination, want 3", n)
	}
}

// The drop commits between the look at the catalog and the change of the publication, which waits for it.
func TestATableThatIsDroppedWhileItJoinsStopsNothing(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.ranOnce(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `CREATE TABLE brief (id int PRIMARY KEY)`)
	p.dst.Exec(t, `CREATE TABLE brief (id int PRIMARY KEY)`)
	dropping, watch := p.src.Conn(t), p.src.Conn(t)
	if _, err := dropping.Exec(ctx, `BEGIN; LOCK TABLE brief IN SHARE UPDATE EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithSink(p.sink()))
	eventually(t, ctx, "the publication waits for the drop", func() (waits bool) {
		err := watch.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'brief'::regclass AND NOT granted AND mode = 'ShareUpdateExclusiveLock')`).Scan(&waits)
		return err == nil && waits
	})
	if _, err := dropping.Exec(ctx, `DROP TABLE brief; COMMIT`); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a')`)
	p.catchUp(ctx)
	p.equal(ctx, "t")
}

func TestATableMadeAgainUnderItsNameIsCopiedAfresh(t *testing.T) {
	for _, running := range []bool{false, true} {
		t.Run(map[bool]string{false: "while stopped", true: "while running"}[running], func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, smallTable, keylessTable)
			p.src.Exec(t, `INSERT INTO t SELECT i, 'old' FROM generate_series(1, 100) i; INSERT INTO log (what) VALUES ('copied')`)
			p.start(ctx, flo.WithSink(p.sink()))
			p.catchUp(ctx)
			remake := func() {
				p.src.Exec(t, `DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'new' FROM generate_series(50, 120) i; INSERT INTO log (what) VALUES ('streamed')`)
			}
			if !running {
				if err := p.stop(); err != nil {
					t.Fatal(err)
				}
				remake()
				p.start(ctx, flo.WithSink(p.sink()))
			} else {
				remake()
				eventually(t, ctx, "the new table's copy", func() bool { return p.attempts()["t"] == "2" })
			}
			p.catchUp(ctx)
			p.src.Exec(t, `UPDATE t SET v = 'newer' WHERE id % 2 = 0`)
			p.catchUp(ctx)
			p.equal(ctx)
		})
	}
}

// Two tables go into one, and the copy is cut short at many moments: the rows of the one that is whole stay, or both
// come again together.
func TestCopiesIntoOneTableAreCutShort(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	for _, db := range []*flotest.DB{p.src, p.dst} {
		db.Exec(t, `CREATE TABLE both_of (origin text, id int, v text, PRIMARY KEY (origin, id))`)
	}
	p.src.Exec(t, `CREATE TABLE a (LIKE both_of INCLUDING ALL); CREATE TABLE b (LIKE both_of INCLUDING ALL);
		INSERT INTO a SELECT 'a', i, repeat(md5(i::text), 40) FROM generate_series(1, 30000) i;
		INSERT INTO b SELECT 'b', i, repeat(md5(i::text), 40) FROM generate_series(1, 25000) i`)
	routes := flo.WithRules(rules.Route("a", "both_of", rules.PassTruncate()), rules.Route("b", "both_of", rules.PassTruncate()))
	opts := func() []flo.Option {
		return []flo.Option{flo.WithTables("a", "b"), routes, flo.WithSink(p.sink())}
	}
	for _, after := range []time.Duration{400, 900, 600, 1200, 800, 500} {
		p.start(ctx, opts()...)
		if err := pause(ctx, after*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		p.src.Exec(t, `UPDATE a SET v = v || '.' WHERE id % 1000 = 1; DELETE FROM b WHERE id = (SELECT max(id) FROM b); INSERT INTO a SELECT 'a', max(id) + 1, 'new' FROM a`)
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
	}
	p.start(ctx, opts()...)
	p.catchUp(ctx)
	const sum = `SELECT count(*) || ' ' || coalesce(sum(hashtextextended(r::text, 0)), 0) FROM `
	if got, want := p.dst.QueryString(t, sum+`both_of r`), p.src.QueryString(t, sum+`(TABLE a UNION ALL TABLE b) r`); got != want {
		t.Errorf("the destination has %s, the sources %s", got, want)
	}
}

// A chunk that NATS has lost is missed by the table's end: the worker asks for a fresh copy of that table.
func TestACopyThatNATSLostAPartOfIsMadeAfresh(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, twoLarge)
	p.src.Exec(t, fillTwo)
	rep := p.replicator(flo.WithCopyConnections(1))
	r := launch(t, ctx, rep)
	eventually(t, ctx, "the copy is whole", func() bool { r.running(); return rep.Status().CopyDone })
	lost := false
	for _, m := range p.messages(ctx) {
		if m.has(wire.RecCopyChunk) {
			if err := p.stream(ctx).DeleteMsg(ctx, m.seq); err != nil {
				t.Fatal(err)
			}
			lost = true
			break
		}
	}
	if !lost {
		t.Fatal("no copied rows in the stream")
	}
	p.src.Exec(t, `UPDATE first SET v = 'beside' WHERE id = 1; UPDATE second SET v = 'beside' WHERE id = 1`)
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	eventually(t, ctx, "the fresh copy", func() bool { w.running(); return p.attempts()["first"] == "2" })
	f, err := flo.New(p.options(flo.WithSink(p.sink()))...)
	if err != nil {
		t.Fatal(err)
	}
	p.f = f
	p.catchUp(ctx)
	p.equal(ctx)
	if got := p.attempts(); got["second"] != "1" || got["small"] != "1" {
		t.Errorf("copied by attempts %v, want the others by 1", got)
	}
	r.running()
}

// The slot waits for an open transaction; a column that is added meanwhile, its old rows filled, is copied too.
func TestAColumnAddedWhileTheSlotIsMadeIsCopied(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 1000) i; CREATE TABLE elsewhere (id int)`)
	conn := p.src.Conn(t)
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO elsewhere VALUES (1)`); err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithTables("t"), flo.WithSink(p.sink()))
	eventually(t, ctx, "the slot waits", func() bool {
		return strings.Contains(strings.Join(p.f.Status().Replicator.Warnings, "\n"), "waiting for an older transaction")
	})
	p.dst.Exec(t, `ALTER TABLE t ADD COLUMN c int DEFAULT 5`)
	p.src.Exec(t, `ALTER TABLE t ADD COLUMN c int DEFAULT 5`)
	p.src.Exec(t, `UPDATE t SET c = id`)
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	p.catchUp(ctx)
	p.equal(ctx, "t")
}

func TestATableDroppedBeforeItsCopyDoesNotStopTheOthers(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, twoLarge)
	p.src.Exec(t, fillTwo)
	rep, r := holdBack(t, ctx, p)
	p.src.Exec(t, `DROP TABLE small`)
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	eventually(t, ctx, "the copy is whole", func() bool { r.running(); w.running(); return rep.Status().CopyDone })
	p.src.Exec(t, `UPDATE second SET v = 'streamed' WHERE id = 1`)
	eventually(t, ctx, "the change", func() bool {
		w.running()
		return p.dst.QueryString(t, `SELECT coalesce(max(v), '') FROM second WHERE id = 1`) == "streamed"
	})
	p.equal(ctx, "first", "second")
}

func TestATableTakenOutOfThePublicationByHandComesBack(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a')`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.src.Exec(t, `ALTER PUBLICATION flo_shop DROP TABLE t`)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'unseen')`)
	eventually(t, ctx, "the table's fresh copy", func() bool { return p.attempts()["t"] == "2" })
	p.src.Exec(t, `INSERT INTO t VALUES (3, 'c')`)
	p.catchUp(ctx)
	p.equal(ctx)
}

// A table without identity loses its updates and deletes; once it has one it is copied afresh.
func TestATableThatGetsItsKeyLaterIsCopiedAfresh(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE late (id int NOT NULL, v text)`)
	p.src.Exec(t, `INSERT INTO late SELECT i, 'a' FROM generate_series(1, 10) i`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.src.Exec(t, `UPDATE late SET v = 'unseen' WHERE id < 4; DELETE FROM late WHERE id = 9`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.dst.Exec(t, `ALTER TABLE late ADD PRIMARY KEY (id)`)
	p.src.Exec(t, `ALTER TABLE late ADD PRIMARY KEY (id)`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.src.Exec(t, `UPDATE late SET v = 'seen' WHERE id = 5; DELETE FROM late WHERE id = 6`)
	p.catchUp(ctx)
	p.equal(ctx)
}

// The same while flo runs: what was left out meanwhile comes with a fresh copy.
func TestATableThatGetsItsKeyWhileFloRunsIsCopiedAfresh(t *testing.T) {
	parallel(t)
	for name, c := range map[string]struct {
		key  string
		opts []flo.Option
	}{
		"seen by the look":    {`ALTER TABLE late ADD PRIMARY KEY (id)`, []flo.Option{flo.WithIdleInterval(100 * time.Millisecond)}},
		"told by the trigger": {`ALTER TABLE late ADD PRIMARY KEY (id)`, []flo.Option{flo.WithDDL(), flo.WithIdleInterval(time.Hour)}},
		"full":                {`ALTER TABLE late REPLICA IDENTITY FULL`, []flo.Option{flo.WithDDL(), flo.WithIdleInterval(time.Hour)}},
		"an index":            {`CREATE UNIQUE INDEX i ON late (id); ALTER TABLE late REPLICA IDENTITY USING INDEX i`, []flo.Option{flo.WithDDL(), flo.WithIdleInterval(time.Hour)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t, `CREATE TABLE late (id int NOT NULL, v text)`)
			p.src.Exec(t, `INSERT INTO late SELECT i, 'a' FROM generate_series(1, 10) i`)
			p.start(ctx, append(c.opts, flo.WithSink(p.sink()))...)
			p.catchUp(ctx)
			p.src.Exec(t, `UPDATE late SET v = 'unseen' WHERE id < 4; DELETE FROM late WHERE id = 9`)
			p.catchUp(ctx)
			if !strings.Contains(name, "trigger") {
				p.dst.Exec(t, c.key)
			}
			p.src.Exec(t, c.key)
			p.src.Exec(t, `UPDATE late SET v = 'seen' WHERE id = 5; DELETE FROM late WHERE id = 6`)
			eventually(t, ctx, "the fresh copy", func() bool {
				return p.dst.QueryString(t, `SELECT count(*) FROM late WHERE v <> 'a'`) == "4"
			})
			p.src.Exec(t, `UPDATE late SET v = 'streamed' WHERE id = 7; DELETE FROM late WHERE id = 8`)
			p.catchUp(ctx)
			p.equal(ctx)
		})
	}
}

// A table that loses its key, and gets it again, while flo runs.
func TestATableThatLosesItsKeyAndGetsItAgainIsCopiedAfresh(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'a' FROM generate_series(1, 10) i`)
	p.start(ctx, flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	keyless := func(n string) {
		t.Helper()
		eventually(t, ctx, "the table's move", func() bool {
			return p.src.QueryString(t, `SELECT count(*) FROM pg_publication_tables WHERE pubname LIKE '%keyless'`) == n
		})
	}
	p.src.Exec(t, `ALTER TABLE t DROP CONSTRAINT t_pkey`)
	keyless("1")
	p.src.Exec(t, `UPDATE t SET v = 'unseen' WHERE id < 4`)
	p.src.Exec(t, `ALTER TABLE t ADD PRIMARY KEY (id)`)
	keyless("0")
	p.src.Exec(t, `UPDATE t SET v = 'seen' WHERE id = 5`)
	eventually(t, ctx, "the fresh copy", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t WHERE v <> 'a'`) == "4" })
	p.catchUp(ctx)
	p.equal(ctx)
}

// A table leaves the group before its copy is whole: nobody waits for it any more.
func TestATableThatLeavesInMidCopyIsWaitedForByNobody(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, twoLarge)
	p.src.Exec(t, fillTwo)
	_, r := holdBack(t, ctx, p)
	if err := r.stop(); err != nil && !errors.Is(err, flo.ErrNotDrained) {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithSink(p.sink()), flo.WithExcludeTables("second"))
	p.src.Exec(t, `UPDATE first SET v = 'streamed' WHERE id < 10; INSERT INTO small VALUES (-1, 'streamed')`)
	p.catchUp(ctx)
	p.equal(ctx, "first", "small")
}
