package flo_test

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

func TestMain(m *testing.M) {
	if urls := os.Getenv(childEnv); urls != "" {
		os.Exit(childMain(urls))
	}
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue && !raceDetector { // they wait more than they compute
		if err := f.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0))); err != nil {
			panic(err)
		}
	}
	os.Exit(flotest.Main(m))
}

// testTimeout ends a test that hangs.
const testTimeout = 90 * time.Second

// logger shows flo's log when a test is verbose.
func logger(t testing.TB) *slog.Logger {
	if !testing.Verbose() {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

// pipeline is a source, a destination, a NATS server, and a flo between them.
type pipeline struct {
	t        testing.TB
	src, dst *flotest.DB
	nats     *embednats.Server
	link     flo.Option // how flo reaches NATS
	f        *flo.Flo
	ownSlot  bool // the default slot's name would meet other tests' on the shared server
	stop     func() error
}

// newPipeline makes the databases and runs the same statements on both.
func newPipeline(t testing.TB, schema ...string) *pipeline {
	p := &pipeline{t: t, src: flotest.Postgres(t), dst: flotest.Postgres(t), nats: flotest.NATS(t)}
	p.link = flo.WithNATSServer(p.nats)
	whole, _, _ := strings.Cut(t.Name(), "/")
	_, p.ownSlot = besideOthers.Load(whole)
	for _, sql := range schema {
		p.src.Exec(t, sql)
		p.dst.Exec(t, sql)
	}
	return p
}

// options of the pipeline, with a PostgreSQL sink unless extra brings another one.
func (p *pipeline) options(extra ...flo.Option) []flo.Option {
	return append([]flo.Option{
		flo.WithGroup("shop"), flo.WithSource(p.src.URL), p.link, flo.WithLogger(logger(p.t)), flo.WithSlot(p.slot()),
		flo.WithIdleInterval(200 * time.Millisecond), flo.WithAttemptsInSequence(),
	}, extra...)
}

// slot is the name of the pipeline's slot.
func (p *pipeline) slot() string {
	if p.ownSlot {
		return "flo_" + p.src.Name
	}
	return "flo_shop"
}

// besideOthers are the names of tests that run beside others.
var besideOthers sync.Map

// parallel lets a test that mostly waits run beside others.
func parallel(t *testing.T) {
	besideOthers.Store(t.Name(), true)
	t.Parallel()
}

func (p *pipeline) sink(opts ...postgres.Option) *postgres.Sink {
	p.t.Helper()
	s, err := postgres.New(p.dst.URL, opts...)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// start runs flo in the background; p.stop ends it and gives what Run returned.
func (p *pipeline) start(ctx context.Context, opts ...flo.Option) {
	p.t.Helper()
	f, err := flo.New(p.options(opts...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	p.f = f
	stopped := false
	p.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	p.t.Cleanup(func() {
		if err := p.stop(); err != nil && !p.t.Failed() {
			p.t.Errorf("Run: %v", err)
		}
	})
}

// catchUp waits until the destination has all that the source has committed by now.
func (p *pipeline) catchUp(ctx context.Context) {
	p.t.Helper()
	lsn, err := decode.ParseLSN(p.src.QueryString(p.t, "SELECT pg_current_wal_flush_lsn()"))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.f.WaitFor(ctx, lsn); err != nil {
		p.t.Fatalf("%v; status %+v", err, p.f.Status())
	}
}

// ranOnce runs flo until it has caught up, and stops it.
func (p *pipeline) ranOnce(ctx context.Context, opts ...flo.Option) {
	p.t.Helper()
	p.start(ctx, opts...)
	p.catchUp(ctx)
	if err := p.stop(); err != nil {
		p.t.Fatal(err)
	}
}

const usersTable = `CREATE TABLE users (id bigint PRIMARY KEY, name text, big text, "Mixed Case" int)`

func TestCopyAndStreamMakeTheDestinationEqual(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, usersTable, `CREATE TABLE log (at timestamptz, what text)`)
	p.src.Exec(t, `INSERT INTO users SELECT i, 'user ' || i, repeat('x', 20), i FROM generate_series(1, 5000) i`)
	p.src.Exec(t, `INSERT INTO log SELECT now(), 'line' || i FROM generate_series(1, 100) i`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	flotest.Equal(t, ctx, p.src.URL, p.dst.URL)
	p.src.Exec(t, `UPDATE users SET name = 'changed' WHERE id % 7 = 0`)
	p.src.Exec(t, `DELETE FROM users WHERE id % 11 = 0`)
	p.src.Exec(t, `UPDATE users SET id = id + 100000 WHERE id < 50`)
	p.src.Exec(t, `INSERT INTO log VALUES (now(), NULL), (NULL, '')`)
	p.catchUp(ctx)
	flotest.Equal(t, ctx, p.src.URL, p.dst.URL)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO users SELECT i, 'late', NULL, NULL FROM generate_series(200000, 200100) i`)
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	flotest.Equal(t, ctx, p.src.URL, p.dst.URL)
}

func TestEveryBadOptionIsReportedAtOnce(t *testing.T) {
	_, err := flo.New(flo.WithGroup("No Group"), flo.WithMode("sideways"), flo.WithBatchSize(0), flo.WithCopyConnections(100), flo.WithSink(nil))
	if !errors.Is(err, flo.ErrInvalidOption) {
		t.Fatal(err)
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) < 6 {
		t.Fatalf("want the group, mode, NATS, source, batch size, connections and sink: %v", err)
	}
}
