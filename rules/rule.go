// Package rules transforms, filters and routes changes in the worker, before they reach the sink.
//
//	rules.Table("public.users", rules.Where(rules.Gte("age", 18), rules.PassTruncate()), rules.Mask("email"), rules.Exclude("ssn"))
//	rules.Route("public.users", "crm.customers")
//
// Transforms: Mask, Regex, Hash, SetNull, Const, Cast, Map, Exclude. Filters: Filter and Where, of a
// Condition. Names: Route. Scope: Table, On. Files: Load, LoadRoutes. A rule of your own is a function given
// to Each, or a type with one method.
// What a rule can't do with a table is an error before the table's first row is written.
package rules

import "github.com/pgflo/flo/decode"

// Rule is bound once to each version of each relation, then runs for its rows, copied and streamed
// alike.
type Rule interface {
	// Bind resolves the rule against a relation. It returns the relation as the rule leaves it
	// (columns removed, renamed) and the function to run, nil if rows pass untouched. Where out == in
	// and f is nil for every rule of a table, its copied rows pass through unparsed. An error stops
	// the worker before the relation's first row is written.
	//
	// in is never changed: a rule that changes it returns another Relation.
	Bind(in *decode.Relation) (out *decode.Relation, f Func, err error)
}

// Func changes c in place or drops it by returning false. c.Relation is the relation that Bind
// returned; rows (Old, New) are as Bind's in describes them and must be left as its out describes
// them. The function may replace c.Old and c.New, never write into their values' bytes. It is called
// on one goroutine at a time for one relation's stream, but on several during the copy: keep state out.
type Func func(c *decode.Change) (keep bool, err error)
