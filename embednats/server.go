// Package embednats runs a JetStream server inside the process: for a pipeline that
// lives on one machine, and for tests. The server has no listener unless one is asked
// for, keeps its streams in a folder that only one server at a time can open, and
// syncs every write before it acknowledges it.
//
// It is the only package of flo that links nats-server; a program that talks to a NATS
// server of its own does not import it.
package embednats

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Errors of this package, found by errors.Is.
var (
	// ErrInvalidOption is wrapped by every complaint about an option of Start.
	ErrInvalidOption = errors.New("embednats: invalid option")
	// ErrFolderInUse is returned by Start when another server, in this process or in
	// another one, has the folder open.
	ErrFolderInUse = errors.New("embednats: folder is in use by another server")
	// ErrClosed is returned by Conn and Restart after Close.
	ErrClosed = errors.New("embednats: server is closed")
)

// Server is a running JetStream server. Its methods may be called from several
// goroutines.
type Server struct {
	cfg    config
	dir    string // the store's folder, absolute or as given
	unlock func() error

	life sync.Mutex // held over all of Restart and Close

	mu     sync.Mutex // guards what follows
	srv    *server.Server
	addr   string // host:port that the listener got, kept over a Restart
	conns  map[*nats.Conn]struct{}
	closed bool
}

// Start starts a server and returns when it answers. Without WithDir or WithTempDir it
// fails with ErrInvalidOption, and with ErrFolderInUse when the folder is taken.
//
// Reading a large store back takes time and can't be broken off without harm to it, so
// an end of ctx is noticed before and after, not during it.
func Start(ctx context.Context, opts ...Option) (*Server, error) {
	cfg := defaults()
	for _, o := range opts {
		o(&cfg)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("embednats: start: %w", err)
	}
	s := &Server{cfg: cfg, dir: cfg.dir, conns: map[*nats.Conn]struct{}{}, addr: cfg.listen}
	if err := s.openFolder(); err != nil {
		return nil, err
	}
	srv, err := s.boot(ctx)
	if err != nil {
		return nil, errors.Join(err, s.closeFolder())
	}
	s.srv = srv
	return s, nil
}

func (s *Server) openFolder() (err error) {
	if s.cfg.temp {
		if s.dir, err = os.MkdirTemp("", "flo-nats-"); err != nil {
			return fmt.Errorf("embednats: temporary folder: %w", err)
		}
	} else if err = os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("embednats: store folder: %w", err)
	}
	s.unlock, err = lockFolder(s.dir)
	return err
}

func (s *Server) closeFolder() error {
	err := s.unlock()
	if s.cfg.temp {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// boot makes and starts one nats-server over the open folder.
func (s *Server) boot(ctx context.Context) (*server.Server, error) {
	o := &server.Options{
		NoSigs:                 true,
		NoLog:                  true,
		DontListen:             s.addr == "",
		JetStream:              true,
		StoreDir:               s.dir,
		SyncAlways:             s.cfg.syncInterval == 0,
		SyncInterval:           s.cfg.syncInterval,
		MaxPayload:             int32(s.cfg.maxPayload),
		DisableJetStreamBanner: true,
	}
	if s.addr != "" {
		host, port, err := splitListen(s.addr)
		if err != nil {
			return nil, err
		}
		o.Host, o.Port = host, port
		if port == 0 {
			o.Port = server.RANDOM_PORT
		}
	}
	srv, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("embednats: new server: %w", err)
	}
	log := &logAdapter{log: s.cfg.logger}
	srv.SetLoggerV2(log, log.debugEnabled(), false, false)
	// Start returns once everything is up or a fatal error was logged: in a program of
	// its own nats-server would exit there, here only the logger hears of it.
	srv.Start()
	err = log.fatal()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil && !srv.ReadyForConnections(readyTimeout) {
		err = fmt.Errorf("not ready after %s", readyTimeout)
	}
	if err == nil {
		err = firstRequest(ctx, srv)
	}
	if err != nil {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil, fmt.Errorf("embednats: start: %w", err)
	}
	if a := srv.Addr(); a != nil {
		s.addr = a.String()
	}
	return srv, nil
}

// firstRequest asks JetStream something before anybody else does. An account's subscription to the answers is made at its first request
// (newServiceReply in nats-server's server/accounts.go), and the answers to others that come at the same moment are lost.
func firstRequest(ctx context.Context, srv *server.Server) error {
	nc, err := nats.Connect("", nats.InProcessServer(srv), nats.Timeout(readyTimeout))
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	_, err = nc.RequestWithContext(ctx, "$JS.API.INFO", nil)
	return err
}

// readyTimeout bounds the wait for a server whose Start has already returned.
const readyTimeout = 10 * time.Second

// Conn returns a connection to the server that goes through memory, not through a
// socket, and reconnects after Restart for as long as it takes. Options are applied
// after these defaults. The deadline of ctx, if any, bounds the connecting. Close
// closes the connection too, if the caller hasn't.
func (s *Server) Conn(ctx context.Context, opts ...nats.Option) (*nats.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("embednats: connect: %w", err)
	}
	all := []nats.Option{
		nats.InProcessServer(s),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.ReconnectJitter(0, 0),
	}
	if d, ok := ctx.Deadline(); ok {
		all = append(all, nats.Timeout(time.Until(d)))
	}
	nc, err := nats.Connect("", append(all, opts...)...)
	if err != nil {
		return nil, fmt.Errorf("embednats: connect: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		nc.Close()
		return nil, ErrClosed
	}
	for c := range s.conns {
		if c.IsClosed() {
			delete(s.conns, c)
		}
	}
	s.conns[nc] = struct{}{}
	return nc, nil
}

// reconnectWait is short because there is no network between the two.
const reconnectWait = 20 * time.Millisecond

// InProcessConn makes Server a nats.InProcessConnProvider. Programs use Conn.
func (s *Server) InProcessConn() (net.Conn, error) {
	s.mu.Lock()
	srv, closed := s.srv, s.closed
	s.mu.Unlock()
	if closed {
		return nil, ErrClosed
	}
	if srv == nil {
		return nil, nats.ErrNoServers // between the two halves of Restart
	}
	return srv.InProcessConn()
}

// URL returns the address for clients of other processes, "" without WithListen.
func (s *Server) URL() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addr == "" {
		return ""
	}
	return "nats://" + s.addr
}

// Dir returns the folder that holds the streams.
func (s *Server) Dir() string { return s.dir }

// SyncAlways reports whether an acknowledged message is on the disk, not only in the
// page cache. flo needs no replay window in front of such a server.
func (s *Server) SyncAlways() bool { return s.cfg.syncInterval == 0 }

// Restart stops the server and starts it again over the same folder and address.
// Connections made by Conn reconnect by themselves. After an error nothing runs and
// only Close or another Restart is left to call.
func (s *Server) Restart(ctx context.Context) error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	old, closed := s.srv, s.closed
	s.srv = nil
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	stop(old)

	s.mu.Lock()
	defer s.mu.Unlock()
	srv, err := s.boot(ctx)
	if err != nil {
		return err
	}
	s.srv = srv
	return nil
}

// Close closes the connections that Conn made, stops the server, waits until it has
// written everything and its goroutines are gone, and removes the folder if it was a
// temporary one. Calling it again does nothing.
func (s *Server) Close() error {
	s.life.Lock()
	defer s.life.Unlock()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	srv, conns := s.srv, s.conns
	s.srv, s.conns = nil, nil
	s.mu.Unlock()

	for nc := range conns {
		nc.Close()
	}
	stop(srv)
	return s.closeFolder()
}

func stop(srv *server.Server) {
	if srv == nil {
		return
	}
	srv.Shutdown()
	srv.WaitForShutdown()
}
