package rules

import (
	"fmt"
	"io"
	"slices"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
)

// Load reads rules from YAML, in the field names that pg_flo documents:
//
//	tables:
//	  users:                        # in every schema; or "shop.users", "shop.*"
//	    - type: transform           # transform, filter, where, exclude_column
//	      column: email
//	      parameters: {type: mask, mask_char: "*"}
//	      operations: [INSERT, UPDATE]
//	    - type: filter
//	      column: age
//	      parameters: {operator: gte, value: 18}
//	      allow_empty_deletes: true
//	    - type: exclude_column
//	      columns: [ssn, salary]
//
// A TRUNCATE of a table that a filter or where of the file has is left out, as pg_flo leaves all of them
// out, whatever operations says; truncate: pass hands it on, and a Route has the last word.
//
// docs/rules.md has all fields. Unknown fields are errors, so that a misspelt one never lets data pass.
// All errors are given at once; each is a *LoadError with file, line, table and column, and wraps
// ErrInvalidRule. The file's name is the reader's, if it has one (*os.File).
//
// What only the table can tell (a column that is not there, a type that does not fit) is an error when
// the rule meets it, and names the line, too.
func Load(r io.Reader) ([]Rule, error) {
	f := &file{}
	doc := f.open(r)
	if doc == nil {
		return nil, f.err()
	}
	if doc.Kind == yaml.MappingNode && !slices.ContainsFunc(doc.Content, func(n *yaml.Node) bool { return n.Value == "tables" }) {
		f.fail(doc, "no field %q: rules stand in lists below their tables' names (tables: {users: [ … ]})", "tables")
	}
	var all []Rule
	top := f.fields(doc, "the file", "tables")
	if tables := top["tables"]; tables != nil {
		for _, e := range f.mapping(tables, "tables") {
			f.table = e.name
			all = append(all, f.tableRules(e)...)
			f.table = ""
		}
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	return all, nil
}

// tableRules reads the rules of one table. Each is wrapped by itself, so that its errors have its line.
func (f *file) tableRules(e entry) []Rule {
	pattern, err := names.Parse(e.name)
	_, _, exact := pattern.Exact()
	if schema, _, splitErr := splitName(e.name); splitErr == nil && schema == "" && err == nil {
		pattern, err = names.Parse("*." + e.name)
	}
	if err != nil {
		f.fail(e.key, "%w", err)
		return nil
	}
	var out []Rule
	for _, n := range f.list(e.value, "the table's rules") {
		for _, r := range f.rule(n) {
			out = append(out, f.at(n, &tableRule{text: e.name, pattern: pattern, exact: exact, rules: []Rule{r}}))
		}
		f.column = ""
	}
	return out
}

var ruleFields = []string{"type", "column", "columns", "parameters", "operations", "allow_empty_deletes", "unchanged", "truncate"}

// rule reads one entry; a list of columns gives a rule for each.
func (f *file) rule(n *yaml.Node) []Rule {
	before := len(f.errs)
	fields := f.fields(n, "rule", ruleFields...)
	columns := f.columns(n, fields)
	if fields["type"] == nil {
		f.fail(n, "rule: no type; it is one of transform, filter, where, exclude_column")
		return nil
	}
	kind := f.word(fields["type"], "type", "transform", "filter", "where", "exclude_column")
	if kind != "filter" && kind != "where" {
		f.refuse(fields, kind, "unchanged", "truncate")
	}
	var out []Rule
	switch kind {
	case "transform":
		f.need(n, columns, kind)
		out = f.transforms(n, columns, fields["parameters"])
	case "filter", "where":
		out = f.filters(n, kind, columns, fields)
	case "exclude_column":
		f.need(n, columns, kind)
		f.refuse(fields, kind, "parameters")
		out = []Rule{Exclude(columns...)}
	}
	f.boolean(fields["allow_empty_deletes"], "allow_empty_deletes")
	if ops := fields["operations"]; ops != nil {
		list := f.operations(ops)
		if kind == "filter" || kind == "where" { // they have a word on TRUNCATE of their own
			list = append(list, decode.OpTruncate)
		}
		for i, r := range out {
			out[i] = On(r, list...)
		}
	}
	if len(f.errs) > before {
		return nil
	}
	for _, r := range out {
		if err := Validate(r); err != nil {
			f.fail(n, "%w", err)
		}
	}
	return out
}

// columns reads column or columns, which mean the same.
func (f *file) columns(n *yaml.Node, fields map[string]*yaml.Node) []string {
	one, many := fields["column"], fields["columns"]
	switch {
	case one != nil && many != nil:
		f.fail(n, "rule: both column and columns")
		return nil
	case one == nil:
		one = many
	}
	if one == nil {
		return nil
	}
	columns := f.texts(one, "column")
	if len(columns) > 0 {
		f.column = columns[0]
	}
	return columns
}

func (f *file) need(n *yaml.Node, columns []string, kind string) {
	if len(columns) == 0 {
		f.fail(n, "%s: no column", kind)
	}
}

// refuse notes fields that mean nothing here.
func (f *file) refuse(fields map[string]*yaml.Node, what string, list ...string) {
	for _, name := range list {
		if n := fields[name]; n != nil && what != "" {
			f.fail(n, "%s takes no field %q", what, name)
		}
	}
}

// transformFields gives the parameters of a transform beside its type; pg_flo's own examples have
// allow_empty_deletes among them.
func transformFields(kind string) []string {
	own := map[string][]string{
		"mask":  {"mask_char", "keep_first", "keep_last"},
		"regex": {"pattern", "replace"},
		"hash":  {"key"},
		"const": {"value"},
		"cast":  {"to"},
	}
	return append([]string{"type", "allow_empty_deletes"}, own[kind]...)
}

func (f *file) transforms(n *yaml.Node, columns []string, params *yaml.Node) []Rule {
	const kinds = "mask, regex, hash, set_null, const, cast"
	if params == nil {
		f.fail(n, "transform: no parameters; their type is one of %s", kinds)
		return nil
	}
	kind := ""
	for _, e := range f.mapping(params, "parameters") {
		if e.name == "type" {
			kind = f.word(e.value, "parameters: type", "mask", "regex", "hash", "set_null", "const", "cast")
		}
	}
	if kind == "" {
		f.fail(params, "parameters: no type; it is one of %s", kinds)
		return nil
	}
	p := f.fields(params, "parameters of "+kind, transformFields(kind)...)
	f.boolean(p["allow_empty_deletes"], "allow_empty_deletes")
	text := func(name string) string {
		if p[name] == nil {
			f.fail(params, "%s: no %s", kind, name)
			return ""
		}
		s, _ := f.text(p[name], name)
		return s
	}
	var make func(column string) Rule
	switch kind {
	case "mask":
		opts := f.maskOptions(p)
		make = func(c string) Rule { return Mask(c, opts...) }
	case "regex":
		pattern, replace := text("pattern"), text("replace")
		make = func(c string) Rule { return Regex(c, pattern, replace) }
	case "hash":
		key := []byte(text("key"))
		make = func(c string) Rule { return Hash(c, key) }
	case "set_null":
		make = SetNull
	case "const":
		value := f.value(p["value"], "const: value")
		make = func(c string) Rule { return Const(c, value) }
	case "cast":
		to := text("to")
		make = func(c string) Rule { return Cast(c, to) }
	}
	var out []Rule
	for _, c := range columns {
		out = append(out, make(c))
	}
	return out
}

func (f *file) maskOptions(p map[string]*yaml.Node) []MaskOption {
	var opts []MaskOption
	if n := p["mask_char"]; n != nil {
		s, ok := f.text(n, "mask_char")
		if c, size := utf8.DecodeRuneInString(s); ok && size == len(s) && size > 0 {
			opts = append(opts, MaskRune(c))
		} else if ok {
			f.fail(n, "mask_char: %q is not one character", s)
		}
	}
	if n := p["keep_first"]; n != nil {
		opts = append(opts, KeepFirst(f.number(n, "keep_first")))
	}
	if n := p["keep_last"]; n != nil {
		opts = append(opts, KeepLast(f.number(n, "keep_last")))
	}
	return opts
}

// filters reads a filter or where.
func (f *file) filters(n *yaml.Node, kind string, columns []string, fields map[string]*yaml.Node) []Rule {
	params := fields["parameters"]
	if params == nil {
		f.fail(n, "%s: no parameters: they are an operator and its value", kind)
		return nil
	}
	var opts []FilterOption
	conditions, allow := f.conditions(params, kind, columns)
	if allow || f.boolean(fields["allow_empty_deletes"], "allow_empty_deletes") {
		opts = append(opts, AllowEmptyDeletes())
	}
	if u := fields["unchanged"]; u != nil {
		switch f.word(u, "unchanged", "pass", "drop", "stop") {
		case "pass":
			opts = append(opts, PassUnchanged())
		case "drop":
			opts = append(opts, DropUnchanged())
		}
	}
	opts = append(opts, f.truncate(fields["truncate"]))
	var out []Rule
	for _, c := range conditions {
		if kind == "where" {
			out = append(out, Where(c, opts...))
		} else {
			out = append(out, Filter(c, opts...))
		}
	}
	return out
}

// truncate gives DropTruncate where the file has no word on it: pg_flo ignores every TRUNCATE.
func (f *file) truncate(n *yaml.Node) FilterOption {
	if n != nil && f.word(n, "truncate", "pass", "drop") == "pass" {
		return PassTruncate()
	}
	return DropTruncate()
}

// conditions reads what a filter asks: an operator, for each of the columns, or a tree of conditions.
func (f *file) conditions(params *yaml.Node, kind string, columns []string) (out []Condition, allowEmptyDeletes bool) {
	p := f.fields(params, "parameters of "+kind, "operator", "value", "values", "all", "any", "not", "allow_empty_deletes")
	allowEmptyDeletes = f.boolean(p["allow_empty_deletes"], "allow_empty_deletes")
	if p["all"] != nil || p["any"] != nil || p["not"] != nil {
		if len(columns) > 0 {
			f.fail(params, "%s: the columns of all, any and not stand within them", kind)
		}
		return []Condition{f.tree(params, p)}, allowEmptyDeletes
	}
	f.need(params, columns, kind)
	for _, c := range columns {
		out = append(out, f.comparison(params, p, c))
	}
	return out, allowEmptyDeletes
}

// tree reads {all: […]}, {any: […]} or {not: …}.
func (f *file) tree(n *yaml.Node, p map[string]*yaml.Node) Condition {
	delete(p, "allow_empty_deletes")
	if len(p) != 1 {
		f.fail(n, "condition: one of operator, all, any and not")
		return Condition{}
	}
	if p["not"] != nil {
		return Not(f.condition(p["not"]))
	}
	list, combine := p["all"], And
	if p["any"] != nil {
		list, combine = p["any"], Or
	}
	var subs []Condition
	for _, item := range f.list(list, "all and any") {
		subs = append(subs, f.condition(item))
	}
	return combine(subs...)
}

func (f *file) condition(n *yaml.Node) Condition {
	p := f.fields(n, "condition", "column", "operator", "value", "values", "all", "any", "not")
	if p["all"] != nil || p["any"] != nil || p["not"] != nil {
		return f.tree(n, p)
	}
	if p["column"] == nil {
		f.fail(n, "condition: no column")
		return Condition{}
	}
	column, _ := f.text(p["column"], "column")
	f.column = column
	return f.comparison(n, p, column)
}

func (f *file) comparison(n *yaml.Node, p map[string]*yaml.Node, column string) Condition {
	words := operatorNames[opEq : opIsNull+1]
	if p["operator"] == nil {
		f.fail(n, "no operator; it is one of %s", fmt.Sprint(words))
		return Condition{}
	}
	op := operator(slices.Index(operatorNames[:], f.word(p["operator"], "operator", words...)))
	switch {
	case op <= opNone:
		return Condition{}
	case op == opIsNull:
		f.refuse(p, "is_null", "value", "values")
		return IsNull(column)
	case op == opIn:
		list := p["values"]
		if list == nil {
			list = p["value"]
		}
		if list == nil {
			f.fail(n, "in: no values")
			return Condition{}
		}
		var values []any
		for _, item := range f.list(list, "values of in") {
			values = append(values, f.value(item, "values of in"))
		}
		return In(column, values...)
	}
	f.refuse(p, operatorNames[op], "values")
	if p["value"] == nil {
		f.fail(n, "%s: no value", operatorNames[op])
		return Condition{}
	}
	return compareWith(op, column, f.value(p["value"], "value"))
}
