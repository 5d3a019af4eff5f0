package postgres

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// source makes a relation, and the copy of it, of a source table.
func (r *rig) source(oid, attempt uint32, kept ...uint32) (*decode.Relation, sink.CopyTable) {
	from := rel("t", "*id", "v")
	from.OID = oid
	from.Columns[0].Type = &decode.Type{Schema: "pg_catalog", Name: "int4"} // several connections tell rows apart
	return from, sink.CopyTable{Relation: from, Source: oid, Attempt: attempt, Point: decode.LSN(1000 + attempt), Kept: kept}
}

func idChunk(t sink.CopyTable, rng uint32, word string, ids ...int) *sink.CopyChunk {
	var b strings.Builder
	for _, id := range ids {
		fmt.Fprintf(&b, "%d\t%s\n", id, word)
	}
	return &sink.CopyChunk{
		Table: t, Rows: uint64(len(ids)), Data: []byte(b.String()), Epoch: 1,
		ID: decode.CopyID{Point: t.Point, Table: t.Source, Attempt: t.Attempt, Range: rng},
	}
}

// merged copies a source whole.
func (r *rig) merged(t sink.CopyTable, word string, ids ...int) {
	r.t.Helper()
	r.begin(t)
	r.chunk(idChunk(t, 0, word, ids...))
	if err := r.end(t, 1, uint64(len(ids))); err != nil {
		r.t.Fatal(err)
	}
}

const (
	mergeDDL = `CREATE TABLE t (id int PRIMARY KEY, v text, extra int DEFAULT 7); INSERT INTO t VALUES (1, 'other', 8), (2, 'other', 8), (-1, 'other', 8)`
	mergeAll = `SELECT coalesce(string_agg(id || '=' || v || '/' || extra, ' ' ORDER BY id), '') FROM t`
)

func TestACopyIsMergedAmongRowsOfOthers(t *testing.T) {
	r := newRig(t, mergeDDL, WithMergeCopy("t"))
	src, table := r.source(16400, 1)
	r.begin(table)
	r.chunk(idChunk(table, 0, "a", 2, 3))
	r.chunk(idChunk(table, 1, "a", 4, 5))
	r.chunk(idChunk(table, 1, "a", 4, 5))                  // skipped
	r.want(mergeAll, is("-1=other/8 1=other/8 2=other/8")) // nothing is seen before the end
	for range 2 {                                          // the answer to the first may have been lost
		if err := r.end(table, 2, 4); err != nil {
			t.Fatal(err)
		}
	}
	r.want(mergeAll, is("-1=other/8 1=other/8 2=a/8 3=a/7 4=a/7 5=a/7"))
	// What the stream brings, takes and changes is known as well.
	r.apply(insert(src, "6", "s"), insert(src, "7", "s"), remove(src, "3", absent), updateFrom(src, row("4", absent), "8", "s"), update(src, "5", "s"))
	r.apply(remove(src, "7", absent))
	r.db.Exec(t, `INSERT INTO t VALUES (3, 'mine', 9)`) // by somebody else, under a key that was the source's once
	r.want(mergeAll, is("-1=other/8 1=other/8 2=a/8 3=mine/9 5=s/7 6=s/7 8=s/7"))
	// Another copy, for which 2, 6 and 8 are gone.
	_, table = r.source(16400, 2)
	r.merged(table, "b", 5, 9)
	r.want(mergeAll, is("-1=other/8 1=other/8 3=mine/9 5=b/7 9=b/7"))
	r.apply(truncation(src))
	r.want(mergeAll, is("-1=other/8 1=other/8 3=mine/9"))
	r.want(`SELECT count(*) FROM pg_class WHERE relname LIKE 'stage\_%'`, is("0"))
}

// truncation makes a TRUNCATE of one table.
func truncation(r *decode.Relation) *decode.Change {
	return &decode.Change{Op: decode.OpTruncate, Truncate: &decode.Truncate{Relations: []*decode.Relation{r}}}
}

// A batch that empties the table in its middle takes what it has brought itself in front of that.
func TestATruncateInABatchTakesWhatTheBatchHasBrought(t *testing.T) {
	r := newRig(t, mergeDDL, WithMergeCopy())
	src, table := r.source(16400, 1)
	r.merged(table, "a", 3)
	r.apply(insert(src, "4", "s"), truncation(src), insert(src, "5", "s"))
	r.want(mergeAll, is("-1=other/8 1=other/8 2=other/8 5=s/7"))
	_, table = r.source(16400, 2)
	r.merged(table, "b", 6)
	r.want(mergeAll, is("-1=other/8 1=other/8 2=other/8 6=b/7"))
}

// An attempt that is cut short leaves nothing; one that goes on after a crash goes on.
func TestAMergeThatIsCutShort(t *testing.T) {
	r := newRig(t, mergeDDL, WithMergeCopy("public.*"))
	_, first := r.source(16400, 1)
	r.merged(first, "a", 3, 4)
	_, second := r.source(16400, 2)
	r.begin(second)
	r.chunk(idChunk(second, 0, "cut", 4, 5))
	_, third := r.source(16400, 3)
	r.begin(third)
	r.chunk(idChunk(third, 0, "b", 4, 6))
	again := newSink(t, r.db.URL, WithMergeCopy("t")) // a process that takes over
	if _, err := again.Open(testContext(t), sink.Start{Group: r.st.Group, Worker: r.st.Worker, Incarnation: r.st.Incarnation, Epoch: 2}); err != nil {
		t.Fatal(err)
	}
	r.sink = again
	r.begin(third)
	c := idChunk(third, 0, "b", 4, 6)
	c.Epoch = 2
	r.chunk(c) // skipped
	if err := r.end(third, 1, 2); err != nil {
		t.Fatal(err)
	}
	r.begin(third) // the process died again, behind the end
	r.chunk(c)
	if err := r.end(third, 1, 2); err != nil {
		t.Fatal(err)
	}
	r.want(mergeAll, is("-1=other/8 1=other/8 2=other/8 4=b/7 6=b/7"))
}

// Several sources of one destination have a copy each; a key that went from one to the other stays, and one of a
// table that the group no longer has goes.
func TestSourcesOfOneDestinationAreMergedEachByItself(t *testing.T) {
	r := newRig(t, mergeDDL, WithMergeCopy("t"))
	_, a := r.source(16400, 1)
	_, b := r.source(16500, 1)
	_, c := r.source(16600, 1)
	for _, table := range []sink.CopyTable{a, b, c} {
		r.begin(table)
	}
	for i, table := range []sink.CopyTable{a, b, c} {
		r.chunk(idChunk(table, 0, string(rune('a'+i)), 10*i+10, 10*i+11))
		if err := r.end(table, 1, 2); err != nil {
			t.Fatal(err)
		}
	}
	r.want(mergeAll, is("-1=other/8 1=other/8 2=other/8 10=a/7 11=a/7 20=b/7 21=b/7 30=c/7 31=c/7"))
	_, a = r.source(16400, 2, 16500) // the third has left
	r.merged(a, "A", 10, 20)         // 11 is gone, and 20 is the second's as well
	r.want(mergeAll, is("-1=other/8 1=other/8 2=other/8 10=A/7 20=A/7 21=b/7"))
	_, b = r.source(16500, 3, 16400)
	r.merged(b, "B", 21)
	r.want(mergeAll, is("-1=other/8 1=other/8 2=other/8 10=A/7 20=A/7 21=B/7"))
}

func TestMergesOfOtherKeys(t *testing.T) {
	for name, ddl := range map[string]string{
		"deferrable": `CREATE TABLE t (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, v text, extra int DEFAULT 7)`,
		"identity":   `CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text, extra int DEFAULT 7)`,
		"unique":     `CREATE TABLE t (id int UNIQUE, v text, extra int GENERATED ALWAYS AS IDENTITY (START 7 INCREMENT 0))`,
		"partitions": `CREATE TABLE t (id int PRIMARY KEY, v text, extra int DEFAULT 7) PARTITION BY RANGE (id); CREATE TABLE p PARTITION OF t FOR VALUES FROM (-10) TO (100)`,
		"generated":  `CREATE TABLE t (id int PRIMARY KEY, v text GENERATED ALWAYS AS ('b') STORED, extra int DEFAULT 7)`,
	} {
		t.Run(name, func(t *testing.T) {
			if name == "unique" {
				ddl = strings.Replace(ddl, " (START 7 INCREMENT 0)", "", 1)
			}
			r := newRig(t, ddl, WithMergeCopy("t"))
			other := `INSERT INTO t (id, v) OVERRIDING SYSTEM VALUE VALUES (1, 'other'), (2, 'other')`
			if name == "generated" {
				other = `INSERT INTO t (id) VALUES (1), (2)`
			}
			r.db.Exec(t, other)
			src, table := r.source(16400, 1)
			r.merged(table, "a", 2, 3, 4)
			if name != "generated" {
				r.apply(remove(src, "3", absent), insert(src, "5", "s"))
			}
			_, table = r.source(16400, 2)
			r.merged(table, "b", 4, 6)
			want := "1=other 4=b 6=b"
			if name == "generated" {
				want = "1=b 4=b 6=b"
			}
			r.want(`SELECT string_agg(id || '=' || v, ' ' ORDER BY id) FROM t`, is(want))
		})
	}
}

func TestATableWithoutAKeyIsNotMerged(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (id int, v text, extra int DEFAULT 7); INSERT INTO t VALUES (1, 'other')`, WithMergeCopy("t"))
	_, table := r.source(16400, 1)
	var fit *FitError
	if err := r.sink.BeginCopy(testContext(t), []sink.CopyTable{table}); !errors.As(err, &fit) || !errors.Is(err, ErrMergeKey) || len(fit.Misfits) != 1 {
		t.Fatalf("%v", err)
	}
	if err := r.sink.BeginTable(testContext(t), table); !errors.Is(err, ErrMergeKey) || !sink.IsPermanent(err) {
		t.Fatalf("%v", err)
	}
	r.db.Exec(t, fit.Misfits[0].Mend)
	r.merged(table, "a", 2)
	r.want(`SELECT count(*) FROM t`, is("2"))
}

// Where copies were merged, a copy without the option must not empty the table.
func TestAMergedTableIsNotEmptiedWhenTheOptionIsLeftOut(t *testing.T) {
	r := newRig(t, mergeDDL, WithMergeCopy("t"))
	_, table := r.source(16400, 1)
	r.merged(table, "a", 3)
	reopen := func(opts ...Option) {
		r.st.Epoch++
		r.sink = newSink(t, r.db.URL, opts...)
		if _, err := r.sink.Open(testContext(t), r.st); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	_, table = r.source(16400, 2)
	if err := r.sink.BeginTable(testContext(t), table); !errors.Is(err, ErrNotEmpty) {
		t.Fatalf("%v", err)
	}
	r.want(`SELECT count(*) FROM t`, is("4"))
	reopen(WithTruncateBeforeCopy())
	r.begin(table)
	r.want(`SELECT count(*) FROM t`, is("0"))
	r.want(`SELECT count(*) FROM pg_class WHERE relname LIKE 'keys\_%'`, is("0"))
	if _, err := New(r.db.URL, WithMergeCopy("a.b.c.d")); !errors.Is(err, ErrInvalidOption) {
		t.Errorf("%v", err)
	}
}

// Random copies, changes and rows of others: the destination is always what the source has, and what others have under
// keys of their own.
func TestMergesOfRandomCopiesAndChanges(t *testing.T) {
	for _, connections := range []int{1, 3} {
		t.Run(fmt.Sprint(connections), func(t *testing.T) { testRandomMerges(t, connections) })
	}
}

func testRandomMerges(t *testing.T, connections int) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	r := newRig(t, `CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (-1, 'other')`, WithMergeCopy("t"), WithApplyConnections(connections))
	have := map[int]string{}
	attempt := uint32(0)
	for step := range 60 {
		src, table := r.source(16400, attempt+1)
		word := fmt.Sprint("s", step)
		switch rnd.IntN(4) {
		case 0: // the source has changed unseen
			for id := range have {
				if rnd.IntN(3) == 0 {
					delete(have, id)
				}
			}
			have[rnd.IntN(50)] = word
			fallthrough
		case 1:
			if rnd.IntN(2) == 0 { // cut short
				attempt++
				r.begin(table)
				r.chunk(idChunk(table, 0, "cut", rnd.IntN(50)))
				_, table = r.source(16400, attempt+1)
			}
			attempt++
			r.begin(table)
			n := uint64(0)
			for id, v := range have {
				r.chunk(idChunk(table, uint32(n), v, id))
				n++
			}
			if err := r.end(table, n, n); err != nil {
				t.Fatal(err)
			}
		default:
			if attempt == 0 {
				continue
			}
			var changes []*decode.Change
			moves := rnd.IntN(2) == 0 // updates that change keys are one connection's
			for range 1 + rnd.IntN(200) {
				id := rnd.IntN(50)
				_, is := have[id]
				to := rnd.IntN(50)
				_, taken := have[to]
				switch {
				case !is:
					have[id] = word
					changes = append(changes, insert(src, fmt.Sprint(id), word))
				case moves && rnd.IntN(100) == 0:
					clear(have)
					changes = append(changes, truncation(src))
				case rnd.IntN(3) == 0:
					delete(have, id)
					changes = append(changes, remove(src, fmt.Sprint(id), absent))
				case moves && !taken:
					delete(have, id)
					have[to] = word
					changes = append(changes, updateFrom(src, row(fmt.Sprint(id), absent), fmt.Sprint(to), word))
				default:
					have[id] = word
					changes = append(changes, update(src, fmt.Sprint(id), word))
				}
			}
			r.apply(changes...)
		}
		if attempt == 0 {
			continue
		}
		var want []string
		for id := range 50 {
			if v, is := have[id]; is {
				want = append(want, fmt.Sprintf("%d=%s", id, v))
			}
		}
		r.want(`SELECT coalesce(string_agg(id || '=' || v, ' ' ORDER BY id), '') FROM t WHERE id >= 0`, is(strings.Join(want, " ")))
		r.want(`SELECT string_agg(v, ' ') FROM t WHERE id < 0`, is("other"))
		if t.Failed() {
			t.Fatalf("step %d", step)
		}
	}
	if spread := r.sink.stats.spread.Load(); connections > 1 && spread == 0 {
		t.Error("no batch was applied by several connections")
	}
}
