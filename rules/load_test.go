package rules_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

func load(t *testing.T, yaml string) []rules.Rule {
	t.Helper()
	rs, err := rules.Load(strings.NewReader(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

// person has what pg_flo's example files read.
func person(identity decode.Identity) *decode.Relation {
	r := &decode.Relation{OID: 3, Schema: "shop", Name: "users", Identity: identity, Columns: []decode.Column{{Name: "id", Type: tInt, Modifier: -1, Key: true}}}
	for _, c := range [][2]string{{"email", "text"}, {"phone", "varchar"}, {"age", "int4"}, {"ssn", "text"}, {"balance", "numeric"}, {"score", "int8"}, {"rating", "float8"}, {"weight", "numeric"}} {
		r.Columns = append(r.Columns, decode.Column{Name: c[0], Type: builtin(c[1]), Modifier: -1, Key: identity == decode.IdentityFull})
	}
	return r
}

// documentedRules has the fields of pg_flo's documentation and the places in which it writes them.
const documentedRules = `
tables:
  users:
    - type: transform
      column: email
      parameters:
        type: mask
        mask_char: "*"
        allow_empty_deletes: true
      operations: [INSERT, UPDATE, DELETE]
    - type: transform
      column: phone
      parameters:
        type: regex
        pattern: "^(\\d{3})(\\d{3})(\\d{4})$"
        replace: "($1) $2-$3"
      operations: [INSERT, UPDATE]
    - type: filter
      column: age
      parameters:
        operator: "gte"
        value: 18
        allow_empty_deletes: true
      operations: [INSERT, UPDATE, DELETE]
    - type: filter
      column: balance
      parameters: {operator: gte, value: 75.00}
      operations: [INSERT, UPDATE]
    - type: filter
      column: score
      parameters: {operator: lt, value: 2500000000}
      operations: [INSERT, UPDATE]
    - type: filter
      column: email
      parameters: {operator: contains, value: "*"}
      allow_empty_deletes: true
    - {type: exclude_column, columns: [ssn]}
    - {type: exclude_column, column: weight}
`

func TestDocumentedRulesDoWhatTheyAreDocumentedToDo(t *testing.T) {
	out, f := mustBind(t, person(decode.IdentityDefault), load(t, documentedRules)...)
	if columns(out) != "id,email,phone,age,balance,score,rating" {
		t.Fatal(columns(out))
	}
	for _, c := range []struct {
		op       decode.Op
		old, new string
		want     string // "" if dropped
	}{
		{ins, "", "1|margaret@example.com|5551234567|18|s|75|2499999999|1|1", "1|m******************m|(555) 123-4567|18|75|2499999999|1"},
		{ins, "", "1|margaret|555|18|s|75|2499999999|1|1", "1|m******t|555|18|75|2499999999|1"},
		{ins, "", "1|margaret|555|17|s|75|1|1|1", ""},
		{ins, "", "1|margaret|555|18|s|74.9999999999999999999|1|1|1", ""},
		{upd, "", "1|margaret|555|18|s|75|2500000000|1|1", ""},
		{upd, "", "1|NULL|555|18|s|75|1|1|1", ""},
		{del, "1|-|-|-|-|-|-|-|-", "", "1|-|-|-|-|-|-"},
	} {
		got, err := run(t, f, c.op, c.old, c.new, c.old != "")
		if c.op == del {
			got.new = got.old
		}
		if err != nil || got.new != c.want {
			t.Errorf("%s: %+v, want %q: %v", c.new, got, c.want, err)
		}
	}
}

func TestFilterFilesDropKeyOnlyDeletesUnlessAllowed(t *testing.T) {
	for _, allow := range []string{"", "\n      allow_empty_deletes: true"} {
		rs := load(t, "tables:\n  shop.users:\n    - type: filter\n      column: age\n      parameters: {operator: eq, value: 3}"+allow)
		_, f := mustBind(t, person(decode.IdentityDefault), rs...)
		got, err := run(t, f, del, "1|-|-|-|-|-|-|-|-", "", true)
		if err != nil || (got.op == del) != (allow != "") {
			t.Errorf("%q: %+v, %v", allow, got, err)
		}
	}
}

func TestARouteOfAFileWithoutOperationsTakesAllButTruncate(t *testing.T) {
	routes, err := rules.LoadRoutes(strings.NewReader("users: {source_table: users, destination_table: customers}"))
	if err != nil {
		t.Fatal(err)
	}
	in := person(decode.IdentityFull)
	b, err := rules.NewBinder(routes).Bind(in)
	if err != nil || b.Out.Name != "customers" {
		t.Fatalf("%+v, %v", b, err)
	}
	for _, op := range []decode.Op{decode.OpInsert, decode.OpUpdate, decode.OpDelete} {
		if keep := b.Func == nil; !keep {
			if keep, err = b.Func(&decode.Change{Op: op, Relation: in}); !keep || err != nil {
				t.Errorf("%s: %t, %v", op, keep, err)
			}
		}
	}
	if _, keep, err := rules.NewBinder(routes).Truncate(&decode.Truncate{Relations: []*decode.Relation{in}}); keep || err != nil {
		t.Errorf("TRUNCATE: %t, %v", keep, err)
	}
}

func TestATruncateUnderAFilterOfAFileIsLeftOut(t *testing.T) {
	in := person(decode.IdentityFull)
	pass, err := rules.LoadRoutes(strings.NewReader("users: {source_table: users, operations: [INSERT, TRUNCATE]}"))
	if err != nil {
		t.Fatal(err)
	}
	const filter = "{type: filter, column: age, parameters: {operator: gte, value: 18}"
	const where = "{type: where, column: age, parameters: {operator: gte, value: 18}"
	for _, c := range []struct {
		rule string
		more []rules.Rule
		keep bool
	}{
		{filter + "}", nil, false},
		{where + "}", nil, false},
		{filter + ", operations: [INSERT, UPDATE, DELETE]}", nil, false},
		{filter + ", operations: [INSERT, TRUNCATE]}", nil, false},
		{filter + ", truncate: drop, operations: [INSERT]}", nil, false},
		{filter + ", truncate: pass}", nil, true},
		{where + ", truncate: pass, operations: [INSERT]}", nil, true},
		{filter + "}", pass, true},
		{"{type: exclude_column, column: age}", nil, true},
	} {
		list := append(load(t, "tables:\n  users:\n    - "+c.rule+"\n"), c.more...)
		if err := rules.Validate(list...); err != nil {
			t.Errorf("%s: %v", c.rule, err)
		}
		_, keep, err := rules.NewBinder(list).Truncate(&decode.Truncate{Relations: []*decode.Relation{in}})
		if err != nil || keep != c.keep {
			t.Errorf("%s: %v, %v", c.rule, keep, err)
		}
	}
	// The operations still say for which rows the filter is.
	_, f := mustBind(t, in, load(t, "tables:\n  users:\n    - "+filter+", operations: [INSERT]}\n")...)
	const child = "1|a|b|3|c|1|2|3|4"
	for op, kept := range map[decode.Op]bool{ins: false, upd: true, del: true} {
		old, new := child, child
		if op == ins {
			old = ""
		}
		if op == del {
			new = ""
		}
		if got, err := run(t, f, op, old, new, false); err != nil || (got.op == op) != kept {
			t.Errorf("%s: %+v, %v", op, got, err)
		}
	}
}

func TestFurtherFieldsOfRulesFiles(t *testing.T) {
	rs := load(t, `
tables:
  "shop.us*":
    - {type: where, parameters: {any: [{column: age, operator: in, values: [1, 2]}, {not: {column: email, operator: is_null}}, {all: [{column: ssn, operator: regex, value: "^a"}]}]}, truncate: drop}
    - {type: transform, columns: [email, ssn], parameters: {type: mask, keep_first: 0, keep_last: 2, mask_char: "•"}}
    - {type: transform, column: phone, parameters: {type: set_null}}
    - {type: transform, column: balance, parameters: {type: const, value: 1e2}}
    - {type: transform, column: score, parameters: {type: cast, to: text}}
    - &hash {type: transform, column: hashed, parameters: {type: hash, key: 0123456789abcdef}}
    - *hash
`)
	in := person(decode.IdentityFull)
	out, f := mustBind(t, in, rs...)
	got, err := run(t, f, ins, "", "1|abcd|p|9|NULL|1|2|3|4", false)
	if err != nil || got.new != "1|••cd|NULL|9|NULL|100|2|3|4" || out.Columns[6].Type.Name != "text" || in.Columns[6].Type.Name != "int8" {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := run(t, f, ins, "", "1|NULL|p|9|NULL|1|2|3|4", false); err != nil || got.op != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestLoadSaysWhatIsWrongAndWhere(t *testing.T) {
	rule := func(s string) string { return "tables:\n  users:\n    - " + s }
	for _, c := range []struct{ yaml, want string }{
		{"", "document"},
		{"rules:\n  - table: users", `:1: ` + `invalid rule: no field "tables"`},
		{"rules:\n  - table: users", `unknown field "rules"; allowed: tables`},
		{"tables: [a]", "not a mapping"},
		{"tables:\n  users: {type: filter}", "not a list"},
		{"tables:\n  a.b.c: []", "more than one dot"},
		{"tables:\n  users: []\n  users: []", `"users" stands twice`},
		{"tables: {}\n---\ntables: {}", "second YAML document"},
		{"tables:\n\t- x", "not YAML"},
		{"a: &a [*a]", "deeper than"},
		{rule("{column: a}"), ":3: table users, column a: invalid rule: rule: no type; it is one of transform, filter, where, exclude_column"},
		{rule("{type: mask, column: a}"), `"mask" is none of transform, filter, where, exclude_column`},
		{rule("{type: exclude_column}"), "no column"},
		{rule("{type: exclude_column, column: a, columns: [b]}"), "both column and columns"},
		{rule("{type: exclude_column, column: a, parameter: {}}"), `unknown field "parameter"; allowed: type, column`},
		{rule("{type: exclude_column, column: a, parameters: {}}"), `takes no field "parameters"`},
		{rule("{type: transform, column: a}"), "mask, regex, hash, set_null, const, cast"},
		{rule("{type: transform, column: a, parameters: {type: regex_replace}}"), `"regex_replace" is none of mask, regex`},
		{rule("{type: transform, column: a, parameters: {type: regex, pattern: x, replacement: y}}"), `unknown field "replacement"; allowed: type, allow_empty_deletes, pattern, replace`},
		{rule("{type: transform, column: a, parameters: {type: regex, pattern: x}}"), "regex: no replace"},
		{rule("{type: transform, column: a, parameters: {type: regex, pattern: '(', replace: y}}"), "missing closing )"},
		{rule("{type: transform, column: a, parameters: {type: regex, pattern: '(x)', replace: $2}}"), `no group "2"`},
		{rule("{type: transform, column: a, parameters: {type: mask, mask_char: ab}}"), `"ab" is not one character`},
		{rule("{type: transform, column: a, parameters: {type: hash, key: short}}"), "16 or more"},
		{rule("{type: transform, column: a, parameters: {type: cast, to: int5}}"), "int4, int8"},
		{rule("{type: filter, column: a}"), "no parameters"},
		{rule("{type: filter, column: a, parameters: {value: 1}}"), "no operator; it is one of [eq ne gt gte lt lte contains in regex is_null]"},
		{rule("{type: filter, column: a, parameters: {operator: '>', value: 1}}"), `">" is none of eq, ne, gt`},
		{rule("{type: filter, column: a, parameters: {operator: eq}}"), "no value"},
		{rule("{type: filter, column: a, parameters: {operator: eq, value: null}}"), "is_null"},
		{rule("{type: filter, column: a, parameters: {operator: eq, value: [1]}}"), "not a value"},
		{rule("{type: filter, column: a, parameters: {operator: eq, value: 1}, operations: [MERGE]}"), `"MERGE" is none of INSERT, UPDATE, DELETE, TRUNCATE`},
		{rule("{type: filter, column: a, parameters: {operator: eq, value: 1}, operations: []}"), "operations is empty"},
		{rule("{type: filter, column: a, parameters: {operator: eq, value: 1}, allow_empty_deletes: 1}"), "not true or false"},
		{rule("{type: filter, parameters: {all: [], any: []}}"), "one of operator, all, any and not"},
		{rule("{type: filter, parameters: {all: []}}"), "need a condition"},
	} {
		_, err := rules.Load(strings.NewReader(c.yaml))
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, rules.ErrInvalidRule) {
			t.Errorf("%s\n%v\nlacks %q", c.yaml, err, c.want)
		}
	}
}

func TestErrorsNameFileLineTableAndColumn(t *testing.T) {
	name := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(name, []byte("tables:\n  users:\n    - type: transform\n      colum: email\n    - type: filter\n      column: age\n      parameters:\n        operator: like\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	_, err = rules.Load(file)
	for _, want := range []string{name + `:4: table users: `, `unknown field "colum"`, name + `:8: table users, column age: `} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
	var le *rules.LoadError
	if !errors.As(err, &le) || le.File != name || le.Line != 4 || le.Table != "users" {
		t.Errorf("%+v", le)
	}
	bad := load(t, "tables:\n  users:\n    - {type: exclude_column, column: age}\n    - {type: filter, column: score, parameters: {operator: gt, value: many}}\n")
	if _, _, err = rules.Bind(bad, person(decode.IdentityDefault)); err == nil || !strings.Contains(err.Error(), "rules file:4: ") || !strings.Contains(err.Error(), `"score", of type int8`) {
		t.Errorf("at bind: %v", err)
	}
	bad = load(t, "tables:\n  users:\n    - {type: transform, column: emial, parameters: {type: mask}}\n")
	if _, _, err = rules.Bind(bad, person(decode.IdentityDefault)); !errors.Is(err, rules.ErrNoColumn) {
		t.Errorf("a misspelt column: %v", err)
	}
	if _, f := mustBind(t, users(), load(t, "tables:\n  orders:\n    - {type: exclude_column, column: x}\n")...); f != nil {
		t.Error("a rule for another table")
	}
}

func TestAFileThatStandsForAHugeOneIsRefused(t *testing.T) {
	var b strings.Builder
	b.WriteString("a0: &a0 [x,x,x,x,x,x,x,x,x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 8), i-1)
	}
	for _, s := range []string{b.String(), strings.Repeat("[", 100_000), strings.Repeat("x", 5<<20)} {
		if _, err := rules.Load(strings.NewReader(s)); !errors.Is(err, rules.ErrInvalidRule) {
			t.Errorf("%.20s: %.200v", s, err)
		}
	}
}

const documentedRoutes = `
users:
  source_table: users
  destination_table: customers
  column_mappings:
    - source: id
      destination: customer_id
    - source: username
      destination: customer_name
  operations:
    - INSERT
    - UPDATE
orders:
  source_table: orders
  destination_table: transactions
  column_mappings:
    - source: id
      destination: transaction_id
    - source: total_amount
      destination: amount
  operations: [INSERT, UPDATE, DELETE]
`

func table(schema, name string, cols ...string) *decode.Relation {
	r := &decode.Relation{Schema: schema, Name: name, Identity: decode.IdentityDefault}
	for i, c := range cols {
		r.Columns = append(r.Columns, decode.Column{Name: c, Type: tText, Modifier: -1, Key: i == 0})
	}
	return r
}

func TestDocumentedRoutesDoWhatTheyAreDocumentedToDo(t *testing.T) {
	routes, err := rules.LoadRoutes(strings.NewReader(documentedRoutes))
	if err != nil {
		t.Fatal(err)
	}
	b := rules.NewBinder(routes)
	users, err := b.Bind(table("app", "users", "id", "username", "other"))
	if err != nil || users.Out.Qualified().String() != "app.customers" || columns(users.Out) != "customer_id,customer_name,other" || !users.Out.Columns[0].Key {
		t.Fatalf("%+v, %v", users, err)
	}
	if users.Copied != nil {
		t.Error("copied rows need not be parsed")
	}
	for op, want := range map[decode.Op]bool{ins: true, upd: true, del: false} {
		c := decode.Change{Op: op, Old: row("1|-|-"), New: row("1|a|b")}
		if keep, err := users.Func(&c); err != nil || keep != want {
			t.Errorf("%s: %v, %v", op, keep, err)
		}
	}
	if orders, err := b.Bind(table("public", "orders", "id", "total_amount")); err != nil || orders.Func != nil || columns(orders.Out) != "transaction_id,amount" {
		t.Errorf("%+v, %v", orders, err)
	}
	_, err = b.Bind(table("public", "users", "id", "username"))
	if !errors.Is(err, rules.ErrAmbiguous) || !strings.Contains(err.Error(), "rules file:2: ") {
		t.Errorf("a second schema: %v", err)
	}
}

func TestLoadRoutesSaysWhatIsWrong(t *testing.T) {
	for _, c := range []struct{ yaml, want string }{
		{"users: []", "not a mapping"},
		{"users: {destination_table: x, operations: [INSERT]}", "table users: invalid rule: route: no source_table"},
		{"users: {source_table: users, operations: [COPY]}", `"COPY" is none of`},
		{"users: {source_tables: users, operations: [INSERT]}", `unknown field "source_tables"; allowed: source_table, destination_table, column_mappings, operations`},
		{"users: {source_table: users, operations: [INSERT], column_mappings: [{source: a}]}", "a source and a destination"},
		{"users: {source_table: users, operations: [INSERT], column_mappings: {a: b}}", "not a list"},
		{"users: {source_table: users, operations: [INSERT], destination_table: a.b.c}", "more than one dot"},
		{"users: {source_table: t_(.*), operations: [INSERT], destination_table: a.$2}", `no group "2"`},
		{"a: {source_table: users, operations: [INSERT]}\nb: {source_table: users, operations: [INSERT]}", "rules file:2: table b: rules: invalid rule: Route(\"users\", \"*\"): two routes"},
		{"a: {source_table: users, operations: [INSERT], column_mappings: [{source: id, destination: x}, {source: id, destination: y}]}", "rules file:1: table a: rules: invalid rule"},
		{"a: {source_table: 'x.t_(', operations: [INSERT]}", "missing closing ): `t_(`"},
		{"a: {source_table: 't_(a)[', operations: [INSERT]}", "missing closing ]: `[`"},
	} {
		_, err := rules.LoadRoutes(strings.NewReader(c.yaml))
		if err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, rules.ErrInvalidRule) {
			t.Errorf("%s\n%v\nlacks %q", c.yaml, err, c.want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(documentedRules)
	f.Add(documentedRoutes)
	f.Add("tables: {users: [{type: filter, parameters: {not: {column: a, operator: in, value: [1]}}}]}")
	f.Fuzz(func(t *testing.T, s string) {
		if rs, err := rules.Load(strings.NewReader(s)); err == nil {
			_, _, _ = rules.Bind(rs, person(decode.IdentityDefault))
		}
		if rs, err := rules.LoadRoutes(strings.NewReader(s)); err == nil {
			_, _, _ = rules.Bind(rs, person(decode.IdentityDefault))
		}
	})
}

func TestTheFilesInTheDocumentationLoad(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "rules.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(page), "```yaml\n")[1:]
	if len(blocks) != 2 {
		t.Fatalf("%d files, want one of rules and one of routes", len(blocks))
	}
	for i, read := range []func(s string) ([]rules.Rule, error){
		func(s string) ([]rules.Rule, error) { return rules.Load(strings.NewReader(s)) },
		func(s string) ([]rules.Rule, error) { return rules.LoadRoutes(strings.NewReader(s)) },
	} {
		text, _, _ := strings.Cut(blocks[i], "```")
		if list, err := read(text); err != nil || len(list) == 0 {
			t.Errorf("%d rules: %v", len(list), err)
		}
	}
}
