package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
)

// oldConstraint finds one by its OID, or by its name: a new type of a column gives its constraints new OIDs.
func (a *altering) oldConstraint(c *decode.ConstraintShape) *decode.ConstraintShape {
	if a.page == nil {
		return nil
	}
	return oldConstraint(a.page.table.Constraints, c)
}

func oldConstraint(list []decode.ConstraintShape, c *decode.ConstraintShape) *decode.ConstraintShape {
	i := slices.IndexFunc(list, func(o decode.ConstraintShape) bool { return o.OID == c.OID })
	if i < 0 {
		i = slices.IndexFunc(list, func(o decode.ConstraintShape) bool { return o.Name == c.Name })
	}
	if i < 0 {
		return nil
	}
	return &list[i]
}

func (a *altering) oldIndex(x *decode.IndexShape) *decode.IndexShape {
	if a.page == nil {
		return nil
	}
	list := a.page.table.Indexes
	i := slices.IndexFunc(list, func(o decode.IndexShape) bool { return o.OID == x.OID })
	if i < 0 {
		i = slices.IndexFunc(list, func(o decode.IndexShape) bool { return o.Name == x.Name })
	}
	if i < 0 {
		return nil
	}
	return &list[i]
}

// keys makes what the source has made: keys, checks and indexes. What the source has dropped came before, by
// name (dropAll); what is there and not known to the books is the destination's own.
func (a *altering) keys() error {
	for i := range a.shape.Constraints {
		switch c := &a.shape.Constraints[i]; c.Kind {
		case "p", "u", "x", "c":
			if err := a.constraint(c); err != nil {
				return err
			}
		}
	}
	for i := range a.shape.Indexes {
		if err := a.index(&a.shape.Indexes[i]); err != nil {
			return err
		}
	}
	return nil
}

// foreignKeys comes when all tables of the change have their keys.
func (a *altering) foreignKeys() error {
	for i := range a.shape.Constraints {
		if c := &a.shape.Constraints[i]; c.Kind == "f" {
			if err := a.constraint(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// hidden reports whether something is about columns that rules leave out.
func (a *altering) hidden(columns []int16) bool {
	return len(a.shape.LeftOut) > 0 && slices.ContainsFunc(columns, func(n int16) bool {
		return n > 0 && !slices.ContainsFunc(a.shape.Columns, func(c decode.ColumnShape) bool { return c.Num == n })
	})
}

func (a *altering) constraint(c *decode.ConstraintShape) error {
	const notValid = " NOT VALID"
	if a.hidden(c.Columns) {
		return nil
	}
	o := a.oldConstraint(c)
	if o == nil {
		if a.hasConstraint(c) {
			return nil
		}
		return a.addConstraint(c)
	}
	if was := a.live.constraint(o.Name); o.Name != c.Name && was != nil && !was.inherited && a.live.constraint(c.Name) == nil {
		if err := a.alter(fmt.Sprintf("renaming constraint %q", o.Name), "RENAME CONSTRAINT "+ident(o.Name)+" TO "+ident(c.Name)); err != nil {
			return err
		}
		if err := a.look(); err != nil {
			return err
		}
	}
	l := a.live.constraint(c.Name)
	switch {
	case l == nil, o.Definition == c.Definition, l.definition == c.Definition:
		return nil
	case strings.TrimSuffix(l.definition, notValid) == c.Definition, strings.TrimSuffix(o.Definition, notValid) == c.Definition && strings.HasSuffix(l.definition, notValid):
		return a.alter(fmt.Sprintf("validating constraint %q", c.Name), "VALIDATE CONSTRAINT "+ident(c.Name))
	case c.Kind == "f" && !l.inherited: // when it is checked has changed
		if err := a.alter(fmt.Sprintf("dropping constraint %q to make it anew", c.Name), "DROP CONSTRAINT "+ident(c.Name)); err != nil {
			return err
		}
		return a.addConstraint(c)
	}
	return nil
}

// hasConstraint reports whether the destination has a constraint: by its name; by what it says if it comes from a
// parent, where the destination gave it a name; one primary key is as good as another on the same columns.
func (a *altering) hasConstraint(c *decode.ConstraintShape) bool {
	return a.live.constraint(c.Name) != nil || slices.ContainsFunc(a.live.constraints, func(l liveConstraint) bool {
		return l.kind == c.Kind && l.definition == c.Definition && (l.inherited || c.Kind == "p")
	})
}

func (a *altering) addConstraint(c *decode.ConstraintShape) error {
	if c.Kind == "f" {
		return a.addForeignKey(c)
	}
	action := fmt.Sprintf("adding constraint %q", c.Name)
	what := "ADD CONSTRAINT " + ident(c.Name) + " " + c.Definition
	if x := a.turned(c); x != "" {
		what = x
	} else if l := a.live.index(c.Name); l != nil && !l.owned && a.page != nil &&
		slices.ContainsFunc(a.page.table.Indexes, func(o decode.IndexShape) bool { return o.Name == c.Name }) {
		if err := a.run(a.next.dest, fmt.Sprintf("dropping index %q, whose name a constraint gets", c.Name), "DROP INDEX "+ident(a.next.dest.Schema, c.Name)); err != nil {
			return err
		}
	}
	return a.add("constraint", c.Name, action, "ALTER TABLE "+a.live.sql()+" "+what)
}

// add runs what may need columns that rules leave out.
func (a *altering) add(kind, name, action, sql string) error {
	if len(a.shape.LeftOut) == 0 {
		if err := a.run(a.next.dest, action, sql); err != nil {
			return err
		}
		return a.look()
	}
	err := a.attempt(sql)
	if pgsession.SQLState(err) == "42703" {
		a.leaveOut(kind, name, "it needs columns that rules leave out", sql, err)
		return nil
	}
	if err != nil {
		return a.fail(a.next.dest, action, sql, err)
	}
	return a.look()
}

// turned gives the SQL that makes a constraint of an index, as ADD CONSTRAINT … USING INDEX did at the source: the
// index is not among the table's any more.
func (a *altering) turned(c *decode.ConstraintShape) string {
	if a.page == nil || a.live.kind == "p" || c.Kind != "p" && c.Kind != "u" {
		return ""
	}
	keyword := pick(c.Kind == "p", "PRIMARY KEY", "UNIQUE")
	for _, o := range a.page.table.Indexes {
		x, ok := parseIndex(o.Definition)
		l := a.live.index(o.Name)
		if !ok || !x.unique || l == nil || l.owned || slices.ContainsFunc(a.shape.Indexes, func(n decode.IndexShape) bool { return n.OID == o.OID }) {
			continue
		}
		if columns, ok := strings.CutPrefix(x.rest, "btree "); ok {
			if rest, ok := strings.CutPrefix(c.Definition, keyword+" "+columns); ok {
				return "ADD CONSTRAINT " + ident(c.Name) + " " + keyword + " USING INDEX " + ident(o.Name) + rest
			}
		}
	}
	return ""
}

// addForeignKey adds one, where it can hold: without WithReplicaRole it would fire; its other table has to be there;
// rules may have filtered the rows that it needs.
func (a *altering) addForeignKey(c *decode.ConstraintShape) error {
	action := fmt.Sprintf("adding constraint %q", c.Name)
	k, ok := parseForeignKey(c.Definition)
	if !ok {
		return &DDLError{Object: a.next.dest, Action: action, SQL: c.Definition, Err: fmt.Errorf("its definition can't be read"), Remedy: "add it by hand, and start again"}
	}
	dest, err := a.destOf(k.other)
	if err != nil {
		return err
	}
	sql := "ALTER TABLE " + a.live.sql() + " ADD CONSTRAINT " + ident(c.Name) + " " + k.sql(dest)
	if !a.sink.config.replica {
		a.leaveOut("fk constraint", c.Name, "without WithReplicaRole it would fire", sql, nil)
		return nil
	}
	other, err := a.ddl.live(dest)
	if err != nil {
		return err
	}
	if other == nil {
		a.leaveOut("fk constraint", c.Name, "the destination does not have "+dest.String(), sql, nil)
		return nil
	}
	restore, err := a.disguiseOther(k.other, other)
	if err != nil {
		return err
	}
	err = a.attempt(sql)
	if pgsession.SQLState(err) == "23503" && a.copied != 0 && a.attempt(strings.TrimSuffix(sql, " NOT VALID")+" NOT VALID") == nil {
		err = nil // the rows come with the copy
	}
	switch {
	case pgsession.SQLState(err) == "23503":
		a.leaveOut("fk constraint", c.Name, "the destination's rows don't hold it", sql, err)
	case err != nil:
		waits, werr := a.waits(dest)
		if werr != nil {
			return werr
		}
		if code := pgsession.SQLState(err); !waits || code != "42703" && code != "42830" && code != "42804" { // column, key, type
			return a.fail(a.next.dest, action, sql, err)
		}
		a.leaveOut("fk constraint", c.Name, dest.String()+" waits for its fresh copy, which makes it what the key needs", sql, err)
	default:
		a.notLeftOut(sql)
	}
	if restore != nil {
		if err := restore(); err != nil {
			return err
		}
	}
	return a.look()
}

// tie adds foreign keys of other tables to one that is new, or has got its name: they were left out while the destination
// did not have it, since a copy had brought their tables ahead of it, or while it waited for its own.
func (a *altering) tie() error {
	if !a.made && !a.moved && a.copied == 0 {
		return nil
	}
	pages, err := a.books.pages("kind = 'table' AND shape @> $3::jsonb", `{"constraints": [{"kind": "f"}]}`)
	if err != nil {
		return err
	}
	for _, p := range pages {
		if slices.ContainsFunc(a.change.Tables, func(t decode.TableShape) bool { return t.OID == p.oid }) {
			continue // it has been seen to
		}
		for i := range p.table.Constraints {
			c := &p.table.Constraints[i]
			if k, ok := parseForeignKey(c.Definition); c.Kind != "f" || !ok || k.other != a.next.source {
				continue
			}
			other := &altering{ddl: a.ddl, shape: p.table, page: p, next: p}
			if err := other.look(); err != nil {
				return err
			}
			if other.live == nil || other.live.constraint(c.Name) != nil || other.hidden(c.Columns) {
				continue
			}
			for _, step := range []func() error{other.disguise, func() error { return other.addForeignKey(c) }, other.restore} {
				if err := step(); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// disguiseOther gives routed columns of a table that the change is not about their source names, and says how
// to undo that; nil if there is nothing to undo.
func (a *altering) disguiseOther(source decode.Name, live *liveTable) (func() error, error) {
	for i := range a.change.Tables {
		if tableOf(&a.change.Tables[i]).source == source {
			return nil, nil // disguised already
		}
	}
	p, err := a.books.called(tablePage, source)
	if err != nil || p == nil {
		return nil, err
	}
	if !slices.ContainsFunc(p.table.Columns, func(c decode.ColumnShape) bool { return c.Source != "" && c.Source != c.Name }) {
		return nil, nil
	}
	other := &altering{ddl: a.ddl, shape: p.table, next: p, live: live}
	return other.restore, other.disguise()
}

// destOf gives the destination of a source table.
func (d *ddl) destOf(source decode.Name) (decode.Name, error) {
	for i := range d.change.Tables {
		if p := tableOf(&d.change.Tables[i]); p.source == source {
			return p.dest, nil
		}
	}
	p, err := d.books.called(tablePage, source)
	if err != nil || p == nil {
		return source, err
	}
	return p.dest, nil
}

// index makes one that the source has made, or renames it.
func (a *altering) index(x *decode.IndexShape) error {
	// That of a partitioned table is not valid as long as parts of it are missing, which are attached one by one.
	only := !x.Valid && a.shape.Kind == "p" && a.live.kind == "p"
	if !x.Valid && !only || a.hidden(x.Columns) {
		return nil // it comes again when it is valid
	}
	o := a.oldIndex(x)
	if o != nil && (o.Valid || only) {
		if was := a.live.index(o.Name); o.Name == x.Name || was == nil || was.owned || a.live.index(x.Name) != nil {
			return a.attachIndex(x, o)
		}
		if err := a.run(a.next.dest, fmt.Sprintf("renaming index %q", o.Name), "ALTER INDEX "+ident(a.next.dest.Schema, o.Name)+" RENAME TO "+ident(x.Name)); err != nil {
			return err
		}
		return a.look()
	}
	if a.live.index(x.Name) != nil {
		return a.attachIndex(x, o)
	}
	action := fmt.Sprintf("creating index %q", x.Name)
	text, ok := parseIndex(x.Definition)
	if !ok {
		return &DDLError{Object: a.next.dest, Action: action, SQL: x.Definition, Err: fmt.Errorf("its definition can't be read"), Remedy: "create it by hand, and start again"}
	}
	if x.Parent != nil && slices.ContainsFunc(a.live.indexes, func(l liveIndex) bool {
		t, ok := parseIndex(l.definition)
		return ok && t == text && l.inherited
	}) {
		return nil // the parent's brought it, under a name of its own
	}
	if err := a.add("index", x.Name, action, text.sql(x.Name, a.next.dest, only)); err != nil {
		return err
	}
	return a.attachIndex(x, nil)
}

// attachIndex makes an index a part of its parent's, as it has become at the source.
func (a *altering) attachIndex(x, was *decode.IndexShape) error {
	l := a.live.index(x.Name)
	if x.Parent == nil || was != nil && was.Parent != nil || l == nil || l.owned || l.inherited || len(a.shape.Parents) != 1 {
		return nil
	}
	dest, err := a.destOf(a.shape.Parents[0])
	if err != nil {
		return err
	}
	parent, err := a.ddl.live(dest)
	if err != nil || parent == nil || !slices.Contains(a.live.parents, parent.oid) || parent.index(x.Parent.Name) == nil {
		return err
	}
	err = a.run(a.next.dest, fmt.Sprintf("attaching index %q", x.Name), "ALTER INDEX "+ident(dest.Schema, x.Parent.Name)+" ATTACH PARTITION "+ident(a.next.dest.Schema, x.Name))
	if err != nil {
		return err
	}
	return a.look()
}

// attach makes the table a partition, or lets it inherit, as it does at the source.
func (a *altering) attach() error {
	if !a.made && a.page == nil {
		return nil // how the destination is laid out is its own affair
	}
	if err := a.look(); err != nil || a.live == nil {
		return err
	}
	var before []decode.Name
	if a.page != nil && !a.made && !a.rebound() {
		before = a.page.table.Parents
	}
	for _, n := range a.shape.Parents {
		if slices.Contains(before, n) {
			continue
		}
		dest, err := a.destOf(n)
		if err != nil {
			return err
		}
		parent, err := a.ddl.live(dest)
		if err != nil {
			return err
		}
		switch {
		case dest == a.next.dest, parent != nil && slices.Contains(a.live.parents, parent.oid):
			continue
		case parent == nil, (parent.kind == "p") != (a.shape.Bound != ""):
			a.pass("the parent "+dest.String()+" of "+a.next.dest.String(), "the destination does not have it as such")
			continue
		case a.shape.Bound != "":
			err = a.run(dest, "attaching partition "+a.next.dest.String(), "ALTER TABLE "+parent.sql()+" ATTACH PARTITION "+a.live.sql()+" "+a.shape.Bound)
		default:
			err = a.alter("inheriting from "+dest.String(), "INHERIT "+parent.sql())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rebound reports whether a partition was detached and attached again with other bounds, which a copy tells at once.
func (a *altering) rebound() bool {
	return a.page.table.Bound != "" && a.shape.Bound != "" && a.page.table.Bound != a.shape.Bound
}

// detach undoes what the source has undone of that.
func (a *altering) detach() error {
	if a.page == nil || a.live == nil {
		return nil
	}
	for _, n := range a.page.table.Parents {
		if slices.Contains(a.shape.Parents, n) && !a.rebound() {
			continue
		}
		dest, err := a.destOf(n)
		if err != nil {
			return err
		}
		parent, err := a.ddl.live(dest)
		if err != nil {
			return err
		}
		if parent == nil || !slices.Contains(a.live.parents, parent.oid) {
			// It may have another name by now: a table has one parent, if it is a partition.
			if !a.live.partition || len(a.live.parents) != 1 || len(a.shape.Parents) > 0 {
				continue
			}
			if dest, err = a.nameOf(a.live.parents[0]); err != nil {
				return err
			}
		}
		if a.live.partition {
			err = a.run(dest, "detaching partition "+a.next.dest.String(), "ALTER TABLE "+identOf(dest)+" DETACH PARTITION "+a.live.sql())
		} else {
			err = a.alter("no longer inheriting from "+dest.String(), "NO INHERIT "+identOf(dest))
		}
		if err != nil {
			return err
		}
	}
	return a.look()
}

// nothingToDetach reports whether a change tells of nothing but tables that are no partitions here either.
func (s *Sink) nothingToDetach(ctx context.Context, ch *decode.SchemaChange) (bool, error) {
	if len(ch.Detached) == 0 || len(ch.Tables)+len(ch.Types)+len(ch.Schemas)+len(ch.Dropped) > 0 || ch.Failed != "" {
		return false, nil
	}
	d := s.newDDL(ctx, s.main.pg, s.start.Load(), ch)
	for _, oid := range ch.Detached {
		if p, err := d.books.get(tablePage, oid); err != nil || p != nil && p.table.Bound != "" {
			return false, err
		}
	}
	return true, nil
}

// letGo detaches partitions of which nothing else is told before their fresh copy, which attaches them again where
// the source has.
func (d *ddl) letGo() error {
	for _, oid := range d.change.Detached {
		p, err := d.books.get(tablePage, oid)
		if err != nil {
			return err
		}
		if p == nil || p.table.Bound == "" {
			continue
		}
		live, err := d.live(p.dest)
		if err != nil {
			return err
		}
		if live == nil || !live.partition || len(live.parents) != 1 {
			continue
		}
		if others, err := d.books.sharing(p); err != nil {
			return err
		} else if len(others) > 0 {
			continue
		}
		parent, err := d.nameOf(live.parents[0])
		if err != nil {
			return err
		}
		if err := d.run(parent, "detaching partition "+p.dest.String(), "ALTER TABLE "+identOf(parent)+" DETACH PARTITION "+live.sql()); err != nil {
			return err
		}
		p.table.Parents, p.table.Ancestors, p.table.Bound = nil, nil, ""
		if err := d.books.put(p); err != nil {
			return err
		}
	}
	return nil
}

// nameOf gives the name of one of the destination's tables.
func (d *ddl) nameOf(oid string) (decode.Name, error) {
	rows, err := query(d.ctx, d.pg, "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1", oid)
	if err == nil && len(rows) != 1 {
		err = fmt.Errorf("no table has OID %s", oid)
	}
	if err != nil {
		return decode.Name{}, fmt.Errorf("sink/postgres: schema change: looking up a table's name: %w", err)
	}
	return decode.Name{Schema: string(rows[0][0]), Name: string(rows[0][1])}, nil
}
