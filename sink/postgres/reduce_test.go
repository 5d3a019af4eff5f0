package postgres

import (
	"fmt"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
)

func TestKeyFormsTellValuesApart(t *testing.T) {
	for _, c := range []struct {
		column    column
		yes, no   []string
		canonical map[string]string
	}{
		{column: column{typ: 23}, yes: []string{"0", "-1", "10", "2147483647"}, no: []string{"", "-", "00", "01", "+1", " 1", "-0", "1.0", "x"}},
		{column: column{typ: 1700, modifier: -1}, yes: []string{"12"}, no: []string{"1.0", "1e3", "NaN"}},
		{column: column{typ: 1700, modifier: 10<<16 + 2 + 4}, yes: []string{"12"}, no: []string{"12.00"}},
		{column: column{typ: 1700, modifier: 10<<16 + (-3 & 0x7ff) + 4}, no: []string{"12"}},
		{column: column{typ: 2950}, yes: []string{"01234567-89ab-cdef-0123-456789abcdef"}, no: []string{"01234567-89AB-cdef-0123-456789abcdef", "0123456789abcdef0123456789abcdef", ""}},
		{column: column{typ: 17}, yes: []string{`\x`, `\x0aff`}, no: []string{`\x0AFF`, `\x0`, "abc", ""}},
		{column: column{typ: 16}, yes: []string{"t", "f"}, no: []string{"true", "T", ""}},
		{column: column{typ: 1082}, yes: []string{"2024-03-04"}, no: []string{"2024-3-4", "infinity", "2024-03-04 BC"}},
		{column: column{typ: 1114, modifier: -1}, yes: []string{"2024-03-04 05:06:07", "2024-03-04 05:06:07.000001"}, no: []string{"2024-03-04 05:06:07.10", "2024-03-04 24:00:00", "2024-03-04 05:06:60", "2024-03-04 05:06:07.", "2024-03-04 05:06:07.1234567", "2024-03-04"}},
		{column: column{typ: 1114, modifier: 0}, no: []string{"2024-03-04 05:06:07"}},
		{column: column{typ: 1184, modifier: -1}, yes: []string{"2024-03-04 05:06:07.5+00"}, no: []string{"2024-03-04 05:06:07+01", "2024-03-04 05:06:07"}},
		{column: column{typ: 25, exact: true}, yes: []string{"", "x", "x ", "größe"}},
		{column: column{typ: 25}, no: []string{"x"}},
		{column: column{typ: 1043, exact: true, modifier: 9}, yes: []string{"", "x"}, no: []string{"x "}},
		{column: column{typ: 1042, exact: true, modifier: 9}, canonical: map[string]string{"x   ": "x", "x": "x"}},
		{column: column{typ: 100000, enum: true}, yes: []string{"ok"}},
		{column: column{typ: 100000}, no: []string{"1 day"}},
		{column: column{typ: 1186}, no: []string{"24:00:00"}},
	} {
		form := keyFormOf(&c.column)
		for _, v := range c.yes {
			if got, ok := form.text([]byte(v)); !ok || string(got) != v {
				t.Errorf("type %d: %q is refused", c.column.typ, v)
			}
		}
		for _, v := range c.no {
			if _, ok := form.text([]byte(v)); ok {
				t.Errorf("type %d, modifier %d: %q is taken", c.column.typ, c.column.modifier, v)
			}
		}
		for v, want := range c.canonical {
			if got, ok := form.text([]byte(v)); !ok || string(got) != want {
				t.Errorf("type %d: %q gives %q", c.column.typ, v, got)
			}
		}
	}
}

func TestReduce(t *testing.T) {
	r := rel("t", "*k", "a", "b")
	cols := []*column{{typ: 23, castable: true}, {typ: 25, castable: true}, {typ: 25, castable: true}}
	b := &binding{rel: r, columns: cols, table: &table{}, keyCols: []int{0}, keyForms: []keyForm{integerForm}, key: &index{}}
	ins := func(k, a, v any) *decode.Change { return insert(r, k, a, v) }
	upd := func(k, a, v any) *decode.Change { return update(r, k, a, v) }
	del := func(k any) *decode.Change { return remove(r, k, absent, absent) }
	mov := func(from, k, a, v any) *decode.Change {
		return updateFrom(r, row(from, absent, absent), k, a, v)
	}
	for _, c := range []struct {
		name    string
		changes []*decode.Change
		want    string // "" if it cannot be
	}{
		{"insert, update", []*decode.Change{ins("1", "x", "y"), upd("1", "z", unchanged)}, "insert[0 1 2] 1 z y"},
		{"two inserts", []*decode.Change{ins("1", "x", "y"), ins("1", "z", nil)}, "insert[0 1 2] 1 z NULL"},
		{"the last update counts", []*decode.Change{upd("1", "x", "y"), upd("1", "z", unchanged)}, "update[1 2] 1: z y, of several"},
		{"an unchanged value alone", []*decode.Change{upd("1", unchanged, "y"), upd("2", "x", unchanged)}, "update[2] 1: y; update[1] 2: x"},
		{"insert, delete", []*decode.Change{ins("1", "x", "y"), del("1")}, "purge 1"},
		{"delete, insert", []*decode.Change{del("1"), ins("1", "x", "y")}, "delete 1; renew[0 1 2] 1 x y"},
		{"update, delete", []*decode.Change{upd("1", "x", "y"), del("1")}, "delete 1, of several"},
		{"delete, insert, delete", []*decode.Change{del("1"), ins("1", "x", "y"), del("1")}, "delete 1"},
		{"insert, delete, insert", []*decode.Change{ins("1", "x", "y"), del("1"), ins("1", "z", nil)}, "purge 1; renew[0 1 2] 1 z NULL"},
		{"a row moves", []*decode.Change{mov("1", "2", "x", unchanged), upd("2", unchanged, "y")}, "move[0 1 2] 1: 2 x y, of several"},
		{"its place is taken", []*decode.Change{mov("1", "2", "x", "y"), ins("1", "z", nil)}, "move[0 1 2] 1: 2 x y; renew[0 1 2] 1 z NULL"},
		{"to where one was", []*decode.Change{del("2"), mov("1", "2", "x", "y")}, "delete 2; move[0 1 2] 1: 2 x y"},
		{"order", []*decode.Change{ins("5", "x", "y"), upd("4", "x", "y"), mov("2", "3", "x", "y"), del("1")}, "delete 1; move[0 1 2] 2: 3 x y; update[1 2] 4: x y; insert[0 1 2] 5 x y"},
		{"nothing to set", []*decode.Change{upd("1", unchanged, unchanged)}, "nothing"},
		{"delete twice", []*decode.Change{del("1"), del("1")}, ""},
		{"update of a deleted row", []*decode.Change{del("1"), upd("1", "x", "y")}, ""},
		{"insert over an updated row", []*decode.Change{upd("1", "x", "y"), ins("1", "x", "y")}, ""},
		{"a chain of moves", []*decode.Change{mov("1", "2", "x", "y"), mov("2", "3", "x", "y")}, ""},
		{"a move onto a row", []*decode.Change{upd("2", "x", "y"), mov("1", "2", "x", "y")}, ""},
		{"an inserted row moves", []*decode.Change{ins("1", "x", "y"), mov("1", "2", "x", "y")}, ""},
		{"a moved row is deleted", []*decode.Change{mov("1", "2", "x", "y"), del("2")}, ""},
		{"another text of a key", []*decode.Change{upd("01", "x", "y")}, ""},
		{"no key", []*decode.Change{ins(nil, "x", "y")}, ""},
		{"a large row", []*decode.Change{ins("1", strings.Repeat("x", maxReducedRow), "y")}, ""},
	} {
		which := make([]int, len(c.changes))
		for i := range which {
			which[i] = i
		}
		got := ""
		if x := (&reducer{}); x.reduce(b, c.changes, which) {
			got = describeSets(x.collect())
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func describeSets(sets []*setRun) string {
	if len(sets) == 0 {
		return "nothing"
	}
	values := func(row decode.Row, cols []int) string {
		out := ""
		for _, i := range cols {
			out += " " + pick(row[i].IsNull(), "NULL", row[i].String())
		}
		return out
	}
	var out []string
	for _, s := range sets {
		text := []string{"delete", "purge", "move", "update", "renew", "insert"}[s.kind]
		if s.columns != nil {
			text += fmt.Sprint(s.columns)
		}
		for n := range s.size() {
			if s.keys != nil {
				text += values(s.keys[n], s.binding.keyCols)
				text += pick(s.rows != nil, ":", "")
			}
			if s.rows != nil {
				text += values(s.rows[n], s.columns)
			}
		}
		out = append(out, text+pick(s.counted() && !s.single, ", of several", ""))
	}
	return strings.Join(out, "; ")
}

// A unique value that is handed on in the right order, in a set that takes it in another, and a row that
// is missing: the group is undone, and comes out as single changes do.
func TestSetsAreUndone(t *testing.T) {
	r := newRig(t, `CREATE TABLE t (k int PRIMARY KEY, v text UNIQUE); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 200) i`, WithReplicaRole()).nearby()
	kv := rel("t", "*k", "v")
	changes := []*decode.Change{update(kv, "200", "free")}
	for i := 199; i > 0; i-- { // each takes the value of the one that has just left it
		changes = append(changes, update(kv, numberText(i), "v"+numberText(i+1)))
	}
	handed := func() bool { // in the order of the array, it works too: turn it round, by touching them first
		first := make([]*decode.Change, 0, 400)
		for i := 1; i <= 200; i++ {
			first = append(first, update(kv, numberText(i), "v"+numberText(i)))
		}
		r.apply(append(first, changes...)...)
		return r.sink.stats.undone.Load() == 1
	}()
	if !handed {
		t.Fatalf("%d groups undone", r.sink.stats.undone.Load())
	}
	r.want("SELECT count(*) FROM t WHERE v = 'v' || k + 1", is("199"))
	var gone []*decode.Change
	for i := range 100 {
		gone = append(gone, remove(kv, numberText(150+i), absent))
	}
	r.sink.main.planner.batch += longestPause
	err := r.try(gone...)
	if err == nil || !strings.Contains(err.Error(), "change 51 ") || r.sink.stats.undone.Load() != 2 {
		t.Fatalf("%d groups undone, error %v", r.sink.stats.undone.Load(), err)
	}
	r.open()
	r.want("SELECT count(*) FROM t", is("200"))
}
