package rules_test

import (
	"fmt"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// What an option list hands to a worker, and what the worker makes of it for one table.
func Example() {
	list := []rules.Rule{
		rules.Table("public.users",
			rules.Mask("name", rules.KeepLast(0)),
			rules.Exclude("ssn"),
		),
	}
	text := &decode.Type{Schema: "pg_catalog", Name: "text"}
	users := &decode.Relation{Schema: "public", Name: "users", Columns: []decode.Column{
		{Name: "id", Type: text, Key: true}, {Name: "name", Type: text}, {Name: "ssn", Type: text},
	}}
	out, f, err := rules.Bind(list, users)
	if err != nil {
		fmt.Println(err)
		return
	}
	value := func(s string) decode.Value { return decode.TextValue(text, []byte(s)) }
	c := decode.Change{Op: decode.OpInsert, New: decode.Row{value("1"), value("Margaret"), value("078-05-1120")}}
	keep, err := f(&c)
	fmt.Println(len(out.Columns), keep, err)
	for i, v := range c.New {
		fmt.Println(out.Columns[i].Name, v)
	}
	// Output:
	// 2 true <nil>
	// id 1
	// name M*******
}

// A rule of those operations only; inserts pass as they are.
func ExampleOn() {
	rule := rules.On(rules.Mask("name"), decode.OpUpdate, decode.OpDelete)
	fmt.Println(rules.Validate(rule))
	// Output: <nil>
}

// A misspelt column of a table that is named exactly stops the worker before its first write.
func ExampleTable() {
	users := &decode.Relation{Schema: "public", Name: "users", Columns: []decode.Column{{Name: "email"}}}
	_, _, err := rules.Bind([]rules.Rule{rules.Table("public.users", rules.Mask("emial"))}, users)
	fmt.Println(err)
	// Output: rules: Mask("emial") cannot be used for table public.users: no such column: "emial" (names are exact, upper and lower case differ; an earlier rule may have excluded it)
}

// All but the first and the last two characters.
func ExampleMask() {
	fmt.Println(rules.Validate(rules.Mask("iban", rules.KeepLast(2), rules.MaskRune('•'))))
	// Output: <nil>
}

// Columns that must not leave, in all tables that have them.
func ExampleExclude() {
	fmt.Println(rules.Validate(rules.Exclude("password_hash", "totp_secret")))
	// Output: <nil>
}
