package postgres

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// inserts makes n of them, from a key on.
func inserts(r *decode.Relation, from, n int) []*decode.Change {
	out := make([]*decode.Change, n)
	for i := range out {
		out[i] = insert(r, numberText(from+i), "new")
	}
	return out
}

// nearby makes a sink's decisions those at a server nearby, however slow this machine is just now.
func (r *rig) nearby() *rig {
	r.sink.main.planner.least = leastCopied
	return r
}

func (r *rig) wantRuns(runs, undone uint64) {
	r.t.Helper()
	if got, back := r.sink.stats.runs.Load(), r.sink.stats.undone.Load(); got != runs || back != undone {
		r.t.Fatalf("%d runs copied, %d groups undone; want %d and %d", got, back, runs, undone)
	}
}

// A row that stands in the way is overwritten as ever, and COPY is not tried again at once.
func TestStaleRowUndoesTheCopy(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v text); CREATE TABLE u (k int PRIMARY KEY, v text); INSERT INTO t VALUES (50, 'stale')`).nearby()
	kv, u := rel("t", "*k", "v"), rel("u", "*k", "v")
	r.apply(append(inserts(u, 0, 100), inserts(kv, 0, 100)...)...)
	r.want("SELECT count(*), min(v) FROM t", is("100", "new"))
	r.wantRuns(2, 1) // u's run was undone with t's, and made again
	from := 100
	for range firstPause {
		r.apply(append(inserts(kv, from, 100), inserts(u, from, 100)...)...)
		from += 100
	}
	r.wantRuns(2+firstPause, 1)
	r.apply(inserts(kv, from, 100)...)
	r.wantRuns(3+firstPause, 1)
	r.want("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)", is("600", "500"))
}

// A change that the server refuses is named, whether COPY or a statement met it, and nothing stays.
func TestRefusedRowAmongCopiedOnes(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v text CHECK (v <> 'bad')); CREATE TABLE u (k int PRIMARY KEY, v text)`, WithReplicaRole())
	kv, u := rel("t", "*k", "v"), rel("u", "*k", "v")
	with := func(at int, bad *decode.Change) []*decode.Change {
		all := append(inserts(kv, 0, 100), inserts(u, 0, 100)...)
		all[at] = bad
		return all
	}
	for _, c := range []struct {
		at  int
		bad *decode.Change
		is  string
	}{
		{57, insert(kv, "57", "bad"), "23514"},
		{57, insert(kv, "x", "new"), "22P02"},
		{57, insert(kv, "56", "new"), ""}, // an upsert
		{0, update(kv, "999", "new"), "no such row"},
		{57, update(kv, "999", "new"), "no such row"},
		{199, remove(kv, "999", absent), "no such row"},
		{30, update(u, "5", "new"), "no such row"}, // which the inserts behind it make, and COPY must not make before
	} {
		r.nearby()
		err := r.try(with(c.at, c.bad)...)
		if c.is == "" {
			if err != nil {
				t.Fatal(err)
			}
			r.db.Exec(t, "TRUNCATE t, u")
			continue
		}
		var rejected *sink.RejectError
		if !errors.As(err, &rejected) || rejected.Index != c.at || !strings.Contains(err.Error(), c.is) {
			t.Fatalf("want change %d rejected with %q, got: %v", c.at, c.is, err)
		}
		if cp := r.open(); cp.Seq > 3 {
			t.Fatalf("checkpoint %v", cp)
		}
		r.want("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u)", is("0", "0"))
	}
}

// Groups in the batches of one transaction: each savepoint ends before the next, an undone one takes back
// its own rows only, and all of it commits or nothing.
func TestGroupsInABigTransaction(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v text); CREATE TABLE u (k int PRIMARY KEY, v text);
		CREATE TABLE d (k int PRIMARY KEY DEFERRABLE, v text); INSERT INTO d VALUES (9, ''), (1, 'one'), (2, 'two'); DELETE FROM d WHERE k = 9;
		INSERT INTO t VALUES (250, 'stale')`).nearby()
	r.db.Exec(t, "VACUUM d") // so that the next row takes the first place, in front of those it could be taken for
	kv, u, d := rel("t", "*k", "v"), rel("u", "*k", "v"), rel("d", "*k", "v")
	r.more(inserts(kv, 0, 100)...)
	r.more(inserts(kv, 100, 100)...)
	r.wantRuns(2, 0)
	r.more(append(inserts(kv, 200, 100), remove(u, "9", absent))...) // 250 is there
	r.wantRuns(2, 1)
	// Two rows swap keys: which of two has a key is told by the order in which the transaction wrote them.
	r.more(append(inserts(u, 0, 100), updateFrom(d, row("1", absent), "2", "one"), updateFrom(d, row("2", absent), "1", "two!"))...)
	r.more(inserts(u, 100, 100)...)
	r.want("SELECT count(*) FROM t", is("1"))
	r.apply()
	r.want("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u), (SELECT count(*) FROM t WHERE v = 'stale')", is("300", "200", "0"))
	r.want("SELECT * FROM d ORDER BY k", is("1", "two!"), is("2", "one"))
	if n := r.sink.Stats(); n.Changes != 503 || n.MissingRows != 1 || n.Transactions != 1 {
		t.Fatalf("%+v", n)
	}
	r.more(inserts(u, 1000, 100)...)
	if err := r.sink.Abort(testContext(t)); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.want("SELECT count(*) FROM u", is("200"))
}

// A table with a rule or a trigger that fires, and one with row security, take their changes one by one
// and in the order of all changes.
func TestWhatActsKeepsOrder(t *testing.T) {
	p := &planner{least: 2, reduced: 2}
	known := bindings{m: map[*decode.Relation]*binding{}}
	table := func(name string, calm bool) *decode.Relation {
		r := rel(name, "*k", "v")
		known.m[r] = &binding{rel: r, columns: []*column{{}, {}}, table: &table{family: name, calm: calm}}
		return r
	}
	a, b, acts, leaf := table("a", true), table("b", true), table("acts", false), table("leaf", true)
	known.m[leaf].table.family = "a"
	for _, c := range []struct {
		name    string
		changes string // a letter each: table, capital for what is no plain insert
		want    []string
	}{
		{"one insert", "a", nil},
		{"a run", "aaa", []string{"aaa: 0 1 2"}},
		{"two tables, mixed", "abab", []string{"abab: 0 2, 1 3"}},
		{"updates of another table between", "aBaBa", []string{"aBaBa: 0 2 4"}},
		{"inserts behind an update of their table stay", "aaAaa", []string{"aaAaa: 0 1"}},
		{"too short", "aBb", []string{"aBb:"}},
		{"a trigger fires", "aaxaa", []string{"aa: 0 1", "x:", "aa: 3 4"}},
		{"truncate", "aaTaa", []string{"aa: 0 1", "T:", "aa: 3 4"}},
		{"a message", "mama", []string{"mama: 1 3"}},
		{"root and leaf are one: all or none", "aal", []string{"aal:"}},
		{"root and leaf are one", "alal", []string{"alal: 0 2, 1 3"}},
		{"the leaf's update stops the root's inserts", "aaLaa", []string{"aaLaa: 0 1"}},
		{"cut for many behind an update", "aaAaaaaaaaabb", []string{"aaA: 0 1", "aaaaaaaabb: 3 4 5 6 7 8 9 10, 11 12"}},
		{"other columns", "aaca", []string{"aaca: 0 1"}},
	} {
		var changes []*decode.Change
		for _, l := range c.changes {
			rels := map[rune]*decode.Relation{'a': a, 'c': a, 'b': b, 'x': acts, 'l': leaf}
			switch l {
			case 'A', 'B', 'L':
				changes = append(changes, update(rels[l+'a'-'A'], "1", "x"))
			case 'T':
				changes = append(changes, &decode.Change{Op: decode.OpTruncate, Truncate: &decode.Truncate{Relations: []*decode.Relation{a}}})
			case 'm':
				changes = append(changes, &decode.Change{Op: decode.OpMessage})
			case 'c':
				changes = append(changes, insert(a, "1", absent))
			default:
				changes = append(changes, insert(rels[l], "1", "x"))
			}
		}
		var got []string
		for _, g := range p.plan(&known, changes, false) {
			text := c.changes[g.from:g.to] + ":"
			for n, run := range g.copies {
				text += pick(n == 0, "", ",")
				for _, row := range run.rows {
					text += " " + numberText(slices.IndexFunc(changes, func(c *decode.Change) bool { return len(c.New) > 0 && &c.New[0] == &row[0] }))
				}
			}
			got = append(got, text)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q gives %q, want %q", c.name, c.changes, got, c.want)
		}
	}
}
