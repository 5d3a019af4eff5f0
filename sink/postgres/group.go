package postgres

import (
	"time"

	"github.com/pgflo/flo/decode"
)

const (
	// leastCopied is how many rows are worth a COPY of their own at a server nearby. It takes copyTrips
	// round trips more than statements in the pipeline: one that ends the pipeline before it, and its
	// own. A row of it takes about rowGain less time than a statement.
	leastCopied = 24
	copyTrips   = 2
	rowGain     = 10 * time.Microsecond
	// A group is cut where that many times as many inserts, which cannot go ahead of the changes in front
	// of them, would go by COPY in a group of their own, but not more often than maxCuts times in a
	// batch: to look for the place takes time.
	worthCutting = 4
	maxCuts      = 64
)

// group is a span of a batch. Some of its inserts go into their tables by COPY, first; what is left of it
// follows as statements, in order. Whatever the server then says of any of it, the group is undone and
// applied again change by change: what a COPY can not do (meet a row that is there already), and which
// change it is that is refused, comes out as if nobody had tried.
//
// Going first is right for the inserts that stand in front of all other changes of their table, if
// nothing but the tables themselves is touched by changes: no trigger, rule or foreign key acts.
type group struct {
	from, to int // changes of the batch
	copies   []*copyRun
}

// copyRun is the inserts of one table that one COPY takes.
type copyRun struct {
	binding *binding
	columns []int // relation columns that are written
	changes []int // indexes into the batch
}

// planner cuts a session's batches into groups.
type planner struct {
	bindings *bindings
	least    int    // how many rows are worth a COPY
	batch    uint64 // how many have been planned
	changes  []*decode.Change
	families map[string]*family
	copied   []bool // of each change: it goes by COPY
	cuts     int
}

// family is what the changes of a group do to one destination table, or to one partition tree, of which
// several members may be destinations.
type family struct {
	runs   []*copyRun
	other  bool // a change other than a plain insert has come
	start  int  // the first insert since the last of those
	streak int  // how many there are
}

// worthwhile gives the number of rows that are worth a COPY where a round trip takes that long.
func worthwhile(trip time.Duration) int {
	return leastCopied + int(copyTrips*trip/rowGain)
}

// plan cuts a batch. It gives nil if nothing is worth it.
func (p *planner) plan(bindings *bindings, changes []*decode.Change) []group {
	if len(changes) < p.least {
		return nil
	}
	p.batch++
	p.bindings, p.changes, p.cuts = bindings, changes, 0
	if cap(p.copied) < len(changes) {
		p.copied = make([]bool, len(changes))
	}
	p.copied = p.copied[:len(changes)]
	clear(p.copied)
	var groups []group
	for from := 0; from < len(changes); {
		g := group{from: from, to: p.end(from)}
		if g.to == from {
			g.to++ // touches more than its table
		} else {
			g.copies = p.collect(g.from, g.to)
		}
		if n := len(groups); n > 0 && g.copies == nil && groups[n-1].copies == nil {
			groups[n-1].to = g.to
		} else {
			groups = append(groups, g)
		}
		from = g.to
	}
	p.changes = nil
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
	return ch.Op == decode.OpInsert && ch.Old == nil && len(ch.New) == len(b.columns) && p.batch >= b.resume
}

// collect gathers the inserts that may go first.
func (p *planner) collect(from, to int) []*copyRun {
	p.families = make(map[string]*family)
	for i := from; i < to; i++ {
		ch := p.changes[i]
		if ch.Op == decode.OpMessage {
			continue
		}
		b := p.bindings.get(ch.Relation)
		f := p.family(b)
		if f.other {
			continue
		}
		var run *copyRun
		if p.copyable(b, ch) {
			run = f.run(b, ch)
		}
		if run == nil {
			f.other = true
			continue
		}
		run.changes = append(run.changes, i)
	}
	var copies []*copyRun
	for i := from; i < to; i++ { // in order, not in a map's
		if p.changes[i].Op == decode.OpMessage {
			continue
		}
		f := p.family(p.bindings.get(p.changes[i].Relation))
		if f.worth(p.least) {
			copies = append(copies, f.runs...)
		}
		f.runs = nil
	}
	for _, run := range copies {
		for _, i := range run.changes {
			p.copied[i] = true
		}
	}
	return copies
}

// worth reports whether all runs are long enough. All or none go first: they are of one table, and a row
// of one may stand for a row of another.
func (f *family) worth(least int) bool {
	for _, run := range f.runs {
		if len(run.changes) < least {
			return false
		}
	}
	return len(f.runs) > 0
}

// run gives the run that an insert belongs to; nil if it fits none.
func (f *family) run(b *binding, ch *decode.Change) *copyRun {
	for _, run := range f.runs {
		if run.binding == b {
			if !run.fits(ch) {
				return nil
			}
			return run
		}
	}
	run := &copyRun{binding: b, columns: (&compiler{binding: b, ch: ch}).written()}
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

// A table whose COPY was undone is left alone for firstPause batches, twice as many each time it happens
// again without a COPY that works between, longestPause at most.
const (
	firstPause   = 4
	longestPause = 1024
)

// leaveAlone keeps the next batches from trying a COPY.
func (p *planner) leaveAlone(b *binding) {
	b.setback = min(max(2*b.setback, firstPause), longestPause)
	b.resume = p.batch + 1 + b.setback
}
