package flo_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/file"
	"github.com/pgflo/flo/sink/postgres"
	"github.com/pgflo/flo/sink/stdout"
)

// identity of a change, copied or streamed.
func identity(c *decode.Change) string {
	if c.Copy != nil {
		return "copy " + c.Copy.String()
	}
	return c.Position().String()
}

// content of a change's new row.
func content(c *decode.Change) string {
	var b strings.Builder
	b.WriteString(c.Op.String())
	for _, v := range c.New {
		b.WriteString("|" + v.String())
	}
	return b.String()
}

func TestAFuncSeesCopiedRowsThenChangesInOrderWithStableIdentities(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 500) i`)
	var mu sync.Mutex
	seen := map[string]string{}
	var last decode.Position
	streamed, calls, repeated := 0, 0, 0
	broken := errors.New("for the time being")
	s := sink.Func(func(_ context.Context, b *sink.Batch) error {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range b.Changes {
			id := identity(c)
			old, again := seen[id]
			if again {
				repeated++
				if old != content(c) {
					t.Errorf("%s was %s, comes again as %s", id, old, content(c))
				}
			}
			seen[id] = content(c)
			if c.Copy != nil {
				if streamed > 0 {
					t.Errorf("copied row %s came behind a change", id)
				}
				continue
			}
			streamed++
			if again {
				continue
			}
			if c.Position().Compare(last) <= 0 {
				t.Errorf("%s came behind %s", c.Position(), last)
			}
			last = c.Position()
		}
		if calls++; calls%3 == 1 { // taken, and said to have failed: it comes again
			return broken
		}
		return nil
	})
	p.start(ctx, flo.WithSink(s), flo.WithBatchSize(20))
	for i := range 50 {
		p.src.Exec(t, `INSERT INTO t VALUES ($1, 'streamed'); `, 1000+i)
		p.src.Exec(t, `UPDATE t SET v = 'changed' WHERE id % 100 = $1::int`, i)
	}
	p.catchUp(ctx)
	mu.Lock()
	defer mu.Unlock()
	copiedRows := 0
	for id := range seen {
		if strings.HasPrefix(id, "copy ") {
			copiedRows++
		}
	}
	if copiedRows < 500 || copiedRows > 550 || repeated == 0 {
		t.Errorf("%d copied rows, %d repeats", copiedRows, repeated)
	}
}

func TestABatchThatFailsForAWhileComesAgain(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	rec := new(flotest.Recorder)
	rec.FailNext(4, errors.New("not now"))
	p.start(ctx, flo.WithMode(flo.StreamOnly), flo.WithSink(rec))
	p.catchUp(ctx)
	for i := range 10 {
		p.src.Exec(t, `INSERT INTO t VALUES ($1, 'x')`, i)
	}
	p.catchUp(ctx)
	if n := len(rec.Changes()); n != 10 || rec.Failures() != 0 {
		t.Errorf("%d changes, %d failures to come", n, rec.Failures())
	}
	if st := p.f.Status().Workers[0]; st.LastError != "" || st.Phase != flo.PhaseStreaming {
		t.Errorf("after the failures: %+v", st)
	}
}

func TestAChangeThatASinkRefusesStopsAndIsNamed(t *testing.T) {
	ctx := testContext(t)
	cause := errors.New("no sevens here")
	for name, refuse := range map[string]func(i int) error{
		"permanent": func(int) error { return sink.Permanent(cause) },
		"reject":    func(i int) error { return sink.Reject(i, cause) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPipeline(t, smallTable)
			size := 1000
			if name == "permanent" {
				size = 1 // nothing else says which one it is
			}
			var taken []string
			s := sink.Func(func(_ context.Context, b *sink.Batch) error {
				for i, c := range b.Changes {
					if c.New[0].String() == "7" {
						return refuse(i)
					}
				}
				for _, c := range b.Changes {
					taken = append(taken, c.New[0].String())
				}
				return nil
			})
			rep := p.replicator(flo.WithMode(flo.StreamOnly))
			launch(t, ctx, rep)
			p.published(ctx, rep)
			p.src.Exec(t, `INSERT INTO t SELECT i, 'x' FROM generate_series(1, 10) i`)
			for range 2 { // stopping again is no way around it
				err := launch(t, ctx, p.worker(flo.WithSink(s), flo.WithBatchSize(size))).ends(ctx)
				var se *flo.SinkError
				if !errors.As(err, &se) || !errors.Is(err, cause) {
					t.Fatalf("got %v", err)
				}
				if se.Position.Ordinal != 7 || se.Position.LSN == 0 || se.Table.String() != "public.t" || se.Worker != "default" {
					t.Errorf("position %s, table %s, worker %s", se.Position, se.Table, se.Worker)
				}
			}
			for _, id := range taken {
				if id == "8" {
					t.Error("what stands behind the refused change was written")
				}
			}
		})
	}
}

func TestStdoutAndFileGetWholeRows(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'copied "x"'), (2, NULL), (3, '')`)
	var out bytes.Buffer
	dir := t.TempDir()
	f := file.New(dir)
	p.start(ctx, flo.WithWorker("out", stdout.New(stdout.WithWriter(&out))), flo.WithWorker("file", f))
	p.catchUp(ctx)
	p.src.Exec(t, `UPDATE t SET v = 'streamed' WHERE id = 2; DELETE FROM t WHERE id = 3; TRUNCATE t`)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(f.Path())
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"stdout": out.String(), "file": string(written)} {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		if len(lines) != 6 {
			t.Errorf("%s: %d lines, want 3 copied rows and 3 changes:\n%s", what, len(lines), text)
		}
		for _, want := range []string{`copied \"x\"`, `"streamed"`, `"delete"`, `"truncate"`, `null`} {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %s:\n%s", what, want, text)
			}
		}
	}
}

func TestRulesApplyAlikeToCopiedAndStreamedRows(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, `CREATE TABLE people (id int PRIMARY KEY, ssn text, email text, age int); CREATE TABLE plain (id int PRIMARY KEY, email text)`)
	p.dst.Exec(t, `CREATE TABLE people (id int PRIMARY KEY, email text, age int); CREATE TABLE plain (id int PRIMARY KEY, email text)`)
	p.src.Exec(t, `INSERT INTO people VALUES (1, 'secret-1', 'margaret', 30), (2, NULL, NULL, NULL); INSERT INTO plain VALUES (1, 'margaret')`)
	rec := new(flotest.Recorder)
	masks := flo.WithRules(rules.Table("public.people", rules.Mask("email"), rules.Exclude("ssn")))
	p.start(ctx, masks, flo.WithSink(p.sink()), flo.WithWorker("rec", rec))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO people VALUES (3, 'secret-3', 'margaret', 31); UPDATE people SET email = 'margaret', ssn = 'secret-2' WHERE id = 2; INSERT INTO plain VALUES (2, 'margaret')`)
	p.catchUp(ctx)
	got := p.dst.QueryString(t, `SELECT string_agg(people::text, ' ' ORDER BY id) FROM people`)
	if want := `(1,m******t,30) (2,m******t,) (3,m******t,31)`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	p.equal(ctx, "plain")
	for _, c := range rec.Changes() {
		for _, row := range []decode.Row{c.Old, c.New} {
			for _, v := range row {
				if strings.Contains(v.String(), "secret") {
					t.Errorf("%s %s holds an excluded value", identity(c), v)
				}
			}
		}
		if c.Relation.Name == "people" && c.Relation.Column("ssn") >= 0 {
			t.Errorf("%s: the relation still has the excluded column", identity(c))
		}
	}
}

func TestARuleThatCannotBindStopsBeforeTheFirstRow(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	err := p.launch(ctx, flo.WithRules(rules.Table("public.t", rules.Mask("emial"))), flo.WithSink(p.sink())).ends(ctx)
	var se *flo.SinkError
	if !errors.As(err, &se) || !errors.Is(err, rules.ErrNoColumn) || se.Table.String() != "public.t" {
		t.Fatalf("got %v", err)
	}
	if n := p.dst.QueryString(t, `SELECT count(*) FROM t`); n != "0" {
		t.Errorf("%s rows were written", n)
	}
}

// What the source checks at the end of a statement or a transaction, the destination must not check after each row.
func TestConstraintsThatTheSourceChecksLater(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE DEFERRABLE, d int UNIQUE DEFERRABLE INITIALLY DEFERRED, EXCLUDE USING btree (u WITH =) DEFERRABLE)`)
	p.src.Exec(t, `INSERT INTO t SELECT i, i, i FROM generate_series(1, 100) i`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.src.Exec(t, `UPDATE t SET u = 101 - u`)
	p.src.Exec(t, `BEGIN; UPDATE t SET d = d + 1 WHERE id = 1; UPDATE t SET d = 1 WHERE id = 2; COMMIT`)
	p.catchUp(ctx)
	p.equal(ctx)
}

// The stream is purged on the sink's word, so that word must be durable whatever the destination's default is.
func TestTheDestinationCommitsDurably(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE t (id int PRIMARY KEY, v text)`)
	p.dst.Exec(t, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$;
		ALTER TABLE t ADD COLUMN how text;
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.how := current_setting('synchronous_commit'); RETURN NEW; END $$;
		CREATE TRIGGER note BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE t ENABLE ALWAYS TRIGGER note`)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'copied')`)
	p.start(ctx, flo.WithSink(p.sink(postgres.WithReplicaRole())))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'streamed')`)
	p.catchUp(ctx)
	if got := p.dst.QueryString(t, `SELECT string_agg(DISTINCT how, ',') FROM t`); got != "on" {
		t.Errorf("rows were committed with synchronous_commit %s", got)
	}
}
