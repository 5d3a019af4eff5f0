//go:build unix

package faults

import (
	"context"
	"testing"
	"time"

	"github.com/pgflo/flo"
)

// Bad days of the network between replicator, source, NATS, worker and destination: 200 ms of latency each way, 1 MB/s,
// a link that is down for ten seconds, one that is half-open for ten seconds, and one that flaps. Changes go on
// being applied while it is only slow, and go on by themselves after the rest.
func TestBadWeather(t *testing.T) {
	if testing.Short() {
		t.Skip("ten seconds half-open and ten seconds cut")
	}
	t.Parallel()
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, runLimit, "", "")
	r.localNATS()
	r.both(mixedSchema)
	l, writing := newLoad(r)
	l.large, l.pace = 1500, 50*time.Millisecond
	startMixed(r, l, writing, s, 2)
	var links []*link
	way := func(name, url string) string {
		k, u := newLink(t, name, url)
		links = append(links, k)
		return u
	}
	repl := r.replicator(childConfig{Lease: usualLease, Source: way("replicator to source", r.source), NATS: way("replicator to NATS", r.nats)})
	pg := r.worker(childConfig{Lease: usualLease, Destination: way("worker to destination", r.dest), NATS: way("worker to NATS", r.nats)})
	r.streams(repl, pg)
	l.truncates.Store(true)
	goesOn := func() {
		t.Helper()
		seen := repl.process().last().Published
		must(t, pg.await(r.ctx, "what is published now is applied", func(s childStatus) bool { return s.Phase == flo.PhaseStreaming && s.Applied > seen }))
	}

	for _, w := range []weather{{delay: 200 * time.Millisecond}, {rate: 1e6}} {
		for _, k := range links {
			k.set(w)
		}
		goesOn()
		before := repl.process().last()
		must(t, pause(r.ctx, 2*time.Second)) // some more of it
		goesOn()
		if after := repl.process().last(); after.Retries > before.Retries {
			t.Errorf("slow links interrupted the replicator: %s", after.LastError)
		}
	}
	for _, k := range links {
		k.set(weather{})
	}
	// Two links at a time, so that each pair of neighbours sees both.
	const bad = 10 * time.Second
	rnd.Shuffle(len(links), func(i, j int) { links[i], links[j] = links[j], links[i] })
	for i, k := range links {
		r.logf("%s: %s", k.name, []string{"half-open", "down"}[i%2])
	}
	ends := make(chan struct{})
	go func() {
		defer close(ends)
		links[0].muffled(r.ctx, bad)
		links[2].muffled(r.ctx, bad/5)
	}()
	down(r.ctx, links[1], bad)
	down(r.ctx, links[3], bad/5)
	<-ends
	for range 15 {
		k := links[rnd.IntN(len(links))]
		k.cut()
		must(t, pause(r.ctx, between(rnd, 0, 200*time.Millisecond)))
	}
	goesOn()
	l.finish(r)
	r.catchUp()
	r.equal()
	r.stopAll()
}

// usualLease is flo's default: a renewal stands in line behind what is published.
const usualLease = 10 * time.Second

// down cuts a link and refuses new connections for a while.
func down(ctx context.Context, k *link, d time.Duration) {
	k.set(weather{down: true})
	k.cut()
	pause(ctx, d)
	k.set(weather{})
}
