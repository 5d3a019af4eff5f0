package postgres

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
)

// lifeTable is a table whose rows are inserted, changed, given other keys and deleted.
type lifeTable struct {
	name   string
	ddl    string // of the columns and constraints
	rel    *decode.Relation
	key    func(n int) []any // the key's values for a number
	values func(w *life, n int) []any
	unique string // a constraint beside the key, which a batch may break for a while
}

const hostileTable = `Hos"tile; DROP TABLE x; --`

func quotedName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func number1(n int) []any { return []any{numberText(n)} }

func lifeTables() []*lifeTable {
	texts := func(w *life, _ int) []any { return []any{w.text(), w.text(), w.text()} }
	return []*lifeTable{
		{name: "plain", ddl: "k int PRIMARY KEY, a text, b text, c text, extra text DEFAULT 'd'", rel: rel("plain", "*k", "a", "b", "c"), key: number1, values: texts},
		{name: "mail", ddl: "k bigint PRIMARY KEY, u text, a text, b int, CONSTRAINT mail_u UNIQUE (u)", unique: "CONSTRAINT mail_u UNIQUE (u)",
			rel: rel("mail", "*k", "u", "a", "b"), key: number1, values: func(w *life, n int) []any {
				u := "u" + numberText(n)
				if w.rnd.IntN(2000) == 0 {
					u = "u" + numberText(w.rnd.IntN(200))
				}
				if w.rnd.IntN(9) == 0 {
					return []any{nil, w.text(), "1"}
				}
				return []any{u, w.text(), numberText(w.rnd.IntN(9))}
			}},
		{name: "pairs", ddl: `a text COLLATE "C", n int, v text, w jsonb, x int[], PRIMARY KEY (n, a)`, rel: rel("pairs", "*a", "*n", "v", "w", "x"),
			key:    func(n int) []any { return []any{[]string{"", "a", "ab\tc", "größe", `"\`}[n%5], numberText(n / 5)} },
			values: func(w *life, _ int) []any { return []any{w.text(), `{"a": [1, "x"]}`, "{{1,2},{3,NULL}}"} }},
		{name: "tree", ddl: "k uuid PRIMARY KEY, parent uuid REFERENCES tree, v text", rel: rel("tree", "*k", "parent", "v"),
			key:    func(n int) []any { return []any{fmt.Sprintf("00000000-0000-0000-0000-%012x", n)} },
			values: func(w *life, n int) []any { return []any{fmt.Sprintf("00000000-0000-0000-0000-%012x", n/2), w.text()} }},
		{name: hostileTable, ddl: `"Ke""y" varchar(20) PRIMARY KEY, "select" text, "s.c0" text, "$1" numeric(6,2), "always" int GENERATED ALWAYS AS (1) STORED`,
			rel:    rel(hostileTable, `*Ke"y`, "select", "s.c0", "$1", "always"),
			key:    func(n int) []any { return []any{"key '" + numberText(n) + pick(n%40 == 0, " ", "")} },
			values: func(w *life, n int) []any { return []any{w.text(), w.text(), "12.345", "9"} }},
		{name: "parts", ddl: "k int PRIMARY KEY, v text, w text", rel: rel("parts", "*k", "v", "w"), key: number1, values: func(w *life, _ int) []any { return []any{w.text(), w.text()} }},
		{name: "amounts", ddl: "k numeric PRIMARY KEY, v text", rel: rel("amounts", "*k", "v"),
			key: func(n int) []any { return []any{numberText(n) + pick(n == 399, ".0", "")} }, values: func(w *life, _ int) []any { return []any{w.text()} }},
		{name: "identity", ddl: "k int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text", rel: rel("identity", "*k", "v"), key: number1, values: func(w *life, _ int) []any { return []any{w.text()} }},
		{name: "deferred", ddl: "k int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text", rel: rel("deferred", "*k", "u", "v"), key: number1,
			values: func(w *life, n int) []any { return []any{numberText(n), w.text()} }},
		{name: "moments", ddl: "d date, t timestamptz, p char(4), v text, PRIMARY KEY (d, t, p)", rel: rel("moments", "*d", "*t", "*p", "v"),
			key: func(n int) []any {
				return []any{"2024-03-04", fmt.Sprintf("2024-03-04 05:%02d:%02d+00", n/60%60, n%60), pick(n%2 == 0, "ab  ", "c   ")}
			}, values: func(w *life, _ int) []any { return []any{w.text()} }},
		{name: "onlykey", ddl: "k int PRIMARY KEY", rel: rel("onlykey", "*k"), key: number1, values: func(*life, int) []any { return nil }},
		{name: "domains", ddl: "k int PRIMARY KEY, d short", rel: rel("domains", "*k", "d"), key: number1, values: func(w *life, _ int) []any { return []any{"abc"} }},
	}
}

func lifeDDL(tables []*lifeTable) string {
	ddl := "CREATE DOMAIN short AS varchar(3);"
	for _, t := range tables {
		ddl += "CREATE TABLE " + quotedName(t.name) + " (" + t.ddl + ")"
		if t.name == "parts" {
			ddl += " PARTITION BY RANGE (k); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (MINVALUE) TO (70); CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (70) TO (MAXVALUE)"
		}
		ddl += ";"
	}
	return ddl
}

// life makes batches in which most updates and deletes meet their rows. Those of one seed are the same.
type life struct {
	rnd    *rand.Rand
	tables []*lifeTable
	alive  map[string][]int // numbers of the keys that are there
	serial int
	strays int  // one change of so many does not meet what it should
	still  bool // keys and unique values stay where they are
}

func (w *life) text() any {
	return []any{"", "x", nil, `\N`, "tab\tnewline\nback\\slash", "größe", `{"a","b"}`, strings.Repeat("long ", 100), "NULL"}[w.rnd.IntN(9)]
}

func (w *life) stray() bool { return w.strays > 0 && w.rnd.IntN(w.strays) == 0 }

// pick gives the number of a key that is there, or one that is not.
func (w *life) pick(t *lifeTable, there bool) int {
	alive := w.alive[t.name]
	if there != w.stray() && len(alive) > 0 {
		return alive[w.rnd.IntN(len(alive))]
	}
	for range 1000 {
		if n := 2 + w.rnd.IntN(400); !slices.Contains(alive, n) {
			return n
		}
	}
	return 1
}

func (w *life) lives(t *lifeTable, n int, lives bool) {
	alive := slices.DeleteFunc(w.alive[t.name], func(m int) bool { return m == n })
	if lives {
		alive = append(alive, n)
	}
	w.alive[t.name] = alive
}

func (w *life) row(t *lifeTable, n int) []any { return append(t.key(n), t.values(w, n)...) }

// keyRow is an old row that has only the key.
func (w *life) keyRow(t *lifeTable, n int) []any {
	out := make([]any, len(t.rel.Columns))
	for i := range out {
		out[i] = absent
	}
	copy(out, t.key(n))
	return out
}

func (w *life) change(t *lifeTable) *decode.Change {
	keys := len(t.key(1))
	switch p := w.rnd.IntN(100); {
	case p < 30, len(w.alive[t.name]) == 0 && !w.stray():
		n := w.pick(t, false)
		w.lives(t, n, true)
		return insert(t.rel, w.row(t, n)...)
	case p < 50:
		n := w.pick(t, true)
		w.lives(t, n, false)
		return remove(t.rel, w.keyRow(t, n)...)
	case p < 53 && !w.still:
		from, to := w.pick(t, true), w.pick(t, false)
		w.lives(t, from, false)
		w.lives(t, to, true)
		return updateFrom(t.rel, row(w.keyRow(t, from)...), w.row(t, to)...)
	default:
		n := w.pick(t, true)
		values := w.row(t, n)
		for i := keys; i < len(values); i++ {
			if w.rnd.IntN(4) == 0 {
				values[i] = unchanged
			}
		}
		if w.rnd.IntN(20) == 0 {
			return updateFrom(t.rel, row(w.keyRow(t, n)...), values...)
		}
		return update(t.rel, values...)
	}
}

// handOn moves a unique value from one row to another, in the order in which that works.
func (w *life) handOn(t *lifeTable) []*decode.Change {
	from, to := w.pick(t, true), w.pick(t, true)
	if from == to || len(w.alive[t.name]) < 2 {
		return nil
	}
	w.serial++
	first, second, third := w.row(t, from), w.row(t, from), w.row(t, to)
	value := "handed" + numberText(w.serial)
	first[1], second[1], third[1] = value, nil, value
	return []*decode.Change{update(t.rel, first...), update(t.rel, second...), update(t.rel, third...)}
}

// batch makes one: of few tables or of all, with stretches of inserts.
func (w *life) batch() []*decode.Change {
	var out []*decode.Change
	for range 1 + w.rnd.IntN(3) {
		some := make([]*lifeTable, 1+w.rnd.IntN(4))
		for i := range some {
			some[i] = w.tables[w.rnd.IntN(len(w.tables))]
		}
		for range w.rnd.IntN(300) {
			t := some[w.rnd.IntN(len(some))]
			out = append(out, w.change(t))
			if t.unique != "" && !w.still && w.rnd.IntN(50) == 0 {
				out = append(out, w.handOn(t)...)
			}
		}
	}
	return out
}

// learn reads which rows are there.
func (w *life) learn(r *rig) {
	for _, t := range w.tables {
		have := make(map[string]bool)
		keys := len(t.key(1))
		for _, row := range r.db.Query(r.t, "SELECT * FROM "+quotedName(t.name)) {
			if t.name != "moments" {
				have[strings.Join(row[:keys], "|")] = true
			} else { // as this session writes moments
				have[row[0]+"|"+row[1][:19]+"|"+row[2]] = true
			}
		}
		w.alive[t.name] = nil
		for n := 1; n <= 402; n++ {
			name := ""
			for i, v := range t.key(n) {
				text := v.(string)
				if t.name == "moments" && i == 1 {
					text = text[:19]
				}
				name += pick(i == 0, "", "|") + text
			}
			if have[name] {
				w.alive[t.name] = append(w.alive[t.name], n)
			}
		}
	}
}

// Reducing changes to one a key, and applying them by sets, does what they do one by one: the same rows,
// the same refusals of the same changes, the same counts. The one thing that sets may do beyond it is to
// bring a unique value from row to row in an order that would have been refused; then the rows are those
// that the changes make with the constraint looked at in the end.
func TestSetsDoWhatSingleChangesDo(t *testing.T) {
	seed := flotest.Seed(t)
	for _, c := range []struct {
		name   string
		opts   []Option
		strays int
	}{
		{"all rows met", []Option{WithReplicaRole()}, 0},
		{"missing rows refused", []Option{WithReplicaRole()}, 3000},
		{"missing rows counted", []Option{WithReplicaRole(), WithMissingRowsCounted()}, 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			tables := lifeTables()
			sets, single := newRig(t, lifeDDL(tables), c.opts...), newRig(t, lifeDDL(tables), c.opts...)
			single.sink.config.rowByRow = true
			work := &life{rnd: rand.New(rand.NewPCG(seed, 11)), tables: tables, alive: make(map[string][]int), strays: c.strays}
			names := make([]string, len(tables))
			for i, table := range tables {
				names[i] = quotedName(table.name)
			}
			refused, handed := 0, 0
			const batches = 60
			for n := range batches {
				work.learn(single)
				changes := work.batch()
				var cuts []int
				if len(changes) > 2 && work.rnd.IntN(3) == 0 {
					cuts = []int{len(changes) / 3, len(changes) / 2}
				}
				if n%20 != 19 { // nor are tables left alone for long
					sets.sink.main.planner.batch += longestPause * 4
				}
				got, want := sets.outcome(changes, cuts, names), single.outcome(changes, cuts, names)
				if got.err == "" && want.code == "23505" {
					handed++
					want = single.constraintsLast(tables, func() outcome { return single.outcome(changes, cuts, names) })
				}
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("batch %d of %d changes, cut at %v%s", n, len(changes), cuts, got.difference(want))
				}
				if want.err != "" {
					refused++
				}
			}
			runs, statements, undone := sets.sink.stats.runs.Load(), sets.sink.stats.sets.Load(), sets.sink.stats.undone.Load()
			t.Logf("%d COPYs, %d sets, %d groups undone, %d of %d batches refused, %d with values handed on", runs, statements, undone, refused, batches, handed)
			if statements == 0 || single.sink.stats.sets.Load() != 0 {
				t.Fatal("nothing was compared")
			}
		})
	}
}

// constraintsLast does something without the constraints beside the keys, and sees to it that they hold
// afterwards.
func (r *rig) constraintsLast(tables []*lifeTable, do func() outcome) outcome {
	for _, t := range tables {
		if t.unique != "" {
			r.db.Exec(r.t, "ALTER TABLE "+quotedName(t.name)+" DROP CONSTRAINT "+strings.Fields(t.unique)[1])
			defer r.db.Exec(r.t, "ALTER TABLE "+quotedName(t.name)+" ADD "+t.unique)
		}
	}
	return do()
}

// A table that autovacuum has found without live rows, behind a large transaction that was rolled back, looks as if
// going through all of it were cheap, and with a set for each of its rows.
func TestNoSetsForATableThatLooksEmptier(t *testing.T) {
	r := newRig(t, "CREATE TABLE t (k int PRIMARY KEY, v text) WITH (autovacuum_enabled = off); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 20000) i")
	r.db.Exec(t, "ANALYZE t; UPDATE pg_class SET reltuples = 0 WHERE oid = 't'::regclass")
	table := rel("t", "*k", "v")
	set := func(value string) {
		var changes []*decode.Change
		for n := range 200 {
			changes = append(changes, update(table, numberText(n*50+1), value))
		}
		r.apply(changes...)
		r.want("SELECT count(*)::text FROM t WHERE k % 50 = 1 AND v = '"+value+"'", is("200"))
	}
	set("y")
	if n := r.sink.stats.sets.Load(); n != 0 {
		t.Errorf("%d sets for a table that looks empty", n)
	}
	r.db.Exec(t, "ANALYZE t")
	r.sink.main.bindings.get(table).table.weighed = time.Time{} // a second ago, and more
	set("z")
	if n := r.sink.stats.sets.Load(); n == 0 {
		t.Error("no set for a table that looks as it is")
	}
}
