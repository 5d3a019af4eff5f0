package rules_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// A function of your own, for the rows of one table: no interface to implement.
func ExampleEach() {
	upper := func(c *decode.Change) (keep bool, err error) {
		i := c.Relation.Column("name")
		if i >= 0 && c.New != nil && c.New[i].Presence() == decode.Present {
			c.New[i] = decode.TextValue(c.Relation.Columns[i].Type, bytes.ToUpper(c.New[i].Bytes()))
		}
		return true, nil
	}
	list := []rules.Rule{rules.Table("public.users", rules.Each(upper, decode.OpInsert, decode.OpUpdate))}

	text := &decode.Type{Schema: "pg_catalog", Name: "text"}
	users := &decode.Relation{Schema: "public", Name: "users", Columns: []decode.Column{{Name: "name", Type: text}}}
	out, f, err := rules.Bind(list, users)
	if err != nil {
		fmt.Println(err)
		return
	}
	c := decode.Change{Op: decode.OpInsert, New: decode.Row{decode.TextValue(text, []byte("ada"))}}
	keep, err := f(&c)
	fmt.Println(out == users, keep, err, c.New[0])
	// Output: true true <nil> ADA
}

func TestEachRunsForItsOperations(t *testing.T) {
	rel := &decode.Relation{OID: 1, Schema: "public", Name: "t"}
	for _, c := range []struct {
		rule func(rules.Func) rules.Rule
		want string
	}{
		{func(f rules.Func) rules.Rule { return rules.Each(f) }, "insert update delete "},
		{func(f rules.Func) rules.Rule { return rules.Each(f, decode.OpDelete) }, "delete "},
		{func(f rules.Func) rules.Rule { return rules.On(rules.Each(f), decode.OpUpdate) }, "update "},
		{func(f rules.Func) rules.Rule {
			return rules.On(rules.Each(f, decode.OpDelete, decode.OpInsert), decode.OpUpdate, decode.OpInsert)
		}, "insert "},
		{func(f rules.Func) rules.Rule { return rules.On(rules.Each(f, decode.OpDelete), decode.OpUpdate) }, ""},
		{func(f rules.Func) rules.Rule { return rules.Table("public.other", rules.Each(f)) }, ""},
	} {
		got := ""
		rule := c.rule(func(c *decode.Change) (bool, error) {
			got += c.Op.String() + " "
			return c.Relation == rel, nil
		})
		if err := rules.Validate(rule); err != nil {
			t.Fatal(err)
		}
		_, f, err := rules.Bind([]rules.Rule{rule}, rel)
		if err != nil {
			t.Fatal(err)
		}
		for op := decode.OpInsert; op <= decode.OpMessage && f != nil; op++ {
			if keep, err := f(&decode.Change{Op: op}); !keep || err != nil {
				t.Errorf("%s: %v, %v", op, keep, err)
			}
		}
		if got != c.want {
			t.Errorf("ran for %q, want %q", got, c.want)
		}
	}
}

func TestEachRefusesWhatCannotRun(t *testing.T) {
	f := func(*decode.Change) (bool, error) { return true, nil }
	for _, rule := range []rules.Rule{rules.Each(nil), rules.Each(f, decode.OpTruncate), rules.Each(f, decode.OpMessage), rules.Each(f, 99)} {
		if err := rules.Validate(rule); !errors.Is(err, rules.ErrInvalidRule) {
			t.Errorf("Validate: %v", err)
		}
		if _, _, err := rules.Bind([]rules.Rule{rule}, &decode.Relation{Name: "t"}); !errors.Is(err, rules.ErrInvalidRule) {
			t.Errorf("Bind: %v", err)
		}
	}
}
