package rules

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pgflo/flo/decode"
)

// SetNull replaces all of a column's values by NULL, those that an update left unchanged included. Old
// rows are changed too. Whether the column may be NULL only the destination knows.
//
// The column may be of any type, and no part of the replica identity. Tables that lack it are left
// alone, unless Table names them exactly.
func SetNull(column string) Rule { return &setRule{name: "SetNull", column: column} }

// Const replaces all of a column's values by one, NULL and those that an update left unchanged included.
// Old rows are changed too. The value is given as in a Condition, and has to be one of the column's
// type, which is checked when the rule meets the table: numbers in their range and precision, text in
// its length, an enum's label, valid JSON. Other types (arrays, ranges, geometry …) take Map.
//
// The column may be no part of the replica identity. Tables that lack it are left alone, unless Table
// names them exactly.
func Const(column string, value any) Rule {
	r := &setRule{name: "Const", column: column}
	l, err := literalOf(value)
	r.value, r.err = &l, err
	return r
}

type setRule struct {
	name, column string
	value        *literal // nil: NULL
	err          error
}

func (r *setRule) String() string { return fmt.Sprintf("%s(%q)", r.name, r.column) }

// Validate implements the optional method that Validate looks for.
func (r *setRule) Validate() error {
	switch {
	case r.column == "":
		return fmt.Errorf("rules: %w: %s: name the column", ErrInvalidRule, r.name)
	case r.err != nil:
		return fmt.Errorf("rules: %s: %w", r, r.err)
	}
	return nil
}

// Bind implements Rule.
func (r *setRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *setRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	i, err := bindColumn(r.String(), s, r.column)
	if err != nil || i < 0 {
		return s.unchanged(), err
	}
	col := &s.in.Columns[i]
	value := decode.NullValue(col.Type)
	if r.value != nil {
		text, err := constantOf(col, *r.value)
		if err != nil {
			return bound{}, &BindError{r.String(), s.in.Qualified(), fmt.Errorf("%q, of type %s: %w", r.column, typeName(col.Type), err)}
		}
		value = decode.TextValue(col.Type, []byte(text))
	}
	return s.run(s.in, eachValue(s.in, i, func(v decode.Value) (decode.Value, error) {
		if v.Presence() == decode.Absent {
			return v, nil
		}
		return value, nil
	})), nil
}

// constantOf gives PostgreSQL's text of a value for a column that can hold it.
func constantOf(c *decode.Column, l literal) (string, error) {
	base := baseOf(c.Type)
	if isCatalog(base, "json", "jsonb") {
		if !json.Valid([]byte(l.text)) {
			return "", malformed(l, "JSON", `{"a": 1}`)
		}
		return l.text, nil
	}
	cmp, err := comparerOf(c)
	if err != nil {
		return "", fmt.Errorf("%w: Const does not check values of this type: use Map", ErrType)
	}
	text, err := cmp.canonical(l)
	if err != nil {
		return "", err
	}
	if n, ok := maxCharacters(c); ok && len([]rune(text)) > n {
		return "", fmt.Errorf("%w: %q has more than %d characters", ErrType, text, n)
	}
	switch base.Name {
	case "int2", "int4", "int8":
		bits := map[string]int{"int2": 16, "int4": 32, "int8": 64}[base.Name]
		n, err := strconv.ParseInt(text, 10, bits)
		if err != nil {
			return "", fmt.Errorf("%w: %s is no integer of %d bits", ErrType, l.text, bits)
		}
		return strconv.FormatInt(n, 10), nil
	case "oid":
		if _, err := strconv.ParseUint(text, 10, 32); err != nil {
			return "", fmt.Errorf("%w: %s is no oid", ErrType, l.text)
		}
	case "numeric":
		return text, fitsNumeric(c, text)
	}
	return text, nil
}

// fitsNumeric refuses what a numeric(p,s) would refuse or round.
func fitsNumeric(c *decode.Column, text string) error {
	digits, scale, limited := precision(c)
	d, _ := parseDecimal([]byte(text))
	if !limited || d.class == 2 {
		return nil
	}
	if d.class != 0 || len(d.whole) > max(digits-scale, 0) || len(d.fraction) > max(scale, 0) {
		return fmt.Errorf("%w: %s does not fit numeric(%d,%d)", ErrType, text, digits, scale)
	}
	return nil
}

// Map runs a function on a column's values: to format, to look up, to encrypt. It is called for present
// values of old and new rows (NULL, unchanged and absent ones stay what they are), from several
// goroutines at a time, and must give the same result for the same value, or rows are not found again.
// It must not write into the value's bytes. An error stops the worker.
//
// The result has to be PostgreSQL's text for the column's type (decode.TextValue with v.Type()): whether
// the type can hold it is the function's to know. The column may be no part of the replica identity.
// Tables that lack it are left alone, unless Table names them exactly.
func Map(column string, f func(v decode.Value) (decode.Value, error)) Rule {
	return &mapRule{column: column, f: f}
}

type mapRule struct {
	column string
	f      func(v decode.Value) (decode.Value, error)
}

func (r *mapRule) String() string { return fmt.Sprintf("Map(%q)", r.column) }

// Validate implements the optional method that Validate looks for.
func (r *mapRule) Validate() error {
	if r.column == "" || r.f == nil {
		return fmt.Errorf("rules: %w: %s: it needs a column and a function", ErrInvalidRule, r)
	}
	return nil
}

// Bind implements Rule.
func (r *mapRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *mapRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	i, err := bindColumn(r.String(), s, r.column)
	if err != nil || i < 0 {
		return s.unchanged(), err
	}
	return s.run(s.in, eachValue(s.in, i, func(v decode.Value) (decode.Value, error) {
		if v.Presence() != decode.Present {
			return v, nil
		}
		return r.f(v)
	})), nil
}

// Cast gives a column another type, for sinks that write values by their type (a bigint as a JSON string,
// say): "text", or a wider type that reads the same text, as integer to bigint or numeric, real to double
// precision, varchar to text, json to jsonb and back. Values keep their text. The name is that of
// pg_type (int8, not bigint; common SQL names work too).
//
// A pair that is not sure to work for every value is an error when the rule meets the table: use Map.
// Key columns may be cast. Tables that lack the column are left alone, unless Table names them exactly.
func Cast(column, to string) Rule { return &castRule{column: column, to: to} }

type castRule struct{ column, to string }

func (r *castRule) String() string { return fmt.Sprintf("Cast(%q, %q)", r.column, r.to) }

// castTarget is a type that Cast makes, and from which types besides its own name.
type castTarget struct {
	oid  uint32
	from []string // nil: from all
}

func castTargets() map[string]castTarget {
	return map[string]castTarget{
		"text":    {25, nil},
		"varchar": {1043, nil},
		"int4":    {23, []string{"int2"}},
		"int8":    {20, []string{"int2", "int4", "oid"}},
		"numeric": {1700, []string{"int2", "int4", "int8", "oid"}},
		"float8":  {701, []string{"int2", "int4", "float4"}},
		"json":    {114, []string{"jsonb"}},
		"jsonb":   {3802, []string{"json"}},
	}
}

// sqlNames are SQL's names of types that pg_type calls otherwise.
// https://www.postgresql.org/docs/current/datatype.html
func sqlName(s string) string {
	switch s = strings.ToLower(s); s {
	case "integer", "int":
		return "int4"
	case "bigint":
		return "int8"
	case "double precision":
		return "float8"
	case "decimal":
		return "numeric"
	case "character varying":
		return "varchar"
	}
	return s
}

// Validate implements the optional method that Validate looks for.
func (r *castRule) Validate() error {
	if r.column == "" {
		return fmt.Errorf("rules: %w: Cast: name the column", ErrInvalidRule)
	}
	targets := castTargets()
	if _, ok := targets[sqlName(r.to)]; !ok {
		return fmt.Errorf("rules: %w: %s: the type is one of %s", ErrInvalidRule, r, sortedKeys(targets))
	}
	return nil
}

func sortedKeys[V any](m map[string]V) string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Bind implements Rule.
func (r *castRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *castRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	found, err := findColumns(r.String(), s, []string{r.column})
	if err != nil || len(found) == 0 {
		return s.unchanged(), err
	}
	if s.ops != 0 {
		return bound{}, &BindError{"On(" + r.String() + ")", s.in.Qualified(),
			fmt.Errorf("%w: a rule that changes the table's columns cannot be limited to operations", ErrInvalidRule)}
	}
	i := found[0]
	target := castTargets()[sqlName(r.to)]
	base := baseOf(s.in.Columns[i].Type)
	if base == nil || target.from != nil && base.Name != sqlName(r.to) && !isCatalog(base, target.from...) {
		return bound{}, typeError(r.String(), s.in, i, "not every value of it is one of "+r.to+": use Map")
	}
	to := decode.BuiltinType(target.oid)
	out := *s.in
	out.Columns = slices.Clone(s.in.Columns)
	out.Columns[i].Type, out.Columns[i].Modifier = to, -1
	return s.run(&out, eachValue(s.in, i, func(v decode.Value) (decode.Value, error) {
		switch v.Presence() {
		case decode.Present:
			v = decode.TextValue(to, v.Bytes())
		case decode.Null:
			v = decode.NullValue(to)
		case decode.Unchanged:
			v = decode.UnchangedValue(to)
		}
		return v, nil
	})), nil
}
