package embednats_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/pgflo/flo/embednats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, opts ...embednats.Option) *embednats.Server {
	t.Helper()
	s, err := embednats.Start(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func connect(t *testing.T, s *embednats.Server, opts ...nats.Option) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	nc, err := s.Conn(t.Context(), opts...)
	if err != nil {
		t.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return nc, js
}

func TestDataSurvivesCloseAndStart(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	for _, opt := range []embednats.Option{embednats.WithSyncAlways(), embednats.WithSyncInterval(time.Hour)} {
		s := start(t, embednats.WithDir(dir), opt)
		_, js := connect(t, s)
		if _, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s.>"}}); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if _, err := js.Publish(ctx, "s.x", fmt.Append(nil, i)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, embednats.WithDir(dir))
	_, js := connect(t, s)
	st, err := js.Stream(ctx, "S")
	if err != nil {
		t.Fatal(err)
	}
	if got := st.CachedInfo().State.Msgs; got != 20 {
		t.Fatalf("%d messages after two restarts, want 20", got)
	}
}

func TestRestartKeepsDataAndReconnects(t *testing.T) {
	for _, listen := range []bool{false, true} {
		t.Run(fmt.Sprintf("listen=%t", listen), func(t *testing.T) {
			ctx := t.Context()
			opts := []embednats.Option{embednats.WithTempDir()}
			if listen {
				opts = append(opts, embednats.WithListen("127.0.0.1:0"))
			}
			s := start(t, opts...)
			url := s.URL()
			back := make(chan struct{}, 1)
			_, js := connect(t, s, nats.ReconnectHandler(func(*nats.Conn) { back <- struct{}{} }))
			if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
				t.Fatal(err)
			}
			if _, err := js.Publish(ctx, "s", []byte("a")); err != nil {
				t.Fatal(err)
			}
			if err := s.Restart(ctx); err != nil {
				t.Fatal(err)
			}
			select {
			case <-back:
			case <-time.After(20 * time.Second):
				t.Fatal("the connection didn't come back")
			}
			ack, err := js.Publish(ctx, "s", []byte("b"))
			if err != nil || ack.Sequence != 2 {
				t.Fatalf("publish after the restart: %+v, %v", ack, err)
			}
			if s.URL() != url {
				t.Fatalf("URL was %s, is %s", url, s.URL())
			}
		})
	}
}

func TestOneServerAFolder(t *testing.T) {
	dir := t.TempDir()
	a := start(t, embednats.WithDir(dir))
	_, err := embednats.Start(t.Context(), embednats.WithDir(dir))
	if !errors.Is(err, embednats.ErrFolderInUse) {
		t.Fatalf("second server on the folder: %v, want ErrFolderInUse", err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, embednats.WithDir(dir))
}

func TestServersDoNotMeet(t *testing.T) {
	ctx := t.Context()
	a, b := start(t, embednats.WithTempDir()), start(t, embednats.WithTempDir())
	na, ja := connect(t, a)
	nb, jb := connect(t, b)
	if _, err := ja.CreateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := jb.Stream(ctx, "S"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Fatalf("b sees a's stream: %v", err)
	}
	sub, err := nb.SubscribeSync("s") // not ">", which gets the advisory about b's own request
	if err != nil {
		t.Fatal(err)
	}
	if err := nb.FlushWithContext(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := ja.Publish(ctx, "s", nil); err != nil {
		t.Fatal(err)
	}
	if err := na.FlushWithContext(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if err := nb.FlushWithContext(timeout(t)); err != nil {
		t.Fatal(err)
	}
	if n, _, _ := sub.Pending(); n != 0 {
		t.Fatalf("b received %d messages of a", n)
	}
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestListen(t *testing.T) {
	if s := start(t, embednats.WithTempDir()); s.URL() != "" {
		t.Fatalf("URL %q without WithListen", s.URL())
	}
	s := start(t, embednats.WithTempDir(), embednats.WithListen("127.0.0.1:0"))
	nc, err := nats.Connect(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.FlushWithContext(timeout(t)); err != nil {
		t.Fatal(err)
	}
}

func TestListenOnTakenPortFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir := t.TempDir()
	if s, err := embednats.Start(t.Context(), embednats.WithDir(dir), embednats.WithListen(l.Addr().String())); err == nil {
		s.Close()
		t.Fatal("no error")
	}
	start(t, embednats.WithDir(dir)) // the failed start let the folder go
}

func TestMaxPayload(t *testing.T) {
	for _, size := range []int{1 << 20, 4 << 20, embednats.MaxPayloadLimit} {
		s := start(t, embednats.WithTempDir(), embednats.WithMaxPayload(size))
		if nc, _ := connect(t, s); nc.MaxPayload() != int64(size) {
			t.Errorf("MaxPayload %d, want %d", nc.MaxPayload(), size)
		}
	}
	s := start(t, embednats.WithTempDir())
	if nc, _ := connect(t, s); nc.MaxPayload() != 1<<20 {
		t.Errorf("default MaxPayload %d", nc.MaxPayload())
	}
	if !s.SyncAlways() {
		t.Error("default is not SyncAlways")
	}
}

func TestTempDirVanishes(t *testing.T) {
	s := start(t, embednats.WithTempDir())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("temporary folder still there: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal("second Close:", err)
	}
	if _, err := s.Conn(t.Context()); err == nil {
		t.Fatal("Conn after Close succeeded")
	}
	if err := s.Restart(t.Context()); !errors.Is(err, embednats.ErrClosed) {
		t.Fatalf("Restart after Close: %v", err)
	}
}

func TestInvalidOptions(t *testing.T) {
	for name, opts := range map[string][]embednats.Option{
		"no folder":    nil,
		"empty folder": {embednats.WithTempDir(), embednats.WithDir("")},
		"listen":       {embednats.WithTempDir(), embednats.WithListen("nowhere")},
		"listen host":  {embednats.WithTempDir(), embednats.WithListen(":4222")},
		"sync":         {embednats.WithTempDir(), embednats.WithSyncInterval(0)},
		"payload":      {embednats.WithTempDir(), embednats.WithMaxPayload(embednats.MaxPayloadLimit + 1)},
		"logger":       {embednats.WithTempDir(), embednats.WithLogger(nil)},
	} {
		if _, err := embednats.Start(t.Context(), opts...); !errors.Is(err, embednats.ErrInvalidOption) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLoggerHearsTheServer(t *testing.T) {
	var buf lockedBuffer
	s := start(t, embednats.WithTempDir(), embednats.WithLogger(slog.New(slog.NewTextHandler(&buf, nil))))
	s.Close()
	if out := buf.String(); !bytes.Contains([]byte(out), []byte("Server is ready")) {
		t.Fatalf("log: %s", out)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
