package rules_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

func builtin(name string) *decode.Type { return &decode.Type{Schema: "pg_catalog", Name: name} }

var (
	tInt    = builtin("int4")
	tText   = builtin("text")
	tChar   = builtin("bpchar")
	tCitext = &decode.Type{Schema: "extensions", Name: "citext", Extension: "citext"}
	tDomain = &decode.Type{Schema: "public", Name: "email", Kind: decode.DomainType, Elem: tText}
	tEnum   = &decode.Type{Schema: "public", Name: "mood", Kind: decode.EnumType}
)

// users has id (the key), name, ssn, age, code char(6).
func users() *decode.Relation {
	return &decode.Relation{OID: 1, Schema: "public", Name: "users", Identity: decode.IdentityDefault, Columns: []decode.Column{
		{Name: "id", Type: tInt, Key: true}, {Name: "name", Type: tText}, {Name: "ssn", Type: tText},
		{Name: "age", Type: tInt}, {Name: "code", Type: tChar},
	}}
}

func text(s string) decode.Value { return decode.TextValue(tText, []byte(s)) }

func userRow(id, name, ssn string) decode.Row {
	return decode.Row{text(id), text(name), text(ssn), decode.NullValue(tInt), decode.UnchangedValue(tChar)}
}

func show(r decode.Row) string {
	if r == nil {
		return "-"
	}
	out := make([]string, len(r))
	for i, v := range r {
		switch v.Presence() {
		case decode.Absent:
			out[i] = "ABSENT"
		case decode.Null:
			out[i] = "NULL"
		case decode.Unchanged:
			out[i] = "UNCHANGED"
		default:
			out[i] = v.String()
		}
	}
	return strings.Join(out, "|")
}

func mustBind(t testing.TB, in *decode.Relation, rs ...rules.Rule) (*decode.Relation, rules.Func) {
	t.Helper()
	out, f, err := rules.Bind(rs, in)
	if err != nil {
		t.Fatal(err)
	}
	return out, f
}

func columns(r *decode.Relation) string {
	var names []string
	for _, c := range r.Columns {
		names = append(names, c.Name)
	}
	return strings.Join(names, ",")
}

func TestRulesThatDoNotApplyLeaveTheRelationUntouched(t *testing.T) {
	in := users()
	cases := map[string][]rules.Rule{
		"none":                  nil,
		"other table":           {rules.Table("public.orders", rules.Mask("name"))},
		"other case":            {rules.Table("public.Users", rules.Mask("name"))},
		"missing column":        {rules.Mask("email"), rules.Exclude("email", "phone")},
		"missing, by a pattern": {rules.Table("public.*", rules.Mask("email"))},
		"no operation in both":  {rules.On(rules.On(rules.Mask("name"), decode.OpInsert), decode.OpUpdate)},
	}
	for name, rs := range cases {
		if out, f := mustBind(t, in, rs...); out != in || f != nil {
			t.Errorf("%s: relation changed: %v, function: %v", name, out != in, f != nil)
		}
	}
}

func TestExcludeRemovesTheColumnFromRelationAndRows(t *testing.T) {
	in := users()
	before := columns(in)
	out, f := mustBind(t, in, rules.Table("public.users", rules.Exclude("ssn", "code")))
	if got := columns(out); got != "id,name,age" || columns(in) != before {
		t.Fatalf("columns %s, of the input %s", got, columns(in))
	}
	key := decode.Row{text("7"), {}, {}, {}, {}}
	for _, c := range []struct {
		change   decode.Change
		old, new string
	}{
		{decode.Change{Op: decode.OpInsert, New: userRow("1", "Ann", "secret")}, "-", "1|Ann|NULL"},
		{decode.Change{Op: decode.OpUpdate, Old: userRow("1", "Ann", "secret"), New: userRow("1", "Bo", "secret")}, "1|Ann|NULL", "1|Bo|NULL"},
		{decode.Change{Op: decode.OpDelete, Old: key, OldKey: true}, "7|ABSENT|ABSENT", "-"},
		{decode.Change{Op: decode.OpTruncate}, "-", "-"},
	} {
		full := c.change.New[:len(c.change.New):len(c.change.New)]
		if keep, err := f(&c.change); err != nil || !keep {
			t.Fatal(keep, err)
		}
		if show(c.change.Old) != c.old || show(c.change.New) != c.new || c.change.Relation != out {
			t.Errorf("%s: old %s, new %s, want %s and %s", c.change.Op, show(c.change.Old), show(c.change.New), c.old, c.new)
		}
		if strings.Contains(show(full), "secret") {
			t.Errorf("the excluded value still stands behind the row: %s", show(full))
		}
	}
}

func TestMaskCountsCharactersAndHidesShortValues(t *testing.T) {
	in := users()
	for _, c := range []struct {
		value, want string
		opts        []rules.MaskOption
	}{
		{value: "margaret", want: "m******t"},
		{value: "", want: ""},
		{value: "a", want: "*"},
		{value: "ab", want: "**"},
		{value: "abc", want: "a*c"},
		{value: "Ägypten", want: "Ä*****n"},
		{value: "日本語テキスト", want: "日*****ト"},
		{value: "日本", want: "**"},
		{value: "🙂🙃🙂", want: "🙂*🙂"},
		{value: "line\nbreak", want: "l********k"},
		{value: "\xff\xfe\xfd", want: "\xff*\xfd"},
		{value: "margaret", want: "********", opts: []rules.MaskOption{rules.KeepFirst(0), rules.KeepLast(0)}},
		{value: "margaret", want: "****aret", opts: []rules.MaskOption{rules.KeepFirst(0), rules.KeepLast(4)}},
		{value: "margaret", want: "••••••••", opts: []rules.MaskOption{rules.KeepFirst(5), rules.KeepLast(3), rules.MaskRune('•')}},
		{value: "margaret", want: "********", opts: []rules.MaskOption{rules.KeepFirst(1 << 62), rules.KeepLast(1 << 62)}},
	} {
		_, f := mustBind(t, in, rules.Mask("name", c.opts...))
		source := []byte(c.value)
		change := decode.Change{Op: decode.OpInsert, New: userRow("1", "", "s")}
		change.New[1] = decode.TextValue(tText, source)
		if keep, err := f(&change); err != nil || !keep {
			t.Fatal(keep, err)
		}
		if got := change.New[1].String(); got != c.want || string(source) != c.value || change.New[1].Type() != tText {
			t.Errorf("%q became %q, want %q; the source's bytes are %q", c.value, got, c.want, source)
		}
	}
}

func TestMaskKeepsNullUnchangedAbsentAndPadding(t *testing.T) {
	out, f := mustBind(t, users(), rules.Mask("code"), rules.Mask("name"))
	old := userRow("1", "oldname", "s")
	old[4] = decode.TextValue(tChar, []byte("ab    "))
	change := decode.Change{Op: decode.OpUpdate, Old: old, New: decode.Row{text("1"), decode.NullValue(tText), text("s"), {}, decode.UnchangedValue(tChar)}}
	if _, err := f(&change); err != nil {
		t.Fatal(err)
	}
	if show(change.Old) != "1|o*****e|s|NULL|**    " || show(change.New) != "1|NULL|s|ABSENT|UNCHANGED" {
		t.Errorf("old %s, new %s", show(change.Old), show(change.New))
	}
	if columns(out) != columns(users()) {
		t.Errorf("Mask changed the columns: %s", columns(out))
	}
}

func TestMaskRefusesTypesThatCannotHoldTheResult(t *testing.T) {
	for _, c := range []struct {
		typ *decode.Type
		ok  bool
	}{{tText, true}, {tChar, true}, {builtin("varchar"), true}, {tCitext, true}, {tDomain, true},
		{tInt, false}, {tEnum, false}, {nil, false}, {builtin("jsonb"), false}, {builtin("name"), false},
		{&decode.Type{Schema: "pg_catalog", Name: "_text", Kind: decode.ArrayType, Elem: tText}, false},
		{&decode.Type{Schema: "public", Name: "text"}, false},
		{&decode.Type{Schema: "public", Name: "age", Kind: decode.DomainType, Elem: tInt}, false}} {
		in := users()
		in.Columns[1].Type = c.typ
		_, _, err := rules.Bind([]rules.Rule{rules.Mask("name")}, in)
		if c.ok != (err == nil) || (err != nil && !errors.Is(err, rules.ErrType)) {
			t.Errorf("%+v: %v", c.typ, err)
		}
	}
}

func TestKeyAndMissingColumnsAreErrorsAtBind(t *testing.T) {
	full := users()
	full.Identity = decode.IdentityFull
	for _, c := range []struct {
		in   *decode.Relation
		rule rules.Rule
		want error
	}{
		{users(), rules.Exclude("id"), rules.ErrKeyColumn},
		{users(), rules.On(rules.Exclude("id"), decode.OpUpdate), rules.ErrKeyColumn},
		{users(), rules.Table("public.*", rules.Mask("id")), rules.ErrKeyColumn},
		{full, rules.Exclude("id"), nil}, // the whole row is the identity, old and new lose the column alike
		{users(), rules.Table("public.users", rules.Mask("nmae")), rules.ErrNoColumn},
		{users(), rules.Table("users", rules.On(rules.Exclude("Name"), decode.OpInsert)), rules.ErrNoColumn},
		{users(), rules.Table("users", rules.Exclude("ssn"), rules.Mask("ssn")), rules.ErrNoColumn},
		{users(), rules.Table(`"users`, rules.Exclude("ssn")), rules.ErrInvalidRule},
		{users(), rules.Exclude(), rules.ErrInvalidRule},
		{users(), rules.Mask("name", rules.KeepLast(-1)), rules.ErrInvalidRule},
		{users(), rules.On(rules.Mask("name")), rules.ErrInvalidRule},
		{users(), rules.On(rules.Mask("name"), 99), rules.ErrInvalidRule},
		{users(), nil, rules.ErrInvalidRule},
	} {
		_, _, err := rules.Bind([]rules.Rule{c.rule}, c.in)
		if !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.rule, err, c.want)
		}
		var be *rules.BindError
		if (c.want == rules.ErrKeyColumn || c.want == rules.ErrNoColumn) && (!errors.As(err, &be) || be.Table.String() != "public.users") {
			t.Errorf("%v: %v names no table", c.rule, err)
		}
	}
}

func TestValidateReportsAllMistakesAtOnce(t *testing.T) {
	err := rules.Validate(rules.Table("a.b.c", rules.Mask("x")), rules.Table("t", rules.Mask(""), rules.On(rules.Exclude("a"))), rules.Exclude("ok"))
	for _, part := range []string{"a.b.c", "name the column", "needs an operation"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v lacks %q", err, part)
		}
	}
	if err := rules.Validate(rules.Exclude("a"), rules.Mask("b")); err != nil {
		t.Error(err)
	}
}

func TestPartitionsAreMeantByTheirAncestors(t *testing.T) {
	leaf := users()
	leaf.Name = "users_2024"
	leaf.Ancestors = []decode.Name{{Schema: "public", Name: "users_all"}, {Schema: "shop", Name: "root"}}
	for _, pattern := range []string{"users_2024", "users_all", "shop.root", "shop.*"} {
		if out, _ := mustBind(t, leaf, rules.Table(pattern, rules.Exclude("ssn"))); out == leaf {
			t.Errorf("%s did not match", pattern)
		}
	}
	if _, _, err := rules.Bind([]rules.Rule{rules.Table("shop.root", rules.Exclude("sn"))}, leaf); !errors.Is(err, rules.ErrNoColumn) {
		t.Errorf("missing column of an exactly named ancestor: %v", err)
	}
}

func TestOnLimitsRulesToOperations(t *testing.T) {
	in := users()
	out, f := mustBind(t, in, rules.On(rules.Mask("name"), decode.OpUpdate, decode.OpDelete), rules.On(rules.Exclude("ssn"), decode.OpUpdate))
	if out != in {
		t.Fatal("a limited Exclude changed the relation")
	}
	for op, want := range map[decode.Op]string{
		decode.OpInsert: "1|margaret|s|NULL|UNCHANGED",
		decode.OpUpdate: "1|m******t|ABSENT|NULL|UNCHANGED",
		decode.OpDelete: "1|m******t|s|NULL|UNCHANGED",
	} {
		c := decode.Change{Op: op, New: userRow("1", "margaret", "s")}
		if _, err := f(&c); err != nil || show(c.New) != want {
			t.Errorf("%s: %s, %v", op, show(c.New), err)
		}
	}
}

// custom is a user's rule.
type custom func(in *decode.Relation) (*decode.Relation, rules.Func, error)

func (c custom) Bind(in *decode.Relation) (*decode.Relation, rules.Func, error) { return c(in) }

func renamed(to string) rules.Rule {
	return custom(func(in *decode.Relation) (*decode.Relation, rules.Func, error) {
		out := *in
		out.Name = to
		return &out, nil, nil
	})
}

func TestRulesRunInOrderAndStopAtADrop(t *testing.T) {
	var seen []string
	note := func(keep bool) rules.Rule {
		return custom(func(in *decode.Relation) (*decode.Relation, rules.Func, error) {
			return in, func(c *decode.Change) (bool, error) {
				if c.Relation != in {
					t.Errorf("the rule was bound to %v, called with %v", in, c.Relation)
				}
				seen = append(seen, fmt.Sprintf("%s(%s)", c.Relation.Name, show(c.New)))
				return keep, nil
			}, nil
		})
	}
	out, f := mustBind(t, users(), note(true), rules.Exclude("ssn"), renamed("people"), note(false), note(true))
	c := decode.Change{Op: decode.OpInsert, New: userRow("1", "n", "s")}
	if keep, err := f(&c); keep || err != nil {
		t.Error(keep, err)
	}
	want := []string{"users(1|n|s|NULL|UNCHANGED)", "people(1|n|NULL|UNCHANGED)"}
	if !reflect.DeepEqual(seen, want) || out.Name != "people" {
		t.Errorf("%v, want %v", seen, want)
	}
	if out, f := mustBind(t, users(), renamed("people")); f != nil || out.Name != "people" {
		t.Error("a rule that only renames needs no function")
	}
	if _, _, err := rules.Bind([]rules.Rule{rules.On(renamed("x"), decode.OpInsert)}, users()); !errors.Is(err, rules.ErrInvalidRule) {
		t.Errorf("On with a rule that changes the relation: %v", err)
	}
}

func TestRowsOfAnotherShapeAreRefused(t *testing.T) {
	for _, r := range []rules.Rule{rules.Mask("name"), rules.Exclude("ssn")} {
		_, f := mustBind(t, users(), r)
		c := decode.Change{Op: decode.OpInsert, New: userRow("1", "n", "s")[:3]}
		if keep, err := f(&c); keep || !errors.Is(err, rules.ErrShape) {
			t.Errorf("%v: %v, %v", r, keep, err)
		}
	}
}

func TestFunctionsMayRunConcurrently(t *testing.T) {
	_, f := mustBind(t, users(), rules.Mask("name"), rules.Exclude("ssn"), rules.On(rules.Exclude("age"), decode.OpInsert))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				c := decode.Change{Op: decode.OpInsert, New: userRow("1", "margaret", "s")}
				if _, err := f(&c); err != nil || show(c.New) != "1|m******t|ABSENT|UNCHANGED" {
					t.Error(show(c.New), err)
					return
				}
			}
		})
	}
	wg.Wait()
}
