package rules_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// item has id (the key), qty int4 and label of the given type.
func item(label *decode.Type, identity decode.Identity) *decode.Relation {
	full := identity == decode.IdentityFull
	return &decode.Relation{OID: 7, Schema: "public", Name: "item", Identity: identity, Columns: []decode.Column{
		{Name: "id", Type: tInt, Modifier: -1, Key: true},
		{Name: "qty", Type: tInt, Modifier: -1, Key: full},
		{Name: "label", Type: label, Modifier: -1, Key: full},
	}}
}

// row reads "1|5|x": NULL, - (absent) and ~ (unchanged) are what they say; "" is no row.
func row(s string) decode.Row {
	if s == "" {
		return nil
	}
	var out decode.Row
	for _, f := range strings.Split(s, "|") {
		switch f {
		case "NULL":
			out = append(out, decode.NullValue(tText))
		case "-":
			out = append(out, decode.Value{})
		case "~":
			out = append(out, decode.UnchangedValue(tText))
		default:
			out = append(out, text(f))
		}
	}
	return out
}

type outcome struct {
	op       decode.Op
	old, new string
	oldKey   bool
}

func run(t *testing.T, f rules.Func, op decode.Op, old, new string, oldKey bool) (outcome, error) {
	t.Helper()
	c := decode.Change{Op: op, Old: row(old), New: row(new), OldKey: oldKey}
	keep, err := f(&c)
	if err != nil || !keep {
		return outcome{}, err
	}
	out := outcome{c.Op, show(c.Old), show(c.New), c.OldKey}
	for _, s := range []*string{&out.old, &out.new} {
		*s = strings.NewReplacer("ABSENT", "-", "UNCHANGED", "~").Replace(*s)
	}
	return out, nil
}

const (
	ins = decode.OpInsert
	upd = decode.OpUpdate
	del = decode.OpDelete
)

func TestFilterDropsWhatDoesNotMatch(t *testing.T) {
	full, key := decode.IdentityFull, decode.IdentityDefault
	qty, label := rules.Gte("qty", 5), rules.Eq("label", "x")
	for _, c := range []struct {
		what     string
		identity decode.Identity
		cond     rules.Condition
		opts     []rules.FilterOption
		op       decode.Op
		old, new string
		oldKey   bool
		keep     bool
		err      error
	}{
		{"match", key, qty, nil, ins, "", "1|5|x", false, true, nil},
		{"no match", key, qty, nil, ins, "", "1|4|x", false, false, nil},
		{"NULL is not true", key, qty, nil, ins, "", "1|NULL|x", false, false, nil},
		{"nor is not NULL", key, rules.Not(qty), nil, ins, "", "1|NULL|x", false, false, nil},
		{"is null", key, rules.IsNull("qty"), nil, ins, "", "1|NULL|x", false, true, nil},
		{"unknown or true", key, rules.Or(qty, label), nil, ins, "", "1|NULL|x", false, true, nil},
		{"an update by its new row", key, qty, nil, upd, "", "1|4|x", false, false, nil},
		{"a delete by its old row", full, qty, nil, del, "1|4|x", "", false, false, nil},
		{"key-only delete is dropped", key, qty, nil, del, "1|-|-", "", true, false, nil},
		{"key-only delete, allowed", key, qty, []rules.FilterOption{rules.AllowEmptyDeletes()}, del, "1|-|-", "", true, true, nil},
		{"allowed, but not what does not match", full, qty, []rules.FilterOption{rules.AllowEmptyDeletes()}, del, "1|4|x", "", false, false, nil},
		{"the key decides a key-only delete", key, rules.Eq("id", 1), nil, del, "1|-|-", "", true, true, nil},
		{"and against it", key, rules.And(rules.Eq("id", 2), qty), []rules.FilterOption{rules.AllowEmptyDeletes()}, del, "1|-|-", "", true, false, nil},
		{"unchanged, taken from the old row", full, label, nil, upd, "1|5|x", "1|6|~", false, true, nil},
		{"unchanged, unknown", key, label, nil, upd, "", "1|6|~", false, false, rules.ErrUndecided},
		{"unchanged, unknown, does not matter", key, rules.And(label, qty), nil, upd, "", "1|4|~", false, false, nil},
		{"unchanged is not NULL", key, rules.IsNull("label"), nil, upd, "", "1|4|~", false, false, nil},
		{"unchanged passes", key, label, []rules.FilterOption{rules.PassUnchanged()}, upd, "", "1|6|~", false, true, nil},
		{"unchanged is dropped", key, label, []rules.FilterOption{rules.DropUnchanged()}, upd, "", "1|6|~", false, false, nil},
	} {
		_, f := mustBind(t, item(tText, c.identity), rules.Filter(c.cond, append(c.opts, rules.DropTruncate())...))
		got, err := run(t, f, c.op, c.old, c.new, c.oldKey)
		if (got.op != 0) != c.keep || !errors.Is(err, c.err) || c.keep && got.op != c.op {
			t.Errorf("%s: %+v, %v", c.what, got, err)
		}
	}
}

func TestWhereKeepsTheDestinationEqualToTheFilteredSource(t *testing.T) {
	full, key := decode.IdentityFull, decode.IdentityDefault
	qty := rules.Gte("qty", 5)
	drop := outcome{}
	for _, c := range []struct {
		what     string
		identity decode.Identity
		cond     rules.Condition
		op       decode.Op
		old, new string
		oldKey   bool
		want     outcome
	}{
		{"insert in", key, qty, ins, "", "1|5|x", false, outcome{ins, "-", "1|5|x", false}},
		{"insert out", key, qty, ins, "", "1|4|x", false, drop},
		{"FULL stays", full, qty, upd, "1|5|x", "1|6|~", false, outcome{upd, "1|5|x", "1|6|~", false}},
		{"FULL leaves", full, qty, upd, "1|5|x", "1|4|~", false, outcome{del, "1|5|x", "-", false}},
		{"FULL leaves for NULL", full, qty, upd, "1|5|x", "1|NULL|x", false, outcome{del, "1|5|x", "-", false}},
		{"FULL enters whole", full, qty, upd, "1|4|x", "1|5|~", false, outcome{ins, "-", "1|5|x", false}},
		{"FULL enters from NULL", full, qty, upd, "1|NULL|x", "1|5|x", false, outcome{ins, "-", "1|5|x", false}},
		{"FULL was never in", full, qty, upd, "1|3|x", "1|4|x", false, drop},
		{"FULL delete in", full, qty, del, "1|5|x", "", false, outcome{del, "1|5|x", "-", false}},
		{"FULL delete out", full, qty, del, "1|4|x", "", false, drop},
		{"key: in now", key, qty, upd, "", "1|5|x", false, outcome{ins, "1|-|-", "1|5|x", true}},
		{"key: in now, under a new key", key, qty, upd, "1|-|-", "2|5|x", true, outcome{ins, "1|-|-", "2|5|x", true}},
		{"key: not in now", key, qty, upd, "", "1|4|x", false, outcome{del, "1|-|-", "-", true}},
		{"key: not in now, under a new key", key, qty, upd, "1|-|-", "2|4|x", true, outcome{del, "1|-|-", "-", true}},
		{"key: deletes pass", key, qty, del, "1|-|-", "", true, outcome{del, "1|-|-", "-", true}},
		{"the key decides: stays", key, rules.Lt("id", 5), upd, "", "1|4|x", false, outcome{upd, "-", "1|4|x", false}},
		{"the key decides: enters", key, rules.Lt("id", 5), upd, "7|-|-", "1|4|x", true, outcome{ins, "-", "1|4|x", false}},
		{"the key decides: leaves", key, rules.Lt("id", 5), upd, "1|-|-", "7|4|x", true, outcome{del, "1|-|-", "-", true}},
		{"the key decides: out", key, rules.Lt("id", 5), upd, "", "7|4|x", false, drop},
		{"the key decides: delete out", key, rules.Lt("id", 5), del, "7|-|-", "", true, drop},
	} {
		label := tText
		if c.identity == key {
			label = decode.BuiltinType(2950) // uuid: never out of line
		}
		_, f := mustBind(t, item(label, c.identity), rules.Where(c.cond, rules.PassTruncate()))
		got, err := run(t, f, c.op, c.old, c.new, c.oldKey)
		if err != nil || got != c.want {
			t.Errorf("%s: got %+v, want %+v; %v", c.what, got, c.want, err)
		}
	}
}

func TestWhereNeedsFullWhereAnUpdateMayLeaveValuesOut(t *testing.T) {
	col := func(name string, modifier int32) decode.Column {
		return decode.Column{Name: "label", Type: builtin(name), Modifier: modifier}
	}
	for _, c := range []struct {
		col   decode.Column
		needs bool
	}{
		{col("text", -1), true}, {col("jsonb", -1), true}, {col("bytea", -1), true}, {col("xml", -1), true}, {col("numeric", -1), true},
		{col("varchar", -1), true}, {col("varchar", 4+255), true}, {col("varchar", 4+5), false}, {col("bpchar", 4+2), false},
		{col("numeric", 4+(10<<16)+2), false}, {col("numeric", 4+(100<<16)+2), true},
		{col("uuid", -1), false}, {col("timestamptz", -1), false}, {col("bool", -1), false}, {col("inet", -1), false}, {col("point", -1), false}, {col("path", -1), true},
		{decode.Column{Name: "label", Type: tEnum, Modifier: -1}, false},
		{decode.Column{Name: "label", Type: tDomain, Modifier: -1}, true},
		{decode.Column{Name: "label", Type: &decode.Type{Schema: "public", Name: "n", Kind: decode.DomainType, Elem: tInt}, Modifier: -1}, false},
		{decode.Column{Name: "label", Type: &decode.Type{Schema: "pg_catalog", Name: "_int4", Kind: decode.ArrayType, Elem: tInt}, Modifier: -1}, true},
	} {
		in := item(tText, decode.IdentityDefault)
		in.Columns[2] = c.col
		where := rules.Where(rules.Eq("qty", 1), rules.PassTruncate())
		_, _, err := rules.Bind([]rules.Rule{where}, in)
		if errors.Is(err, rules.ErrNeedsFull) != c.needs || err != nil && !c.needs {
			t.Errorf("%s(%d): %v", c.col.Type.Name, c.col.Modifier, err)
		}
		if !c.needs {
			continue
		}
		for what, rs := range map[string][]rules.Rule{
			"excluded before": {rules.Exclude("label"), where}, "not for updates": {rules.On(where, ins, del)},
		} {
			if _, _, err := rules.Bind(rs, in); err != nil {
				t.Errorf("%s, %s: %v", c.col.Type.Name, what, err)
			}
		}
		in.Identity = decode.IdentityFull
		mustBind(t, in, where)
		in.Identity, in.Columns[0].Key = decode.IdentityNothing, false
		mustBind(t, in, where) // no updates come of it
	}
}

func TestWhatCannotBeComparedIsAnErrorAtBind(t *testing.T) {
	ordered := &decode.Type{Schema: "public", Name: "mood", Kind: decode.EnumType, Labels: []string{"sad", "ok"}}
	for _, c := range []struct {
		typ  *decode.Type
		cond rules.Condition
		want string // "" for none
	}{
		{tInt, rules.Eq("label", 18), ""}, {tInt, rules.Eq("label", "18"), ""}, {tInt, rules.Eq("label", 18.5), ""},
		{tInt, rules.Eq("label", "abc"), "is not a number"}, {tInt, rules.Eq("label", ""), "is not a number"},
		{tInt, rules.Eq("label", true), "boolean"}, {tInt, rules.In("label", 1, "x"), `"x"`},
		{tInt, rules.Contains("label", "1"), "look into text"}, {tInt, rules.Matches("label", "1"), "look into text"},
		{tText, rules.Eq("label", 18), "quote it"}, {tText, rules.Gt("label", false), "quote it"}, {tText, rules.Eq("label", "a\x00"), "zero bytes"},
		{builtin("bool"), rules.Eq("label", true), ""}, {builtin("bool"), rules.Eq("label", "maybe"), "true or false"}, {builtin("bool"), rules.Eq("label", 1), "cannot be compared"},
		{builtin("uuid"), rules.Eq("label", "1234"), "uuid"}, {builtin("date"), rules.Eq("label", "2024-02-30"), "date"}, {builtin("date"), rules.Eq("label", "2024-02-01 10:00"), "time of day"},
		{builtin("timestamptz"), rules.Gt("label", "yesterday"), "timestamptz"}, {builtin("timestamp"), rules.Gt("label", "2024-01-01 00:00:00+05"), "time zone"},
		{builtin("timestamp"), rules.Gt("label", "2024-01-01T00:00:00Z"), ""}, {builtin("float4"), rules.Gt("label", "1e60"), "range"},
		{ordered, rules.Gt("label", "sad"), ""}, {ordered, rules.Eq("label", "Sad"), `"sad", "ok"`},
		{tEnum, rules.Eq("label", "sad"), ""}, {tEnum, rules.Gt("label", "sad"), "order"},
		{builtin("json"), rules.Eq("label", "{}"), "do not compare"}, {builtin("json"), rules.IsNull("label"), ""}, {nil, rules.Eq("label", "x"), "unknown"},
		{tText, rules.Eq("lable", "x"), ""}, // the table is not named exactly
		{tText, rules.And(rules.Eq("qty", 1), rules.Eq("lable", "x")), "no such column"},
	} {
		_, _, err := rules.Bind([]rules.Rule{rules.Filter(c.cond, rules.DropTruncate())}, item(c.typ, decode.IdentityDefault))
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.cond, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "public.item")):
			t.Errorf("%s: %v, want %q", c.cond, err, c.want)
		}
	}
	for _, c := range []rules.Condition{{}, rules.And(), rules.In("a"), rules.Eq("", 1), rules.Eq("a", nil), rules.Eq("a", struct{}{}), rules.Matches("a", "("), rules.Not(rules.Condition{})} {
		if err := rules.Validate(rules.Filter(c, rules.DropTruncate())); !errors.Is(err, rules.ErrInvalidRule) {
			t.Errorf("%s: %v", c, err)
		}
	}
}

func TestHostilePatternsEnd(t *testing.T) {
	long := strings.Repeat("a", 20_000) + "!"
	for _, r := range []rules.Rule{rules.Filter(rules.Matches("label", "^(a+)+$"), rules.DropTruncate()), rules.Regex("label", "^(a|a?)+$", "x")} {
		_, f := mustBind(t, item(tText, decode.IdentityDefault), r)
		if _, err := run(t, f, ins, "", "1|1|"+long, false); err != nil {
			t.Error(err)
		}
	}
	if err := rules.Validate(rules.Regex("label", strings.Repeat("(x{1000}){1000}", 3), "")); !errors.Is(err, rules.ErrInvalidRule) {
		t.Errorf("a pattern too large: %v", err)
	}
}
