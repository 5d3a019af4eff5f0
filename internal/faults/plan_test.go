//go:build unix

package faults

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// kind is a sort of fault.
type kind string

const (
	killed    kind = "kill"     // SIGKILL of a replicator or worker
	crashed   kind = "crash"    // it ends itself at a boundary
	stopped   kind = "stop"     // it is asked to stop
	paused    kind = "pause"    // SIGSTOP, another one takes over, SIGCONT
	cut       kind = "cut"      // a link's connections
	flapped   kind = "flap"     // the same some times in a row
	muted     kind = "mute"     // a link is half-open for a while, and then cut
	stilled   kind = "still"    // nothing passes a link for a while, and nothing is lost
	slowed    kind = "slow"     // 200 ms each way
	narrowed  kind = "narrow"   // 1 MB/s, or less
	refused   kind = "refuse"   // no new connections for a while
	walsender kind = "sender"   // pg_terminate_backend of the walsender
	sessions  kind = "sessions" // of all of flo's sessions at a database
	natsDown  kind = "nats"     // SIGKILL of the NATS server, which may come back with an older store
	pgDown    kind = "postgres" // immediate shutdown and start of a database's server
)

// shares is how often each kind comes, in relation to the others.
var shares = []struct {
	kind  kind
	share int
}{
	{killed, 22}, {crashed, 22}, {cut, 24}, {flapped, 6}, {muted, 5}, {stilled, 4}, {slowed, 4}, {narrowed, 3}, {refused, 3},
	{walsender, 5}, {sessions, 5}, {natsDown, 7}, {stopped, 4}, {paused, 2}, {pgDown, 2},
}

// fault is one of a run's.
type fault struct {
	kind     kind
	wait     time.Duration // before it
	progress bool          // and first until changes go through its target
	hold     time.Duration // how long it lasts, for those that do
	which    uint32        // of the targets that there are
	point    uint32        // of the boundaries
	n        int           // how often something happens, or is reached
}

// plan is all that is random about a run but the luck of writers, sinks and the scheduler.
type plan struct {
	seed   uint64
	faults []fault

	writers   int
	rows      int           // in each of the mixed tables before the copy
	large     int           // rows of a large transaction, at most
	pace      time.Duration // of a writer, at most, between two transactions
	truncates bool          // in mid-copy too
	early     bool          // the first fault comes in mid-copy
	alone     bool          // at the end all recover by themselves; otherwise who waits long is started again
	rollback  bool          // NATS may come back with an older store
	streaming bool          // WithStreaming, and a source that sends what exceeds 64 kB before it ends; large ones are in the load
	ddl       bool          // WithDDL, and tables are altered, made and dropped
	bare      bool          // then: the destinations have no tables at first

	replicator childConfig
	nats       childConfig
	workers    []childConfig // "default" first
}

func pick[T any](rnd *rand.Rand, of ...T) T { return of[rnd.IntN(len(of))] }

// newPlan draws a run.
func newPlan(seed uint64) *plan {
	rnd := random(seed, 0)
	p := &plan{
		seed:      seed,
		writers:   1 + rnd.IntN(3),
		rows:      pick(rnd, 0, 10, 300, 2000),
		large:     pick(rnd, 20, 100, 600),
		pace:      time.Duration(pick(rnd, 10, 30, 80)) * time.Millisecond,
		truncates: rnd.IntN(4) == 0,
		early:     rnd.IntN(3) == 0,
		alone:     rnd.IntN(8) == 0,
		rollback:  rnd.IntN(3) == 0,
	}
	p.replicator = childConfig{
		CopyConnections: 1 + rnd.IntN(3),
		ReplayWindow:    pick(rnd, 0, 0, 500*time.Millisecond, 3*time.Minute),
		StreamMaxBytes:  pick[int64](rnd, 0, 0, 0, 16<<20),
	}
	p.nats = childConfig{MaxPayload: pick(rnd, 64<<10, 256<<10, 1<<20, 4<<20), LazySync: rnd.IntN(2) == 0}
	if p.rollback {
		p.nats.LazySync, p.replicator.ReplayWindow = true, 3*time.Minute
	}
	p.workers = []childConfig{p.worker(rnd, "default")}
	switch rnd.IntN(6) {
	case 0, 1, 2:
		p.workers = append(p.workers, p.worker(rnd, "file"))
	case 3:
		p.workers = append(p.workers, p.worker(rnd, "second"))
	case 4:
		p.workers = append(p.workers, p.worker(rnd, "file"), p.worker(rnd, "second"))
	}
	for i := range 9 + rnd.IntN(8) {
		p.faults = append(p.faults, drawFault(random(seed, 10_000+uint64(i))))
	}
	p.enrich(random(seed, 20_000))
	for _, c := range []*childConfig{&p.replicator, &p.nats} {
		c.quicken()
		c.Procs = 1 + rnd.IntN(2)
	}
	return p
}

// enrich draws what runs have learnt later, by itself, so that the rest of a seed's plan stays.
func (p *plan) enrich(rnd *rand.Rand) {
	p.streaming, p.ddl = rnd.IntN(2) == 0, rnd.IntN(2) == 0
	p.bare = p.ddl && rnd.IntN(2) == 0
	p.replicator.Streaming, p.replicator.DDL = p.streaming, p.ddl
	if !p.ddl {
		return
	}
	// Schema changes send tables through further copies, and the oracle of a file's history can't tell which of its
	// earlier lines those replace: the worker gets a database.
	p.workers = slices.DeleteFunc(p.workers, func(w childConfig) bool { return w.Name == "file" && len(p.workers) > 2 })
	for i := range p.workers {
		if p.workers[i].Name == "file" {
			p.workers[i].Name = "second"
		}
	}
}

// quicken makes a child notice soon that another one is gone, and end soon.
func (c *childConfig) quicken() { c.Lease, c.StopTimeout = leaseTime, 2*time.Second }

func (p *plan) worker(rnd *rand.Rand, name string) childConfig {
	c := childConfig{
		Name:       name,
		BatchSize:  pick(rnd, 0, 3, 20, 100, 1000),
		BatchBytes: pick(rnd, 0, 0, 8<<10, 64<<10),
		Flush:      pick(rnd, 0, 0, 5*time.Millisecond, 50*time.Millisecond),
	}
	c.quicken()
	c.Procs = 1 + rnd.IntN(2)
	c.Lanes = pick(rnd, 0, 0, 3)
	if rnd.IntN(3) == 0 {
		most := 4_000 / max(min(c.BatchSize, 100), 20) // the fewer calls, the more of them
		draw := func() int { return rnd.IntN(most/2 + 1) }
		c.Moods = &moods{Seed: rnd.Uint64(), Reject: draw() / 4, Late: draw() / 4, Hang: draw() / 4, Slow: draw(), Wait: 300 * time.Millisecond}
	}
	return c
}

func drawFault(rnd *rand.Rand) fault {
	total := 0
	for _, s := range shares {
		total += s.share
	}
	f := fault{
		wait:     between(rnd, 0, 120*time.Millisecond),
		progress: rnd.IntN(2) == 0,
		hold:     between(rnd, 50*time.Millisecond, 600*time.Millisecond),
		which:    rnd.Uint32(),
		point:    rnd.Uint32(),
		n:        1 + rnd.IntN(4),
	}
	n := rnd.IntN(total)
	for _, s := range shares {
		if n -= s.share; n < 0 {
			f.kind = s.kind
			break
		}
	}
	return f
}

// less leaves kinds out, and all faults but the first few, if few is above 0.
func (p *plan) less(without []kind, few int) *plan {
	q := *p
	q.faults = slices.DeleteFunc(slices.Clone(p.faults), func(f fault) bool { return slices.Contains(without, f.kind) })
	if few > 0 && few < len(q.faults) {
		q.faults = q.faults[:few]
	}
	return &q
}

// kindsOf reads a list of kinds.
func kindsOf(list string) (all []kind) {
	for _, name := range strings.Split(list, ",") {
		if name != "" {
			all = append(all, kind(name))
		}
	}
	return all
}

func (p *plan) kinds() (all []kind) {
	for _, f := range p.faults {
		if !slices.Contains(all, f.kind) {
			all = append(all, f.kind)
		}
	}
	return all
}

func (p *plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d writers every %s, %d rows at first, transactions of up to %d rows, truncates in mid-copy %t, faults in mid-copy %t, left alone at the end %t, NATS may roll back %t, streaming %t, schema changes %t, bare destinations %t\n",
		p.writers, p.pace, p.rows, p.large, p.truncates, p.early, p.alone, p.rollback, p.streaming, p.ddl, p.bare)
	fmt.Fprintf(&b, "replicator: %d copy connections, window %s, stream's limit %d; NATS: max_payload %d, lazy %t\n",
		p.replicator.CopyConnections, p.replicator.ReplayWindow, p.replicator.StreamMaxBytes, p.nats.MaxPayload, p.nats.LazySync)
	for _, w := range p.workers {
		fmt.Fprintf(&b, "worker %s: batches of %d changes, %d bytes, flushed after %s, %d applying connections", w.Name, w.BatchSize, w.BatchBytes, w.Flush, w.Lanes)
		if m := w.Moods; m != nil {
			fmt.Fprintf(&b, "; in a thousand: %d rejected, %d late, %d hung, %d slow", m.Reject, m.Late, m.Hang, m.Slow)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d faults:", len(p.faults))
	for _, f := range p.faults {
		fmt.Fprintf(&b, " %s", f.kind)
	}
	return b.String()
}
