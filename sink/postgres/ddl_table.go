package postgres

import (
	"fmt"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
)

// altering is one table of a schema change. Its columns go by the source's names from columns to restore: so
// the texts of the source's definitions mean the same here.
type altering struct {
	*ddl
	shape  *decode.TableShape
	page   *page      // as the books have it, nil if they don't
	next   *page      // as they will
	live   *liveTable // nil if the destination has no such table
	looked int        // after how many statements of the change that was so
	made   bool       // this change has created it
	moved  bool       // it has given it another name
	shared []*page    // other source tables that go into it
}

// tables brings the destination's tables to the shapes of the change.
func (d *ddl) tables() error {
	if err := d.letGo(); err != nil {
		return err
	}
	var all []*altering
	for _, i := range d.inOrder() {
		a, err := d.altering(&d.change.Tables[i])
		if err != nil {
			return err
		}
		all = append(all, a)
	}
	for _, a := range all {
		if a.live != nil {
			if err := a.move(); err != nil {
				return err
			}
		}
	}
	for _, step := range []func(*altering) error{
		(*altering).detach, (*altering).columns, (*altering).keys,
		(*altering).foreignKeys, (*altering).tie, (*altering).comments, (*altering).restore, (*altering).attach, (*altering).followKeys,
	} {
		for _, a := range all {
			if a.looked != d.ran { // a parent's alteration is its children's
				if err := a.look(); err != nil {
					return err
				}
			}
			if a.live == nil && !(a.shape.Made && !a.made) {
				continue
			}
			if err := step(a); err != nil {
				return err
			}
		}
	}
	pages := make([]*page, len(all))
	for i, a := range all {
		pages[i] = a.next
	}
	if err := d.books.put(pages...); err != nil {
		return err
	}
	return d.comeBack()
}

// inOrder gives the tables' indexes, parents first.
func (d *ddl) inOrder() []int {
	at := make(map[decode.Name]int, len(d.change.Tables))
	order := make([]int, len(d.change.Tables))
	for i := range d.change.Tables {
		at[tableOf(&d.change.Tables[i]).source], order[i] = i, i
	}
	depth := make([]int, len(order))
	for range order { // at most that deep
		changed := false
		for i := range d.change.Tables {
			for _, p := range d.change.Tables[i].Parents {
				if k, ok := at[p]; ok && k != i && depth[i] <= depth[k] && depth[k] < len(order) {
					depth[i], changed = depth[k]+1, true
				}
			}
		}
		if !changed {
			break
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return depth[a] - depth[b] })
	return order
}

func (d *ddl) altering(shape *decode.TableShape) (*altering, error) {
	a := &altering{ddl: d, shape: shape, next: tableOf(shape)}
	if shape.Rewritten {
		d.anew[shape.OID] = true
	}
	var err error
	if a.page, err = d.books.get(tablePage, shape.OID); err != nil {
		return nil, err
	}
	if shape.CopyFollows {
		d.follows[shape.OID] = true
	}
	a.next.awaits = shape.Kind == "r" && d.follows[shape.OID] || a.page != nil && a.page.awaits
	if a.shared, err = d.books.sharing(a.next); err != nil {
		return nil, err
	}
	if err := a.look(); err != nil {
		return nil, err
	}
	if a.live != nil && a.page == nil && shape.Made {
		p, free, err := d.holder(shape.OID, a.next.source, a.next.dest)
		if err != nil {
			return nil, err
		}
		if p != nil && free {
			if ahead, err := d.ahead(p); err != nil {
				return nil, err
			} else if ahead {
				a.live, a.shared = nil, nil
				a.stayAside()
				return a, nil
			}
			// The source has given the other one's name away, and what it did to that one is withheld until its copy.
			if err := d.setAside(p); err != nil {
				return nil, err
			}
			if err := a.look(); err != nil {
				return nil, err
			}
		}
	}
	if a.live == nil && shape.Made { // all of it is made
		a.page = nil
	}
	if a.live == nil && !shape.Made {
		if a.page != nil && a.page.dest != a.next.dest {
			was, err := d.live(a.page.dest)
			if err != nil || was != nil {
				a.live = was // move will see to it
				return a, err
			}
		}
		d.pass("table "+a.next.dest.String(), "the destination does not have it")
	}
	return a, nil
}

// look reads the destination's catalog.
func (a *altering) look() (err error) {
	a.live, err = a.ddl.live(a.next.dest)
	a.looked = a.ran
	return err
}

// alter runs an ALTER TABLE.
func (a *altering) alter(action, what string) error {
	return a.run(a.next.dest, action, "ALTER TABLE "+a.live.sql()+" "+what)
}

// sourceName is the name that the source has for a column.
func sourceName(c *decode.ColumnShape) string {
	if c.Source != "" {
		return c.Source
	}
	return c.Name
}

// was gives a column as the books have it, nil if they don't.
func (a *altering) was(c *decode.ColumnShape) *decode.ColumnShape {
	if a.page == nil {
		return nil
	}
	return oldColumn(a.page.table.Columns, c)
}

// oldColumn finds a column by its number, or by its name where one of both has none.
func oldColumn(columns []decode.ColumnShape, c *decode.ColumnShape) *decode.ColumnShape {
	for i := range columns {
		if o := &columns[i]; c.Num > 0 && o.Num == c.Num {
			return o
		}
	}
	for i := range columns {
		if o := &columns[i]; (c.Num == 0 || o.Num == 0) && sourceName(o) == sourceName(c) {
			return o
		}
	}
	return nil
}

// columns creates the table, or alters its columns.
func (a *altering) columns() error {
	if a.live == nil {
		return a.create()
	}
	if a.shape.Made && a.page == nil {
		if err := a.refuseRows(); err != nil {
			return err
		}
	}
	if err := a.dropGone(); err != nil {
		return err
	}
	if err := a.disguise(); err != nil {
		return err
	}
	if err := a.renameColumns(); err != nil {
		return err
	}
	if err := a.notMistaken(); err != nil {
		return err
	}
	for i := range a.shape.Columns {
		if err := a.column(&a.shape.Columns[i]); err != nil {
			return err
		}
	}
	if err := a.options(); err != nil {
		return err
	}
	return a.look()
}

// dropGone drops the columns that a command which writes the rows anew drops: what sql_drop says of them comes behind it, and is left out
// for a table that waits for its fresh copy.
func (a *altering) dropGone() error {
	if a.page == nil || !a.anew[a.shape.OID] || a.change.Observed {
		return nil
	}
	all := gone(a.page.table, a.shape)
	for _, generated := range []bool{true, false} { // they are made of the others
		for _, x := range all {
			if x.Kind != "table column" {
				continue
			}
			if err := a.dropColumn(&x, generated); err != nil {
				return err
			}
		}
	}
	page, err := a.books.get(tablePage, a.shape.OID)
	if err != nil || page == nil {
		return err
	}
	a.page = page
	return a.look()
}

// refuseRows: a table that the source has only just made is not one that has rows, unless flo wrote them.
func (a *altering) refuseRows() error {
	if a.live.kind != "r" || len(a.shared) > 0 || a.sink.config.merges(a.next.dest) {
		return nil
	}
	rows, err := query(a.ctx, a.pg, "SELECT EXISTS (SELECT FROM ONLY "+a.live.sql()+"), EXISTS (SELECT FROM "+a.sink.books.copies+
		" WHERE group_name = $1 AND worker = $2 AND dest_schema = $3 AND dest_table = $4)", a.st.Group, a.st.Worker, a.next.dest.Schema, a.next.dest.Name)
	if err != nil {
		return a.fail(a.next.dest, "looking for rows", "", err)
	}
	if string(rows[0][0]) == "f" || string(rows[0][1]) == "t" {
		return nil
	}
	return &DDLError{Object: a.next.dest, Action: "creating it", Err: ErrNotEmpty,
		Remedy: "the source has made a new table of a name that the destination has, with rows: rename, empty or drop the destination's, and start again"}
}

// disguise gives routed columns the source's names.
func (a *altering) disguise() error {
	shape := a.shape
	if a.page != nil {
		shape = a.page.table
	}
	var pairs [][2]string
	for i := range shape.Columns {
		c := &shape.Columns[i]
		if c.Source != "" && c.Source != c.Name && a.live.column(c.Name) != nil {
			pairs = append(pairs, [2]string{c.Name, c.Source})
		}
	}
	if a.page != nil && a.page.dest != a.next.dest && len(a.shared) > 0 || len(pairs) == 0 {
		return nil
	}
	return a.renameAll(pairs)
}

// restore gives routed columns the destination's names.
func (a *altering) restore() error {
	if err := a.look(); err != nil || a.live == nil {
		return err
	}
	var pairs [][2]string
	for i := range a.shape.Columns {
		c := &a.shape.Columns[i]
		if c.Source != "" && c.Source != c.Name && a.live.column(c.Source) != nil {
			pairs = append(pairs, [2]string{c.Source, c.Name})
		}
	}
	return a.renameAll(pairs)
}

// renameAll renames columns, by way of other names where they change names with each other.
func (a *altering) renameAll(pairs [][2]string) error {
	if len(pairs) == 0 {
		return nil
	}
	one := func(from, to string) error {
		return a.alter(fmt.Sprintf("renaming column %q to %q", from, to), "RENAME COLUMN "+ident(from)+" TO "+ident(to))
	}
	all := pairs
	pairs = slices.Clone(pairs)
	for i, p := range all {
		if !slices.ContainsFunc(all, func(q [2]string) bool { return q[0] == p[1] }) {
			continue
		}
		pairs[i][0] = fmt.Sprintf("flo_%s_%d", a.live.oid, i)
		if err := one(p[0], pairs[i][0]); err != nil {
			return err
		}
	}
	for _, passing := range []bool{false, true} { // these give names away, those take them
		for i, p := range pairs {
			if passing != (p[0] != all[i][0]) {
				continue
			}
			if err := one(p[0], p[1]); err != nil {
				return err
			}
		}
	}
	return a.look()
}

// renameColumns follows columns by their numbers.
func (a *altering) renameColumns() error {
	var pairs [][2]string
	for i := range a.shape.Columns {
		c := &a.shape.Columns[i]
		o := a.was(c)
		if o == nil || sourceName(o) == sourceName(c) {
			continue
		}
		if l := a.live.column(sourceName(o)); l == nil || l.inherited { // its parent's is renamed
			continue
		}
		pairs = append(pairs, [2]string{sourceName(o), sourceName(c)})
	}
	// What has the new name may be a column that another table which goes here has got before, or that somebody has made.
	taken := func(p [2]string) bool {
		return a.live.column(p[1]) != nil && !slices.ContainsFunc(pairs, func(q [2]string) bool { return q[0] == p[1] })
	}
	if i := slices.IndexFunc(pairs, taken); i >= 0 && len(a.shared) == 0 {
		p := pairs[i]
		return &DDLError{Object: a.next.dest, Action: fmt.Sprintf("renaming column %q to %q", p[0], p[1]), Err: fmt.Errorf("the destination has both"),
			Remedy: fmt.Sprintf("drop or rename the destination's own %q, and start again", p[1])}
	}
	pairs = slices.DeleteFunc(pairs, taken)
	if len(a.shared) > 0 {
		for _, p := range pairs {
			if a.needed(p[0]) {
				return &DDLError{Object: a.next.dest, Action: fmt.Sprintf("renaming column %q to %q", p[0], p[1]), Err: fmt.Errorf("other source tables that go into it have it under the old name"),
					Remedy: "give the column its old name by a Route rule, or add the new one at the destination by hand, and start again"}
			}
		}
	}
	return a.renameAll(pairs)
}

// needed reports whether another source table that goes into the same one has a column.
func (a *altering) needed(column string) bool { return shares(a.shared, column) }

func shares(pages []*page, column string) bool {
	return slices.ContainsFunc(pages, func(p *page) bool {
		return slices.ContainsFunc(p.table.Columns, func(c decode.ColumnShape) bool { return c.Name == column })
	})
}

// notMistaken refuses a column that is to be added where the books can't tell it from one that was renamed.
func (a *altering) notMistaken() error {
	if a.shape.Made {
		return nil
	}
	for i := range a.shape.Columns {
		c := &a.shape.Columns[i]
		if a.live.column(sourceName(c)) != nil {
			continue
		}
		if a.page != nil && a.was(c) == nil && !a.change.Observed {
			continue // the books know all others by number
		}
		for _, l := range a.live.columns {
			known := slices.ContainsFunc(a.shape.Columns, func(s decode.ColumnShape) bool { return sourceName(&s) == l.name })
			if known || slices.Contains(a.shape.LeftOut, l.name) || l.typ != c.Type {
				continue
			}
			if a.change.Observed && a.page != nil && !slices.ContainsFunc(a.page.table.Columns, func(s decode.ColumnShape) bool { return sourceName(&s) == l.name }) {
				continue // made by hand
			}
			return &DDLError{
				Object: a.next.dest, Action: fmt.Sprintf("adding column %q", c.Name),
				Err: fmt.Errorf("it can't be told from a new name for column %q, which the source does not have (any more)", l.name),
				Remedy: fmt.Sprintf("by hand: if it is the same column, ALTER TABLE %s RENAME COLUMN %s TO %s; if not, ADD COLUMN %s %s; and start again",
					a.live.sql(), ident(l.name), ident(c.Name), ident(c.Name), c.Type),
			}
		}
	}
	return nil
}

// rewritten reports whether the source has written the rows anew, or those of the table's partitions: a command says
// so of each, before it says how it has left them and their parents.
func (a *altering) rewritten() bool {
	if a.anew[a.shape.OID] || a.shape.Kind != "p" {
		return a.anew[a.shape.OID]
	}
	return slices.ContainsFunc(a.change.Tables, func(t decode.TableShape) bool {
		return a.anew[t.OID] && slices.Contains(t.Ancestors, a.next.source)
	})
}

// options sets storage parameters that the source has changed.
func (a *altering) options() error {
	if a.page == nil || slices.Equal(a.page.table.Options, a.shape.Options) {
		return nil
	}
	var set, reset []string
	for _, o := range a.shape.Options {
		if !slices.Contains(a.page.table.Options, o) {
			set = append(set, optionSQL(o))
		}
	}
	for _, o := range a.page.table.Options {
		name, _, _ := strings.Cut(o, "=")
		if !slices.ContainsFunc(a.shape.Options, func(n string) bool { return strings.HasPrefix(n, name+"=") }) {
			reset = append(reset, ident(name))
		}
	}
	if set != nil {
		if err := a.alter("setting storage parameters", "SET ("+strings.Join(set, ", ")+")"); err != nil {
			return err
		}
	}
	if reset == nil {
		return nil
	}
	return a.alter("resetting storage parameters", "RESET ("+strings.Join(reset, ", ")+")")
}

func optionSQL(o string) string {
	name, value, _ := strings.Cut(o, "=")
	return ident(name) + " = " + literal(value)
}

// comments sets those that have changed.
func (a *altering) comments() error {
	var was *string
	if a.page != nil {
		was = a.page.table.Comment
	}
	table := a.live.sql()
	if err := a.comment("TABLE "+table, was, a.shape.Comment, a.live.comment); err != nil {
		return err
	}
	for i := range a.shape.Columns {
		c := &a.shape.Columns[i]
		l := a.live.column(sourceName(c))
		if l == nil {
			continue
		}
		was = nil
		if o := a.was(c); o != nil {
			was = o.Comment
		}
		if err := a.comment("COLUMN "+table+"."+ident(l.name), was, c.Comment, l.comment); err != nil {
			return err
		}
	}
	for i := range a.shape.Constraints {
		c := &a.shape.Constraints[i]
		l := a.live.constraint(c.Name)
		if l == nil {
			continue
		}
		was = nil
		if o := a.oldConstraint(c); o != nil {
			was = o.Comment
		}
		if err := a.comment("CONSTRAINT "+ident(c.Name)+" ON "+table, was, c.Comment, l.comment); err != nil {
			return err
		}
	}
	for i := range a.shape.Indexes {
		x := &a.shape.Indexes[i]
		l := a.live.index(x.Name)
		if l == nil {
			continue
		}
		was = nil
		if o := a.oldIndex(x); o != nil {
			was = o.Comment
		}
		if err := a.comment("INDEX "+ident(a.next.dest.Schema, x.Name), was, x.Comment, l.comment); err != nil {
			return err
		}
	}
	return nil
}

// comment sets one, if the source has changed it and the destination's is another.
func (d *ddl) comment(on string, was, now *string, live string) error {
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	if text(was) == text(now) || text(now) == live {
		return nil
	}
	value := "NULL"
	if now != nil {
		value = literal(*now)
	}
	return d.run(decode.Name{Schema: on}, "setting the comment", "COMMENT ON "+on+" IS "+value)
}
