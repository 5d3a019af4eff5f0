package postgres

import (
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
)

// uncheckedSuffix ends the definition of a constraint that older rows need not meet, as pg_get_constraintdef gives it.
const uncheckedSuffix = " NOT VALID"

// notNull is a new column's constraint, by the name that it has from PostgreSQL 18 on: of a partition, its parent's.
func (a *altering) notNull(c *decode.ColumnShape) string {
	if !c.NotNull {
		return ""
	}
	for _, k := range a.shape.Constraints {
		if k.Kind == "n" && slices.Equal(k.Columns, []int16{c.Num}) {
			return " CONSTRAINT " + ident(k.Name) + " NOT NULL"
		}
	}
	return " NOT NULL"
}

// checked gives a schema change in which a column is NOT NULL only if all its rows are. From PostgreSQL 18 on a source may
// say so of new rows alone (NOT NULL … NOT VALID), which earlier destinations can't: theirs becomes NOT NULL when the
// source has validated it. https://www.postgresql.org/docs/current/sql-altertable.html
func checked(ch *decode.SchemaChange) *decode.SchemaChange {
	if ch == nil {
		return nil
	}
	out := ch
	for i := range ch.Tables {
		t := &ch.Tables[i]
		for _, k := range t.Constraints {
			if k.Kind != "n" || !strings.HasSuffix(k.Definition, uncheckedSuffix) {
				continue
			}
			if out == ch { // others read it too
				clone := *ch
				clone.Tables = slices.Clone(ch.Tables)
				for j := range clone.Tables {
					clone.Tables[j].Columns = slices.Clone(ch.Tables[j].Columns)
				}
				out = &clone
			}
			for j := range out.Tables[i].Columns {
				if c := &out.Tables[i].Columns[j]; slices.Contains(k.Columns, c.Num) {
					c.NotNull = false
				}
			}
		}
	}
	return out
}
