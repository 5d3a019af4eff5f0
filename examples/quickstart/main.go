// Command quickstart shows flo at work on this machine:
//
//	go run ./examples/quickstart
//
// It starts two throwaway PostgreSQL servers and a JetStream server, fills the first database with
// pgbench's tables (one million accounts), and runs flo in copy-and-stream mode while pgbench keeps
// writing. Then it stops the load, waits until the destination has caught up, compares every table
// row by row, and exits 0 if there is no difference. Everything it made is gone afterwards.
//
// Between servers of your own it does the same job, without a load, until it is interrupted:
//
//	go run ./examples/quickstart -source "$SOURCE" -target "$TARGET" -nats nats://localhost:4222
//
// The tables have to exist, empty, at the target:
//
//	pg_dump --schema-only "$SOURCE" | psql "$TARGET"
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// The exit codes.
const (
	exitFailed      = 1 // an error, or differences
	exitUsage       = 2
	exitInterrupted = 130 // the demonstration was cut short
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// settings are what the flags say.
type settings struct {
	scale int
	load  time.Duration

	source, target, nats string
	group                string
	tables               []string
	replicaRole          bool
	drop                 bool
}

// errUsage marks complaints about the flags.
var errUsage = errors.New("usage")

const usage = `Without -source, -target and -nats: a demonstration between throwaway servers.
With them: the same job between yours, until it is interrupted. Start it again to go on.
  The tables have to exist, empty, at the target:
    pg_dump --schema-only "$SOURCE" | psql "$TARGET"
  The source needs wal_level = logical. Remove what flo made there and in NATS with -drop.

`

// parse reads the flags. It says on errs what is wrong with them.
func parse(args []string, errs io.Writer) (settings, error) {
	var s settings
	var tables string
	f := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	f.SetOutput(errs)
	f.Usage = func() {
		fmt.Fprint(errs, usage)
		f.PrintDefaults()
	}
	f.IntVar(&s.scale, "scale", 10, "demonstration: pgbench's scale, 100,000 accounts each")
	f.DurationVar(&s.load, "load", 10*time.Second, "demonstration: how long pgbench goes on after the copy")
	f.StringVar(&s.source, "source", "", "URL of the database to replicate from")
	f.StringVar(&s.target, "target", "", "URL of the database to replicate to")
	f.StringVar(&s.nats, "nats", "", "URL of a NATS server with JetStream")
	f.StringVar(&s.group, "group", "quickstart", "name of the slot, the publication and the stream, behind flo_")
	f.StringVar(&tables, "tables", "", "what to replicate, for example public.users,shop.* (default all tables)")
	f.BoolVar(&s.replicaRole, "replica-role", false, "let triggers and foreign keys of the target rest while flo writes")
	f.BoolVar(&s.drop, "drop", false, "remove slot, publications and stream of the group, and end")
	if err := f.Parse(args); err != nil {
		return s, err
	}
	for t := range strings.SplitSeq(tables, ",") {
		if t = strings.TrimSpace(t); t != "" {
			s.tables = append(s.tables, t)
		}
	}
	err := s.validate()
	if f.NArg() > 0 {
		err = fmt.Errorf("%w: unexpected argument %q", errUsage, f.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(errs, "quickstart:", err)
	}
	return s, err
}

func (s *settings) validate() error {
	given := 0
	for _, url := range []string{s.source, s.target, s.nats} {
		if url != "" {
			given++
		}
	}
	switch {
	case given != 0 && given != 3:
		return fmt.Errorf("%w: give -source, -target and -nats together, or none of them", errUsage)
	case s.drop && given == 0:
		return fmt.Errorf("%w: -drop needs -source, -target and -nats", errUsage)
	case s.scale < 1 || s.scale > 10_000:
		return fmt.Errorf("%w: -scale %d: want 1 to 10000", errUsage, s.scale)
	case s.load < 0 || s.load > 24*time.Hour:
		return fmt.Errorf("%w: -load %s: want 0 to 24h", errUsage, s.load)
	}
	return nil
}

func run(ctx context.Context, args []string, out *os.File, errs io.Writer) int {
	s, err := parse(args, errs)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return exitUsage
	}
	d := newDisplay(out)
	if s.source != "" {
		err = between(ctx, s, d)
	} else {
		err = demonstrate(ctx, s, d)
	}
	d.end()
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInterrupted):
		fmt.Fprintln(errs, "quickstart:", err)
		return exitInterrupted
	}
	fmt.Fprintln(errs, "quickstart:", err)
	return exitFailed
}
