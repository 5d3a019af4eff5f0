package flotest

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/pgflo/flo/embednats"
)

// NATS starts a JetStream server for one test, in a temporary folder unless options say
// otherwise; it is closed when the test ends.
func NATS(t testing.TB, opts ...embednats.Option) *embednats.Server {
	t.Helper()
	s, err := embednats.Start(t.Context(), append([]embednats.Option{embednats.WithTempDir()}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close NATS: %v", err)
		}
	})
	return s
}

// NATSConn starts a JetStream server for one test and connects to it.
func NATSConn(t testing.TB) *nats.Conn {
	t.Helper()
	nc, err := NATS(t).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return nc
}
