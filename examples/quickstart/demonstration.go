package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// Bounds of the demonstration's waits.
const (
	loadStart    = 30 * time.Second // until the first write is there
	catchUpBound = 5 * time.Minute
)

// errInterrupted says that ctx ended before the demonstration did.
var errInterrupted = errors.New("interrupted; everything temporary is removed")

// demonstrate runs the whole job between throwaway servers, and removes them.
func demonstrate(ctx context.Context, s settings, d *display) error {
	if _, err := flotest.Pgbench(); err != nil {
		return err
	}
	var t throwaway
	err := t.demonstrate(ctx, s, d)
	if ctx.Err() != nil {
		err = errInterrupted // whatever it broke on the way
	}
	if left := t.close(); left != nil {
		return fmt.Errorf("removing the throwaway servers: %w", left)
	}
	return err
}

func (t *throwaway) demonstrate(ctx context.Context, s settings, d *display) error {
	if err := d.step("two PostgreSQL servers and JetStream, throwaway", func() error { return t.start(ctx) }); err != nil {
		return err
	}
	if err := d.step(fmt.Sprintf("pgbench's tables, scale %d: %s accounts", s.scale, thousands(uint64(s.scale)*100_000)), func() error {
		return t.fill(ctx, s.scale)
	}); err != nil {
		return err
	}
	s.tables = []string{"public.pgbench_*"}
	f, err := pipeline(s, t.sourceURL, t.targetURL, flo.WithNATSServer(t.nats))
	if err != nil {
		return err
	}
	l := startLoad(ctx, t.sourceURL)
	defer l.stop()
	if err := l.wait(ctx); err != nil {
		return err
	}
	d.line("pgbench writes to the source, 4 clients; flo copies and streams")
	r := start(ctx, f, d)
	defer r.stop()
	if err := r.watch(ctx, func() bool {
		return l.ended() || !r.meter.copied.IsZero() && time.Since(r.meter.copied) >= s.load
	}); err != nil {
		return err
	}
	transactions, end, err := l.finish(ctx)
	if err != nil {
		return err
	}
	if err := r.catchUp(ctx, end); err != nil {
		return err
	}
	if err := r.stop(); err != nil {
		return err
	}
	d.line("pgbench   %s transactions\n%s", thousands(transactions), r.summary())
	return t.compare(ctx, d)
}

// catchUp waits until the destination holds everything up to end.
func (r *running) catchUp(ctx context.Context, end flo.LSN) error {
	ctx, cancel := context.WithTimeoutCause(ctx, catchUpBound, fmt.Errorf("the destination has not caught up within %s", catchUpBound))
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- r.f.WaitFor(ctx, end) }()
	var waited error
	var done bool
	if err := r.watch(ctx, func() bool {
		select {
		case waited = <-result:
			done = true
		default:
		}
		return done
	}); err != nil {
		return err
	}
	return waited
}

// compare compares every table row by row.
func (t *throwaway) compare(ctx context.Context, d *display) error {
	var report flotest.Report
	if err := d.step("every table compared, row by row", func() (err error) {
		report, err = flotest.Diff(ctx, t.sourceURL, t.targetURL)
		return err
	}); err != nil {
		return err
	}
	d.line("compared  %d tables, %s rows\ndifferences: %d", len(report.Tables), thousands(uint64(report.Rows())), report.Differences())
	if !report.Equal() {
		return fmt.Errorf("the sides differ:\n%s", report)
	}
	return nil
}

// load is pgbench at work.
type load struct {
	url    string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // set when done is closed
}

// loadBound is longer than anybody waits: pgbench is stopped, it doesn't end.
const loadBound = 48 * time.Hour

// startLoad lets pgbench's TPC-B-like script write: three updates and an insert a transaction.
func startLoad(ctx context.Context, url string) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{url: url, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		// -n: the vacuum at pgbench's start would truncate the history.
		_, l.err = flotest.RunPgbench(ctx, url, "-n", "-c", "4", "-j", "1", "-T", strconv.Itoa(int(loadBound.Seconds())))
		if ctx.Err() != nil {
			l.err = nil
		}
	}()
	return l
}

func (l *load) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *load) stop() {
	l.cancel()
	<-l.done
}

// wait returns when the load has written something.
func (l *load) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loadStart, fmt.Errorf("pgbench has written nothing within %s", loadStart))
	defer cancel()
	return l.until(ctx, "SELECT EXISTS (SELECT FROM pgbench_history)")
}

// finish stops the load. It gives the number of its transactions and a position behind all of them.
func (l *load) finish(ctx context.Context) (transactions uint64, end flo.LSN, err error) {
	l.stop()
	if l.err != nil {
		return 0, 0, l.err
	}
	// A session that has lost its client may still be committing.
	if err := l.until(ctx, "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgbench'"); err != nil {
		return 0, 0, err
	}
	conn, err := pgx.Connect(ctx, l.url)
	if err != nil {
		return 0, 0, err
	}
	defer conn.Close(ctx)
	err = conn.QueryRow(ctx, "SELECT count(*), pg_current_wal_flush_lsn() FROM pgbench_history").Scan(&transactions, &end)
	return transactions, end, err
}

// until asks the source again and again until the answer is true.
func (l *load) until(ctx context.Context, question string) error {
	conn, err := pgx.Connect(ctx, l.url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		var yes bool
		if err := conn.QueryRow(ctx, question).Scan(&yes); err != nil || yes {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			if l.ended() && l.err != nil {
				return l.err
			}
		}
	}
}
