// Command webhook shows the webhook sink, and the other end of it: a receiver that verifies signatures,
// drops repeats by the changes' identity, and prints what it gets.
//
//	go run ./examples/webhook
//
// It starts a throwaway PostgreSQL server and JetStream, replicates a table into the receiver, which
// refuses its first request for a second, compares, and removes everything.
package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/examples/internal/throwaway"
	"github.com/pgflo/flo/sink/webhook"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "webhook:", err)
		os.Exit(1)
	}
}

const schema = `CREATE TABLE orders (id int PRIMARY KEY, item text, amount numeric(10, 2));
	INSERT INTO orders VALUES (1, 'tea', 3.50), (2, 'coffee', 4.20), (3, 'cake', 5.00)`

const changes = `BEGIN; INSERT INTO orders VALUES (4, 'water', 1.00); UPDATE orders SET amount = 4.50 WHERE id = 2; COMMIT;
	DELETE FROM orders WHERE id = 1`

// wanted is how many changes that makes: three rows copied, and three changes.
const wanted = 6

func run(ctx context.Context, out io.Writer) (err error) {
	secret := []byte(rand.Text())
	r := &receiver{out: out, secret: secret, seen: map[string]bool{}}
	endpoint, stop, err := serve(r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()

	servers, err := throwaway.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	source, err := servers.Database(ctx, "shop", schema)
	if err != nil {
		return err
	}
	hook, err := webhook.New(endpoint, webhook.WithSecret(secret), webhook.WithGzip(), webhook.WithKeyPrefix("shop/"))
	if err != nil {
		return err
	}
	f, err := flo.New(
		flo.WithSource(source),
		flo.WithNATSServer(servers.NATS),
		flo.WithGroup("shop"),
		flo.WithTables("public.orders"),
		flo.WithSink(hook),
	)
	if err != nil {
		return err
	}
	err = throwaway.While(ctx, f.Run, func(ctx context.Context) error {
		if err := throwaway.Apply(ctx, f, source, "SELECT 'until the table is copied'"); err != nil {
			return err
		}
		return throwaway.Apply(ctx, f, source, changes)
	})
	if err != nil {
		return err
	}
	return r.summary()
}

// serve lets the receiver listen on this machine.
func serve(r *receiver) (endpoint string, stop func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	return "http://" + l.Addr().String() + "/changes", func() error {
		err := server.Close()
		if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	}, nil
}

// receiver is the endpoint.
type receiver struct {
	out    io.Writer
	secret []byte

	mu                         sync.Mutex
	requests, refused, repeats int
	seen                       map[string]bool // the changes' identities; a real one keeps them with the data
}

// change is what the receiver reads of a change; decode.Change.AppendJSON describes all of it.
type change struct {
	Op, Table string
	Key, New  json.RawMessage
	LSN, Copy string
	Ordinal   uint64
}

// identity of a change, the same whenever it is sent.
func (c *change) identity() string {
	if c.Copy != "" {
		return c.Copy
	}
	return fmt.Sprintf("%s:%d", c.LSN, c.Ordinal)
}

// maxBody is the largest request that is taken: the sink's limit of a request, and room for one large row.
const maxBody = webhook.DefaultMaxBytes + 16<<20

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxBody))
	if err != nil {
		http.Error(w, "body", http.StatusRequestEntityTooLarge)
		return
	}
	// The signature is of the bytes as they came: verify first, then decompress and parse.
	if err := webhook.Verify(req.Header, body, r.secret, 5*time.Minute); err != nil {
		r.refused++
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if r.requests++; r.requests == 1 {
		fmt.Fprintf(r.out, "request %s: signature ok; busy, come again in a second\n", req.Header.Get(webhook.KeyHeader))
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	list, err := parse(body, req.Header.Get("Content-Encoding"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	fmt.Fprintf(r.out, "request %s: signature ok, %d bytes compressed, %d changes\n", req.Header.Get(webhook.KeyHeader), len(body), len(list))
	for _, c := range list {
		if r.seen[c.identity()] {
			r.repeats++
			continue
		}
		r.seen[c.identity()] = true
		fmt.Fprintf(r.out, "  %-6s %s %s %s\n", c.Op, c.Table, c.Key, c.New)
	}
}

func (r *receiver) summary() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "received: %d changes of %d in %d requests; signatures refused: %d\n", len(r.seen), wanted, r.requests, r.refused)
	if len(r.seen) != wanted || r.refused > 0 {
		return errors.New("the receiver has not got what was to be sent")
	}
	return nil
}
