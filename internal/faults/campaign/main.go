// Command campaign runs the random fault suite of package faults for as long as it is told, and keeps a ledger:
//
//	go run ./internal/faults/campaign -for 30m
//	go run ./internal/faults/campaign -summary
//
// It takes the lowest seeds that the ledger hasn't got. Ctrl-C ends it behind the runs that are under way, with status 0 if
// none failed (go run itself says 1 after any interrupt); a second one ends it at once, with status 1, and those runs are not
// recorded. The same command takes it up again. Call it from the module's root.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/pgflo/flo/internal/faults/ledger"
)

func main() {
	length := flag.Duration("for", 30*time.Minute, "how long to begin runs")
	path := flag.String("ledger", "internal/faults/ledger.jsonl", "the file that runs are added to")
	lanes := flag.Int("lanes", 2, "runs at a time, each with servers of its own")
	verbose := flag.Bool("v", false, "tell each run's faults, and at once why it failed")
	summary := flag.Bool("summary", false, "print the ledger's totals and the runs that failed, and do no run")
	flag.Parse()
	err := error(nil)
	if !*summary {
		err = run(*length, *path, *lanes, *verbose)
	}
	if err = errors.Join(err, sum(*path)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run builds the suite with crash points, and lets it work. An interrupt at the terminal reaches the suite by itself, which
// decides what it means.
func run(length time.Duration, path string, lanes int, verbose bool) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "flo-campaign-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	exe := filepath.Join(dir, "faults.test")
	build := exec.Command("go", "test", "-c", "-tags", "flocrash", "-o", exe, "./internal/faults")
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building the suite: %w", err)
	}
	commit := "unknown"
	if out, err := exec.Command("git", "rev-parse", "--short=9", "HEAD").Output(); err == nil {
		commit = string(out[:max(len(out)-1, 0)])
	}
	suite := exec.Command(exe, "-test.run", "^TestCampaign$", "-test.timeout", "0",
		"-campaign", length.String(), "-ledger", path, "-lanes", fmt.Sprint(lanes), "-commit", commit, "-shrink", "1m", fmt.Sprintf("-test.v=%t", verbose))
	suite.Dir = filepath.Join("internal", "faults")
	suite.Stdout, suite.Stderr = os.Stdout, os.Stderr
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	if err := suite.Start(); err != nil {
		return err
	}
	go func() {
		for s := range interrupts {
			if s == syscall.SIGTERM { // sent to this process alone
				_ = suite.Process.Signal(os.Interrupt)
			}
		}
	}()
	return suite.Wait()
}

func sum(path string) error {
	all, err := ledger.Read(path)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.Result != ledger.OK {
			fmt.Printf("seed %d at %s: %s %s\n", e.Seed, e.Commit, e.Result, e.Reason)
		}
	}
	fmt.Println(ledger.Sum(all))
	return nil
}
