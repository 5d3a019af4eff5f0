package flo_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// toldOf gives what a recorder was told of streamed changes, in short; baselines only if asked for.
func toldOf(rec *flotest.Recorder, baselines bool) []string {
	var out []string
	for _, c := range rec.Changes() {
		if s := c.Schema; s != nil && (baselines || !s.Baseline) {
			out = append(out, shortSchema(s))
		}
		if c.Schema == nil && c.Tx != nil {
			text := c.Op.String()
			for i := range c.New {
				text += " " + string(c.New[i].Bytes())
			}
			out = append(out, text)
		}
	}
	return out
}

func shortSchema(s *decode.SchemaChange) string {
	parts := []string{s.Tag}
	if s.Baseline {
		parts = []string{"baseline"}
	}
	if s.Observed {
		parts = []string{"observed"}
	}
	for i := range s.Tables {
		t := &s.Tables[i]
		var columns []string
		for _, c := range t.Columns {
			columns = append(columns, c.Name+" "+c.Type)
		}
		text := t.Qualified().String() + "(" + strings.Join(columns, ", ") + ")"
		if t.Made {
			text += " made"
		}
		if t.Rewritten {
			text += " rewritten"
		}
		parts = append(parts, text)
	}
	for _, d := range s.Dropped {
		parts = append(parts, "-"+d.Kind+" "+strings.Join(d.Address, "."))
	}
	if s.Failed != "" {
		parts = append(parts, "failed "+s.Failed)
	}
	return strings.Join(parts, "; ")
}

// secret reads the event triggers' secret.
func (p *pipeline) secret() string {
	p.t.Helper()
	return p.src.QueryString(p.t, `SELECT flo.ddl_secret()`)
}

// holds reports whether any message of the group's stream has the text in it.
func (p *pipeline) holds(ctx context.Context, group, text string) bool {
	p.t.Helper()
	s, err := p.jetStream().Stream(ctx, "flo_"+group)
	if err != nil {
		p.t.Fatal(err)
	}
	info, err := s.Info(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		if m, err := s.GetMsg(ctx, seq); err == nil && bytes.Contains(m.Data, []byte(text)) {
			return true
		}
	}
	return false
}

// described waits until a session streams and the source has described its tables.
func (p *pipeline) described(ctx context.Context, rec *flotest.Recorder) {
	p.t.Helper()
	eventually(p.t, ctx, "the tables are described", func() bool { return baselines(rec) > 0 })
}

// baselines counts how often tables were described.
func baselines(rec *flotest.Recorder) (n int) {
	for _, c := range rec.Changes() {
		if c.Schema != nil && c.Schema.Baseline {
			n++
		}
	}
	return n
}

// recordDDL streams schema changes of smallTable into a recorder, from when the source has described it.
func recordDDL(t *testing.T, ctx context.Context, opts ...flo.Option) (*pipeline, *flotest.Recorder) {
	t.Helper()
	p, rec := newPipeline(t, smallTable), &flotest.Recorder{}
	p.start(ctx, append(opts, flo.WithDDL(), flo.WithSink(rec))...)
	p.described(ctx, rec)
	return p, rec
}

// Somebody drops the event triggers: they come back, and the tables are described anew, though one is locked for a while.
func TestEventTriggersThatWereDroppedComeBack(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, rec := recordDDL(t, ctx, flo.WithIdleInterval(100*time.Millisecond))
	before := baselines(rec)
	lock := p.src.Conn(t)
	if _, err := lock.Exec(ctx, "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `DROP EVENT TRIGGER flo_ddl_command_end`)
	eventually(t, ctx, "the event trigger is back", func() bool {
		return p.src.QueryString(t, `SELECT count(*) FROM pg_event_trigger WHERE evtname = 'flo_ddl_command_end'`) == "1"
	})
	if n := baselines(rec); n != before {
		t.Errorf("%d descriptions of a locked table", n-before)
	}
	if _, err := lock.Exec(ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "the tables are described anew", func() bool { return baselines(rec) > before })
	p.src.Exec(t, `ALTER TABLE t ADD seen int`)
	p.catchUp(ctx)
	if got := toldOf(rec, false); len(got) == 0 || got[len(got)-1] != "ALTER TABLE; public.t(id bigint, v text, seen integer)" {
		t.Errorf("%q", got)
	}
}

func TestSchemaChangesComeInOrderWithTheRows(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `CREATE TABLE beside (id int)`)
	rec := &flotest.Recorder{}
	opts := []flo.Option{flo.WithDDL(), flo.WithTables("t"), flo.WithSink(rec)}
	p.start(ctx, opts...)
	p.described(ctx, rec)
	p.src.Exec(t, `BEGIN; INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ADD x int; INSERT INTO t VALUES (2, 'b', 2); SAVEPOINT s; ALTER TABLE t DROP v; ROLLBACK TO s; ALTER TABLE beside ADD z int;
		ALTER TABLE t RENAME x TO y; INSERT INTO t VALUES (3, 'c', 3); COMMIT`)
	p.catchUp(ctx)
	want := []string{"insert 1 a", "ALTER TABLE; public.t(id bigint, v text, x integer)", "insert 2 b 2", "ALTER TABLE; public.t(id bigint, v text, y integer)", "insert 3 c 3"}
	if got := toldOf(rec, false); !slices.Equal(got, want) {
		t.Fatalf("got %q, want %q", got, want)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `ALTER TABLE t DROP COLUMN y; DROP TABLE beside; INSERT INTO t VALUES (4, 'd')`)
	p.start(ctx, opts...)
	p.catchUp(ctx)
	want = append(want, "ALTER TABLE; -table column public.t.y", "ALTER TABLE; public.t(id bigint, v text)", "insert 4 d")
	if got := toldOf(rec, false); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if secret := p.secret(); p.holds(ctx, "shop", secret) || len(secret) != decode.SchemaSecretLen {
		t.Error("the secret is in the stream")
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.f.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	if n := p.src.QueryString(t, `SELECT (SELECT count(*) FROM pg_event_trigger) + (SELECT count(*) FROM pg_namespace WHERE nspname = 'flo')`); n != "0" {
		t.Errorf("Drop has left %s things", n)
	}
}

// Anybody may write messages with flo's prefix.
func TestForgedSchemaChangesAreLeftOut(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, rec := recordDDL(t, ctx)
	forged := `{"tag":"DROP TABLE","dropped":[{"kind":"table","oid":1,"schema":"public","name":"t","address":["public","t"]}]}`
	for _, secret := range []string{strings.Repeat("0", decode.SchemaSecretLen), strings.Repeat("f", decode.SchemaSecretLen), ""} {
		p.src.Exec(t, fmt.Sprintf(`BEGIN; SELECT pg_logical_emit_message(true, 'flo', '%s'); INSERT INTO t VALUES (%d, 'x'); COMMIT`, secret+forged, len(secret)*100+len(toldOf(rec, false))))
		p.catchUp(ctx)
	}
	p.src.Exec(t, `SELECT pg_logical_emit_message(true, 'flo', 'x'), pg_logical_emit_message(false, 'flo', 'x')`)
	p.catchUp(ctx)
	for _, c := range rec.Changes() {
		switch {
		case c.Op == decode.OpSchema && c.Schema.Baseline:
		case c.Op != decode.OpInsert || c.Ordinal != 2:
			t.Errorf("%s %s was handed over", c.Op, c.Position())
		}
	}
	if n := p.f.Status().Replicator.Forged; n != 5 {
		t.Errorf("%d forged messages were counted, want 5", n)
	}
	if p.holds(ctx, "shop", "DROP TABLE") {
		t.Error("a forged message is in the stream")
	}
}

// Event triggers that were made again have another secret, which forged messages don't keep from being read.
func TestAForgedSchemaChangeHidesNoGenuineOne(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, rec := recordDDL(t, ctx)
	for i := range 3 {
		p.src.Exec(t, `SELECT pg_logical_emit_message(true, 'flo', repeat('0', 64))`)
		eventually(t, ctx, "the forged message was met", func() bool { return p.f.Status().Replicator.Forged > uint64(i) })
		p.src.Exec(t, flo.DDLRemovalSQL()+";\n"+flo.DDLSetupSQL())
		p.src.Exec(t, fmt.Sprintf(`ALTER TABLE t ADD COLUMN more%d int`, i))
		p.catchUp(ctx)
		if !slices.ContainsFunc(rec.Changes(), func(c *decode.Change) bool {
			return c.Op == decode.OpSchema && !c.Schema.Baseline && strings.Contains(c.Schema.Query, fmt.Sprintf("more%d", i))
		}) {
			t.Errorf("change %d of the table was taken for a forged one", i)
		}
	}
}

func TestTwoGroupsShareTheEventTriggers(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `CREATE TABLE u (id int PRIMARY KEY)`)
	start := func(group, table string, ddl bool) (*flo.Flo, *flotest.Recorder, *run) {
		rec := &flotest.Recorder{}
		opts := []flo.Option{flo.WithGroup(group), flo.WithSlot("flo_" + group + "_" + p.src.Name), flo.WithTables(table), flo.WithSink(rec)}
		if ddl {
			opts = append(opts, flo.WithDDL())
		}
		r := p.launch(ctx, opts...)
		eventually(t, ctx, "it streams", func() bool { r.running(); return p.f.Status().Replicator.Phase == flo.PhaseStreaming })
		return p.f, rec, r
	}
	f1, rec1, r1 := start("one", "t", true)
	f2, rec2, r2 := start("two", "u", true)
	f3, rec3, r3 := start("three", "t", false)
	p.described(ctx, rec1)
	p.described(ctx, rec2)
	p.src.Exec(t, `ALTER TABLE t ADD a int; ALTER TABLE u ADD b int; INSERT INTO t VALUES (1, 'x', 1); INSERT INTO u VALUES (1, 1)`)
	for _, f := range []*flo.Flo{f1, f2, f3} {
		if err := f.WaitFor(ctx, p.now()); err != nil {
			t.Fatal(err)
		}
	}
	for rec, want := range map[*flotest.Recorder][]string{
		rec1: {"ALTER TABLE; public.t(id bigint, v text, a integer)", "insert 1 x 1"},
		rec2: {"ALTER TABLE; public.u(id integer, b integer)", "insert 1 1"},
		rec3: {"insert 1 x 1"},
	} {
		if got := toldOf(rec, false); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for _, group := range []string{"one", "two", "three"} {
		if p.holds(ctx, group, p.secret()) {
			t.Errorf("the secret is in the stream of %s", group)
		}
	}
	for i, f := range []*flo.Flo{f3, f1, f2} {
		if err := []*run{r3, r1, r2}[i].stop(); err != nil {
			t.Fatal(err)
		}
		if err := f.Drop(ctx); err != nil {
			t.Fatal(err)
		}
		if n, want := p.src.QueryString(t, `SELECT count(*) FROM pg_event_trigger`), []string{"3", "3", "0"}[i]; n != want {
			t.Errorf("%s event triggers behind Drop %d, want %s", n, i, want)
		}
	}
}

func TestARoleWithoutSuperuserUsesWhatDDLSetupSQLMade(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	source, fill := role(t, p.src, "ddl_source", "REPLICATION", `GRANT SELECT ON t TO $role`, `CREATE PUBLICATION shop_pub FOR TABLE t`)
	rec := &flotest.Recorder{}
	opts := []flo.Option{flo.WithSource(source), flo.WithPublication("shop_pub"), flo.WithDDL(), flo.WithSink(rec)}
	wantStop(t, p.launch(ctx, opts...).ends(ctx), flo.ErrPrivilege, "DDLSetupSQL", "WithDDLFromRelations")
	p.src.Exec(t, flo.DDLSetupSQL("ddl_source_"+p.src.Name))
	_ = fill
	p.start(ctx, opts...)
	p.described(ctx, rec)
	p.src.Exec(t, `ALTER TABLE t ADD x int; INSERT INTO t VALUES (1, 'a', 1)`)
	p.catchUp(ctx)
	if got, want := toldOf(rec, true), []string{"baseline; public.t(id bigint, v text)", "ALTER TABLE; public.t(id bigint, v text, x integer)", "insert 1 a 1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.f.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, flo.DDLRemovalSQL())
}

// It also joins if the event triggers were lost and mended meanwhile.
// WaitFor covers rows of a table that has not joined the group by the time its CREATE TABLE is applied.
func TestWaitForWaitsForTablesThatWereJustMade(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	for i := range 4 {
		name := fmt.Sprintf("made_%d", i)
		p.src.Exec(t, fmt.Sprintf(`BEGIN; CREATE TABLE %[1]s (id int PRIMARY KEY); INSERT INTO %[1]s SELECT generate_series(1, 500); COMMIT`, name))
		p.catchUp(ctx)
		if n := p.dst.QueryString(t, `SELECT count(*) FROM `+name); n != "500" {
			t.Errorf("%s has %s rows of 500", name, n)
		}
	}
}

func TestATableMadeLaterJoinsTheGroup(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p, rec := recordDDL(t, ctx)
	p.src.Exec(t, `CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (1, 'copied')`)
	eventually(t, ctx, "the row is copied", func() bool {
		return slices.ContainsFunc(rec.Changes(), func(c *decode.Change) bool { return c.Copy != nil && c.Relation.Name == "u" })
	})
	p.src.Exec(t, `INSERT INTO u VALUES (2, 'streamed')`)
	p.catchUp(ctx)
	if got, want := toldOf(rec, false), []string{"CREATE TABLE; public.u(id integer, v text) made", "insert 2 streamed"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	p.src.Exec(t, `DROP SCHEMA flo CASCADE; ALTER TABLE u ADD unseen int`)
	eventually(t, ctx, "the tables are described anew", func() bool {
		return slices.Contains(toldOf(rec, true), "baseline; public.t(id bigint, v text); public.u(id integer, v text, unseen integer)")
	})
	p.src.Exec(t, `ALTER TABLE u ADD seen int`)
	p.catchUp(ctx)
	if got := toldOf(rec, false); got[len(got)-1] != "ALTER TABLE; public.u(id integer, v text, unseen integer, seen integer)" {
		t.Errorf("%q", got)
	}
}

func TestATableMadeForAllTablesStreamsFromItsFirstRow(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `CREATE PUBLICATION everything FOR ALL TABLES`)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithMode(flo.StreamOnly), flo.WithPublication("everything"), flo.WithDDL(), flo.WithSink(rec))
	p.described(ctx, rec)
	p.src.Exec(t, `CREATE TABLE u (id int PRIMARY KEY, v text); INSERT INTO u VALUES (1, 'a'); CREATE TABLE c AS SELECT 7 AS n`)
	p.catchUp(ctx)
	want := []string{"CREATE TABLE; public.u(id integer, v text) made", "insert 1 a",
		"observed; public.c(n integer) made", "insert 7", "CREATE TABLE AS; public.c(n integer) made"}
	if got := toldOf(rec, false); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRulesHoldForSchemaChanges(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithDDL(), flo.WithSink(rec), flo.WithRules(rules.Table("public.*", rules.Exclude("ssn")), rules.Route("t", "crm.people")))
	p.described(ctx, rec)
	p.src.Exec(t, `ALTER TABLE t ADD ssn text DEFAULT 'hidden', ADD n int; INSERT INTO t VALUES (1, 'a', 's', 1)`)
	p.catchUp(ctx)
	if got, want := toldOf(rec, false), []string{"ALTER TABLE; crm.people(id bigint, v text, n integer)", "insert 1 a 1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, c := range rec.Changes() {
		if text, err := c.AppendJSON(nil); err != nil || bytes.Contains(text, []byte("hidden")) {
			t.Errorf("%s %v", text, err)
		}
	}
}

// Schema changes of a table that isn't there change nothing but the sink's books. The next copy makes it all the same.
func TestACopyMakesATableThatOnlyTheSinksBooksKnow(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a')`)
	p.start(ctx, flo.WithDDL(), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.dst.Exec(t, `DROP TABLE t`)
	p.src.Exec(t, `ALTER TABLE t ADD a int DEFAULT 7`)
	p.catchUp(ctx)
	p.src.Exec(t, `ALTER TABLE t ADD b float DEFAULT random()`) // its rows are written anew
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'b')`)
	p.catchUp(ctx)
	p.equal(ctx)
}

// appliesByHand is a PostgreSQL sink that runs SQL at each schema change that isn't a baseline.
type appliesByHand struct {
	*postgres.Sink
	db  *flotest.DB
	sql []string // one each, the first ones first

	mu     sync.Mutex
	copied []string // how the tables stood when their copies began
}

func (s *appliesByHand) BeginTable(ctx context.Context, t sink.CopyTable) error {
	s.mu.Lock()
	s.copied = append(s.copied, shortSchema(t.Schema))
	s.mu.Unlock()
	return s.Sink.BeginTable(ctx, t)
}

func (s *appliesByHand) Write(ctx context.Context, b *sink.Batch) error {
	rest := *b
	rest.Changes = nil
	for _, c := range b.Changes {
		if c.Op != decode.OpSchema {
			rest.Changes = append(rest.Changes, c)
			continue
		}
		if !c.Schema.Baseline && len(s.sql) > 0 {
			if err := s.db.TryExec(ctx, s.sql[0]); err != nil {
				return sink.Permanent(err)
			}
			s.sql = s.sql[1:]
		}
	}
	return s.Sink.Write(ctx, &rest)
}

// Its rows differ from those that were sent, and nothing in the stream says how.
func TestATableThatACommandWroteAnewIsCopiedAfresh(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 100) i`)
	hand := &appliesByHand{Sink: p.sink(), db: p.dst, sql: []string{`ALTER TABLE t ADD r float8`}}
	p.start(ctx, flo.WithDDL(), flo.WithSink(hand))
	p.catchUp(ctx)
	p.src.Exec(t, `BEGIN; INSERT INTO t VALUES (200, 'before'); ALTER TABLE t ADD r float8 DEFAULT random(); UPDATE t SET v = 'behind' WHERE id < 10; COMMIT; DELETE FROM t WHERE id = 50`)
	p.catchUp(ctx)
	p.equal(ctx)
	if got := p.attempts()["t"]; got < "2" {
		t.Errorf("copied by attempt %s", got)
	}
	hand.mu.Lock()
	defer hand.mu.Unlock()
	copied := slices.Compact(hand.copied) // a copy may begin more than once
	if want := []string{"baseline; public.t(id bigint, v text)", "baseline; public.t(id bigint, v text, r double precision)"}; !slices.Equal(copied, want) {
		t.Errorf("copied as %q, want %q", hand.copied, want)
	}
}

// Tables that are altered, renamed, dropped and rewritten while they are copied.
func TestTablesAreAlteredWhileTheyAreCopied(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `CREATE TABLE u (id int PRIMARY KEY, a int, b int); CREATE TABLE w (id int PRIMARY KEY, a int); INSERT INTO u SELECT i, i, i FROM generate_series(1, 1000) i; INSERT INTO w SELECT i, i FROM generate_series(1, 1000) i`)
	rec := &flotest.Recorder{}
	r := p.launch(ctx, flo.WithDDL(), flo.WithSink(rec))
	eventually(t, ctx, "it has begun", func() bool {
		r.running()
		return p.f.Status().Replicator.Phase != flo.PhaseConnecting && p.src.QueryString(t, `SELECT count(*) FROM pg_event_trigger`) == "3"
	})
	p.src.Exec(t, `ALTER TABLE u DROP a`)
	p.src.Exec(t, `ALTER TABLE u RENAME b TO c`)
	p.src.Exec(t, `ALTER TABLE w ALTER a TYPE text`)
	p.src.Exec(t, `INSERT INTO u VALUES (2000, 7); INSERT INTO w VALUES (2000, 'x')`)
	p.catchUp(ctx)
	last := map[string]string{}
	for _, c := range rec.Changes() {
		if c.Op == decode.OpInsert && c.Relation.Name != "t" {
			last[c.Relation.Name+" "+string(c.New[0].Bytes())] = fmt.Sprint(len(c.New))
		}
	}
	if len(last) != 2002 || last["u 1"] == "" || last["w 1000"] == "" || last["u 2000"] != "2" || last["w 2000"] != "2" {
		t.Errorf("%d rows; %v %v %v %v", len(last), last["u 1"], last["w 1000"], last["u 2000"], last["w 2000"])
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestWithoutEventTriggersRelationsTellOfColumns(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithDDLFromRelations(), flo.WithSink(rec))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'); ALTER TABLE t ADD n numeric(10,2) DEFAULT 1, ADD at timestamptz(3)[]; ANALYZE t; INSERT INTO t VALUES (2, 'b', 2, NULL); INSERT INTO t VALUES (3, 'c', 3, NULL);
		ALTER TABLE t DROP at; INSERT INTO t VALUES (4, 'd', 4); ALTER TABLE t ALTER n TYPE bigint; UPDATE t SET v = 'e' WHERE id = 4`)
	p.catchUp(ctx)
	want := []string{"observed; public.t(id bigint, v text)", "insert 1 a",
		"observed; public.t(id bigint, v text, n numeric(10,2), at timestamp(3) with time zone[]) rewritten", "insert 2 b 2.00 ", "insert 3 c 3.00 ",
		"observed; public.t(id bigint, v text, n numeric(10,2))", "insert 4 d 4.00", "observed; public.t(id bigint, v text, n bigint)", "update 4 e 4"}
	if got := toldOf(rec, true); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for i, c := range rec.Changes() {
		if c.Op == decode.OpSchema && c.Position() != rec.Changes()[i+1].Position() {
			t.Errorf("change %d: %s, the row that it is for: %s", i, c.Position(), rec.Changes()[i+1].Position())
		}
	}
	if n := p.src.QueryString(t, `SELECT count(*) FROM pg_event_trigger`); n != "0" {
		t.Errorf("%s event triggers", n)
	}
}

// What a column list hides stays hidden, its structure too.
func TestColumnListsHoldForSchemaChanges(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `ALTER TABLE t ADD hidden int; CREATE PUBLICATION listed FOR TABLE t (id, v)`)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithPublication("listed"), flo.WithDDL(), flo.WithSink(rec))
	p.described(ctx, rec)
	p.src.Exec(t, `ALTER TABLE t RENAME v TO w; INSERT INTO t VALUES (1, 'a', 1)`)
	p.catchUp(ctx)
	if got, want := toldOf(rec, true), []string{"baseline; public.t(id bigint, v text)", "ALTER TABLE; public.t(id bigint, w text)", "insert 1 a"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Under WithStreaming messages come before their transaction commits.
func TestSchemaChangesComeInOrderInALargeTransaction(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `ALTER DATABASE "`+p.src.Name+`" SET logical_decoding_work_mem = '64kB'`)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithDDL(), flo.WithStreaming(true), flo.WithSink(rec))
	p.described(ctx, rec)
	p.src.Exec(t, `BEGIN; INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 1000) i; ALTER TABLE t ADD n int; INSERT INTO t SELECT i, repeat('x', 1000), i FROM generate_series(1001, 2000) i;
		SAVEPOINT s; ALTER TABLE t ADD gone int; INSERT INTO t SELECT i, repeat('x', 1000), i, i FROM generate_series(2001, 3000) i; ROLLBACK TO s; INSERT INTO t VALUES (3001, 'last', 1); COMMIT`)
	p.catchUp(ctx)
	columns, rows, changes := 2, 0, 0
	for _, c := range rec.Changes() {
		switch {
		case c.Op == decode.OpSchema && c.Schema.Baseline:
		case c.Op == decode.OpSchema:
			columns = len(c.Schema.Tables[0].Columns)
			changes++
		default:
			if rows++; len(c.New) != columns {
				t.Fatalf("row %d has %d columns where the table has %d", rows, len(c.New), columns)
			}
		}
	}
	if rows != 2001 || changes != 1 || columns != 3 {
		t.Errorf("%d rows, %d schema changes, %d columns", rows, changes, columns)
	}
	if p.holds(ctx, "shop", p.secret()) {
		t.Error("the secret is in the stream")
	}
}

// A schema change that a sink refuses is a dead letter, and is the same when it is replayed.
func TestASchemaChangeMayBeADeadLetter(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	var refuse atomic.Bool
	refuse.Store(true)
	var seen sync.Map
	s := sink.Func(func(_ context.Context, b *sink.Batch) error {
		for i, c := range b.Changes {
			if c.Op == decode.OpSchema && !c.Schema.Baseline {
				if refuse.Load() {
					return sink.Reject(i, sink.ErrUnsupported)
				}
				seen.Store(shortSchema(c.Schema), true)
			}
		}
		return nil
	})
	opts := []flo.Option{flo.WithDDL(), flo.WithSink(s), flo.WithErrorPolicy(flo.DeadLetter)}
	p.start(ctx, opts...)
	eventually(t, ctx, "it streams", func() bool { return p.f.Status().Replicator.Phase == flo.PhaseStreaming })
	p.src.Exec(t, `ALTER TABLE t ADD x int; INSERT INTO t VALUES (1, 'a', 1)`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	letters := 0
	for l, err := range p.f.DeadLetters(ctx, "default") {
		if err != nil {
			t.Fatal(err)
		}
		if letters++; l.Op != "schema" {
			t.Errorf("%+v", l)
		}
	}
	refuse.Store(false)
	if n, err := p.f.Replay(ctx, "default"); letters != 1 || n != 1 || err != nil {
		t.Fatalf("%d letters, %d replayed, %v", letters, n, err)
	}
	if _, ok := seen.Load("ALTER TABLE; public.t(id bigint, v text, x integer)"); !ok {
		t.Error("another change was replayed")
	}
}

// A table that somebody holds locked at the source holds up nobody who waits for another one's rows.
func TestALockedTableHoldsUpNothingElse(t *testing.T) {
	parallel(t)
	for _, ddl := range []bool{true, false} {
		t.Run(fmt.Sprintf("schema changes %v", ddl), func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			p := newPipeline(t, smallTable, `CREATE TABLE other (id int PRIMARY KEY)`)
			opts := []flo.Option{flo.WithSink(p.sink())}
			if ddl {
				opts = append(opts, flo.WithDDL())
			}
			p.start(ctx, opts...)
			p.catchUp(ctx)
			lock := p.src.Conn(t)
			if _, err := lock.Exec(ctx, `BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE`); err != nil {
				t.Fatal(err)
			}
			p.src.Exec(t, `INSERT INTO other VALUES (1)`)
			p.catchUp(ctx)
			p.equal(ctx, "other")
		})
	}
}
