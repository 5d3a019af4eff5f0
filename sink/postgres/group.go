package postgres

import (
	"slices"
	"time"

	"github.com/pgflo/flo/decode"
)

const (
	// leastCopied is how many rows are worth a COPY of their own at a server nearby. It takes copyTrips
	// round trips more than statements in the pipeline: one that ends the pipeline before it, and its
	// own. A row of it takes about rowGain less time than a statement, and setGain less than in a set.
	leastCopied = 24
	copyTrips   = 2
	rowGain     = 10 * time.Microsecond
	setGain     = 5 * time.Microsecond
	// leastReduced is how many changes of a table are worth sets: each is planned for its rows.
	leastReduced = 48
	// Sets that are of few rows each, for so many different columns are given, are not worth it.
	manySets  = 8
	rowsOfSet = 8
	// A group is cut where that many times as many inserts, which cannot go ahead of the changes in front
	// of them, would go by COPY in a group of their own, but not more often than maxCuts times in a
	// batch: to look for the place takes time.
	worthCutting = 4
	maxCuts      = 64
)

// group is a span of a batch. Some of its inserts go into their tables by COPY, first; then come sets of
// rows, to which the changes of a table are reduced; what is left of it follows as statements, in order.
// Whatever the server then says of any of it, the group is undone and applied again change by change:
// what COPY and sets can not do (meet a row that is there already, hand a unique value from one row to
// another, say which row is missing), and which change it is that is refused, comes out as if nobody had
// tried.
//
// Another order is right if nothing but the tables themselves is touched by changes: no trigger, rule or
// foreign key acts. COPY takes the inserts that stand in front of all other changes of their table, and
// those of keys that no other change is about.
type group struct {
	from, to int // changes of the batch
	copies   []*copyRun
	sets     []*setRun
	left     int // how many changes go one by one
}

// trial reports whether the group is not applied change by change.
func (g *group) trial() bool { return g.copies != nil || g.sets != nil }

// copyRun is the inserts of one table that one COPY takes.
type copyRun struct {
	binding *binding
	columns []int // relation columns that are written
	change  int   // the first one
	rows    []decode.Row
}

// planner cuts a session's batches into groups.
type planner struct {
	bindings *bindings
	least    int    // how many rows are worth a COPY, or a group behind another
	worthy   int    // the same for the group at hand: one of nothing but inserts into one table may take no more trips by COPY
	reduced  int    // how many are worth sets
	batch    uint64 // how many have been planned
	changes  []*decode.Change
	families map[string]*family
	order    []*family // as they come
	taken    []bool    // of each change: it goes by COPY or in a set
	reducer  reducer
	cuts     int
}

// family is what the changes of a group do to one destination table, or to one partition tree, of which
// several members may be destinations.
type family struct {
	last   *binding
	mixed  bool  // several relations are of it
	all    []int // its changes
	runs   []*copyRun
	heads  []int // the changes that are in runs
	other  bool  // a change other than a plain insert has come
	start  int   // the first insert since the last of those
	streak int   // how many there are
}

// worthwhile gives the number of rows that are worth a COPY where a round trip takes that long.
func worthwhile(trip time.Duration) int {
	return leastCopied + int(copyTrips*trip/rowGain)
}

// overSets gives the number of rows that are worth a COPY if they can go in a set.
func (p *planner) overSets() int {
	return max(p.worthy, leastCopied+(p.worthy-leastCopied)*int(rowGain/setGain))
}

// plain reports whether a span is nothing but inserts into one table: it is written in two round trips by COPY, as it is by
// statements, see writing.swift.
func (p *planner) plain(from, to int) bool {
	return !slices.ContainsFunc(p.changes[from:to], func(ch *decode.Change) bool {
		return ch.Op != decode.OpInsert || ch.Relation != p.changes[from].Relation
	})
}

// plan cuts a batch, the whole of a transaction at the destination or a part. It gives nil if nothing is worth it.
func (p *planner) plan(bindings *bindings, changes []*decode.Change, whole bool) []group {
	if len(changes) < min(p.least, p.reduced) {
		return nil
	}
	p.batch++
	p.bindings, p.changes, p.cuts = bindings, changes, 0
	if cap(p.taken) < len(changes) {
		p.taken = make([]bool, len(changes))
	}
	p.taken = p.taken[:len(changes)]
	clear(p.taken)
	var groups []group
	tried := false
	for from := 0; from < len(changes); {
		g := group{from: from, to: p.end(from)}
		if g.to == from {
			g.to++ // touches more than its table
		} else if !tried || g.to-from >= p.least { // the first one ends no pipeline
			p.worthy = p.least
			if whole && g.to-g.from == len(changes) && p.plain(g.from, g.to) {
				p.worthy = leastCopied
			}
			p.collect(&g)
			tried = tried || g.trial()
		}
		if n := len(groups); n > 0 && !g.trial() && !groups[n-1].trial() {
			groups[n-1].to = g.to
		} else {
			groups = append(groups, g)
		}
		from = g.to
	}
	p.changes, p.families = nil, nil
	clear(p.order)
	return groups
}

// end gives the end of the group that begins with a change.
func (p *planner) end(from int) int {
	p.families = make(map[string]*family)
	for i := from; i < len(p.changes); i++ {
		ch := p.changes[i]
		if ch.Op == decode.OpMessage {
			continue
		}
		b := p.calm(ch)
		if b == nil {
			return i
		}
		if b.reducible && b.takesSets(p.batch) {
			continue
		}
		f := p.family(b)
		switch {
		case !p.copyable(b, ch):
			f.other, f.streak = true, 0
		case f.other:
			if f.streak == 0 {
				f.start = i
			}
			f.streak++
			if f.streak >= worthCutting*p.least && p.cuts < maxCuts {
				p.cuts++
				return f.start
			}
		}
	}
	return len(p.changes)
}

// calm gives the binding of a change to a calm table, or nil.
func (p *planner) calm(ch *decode.Change) *binding {
	switch ch.Op {
	case decode.OpInsert, decode.OpUpdate, decode.OpDelete:
	default:
		return nil
	}
	if ch.Relation == nil {
		return nil
	}
	b := p.bindings.get(ch.Relation)
	if b == nil || !b.table.calm {
		return nil
	}
	return b
}

func (p *planner) family(b *binding) *family {
	f := p.families[b.table.family]
	if f == nil {
		f = &family{}
		p.families[b.table.family] = f
	}
	return f
}

// copyable reports whether an insert may go by COPY.
func (p *planner) copyable(b *binding, ch *decode.Change) bool {
	return ch.Op == decode.OpInsert && ch.Old == nil && len(ch.New) == len(b.columns) && p.batch >= b.copies.resume
}

// collect gathers what does not go change by change.
func (p *planner) collect(g *group) {
	p.families, p.order = make(map[string]*family), p.order[:0]
	var f *family
	for i := g.from; i < g.to; i++ {
		ch := p.changes[i]
		if ch.Op == decode.OpMessage {
			continue
		}
		g.left++
		b := p.bindings.get(ch.Relation)
		if f == nil || f.last != b {
			f = p.family(b)
			if f.last == nil {
				p.order = append(p.order, f)
			}
			f.mixed = f.mixed || f.last != nil && f.last != b
			f.last = b
		}
		f.all = append(f.all, i)
	}
	for _, f := range p.order {
		if !p.reduce(g, f) {
			p.inFront(g, f)
		}
	}
}

// take notes that changes need not go one by one.
func (p *planner) take(g *group, which []int) {
	for _, i := range which {
		p.taken[i] = true
	}
	g.left -= len(which)
}

// reduce makes sets of a family's changes, if it is one table and is worth them.
func (p *planner) reduce(g *group, f *family) bool {
	b := f.last
	if f.mixed || !b.reducible || !b.takesSets(p.batch) || len(f.all) < p.reduced || !p.reducer.reduce(b, p.changes, f.all) {
		return false
	}
	sets := p.reducer.collect()
	rows := 0
	for _, run := range sets {
		rows += run.size()
	}
	if len(sets) > manySets && rows < len(sets)*rowsOfSet {
		return false
	}
	// Rows of new keys go by COPY, unless another row has to leave them a value first.
	mayCopy := p.batch >= b.copies.resume && (b.table.uniques == 1 || !slices.ContainsFunc(sets, func(r *setRun) bool { return r.kind != setInsert }))
	for _, run := range sets {
		if run.kind == setInsert && mayCopy && run.size() >= p.overSets() {
			g.copies = append(g.copies, &copyRun{binding: b, columns: run.columns, change: run.change, rows: run.rows})
		} else {
			g.sets = append(g.sets, run)
		}
	}
	p.take(g, f.all)
	return true
}

// inFront gathers the inserts that stand in front of all other changes of a family.
func (p *planner) inFront(g *group, f *family) {
	for _, i := range f.all {
		ch := p.changes[i]
		b := p.bindings.get(ch.Relation)
		if ch.Op != decode.OpInsert || ch.Old != nil || len(ch.New) != len(b.columns) {
			break
		}
		run := f.run(i, b, ch)
		if run == nil {
			break
		}
		run.rows = append(run.rows, ch.New)
		f.heads = append(f.heads, i)
	}
	switch {
	case len(f.runs) == 0:
		return
	case f.settable(p):
		run := f.runs[0]
		if len(run.rows) < p.overSets() || p.batch < run.binding.copies.resume {
			set := newSetRun(run.binding, setInsert, string(run.binding.setPattern(nil, setInsert, run.rows[0])), run.change, run.rows[0])
			set.rows = run.rows
			g.sets = append(g.sets, set)
			break
		}
		g.copies = append(g.copies, run)
	case f.worth(p):
		g.copies = append(g.copies, f.runs...)
	default:
		return
	}
	p.take(g, f.heads)
}

// settable reports whether the inserts in front may go in a set, too: into a table without a key no row
// stands in the way of another.
func (f *family) settable(p *planner) bool {
	b := f.last
	return !f.mixed && b.castable && !b.rel.HasKey() && b.takesSets(p.batch) && len(f.heads) >= p.reduced &&
		!slices.ContainsFunc(f.runs[0].rows, func(row decode.Row) bool { return !small(row) })
}

// worth reports whether all runs are long enough. All or none go first: they are of one table, and a row
// of one may stand for a row of another.
func (f *family) worth(p *planner) bool {
	for _, run := range f.runs {
		if len(run.rows) < p.worthy || p.batch < run.binding.copies.resume {
			return false
		}
	}
	return true
}

// run gives the run that an insert belongs to; nil if it fits none.
func (f *family) run(i int, b *binding, ch *decode.Change) *copyRun {
	for _, run := range f.runs {
		if run.binding == b {
			if !run.fits(ch) {
				return nil
			}
			return run
		}
	}
	run := &copyRun{binding: b, change: i, columns: (&compiler{binding: b, ch: ch}).written()}
	if len(run.columns) == 0 {
		return nil
	}
	f.runs = append(f.runs, run)
	return run
}

// fits reports whether an insert has values for the run's columns, and for no others.
func (r *copyRun) fits(ch *decode.Change) bool {
	next := 0
	for i := range ch.New {
		if r.binding.columns[i].generated {
			continue
		}
		p := ch.New[i].Presence()
		there := p == decode.Present || p == decode.Null
		if there != (next < len(r.columns) && r.columns[next] == i) {
			return false
		}
		if there {
			next++
		}
	}
	return true
}

// A table whose COPY, or sets, were undone is left alone for firstPause batches, twice as many each time
// it happens again before it has worked for as long, longestPause at most.
const (
	firstPause   = 4
	longestPause = 1024
)

// pause keeps the next batches from trying what has failed.
type pause struct {
	resume  uint64 // the planner's batch from which on it is tried again
	setback uint64 // batches it was left alone for, the last time
}

// begin is told that it has failed in a batch.
func (p *pause) begin(batch uint64) {
	if batch > p.resume+p.setback { // and had worked for as long as it had been left alone
		p.setback = 0
	}
	p.setback = min(max(2*p.setback, firstPause), longestPause)
	p.resume = batch + 1 + p.setback
}
