package request_test

import (
	"context"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/state"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// wire is a way to the server that can swallow what is sent.
type wire struct {
	mu       sync.Mutex
	conn     net.Conn
	swallows bool
	lost     chan struct{} // closed with the first request that was swallowed
}

func (w *wire) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn = c
	return &leaky{Conn: c, wire: w}, err
}

// swallow loses what is sent from now on; the channel is closed when something was.
func (w *wire) swallow() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.swallows, w.lost = true, make(chan struct{})
	return w.lost
}

// cut ends the connection. The next one loses nothing.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.swallows = false
	w.conn.Close()
}

type leaky struct {
	net.Conn
	wire *wire
}

func (l *leaky) Write(b []byte) (int, error) {
	l.wire.mu.Lock()
	defer l.wire.mu.Unlock()
	if !l.wire.swallows {
		return l.Conn.Write(b)
	}
	if strings.Contains(string(b), "$JS.API.") {
		select {
		case <-l.wire.lost:
		default:
			close(l.wire.lost)
		}
	}
	return len(b), nil
}

// A request that was lost with its connection is made again when there is another one, not when its time is over.
func TestWhatALostConnectionSwallowedIsAskedAgain(t *testing.T) {
	srv := flotest.NATS(t, embednats.WithListen("127.0.0.1:0"))
	way := &wire{}
	nc, err := nats.Connect(srv.URL(), nats.SetCustomDialer(way), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	store, err := state.NewNATS(ctx, js, "g", 1, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutWorker(ctx, state.Worker{Name: "w"}, 0); err != nil {
		t.Fatal(err)
	}
	cfg := bus.Config{JS: js, Group: "g"}
	stream, _, err := bus.Create(ctx, cfg, "1", "db")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, stream.ChangesSubject(), []byte("x")); err != nil {
		t.Fatal(err)
	}
	reader := stream.Read(ctx, stream.ChangesSubject(), 1, bus.ReaderOptions{})
	defer reader.Close()
	for _, c := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"opening the state", func(ctx context.Context) error { _, err := state.NewNATS(ctx, js, "g", 1, false); return err }},
		{"a record", func(ctx context.Context) error { _, _, err := store.Worker(ctx, "w"); return err }},
		{"the workers", func(ctx context.Context) error { _, err := store.Workers(ctx); return err }},
		{"opening the stream", func(ctx context.Context) error { _, err := bus.Open(ctx, cfg); return err }},
		{"its state", func(ctx context.Context) error { _, err := stream.Info(ctx); return err }},
		{"its tail", func(ctx context.Context) error { _, err := stream.Tail(ctx); return err }},
		{"reading", func(ctx context.Context) error { _, err := reader.Next(ctx); return err }},
	} {
		lost := way.swallow()
		done := make(chan error, 1)
		go func() { done <- c.do(ctx) }()
		select {
		case <-lost:
		case err := <-done:
			t.Fatalf("%s: nothing was asked: %v", c.what, err)
		}
		began := time.Now()
		way.cut()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s took %s behind the loss of the connection", c.what, took.Round(time.Millisecond))
		}
	}
}
