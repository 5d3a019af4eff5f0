package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/pgflo/flo/internal/pgsession"
)

// bridge lets pg_dump use a session that flo has opened. flo connects and authenticates by its own
// configuration (TLS, password callback, dialler); pg_dump connects to a socket in a folder that only this
// user can enter, without a password, and its bytes are passed on from there. So no password leaves the
// process, neither as an argument nor in an environment nor in a file, and whatever pgx can connect to
// pg_dump can.
type bridge struct {
	listener net.Listener
	server   *pgconn.HijackedConn

	mu     sync.Mutex
	client net.Conn
	closed bool
	done   sync.WaitGroup
}

// bridgePort is the number in the socket's name. Any would do.
const bridgePort = "5432"

// openBridge opens the session and the socket, in dir.
func openBridge(ctx context.Context, cfg *pgx.ConnConfig, password func(context.Context) (string, error), dir string) (*bridge, error) {
	prepared, err := pgsession.Prepare(ctx, cfg, pgsession.Options{AppName: "flo pg_dump", Password: password})
	if err != nil {
		return nil, err
	}
	pg, err := pgconn.ConnectConfig(ctx, &prepared.Config)
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: connecting to the source: %w", err)
	}
	if err := pg.SyncConn(ctx); err != nil {
		_ = pg.Close(ctx)
		return nil, fmt.Errorf("sink/postgres: %w", err)
	}
	server, err := pg.Hijack()
	if err != nil {
		_ = pg.Close(ctx)
		return nil, fmt.Errorf("sink/postgres: %w", err)
	}
	// The name by which libpq looks for it: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-HOST
	listener, err := net.Listen("unix", filepath.Join(dir, ".s.PGSQL."+bridgePort))
	if err != nil {
		_ = server.Conn.Close()
		return nil, fmt.Errorf("sink/postgres: a socket for pg_dump: %w", err)
	}
	b := &bridge{listener: listener, server: server}
	b.done.Go(b.serve)
	return b, nil
}

// serve takes one client; what else connects (a request to cancel) is sent away.
func (b *bridge) serve() {
	for {
		c, err := b.listener.Accept()
		if err != nil {
			return
		}
		b.mu.Lock()
		taken := b.client != nil || b.closed
		if !taken {
			b.client = c
		}
		b.mu.Unlock()
		if taken {
			_ = c.Close()
			continue
		}
		b.done.Go(func() { b.splice(c) })
	}
}

// splice welcomes the client as a server does that has authenticated it, and passes bytes on until either
// side ends. https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
func (b *bridge) splice(client net.Conn) {
	defer client.Close()
	defer b.server.Conn.Close()
	front := pgproto3.NewBackend(client, client)
	for {
		msg, err := front.ReceiveStartupMessage()
		if err != nil {
			return
		}
		switch msg.(type) {
		case *pgproto3.SSLRequest, *pgproto3.GSSEncRequest:
			if _, err := client.Write([]byte{'N'}); err != nil {
				return
			}
			continue
		case *pgproto3.StartupMessage:
		default:
			return
		}
		break
	}
	front.Send(&pgproto3.AuthenticationOk{})
	for name, value := range b.server.ParameterStatuses {
		front.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
	}
	front.Send(&pgproto3.BackendKeyData{ProcessID: b.server.PID, SecretKey: b.server.SecretKey})
	front.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if front.Flush() != nil {
		return
	}
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(client, b.server.Conn)
		_ = client.Close()
	}()
	_, _ = io.Copy(b.server.Conn, client)
	_ = b.server.Conn.Close()
	<-back
}

// close ends both sides, and waits for the goroutines.
func (b *bridge) close() error {
	b.mu.Lock()
	b.closed = true
	client := b.client
	b.mu.Unlock()
	err := b.listener.Close()
	_ = b.server.Conn.Close()
	if client != nil {
		_ = client.Close()
	}
	b.done.Wait()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return err
}
