package rules_test

import (
	"fmt"
	"os"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// accounts is a table as the examples use it: id bigint (the key), owner text, balance numeric, opened
// timestamptz.
func accounts() *decode.Relation {
	const text, int8, numeric, timestamptz = 25, 20, 1700, 1184
	return &decode.Relation{Schema: "public", Name: "accounts", Identity: decode.IdentityFull, Columns: []decode.Column{
		{Name: "id", Type: decode.BuiltinType(int8), Modifier: -1, Key: true},
		{Name: "owner", Type: decode.BuiltinType(text), Modifier: -1, Key: true},
		{Name: "balance", Type: decode.BuiltinType(numeric), Modifier: -1, Key: true},
		{Name: "opened", Type: decode.BuiltinType(timestamptz), Modifier: -1, Key: true},
	}}
}

// try shows what rules make of changes of accounts.
func try(list []rules.Rule, changes ...*decode.Change) {
	out, f, err := rules.Bind(list, accounts())
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range changes {
		keep := true
		if f != nil {
			if keep, err = f(c); err != nil {
				fmt.Println(err)
				return
			}
		}
		switch {
		case !keep:
			fmt.Println("dropped")
		case c.New != nil:
			fmt.Println(c.Op, out.Qualified(), c.New)
		default:
			fmt.Println(c.Op, out.Qualified(), c.Old)
		}
	}
}

func account(fields ...string) decode.Row {
	var row decode.Row
	for i, c := range accounts().Columns {
		row = append(row, decode.TextValue(c.Type, []byte(fields[i])))
	}
	return row
}

func insert(fields ...string) *decode.Change {
	return &decode.Change{Op: decode.OpInsert, New: account(fields...)}
}

func update(from, to decode.Row) *decode.Change {
	return &decode.Change{Op: decode.OpUpdate, Old: from, New: to}
}

func ExampleRegex() {
	try([]rules.Rule{rules.Regex("owner", `^(\w)\w* (\w+)$`, "$1. $2")}, insert("1", "Grace Hopper", "5", "1986-08-14 00:00:00+00"))
	// Output: insert public.accounts [1 G. Hopper 5 1986-08-14 00:00:00+00]
}

func ExampleHash() {
	key := []byte("sixteen bytes or more, kept secret")
	try([]rules.Rule{rules.Hash("owner", key)}, insert("1", "Grace", "5", "1986-08-14 00:00:00+00"))
	// Output: insert public.accounts [1 486483f5cebae939f6398eb003f614053ea75104ec46c4683fc2c3b836df034d 5 1986-08-14 00:00:00+00]
}

func ExampleSetNull() {
	c := insert("1", "Grace", "5", "1986-08-14 00:00:00+00")
	try([]rules.Rule{rules.SetNull("owner")}, c)
	fmt.Println(c.New[1].IsNull())
	// Output:
	// insert public.accounts [1  5 1986-08-14 00:00:00+00]
	// true
}

func ExampleConst() {
	try([]rules.Rule{rules.Const("balance", 0)}, insert("1", "Grace", "5", "1986-08-14 00:00:00+00"))
	try([]rules.Rule{rules.Const("balance", "none")})
	// Output:
	// insert public.accounts [1 Grace 0 1986-08-14 00:00:00+00]
	// rules: Const("balance") cannot be used for table public.accounts: "balance", of type numeric: column type does not fit the rule: "none" is not a number, for example 18 or 75.00
}

// Only the day of a timestamp.
func ExampleMap() {
	day := rules.Map("opened", func(v decode.Value) (decode.Value, error) {
		date, _, _ := strings.Cut(v.String(), " ")
		return decode.TextValue(v.Type(), []byte(date+" 00:00:00+00")), nil
	})
	try([]rules.Rule{day}, insert("1", "Grace", "5", "1986-08-14 09:30:00+00"))
	// Output: insert public.accounts [1 Grace 5 1986-08-14 00:00:00+00]
}

// A sink that writes JSON gives a bigint as a number, which JavaScript rounds; text it gives as a string.
func ExampleCast() {
	out, _, err := rules.Bind([]rules.Rule{rules.Cast("id", "text")}, accounts())
	fmt.Println(out.Columns[0].Type.Name, err)
	// Output: text <nil>
}

// Each change by itself.
func ExampleFilter() {
	rich := rules.Filter(rules.And(rules.Gte("balance", "1000.00"), rules.Lt("opened", "2000-01-01T00:00:00+01:00")), rules.DropTruncate())
	try([]rules.Rule{rich},
		insert("1", "Grace", "1000", "1999-12-31 22:59:59+00"),
		insert("2", "Ada", "999.99999999999999999999", "1843-01-01 00:00:00+00"),
		insert("3", "Alan", "1000", "1999-12-31 23:00:00+00"),
	)
	// Output:
	// insert public.accounts [1 Grace 1000 1999-12-31 22:59:59+00]
	// dropped
	// dropped
}

// What a TRUNCATE means can't be guessed, so it has to be said.
func ExampleDropTruncate() {
	condition := rules.Gte("balance", 1000)
	try([]rules.Rule{rules.Filter(condition)})
	try([]rules.Rule{rules.Filter(condition, rules.DropTruncate())}, insert("1", "Grace", "1000", "1999-12-31 22:59:59+00"))
	// Output:
	// rules: Filter("balance" >= "1000") cannot be used for table public.accounts: TRUNCATE refused: passed on, it could empty more than the rule let through; left out, rows stay that the source has no more: give the rule PassTruncate() (empty the destination) or DropTruncate() (leave the TRUNCATE out), or say it in the table's Route, by one of these or Only
	// insert public.accounts [1 Grace 1000 1999-12-31 22:59:59+00]
}

// The destination has what SELECT … WHERE balance >= 1000 gives at the source.
func ExampleWhere() {
	row := func(balance string) decode.Row { return account("1", "Grace", balance, "1986-08-14 00:00:00+00") }
	try([]rules.Rule{rules.Where(rules.Gte("balance", 1000), rules.PassTruncate())},
		update(row("10"), row("20")),
		update(row("20"), row("1000")),
		update(row("1000"), row("2000")),
		update(row("2000"), row("5")),
	)
	// Output:
	// dropped
	// insert public.accounts [1 Grace 1000 1986-08-14 00:00:00+00]
	// update public.accounts [1 Grace 2000 1986-08-14 00:00:00+00]
	// delete public.accounts [1 Grace 2000 1986-08-14 00:00:00+00]
}

func ExampleRoute() {
	list := []rules.Rule{
		rules.Route("accounts", "bank.konten", rules.RenameColumn("owner", "inhaber")),
		rules.Mask("owner"), // rules see the source's names, wherever they stand
	}
	try(list, insert("1", "Grace", "5", "1986-08-14 00:00:00+00"))
	// Output: insert bank.konten [1 G***e 5 1986-08-14 00:00:00+00]
}

// Many tables into one have to say what a TRUNCATE of one of them means.
func ExampleRoute_pattern() {
	route := rules.Route("(tenant_.*).(.*)", "all.$2", rules.DropTruncate())
	for _, schema := range []string{"tenant_7", "tenant_8", "public"} {
		in := accounts()
		in.Schema = schema
		out, _, err := rules.Bind([]rules.Rule{route}, in)
		fmt.Println(out.Qualified(), err)
	}
	// Output:
	// all.accounts <nil>
	// all.accounts <nil>
	// public.accounts <nil>
}

func ExampleLoad() {
	list, err := rules.Load(strings.NewReader(`
tables:
  accounts:
    - type: transform
      column: owner
      parameters: {type: mask, mask_char: "•"}
    - type: filter
      column: balance
      parameters: {operator: gte, value: 75.00}
      operations: [INSERT, UPDATE]
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	try(list, insert("1", "Grace", "75", "1986-08-14 00:00:00+00"), insert("2", "Ada", "74.99", "1843-01-01 00:00:00+00"))
	_, err = rules.Load(strings.NewReader("tables:\n  accounts:\n    - {type: filter, columm: balance}\n"))
	fmt.Println(err)
	// Output:
	// insert public.accounts [1 G•••e 75 1986-08-14 00:00:00+00]
	// dropped
	// rules file:3: table accounts: invalid rule: rule: unknown field "columm"; allowed: type, column, columns, parameters, operations, allow_empty_deletes, unchanged, truncate
	// rules file:3: table accounts: invalid rule: filter: no parameters: they are an operator and its value
}

func ExampleLoadRoutes() {
	routes, err := rules.LoadRoutes(strings.NewReader(`
accounts:
  source_table: accounts
  destination_table: bank.konten
  column_mappings:
    - {source: owner, destination: inhaber}
  operations: [INSERT, UPDATE]
`))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	row := account("1", "Grace", "5", "1986-08-14 00:00:00+00")
	try(routes, insert("1", "Grace", "5", "1986-08-14 00:00:00+00"), &decode.Change{Op: decode.OpDelete, Old: row})
	// Output:
	// insert bank.konten [1 Grace 5 1986-08-14 00:00:00+00]
	// dropped
}
