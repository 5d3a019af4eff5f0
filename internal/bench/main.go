// Command bench measures flo end to end beside PostgreSQL's own tools, in one run on one machine:
//
//	go run ./internal/bench
//
// It starts two PostgreSQL servers and a JetStream server of its own, all with fsync, and measures
//
//   - a table of 1 million rows of about 240 bytes copied: by psql (COPY to a pipe to COPY), and by flo
//     in CopyOnly mode (source, JetStream, destination);
//   - a backlog of 1 million inserted rows in transactions of 100 streamed: by a native
//     subscription, by flo into PostgreSQL, and by flo into a sink that discards;
//   - backlogs of 300 thousand updates and of 100 thousand deletes, of a row each, in transactions of
//     100 too: by a native subscription, and by flo into PostgreSQL.
//
// With -large it measures one transaction of all rows instead, with and without flo.WithStreaming.
//
// Absolute figures differ from machine to machine, and the ratios much less. CPU seconds and peak
// memory are of the process that holds flo and the embedded JetStream server.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var b bench
	flag.IntVar(&b.rows, "rows", 1_000_000, "rows to copy, and to stream")
	flag.IntVar(&b.perTx, "tx", 100, "rows a transaction of the backlog")
	flag.IntVar(&b.runs, "runs", 3, "how often everything is measured; medians are printed")
	flag.IntVar(&b.connections, "connections", 2, "connections that copy, on each side")
	flag.StringVar(&b.profile, "cpuprofile", "", "write a CPU profile of flo's measurements here")
	flag.BoolVar(&b.onlyLarge, "large", false, "measure one transaction of all rows instead, read whole and streamed before it commits")
	flag.Parse()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the program.
type bench struct {
	rows, perTx, runs, connections int
	profile                        string
	onlyLarge                      bool
	servers
	groups  int // that have copied so far
	changes int // how many each measurement is of
	last    int // the id of the row that the backlog ends with
	results []*result
}

// result is what was measured of one thing.
type result struct {
	name    string
	changes int
	base    bool // the ones behind it are compared with it
	walls   []time.Duration
	cpus    []time.Duration
	peak    int64 // bytes, the most of all runs; 0: unknown or not ours
	ours    bool
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.rows < 1 || b.perTx < 1 || b.runs < 1 {
		return errors.New("-rows, -tx and -runs are at least 1")
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	stop, err := startProfile(b.profile)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if b.onlyLarge {
		return b.larges(ctx)
	}
	for i := range b.runs {
		fmt.Printf("run %d of %d\n", i+1, b.runs)
		if err := b.once(ctx, i); err != nil {
			return err
		}
	}
	b.print(ctx)
	return nil
}

// once measures everything once.
func (b *bench) once(ctx context.Context, run int) error {
	b.changes, b.last = b.rows, b.rows
	for _, m := range []struct {
		name    string
		ours    bool
		measure func(context.Context) error
	}{
		{"psql COPY to psql COPY", false, b.psqlCopy},
		{"flo, copy", true, b.floCopy},
	} {
		if err := b.calm(ctx, "rows"); err != nil {
			return err
		}
		if err := b.measure(ctx, m.name, m.ours, m.measure); err != nil {
			return err
		}
		if err := b.verify(ctx, "rows"); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	if err := b.streams(ctx, run); err != nil {
		return err
	}
	for _, c := range b.churns() {
		if err := b.churn(ctx, run, c); err != nil {
			return err
		}
	}
	return nil
}

// streams makes the slots, then a backlog, and lets each reader have it.
func (b *bench) streams(ctx context.Context, run int) error {
	if err := execute(ctx, b.from, "TRUNCATE changes"); err != nil {
		return err
	}
	readers, err := b.readers(ctx, "stream", run)
	if err != nil {
		return err
	}
	if err := b.backlog(ctx); err != nil {
		return err
	}
	for _, r := range readers {
		if err := b.calm(ctx, "changes"); err != nil {
			return err
		}
		if err := b.measure(ctx, r.name, r.ours, r.read); err != nil {
			return err
		}
		if r.writes {
			if err := b.verify(ctx, "changes"); err != nil {
				return fmt.Errorf("%s: %w", r.name, err)
			}
		}
		if err := r.end(ctx); err != nil {
			return err
		}
	}
	return nil
}

// measure runs something and notes what it took.
func (b *bench) measure(ctx context.Context, name string, ours bool, f func(context.Context) error) error {
	i := slices.IndexFunc(b.results, func(r *result) bool { return r.name == name })
	if i < 0 {
		i = len(b.results)
		b.results = append(b.results, &result{name: name, ours: ours, changes: b.changes, base: i == 0 || i == copies || i > copies && !ours})
	}
	r := b.results[i]
	runtime.GC()
	resetPeak()
	before, began := processTime(), time.Now()
	if err := f(ctx); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	wall := time.Since(began)
	r.walls = append(r.walls, wall)
	r.cpus = append(r.cpus, processTime()-before)
	r.peak = max(r.peak, peakMemory())
	fmt.Printf("  %-34s %6.2f s\n", name, wall.Seconds())
	return nil
}

// print prints the medians as a table.
func (b *bench) print(ctx context.Context) {
	fmt.Printf("\n%d rows of %s each, medians of %d; %s, %d CPUs, %s\n\n", b.rows, b.rowSize(ctx), b.runs, b.version(ctx), runtime.NumCPU(), runtime.Version())
	fmt.Println("| what | wall | rows/s | beside the first | CPU of flo and JetStream | peak memory |")
	fmt.Println("|---|---|---|---|---|---|")
	var base time.Duration
	for _, r := range b.results {
		wall := median(r.walls)
		if r.base {
			base = wall
		}
		cpu, peak := "", ""
		if r.ours {
			cpu = fmt.Sprintf("%.2f s", median(r.cpus).Seconds())
			if r.peak > 0 {
				peak = fmt.Sprintf("%d MB", r.peak>>20)
			}
		}
		fmt.Printf("| %s | %.2f s | %.0f | %.2f × the time | %s | %s |\n",
			r.name, wall.Seconds(), float64(r.changes)/wall.Seconds(), wall.Seconds()/base.Seconds(), cpu, peak)
	}
}

// copies is how many results are about the copy; those behind them are about streaming.
const copies = 2

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
