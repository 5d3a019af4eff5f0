package bus

import (
	"bytes"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// cluster is three servers of one JetStream cluster.
type cluster struct {
	opts    []*server.Options
	servers []*server.Server
}

func newCluster(t testing.TB) *cluster {
	t.Helper()
	const n = 3
	c := &cluster{servers: make([]*server.Server, n)}
	var routes []*url.URL
	ports := freePorts(t, 2*n)
	for i := range n {
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", ports[n+i])})
	}
	for i := range n {
		c.opts = append(c.opts, &server.Options{
			ServerName: fmt.Sprintf("s%d", i), Host: "127.0.0.1", Port: ports[i],
			Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: ports[n+i], PoolSize: -1},
			Routes:  routes, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, DisableJetStreamBanner: true,
		})
	}
	for i := range n {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.stop(i)
		}
	})
	until(t, "the cluster has a leader", func() bool {
		for _, s := range c.servers {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == n {
				return true
			}
		}
		return false
	})
	return c
}

func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func (c *cluster) start(t testing.TB, i int) {
	t.Helper()
	s, err := server.NewServer(c.opts[i].Clone())
	if err != nil {
		t.Fatal(err)
	}
	go s.Start()
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("server isn't ready")
	}
	c.servers[i] = s
}

func (c *cluster) stop(i int) {
	c.servers[i].Shutdown()
	c.servers[i].WaitForShutdown()
}

func (c *cluster) urls() string {
	var all []string
	for _, o := range c.opts {
		all = append(all, fmt.Sprintf("nats://127.0.0.1:%d", o.Port))
	}
	return strings.Join(all, ",")
}

// leader of the stream, by its number; -1 while there is none.
func (c *cluster) leader(name string) int {
	for i, s := range c.servers {
		if s.JetStreamIsStreamLeader("$G", name) {
			return i
		}
	}
	return -1
}

// A replicated stream's leader steps down, then is stopped, with publishes in flight.
func TestReplicatedStreamChangesItsLeader(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster")
	}
	c := newCluster(t)
	nc, err := nats.Connect(c.urls(), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s := newTestStream(t, Config{JS: js, Replicas: 3, PublishTimeout: 2 * time.Second})
	p := newTestPublisher(t, s, 7)
	var a acks
	p.OnAck(a.on)
	r := s.Read(t.Context(), s.ChangesSubject(), 1, ReaderOptions{})
	t.Cleanup(r.Close)
	const n = 1500
	done := make(chan error, 1)
	go func() {
		for i := range uint64(n) {
			m, err := r.Next(t.Context())
			if err != nil || m.Seq != i+1 {
				done <- fmt.Errorf("read %d, want %d: %w", m.Seq, i+1, err)
				return
			}
		}
		done <- nil
	}()
	stopped := -1
	for i := range uint64(n) {
		publish(t, p, i, 1000)
		switch i {
		case n / 4, n / 3:
			until(t, "the leader steps down", func() bool { // nobody answers while the stream has none
				m, err := nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+s.Name(), nil, time.Second)
				return err == nil && bytes.Contains(m.Data, []byte(`"success":true`))
			})
		case n / 2:
			until(t, "the stream has a leader", func() bool { stopped = c.leader(s.Name()); return stopped >= 0 })
			c.stop(stopped)
		case n * 3 / 4:
			c.start(t, stopped)
		}
	}
	drained(t, p)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	a.check(t, n)
	stands(t, s, 7, 1, n)
	t.Logf("%+v", p.Status())
}
