package postgres

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

func copyTable(r *decode.Relation, attempt uint32) sink.CopyTable {
	return sink.CopyTable{Relation: r, Source: 16400, Attempt: attempt, Point: decode.LSN(1000 + attempt)}
}

// chunk makes one of rows (first, …, first+rows-1), whose second column is text to be escaped.
func chunk(t sink.CopyTable, rng uint32, first, rows int) *sink.CopyChunk {
	var b strings.Builder
	for i := range rows {
		fmt.Fprintf(&b, "%d\t\\N\ta\\nb\\\\%d\n", first+i, i)
	}
	return &sink.CopyChunk{
		Table: t, Rows: uint64(rows), Data: []byte(b.String()), Epoch: 1,
		ID: decode.CopyID{Point: t.Point, Table: t.Source, Attempt: t.Attempt, Range: rng, Row: uint64(first)},
	}
}

func (r *rig) begin(t sink.CopyTable) {
	r.t.Helper()
	if err := r.sink.BeginTable(testContext(r.t), t); err != nil {
		r.t.Fatalf("BeginTable: %v", err)
	}
}

func (r *rig) chunk(c *sink.CopyChunk) {
	r.t.Helper()
	if err := r.sink.WriteChunk(testContext(r.t), c); err != nil {
		r.t.Fatalf("WriteChunk: %v", err)
	}
}

func (r *rig) end(t sink.CopyTable, chunks, rows uint64) error {
	t.Chunks, t.Rows = chunks, rows
	return r.sink.EndTable(testContext(r.t), t)
}

const copyDDL = `CREATE TABLE t ("Key" int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text DEFAULT 'd', w text, extra int DEFAULT 7)`

func copyRel() *decode.Relation { return rel("t", "*Key", "v", "w") }

func TestChunksInParallelEachOnce(t *testing.T) {
	r := newRig(t, copyDDL, WithConnections(3))
	if r.sink.Parallel() != 3 {
		t.Fatal("Parallel")
	}
	table := copyTable(copyRel(), 1)
	r.begin(table)
	var chunks []*sink.CopyChunk
	for i := range 20 {
		chunks = append(chunks, chunk(table, uint32(i/5), i*100, 100))
	}
	write := func() {
		var g errgroup.Group
		for _, i := range rand.Perm(len(chunks)) {
			g.Go(func() error { return r.sink.WriteChunk(testContext(t), chunks[i]) })
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	write()
	r.begin(table) // the same attempt again: everything stays
	write()        // and is skipped
	if err := r.end(table, 20, 2000); err != nil {
		t.Fatal(err)
	}
	r.want(`SELECT count(*), count(DISTINCT "Key"), count(v), min(w), min(extra) FROM t`, is("2000", "2000", "0", "a\nb\\0", "7"))
	r.want("SELECT state, chunks, rows FROM flo.copies", is("done", "20", "2000"))
	r.want("SELECT * FROM flo.copy_chunks")
	// After a crash all of it may come again, the end included.
	r.begin(table)
	write()
	if err := r.end(table, 20, 2000); err != nil {
		t.Fatal(err)
	}
	r.want("SELECT count(*) FROM t", is("2000"))
	if st := r.sink.Stats(); st.Chunks != 20 || st.ChunksSkipped != 40 || st.CopiedRows != 2000 {
		t.Fatalf("%+v", st)
	}
}

// A stream that was rolled back gives an attempt's number again: its point tells.
func TestAnAttemptOfTheSameNumberLeavesNothingOfTheFormer(t *testing.T) {
	r := newRig(t, copyDDL)
	first := copyTable(copyRel(), 1)
	second := first
	second.Point += 8
	r.begin(first)
	r.chunk(chunk(first, 0, 0, 10))
	r.begin(second)
	r.want("SELECT * FROM t")
	r.chunk(chunk(second, 0, 0, 15))
	if err := r.end(second, 1, 15); err != nil {
		t.Fatal(err)
	}
	r.want("SELECT count(*) FROM t", is("15"))
}

func TestNewAttemptLeavesNothingOfTheFormer(t *testing.T) {
	r := newRig(t, copyDDL)
	first, second := copyTable(copyRel(), 1), copyTable(copyRel(), 2)
	r.begin(first)
	r.chunk(chunk(first, 0, 0, 10))
	r.begin(second)
	r.want("SELECT * FROM t")
	if err := r.sink.WriteChunk(testContext(t), chunk(first, 0, 10, 10)); !errors.Is(err, ErrCopyNotBegun) {
		t.Fatalf("a chunk of the former attempt: %v", err)
	}
	r.chunk(chunk(second, 0, 0, 5))
	if err := r.end(second, 1, 5); err != nil {
		t.Fatal(err)
	}
	// Another incarnation of the stream begins at attempt 1 again.
	r.st.Incarnation = "two"
	r.open()
	r.begin(first)
	r.want("SELECT * FROM t")
	r.want("SELECT incarnation, attempt, state FROM flo.copies", is("two", "1", "copying"))
}

// Two source tables routed into one: the second one's beginning must not undo the first one's chunks.
func TestSourcesThatShareADestination(t *testing.T) {
	r := newRig(t, copyDDL)
	a, b := copyTable(copyRel(), 1), copyTable(copyRel(), 1)
	b.Source = 16500
	r.begin(a)
	r.chunk(chunk(a, 0, 0, 10))
	r.begin(b)
	r.chunk(chunk(b, 0, 100, 10))
	r.want("SELECT count(*) FROM t", is("20"))
	// Both start again.
	a.Attempt, a.Point, b.Attempt, b.Point = 2, 5000, 2, 5000
	r.begin(a)
	r.want("SELECT count(*) FROM t", is("0"))
	r.chunk(chunk(a, 0, 0, 10))
	r.begin(b)
	r.chunk(chunk(b, 0, 100, 10))
	for _, x := range []sink.CopyTable{a, b} {
		if err := r.end(x, 1, 10); err != nil {
			t.Fatal(err)
		}
	}
	r.want("SELECT count(*) FROM t", is("20"))
}

// One of two source tables that share a destination is copied again: rows of the other one stay, unless they stand
// among what has to go.
func TestASourceThatSharesADestinationIsCopiedAgain(t *testing.T) {
	r := newRig(t, copyDDL)
	a, b := copyTable(copyRel(), 1), copyTable(copyRel(), 1)
	b.Source = 16500
	r.begin(a)
	r.chunk(chunk(a, 0, 0, 10))
	if err := r.end(a, 1, 10); err != nil {
		t.Fatal(err)
	}
	// The second source was never begun: nothing has to go.
	b.Attempt, b.Base, b.Kept = 2, 1, []uint32{a.Source}
	r.begin(b)
	r.chunk(chunk(b, 0, 100, 10))
	r.want("SELECT count(*) FROM t", is("20"))
	// It is begun again: its rows can't be told from the first one's.
	b.Attempt = 3
	var together *sink.TogetherError
	if err := r.sink.BeginTable(testContext(t), b); !errors.As(err, &together) || len(together.Sources) != 2 {
		t.Fatalf("BeginTable: %v", err)
	}
	r.want("SELECT count(*) FROM t", is("20"))
	// Both together, in either order.
	a.Attempt, a.Base, b.Attempt, b.Kept = 4, 1, 4, nil
	r.begin(b)
	r.want("SELECT count(*) FROM t", is("0"))
	r.chunk(chunk(b, 0, 100, 10))
	r.begin(a)
	r.want("SELECT count(*) FROM t", is("10"))
	// Of a source that has left the group, or of an older lineage, nothing stays.
	b.Attempt, b.Base, b.Kept = 6, 5, []uint32{a.Source}
	r.begin(b)
	r.want("SELECT count(*) FROM t", is("0"))
}

func TestCopyIntoATableWithRows(t *testing.T) {
	ddl := copyDDL + `; INSERT INTO t (v) VALUES ('host''s own')`
	r := newRig(t, ddl)
	table := copyTable(copyRel(), 1)
	err := r.sink.BeginTable(testContext(t), table)
	if !errors.Is(err, ErrNotEmpty) || !sink.IsPermanent(err) || !strings.Contains(err.Error(), "public.t") || !strings.Contains(err.Error(), "WithTruncateBeforeCopy") {
		t.Fatalf("BeginTable: %v", err)
	}
	r.want("SELECT v FROM t", is("host's own"))

	r = newRig(t, ddl, WithTruncateBeforeCopy())
	r.begin(table)
	r.want("SELECT v FROM t")

	// TRUNCATE is refused for a table that another one points at.
	r = newRig(t, ddl+`; CREATE TABLE c (k int REFERENCES t)`, WithTruncateBeforeCopy(), WithReplicaRole())
	r.begin(table)
	r.want("SELECT v FROM t")
}

func TestCopyThatDoesNotAddUp(t *testing.T) {
	r := newRig(t, copyDDL)
	table := copyTable(copyRel(), 1)
	if err := r.sink.WriteChunk(testContext(t), chunk(table, 0, 0, 1)); !errors.Is(err, ErrCopyNotBegun) {
		t.Fatalf("a chunk before the beginning: %v", err)
	}
	if err := r.end(table, 0, 0); !errors.Is(err, ErrCopyNotBegun) {
		t.Fatalf("an end before the beginning: %v", err)
	}
	r.begin(table)
	lying := chunk(table, 0, 0, 10)
	lying.Rows = 11
	if err := r.sink.WriteChunk(testContext(t), lying); !errors.Is(err, ErrCopyIncomplete) || !sink.IsPermanent(err) {
		t.Fatalf("row count: %v", err)
	}
	bad := chunk(table, 0, 0, 1)
	bad.Data = []byte("x\tb\tc\n")
	if err := r.sink.WriteChunk(testContext(t), bad); !sink.IsPermanent(err) || !strings.Contains(err.Error(), "22P02") {
		t.Fatalf("bad value: %v", err)
	}
	r.want("SELECT * FROM t")
	r.chunk(chunk(table, 0, 0, 10))
	for _, c := range [][2]uint64{{2, 10}, {1, 11}, {0, 0}} {
		if err := r.end(table, c[0], c[1]); !errors.Is(err, ErrCopyIncomplete) || !sink.IsPermanent(err) {
			t.Fatalf("end with %v: %v", c, err)
		}
	}
	if err := r.end(table, 1, 10); err != nil {
		t.Fatal(err)
	}
}

func TestCopyRefusals(t *testing.T) {
	cases := []struct {
		name, ddl string
		is        error
	}{
		{"missing table", ``, ErrTableMissing},
		{"missing column", `CREATE TABLE t ("Key" int)`, ErrColumnsMissing},
		{"generated column", `CREATE TABLE t ("Key" int, v text, w text GENERATED ALWAYS AS ('x') STORED)`, ErrGenerated},
		{"trigger", copyDDL + `; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER x AFTER INSERT ON t EXECUTE FUNCTION f()`, ErrTriggers},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, c.ddl)
			if err := r.sink.BeginTable(testContext(t), copyTable(copyRel(), 1)); !errors.Is(err, c.is) || !sink.IsPermanent(err) {
				t.Fatalf("BeginTable: %v, want %v", err, c.is)
			}
		})
	}
}

// The copy's sessions are killed at random; chunks are written again until they are through.
func TestKilledCopySessionsLoseAndRepeatNothing(t *testing.T) {
	seed := flotest.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := newRig(t, `CREATE TABLE t ("Key" int, v text, w text)`)
	table := copyTable(copyRel(), 1)
	r.begin(table)
	const chunks = 60
	ended := 0               // sessions
	var failed atomic.Uint64 // writes that one was ended within, or before
	var g errgroup.Group
	g.SetLimit(2)
	for i := range chunks {
		if rnd.IntN(3) == 0 {
			n, err := strconv.Atoi(r.db.QueryString(t, `SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'flo g/w'`))
			if err != nil {
				t.Fatal(err)
			}
			ended += n
		}
		g.Go(func() error {
			ctx := testContext(t)
			for {
				err := r.sink.WriteChunk(ctx, chunk(table, 0, i*200, 200))
				if err == nil || sink.IsPermanent(err) || ctx.Err() != nil {
					return err
				}
				failed.Add(1)
			}
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d sessions were ended, %d writes failed", ended, failed.Load())
	if ended == 0 || failed.Load() == 0 {
		t.Error("no session was ended while it was written to")
	}
	if err := r.end(table, chunks, chunks*200); err != nil {
		t.Fatal(err)
	}
	r.want(`SELECT count(*), count(DISTINCT "Key") FROM t`, is("12000", "12000"))
}

// Rows without columns, into a table that has none, and into one that has some of its own.
func TestRowsWithoutColumns(t *testing.T) {
	for ddl, want := range map[string][]string{
		"CREATE TABLE t ()": is("5", "0"),
		"CREATE TABLE t (a int DEFAULT 7, b text DEFAULT 'x')": is("5", "5"),
	} {
		r := newRig(t, ddl)
		bare := rel("t")
		table := copyTable(bare, 1)
		r.begin(table)
		c := chunk(table, 0, 0, 0)
		c.Data, c.Rows = []byte("\n\n"), 2
		r.chunk(c)
		r.chunk(c) // skipped
		if err := r.end(table, 1, 2); err != nil {
			t.Fatal(err)
		}
		r.apply(insert(bare), insert(bare), insert(bare))
		r.want(`SELECT count(*), count(*) FILTER (WHERE to_jsonb(t) @> '{"a": 7, "b": "x"}') FROM t`, want)
	}
}
