//go:build unix

package faults

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/crashpoint"
)

// Bounds on waits within a run: when they are over, the fault comes anyway.
const (
	progressWait = 600 * time.Millisecond
	crashWait    = time.Second
	takeoverWait = 5 * time.Second
)

// meet lets one fault happen.
func (r *randomRun) meet(i int, f fault) {
	r.t.Helper()
	m := r.all()[f.which%uint32(len(r.all()))]
	if f.progress {
		ctx, cancel := context.WithTimeout(r.ctx, progressWait)
		m.process().await(ctx, "changes go through it", func(s childStatus) bool { return s.Phase == flo.PhaseStreaming && s.Changes > 0 })
		cancel()
	}
	pause(r.ctx, f.wait)
	k := r.links[f.which%uint32(len(r.links))]
	switch f.kind {
	case killed:
		r.say(i, f, m, "")
		r.kill(m)
		must(r.t, m.start())
	case crashed:
		r.crash(i, f, m)
	case stopped:
		r.say(i, f, m, "")
		if err := m.process().stop(r.ctx); err != nil { // it may not be able to drain
			r.logf("%v", err)
		}
		must(r.t, m.start())
	case paused:
		r.paused(i, f, m)
	case cut, flapped:
		times := 1
		if f.kind == flapped {
			times = 2 + f.n
		}
		for range times {
			n := k.cut()
			r.logf("%2d %s %s: %d connections", i, f.kind, k.name, n/2+n%2)
			if n > 0 {
				r.tally.Cuts++
			}
			if times > 1 {
				pause(r.ctx, f.hold/3)
			}
		}
	case muted:
		r.logf("%2d %s %s for %s", i, f.kind, k.name, f.hold)
		r.tally.Cuts++
		r.holds.Go(func() { k.muffled(r.ctx, f.hold) })
	case stilled, slowed, narrowed, refused:
		w := map[kind]weather{
			stilled:  {still: true},
			slowed:   {delay: 200 * time.Millisecond},
			narrowed: {rate: 1e6 / float64(f.n*f.n)},
			refused:  {down: true},
		}[f.kind]
		r.logf("%2d %s %s for %s", i, f.kind, k.name, f.hold)
		r.holds.Go(func() {
			k.set(w)
			if w.down {
				k.cut()
			}
			pause(r.ctx, f.hold)
			k.set(weather{})
		})
		if w.down {
			r.tally.Cuts++
		}
	case walsender:
		r.terminate(i, f, r.source, `SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots WHERE active AND slot_name LIKE '%'||current_database()||'%' AND slot_name LIKE 'flo%'`)
	case sessions:
		url := r.source
		if m != r.replica {
			url = r.urls["default"]
		}
		r.terminate(i, f, url, `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'flo %' AND pid <> pg_backend_pid()`)
	case natsDown:
		r.natsDies(i, f)
	case pgDown:
		s, name := r.lane.source, "source"
		if m != r.replica {
			s, name = r.lane.dest, "destination"
		}
		r.logf("%2d %s: %s", i, f.kind, name)
		_, err := s.Stop(r.ctx, flotest.Immediate)
		must(r.t, err)
		pause(r.ctx, f.hold/3)
		must(r.t, s.Start(r.ctx))
		r.tally.Restarts++
	default:
		r.t.Fatalf("fault %q", f.kind)
	}
}

func (r *randomRun) say(i int, f fault, m *member, more string) {
	s := m.process().last()
	r.logf("%2d %s %s (%s, applied %s, published %s) %s", i, f.kind, m.cfg.Name, s.Phase, s.Applied, s.Published, more)
}

func (r *randomRun) kill(m *member) {
	m.kill()
	r.tally.Kills++
}

// boundaries that a member may be ended at by now.
func boundaries(m *member) []crashpoint.Point {
	s := m.process().last()
	if m.role == roleReplicator {
		all := []crashpoint.Point{crashpoint.Received, crashpoint.Published, crashpoint.Acknowledged}
		if m.cfg.Streaming {
			all = append(all, crashpoint.Staged, crashpoint.StagedEnded)
		}
		if !s.CopyDone {
			all = append(all, crashpoint.SlotMade, crashpoint.CopySent)
		} else if m.cfg.ReplayWindow < crashWait {
			all = append(all, crashpoint.Confirmed)
		}
		return all
	}
	all := []crashpoint.Point{crashpoint.Fetched, crashpoint.PartWritten, crashpoint.SinkCommitted, crashpoint.Checkpointed}
	if s.Phase == flo.PhaseCopying {
		all = append(all, crashpoint.CopyWritten)
	}
	return all
}

// crash ends a member, and the life after it at a boundary.
func (r *randomRun) crash(i int, f fault, m *member) {
	points := boundaries(m)
	arm := fmt.Sprintf("%s:%d", points[f.point%uint32(len(points))], 1+(f.n-1)*int(f.which%5))
	r.say(i, f, m, arm)
	r.kill(m)
	must(r.t, m.startArmed(arm))
	r.fall(m)
	must(r.t, m.start())
}

// fall waits for the end of a member that is armed, and ends it if that doesn't come.
func (r *randomRun) fall(m *member) {
	p := m.process()
	t := time.NewTimer(crashWait)
	defer t.Stop()
	select {
	case <-p.exited:
		r.tally.Kills++
		if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
			r.t.Errorf("%s: it ended by itself: %v", m.cfg.Name, p.err)
		}
	case <-t.C:
		r.kill(m)
	}
}

// paused stops a member, by SIGSTOP or at a boundary, until another one has taken over, and lets it go on beside that
// one. Then one of the two dies.
func (r *randomRun) paused(i int, f fault, m *member) {
	if m.cfg.Folder != "" {
		m = r.workers[0] // a folder's lock has no successor as long as the holder lives
	}
	r.say(i, f, m, "")
	armed := f.n%2 == 0
	if armed {
		points := boundaries(m)
		r.kill(m)
		must(r.t, m.startArmed(fmt.Sprintf("%s:%d:stop", points[f.point%uint32(len(points))], f.n)))
		pause(r.ctx, f.hold)
	}
	old := m.process()
	must(r.t, old.signal(syscall.SIGSTOP))
	must(r.t, m.start()) // beside it
	ctx, cancel := context.WithTimeout(r.ctx, takeoverWait)
	defer cancel()
	err := m.process().await(ctx, "it has taken over", func(s childStatus) bool { return s.Phase == flo.PhaseStreaming && s.Changes > 0 })
	if err != nil {
		r.logf("%v", err)
	}
	old.mu.Lock()
	old.ending = true // as a standby or by its lease's end it goes on; either may die
	old.mu.Unlock()
	must(r.t, old.signal(syscall.SIGCONT))
	pause(r.ctx, f.hold)
	select {
	case <-old.exited:
		r.t.Errorf("%s: the one that was paused ended by itself: %v", m.cfg.Name, old.err)
	default:
	}
	if f.which&1 == 0 && !armed { // the one that was paused takes over again; an armed one might pause once more
		r.tally.Kills++
		m.swap(old).kill()
		return
	}
	r.tally.Kills++
	old.kill()
}

// swap makes another process the member's present life, and gives the one before.
func (m *member) swap(p *process) *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.now
	m.now = p
	p.mu.Lock()
	p.ending = false
	p.mu.Unlock()
	return before
}

func (r *randomRun) terminate(i int, f fault, url, sql string) {
	n, err := query[int](r.ctx, url, sql)
	r.logf("%2d %s: %d backends, %v", i, f.kind, n, err)
	if n > 0 {
		r.tally.Cuts++
	}
}

// begun reports whether the stream holds the beginning of the copy that everybody works on: one that was rolled back
// to a time before that is no longer the group's.
func (r *randomRun) begun() bool {
	for _, m := range r.all() {
		if p := m.process().last().Phase; p != flo.PhaseCopying && p != flo.PhaseStreaming {
			return false
		}
	}
	return true
}

// natsDies kills the NATS server and starts it again, now and then with its folder as it was before.
func (r *randomRun) natsDies(i int, f fault) {
	begun := r.begun()
	// A file is given what is copied again, and the oracle can't tell which of its earlier lines that replaces.
	apart := r.plan.early && r.folder() != ""
	r.kill(r.nats)
	store, what := r.nats.cfg.Dir, "with all that it had"
	switch {
	case !r.plan.rollback || apart || r.backup == "" && !begun:
	case r.backup == "":
		what = "and its store is kept"
		r.backup = store + ".backup"
		must(r.t, os.CopyFS(r.backup, os.DirFS(store)))
	default:
		what = "with an older store"
		must(r.t, os.RemoveAll(store))
		must(r.t, os.CopyFS(store, os.DirFS(r.backup)))
		r.tally.Restarts++
	}
	r.logf("%2d %s %s", i, f.kind, what)
	pause(r.ctx, f.hold/4)
	must(r.t, r.nats.start())
}
