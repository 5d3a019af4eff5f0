package rules

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/pgflo/flo/decode"
)

// findColumns finds the columns that a rule names. Where the table is named exactly a missing one is
// an error: it would mean that data passes as it is because of a spelling mistake.
func findColumns(rule string, s scope, names []string) ([]int, error) {
	var found []int
	for _, name := range names {
		i := s.in.Column(name)
		if s.seen != nil && !s.exact {
			key := rule + ", column " + strconv.Quote(name)
			s.seen[key] = s.seen[key] || i >= 0
		}
		if i >= 0 {
			found = append(found, i)
		} else if s.exact {
			return nil, &BindError{rule, s.in.Qualified(), fmt.Errorf(
				"%w: %q (names are exact, upper and lower case differ; an earlier rule may have excluded it)", ErrNoColumn, name)}
		}
	}
	return found, nil
}

// bindColumns finds the columns that a rule changes.
func bindColumns(rule string, s scope, names []string) ([]int, error) {
	found, err := findColumns(rule, s, names)
	if err != nil {
		return nil, err
	}
	for _, i := range found {
		if s.in.Columns[i].Key && s.in.Identity != decode.IdentityFull {
			return nil, &BindError{rule, s.in.Qualified(), fmt.Errorf(
				"%w: %q; without its true value the row cannot be found again for an update or delete: leave it out of the rule, or give the table another key by ALTER TABLE … REPLICA IDENTITY USING INDEX …",
				ErrKeyColumn, s.in.Columns[i].Name)}
		}
	}
	return found, nil
}

// checkShape guards against rows that are not what the rule was bound to.
func checkShape(row decode.Row, in *decode.Relation) error {
	if row != nil && len(row) != len(in.Columns) {
		return fmt.Errorf("rules: table %s: %w: %d values for %d columns", in.Qualified(), ErrShape, len(row), len(in.Columns))
	}
	return nil
}

// bindColumn finds the one column that a rule changes; -1 if the table lacks it and may.
func bindColumn(rule string, s scope, name string) (int, error) {
	found, err := bindColumns(rule, s, []string{name})
	if err != nil || len(found) == 0 {
		return -1, err
	}
	return found[0], nil
}

// typeError says that a column's type does not fit, and what would.
func typeError(rule string, in *decode.Relation, i int, advice string) error {
	return &BindError{rule, in.Qualified(), fmt.Errorf("%w: %q is of type %s; %s", ErrType, in.Columns[i].Name, typeName(in.Columns[i].Type), advice)}
}

func typeName(t *decode.Type) string {
	if t == nil {
		return "unknown"
	}
	if t.Kind == decode.DomainType && t.Elem != nil {
		return t.Name + " (a domain over " + typeName(baseOf(t)) + ")"
	}
	return t.Name
}

// eachRow makes a Func that changes old and new rows alike.
func eachRow(in *decode.Relation, change func(decode.Row) decode.Row) Func {
	return func(c *decode.Change) (bool, error) {
		for _, row := range []*decode.Row{&c.Old, &c.New} {
			if *row == nil {
				continue
			}
			if err := checkShape(*row, in); err != nil {
				return false, err
			}
			*row = change(*row)
		}
		return true, nil
	}
}

// eachValue makes a Func that changes one column of old and new rows alike.
func eachValue(in *decode.Relation, i int, change func(decode.Value) (decode.Value, error)) Func {
	return func(c *decode.Change) (bool, error) {
		for _, row := range [...]decode.Row{c.Old, c.New} {
			if row == nil {
				continue
			}
			if err := checkShape(row, in); err != nil {
				return false, err
			}
			v, err := change(row[i])
			if err != nil {
				return false, fmt.Errorf("rules: table %s, column %q: %w", in.Qualified(), in.Columns[i].Name, err)
			}
			row[i] = v
		}
		return true, nil
	}
}

// baseOf gives the type below domains.
func baseOf(t *decode.Type) *decode.Type {
	for t != nil && t.Kind == decode.DomainType {
		t = t.Elem
	}
	return t
}

// isText reports whether any text of the same number of characters fits the type.
func isText(t *decode.Type) bool {
	if t == nil || t.Kind != decode.BaseType {
		return false
	}
	switch t.Name {
	case "text", "varchar", "bpchar":
		return t.Schema == "pg_catalog"
	case "citext": // in whichever schema the extension was installed
		return true
	}
	return false
}

// isCatalog reports whether a type is one of pg_catalog's, by name.
func isCatalog(t *decode.Type, names ...string) bool {
	return t != nil && t.Kind == decode.BaseType && t.Schema == "pg_catalog" && slices.Contains(names, t.Name)
}

// variableHeader is VARHDRSZ, which the modifiers of varchar, char and numeric include.
// https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/varchar.c (anychar_typmodin)
const variableHeader = 4

// maxCharacters gives n of a varchar(n) or char(n). Of a domain the modifier is not known.
func maxCharacters(c *decode.Column) (n int, limited bool) {
	if !isCatalog(c.Type, "varchar", "bpchar") || c.Modifier < variableHeader {
		return 0, false
	}
	return int(c.Modifier) - variableHeader, true
}

// precision gives p and s of a numeric(p,s). The scale is 11 bits, from PostgreSQL 15 on signed.
// https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/numeric.c (make_numeric_typmod)
func precision(c *decode.Column) (digits, scale int, limited bool) {
	if !isCatalog(c.Type, "numeric") || c.Modifier < variableHeader {
		return 0, 0, false
	}
	m := int(c.Modifier) - variableHeader
	return m >> 16 & 0xffff, (m&0x7ff ^ 1024) - 1024, true
}
