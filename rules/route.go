package rules

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
)

// Route gives a source table another name at the destination, and its columns if wanted. It runs behind
// all other rules, wherever it stands in their list; of several routes that mean a table the first one
// counts. It can't stand within Table or On. Types have to be the same on both sides.
//
// from is a name or pattern as in Table, to a name; without a schema, the table keeps the source's:
//
//	Route("public.users", "crm.customers", RenameColumn("id", "customer_id"))
//	Route("shop.*", "archive.*")             // * alone: as at the source
//
// With a group in parentheses from is a regular expression in Go's syntax (schema and table each, split
// at the dot outside parentheses), which has to match the whole name, and to may hold its groups:
//
//	Route("tenant_(.*)", "all.$1", DropTruncate())       // public.tenant_users → all.users
//	Route("(tenant_.*).(.*)", "all.$2", DropTruncate())  // tenant_7.users → all.users
//
// A partition is meant by its own name and by those of the tables above it: Route("users", …) takes all
// partitions of users into one table.
//
// A route that may take several tables into one (a regular expression, a wildcard whose to has none, a
// partitioned table) has to say what a TRUNCATE of one of them means, by Only, PassTruncate or
// DropTruncate: otherwise it is an error at start, or when the first such table is seen.
func Route(from, to string, opts ...RouteOption) Rule {
	r := &routeRule{from: from, to: to}
	for _, o := range opts {
		o.route(r)
	}
	r.err = r.parse()
	return r
}

// RouteOption changes what Route does.
type RouteOption interface{ route(*routeRule) }

type routeOption func(*routeRule)

func (o routeOption) route(r *routeRule) { o(r) }

// RenameColumn gives a column another name at the destination. Other columns keep theirs. A table that
// lacks it, or would have a name twice, is an error when the rule meets it.
func RenameColumn(source, destination string) RouteOption {
	return routeOption(func(r *routeRule) { r.columns = append(r.columns, rename{source, destination}) })
}

// Only limits a route to operations: changes of others are dropped, a TRUNCATE too unless
// decode.OpTruncate is among them. A change that a Where has made something else of passes only if both
// are among them, what it was at the source and what it is now.
func Only(ops ...decode.Op) RouteOption {
	return routeOption(func(r *routeRule) {
		r.limited = true
		for _, op := range ops {
			if op < decode.OpInsert || op > decode.OpTruncate {
				r.badOp = op
			}
			r.ops |= 1 << op
		}
	})
}

type rename struct{ source, destination string }

type routeRule struct {
	from, to  string
	pattern   names.Pattern
	exact     bool // from has no wildcard
	anySchema bool // from has no schema and means all (in files)
	groups    *regexp.Regexp
	schema    destination
	table     destination
	columns   []rename
	limited   bool
	ops       opSet
	badOp     decode.Op
	truncate  *truncateMode
	where     string // in a file
	err       error
}

// destination is one part of the name there.
type destination struct {
	text string
	same bool // as at the source
}

func (r *routeRule) String() string { return fmt.Sprintf("Route(%q, %q)", r.from, r.to) }

// routeOf gives the route that a rule is, or nil.
func routeOf(r Rule) *routeRule {
	route, _ := r.(*routeRule)
	return route
}

// locate says where in a file the route stands.
func (r *routeRule) locate(err error) error {
	if err == nil || r.where == "" {
		return err
	}
	return fmt.Errorf("%s: %w", r.where, err)
}

// noRoute refuses routes within other rules.
func noRoute(rules ...Rule) error {
	for _, r := range rules {
		if route := routeOf(r); route != nil {
			return fmt.Errorf("rules: %w: %s stands within Table or On: routes come last, put it into the list itself", ErrInvalidRule, route)
		}
	}
	return nil
}

// settled reports whether the route says what a TRUNCATE means.
func (r *routeRule) settled() bool { return r.limited || r.truncate != nil }

// merges reports whether the route alone, without a partitioned table, may take several tables into one.
func (r *routeRule) merges() bool {
	return r.groups != nil || !r.exact && !(r.table.same && r.schema.same)
}

// Validate implements the optional method that Validate looks for.
func (r *routeRule) Validate() error {
	fail := func(format string, args ...any) error {
		return r.locate(fmt.Errorf("rules: %w: %s: %w", ErrInvalidRule, r, fmt.Errorf(format, args...)))
	}
	switch {
	case r.err != nil:
		return fail("%w", r.err)
	case r.badOp != 0:
		return fail("Only takes OpInsert, OpUpdate, OpDelete and OpTruncate, not %s", r.badOp)
	case r.limited && r.ops == 0:
		return fail("Only needs an operation")
	case r.merges() && !r.settled():
		return fail("it may take several tables into one: %w: say by Only, PassTruncate or DropTruncate what that of one of them means", ErrTruncate)
	}
	for i, c := range r.columns {
		for _, name := range []string{c.source, c.destination} {
			if name == "" || len(name) > names.MaxLength || strings.ContainsRune(name, 0) {
				return fail("column %q: a name has 1 to %d bytes", name, names.MaxLength)
			}
		}
		if slices.ContainsFunc(r.columns[:i], func(o rename) bool { return o.source == c.source }) {
			return fail("column %q is renamed twice", c.source)
		}
	}
	return nil
}

// Bind implements Rule.
func (r *routeRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return Bind([]Rule{r}, in)
}

// routeMatch is how a route means a table.
type routeMatch struct {
	in     *decode.Relation
	meant  decode.Name // the table, or the one above it that was matched
	groups []int       // of the regular expression, in nameKey(meant)
}

// nameKey joins schema and table by what stands in neither.
func nameKey(n decode.Name) string { return n.Schema + "\x00" + n.Name }

// match finds the name by which the route means a relation: its own first, then those above it.
func (r *routeRule) match(in *decode.Relation) *routeMatch {
	if r.err != nil {
		return &routeMatch{in: in, meant: in.Qualified()} // apply reports it
	}
	for _, n := range append([]decode.Name{in.Qualified()}, in.Ancestors...) {
		if r.groups == nil {
			if r.pattern.Match(n.Schema, n.Name) {
				return &routeMatch{in: in, meant: n}
			}
			continue
		}
		if at := r.groups.FindStringSubmatchIndex(nameKey(n)); at != nil {
			return &routeMatch{in: in, meant: n, groups: at}
		}
	}
	return nil
}

// destination gives the name that a table has there; to is the one that the other rules left.
func (r *routeRule) destination(m *routeMatch, to decode.Name) (decode.Name, error) {
	for part, d := range map[*string]destination{&to.Schema: r.schema, &to.Name: r.table} {
		if d.same {
			continue
		}
		*part = d.text
		if r.groups != nil {
			*part = string(r.groups.ExpandString(nil, d.text, nameKey(m.meant), m.groups))
		}
		if *part == "" || len(*part) > names.MaxLength {
			return to, &BindError{r.String(), m.in.Qualified(), fmt.Errorf("%w: %q becomes the name %q, which has not 1 to %d bytes", ErrInvalidRule, m.meant, *part, names.MaxLength)}
		}
	}
	return to, nil
}

// apply gives the relation its names at the destination. out is what the other rules left of the source's.
func (r *routeRule) apply(out *decode.Relation, m *routeMatch) (bound, error) {
	fail := func(err error) (bound, error) { return bound{}, &BindError{r.String(), m.in.Qualified(), err} }
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	if m.meant != m.in.Qualified() && !r.settled() {
		return fail(fmt.Errorf("%w: it takes all partitions of %s into one table: %w: say by Only, PassTruncate or DropTruncate what that of one of them means", ErrAmbiguous, m.meant, ErrTruncate))
	}
	to := *out
	name, err := r.destination(m, out.Qualified())
	if err != nil {
		return bound{}, err
	}
	to.Schema, to.Name = name.Schema, name.Name
	if len(r.columns) > 0 {
		to.Columns = slices.Clone(out.Columns)
		for _, c := range r.columns {
			i := out.Column(c.source)
			if i < 0 {
				return fail(fmt.Errorf("%w: %q (names are exact, upper and lower case differ; an earlier rule may have excluded it)", ErrNoColumn, c.source))
			}
			to.Columns[i].Name = c.destination
		}
		for i := range to.Columns {
			if to.Column(to.Columns[i].Name) != i {
				return fail(fmt.Errorf("%w: two columns would be called %q", ErrInvalidRule, to.Columns[i].Name))
			}
		}
	}
	b := bound{out: &to, steps: []step{{out: &to}}}
	const rows = opSet(1<<decode.OpInsert | 1<<decode.OpUpdate | 1<<decode.OpDelete)
	if others := rows &^ r.ops; r.limited && others != 0 {
		b.steps = append(b.steps, step{out: &to, ops: others, f: func(*decode.Change) (bool, error) { return false, nil }})
	}
	switch {
	case r.truncate != nil:
		b.truncate.mode = *r.truncate
	case r.limited && r.ops&(1<<decode.OpTruncate) == 0:
		b.truncate.mode = dropTruncate
	}
	return b, nil
}
