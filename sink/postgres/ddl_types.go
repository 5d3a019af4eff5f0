package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
)

// liveType is a type of the destination.
type liveType struct {
	kind        string // pg_type.typtype
	table       bool   // a table's row type
	notNull     bool
	def         *string
	comment     string
	labels      []string
	fields      []liveColumn
	constraints []liveConstraint
}

// types brings types to their shapes, those that others are made of first.
func (d *ddl) types() error {
	pending := make([]*decode.TypeShape, len(d.change.Types))
	for i := range d.change.Types {
		pending[i] = &d.change.Types[i]
	}
	for len(pending) > 0 {
		var later []*decode.TypeShape
		var first error
		for _, t := range pending {
			err := d.typ(t)
			var failed *DDLError
			if errors.As(err, &failed) && pgsession.SQLState(failed.Err) == "42704" {
				later, first = append(later, t), errors.Join(first, err)
				continue
			}
			if err != nil {
				return err
			}
		}
		if len(later) == len(pending) {
			return first
		}
		pending = later
	}
	return nil
}

func (d *ddl) typ(t *decode.TypeShape) error {
	p, err := d.books.get(typePage, t.OID)
	if err != nil {
		return err
	}
	if p != nil && d.at != 0 && d.at < p.until {
		return nil
	}
	live, err := d.liveType(t.Qualified())
	if err != nil {
		return err
	}
	if live == nil && p != nil && p.dest != t.Qualified() {
		if live, err = d.moveType(p.dest, t.Qualified()); err != nil {
			return err
		}
	}
	switch {
	case live == nil:
		err = d.createType(t)
		if err == nil {
			live, err = d.liveType(t.Qualified())
		}
		if err == nil && live == nil {
			return nil // it was not permitted: whether it is needed is seen later
		}
	case live.kind != t.Kind:
		err = &DDLError{Object: t.Qualified(), Action: "looking it up", Err: fmt.Errorf("the destination has another kind of type of this name"), Remedy: "rename or drop it, and start again"}
	case live.table:
		return nil
	case t.Kind == "e":
		err = d.alterEnum(t, p, live)
	case t.Kind == "c":
		err = d.alterComposite(t, p, live)
	case t.Kind == "d":
		err = d.alterDomain(t, p, live)
	}
	if err != nil {
		return err
	}
	var was *string
	if p != nil {
		was = p.typ.Comment
	}
	if err := d.comment(pick(t.Kind == "d", "DOMAIN ", "TYPE ")+identOf(t.Qualified()), was, t.Comment, live.comment); err != nil {
		return err
	}
	page := typeOf(t)
	if page.until = d.copied; page.until == 0 && p != nil { // a copy counts, also one of a source whose positions are lower
		page.until = p.until
	}
	return d.books.put(page)
}

// liveType looks a type up; nil if there is none.
func (d *ddl) liveType(name decode.Name) (*liveType, error) {
	wrap := func(err error) error {
		return fmt.Errorf("sink/postgres: schema change: looking up type %s: %w", name, err)
	}
	rows, err := query(d.ctx, d.pg, `SELECT t.oid, t.typtype, t.typrelid, t.typtype = 'c' AND c.relkind <> 'c', t.typnotnull, t.typdefault,
			coalesce(obj_description(t.oid, 'pg_type'), '')
		FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
		WHERE n.nspname = $1 AND t.typname = $2`, name.Schema, name.Name)
	if err != nil {
		return nil, wrap(err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	r := rows[0]
	t := &liveType{kind: string(r[1]), table: string(r[3]) == "t", notNull: string(r[4]) == "t", comment: string(r[6])}
	if r[5] != nil {
		def := string(r[5])
		t.def = &def
	}
	oid := string(r[0])
	switch t.kind {
	case "e":
		if rows, err = query(d.ctx, d.pg, "SELECT enumlabel FROM pg_enum WHERE enumtypid = $1 ORDER BY enumsortorder", oid); err != nil {
			return nil, wrap(err)
		}
		for _, r := range rows {
			t.labels = append(t.labels, string(r[0]))
		}
	case "c":
		if rows, err = query(d.ctx, d.pg, `SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
			WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, string(r[2])); err != nil {
			return nil, wrap(err)
		}
		for _, r := range rows {
			t.fields = append(t.fields, liveColumn{name: string(r[0]), typ: string(r[1])})
		}
	case "d":
		if rows, err = query(d.ctx, d.pg, "SELECT conname, contype, pg_get_constraintdef(oid) FROM pg_constraint WHERE contypid = $1 AND contype = 'c'", oid); err != nil {
			return nil, wrap(err)
		}
		for _, r := range rows {
			t.constraints = append(t.constraints, liveConstraint{name: string(r[0]), kind: string(r[1]), definition: string(r[2])})
		}
	}
	return t, nil
}

// moveType renames a type, and moves it to another schema.
func (d *ddl) moveType(from, to decode.Name) (*liveType, error) {
	was, err := d.liveType(from)
	if err != nil || was == nil {
		return nil, err
	}
	if from.Schema != to.Schema {
		if err := d.makeSchema(to.Schema); err != nil {
			return nil, err
		}
		if err := d.run(from, "moving the type to schema "+to.Schema, "ALTER TYPE "+identOf(from)+" SET SCHEMA "+ident(to.Schema)); err != nil {
			return nil, err
		}
		d.left = append(d.left, from.Schema)
		from.Schema = to.Schema
	}
	if from.Name != to.Name {
		if err := d.run(from, "renaming the type to "+to.Name, "ALTER TYPE "+identOf(from)+" RENAME TO "+ident(to.Name)); err != nil {
			return nil, err
		}
	}
	return d.liveType(to)
}

// createType makes a type. That it is not permitted is told when something needs the type: a destination may have
// text for it.
func (d *ddl) createType(t *decode.TypeShape) error {
	name := identOf(t.Qualified())
	var sql string
	switch t.Kind {
	case "e":
		labels := make([]string, len(t.Labels))
		for i, l := range t.Labels {
			labels[i] = literal(l)
		}
		sql = "CREATE TYPE " + name + " AS ENUM (" + strings.Join(labels, ", ") + ")"
	case "c":
		fields := make([]string, len(t.Fields))
		for i := range t.Fields {
			fields[i] = ident(t.Fields[i].Name) + " " + typeSQL(&t.Fields[i])
		}
		sql = "CREATE TYPE " + name + " AS (" + strings.Join(fields, ", ") + ")"
	case "d":
		sql = "CREATE DOMAIN " + name + " AS " + t.Base
		if t.Collation != nil {
			sql += " COLLATE " + identOf(*t.Collation)
		}
		if t.Default != nil {
			sql += " DEFAULT " + *t.Default
		}
		sql += pick(t.NotNull, " NOT NULL", "")
		for _, c := range t.Constraints {
			if c.Kind == "c" && !strings.HasSuffix(c.Definition, " NOT VALID") {
				sql += " CONSTRAINT " + ident(c.Name) + " " + c.Definition
			}
		}
	case "r":
		sql = "CREATE TYPE " + name + " AS RANGE (SUBTYPE = " + t.Base
		if t.Collation != nil {
			sql += ", COLLATION = " + identOf(*t.Collation)
		}
		sql += ")"
	default:
		return nil
	}
	err := d.attempt(sql)
	if pgsession.SQLState(err) == "3F000" {
		if err := d.makeSchema(t.Schema); err != nil {
			return err
		}
		err = d.attempt(sql)
	}
	if pgsession.SQLState(err) == "42501" {
		d.leaveOut("type", t.Qualified().String(), "the role may not create it", sql, err)
		d.unmade = append(d.unmade, &DDLError{Object: t.Qualified(), Action: "creating the type", SQL: sql, Err: err, Remedy: d.rights(t.Qualified(), sql)})
		return nil
	}
	if err != nil {
		return d.fail(t.Qualified(), "creating the type", sql, err)
	}
	for _, c := range t.Constraints {
		if c.Kind == "c" && strings.HasSuffix(c.Definition, " NOT VALID") {
			if err := d.run(t.Qualified(), fmt.Sprintf("adding constraint %q", c.Name), "ALTER DOMAIN "+name+" ADD CONSTRAINT "+ident(c.Name)+" "+c.Definition); err != nil {
				return err
			}
		}
	}
	return nil
}

// alterComposite follows attributes by their numbers.
func (d *ddl) alterComposite(t *decode.TypeShape, p *page, live *liveType) error {
	has := func(name string) *liveColumn {
		i := slices.IndexFunc(live.fields, func(c liveColumn) bool { return c.name == name })
		if i < 0 {
			return nil
		}
		return &live.fields[i]
	}
	alter := func(action, what string) error {
		return d.run(t.Qualified(), action, "ALTER TYPE "+identOf(t.Qualified())+" "+what)
	}
	if p != nil {
		for i := range p.typ.Fields {
			o := &p.typ.Fields[i]
			if has(o.Name) == nil || slices.ContainsFunc(t.Fields, func(f decode.ColumnShape) bool { return oldColumn(p.typ.Fields, &f) == o }) {
				continue
			}
			if err := alter(fmt.Sprintf("dropping attribute %q", o.Name), "DROP ATTRIBUTE "+ident(o.Name)); err != nil {
				return err
			}
		}
	}
	for i := range t.Fields {
		f := &t.Fields[i]
		var o *decode.ColumnShape
		if p != nil {
			o = oldColumn(p.typ.Fields, f)
		}
		l := has(f.Name)
		if l == nil && o != nil && o.Name != f.Name && has(o.Name) != nil {
			if err := alter(fmt.Sprintf("renaming attribute %q to %q", o.Name, f.Name), "RENAME ATTRIBUTE "+ident(o.Name)+" TO "+ident(f.Name)); err != nil {
				return err
			}
			l = has(o.Name)
		}
		if l == nil {
			for _, other := range live.fields {
				if p == nil && other.typ == f.Type && !slices.ContainsFunc(t.Fields, func(g decode.ColumnShape) bool { return g.Name == other.name }) {
					return &DDLError{Object: t.Qualified(), Action: fmt.Sprintf("adding attribute %q", f.Name),
						Err: fmt.Errorf("it can't be told from a new name for %q", other.name), Remedy: "rename or add the attribute by hand, and start again"}
				}
			}
			if err := alter(fmt.Sprintf("adding attribute %q", f.Name), "ADD ATTRIBUTE "+ident(f.Name)+" "+typeSQL(f)); err != nil {
				return err
			}
			continue
		}
		if l.typ != f.Type && o != nil && o.Type != f.Type {
			if err := alter(fmt.Sprintf("changing the type of attribute %q", f.Name), "ALTER ATTRIBUTE "+ident(f.Name)+" TYPE "+typeSQL(f)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *ddl) alterDomain(t *decode.TypeShape, p *page, live *liveType) error {
	alter := func(action, what string) error {
		return d.run(t.Qualified(), action, "ALTER DOMAIN "+identOf(t.Qualified())+" "+what)
	}
	has := func(name string) *liveConstraint {
		i := slices.IndexFunc(live.constraints, func(c liveConstraint) bool { return c.name == name })
		if i < 0 {
			return nil
		}
		return &live.constraints[i]
	}
	if p != nil && !sameText(p.typ.Default, t.Default) && !sameText(live.def, t.Default) {
		what := "DROP DEFAULT"
		if t.Default != nil {
			what = "SET DEFAULT " + *t.Default
		}
		if err := alter("setting the default", what); err != nil {
			return err
		}
	}
	if p != nil && p.typ.NotNull != t.NotNull && live.notNull != t.NotNull {
		if err := alter("setting NOT NULL", pick(t.NotNull, "SET NOT NULL", "DROP NOT NULL")); err != nil {
			return err
		}
	}
	if p != nil {
		for i := range p.typ.Constraints {
			o := &p.typ.Constraints[i]
			if o.Kind != "c" || has(o.Name) == nil || slices.ContainsFunc(t.Constraints, func(c decode.ConstraintShape) bool { return c.OID == o.OID || c.Name == o.Name }) {
				continue
			}
			if err := alter(fmt.Sprintf("dropping constraint %q", o.Name), "DROP CONSTRAINT "+ident(o.Name)); err != nil {
				return err
			}
		}
	}
	for i := range t.Constraints {
		c := &t.Constraints[i]
		if c.Kind != "c" {
			continue
		}
		var o *decode.ConstraintShape
		if p != nil {
			o = oldConstraint(p.typ.Constraints, c)
		}
		l := has(c.Name)
		var err error
		switch {
		case o != nil && o.Name != c.Name && l == nil && has(o.Name) != nil:
			err = alter(fmt.Sprintf("renaming constraint %q", o.Name), "RENAME CONSTRAINT "+ident(o.Name)+" TO "+ident(c.Name))
		case l == nil && o == nil:
			err = alter(fmt.Sprintf("adding constraint %q", c.Name), "ADD CONSTRAINT "+ident(c.Name)+" "+c.Definition)
		case l != nil && strings.HasSuffix(l.definition, " NOT VALID") && !strings.HasSuffix(c.Definition, " NOT VALID"):
			err = alter(fmt.Sprintf("validating constraint %q", c.Name), "VALIDATE CONSTRAINT "+ident(c.Name))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
