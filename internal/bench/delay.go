package main

import (
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"time"
)

// farDelay is how long bytes travel, each way.
const farDelay = 5 * time.Millisecond

// far is a way to a server that is farDelay long, and as wide as the real one.
type far struct {
	url      string
	listener net.Listener
	wg       sync.WaitGroup
}

// newFar stands before the server of a URL.
func newFar(server string) (*far, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &far{listener: l}
	target := u.Host
	u.Host = l.Addr().String()
	f.url = u.String()
	f.wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			f.wg.Go(func() { carry(server, client) })
			f.wg.Go(func() { carry(client, server) })
		}
	})
	return f, nil
}

// parcel is bytes, and when they arrive.
type parcel struct {
	data []byte
	at   time.Time
}

// carry passes on what from sends, farDelay later, until one of them closes. At most 1,024 parcels, 64 MiB, are under way.
func carry(to, from net.Conn) {
	way := make(chan parcel, 1024)
	go func() {
		defer close(way)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			if n > 0 {
				way <- parcel{buf[:n], time.Now().Add(farDelay)}
			}
			if err != nil {
				return
			}
		}
	}()
	var failed error
	for p := range way {
		if failed != nil {
			continue // to its end, so that the reader ends
		}
		time.Sleep(time.Until(p.at))
		if _, failed = to.Write(p.data); failed != nil {
			from.Close()
		}
	}
	to.Close()
	from.Close()
}

func (f *far) close() error {
	err := f.listener.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
