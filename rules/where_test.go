package rules_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
)

// counts is a table of integers; the first keys columns are its key.
func counts(identity decode.Identity, keys int, columns ...string) *decode.Relation {
	rel := &decode.Relation{OID: 1, Schema: "public", Name: "p", Identity: identity}
	for i, c := range columns {
		key := i < keys || identity == decode.IdentityFull
		rel.Columns = append(rel.Columns, decode.Column{Name: c, Type: decode.BuiltinType(23), Modifier: -1, Key: key})
	}
	return rel
}

func ints(values [4]int) decode.Row {
	row := make(decode.Row, len(values))
	for i, v := range values {
		row[i] = decode.TextValue(decode.BuiltinType(23), []byte(strconv.Itoa(v)))
	}
	return row
}

// filtered is a source table, and the destination that a list of Wheres keeps equal to a part of it. The
// columns are k1, k2 (the key), a, b.
type filtered struct {
	t    *testing.T
	full bool
	f    rules.Func
	rel  *decode.Relation
	src  map[[2]int][4]int
	dst  map[string]string // by key, as the sink has it
}

func keyOf(row decode.Row) string { return row[0].String() + "," + row[1].String() }

func textOf(row decode.Row) string {
	var parts []string
	for _, v := range row {
		parts = append(parts, v.String())
	}
	return strings.Join(parts, ",")
}

// give runs one change of the source through the rules and applies what is left of it, by sink.Sink's contract.
func (x *filtered) give(c decode.Change) {
	x.t.Helper()
	c.Relation = x.rel
	keep, err := x.f(&c)
	if err != nil {
		x.t.Fatal(err)
	}
	if !keep {
		return
	}
	found := func(row decode.Row) {
		if _, ok := x.dst[keyOf(row)]; x.full && !ok {
			x.t.Fatalf("under FULL the old row %s of a %s has to be there", textOf(row), c.Op)
		}
	}
	switch c.Op {
	case decode.OpInsert:
		if c.Old != nil {
			delete(x.dst, keyOf(c.Old))
		}
		if _, ok := x.dst[keyOf(c.New)]; ok {
			x.t.Fatalf("an insert meets the row %s", textOf(c.New))
		}
		x.dst[keyOf(c.New)] = textOf(c.New)
	case decode.OpUpdate:
		old := c.Old
		if old == nil {
			old = c.New
		}
		if _, ok := x.dst[keyOf(old)]; !ok {
			x.t.Fatalf("an update finds no row %s", keyOf(old))
		}
		delete(x.dst, keyOf(old))
		x.dst[keyOf(c.New)] = textOf(c.New)
	case decode.OpDelete:
		found(c.Old)
		delete(x.dst, keyOf(c.Old))
	}
}

func (x *filtered) old(row [4]int, moved bool) (decode.Row, bool) {
	switch {
	case x.full:
		return ints(row), false
	case !moved:
		return nil, false
	}
	key := ints(row)
	key[2], key[3] = decode.Value{}, decode.Value{}
	return key, true
}

// step makes a random change.
func (x *filtered) step(r *rand.Rand) {
	keys := slices.SortedFunc(maps.Keys(x.src), func(a, b [2]int) int { return slices.Compare(a[:], b[:]) })
	row := [4]int{r.IntN(6), r.IntN(4) - 1, r.IntN(5) - 2, r.IntN(5) - 2}
	key := [2]int(row[:2])
	_, taken := x.src[key]
	if n := r.IntN(10); len(keys) == 0 || n < 3 {
		if !taken {
			x.src[key] = row
			x.give(decode.Change{Op: decode.OpInsert, New: ints(row)})
		}
		return
	} else if before := x.src[keys[r.IntN(len(keys))]]; n < 5 {
		old, only := x.old(before, true)
		delete(x.src, [2]int(before[:2]))
		x.give(decode.Change{Op: decode.OpDelete, Old: old, OldKey: only})
	} else {
		if n < 8 || taken { // the key stays
			row[0], row[1] = before[0], before[1]
		}
		old, only := x.old(before, [2]int(row[:2]) != [2]int(before[:2]))
		delete(x.src, [2]int(before[:2]))
		x.src[[2]int(row[:2])] = row
		x.give(decode.Change{Op: decode.OpUpdate, Old: old, OldKey: only, New: ints(row)})
	}
}

// asked is a random condition, for flo and as a function.
func asked(r *rand.Rand) (rules.Condition, func([4]int) bool) {
	names := []string{"k1", "k2", "a", "b"}
	i, j, n, m := r.IntN(4), r.IntN(4), r.IntN(4)-1, r.IntN(4)-1
	one, other := rules.Gt(names[i], n), rules.Ne(names[j], m)
	is, too := func(row [4]int) bool { return row[i] > n }, func(row [4]int) bool { return row[j] != m }
	switch r.IntN(4) {
	case 0:
		return one, is
	case 1:
		return rules.And(one, other), func(row [4]int) bool { return is(row) && too(row) }
	case 2:
		return rules.Or(one, other), func(row [4]int) bool { return is(row) || too(row) }
	}
	return rules.Not(one), func(row [4]int) bool { return !is(row) }
}

func TestSeveralWheresKeepTheDestinationEqual(t *testing.T) {
	seed := flotest.Seed(t)
	r := rand.New(rand.NewPCG(seed, 3))
	for round := range 2000 {
		x := &filtered{t: t, full: round%2 == 0, src: map[[2]int][4]int{}, dst: map[string]string{}}
		in := counts(decode.IdentityDefault, 2, "k1", "k2", "a", "b")
		if x.full {
			in = counts(decode.IdentityFull, 2, "k1", "k2", "a", "b")
		}
		var list []rules.Rule
		var says []string
		var all []func([4]int) bool
		for range 1 + r.IntN(3) {
			c, is := asked(r)
			list, all, says = append(list, rules.Where(c, rules.PassTruncate())), append(all, is), append(says, c.String())
		}
		var err error
		if x.rel, x.f, err = rules.Bind(list, in); err != nil {
			t.Fatal(err)
		}
		for range 40 {
			x.step(r)
			want := map[string]string{}
			for _, row := range x.src {
				if !slices.ContainsFunc(all, func(is func([4]int) bool) bool { return !is(row) }) {
					want[keyOf(ints(row))] = textOf(ints(row))
				}
			}
			if !maps.Equal(want, x.dst) {
				t.Fatalf("full %t, %s: the destination has\n%v\nwant\n%v", x.full, fmt.Sprint(says), x.dst, want)
			}
		}
	}
}

func TestWhereWithoutFullAndTablesThatMeet(t *testing.T) {
	table := func(oid uint32, name string, identity decode.Identity, above ...decode.Name) *decode.Relation {
		rel := counts(identity, 1, "id", "n")
		rel.OID, rel.Name, rel.Ancestors = oid, name, above
		return rel
	}
	root := decode.Name{Schema: "public", Name: "root"}
	const def, full = decode.IdentityDefault, decode.IdentityFull
	where := rules.Where(rules.Gt("n", 0), rules.PassTruncate())
	for name, c := range map[string]struct {
		rule    rules.Rule
		a, b    *decode.Relation
		only    rules.RouteOption
		refused bool
	}{
		"by key":                {where, table(1, "a", def), table(2, "b", def), nil, true},
		"the second by key":     {where, table(1, "a", full), table(2, "b", def), nil, true},
		"the first by key":      {where, table(1, "a", def), table(2, "b", full), nil, true},
		"a Where for one":       {rules.Table("a", where), table(1, "a", def), table(2, "b", def), nil, true},
		"whole rows":            {where, table(1, "a", full), table(2, "b", full), nil, false},
		"the key decides":       {rules.Where(rules.Gt("id", 0), rules.PassTruncate()), table(1, "a", def), table(2, "b", def), nil, false},
		"partitions":            {where, table(1, "a", def, root), table(2, "b", def, root), nil, false},
		"Filter":                {rules.Filter(rules.Gt("n", 0), rules.PassTruncate()), table(1, "a", def), table(2, "b", def), nil, false},
		"inserts only":          {where, table(1, "a", def), table(2, "b", def), rules.Only(decode.OpInsert), false},
		"the same table, again": {where, table(1, "a", def), table(1, "a", def), nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			option := c.only
			if option == nil {
				option = rules.DropTruncate()
			}
			b := rules.NewBinder([]rules.Rule{c.rule, rules.Route("a", "all", option), rules.Route("b", "all", option)})
			if _, err := b.Bind(c.a); err != nil {
				t.Fatal(err)
			}
			_, err := b.Bind(c.b)
			if refused := errors.Is(err, rules.ErrNeedsFull); refused != c.refused || !refused && err != nil {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestOperationsAreTheSources(t *testing.T) {
	table := func(identity decode.Identity) *decode.Relation {
		rel := counts(identity, 1, "id", "n")
		rel.Columns = append(rel.Columns, decode.Column{Name: "email", Type: decode.BuiltinType(1043), Modifier: 4 + 5, Key: identity == decode.IdentityFull})
		return rel
	}
	row := func(id, n int) decode.Row {
		return decode.Row{ints([4]int{id})[0], ints([4]int{n})[0], decode.TextValue(decode.BuiltinType(1043), []byte("abcde"))}
	}
	where := rules.Where(rules.Gt("n", 0), rules.PassTruncate())
	hide := rules.Mask("email", rules.KeepFirst(0), rules.KeepLast(0))
	route := func(ops ...decode.Op) rules.Rule { return rules.Route("p", "q", rules.Only(ops...)) }
	const ins, upd, del = decode.OpInsert, decode.OpUpdate, decode.OpDelete
	var each []decode.Op
	file, err := rules.Load(strings.NewReader(`tables: {p: [
		{type: where, column: n, parameters: {operator: gt, value: 0}},
		{type: transform, column: email, parameters: {type: mask}, operations: [INSERT, UPDATE]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		list      []rules.Rule
		before, n int
		becomes   decode.Op // 0: dropped
		clear     bool
	}{
		"a mask for inserts and updates, the row leaves": {[]rules.Rule{where, rules.On(hide, ins, upd)}, 1, -1, del, false},
		"the same of a file":                             {file, 1, -1, del, false},
		"a mask for deletes, the row leaves":             {[]rules.Rule{where, rules.On(hide, del)}, 1, -1, del, false},
		"a mask for inserts, the row leaves":             {[]rules.Rule{where, rules.On(hide, ins)}, 1, -1, del, true},
		"a mask for updates, the row comes in":           {[]rules.Rule{where, rules.On(hide, upd)}, -1, 1, ins, false},
		"Only inserts, the row comes in":                 {[]rules.Rule{where, route(ins)}, -1, 1, 0, false},
		"Only inserts and updates, the row comes in":     {[]rules.Rule{where, route(ins, upd)}, -1, 1, ins, true},
		"Only inserts and updates, the row leaves":       {[]rules.Rule{where, route(ins, upd)}, 1, -1, 0, false},
		"Only updates and deletes, the row leaves":       {[]rules.Rule{where, route(upd, del)}, 1, -1, del, true},
		"Each of updates, the row leaves": {[]rules.Rule{where, rules.Each(func(c *decode.Change) (bool, error) {
			each = append(each, c.Op)
			return true, nil
		}, upd)}, 1, -1, del, true},
	} {
		t.Run(name, func(t *testing.T) {
			each = nil
			_, f, err := rules.Bind(c.list, table(decode.IdentityFull))
			if err != nil {
				t.Fatal(err)
			}
			ch := decode.Change{Op: upd, Old: row(1, c.before), New: row(1, c.n)}
			keep, err := f(&ch)
			if err != nil || keep != (c.becomes != 0) {
				t.Fatalf("keep %t, %v", keep, err)
			}
			if !keep {
				return
			}
			left := ch.New
			if ch.Op == del {
				left = ch.Old
			}
			if ch.Op != c.becomes || (left[2].String() == "abcde") != c.clear || len(each) > 0 {
				t.Errorf("became %s of %s, Each ran for %v", ch.Op, textOf(left), each)
			}
		})
	}
}
