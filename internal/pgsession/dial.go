package pgsession

import (
	"context"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A peer that has vanished is noticed after about a minute: by probes while the connection is quiet,
// by the unacknowledged limit while something was sent.
const (
	keepaliveIdle     = 20 * time.Second
	keepaliveInterval = 10 * time.Second
	keepaliveCount    = 4
	unacknowledged    = 60 * time.Second
)

// keepalive switches TCP keepalives on for what dial opens. Connections that are not TCP pass.
func keepalive(dial pgconn.DialFunc) pgconn.DialFunc {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			// Best effort: a connection without keepalives is still a connection.
			_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{
				Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount,
			})
			limitUnacknowledged(tcp, unacknowledged)
		}
		return conn, nil
	}
}
