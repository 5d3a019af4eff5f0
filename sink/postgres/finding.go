package postgres

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
)

// finding says how a row is found again.
type finding struct {
	cols  []int    // relation columns
	ops   []string // equality operators, where an index has the column
	text  bool     // decide by the text form
	old   bool     // values of the old row
	after bool     // values after the update
	one   bool     // more than one row may meet the condition: take one
	fifo  bool     // and that the one that was changed longest ago
}

// find chooses how.
func (c *compiler) find() (finding, error) {
	b, ch := c.binding, c.ch
	row := ch.Old
	if row == nil {
		row = ch.New
	}
	there := func(i int) bool {
		p := row[i].Presence()
		return p == decode.Present || p == decode.Null
	}
	if b.rel.HasKey() {
		f := finding{cols: b.keyCols, old: ch.Old != nil}
		for _, i := range f.cols {
			if !there(i) {
				return f, tableError(b.table.name, ErrNoIdentity, fmt.Sprintf("key column %q has no value", b.rel.Columns[i].Name))
			}
		}
		switch {
		case b.key == nil:
			f.ops, f.text, f.one = c.indexed(f.cols), true, true
		default:
			f.ops, f.one, f.fifo = b.keyOps, b.key.deferrable, b.key.deferrable
		}
		return f, nil
	}
	if ch.Old == nil || ch.OldKey {
		return finding{}, tableError(b.table.name, ErrNoIdentity, "")
	}
	present := func(i int) bool { return row[i].Presence() == decode.Present }
	if b.primary != nil && !slices.ContainsFunc(b.primary, func(i int) bool { return !present(i) }) {
		d := b.primIdx.deferrable
		return finding{cols: b.primary, ops: b.primOps, old: true, one: d, fifo: d}, nil
	}
	f := finding{old: true, text: true, one: true}
	for i := range row {
		if there(i) && !b.columns[i].generated {
			f.cols = append(f.cols, i)
		}
	}
	if len(f.cols) == 0 {
		return f, tableError(b.table.name, ErrNoIdentity, "")
	}
	f.ops = c.indexed(f.cols)
	return f, nil
}

func (c *compiler) indexed(cols []int) []string {
	ops := make([]string, len(cols))
	for n, i := range cols {
		ops[n] = c.binding.equal[i]
	}
	return ops
}

// byKey is the condition on the new row's key.
func (c *compiler) byKey(alias string, old bool) string {
	return c.condition(alias, finding{cols: c.binding.keyCols, ops: c.binding.keyOps, old: old})
}

// where writes the rest of an UPDATE or DELETE whose target is called alias. If several rows may meet
// the condition one is taken by its place, (tableoid, ctid): a partitioned table has each ctid many times.
func (c *compiler) where(join, alias string, f finding) {
	if !f.one {
		c.write(" WHERE ", c.condition(alias, f))
		return
	}
	c.write(join, "(SELECT y.tableoid AS o, y.ctid AS c FROM ", c.binding.table.from, " AS y WHERE ", c.condition("y", f))
	if f.fifo {
		// A deferrable key stands twice for as long as the transaction lets it; the change is about the
		// row that had it first, so not about the one that was just given it.
		const ours = "y.xmin::text = (txid_current() % 4294967296)::text"
		c.write(" ORDER BY ", ours, ", CASE WHEN ", ours, " THEN y.cmin::text::bigint END")
	}
	c.write(" LIMIT 1) AS x WHERE ", alias, ".ctid = x.c AND ", alias, ".tableoid = x.o")
}

// condition is what a row has to meet. NULL is found by IS NOT DISTINCT FROM, which, unlike IS NULL, takes
// a composite of NULLs for what it is.
func (c *compiler) condition(alias string, f finding) string {
	parts := make([]string, 0, len(f.cols))
	for n, i := range f.cols {
		name := alias + "." + c.binding.columns[i].quoted
		src := source{old: f.old, col: i}
		if f.after {
			if p := c.ch.New[i].Presence(); p == decode.Present || p == decode.Null {
				src.old = false
			}
		}
		if src.old && src.of(c.ch).IsNull() { // of a new row NULL is one shape with a value: a key has none
			parts = append(parts, name+" IS NOT DISTINCT FROM NULL")
			continue
		}
		value := c.param(src)
		if f.ops[n] != "" {
			parts = append(parts, name+" "+f.ops[n]+" "+value)
		}
		if f.text {
			parts = append(parts, name+`::text COLLATE "C" = `+value+"::text")
		}
	}
	return strings.Join(parts, " AND ")
}
