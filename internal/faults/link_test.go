//go:build unix

package faults

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"
)

// weather is what a link does to what passes.
type weather struct {
	rate  float64       // bytes a second in each direction, over all connections; 0: no limit
	delay time.Duration // in each direction
	mute  bool          // half-open: connections are accepted and stay, what is sent is swallowed
	still bool          // nothing passes, and nothing is lost: it goes on when the weather changes
	down  bool          // connections are refused
}

// link is a way to a server over TCP whose weather the test makes.
type link struct {
	name     string
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu      sync.Mutex
	weather weather
	changed chan struct{} // closed and replaced when the weather changes
	free    [2]time.Time  // when the bytes let through so far have passed, by direction
	conns   map[net.Conn]net.Conn
	torn    map[net.Conn]bool // some of their bytes were swallowed
	cuts    int               // connections cut, of those that were used
}

// newLink stands before the server of a URL, and gives the URL with its own address.
func newLink(t testing.TB, name, server string) (*link, string) {
	t.Helper()
	u, err := url.Parse(server)
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	k := &link{name: name, listener: l, target: u.Host, changed: make(chan struct{}), conns: map[net.Conn]net.Conn{}, torn: map[net.Conn]bool{}}
	k.wg.Go(k.accept)
	t.Cleanup(func() {
		l.Close()
		k.set(weather{})
		k.cut()
		k.wg.Wait()
	})
	u.Host = l.Addr().String()
	return k, u.String()
}

// newThrottle is a link that lets so many bytes a second through: it makes a small copy last.
func newThrottle(t testing.TB, server string, rate float64) (*link, string) {
	t.Helper()
	k, u := newLink(t, "throttle", server)
	k.set(weather{rate: rate})
	return k, u
}

func (k *link) accept() {
	for {
		client, err := k.listener.Accept()
		if err != nil {
			return
		}
		k.wg.Go(func() { k.serve(client) })
	}
}

func (k *link) serve(client net.Conn) {
	if w, _ := k.now(); w.down {
		client.Close()
		return
	}
	server, err := net.Dial("tcp", k.target)
	if err != nil {
		client.Close() // the server is down: so is the way to it
		return
	}
	k.mu.Lock()
	k.conns[client], k.conns[server] = server, client
	k.mu.Unlock()
	k.wg.Go(func() { k.pipe(server, client, 0) })
	k.pipe(client, server, 1)
}

// packet is some bytes on their way.
type packet struct {
	data []byte
	due  time.Time
}

// packetsUnderWay bounds what a link holds back: about 2 MiB a connection and direction.
const packetsUnderWay = 64

// queueTime is what a narrow link holds back at most, as the queue of a router does. The rest waits where it comes from,
// each connection for itself.
const queueTime = 300 * time.Millisecond

// pipe passes on the bytes of from until one side closes, and then closes both.
func (k *link) pipe(to, from net.Conn, way int) {
	done := make(chan struct{})
	queue := make(chan packet, packetsUnderWay)
	go func() {
		defer close(done)
		for p := range queue {
			if d := time.Until(p.due); d > 0 {
				pause(context.Background(), d)
			}
			if _, err := to.Write(p.data); err != nil {
				from.Close() // which ends the reading
				break
			}
		}
		for range queue {
		}
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if due, ok := k.pass(from, n, way); ok {
				if d := time.Until(due) - queueTime; d > 0 {
					pause(context.Background(), d)
				}
				queue <- packet{append([]byte(nil), buf[:n]...), due}
			}
		}
		if err != nil {
			break
		}
	}
	close(queue)
	<-done
	to.Close()
	from.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, to)
	delete(k.conns, from)
	delete(k.torn, from)
}

// pass decides on n bytes: when they are through, or that they are swallowed. It waits while the link stands still.
func (k *link) pass(from net.Conn, n, way int) (due time.Time, ok bool) {
	for {
		w, changed := k.now()
		if w.still {
			<-changed
			continue
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if w.mute {
			k.torn[from] = true
		}
		if w.mute || k.torn[from] {
			return due, false
		}
		now := time.Now()
		if w.rate == 0 {
			return now.Add(w.delay), true
		}
		if k.free[way].Before(now) {
			k.free[way] = now
		}
		k.free[way] = k.free[way].Add(time.Duration(float64(n) / w.rate * float64(time.Second)))
		return k.free[way].Add(w.delay), true
	}
}

func (k *link) now() (weather, <-chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.weather, k.changed
}

// set changes the weather. Connections of which something was swallowed are cut: half of what was said on them is
// missing.
func (k *link) set(w weather) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.weather = w
	close(k.changed)
	k.changed = make(chan struct{})
	if w.mute {
		return
	}
	for c := range k.torn {
		k.end(c)
	}
}

// end closes a connection on both sides. The caller holds mu.
func (k *link) end(c net.Conn) {
	other := k.conns[c]
	if other == nil {
		return
	}
	c.Close()
	other.Close()
	delete(k.conns, c)
	delete(k.conns, other)
	k.cuts++
}

// cut closes all connections, and gives how many there were.
func (k *link) cut() (n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.cuts
	for c := range k.conns {
		k.end(c)
	}
	return k.cuts - before
}

// muffled makes the link half-open for a while, and then cuts what stood on it.
func (k *link) muffled(ctx context.Context, d time.Duration) {
	k.set(weather{mute: true})
	pause(ctx, d)
	k.set(weather{})
	k.cut()
}

// A link does what its weather says, or the fault tests prove nothing.
func TestLinkDoesWhatTheWeatherSays(t *testing.T) {
	t.Parallel()
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { echo.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { io.Copy(c, c); c.Close() })
		}
	})
	k, u := newLink(t, "echo", "tcp://"+echo.Addr().String())
	where, err := url.Parse(u)
	must(t, err)
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", where.Host)
		must(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	answer := func(c net.Conn, n int, wait time.Duration) (time.Duration, error) {
		began := time.Now()
		c.SetDeadline(began.Add(wait))
		if _, err := c.Write(make([]byte, n)); err != nil {
			return 0, err
		}
		_, err := io.ReadFull(c, make([]byte, n))
		return time.Since(began), err
	}
	const long = 20 * time.Second
	c := dial()
	if _, err := answer(c, 100, long); err != nil {
		t.Fatal(err)
	}
	k.set(weather{delay: 200 * time.Millisecond})
	if took, err := answer(c, 100, long); err != nil || took < 400*time.Millisecond {
		t.Errorf("with a delay of 200 ms each way: %s, %v", took, err)
	}
	k.set(weather{rate: 1e6})
	if took, err := answer(c, 300_000, long); err != nil || took < 300*time.Millisecond {
		t.Errorf("300 kB at 1 MB/s: %s, %v", took, err)
	}
	k.set(weather{still: true})
	if _, err := answer(c, 1, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("while it stands still: %v", err)
	}
	k.set(weather{})
	c.SetDeadline(time.Now().Add(long))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // what was held back
		t.Error(err)
	}
	k.set(weather{mute: true})
	if _, err := answer(c, 1, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("half-open: %v", err)
	}
	late := dial()
	if _, err := answer(late, 1, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("half-open, a new connection: %v", err)
	}
	k.set(weather{})
	for _, c := range []net.Conn{c, late} {
		if _, err := answer(c, 1, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("behind a half-open time the connection must be cut: %v", err)
		}
	}
	if c := dial(); true {
		_, err := answer(c, 1, long)
		must(t, err)
		if k.cut() == 0 {
			t.Error("nothing was cut")
		}
		if _, err := answer(c, 1, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("behind a cut: %v", err)
		}
	}
	k.set(weather{down: true})
	if _, err := answer(dial(), 1, long); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("while it is down: %v", err)
	}
}
