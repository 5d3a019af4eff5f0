package source

import (
	"io"
	"net"
	"testing"
	"time"
)

// The pace is that of a server on the same machine if both ends have one address; either way all bytes arrive, as they are.
func TestPaceByAddress(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	for _, c := range []struct {
		name string
		from net.IP
		want pace
	}{
		{"same machine", net.IPv4(127, 0, 0, 1), nearPace},
		{"another address", net.IPv4(127, 0, 0, 2), farPace},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: c.from}}).DialContext(t.Context(), "tcp", listener.Addr().String())
			if err != nil && c.want == farPace {
				t.Skipf("only one loopback address here: %v", err) // macOS
			}
			must(t, err)
			defer client.Close()
			server, err := listener.Accept()
			must(t, err)
			defer server.Close()
			const size = 8 << 20 // more than all buffers between them
			sent := make(chan error, 1)
			go func() {
				data := make([]byte, 997)
				var err error
				for at := 0; at < size && err == nil; at += len(data) {
					for i := range data {
						data[i] = byte((at + i) % 251)
					}
					_, err = server.Write(data[:min(len(data), size-at)])
				}
				sent <- err
			}()
			paced := &pacedConn{Conn: client, lazy: true, wait: time.Minute, due: time.Now().Add(time.Minute)}
			paced.begin()
			if paced.pace != c.want {
				t.Errorf("pace %+v, want %+v", paced.pace, c.want)
			}
			got := make([]byte, size)
			_, err = io.ReadFull(paced, got)
			must(t, err)
			must(t, <-sent)
			for i, b := range got {
				if b != byte(i%251) {
					t.Fatalf("byte %d is %d", i, b)
				}
			}
		})
	}
}
