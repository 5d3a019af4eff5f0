//go:build unix

package faults

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/file"
	"github.com/pgflo/flo/sink/postgres"
)

// envRole tells the test binary that it is a child, and which.
const envRole = "FLO_FAULTS_ROLE"

const (
	roleReplicator = "replicator"
	roleWorker     = "worker"
	roleNATS       = "nats"
)

// childConfig is a child's first line of standard input.
type childConfig struct {
	Name  string // of the worker, and in the test's log
	Group string

	Procs       int           `json:",omitempty"` // GOMAXPROCS; 0: Go's default
	Lease       time.Duration `json:",omitempty"` // 0: leaseTime
	StopTimeout time.Duration `json:",omitempty"` // 0: flo's default

	Source string // URL
	NATS   string // URL
	Given  bool   `json:",omitempty"` // flo is given a connection to it

	Tables          []string      `json:",omitempty"`
	CopyConnections int           `json:",omitempty"`
	ReplayWindow    time.Duration `json:",omitempty"`
	StreamMaxBytes  int64         `json:",omitempty"`
	Streaming       bool          `json:",omitempty"`
	DDL             bool          `json:",omitempty"`

	Destination string        `json:",omitempty"` // URL; or
	Folder      string        `json:",omitempty"` // of the file sink
	BatchSize   int           `json:",omitempty"`
	Lanes       int           `json:",omitempty"` // connections that apply changes
	BatchBytes  int           `json:",omitempty"`
	Flush       time.Duration `json:",omitempty"`
	Moods       *moods        `json:",omitempty"` // of the sink

	Listen     string `json:",omitempty"` // of the NATS server
	Dir        string `json:",omitempty"` // of its store
	MaxPayload int    `json:",omitempty"` // in bytes
	LazySync   bool   `json:",omitempty"` // it acknowledges what is not on the disk yet
}

// childStatus is a line of a child's standard output, written whenever it has changed.
type childStatus struct {
	Ready     bool // the role has begun
	Address   string
	Phase     flo.Phase
	LastError string
	Retries   int
	Warnings  []string

	Published  decode.LSN
	Confirmed  decode.LSN
	CopyDone   bool
	RangesDone int
	Ranges     int

	Applied  decode.LSN
	Changes  uint64
	CopyRows uint64
}

// The exit codes of a child that was not killed.
const (
	exitDone     = 0
	exitFailed   = 1
	exitOrphaned = 3
)

// stopLine, on standard input, asks a child to end in order.
const stopLine = "stop"

// idleInterval keeps idle markers, and so WaitFor, quick.
const idleInterval = 200 * time.Millisecond

// runChild is the main function of a child: it ends by the role's own end, by stopLine, or with the
// parent, whose end closes standard input.
func runChild(role string) int {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return exitOrphaned
	}
	var cfg childConfig
	if err := json.Unmarshal(line, &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitFailed
	}
	if cfg.Procs > 0 {
		runtime.GOMAXPROCS(cfg.Procs)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				os.Exit(exitOrphaned)
			}
			if strings.TrimSpace(line) == stopLine {
				cancel()
			}
		}
	}()
	level := slog.LevelDebug
	if role == roleNATS {
		level = slog.LevelWarn // the rest is long, and says nothing that a failed test is about
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	status := reporter(os.Stdout)
	switch role {
	case roleReplicator:
		err = runReplicator(ctx, &cfg, log, status)
	case roleWorker:
		err = runWorker(ctx, &cfg, log, status)
	case roleNATS:
		err = runNATS(ctx, &cfg, log, status)
	default:
		err = fmt.Errorf("no such role: %s", role)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ended:", err)
		return exitFailed
	}
	return exitDone
}

// reporter writes a status if it is another one than before.
func reporter(w io.Writer) func(childStatus) {
	last := ""
	return func(s childStatus) {
		s.Ready = true
		b, err := json.Marshal(s)
		if err != nil || string(b) == last {
			return
		}
		last = string(b)
		fmt.Fprintln(w, last) // the parent's end of the pipe being gone shows at standard input
	}
}

// statusInterval is how often a child looks at its own status.
const statusInterval = 10 * time.Millisecond

// report runs a half and reports beside it.
func report(ctx context.Context, run func(context.Context) error, status func()) error {
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		status()
		select {
		case err := <-done:
			status()
			return err
		case <-tick.C:
		}
	}
}

// common gives the options of both halves, and what is left to close behind their Run.
func (c *childConfig) common(log *slog.Logger) ([]flo.Option, func(), error) {
	lease := leaseTime
	if c.Lease > 0 {
		lease = c.Lease
	}
	opts := []flo.Option{flo.WithGroup(c.Group), flo.WithLogger(log), flo.WithLeaseTime(lease)}
	if c.StopTimeout > 0 {
		opts = append(opts, flo.WithStopTimeout(c.StopTimeout))
	}
	way := []nats.Option{nats.ReconnectWait(reconnectWait), nats.ReconnectJitter(reconnectWait, 0), nats.IgnoreDiscoveredServers()}
	if !c.Given {
		return append(opts, flo.WithNATSURL(c.NATS, way...)), func() {}, nil
	}
	nc, err := nats.Connect(c.NATS, append(way, nats.MaxReconnects(-1))...)
	if err != nil {
		return nil, nil, err
	}
	return append(opts, flo.WithNATS(nc)), nc.Close, nil
}

// reconnectWait is short: links and servers are back soon.
const reconnectWait = 50 * time.Millisecond

// leaseTime is short: processes that are paused are superseded after it.
const leaseTime = 2 * time.Second

func runReplicator(ctx context.Context, c *childConfig, log *slog.Logger, status func(childStatus)) error {
	opts, done, err := c.common(log)
	if err != nil {
		return err
	}
	defer done()
	opts = append(opts, flo.WithSource(c.Source), flo.WithTables(c.Tables...),
		flo.WithReplayWindow(c.ReplayWindow), flo.WithIdleInterval(idleInterval))
	if c.CopyConnections > 0 {
		opts = append(opts, flo.WithCopyConnections(c.CopyConnections))
	}
	if c.StreamMaxBytes > 0 {
		opts = append(opts, flo.WithStreamMaxBytes(c.StreamMaxBytes))
	}
	opts = append(opts, flo.WithStreaming(c.Streaming))
	if c.DDL {
		opts = append(opts, flo.WithDDL())
	}
	r, err := flo.NewReplicator(opts...)
	if err != nil {
		return err
	}
	return report(ctx, r.Run, func() {
		st := r.Status()
		s := childStatus{Phase: st.Phase, LastError: st.LastError, Retries: st.Retries, Warnings: st.Warnings,
			Published: st.Published, Confirmed: st.Confirmed, CopyDone: st.CopyDone, Changes: st.Changes}
		for _, t := range st.Tables {
			s.CopyRows += t.Rows
			s.Ranges += t.Ranges
			s.RangesDone += t.Done
		}
		status(s)
	})
}

func runWorker(ctx context.Context, c *childConfig, log *slog.Logger, status func(childStatus)) error {
	var s sink.Sink
	var err error
	if c.Folder != "" {
		s = file.New(c.Folder)
	} else {
		opts := []postgres.Option{postgres.WithLogger(log)}
		if c.Lanes > 0 {
			opts = append(opts, postgres.WithApplyConnections(c.Lanes))
		}
		if s, err = postgres.New(c.Destination, opts...); err != nil {
			return err
		}
	}
	var own []flo.WorkerOption
	if c.BatchSize > 0 {
		own = append(own, flo.WithBatchSize(c.BatchSize))
	}
	if c.Flush > 0 {
		own = append(own, flo.WithFlushInterval(c.Flush))
	}
	if c.BatchBytes > 0 {
		own = append(own, flo.WithBatchBytes(c.BatchBytes))
	}
	opts, done, err := c.common(log)
	if err != nil {
		return err
	}
	defer done()
	w, err := flo.NewWorker(append(opts, flo.WithWorker(c.Name, withMoods(s, c.Moods), own...))...)
	if err != nil {
		return err
	}
	return report(ctx, w.Run, func() {
		st := w.Status()
		status(childStatus{Phase: st.Phase, LastError: st.LastError, Retries: st.Retries,
			Applied: st.Applied, Changes: st.Changes, CopyRows: st.CopyRows})
	})
}

func runNATS(ctx context.Context, c *childConfig, log *slog.Logger, status func(childStatus)) error {
	opts := []embednats.Option{embednats.WithDir(c.Dir), embednats.WithListen(c.Listen), embednats.WithLogger(log)}
	if c.MaxPayload > 0 {
		opts = append(opts, embednats.WithMaxPayload(c.MaxPayload))
	}
	if c.LazySync {
		opts = append(opts, embednats.WithSyncInterval(time.Minute))
	}
	s, err := embednats.Start(ctx, opts...)
	if err != nil {
		return err
	}
	status(childStatus{Address: s.URL()})
	<-ctx.Done()
	return s.Close()
}
