package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"
)

// subject is one thing to measure.
type subject struct {
	group, name string
	ours        bool
	changes     int
	goal        float64 // the most that its time may be of the group's yardstick's; 0: none
	run         func(context.Context) error
}

// result is what was measured of a subject.
type result struct {
	subject
	walls               []time.Duration
	flo, source, target []time.Duration // CPU
	latencies           []time.Duration // of all runs
	peak                int64           // bytes, the most of all runs; 0: unknown or not ours
	profile             string
}

// result finds or makes the one of a subject.
func (b *bench) result(s subject) *result {
	for _, r := range b.results {
		if r.group == s.group && r.name == s.name {
			return r
		}
	}
	b.results = append(b.results, &result{subject: s})
	return b.results[len(b.results)-1]
}

// measure runs something and notes what it took.
func (b *bench) measure(ctx context.Context, s subject) error {
	r := b.result(s)
	runtime.GC()
	resetPeak()
	stop, err := b.profile(r)
	if err != nil {
		return err
	}
	before, began := b.usage(), time.Now()
	err = s.run(ctx)
	wall := time.Since(began)
	used := b.usage()
	if err := errors.Join(err, stop()); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	r.walls = append(r.walls, wall)
	r.flo = append(r.flo, used.flo-before.flo)
	r.source = append(r.source, used.source-before.source)
	r.target = append(r.target, used.target-before.target)
	if s.ours {
		r.peak = max(r.peak, peakMemory())
	}
	fmt.Fprintf(os.Stderr, "  %-16s %-34s %6.2f s\n", s.group, s.name, wall.Seconds())
	return nil
}

// usage is CPU time used so far.
type usage struct{ flo, source, target time.Duration }

func (b *bench) usage() usage {
	return usage{processTime(), serverTime(b.source.DataDir()), serverTime(b.target.DataDir())}
}

// profile writes a profile of what is flo's, if it is asked for.
func (b *bench) profile(r *result) (stop func() error, err error) {
	if b.profiles == "" || !r.ours {
		return func() error { return nil }, nil
	}
	r.profile = filepath.Join(b.profiles, strings.NewReplacer(" ", "_", ",", "").Replace(r.group+"_"+r.name)+".pprof")
	if err := os.MkdirAll(b.profiles, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(r.profile)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() error {
		pprof.StopCPUProfile()
		return f.Close()
	}, nil
}

func median(d []time.Duration) time.Duration { return quantile(d, 0.5) }

// quantile gives the value below which a share q of d lies.
func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	d = slices.Clone(d)
	slices.Sort(d)
	return d[min(int(q*float64(len(d))), len(d)-1)]
}
