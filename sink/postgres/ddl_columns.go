package postgres

import (
	"fmt"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
)

// create makes the table, with the source's names of columns.
func (a *altering) create() error {
	if err := a.makeSchema(a.shape.Schema); err != nil {
		return err
	}
	var columns []string
	var behind []*decode.ColumnShape
	for i := range a.shape.Columns {
		c := &a.shape.Columns[i]
		if c.Generated != "" && len(a.shape.LeftOut) > 0 { // it may be made of what is not there
			behind = append(behind, c)
			continue
		}
		def, err := a.expression(c)
		if err != nil {
			return err
		}
		columns = append(columns, ident(sourceName(c))+" "+typeSQL(c)+a.filling(c, def)+a.notNull(c))
	}
	sql := "CREATE TABLE " + identOf(a.next.dest) + " (" + strings.Join(columns, ", ") + ")"
	if a.shape.Kind == "p" && a.shape.PartitionKey != "" {
		sql += " PARTITION BY " + a.shape.PartitionKey
	}
	if len(a.shape.Options) > 0 {
		options := make([]string, len(a.shape.Options))
		for i, o := range a.shape.Options {
			options[i] = optionSQL(o)
		}
		sql += " WITH (" + strings.Join(options, ", ") + ")"
	}
	if err := a.run(a.next.dest, "creating it", sql); err != nil {
		return err
	}
	a.made = true
	a.sink.asides.note(a.shape.OID, a.next.dest, a.next.dest == a.asideName(a.shape.OID))
	if err := a.look(); err != nil {
		return err
	}
	for i := range a.shape.Columns {
		if err := a.ownSequence(&a.shape.Columns[i]); err != nil {
			return err
		}
	}
	for _, c := range behind {
		if err := a.addColumn(c); err != nil {
			return err
		}
	}
	return nil
}

func typeSQL(c *decode.ColumnShape) string {
	if c.Collation == nil {
		return c.Type
	}
	return c.Type + " COLLATE " + identOf(*c.Collation)
}

// filling is what fills a column: a default, an identity or an expression.
func (a *altering) filling(c *decode.ColumnShape, def string) string {
	switch {
	case c.Generated == "v" && serverVersion(a.ddl) >= 18:
		return " GENERATED ALWAYS AS (" + def + ") VIRTUAL"
	case c.Generated != "":
		return " GENERATED ALWAYS AS (" + def + ") STORED"
	case c.Identity != "":
		return " GENERATED " + pick(c.Identity == "a", "ALWAYS", "BY DEFAULT") + " AS IDENTITY"
	case def != "":
		return " DEFAULT " + def
	}
	return ""
}

func serverVersion(d *ddl) int { return pgsession.Version(d.pg) / 10000 }

// expression gives a column's default, for which the sequence that it takes values from is made if need be:
// in the table's schema, if the source's schema isn't there.
func (a *altering) expression(c *decode.ColumnShape) (string, error) {
	if c.Default == nil {
		return "", nil
	}
	seq, ok := parseNextval(*c.Default)
	if !ok || c.Generated != "" {
		return *c.Default, nil
	}
	rows, err := query(a.ctx, a.pg, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'S')`, seq.Schema, seq.Name)
	if err != nil {
		return "", a.fail(a.next.dest, "looking for sequence "+seq.String(), "", err)
	}
	if string(rows[0][0]) == "f" {
		if a.next.source.Schema == seq.Schema {
			seq.Schema = a.next.dest.Schema // they move along with a routed table
		}
		kind := map[string]string{"smallint": " AS smallint", "integer": " AS integer"}[c.Type]
		if err := a.run(seq, "creating the sequence", "CREATE SEQUENCE IF NOT EXISTS "+identOf(seq)+kind); err != nil {
			return "", err
		}
	}
	return "nextval(" + literal(identOf(seq)) + "::regclass)", nil
}

// ownSequence makes the sequence of a serial column go with the column, if nothing else owns it.
func (a *altering) ownSequence(c *decode.ColumnShape) error {
	l := a.live.column(sourceName(c))
	if l == nil || l.def == nil {
		return nil
	}
	seq, ok := parseNextval(*l.def)
	if !ok || seq.Schema != a.next.dest.Schema {
		return nil
	}
	rows, err := query(a.ctx, a.pg, `SELECT c.relowner = t.relowner AND NOT EXISTS (SELECT FROM pg_depend
			WHERE classid = 'pg_class'::regclass AND objid = c.oid AND refclassid = 'pg_class'::regclass AND deptype IN ('a', 'i'))
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_class t ON t.oid = $3
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'S'`, seq.Schema, seq.Name, a.live.oid)
	if err != nil {
		return a.fail(a.next.dest, "looking for sequence "+seq.String(), "", err)
	}
	if len(rows) != 1 || string(rows[0][0]) == "f" {
		return nil
	}
	return a.run(seq, "giving the sequence to its column", "ALTER SEQUENCE "+identOf(seq)+" OWNED BY "+a.live.sql()+"."+ident(l.name))
}

// column adds or alters one.
func (a *altering) column(c *decode.ColumnShape) error {
	name := sourceName(c)
	l, o := a.live.column(name), a.was(c)
	if l == nil {
		if !c.Local && len(a.live.parents) > 0 {
			return nil // its parent's brings it
		}
		return a.addColumn(c)
	}
	retyped, err := a.retype(c, o, l)
	if err != nil || o == nil {
		return err
	}
	alter := func(action, what string) error {
		return a.alter(fmt.Sprintf("%s of column %q", action, c.Name), "ALTER COLUMN "+ident(name)+" "+what)
	}
	if o.Generated != c.Generated || c.Generated != "" && !sameText(o.Default, c.Default) {
		done, err := a.regenerate(c, l)
		if err != nil || done {
			return err
		}
	}
	if o.Identity != "" && c.Identity == "" && l.identity != "" {
		if err := alter("dropping the identity", "DROP IDENTITY"); err != nil {
			return err
		}
	}
	if c.Generated == "" && (retyped || !sameText(o.Default, c.Default) || o.Generated != "") {
		if err := a.setDefault(c, l, retyped); err != nil {
			return err
		}
	}
	if c.NotNull && !o.NotNull && !l.notNull && !a.lax(func(p *decode.ColumnShape) bool { return !p.NotNull }, c.Name) {
		if err := alter("setting NOT NULL", "SET NOT NULL"); err != nil {
			return err
		}
	}
	if c.Identity != "" && c.Identity != o.Identity && l.identity != c.Identity {
		what := "ADD GENERATED " + pick(c.Identity == "a", "ALWAYS", "BY DEFAULT") + " AS IDENTITY"
		if l.identity != "" {
			what = "SET GENERATED " + pick(c.Identity == "a", "ALWAYS", "BY DEFAULT")
		}
		if err := alter("setting the identity", what); err != nil {
			return err
		}
	}
	if !c.NotNull && o.NotNull && l.notNull {
		return alter("dropping NOT NULL", "DROP NOT NULL")
	}
	return nil
}

func sameText(a, b *string) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// lax reports whether another source table that goes into the same one has a column of which that is true, or
// does not have it.
func (a *altering) lax(of func(*decode.ColumnShape) bool, column string) bool {
	for _, p := range a.shared {
		found := false
		for i := range p.table.Columns {
			if c := &p.table.Columns[i]; c.Name == column {
				found = true
				if of(c) {
					return true
				}
			}
		}
		if !found {
			return true
		}
	}
	return false
}

// setDefault gives a column the source's default, or none.
func (a *altering) setDefault(c *decode.ColumnShape, l *liveColumn, dropped bool) error {
	def, err := a.expression(c)
	if err != nil {
		return err
	}
	switch {
	case def == "" && (l.def == nil || dropped), def != "" && l.def != nil && *l.def == def && !dropped:
		return nil
	case def == "":
		return a.alter(fmt.Sprintf("dropping the default of column %q", c.Name), "ALTER COLUMN "+ident(l.name)+" DROP DEFAULT")
	}
	if err := a.alter(fmt.Sprintf("setting the default of column %q", c.Name), "ALTER COLUMN "+ident(l.name)+" SET DEFAULT "+def); err != nil {
		return err
	}
	if _, serial := parseNextval(def); !serial {
		return nil
	}
	if err := a.look(); err != nil {
		return err
	}
	return a.ownSequence(c)
}

// addColumn adds one. Rows that are there get the constant that the source gave to its own; the default comes
// behind it. Without a constant they get none, unless the source wrote them anew: then any value does, for a
// fresh copy brings the source's.
func (a *altering) addColumn(c *decode.ColumnShape) error {
	name, action := ident(sourceName(c)), fmt.Sprintf("adding column %q", c.Name)
	def, err := a.expression(c)
	if err != nil {
		return err
	}
	missing := a.missing(c)
	filling, later := a.filling(c, def), ""
	if c.Generated == "" && c.Identity == "" {
		later = def
		switch {
		case missing != nil:
			filling = " DEFAULT " + literal(*missing) + "::" + c.Type
		case a.rewritten() && def != "":
			later = ""
		default:
			filling = ""
		}
	}
	add := func(notNull bool) string {
		return "ALTER TABLE " + a.live.sql() + " ADD COLUMN " + name + " " + typeSQL(c) + filling + pick(notNull, " NOT NULL", "")
	}
	if c.Generated != "" && len(a.shape.LeftOut) > 0 {
		return a.add("generated column", a.next.dest.String()+"."+c.Name, action, add(c.NotNull))
	}
	if c.NotNull && filling == "" && (a.rewritten() || len(a.shared) > 0) {
		err = a.attempt(add(true))
		if pgsession.SQLState(err) == "23502" {
			err = a.attempt(add(false))
		}
		if err != nil {
			return a.fail(a.next.dest, action, add(true), err)
		}
	} else if err := a.run(a.next.dest, action, add(c.NotNull)); err != nil {
		return err
	}
	if missing != nil || later != "" {
		what := "DROP DEFAULT"
		if later != "" {
			what = "SET DEFAULT " + later
		}
		if err := a.alter(fmt.Sprintf("setting the default of column %q", c.Name), "ALTER COLUMN "+name+" "+what); err != nil {
			return err
		}
	}
	if err := a.look(); err != nil {
		return err
	}
	return a.ownSequence(c)
}

// missing gives the value that rows older than a column have. Of a partitioned table PostgreSQL keeps none: its
// partitions, which the same command has altered, have it.
func (a *altering) missing(c *decode.ColumnShape) *string {
	if c.Missing != nil || a.shape.Kind != "p" {
		return c.Missing
	}
	for i := range a.change.Tables {
		t := &a.change.Tables[i]
		for _, n := range t.Ancestors {
			if n != a.next.source {
				continue
			}
			for k := range t.Columns {
				if m := &t.Columns[k]; sourceName(m) == sourceName(c) && m.Missing != nil {
					return m.Missing
				}
			}
		}
	}
	return nil
}

// retype gives a column its new type. One that somebody made otherwise at the destination stays as long as it holds
// every value; it reports whether it has altered the column, whose default is dropped then.
func (a *altering) retype(c, o *decode.ColumnShape, l *liveColumn) (bool, error) {
	action := fmt.Sprintf("changing the type of column %q from %s to %s", c.Name, l.typ, c.Type)
	if l.typ == c.Type || o != nil && o.Type == c.Type || l.inherited && !c.Local {
		return false, nil
	}
	if o == nil || l.typ != o.Type {
		why, err := a.holds(a.live, l, c.Type)
		if err != nil || why == "" {
			return false, err
		}
		if o == nil {
			return false, &DDLError{Object: a.next.dest, Action: action, Err: ErrTypes,
				Remedy: fmt.Sprintf("the column was there already, and can't hold every value (%s): ALTER TABLE %s ALTER COLUMN %s TYPE %s by hand, and start again", why, a.live.sql(), ident(l.name), c.Type)}
		}
	}
	column := "ALTER COLUMN " + ident(l.name)
	sql := "ALTER TABLE " + a.live.sql() + " "
	if l.generated != "" {
		return false, a.run(a.next.dest, action, sql+column+" TYPE "+typeSQL(c))
	}
	if l.def != nil { // it may not be castable where the values are
		sql += column + " DROP DEFAULT, "
	}
	sql += column + " TYPE " + typeSQL(c) + " USING "
	cast := sql + ident(l.name) + "::" + c.Type
	if !a.rewritten() {
		return true, a.run(a.next.dest, action, cast)
	}
	err := a.attempt(cast)
	if err == nil || !unlikeCast(err) {
		if err != nil {
			err = a.fail(a.next.dest, action, cast, err)
		}
		return true, err
	}
	if len(a.shared) > 0 {
		return false, &DDLError{Object: a.next.dest, Action: action, SQL: cast, Err: err,
			Remedy: fmt.Sprintf("other tables of this or other sources go into it too, so it isn't emptied for a fresh copy: ALTER COLUMN %s TYPE %s USING an expression that holds for all rows, by hand, and start again", ident(l.name), c.Type)}
	}
	if keys := a.keysOf(a.next.dest); keys != nil {
		return false, a.fail(a.next.dest, action, cast, err) // rows of others are in it
	}
	// The source did it by an expression that isn't known: the rows come afresh.
	if follows, ferr := a.copyFollows(); ferr != nil {
		return false, ferr
	} else if !follows || a.live.kind == "p" && a.shape.Kind != "p" { // its other partitions' rows stay
		return false, a.fail(a.next.dest, action, cast, err)
	}
	if err := a.empty(a.next.dest, a.live.oid, err); err != nil {
		return false, err
	}
	return true, a.run(a.next.dest, action, sql+"NULL::"+c.Type)
}

// unlikeCast reports whether a cast was refused because of the values, or for there is none.
func unlikeCast(err error) bool {
	code := pgsession.SQLState(err)
	return strings.HasPrefix(code, "22") || strings.HasPrefix(code, "23") || code == "42846" || code == "42804"
}

// regenerate follows a column that is generated otherwise than it was. It reports whether that was all there is
// to do.
func (a *altering) regenerate(c *decode.ColumnShape, l *liveColumn) (bool, error) {
	column := "ALTER COLUMN " + ident(l.name)
	switch {
	case c.Generated == "" && l.generated != "":
		return false, a.alter(fmt.Sprintf("dropping the expression of column %q", c.Name), column+" DROP EXPRESSION")
	case c.Generated == "" || c.Default == nil || l.def != nil && *l.def == *c.Default && l.generated != "":
		return false, nil
	case l.generated == "":
		return false, &DDLError{Object: a.next.dest, Action: fmt.Sprintf("generating column %q", c.Name), Err: ErrGenerated,
			Remedy: "the destination has it as an ordinary column: drop it by hand, and start again"}
	case serverVersion(a.ddl) >= 17:
		return true, a.alter(fmt.Sprintf("changing the expression of column %q", c.Name), column+" SET EXPRESSION AS ("+*c.Default+")")
	}
	if err := a.alter(fmt.Sprintf("dropping column %q, which is generated otherwise now", c.Name), "DROP COLUMN "+ident(l.name)); err != nil {
		return true, err
	}
	if err := a.look(); err != nil {
		return true, err
	}
	return true, a.addColumn(c)
}
