package state_test

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/state"
)

// readOnly is a way to a server that takes no writes to a bucket any more, and says nothing of it.
type readOnly struct{ on atomic.Bool }

func (r *readOnly) Dial(network, address string) (net.Conn, error) {
	c, err := net.Dial(network, address)
	return &readOnlyConn{c, r}, err
}

type readOnlyConn struct {
	net.Conn
	way *readOnly
}

func (c *readOnlyConn) Write(b []byte) (int, error) {
	if c.way.on.Load() && bytes.Contains(b, []byte("PUB $KV.")) {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// A NATS whose disk is full, or was until it failed, answers reads only.
func TestAWriteThatIsNeverAnsweredSaysThatReadsAre(t *testing.T) {
	t.Parallel()
	way := &readOnly{}
	nc, err := nats.Connect(flotest.NATS(t, embednats.WithListen("127.0.0.1:0")).URL(), nats.SetCustomDialer(way))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.NewNATS(t.Context(), js, "g", 1, true)
	if err != nil {
		t.Fatal(err)
	}
	way.on.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // more than one try
	defer cancel()
	_, err = s.PutLease(ctx, state.Lease{Name: state.ReplicatorLease}, 0)
	if err == nil || !strings.Contains(err.Error(), "restart it") {
		t.Fatal(err)
	}
}
