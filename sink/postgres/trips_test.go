package postgres

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

// distant is a connection whose answers take a while. A round trip is an answer that is waited for after
// something was sent.
type distant struct {
	net.Conn
	delay time.Duration
	trips *atomic.Int64

	mu      sync.Mutex
	sent    time.Time
	waiting bool // something was sent, and no answer has been read since
}

func (c *distant) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.sent, c.waiting = time.Now(), true
	c.mu.Unlock()
	return c.Conn.Write(b)
}

func (c *distant) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	wait := time.Duration(0)
	if c.waiting && n > 0 {
		c.waiting = false
		c.trips.Add(1)
		wait = time.Until(c.sent.Add(c.delay))
	}
	c.mu.Unlock()
	if wait > 0 {
		time.Sleep(wait) // the network, not the test, takes that long
	}
	return n, err
}

// distantRig is a rig whose server is that far away.
func distantRig(t *testing.T, ddl string, delay time.Duration) (*rig, *atomic.Int64) {
	db := flotest.Postgres(t)
	db.Exec(t, ddl)
	conn, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	trips := new(atomic.Int64)
	dial := conn.DialFunc
	conn.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &distant{Conn: c, delay: delay, trips: trips}, nil
	}
	s, err := NewConfig(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	r := &rig{t: t, db: db, sink: s, st: sink.Start{Group: "g", Worker: "w", Incarnation: "one", Epoch: 1}}
	r.open()
	return r, trips
}

// A batch takes two round trips, one for all of its changes and one for the commit, however many rows it
// is of. Inserts alone go by COPY.
func TestRoundTripsDoNotGrowWithRows(t *testing.T) {
	const delay = 5 * time.Millisecond
	r, trips := distantRig(t, `CREATE TABLE t (k int PRIMARY KEY, v text); CREATE TABLE u (k int PRIMARY KEY, v text); CREATE TABLE f (k int, v text)`, delay)
	kv, u, f := rel("t", "*k", "v"), rel("u", "*k", "v"), rel("f", "k", "v")
	r.apply(append(inserts(kv, -10, 10), inserts(u, -10, 1)...)...) // looks tables up
	r.apply(inserts(f, 0, 1)...)
	of := func(from, n int, change func(k string) *decode.Change) []*decode.Change {
		out := make([]*decode.Change, n)
		for i := range out {
			out[i] = change(numberText(from + i))
		}
		return out
	}
	updates := func(from, n int) []*decode.Change {
		return of(from, n, func(k string) *decode.Change { return update(kv, k, "changed") })
	}
	deletes := func(from, n int) []*decode.Change {
		return of(from, n, func(k string) *decode.Change { return remove(kv, k, absent) })
	}
	from := 0
	for _, n := range []int{100, 1000, 1900} {
		mixed := append(append(inserts(u, from, n), updates(from, n)...), deletes(from, n)...)
		for _, c := range []struct {
			name    string
			changes []*decode.Change
			most    int64
		}{
			{"inserts", inserts(kv, from, n), 2},
			{"inserts into a table without a key", inserts(f, from, n), 2},
			{"updates", updates(from, n), 2},
			{"of two tables", mixed, 2},
		} {
			trips.Store(0)
			start := time.Now()
			r.apply(c.changes...)
			if got := trips.Load(); got > c.most+2 { // an answer may be read while more is being sent
				t.Errorf("%d %s: %d round trips, want about %d", n, c.name, got, c.most)
			}
			t.Logf("%5d %-35s %d round trips, %v", n, c.name, trips.Load(), time.Since(start).Round(time.Millisecond))
		}
		from += n
	}
	trips.Store(0)
	copies, swift := r.sink.stats.runs.Load(), r.sink.stats.swift.Load()
	r.apply(inserts(kv, from, 20000)...)
	if got := trips.Load(); got > 4 || r.sink.stats.runs.Load() != copies+1 || r.sink.stats.swift.Load() != swift+1 {
		t.Errorf("20,000 inserts: %d round trips, %d COPYs, %d swift transactions", got, r.sink.stats.runs.Load()-copies, r.sink.stats.swift.Load()-swift)
	}
	r.want("SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM u), (SELECT count(*) FROM f)", is("20010", "3001", "3001"))
	if n := r.sink.stats.undone.Load(); n != 0 {
		t.Errorf("%d groups undone", n)
	}
}
