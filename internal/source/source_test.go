package source

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/names"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// limit bounds every wait of a test.
const limit = 30 * time.Second

func config(t testing.TB, url string) Config {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return Config{Conn: cfg, AppName: "flo test"}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func connect(t testing.TB, c Config) *pgx.Conn {
	t.Helper()
	conn, err := c.Connect(t.Context())
	must(t, err)
	t.Cleanup(func() { hangUp(context.Background(), conn) })
	return conn
}

func patterns(t testing.TB, texts ...string) []names.Pattern {
	t.Helper()
	p, err := names.ParseAll(texts)
	must(t, err)
	return p
}

// publish makes publication and slot for the named tables.
func publish(t testing.TB, c Config, tables ...string) (Published, decode.LSN) {
	t.Helper()
	conn := connect(t, c)
	found, _, err := c.ResolveTables(t.Context(), conn, patterns(t, tables...), nil)
	must(t, err)
	published, err := c.EnsurePublication(t.Context(), conn, PublicationSpec{Name: "flo_test", Tables: found})
	must(t, err)
	slot, err := c.CreateSlot(t.Context(), slotName(c), false, nil)
	must(t, err)
	must(t, slot.Release(t.Context()))
	return published, slot.Point
}

// slotName is the database's: slots belong to the whole server.
func slotName(c Config) string { return "flo_" + c.Conn.Database }

// start streams from a point; the stream ends with the test.
func start(t testing.TB, ctx context.Context, c Config, p Published, from decode.LSN) *Stream {
	t.Helper()
	system, err := c.Identify(ctx)
	must(t, err)
	s, err := c.StartStream(ctx, StreamConfig{Slot: slotName(c), Publications: p.Names, From: from, System: system})
	must(t, err)
	t.Cleanup(func() { must(t, s.Close(context.Background())) })
	return s
}

// next gives the next frame's message type, skipping keepalives.
func next(t testing.TB, s *Stream) Event {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); {
		e, err := s.Next(time.Second)
		must(t, err)
		if e.Kind == Frame {
			return e
		}
	}
	t.Fatal("no frame came")
	return Event{}
}

// eventually waits for a condition while the stream is read.
func eventually(t testing.TB, what string, s *Stream, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, limit)
		}
		if s == nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		_, err := s.Next(10 * time.Millisecond)
		must(t, err)
	}
}
