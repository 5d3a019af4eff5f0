package rules_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
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
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("FLO_TEST_SEED"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	t.Logf("FLO_TEST_SEED=%d", seed)
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
