// Command bench measures flo end to end beside PostgreSQL's own tools, in one run on one machine:
//
//	go run ./internal/bench
//
// It starts two PostgreSQL servers and a JetStream server of its own, all with fsync, and measures in
// groups, each beside the yardstick that stands first in it:
//
//   - copy: a table of 1 million rows of about 240 bytes, by a native subscription's initial sync, by
//     psql (COPY to a pipe to COPY), and by flo in CopyOnly mode (source, JetStream, destination);
//   - inserts: a backlog of 1 million rows in transactions of 100, by a native subscription, by flo from the
//     source's backlog on, by flo's worker from JetStream alone, and by flo into a sink that discards;
//   - inserts in transactions of 1 row, and of all rows at once;
//   - updates and deletes: backlogs of 300 and 100 thousand, in transactions of 100;
//   - far: the inserts and updates with 5 ms of network, each way, before the destination;
//   - latency: from commit at the source until a client of the destination sees it, at 200 transactions a second.
//
// With -large it measures one transaction of all rows instead, with and without flo.WithStreaming.
//
// A native subscription is enabled only when its backlog is complete, and has its defaults: synchronous_commit = off
// at the destination. flo's sink has the same (postgres.WithSynchronousCommit).
//
// Absolute figures differ from machine to machine, and the ratios much less. CPU time is given by
// process: flo with the embedded JetStream server, the source's server, the destination's server; memory
// is the first one's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var b bench
	flag.IntVar(&b.rows, "rows", 1_000_000, "rows to copy, and to stream")
	flag.IntVar(&b.perTx, "tx", 100, "rows a transaction of the backlogs")
	flag.IntVar(&b.runs, "runs", 3, "how often everything is measured; medians are printed")
	flag.IntVar(&b.connections, "connections", 2, "connections that copy, on each side")
	flag.IntVar(&b.ticks, "ticks", 2000, "transactions of the latency measurement")
	flag.StringVar(&b.only, "only", "", "measure only these groups, by comma: "+strings.Join(groupNames(), ","))
	flag.StringVar(&b.json, "json", "", "write the results as JSON to this file, - for the standard output")
	flag.BoolVar(&b.onlyLarge, "large", false, "measure one transaction of all rows instead, read whole and streamed before it commits")
	flag.StringVar(&b.profiles, "profiles", "", "write CPU profiles of flo's measurements into this folder")
	flag.Parse()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run of the program.
type bench struct {
	rows, perTx, runs, connections, ticks int
	only, json, profiles                  string
	onlyLarge                             bool
	servers
	serial  int         // of groups made so far: a destination remembers which stream a group's worker has had
	last    int         // the id of the row that the backlog ends with
	seen    []time.Time // when each tick was seen
	results []*result
}

// group is measurements that are compared.
type group struct {
	name    string
	measure func(b *bench, ctx context.Context) error
}

// groups in the order in which they are measured.
var groups = []group{
	{"copy", (*bench).copies},
	{"inserts", (*bench).inserts},
	{"inserts-tx1", (*bench).insertsOneByOne},
	{"inserts-one-tx", (*bench).insertsAtOnce},
	{"updates", (*bench).updates},
	{"deletes", (*bench).deletes},
	{"far-inserts", (*bench).farInserts},
	{"far-updates", (*bench).farUpdates},
	{"latency", (*bench).latency},
}

func groupNames() (names []string) {
	for _, g := range groups {
		names = append(names, g.name)
	}
	return names
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.rows < 1000 || b.perTx < 1 || b.runs < 1 || b.ticks < 100 {
		return errors.New("-rows is at least 1000, -ticks 100, -tx and -runs 1")
	}
	only := strings.Split(b.only, ",")
	for _, name := range only {
		if b.only != "" && !slices.Contains(groupNames(), name) {
			return fmt.Errorf("-only: no group %q", name)
		}
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.start(ctx); err != nil {
		return err
	}
	if b.onlyLarge {
		return b.larges(ctx)
	}
	for i := range b.runs {
		fmt.Fprintf(os.Stderr, "run %d of %d\n", i+1, b.runs)
		for _, g := range groups {
			if b.only != "" && !slices.Contains(only, g.name) {
				continue
			}
			if err := g.measure(b, ctx); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
		}
	}
	return b.report(ctx)
}
