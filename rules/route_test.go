package rules_test

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

func TestRouteNamesTheDestination(t *testing.T) {
	drop := rules.DropTruncate()
	for _, c := range []struct {
		from, to     string
		schema, name string
		want         string // "" if the route does not mean the table
	}{
		{"users", "customers", "public", "users", "public.customers"},
		{"users", "customers", "shop", "users", ""},
		{"shop.users", "customers", "shop", "users", "shop.customers"},
		{"shop.users", "crm.customers", "shop", "users", "crm.customers"},
		{"shop.Users", "x", "shop", "users", ""},
		{"shop.*", "archive.*", "shop", "a.b", "archive.a.b"},
		{"*.*", "*.all", "shop", "x", "shop.all"},
		{`"a.b"."c(1)"`, `"x.y"."z""$1"`, "a.b", "c(1)", `x.y.z"$1`},
		{"tenant_(.*)", "all.$1", "public", "tenant_users", "all.users"},
		{"tenant_(.*)", "all.$1", "public", "my_tenant_users", ""},
		{"tenant_(.*)", "all.$1", "shop", "tenant_users", ""},
		{"(tenant_.*).(.*)", "all.$2", "tenant_7", "users", "all.users"},
		{`(tenant_[a-z.]*)\.(.*)`, "all.${1}_$2", "tenant_a", "users", "all.tenant_a_users"},
		{"(?P<s>.*).users", "$s.people", "shop", "users", "shop.people"},
		{"t_(.*)", "all.x$$", "public", "t_1", "all.x$"},
	} {
		in := table(c.schema, c.name, "id")
		out, f, err := rules.Bind([]rules.Rule{rules.Route(c.from, c.to, drop)}, in)
		if err != nil || f != nil {
			t.Errorf("%s → %s: %v", c.from, c.to, err)
			continue
		}
		if got := out.Qualified().String(); c.want == "" && out != in || c.want != "" && got != c.want {
			t.Errorf("%s → %s: %s.%s became %s, want %s", c.from, c.to, c.schema, c.name, got, c.want)
		}
	}
}

func TestRouteComesLastAndOnce(t *testing.T) {
	in := table("public", "users", "id", "name", "ssn")
	out, f := mustBind(t, in,
		rules.Route("users", "crm.people", rules.RenameColumn("name", "id2"), rules.RenameColumn("id", "name"), rules.PassTruncate()),
		rules.Route("*", "other.*"),
		rules.Table("users", rules.Mask("name"), rules.Exclude("ssn")),
	)
	if out.Qualified().String() != "crm.people" || columns(out) != "name,id2" || columns(in) != "id,name,ssn" {
		t.Fatal(out.Qualified(), columns(out))
	}
	c := decode.Change{Op: ins, New: row("1|margaret|s")}
	if keep, err := f(&c); err != nil || !keep || show(c.New) != "1|m******t" || c.Relation != out {
		t.Error(show(c.New), c.Relation, keep, err)
	}
}

func TestRouteRefuses(t *testing.T) {
	in := table("public", "users", "id", "name")
	leaf := table("public", "users_1", "id", "name")
	leaf.Ancestors = []decode.Name{{Schema: "public", Name: "users"}}
	for _, c := range []struct {
		in   *decode.Relation
		rule []rules.Rule
		want error
		text string
	}{
		{in, []rules.Rule{rules.Route("a.b.c", "x")}, rules.ErrInvalidRule, "more than one dot"},
		{in, []rules.Rule{rules.Route("users", "")}, rules.ErrInvalidRule, "empty"},
		{in, []rules.Rule{rules.Route("users", "x*")}, rules.ErrInvalidRule, "stands alone"},
		{in, []rules.Rule{rules.Route("u(.*", "x", rules.DropTruncate())}, rules.ErrInvalidRule, "missing closing )"},
		{in, []rules.Rule{rules.Route("u(.*)", "x.$2", rules.DropTruncate())}, rules.ErrInvalidRule, `no group "2"`},
		{in, []rules.Rule{rules.Route("u(.*)", "x.$1")}, rules.ErrInvalidRule, "PassTruncate or DropTruncate"},
		{in, []rules.Rule{rules.Route("*", "x")}, rules.ErrInvalidRule, "PassTruncate or DropTruncate"},
		{in, []rules.Rule{rules.Route("users", "x"), rules.Route("orders", "x"), rules.Route("y", "x")}, rules.ErrInvalidRule, "meet"},
		{in, []rules.Rule{rules.Route("users", "a.x"), rules.Route("orders", "a.x")}, rules.ErrInvalidRule, "meet"},
		{in, []rules.Rule{rules.Route("users", "x", rules.Only())}, rules.ErrInvalidRule, "needs an operation"},
		{in, []rules.Rule{rules.Route("users", "x", rules.Only(decode.OpMessage))}, rules.ErrInvalidRule, "message"},
		{in, []rules.Rule{rules.Route("users", "x", rules.RenameColumn("id", ""))}, rules.ErrInvalidRule, "1 to 63"},
		{in, []rules.Rule{rules.Route("users", "x", rules.RenameColumn("id", "a"), rules.RenameColumn("id", "b"))}, rules.ErrInvalidRule, "twice"},
		{in, []rules.Rule{rules.Route("users", "x", rules.RenameColumn("id", "name"))}, rules.ErrInvalidRule, "two columns"},
		{in, []rules.Rule{rules.Route("users", "x", rules.RenameColumn("nmae", "n"))}, rules.ErrNoColumn, "nmae"},
		{in, []rules.Rule{rules.Route("u(.*)", strings.Repeat("x", 60)+"$1", rules.DropTruncate())}, rules.ErrInvalidRule, "63 bytes"},
		{in, []rules.Rule{rules.Table("users", rules.Route("users", "x"))}, rules.ErrInvalidRule, "routes come last"},
		{in, []rules.Rule{rules.On(rules.Route("users", "x"), ins)}, rules.ErrInvalidRule, "routes come last"},
		{leaf, []rules.Rule{rules.Route("users", "x")}, rules.ErrAmbiguous, "all partitions of public.users"},
		{leaf, []rules.Rule{rules.Route("users", "x", rules.DropTruncate())}, nil, ""},
	} {
		err := rules.Validate(c.rule...)
		if err == nil {
			_, _, err = rules.Bind(c.rule, c.in)
		}
		if !errors.Is(err, c.want) || err != nil && (c.want == nil || !strings.Contains(err.Error(), c.text)) {
			t.Errorf("%v: %v, want %q", c.rule, err, c.text)
		}
	}
}

func TestTablesThatMeetHaveToSayWhatATruncateMeans(t *testing.T) {
	a, b := table("public", "a", "id"), table("public", "b", "id")
	drop, pass := rules.DropTruncate(), rules.PassTruncate()
	for name, c := range map[string]struct {
		rules []rules.Rule
		ok    bool
	}{
		"one says nothing":  {[]rules.Rule{rules.Route("a", "b")}, false},
		"only one says":     {[]rules.Rule{rules.Route("a", "b", drop)}, false},
		"both say":          {[]rules.Rule{rules.Route("a", "b", drop), rules.Route("b", "public.b", pass)}, true},
		"both by operation": {[]rules.Rule{rules.Route("a", "b", rules.Only(ins)), rules.Route("b", "b", rules.Only(ins, decode.OpTruncate))}, true},
	} {
		binder := rules.NewBinder(c.rules)
		_, err1 := binder.Bind(a)
		_, err2 := binder.Bind(b)
		if err := errors.Join(err1, err2); (err == nil) != c.ok || err != nil && !errors.Is(err, rules.ErrAmbiguous) {
			t.Errorf("%s: %v", name, err)
		}
		next := *a // another version of the table is no other table
		next.Columns = append(next.Columns, decode.Column{Name: "more", Type: tText})
		if _, err := binder.Bind(&next); (err == nil) != (err1 == nil) && c.ok {
			t.Errorf("%s: the next version: %v", name, err)
		}
	}
}

func TestTruncateIsWhatTheRulesMakeOfIt(t *testing.T) {
	a, b, c := table("public", "a", "id"), table("public", "b", "id"), table("public", "c", "id")
	b.Ancestors, c.Ancestors = []decode.Name{{Schema: "public", Name: "p"}}, []decode.Name{{Schema: "public", Name: "p"}}
	all := &decode.Truncate{Relations: []*decode.Relation{a, b, c}, Cascade: true, RestartIdentity: true}
	filter := rules.Filter(rules.Eq("id", "x"))
	for name, k := range map[string]struct {
		rules   []rules.Rule
		want    string // "" if it is left out, "!" if it is refused
		cascade bool
	}{
		"no rules":             {nil, "public.a public.b public.c", true},
		"routed":               {[]rules.Rule{rules.Route("a", "x.y")}, "x.y public.b public.c", true},
		"partitions, once":     {[]rules.Rule{rules.Route("p", "q", rules.PassTruncate())}, "public.a public.q", true},
		"left out":             {[]rules.Rule{rules.Route("p", "q", rules.Only(ins))}, "public.a", false},
		"all left out":         {[]rules.Rule{rules.Route("p", "q", rules.DropTruncate()), rules.Route("a", "a", rules.DropTruncate())}, "", false},
		"filtered":             {[]rules.Rule{filter}, "!", false},
		"the route says":       {[]rules.Rule{filter, rules.Route("*", "*.*", rules.PassTruncate())}, "public.a public.b public.c", true},
		"no such columns":      {[]rules.Rule{rules.Filter(rules.Eq("none", "x"))}, "public.a public.b public.c", true},
		"a limited filter":     {[]rules.Rule{rules.On(filter, ins, upd, del)}, "public.a public.b public.c", true},
		"the filter drops":     {[]rules.Rule{rules.Table("a", rules.Filter(rules.Eq("id", "x"), rules.DropTruncate()))}, "public.b public.c", false},
		"the stricter filter":  {[]rules.Rule{filter, rules.Filter(rules.Eq("id", "x"), rules.DropTruncate())}, "!", false},
		"a Where that passes":  {[]rules.Rule{rules.Exclude("none"), rules.On(rules.Where(rules.Eq("id", "x"), rules.PassTruncate()), ins, decode.OpTruncate)}, "public.a public.b public.c", true},
		"masks do not disturb": {[]rules.Rule{rules.Mask("none")}, "public.a public.b public.c", true},
	} {
		out, keep, err := rules.NewBinder(k.rules).Truncate(all)
		if k.want == "!" {
			if _, bindErr := rules.NewBinder(k.rules).Bind(a); !errors.Is(err, rules.ErrTruncate) || !errors.Is(bindErr, rules.ErrTruncate) {
				t.Errorf("%s: %v; at the start: %v", name, err, bindErr)
			}
			continue
		}
		if err != nil || keep != (k.want != "") {
			t.Errorf("%s: %v, %v", name, keep, err)
			continue
		}
		var names []string
		for _, r := range out.Relations {
			names = append(names, r.Qualified().String())
		}
		if strings.Join(names, " ") != k.want || out.Cascade != k.cascade || !out.RestartIdentity || len(all.Relations) != 3 {
			t.Errorf("%s: %v, cascade %v", name, names, out.Cascade)
		}
	}
}

func TestWhatATruncateMeansIsAskedForAtTheStart(t *testing.T) {
	in := table("public", "users", "id", "name")
	leaf := table("public", "users_1", "id", "name")
	leaf.Ancestors = []decode.Name{{Schema: "public", Name: "users"}}
	in.Identity, leaf.Identity = decode.IdentityFull, decode.IdentityFull
	cond, drop, pass := rules.Eq("name", "x"), rules.DropTruncate(), rules.PassTruncate()
	filter := rules.Filter(cond)
	all := []decode.Op{ins, upd, del, decode.OpTruncate}
	for name, c := range map[string]struct {
		rules  []rules.Rule
		valid  bool
		refuse string // the rule that the error of Bind names, "" if there is none
	}{
		"filter":                          {[]rules.Rule{filter}, false, `Filter("name" = "x")`},
		"where":                           {[]rules.Rule{rules.Where(cond)}, false, `Where("name" = "x")`},
		"in a table":                      {[]rules.Rule{rules.Mask("name"), rules.Table("public.users", filter)}, false, `Filter("name" = "x")`},
		"for all operations":              {[]rules.Rule{rules.On(rules.Table("users", filter), all...)}, false, `Filter("name" = "x")`},
		"one of two":                      {[]rules.Rule{rules.Filter(cond, pass), filter}, false, `Filter("name" = "x")`},
		"with a route that says nothing":  {[]rules.Rule{filter, rules.Route("users_1", "x")}, false, `Filter("name" = "x")`},
		"with another table's route":      {[]rules.Rule{filter, rules.Route("orders", "x", drop)}, true, `Filter("name" = "x")`},
		"passed":                          {[]rules.Rule{rules.Filter(cond, pass)}, true, ""},
		"dropped":                         {[]rules.Rule{rules.Where(cond, drop)}, true, ""},
		"not for TRUNCATE":                {[]rules.Rule{rules.On(filter, ins, upd, del)}, true, ""},
		"not for TRUNCATE, further out":   {[]rules.Rule{rules.On(rules.On(filter, all...), ins)}, true, ""},
		"never":                           {[]rules.Rule{rules.On(rules.On(filter, decode.OpTruncate), ins)}, true, ""},
		"passed by the route":             {[]rules.Rule{filter, rules.Route("users", "users", pass)}, true, ""},
		"left out by the route":           {[]rules.Rule{rules.Route("users", "x", rules.Only(ins, upd)), filter}, true, ""},
		"asked for by the route":          {[]rules.Rule{rules.Route("users", "x", rules.Only(all...)), filter}, true, ""},
		"another table, before the route": {[]rules.Rule{rules.Table("orders", filter), rules.Route("users", "x", drop)}, true, ""},
	} {
		err := rules.Validate(c.rules...)
		if (err == nil) != c.valid || err != nil && (!errors.Is(err, rules.ErrTruncate) || !errors.Is(err, rules.ErrInvalidRule)) {
			t.Errorf("%s: Validate: %v", name, err)
		}
		for _, rel := range []*decode.Relation{in, leaf} {
			_, _, err = rules.Bind(c.rules, rel)
			if c.refuse == "" {
				if err != nil {
					t.Errorf("%s, %s: %v", name, rel.Name, err)
				}
				continue
			}
			var bind *rules.BindError
			if !errors.Is(err, rules.ErrTruncate) || !errors.As(err, &bind) || bind.Table != rel.Qualified() || bind.Rule != c.refuse {
				t.Errorf("%s, %s: %v", name, rel.Name, err)
				continue
			}
			for _, word := range []string{rel.Qualified().String(), c.refuse, "PassTruncate()", "DropTruncate()", "Route"} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s: the text lacks %q: %v", name, word, err)
				}
			}
		}
	}
	for name, list := range map[string][]rules.Rule{
		"a pattern": {rules.Route("u(.*)", "x.$1")}, "two into one": {rules.Route("a", "x"), rules.Route("b", "x")},
	} {
		if err := rules.Validate(list...); !errors.Is(err, rules.ErrTruncate) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := rules.Bind([]rules.Rule{rules.Route("users", "x")}, leaf); !errors.Is(err, rules.ErrTruncate) {
		t.Errorf("a partitioned table: %v", err)
	}
	if err := rules.Validate(rules.Table("shop.orders", filter)); err == nil || !strings.Contains(err.Error(), "table shop.orders") {
		t.Errorf("the table's name: %v", err)
	}
}

func TestCopiedRowsAreParsedOnlyWhereARuleTouchesInserts(t *testing.T) {
	for name, c := range map[string]struct {
		rule   rules.Rule
		parsed bool
	}{
		"mask":                {rules.Mask("name"), true},
		"mask of updates":     {rules.On(rules.Mask("name"), upd), false},
		"route":               {rules.Route("users", "x", rules.RenameColumn("name", "n")), false},
		"route of inserts":    {rules.Route("users", "x", rules.Only(ins)), false},
		"route of deletes":    {rules.Route("users", "x", rules.Only(del)), true},
		"exclude":             {rules.Exclude("name"), true},
		"filter of deletes":   {rules.On(rules.Filter(rules.Eq("name", "x")), del), false},
		"exclude, in updates": {rules.On(rules.Exclude("name"), upd), false},
	} {
		b, err := rules.NewBinder([]rules.Rule{c.rule}).Bind(table("public", "users", "id", "name"))
		if err != nil || (b.Copied != nil) != c.parsed {
			t.Errorf("%s: %+v, %v", name, b, err)
		}
	}
}

func TestUnmetTablesAreKnown(t *testing.T) {
	b := rules.NewBinder(append(load(t, "tables:\n  usres:\n    - {type: exclude_column, column: ssn}\n  users:\n    - {type: exclude_column, column: ssn}\n"),
		rules.On(rules.Table("public.prders", rules.Mask("x")), ins), rules.Table("log_*", rules.Mask("x")), rules.Mask("y")))
	if _, err := b.Bind(table("public", "users", "id", "ssn")); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(b.Unmet(), " "); got != "usres public.prders" {
		t.Error(got)
	}
}

func TestColumnsThatNoTableHasAreKnown(t *testing.T) {
	b := rules.NewBinder([]rules.Rule{rules.Mask("emial"), rules.Mask("name"), rules.Exclude("name", "snn"), rules.Table("public.*", rules.Hash("phnoe", []byte("0123456789abcdef"))),
		rules.On(rules.SetNull("x"), upd), rules.Table("other_*", rules.Mask("y")), rules.Table("orders", rules.Mask("note"))})
	for _, in := range []*decode.Relation{table("public", "users", "id"), table("public", "orders", "id", "name", "note")} {
		if _, err := b.Bind(in); err != nil {
			t.Fatal(err)
		}
	}
	got := strings.Join(b.UnmetColumns(), "\n")
	for _, name := range []string{"emial", "snn", "phnoe", "x"} {
		if !strings.Contains(got, "column "+strconv.Quote(name)) {
			t.Errorf("%q is missing: %s", name, got)
		}
	}
	if strings.Count(got, "\n") != 3 {
		t.Errorf("too many:\n%s", got)
	}
}
