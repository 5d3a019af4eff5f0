//go:build unix

package faults

import (
	"flag"
	"fmt"
	"testing"
	"time"
)

var (
	without = flag.String("without", "", "kinds of faults to leave out of random runs, separated by commas")
	few     = flag.Int("faults", 0, "only so many faults of each random run; 0: all")
	shrink  = flag.Duration("shrink", 0, "how long to look for fewer faults with which a random run still fails")
)

// Random runs: everything about them comes from a seed, and whatever happens, both sides are equal at the end.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	s := seed(t)
	l := newLane(t, t.Context())
	for i := range uint64(brief(runs, 3, 2)) {
		l.seeded(t, s+i)
	}
}

// seeded is one run, and if it fails a search for a smaller one.
func (l *lane) seeded(t *testing.T, seed uint64) (done tally, ok bool) {
	p := newPlan(seed).less(kindsOf(*without), *few)
	ok = t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
		t.Logf("again: %s", repeat(seed, kindsOf(*without), *few))
		l.run(t, p, &done)
	})
	if !ok && *shrink > 0 {
		l.smaller(t, p)
	}
	return done, ok
}

// smaller leaves out kinds of faults, and then the last faults, as long as the run still fails. One that passes
// twice counts as one that doesn't: the same plan is scheduled differently each time.
func (l *lane) smaller(t *testing.T, p *plan) {
	const tries = 2
	end := time.Now().Add(*shrink)
	fails := func(without []kind, few int) bool {
		for try := range tries {
			if time.Now().After(end) || l.ctx.Err() != nil {
				return false
			}
			q := newPlan(p.seed).less(without, few)
			if !t.Run(fmt.Sprintf("seed=%d/without=%v/faults=%d/try=%d", p.seed, without, few, try), func(t *testing.T) { l.run(t, q, new(tally)) }) {
				return true
			}
		}
		return false
	}
	left := kindsOf(*without)
	for _, k := range p.kinds() {
		if more := append(left[:len(left):len(left)], k); fails(more, *few) {
			left = more
		}
	}
	n := len(newPlan(p.seed).less(left, *few).faults)
	for n > 1 && fails(left, n/2) {
		n /= 2
	}
	t.Logf("the smallest run that failed: %s", repeat(p.seed, left, n))
}
