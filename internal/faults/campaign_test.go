//go:build unix

package faults

import (
	"context"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"sync"
	"testing"
	"time"

	"github.com/pgflo/flo/internal/faults/ledger"
)

var (
	campaign   = flag.Duration("campaign", 0, "begin random runs for so long, and keep the ledger")
	ledgerPath = flag.String("ledger", "ledger.jsonl", "a campaign's ledger")
	lanes      = flag.Int("lanes", 2, "a campaign's runs at a time")
	commitName = flag.String("commit", "unknown", "what a campaign's ledger says of the code")
)

// A campaign is random runs, one seed after the other, until its time is over or it is interrupted: see the command
// campaign.
func TestCampaign(t *testing.T) {
	if *campaign == 0 {
		t.Skip("runs with -campaign: see go run ./internal/faults/campaign")
	}
	all, err := ledger.Read(*ledgerPath)
	must(t, err)
	next := ledger.Next(all, max(*seedFlag, 1))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop) // a second interrupt ends the process
	ctx, cancel := context.WithTimeout(ctx, *campaign)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	lane := func(l *lane) {
		for ctx.Err() == nil {
			mu.Lock()
			seed := next
			next = ledger.Next(all, next+1)
			mu.Unlock()
			began := time.Now()
			done, ok := l.seeded(t, seed)
			e := ledger.Entry{
				Seed: seed, Commit: *commitName, Seconds: math.Round(10*time.Since(began).Seconds()) / 10,
				Kills: done.Kills, Cuts: done.Cuts, Restarts: done.Restarts, Rows: done.Rows, Commits: done.Changes, Streamed: done.Streamed, Schema: done.Schema, Result: ledger.OK,
			}
			if !ok {
				e.Result, e.Reason = ledger.Failed, done.Reason
			}
			mu.Lock()
			if err := ledger.Append(*ledgerPath, e); err != nil {
				t.Error(err)
				cancel()
			}
			all = append(all, e)
			fmt.Fprintf(os.Stderr, "%s seed %d: %s %s; %s\n", time.Now().Format("15:04:05"), seed, e.Result, e.Reason, ledger.Sum(all))
			mu.Unlock()
		}
	}
	for range *lanes {
		l := newLane(t, ctx)
		wg.Go(func() { lane(l) })
	}
	wg.Wait()
}
