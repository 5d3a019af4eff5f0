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
	readBuffer  = 1 << 20              // what one read may bring
	shortRead   = 64 << 10             // a read below it has emptied the socket
	lazyPause   = 5 * time.Millisecond // the longest pause before the next read
	busyBytes   = 16 << 10             // bytes in one pause's time that count as load (about 3 MB/s)
	quietPauses = 4                    // so many times a pause without load end it
	pollTimeout = 100 * time.Microsecond
)

// pacedConn sits between the socket and TLS or the protocol, and decides when to read. Until begin it
// passes everything through, so that pgconn can set the connection up with deadlines of its own.
// Afterwards the goroutine that owns the Stream reads through it, and nobody else sets its deadlines.
type pacedConn struct {
	net.Conn

	streaming bool
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
	c.streaming = true
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

// buffered gives the bytes that are read and not taken.
func (c *pacedConn) buffered() int { return c.w - c.r }

// fill reads from the socket once.
func (c *pacedConn) fill(p []byte) (int, error) {
	c.now = time.Now()
	if c.lazy && c.busy > 0 && c.last < shortRead {
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
	if d := min(lazyPause, c.due.Sub(c.now)); d > 0 {
		wakeAt(c.Conn, shortRead)
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
	if age < lazyPause {
		return
	}
	if float64(c.gathered)*float64(lazyPause) >= busyBytes*float64(age) {
		c.busy = quietPauses
	} else if c.busy > 0 {
		c.busy--
	}
	c.gathered, c.since = 0, c.now
}
