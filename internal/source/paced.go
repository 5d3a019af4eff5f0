package source

import (
	"net"
	"os"
	"sync"
	"time"
)

// Bounds of lazy reading. An eager reader of small transactions makes the walsender slower, because
// each small send wakes somebody; reading every few milliseconds lets it fill the socket meanwhile.
const (
	readBuffer  = 1 << 20 // what one read may bring
	busyRate    = 3 << 20 // bytes a second that count as load
	quietPauses = 4       // so many times a pause without load end it
	pollTimeout = 100 * time.Microsecond
)

// pace is how lazily a connection is read.
type pace struct {
	short  int           // a read of fewer bytes has emptied the socket
	pause  time.Duration // the longest pause before the next read
	window int           // SO_RCVBUF; 0: the kernel's choice
}

// Each frame is a send() of the walsender, half of its work. While the receiver's window is closed that only
// copies the frame into the sender's buffer, from where large segments go when it opens. Within a machine a small
// window is closed for nearly all of a pause, and filled again at once by the read that opens it, so nothing is lost:
// the walsender computes half as much (docs/benchmarks.md). Across a network each window takes a round trip.
var (
	farPace  = pace{short: 64 << 10, pause: 5 * time.Millisecond}
	nearPace = pace{short: 24 << 10, pause: 10 * time.Millisecond, window: 48 << 10}
)

// pacedConn sits between the socket and TLS or the protocol, and decides when to read. Until begin it
// passes everything through, so that pgconn can set the connection up with deadlines of its own.
// Afterwards the goroutine that owns the Stream reads through it, and nobody else sets its deadlines.
type pacedConn struct {
	net.Conn

	streaming bool
	pace      pace
	buf       []byte // what is read and not taken: buf[r:w]
	r, w      int

	wait  time.Duration // how long the current Next may wait
	until time.Time     // its end, from the first read that needs it on; zero: not yet
	due   time.Time     // when feedback must be sent: no read goes on beyond it
	now   time.Time     // the clock at the last read
	reads uint64        // reads from the socket

	lazy     bool
	busy     int       // above 0 the stream is under load: pausing brings bytes together
	last     int       // bytes that the last read brought
	since    time.Time // of the count of bytes that decides about busy
	gathered int

	mu   sync.Mutex // orders stop with the setting of a deadline
	stop bool
}

// begin switches to streaming.
func (c *pacedConn) begin() {
	c.streaming, c.pace = true, farPace
	if tcp, ok := c.Conn.(*net.TCPConn); ok && sameMachine(tcp) && tcp.SetReadBuffer(nearPace.window) == nil {
		c.pace = nearPace
	}
	c.buf = make([]byte, readBuffer)
	c.since = time.Now()
}

// interrupt makes the read under way, and every later one, fail. Any goroutine may call it.
func (c *pacedConn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop = true
	_ = c.Conn.SetReadDeadline(time.Unix(1, 0))
}

// resume takes interrupt back, for the polite end of the stream.
func (c *pacedConn) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stop = false
}

// Read implements io.Reader. While streaming it ends with os.ErrDeadlineExceeded when the wait is over
// or feedback is due; whoever reads through it can go on in mid-message.
func (c *pacedConn) Read(p []byte) (int, error) {
	if !c.streaming {
		return c.Conn.Read(p)
	}
	if c.r == c.w {
		c.r, c.w = 0, 0
		// A large message goes straight to where it is wanted.
		if len(p) >= readBuffer/4 {
			return c.fill(p)
		}
		n, err := c.fill(c.buf)
		c.w = n
		if n == 0 {
			return 0, err
		}
	}
	n := copy(p, c.buf[c.r:c.w])
	c.r += n
	return n, nil
}

// sameMachine reports whether both ends of a connection have one address.
func sameMachine(c *net.TCPConn) bool {
	here, ok := c.LocalAddr().(*net.TCPAddr)
	there, ok2 := c.RemoteAddr().(*net.TCPAddr)
	return ok && ok2 && here.IP.Equal(there.IP)
}

// buffered gives the bytes that are read and not taken.
func (c *pacedConn) buffered() int { return c.w - c.r }

// fill reads from the socket once.
func (c *pacedConn) fill(p []byte) (int, error) {
	c.now = time.Now()
	if c.lazy && c.busy > 0 && c.last < c.pace.short {
		c.pause()
	}
	if c.until.IsZero() {
		c.until = c.now.Add(max(c.wait, pollTimeout))
	}
	deadline := c.until
	if c.due.Before(deadline) {
		deadline = c.due
	}
	if !c.now.Before(deadline) {
		return 0, os.ErrDeadlineExceeded
	}
	c.mu.Lock()
	if c.stop {
		c.mu.Unlock()
		return 0, os.ErrDeadlineExceeded
	}
	err := c.Conn.SetReadDeadline(deadline)
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	c.now = time.Now()
	c.reads++
	c.last = n
	if n > 0 {
		c.until = time.Time{} // something came: the wait starts anew
	}
	c.judge(n)
	return n, err
}

// pause lets bytes come together. The wait of the caller starts behind it.
func (c *pacedConn) pause() {
	if d := min(c.pace.pause, c.due.Sub(c.now)); d > 0 {
		wakeAt(c.Conn, c.pace.short)
		time.Sleep(d)
		wakeAt(c.Conn, 1)
		c.now = time.Now()
	}
}

// judge decides whether there is load: enough bytes within the time of a pause, or a moment ago. Without load there is
// no pause, so an idle source's next change is read as it comes.
func (c *pacedConn) judge(n int) {
	c.gathered += n
	age := c.now.Sub(c.since)
	if age < c.pace.pause {
		return
	}
	if float64(c.gathered) >= busyRate*age.Seconds() {
		c.busy = quietPauses
	} else if c.busy > 0 {
		c.busy--
	}
	c.gathered, c.since = 0, c.now
}
