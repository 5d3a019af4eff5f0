package postgres

import (
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/flotest"
)

// deafConn is a connection over which nothing more comes once it is deaf.
type deafConn struct {
	net.Conn
	deaf atomic.Bool
}

func (c *deafConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.deaf.Load() { // asked behind the read: pgconn may have begun it before, in the background
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

// A connection that breaks in the middle of a pipeline is closed by pgconn on a goroutine of its own: the race
// detector sees who else touches it then.
func TestAbandonedPipelineOfABrokenConnection(t *testing.T) {
	cfg, err := pgconn.ParseConfig(flotest.Postgres(t).URL)
	if err != nil {
		t.Fatal(err)
	}
	var conn *deafConn
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		conn = &deafConn{Conn: c}
		return conn, err
	}
	for range 20 {
		pg, err := pgconn.ConnectConfig(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		q := newPipeline(t.Context(), &session{pg: pg}, nil)
		if err := q.run(0, "SELECT 1"); err != nil {
			t.Fatal(err)
		}
		conn.deaf.Store(true)
		if err := q.finish(); err == nil {
			t.Fatal("a pipeline over a broken connection ended well")
		}
		q.abandon()
		<-pg.CleanupDone()
	}
}
