//go:build unix

package faults

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"
)

// throttle is a way to a server that lets so many bytes a second through in the direction of the client,
// over all connections: it makes a small copy last.
type throttle struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu   sync.Mutex
	rate float64   // bytes a second
	free time.Time // when the bytes let through so far have passed
	conn map[net.Conn]bool
}

// newThrottle stands before the server of a URL, and gives the URL with its own address.
func newThrottle(t testing.TB, server string, rate float64) (*throttle, string) {
	t.Helper()
	u, err := url.Parse(server)
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	th := &throttle{listener: l, target: u.Host, rate: rate, conn: map[net.Conn]bool{}}
	th.wg.Go(th.accept)
	t.Cleanup(func() {
		l.Close()
		th.cut()
		th.wg.Wait()
	})
	u.Host = l.Addr().String()
	return th, u.String()
}

func (th *throttle) accept() {
	for {
		client, err := th.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", th.target)
		if err != nil {
			client.Close() // the server is down: so is the way to it
			continue
		}
		th.mu.Lock()
		th.conn[client], th.conn[server] = true, true
		th.mu.Unlock()
		th.wg.Go(func() { th.pipe(server, client, client) })
		th.wg.Go(func() { th.pipe(client, server, paced{th, server}) })
	}
}

// pipe passes on what read gives, the bytes of from, until one side closes, and then closes both.
func (th *throttle) pipe(to, from net.Conn, read io.Reader) {
	io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{read}) // no splicing: it would pass the pace by
	to.Close()
	from.Close()
	th.mu.Lock()
	defer th.mu.Unlock()
	delete(th.conn, to)
	delete(th.conn, from)
}

// paced reads no faster than the throttle's rate.
type paced struct {
	th *throttle
	io.Reader
}

func (p paced) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 {
		pause(context.Background(), p.th.reserve(n))
	}
	return n, err
}

// reserve takes room for n bytes, and gives how long they need until they have passed.
func (th *throttle) reserve(n int) time.Duration {
	th.mu.Lock()
	defer th.mu.Unlock()
	now := time.Now()
	if th.free.Before(now) {
		th.free = now
	}
	if th.rate > 0 {
		th.free = th.free.Add(time.Duration(float64(n) / th.rate * float64(time.Second)))
	}
	return th.free.Sub(now)
}

// set changes the rate; 0 lets everything through.
func (th *throttle) set(rate float64) {
	th.mu.Lock()
	defer th.mu.Unlock()
	th.rate = rate
}

// cut closes all connections.
func (th *throttle) cut() {
	th.mu.Lock()
	defer th.mu.Unlock()
	for c := range th.conn {
		c.Close()
	}
}
