package rules

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
)

// Binder binds one list of rules to the tables of one worker, as they come. Beyond what Bind does for a
// table by itself it sees tables that meet at a destination. It is for one goroutine; the functions that
// it gives are for any.
type Binder struct {
	rules  []Rule
	routes []*routeRule
	bound  map[*decode.Relation]*Binding
	meet   map[decode.Name][]arrival // by destination
	by     map[*routeRule]decode.Name
	tables []*tableRule // named without wildcards
	met    map[*tableRule]bool
	seen   map[string]bool // rules' columns, and whether a table had them
	last   map[uint32]*lastBound
}

// Binding is a relation as the rules leave it.
type Binding struct {
	Out  *decode.Relation
	Func Func // what runs for streamed changes; nil: nothing
	// Copied runs for copied rows. If it is nil, the table's COPY data needs no parsing: its columns, in
	// their order, are Out's, under the names that they have there.
	Copied   Func
	truncate truncation
}

// arrival is a source table at a destination.
type arrival struct {
	source  decode.Name
	oid     uint32
	settled bool // its rules say what a TRUNCATE of it means
	above   []decode.Name
	blind   string // a rule that may delete there what it has not brought
}

// maxBindings bounds how many relation versions a Binder remembers.
const maxBindings = 10_000

// NewBinder takes a list of rules. Routes may stand anywhere in it, but not within Table or On.
func NewBinder(rules []Rule) *Binder {
	b := &Binder{bound: map[*decode.Relation]*Binding{}, meet: map[decode.Name][]arrival{}, by: map[*routeRule]decode.Name{}, met: map[*tableRule]bool{}, seen: map[string]bool{}, last: map[uint32]*lastBound{}}
	for _, r := range rules {
		if route := routeOf(r); route != nil {
			b.routes = append(b.routes, route)
		} else {
			b.rules = append(b.rules, r)
		}
	}
	b.tables = exactTables(b.rules)
	return b
}

// Bind gives the binding of a relation, made the first time that it is asked for. The error is a
// *BindError, or that of a rule of yours. A table whose rules do not say what a TRUNCATE of it means is
// refused here (ErrTruncate), before its first row is written and not when the TRUNCATE comes.
func (b *Binder) Bind(in *decode.Relation) (*Binding, error) {
	if known := b.bound[in]; known != nil {
		return known, nil
	}
	for _, t := range b.tables {
		b.met[t] = b.met[t] || t.matches(in)
	}
	all, err := bindAll(b.rules, scope{in: in, seen: b.seen})
	if err != nil {
		return nil, err
	}
	b.remember(in, all.out)
	filtered := all.truncate
	settled := false
	blind := all.blind
	for _, r := range b.routes {
		match := r.match(in)
		if match == nil {
			continue
		}
		if err := b.unambiguous(r, match.meant); err != nil {
			return nil, r.locate(err)
		}
		routed, err := r.apply(all.out, match)
		if err != nil {
			return nil, r.locate(err)
		}
		all.out, all.steps = routed.out, append(all.steps, routed.steps...)
		if r.limited && !r.ops.has(decode.OpUpdate) && !r.ops.has(decode.OpDelete) {
			blind = ""
		}
		if settled = r.settled(); settled {
			all.truncate = routed.truncate
		}
		break
	}
	if err := all.truncate.refusal(in.Qualified()); err != nil {
		return nil, err
	}
	settled = settled || filtered.mode != passTruncate
	if err := b.arrive(all.out.Qualified(), arrival{in.Qualified(), in.OID, settled, in.Ancestors, blind}); err != nil {
		return nil, err
	}
	if len(b.bound) >= maxBindings {
		clear(b.bound)
	}
	if f := chain(copied(all.steps)); f == nil && len(all.out.Columns) != len(in.Columns) {
		return nil, &BindError{"a rule", in.Qualified(), fmt.Errorf("%w: it changes the columns, but has no function that changes the rows", ErrShape)}
	}
	binding := &Binding{Out: all.out, Func: chain(all.steps), Copied: chain(copied(all.steps)), truncate: all.truncate}
	b.bound[in] = binding
	return binding, nil
}

// Unmet gives the tables that rules name without wildcards and that Bind has not seen: after all tables
// have been bound, most likely spelling mistakes, by which data passes as it is.
func (b *Binder) Unmet() []string {
	var names []string
	for _, t := range b.tables {
		if !b.met[t] && !slices.Contains(names, t.text) {
			names = append(names, t.text)
		}
	}
	return names
}

// UnmetColumns gives the columns, each with its rule, that no table that Bind has seen has: of rules for all
// tables, or for those of a wildcard, which leave tables without the column alone.
func (b *Binder) UnmetColumns() []string {
	var out []string
	for key, found := range b.seen {
		if !found {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// exactTables gives the tables that rules name without wildcards.
func exactTables(rules []Rule) []*tableRule {
	var out []*tableRule
	for _, r := range rules {
		switch r := r.(type) {
		case *locatedRule:
			out = append(out, exactTables([]Rule{r.rule})...)
		case *onRule:
			out = append(out, exactTables([]Rule{r.rule})...)
		case *tableRule:
			if r.exact {
				out = append(out, r)
			}
			out = append(out, exactTables(r.rules)...)
		}
	}
	return out
}

// copied leaves out the steps that never run for an insert.
func copied(steps []step) []step {
	var out []step
	for _, st := range steps {
		if st.f != nil && !st.ops.has(decode.OpInsert) {
			st.f = nil
		}
		out = append(out, st)
	}
	return out
}

// unambiguous refuses a route without a schema that means tables of two schemas.
func (b *Binder) unambiguous(r *routeRule, meant decode.Name) error {
	if !r.anySchema {
		return nil
	}
	if before, ok := b.by[r]; ok && before != meant {
		return &BindError{r.String(), meant, fmt.Errorf("%w: it names no schema, and means %s too: give the schema", ErrAmbiguous, before)}
	}
	b.by[r] = meant
	return nil
}

// arrive notes a source table at its destination, and refuses two that meet there unless both say what a
// TRUNCATE of one of them means, and neither deletes what the other may have brought.
func (b *Binder) arrive(to decode.Name, it arrival) error {
	source := it.source
	list := b.meet[to]
	same := func(a arrival) bool { return a.source == source || a.oid == it.oid && it.oid != 0 }
	for _, a := range list {
		if same(a) {
			continue
		}
		if rule := cmp.Or(it.blind, a.blind); rule != "" && !it.siblings(a) {
			table, other := it, a
			if it.blind == "" {
				table, other = a, it
			}
			return &BindError{rule, table.source, fmt.Errorf("%w: it meets %s at %s, and of a row that leaves or is deleted only the key is known: the other table's row of that key would go: ALTER TABLE … REPLICA IDENTITY FULL, or a Route of its own",
				ErrNeedsFull, other.source, to)}
		}
		if !a.settled || !it.settled {
			return &BindError{"Route", source, fmt.Errorf("%w: it meets %s at %s: %w: that of one would empty both: give both a Route with Only, PassTruncate or DropTruncate", ErrAmbiguous, a.source, to, ErrTruncate)}
		}
	}
	if !slices.ContainsFunc(list, same) {
		b.meet[to] = append(list, it)
	}
	return nil
}

// siblings reports whether both are partitions of one table, whose keys no two rows have.
func (a arrival) siblings(b arrival) bool {
	return slices.ContainsFunc(a.above, func(n decode.Name) bool { return slices.Contains(b.above, n) })
}

// validateRoutes reports routes that take each other's tables.
func validateRoutes(rules []Rule) error {
	var errs []error
	seen, meet := map[string]bool{}, map[decode.Name]*routeRule{}
	for _, r := range rules {
		route := routeOf(r)
		if route == nil {
			continue
		}
		if seen[route.from] {
			errs = append(errs, route.locate(fmt.Errorf("rules: %w: %s: two routes for one table: only the first would count", ErrInvalidRule, route)))
		}
		seen[route.from] = true
		schema, _, exact := route.pattern.Exact()
		if !exact || route.table.same || route.settled() {
			continue
		}
		if !route.schema.same {
			schema = route.schema.text
		}
		to := decode.Name{Schema: schema, Name: route.table.text}
		if other := meet[to]; other != nil {
			errs = append(errs, route.locate(fmt.Errorf("rules: %w: %s and %s meet: %w: say by Only, PassTruncate or DropTruncate in both what that of one of them means", ErrInvalidRule, other, route, ErrTruncate)))
		}
		meet[to] = route
	}
	return errors.Join(errs...)
}
