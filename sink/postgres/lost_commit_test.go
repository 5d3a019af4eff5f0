package postgres

import (
	"bytes"
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// cutConn, once armed, loses the connection around the next COMMIT.
type cutConn struct {
	net.Conn
	armed *atomic.Int32
	cut   bool
}

const (
	cutBefore = 1 // the server never sees the COMMIT
	cutAfter  = 2 // the server commits and its answer is lost
)

func (c *cutConn) Write(b []byte) (int, error) {
	if bytes.Contains(b, []byte("COMMIT\x00")) {
		switch c.armed.Swap(0) {
		case cutBefore:
			c.Conn.Close()
			return 0, io.ErrClosedPipe
		case cutAfter:
			c.cut = true
		}
	}
	return c.Conn.Write(b)
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.cut {
		// The answer has come as far as here, so the commit is done.
		_, err := c.Conn.Read(b)
		c.Conn.Close()
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	return c.Conn.Read(b)
}

// The connection goes as COMMIT is sent. Open says whether the batch stands, and the rows agree with it.
func TestLostCommit(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (k int)")
	cfg, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	var armed atomic.Int32
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &cutConn{Conn: conn, armed: &armed}, nil
	}
	s, err := NewConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, db: db, sink: s, st: sink.Start{Group: "g", Worker: "w", Epoch: 1}}
	r.open()
	r.apply(insert(rel("t", "k"), "0"))
	for _, c := range []struct {
		cut   int32
		stood bool
		rows  int
	}{{cutBefore, false, 1}, {cutAfter, true, 1}, {cutBefore, false, 1000}, {cutAfter, true, 1000}} {
		before := r.open()
		armed.Store(c.cut)
		rows := make([]*decode.Change, c.rows)
		for i := range rows {
			rows[i] = insert(rel("t", "k"), numberText(int(r.seq)+1))
		}
		err := r.try(rows...)
		if !pgsession.Transient(err) || sink.IsPermanent(err) {
			t.Fatalf("cut %d: %v", c.cut, err)
		}
		after := r.open()
		if stood := after.Seq == r.seq; stood != c.stood || !stood && after != before {
			t.Fatalf("cut %d: checkpoint %+v after sequence %d was written", c.cut, after, r.seq)
		}
	}
	r.want("SELECT k, count(*) FROM t GROUP BY k ORDER BY k", is("0", "1"), is("3", "1"), is("5", "1000"))
	if err := s.Close(testContext(t)); err != nil {
		t.Fatal(err)
	}
}
