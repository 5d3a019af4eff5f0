package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// connect opens a connection of its own over TCP, that comes back soon and for ever.
func connect(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// inProcess gives a JetStream on a server of its own.
func inProcess(t testing.TB) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(flotest.NATSConn(t))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func newTestStream(t testing.TB, cfg Config) *Stream {
	t.Helper()
	if cfg.Group == "" {
		cfg.Group = "g"
	}
	s, _, err := Create(t.Context(), cfg, "7300000000000000000", "db")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newTestPublisher(t testing.TB, s *Stream, session uint64) *Publisher {
	t.Helper()
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.NewPublisher(t.Context(), session, info.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// message of a session with a number and a size in bytes.
func message(session, n uint64, size int) []byte {
	b := wire.AppendHeader(nil, &wire.Header{Kind: wire.Changes, Session: session})
	b = binary.BigEndian.AppendUint64(b, n)
	return append(b, make([]byte, max(size-len(b), 0))...)
}

func number(t testing.TB, m Message) (session, n uint64) {
	t.Helper()
	h, body, err := wire.Parse(m.Data)
	if err != nil || len(body) < 8 {
		t.Fatalf("sequence %d: %v, body of %d bytes", m.Seq, err, len(body))
	}
	return h.Session, binary.BigEndian.Uint64(body)
}

func publish(t testing.TB, p *Publisher, n uint64, size int) {
	t.Helper()
	if err := p.Publish(t.Context(), p.s.ChangesSubject(), [][]byte{message(p.session, n, size)}, n); err != nil {
		t.Fatalf("publish %d: %v", n, err)
	}
}

func drained(t testing.TB, p *Publisher) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := p.Drained(ctx); err != nil {
		t.Fatalf("not drained: %v; %+v", err, p.Status())
	}
}

// failed waits until the publisher has failed, and checks why.
func failed(t testing.TB, p *Publisher, want error) {
	t.Helper()
	select {
	case <-p.Done():
	case <-time.After(60 * time.Second):
		t.Fatalf("the publisher goes on: %+v", p.Status())
	}
	if err := p.Err(); !errors.Is(err, want) {
		t.Fatalf("failed with %v, want %v", err, want)
	}
}

// stands checks that the stream holds the messages 0 to n-1 of a session, each once, in order, from
// a sequence on.
func stands(t testing.TB, s *Stream, session, first, n uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	info, err := s.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if info.LastSeq != first+n-1 {
		t.Fatalf("last sequence %d, want %d", info.LastSeq, first+n-1)
	}
	for i := range n {
		m, err := s.Get(ctx, first+i)
		if err != nil {
			t.Fatal(err)
		}
		if ses, num := number(t, m); ses != session || num != i {
			t.Fatalf("sequence %d holds message %d of session %d, want %d of %d", m.Seq, num, ses, i, session)
		}
	}
}

// until polls a condition that nothing announces.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// acks records what OnAck was called with, and that it came in order.
type acks struct {
	mu   sync.Mutex
	got  []uint64
	last uint64
	bad  string
}

func (a *acks) on(token any, last uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if last <= a.last {
		a.bad = fmt.Sprintf("sequence %d after %d", last, a.last)
	}
	a.last = last
	a.got = append(a.got, token.(uint64))
}

func (a *acks) check(t testing.TB, n uint64) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.bad != "" {
		t.Fatal(a.bad)
	}
	if uint64(len(a.got)) != n {
		t.Fatalf("%d acknowledgements, want %d", len(a.got), n)
	}
	for i, x := range a.got {
		if x != uint64(i) {
			t.Fatalf("acknowledgement %d is of %d", i, x)
		}
	}
}

// proxy is a TCP connection's way to the server that tests can spoil.
type proxy struct {
	l      net.Listener
	target string
	wg     sync.WaitGroup
	mute   atomic.Bool  // swallow what the server says
	budget atomic.Int64 // bytes until the next cut, either way; 0: never
	cuts   atomic.Int64
	rnd    func() int64 // next budget; nil: none

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	end   bool
}

func newProxy(t testing.TB, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, target: target, conns: map[net.Conn]struct{}{}}
	p.wg.Add(1)
	go p.accept()
	t.Cleanup(func() {
		p.mu.Lock()
		p.end = true
		p.mu.Unlock()
		_ = l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) url() string { return "nats://" + p.l.Addr().String() }

func (p *proxy) accept() {
	defer p.wg.Done()
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = c.Close()
			continue
		}
		p.mu.Lock()
		if p.end {
			_, _ = c.Close(), s.Close()
			p.mu.Unlock()
			return
		}
		p.conns[c], p.conns[s] = struct{}{}, struct{}{}
		p.wg.Add(2)
		p.mu.Unlock()
		go p.pipe(c, s, false)
		go p.pipe(s, c, true)
	}
}

func (p *proxy) pipe(from, to net.Conn, server bool) {
	defer p.wg.Done()
	defer func() {
		_, _ = from.Close(), to.Close()
		p.mu.Lock()
		delete(p.conns, from)
		p.mu.Unlock()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if server && p.mute.Load() {
			continue
		}
		if b := p.budget.Load(); b > 0 && p.budget.Add(-int64(n)) <= 0 {
			p.budget.Store(p.rnd())
			p.cuts.Add(1)
			_, _ = to.Write(buf[:rand.IntN(n)]) // part of it may still arrive
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// tcpServer starts a server with a listener over a folder.
func tcpServer(t testing.TB, dir, listen string) *embednats.Server {
	t.Helper()
	srv, err := embednats.Start(t.Context(), embednats.WithDir(dir), embednats.WithListen(listen))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	return srv
}

func hostport(srv *embednats.Server) string { return srv.URL()[len("nats://"):] }

// copyTree copies a folder's files; to is emptied first.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, rel), b, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// rollback runs f between two states of the server, and brings it back with the first one.
func rollback(t testing.TB, srv *embednats.Server, f func()) *embednats.Server {
	t.Helper()
	dir, listen := srv.Dir(), hostport(srv)
	old := filepath.Join(t.TempDir(), "old")
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	copyTree(t, dir, old)
	srv = tcpServer(t, dir, listen)
	f()
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	copyTree(t, old, dir)
	return tcpServer(t, dir, listen)
}
