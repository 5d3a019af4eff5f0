// Command customsink shows a sink of one's own: sink.go is all of it, sink_test.go lets flo's suite
// test it. It publishes changes as events to a JetStream stream.
//
//	go run ./examples/customsink
//
// It starts a throwaway PostgreSQL server and JetStream, replicates a table while it changes, reads the
// events, compares what they make with the table, and removes everything.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/examples/internal/throwaway"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "customsink:", err)
		os.Exit(1)
	}
}

const schema = `CREATE TABLE products (sku text PRIMARY KEY, name text, price numeric);
	INSERT INTO products SELECT 'p' || i, 'product ' || i, i * 1.25 FROM generate_series(1, 1000) i`

const changes = `UPDATE products SET price = price * 2 WHERE sku LIKE 'p10%';
	UPDATE products SET sku = 'renamed' WHERE sku = 'p7';
	DELETE FROM products WHERE sku LIKE 'p9%';
	INSERT INTO products VALUES ('new', NULL, 'NaN')`

func run(ctx context.Context, out io.Writer) (err error) {
	servers, err := throwaway.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	source, err := servers.Database(ctx, "shop", schema)
	if err != nil {
		return err
	}
	nc, err := servers.NATS.Conn(ctx)
	if err != nil {
		return err
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	events, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "events", Subjects: []string{"events.*"}})
	if err != nil {
		return err
	}

	f, err := flo.New(
		flo.WithSource(source),
		flo.WithNATS(nc),
		flo.WithGroup("shop"),
		flo.WithTables("public.products"),
		flo.WithSink(Events{JS: js}),
	)
	if err != nil {
		return err
	}
	return throwaway.While(ctx, f.Run, func(ctx context.Context) error {
		if err := throwaway.Apply(ctx, f, source, "SELECT 'until the table is copied'"); err != nil {
			return err
		}
		if err := throwaway.Apply(ctx, f, source, changes); err != nil {
			return err
		}
		return compare(ctx, out, source, events)
	})
}

// compare makes a table of the events, as a consumer might, and compares it with the source.
func compare(ctx context.Context, out io.Writer, source string, events jetstream.Stream) error {
	want, err := throwaway.Rows(ctx, source, "SELECT sku, name, price::text FROM products")
	if err != nil {
		return err
	}
	table, counts := map[string]event{}, map[string]int{}
	err = read(ctx, events, func(data []byte) error {
		var e event
		if err := json.Unmarshal(data, &e); err != nil {
			return err
		}
		counts[e.Op]++
		if e.Old != nil {
			delete(table, e.Old.SKU)
		}
		if e.New != nil {
			table[e.New.SKU] = e
		}
		return nil
	})
	if err != nil {
		return err
	}
	differences := max(0, len(table)-len(want))
	for _, w := range want {
		e := table[w[0]]
		if e.New == nil || e.New.price() != w[2] {
			differences++
			fmt.Fprintf(out, "%s: the table has %v, the events %+v\n", w[0], w, e.New)
		}
	}
	fmt.Fprintf(out, "events  %d inserts, %d updates, %d deletes\nrows    %d in the table, %d by the events\ndifferences: %d\n",
		counts["insert"], counts["update"], counts["delete"], len(want), len(table), differences)
	if differences > 0 {
		return errors.New("the events don't make the table")
	}
	return nil
}

// event is a change, of which it is enough here to know the rows.
type event struct {
	Op       string
	New, Old *product
}

type product struct {
	SKU   string
	Price json.RawMessage // every digit, or "NaN"
}

func (p *product) price() string { return strings.Trim(string(p.Price), `"`) }

// read reads all events that are there.
func read(ctx context.Context, events jetstream.Stream, each func(data []byte) error) error {
	info, err := events.Info(ctx)
	if err != nil {
		return err
	}
	for n := uint64(1); n <= info.State.LastSeq; n++ {
		m, err := events.GetMsg(ctx, n)
		if err != nil {
			return err
		}
		if err := each(m.Data); err != nil {
			return err
		}
	}
	return nil
}
