package flo_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// A whole program: one database into another one, with a JetStream server inside the process.
func Example() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	nats, err := embednats.Start(ctx, embednats.WithDir("flo-data"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer nats.Close()
	warehouse, err := postgres.New("postgres://flo@warehouse.example/shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := flo.New(
		flo.WithSource("postgres://flo@db.example/shop"),
		flo.WithNATSServer(nats),
		flo.WithGroup("shop"),
		flo.WithSink(warehouse),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := f.Run(ctx); err != nil {
		fmt.Println(err)
	}
}

// New reports every bad option at once, before anything is connected to.
func ExampleNew() {
	_, err := flo.New(
		flo.WithSource("postgres://flo@db.example/shop"),
		flo.WithGroup("shop"),
		flo.WithCopyConnections(100),
		flo.WithSink(sink.Func(func(context.Context, *sink.Batch) error { return nil })),
	)
	fmt.Println(errors.Is(err, flo.ErrInvalidOption))
	fmt.Println(err)
	// Output:
	// true
	// flo: invalid option: NATS: give one of WithNATS, WithNATSURL, WithJetStream, WithNATSServer
	// flo: invalid option: WithCopyConnections(100): want 1 to 64
}

// discard is a sink for the examples that write nothing.
var discard = sink.Func(func(context.Context, *sink.Batch) error { return nil })

// Rules run in the worker, in order, for copied and streamed rows alike.
func ExampleWithRules() {
	f, err := flo.New(
		flo.WithSource("postgres://flo@db.example/shop"),
		flo.WithNATSURL("nats://nats.example"),
		flo.WithGroup("shop"),
		flo.WithSink(discard),
		flo.WithRules(
			rules.Table("public.users", rules.Mask("email"), rules.Exclude("ssn")),
			rules.Table("audit.*", rules.On(rules.Exclude("payload"), decode.OpUpdate)),
		),
	)
	fmt.Println(f != nil, err)
	// Output: true <nil>
}

// Large transactions flow into JetStream before they commit. Workers see them at their commits, as without.
func ExampleWithStreaming() {
	f, err := flo.New(
		flo.WithSource("postgres://flo@db.example/shop"), // PostgreSQL 14 or later
		flo.WithNATSURL("nats://nats.example"),
		flo.WithGroup("shop"),
		flo.WithStreaming(true),
		flo.WithSink(discard),
	)
	fmt.Println(f != nil, err)
	// Output: true <nil>
}

// Several sinks on one group: each worker has a name, a sink and options of its own, and gets every
// change.
func ExampleWithWorker() {
	f, err := flo.New(
		flo.WithSource("postgres://flo@db.example/shop"),
		flo.WithNATSURL("nats://nats.example"),
		flo.WithGroup("shop"),
		flo.WithWorker("search", discard, flo.WithBatchSize(500)),
		flo.WithWorker("audit", discard, flo.WithRules(rules.Exclude("password"))),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, w := range f.Workers() {
		fmt.Println(w.Name(), w.Status().Phase)
	}
	// Output:
	// search stopped
	// audit stopped
}

// A sink of one's own is a function. The batch's memory is the worker's: what is kept has to be
// cloned. Returning nil says that the batch is durable; an error brings the same changes again,
// unless sink.Permanent marks it as final.
func ExampleWithSink() {
	print := sink.Func(func(ctx context.Context, b *sink.Batch) error {
		for _, c := range b.Changes {
			line, err := c.AppendJSON(nil)
			if err != nil {
				return sink.Permanent(err)
			}
			fmt.Println(strings.TrimSpace(string(line)))
		}
		return nil
	})
	_, err := flo.New(
		flo.WithSource("postgres://flo@db.example/shop"),
		flo.WithNATSURL("nats://nats.example"),
		flo.WithGroup("shop"),
		flo.WithSink(print),
	)
	fmt.Println(err)

	// What the worker does with it:
	number := &decode.Type{OID: 23, Schema: "pg_catalog", Name: "int4"}
	items := &decode.Relation{Schema: "public", Name: "items", Columns: []decode.Column{{Name: "id", Type: number, Key: true}}}
	err = print.Write(context.Background(), &sink.Batch{Changes: []*decode.Change{{
		Op: decode.OpInsert, Relation: items, New: decode.Row{decode.TextValue(number, []byte("7"))},
		Tx:      &decode.Tx{XID: 741, CommitLSN: 0x16B3748, EndLSN: 0x16B3778, CommitTime: time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)},
		Ordinal: 1,
	}}})
	fmt.Println(err)
	// Output:
	// <nil>
	// {"op":"insert","schema":"public","table":"items","key":{"id":7},"new":{"id":7},"lsn":"0/16B3748","ordinal":1,"xid":741,"commit_time":"2026-05-04T12:00:00Z"}
	// <nil>
}

// The two halves in processes of their own, from one list of options.
func ExampleNewReplicator() {
	options := []flo.Option{
		flo.WithSource("postgres://flo@db.example/shop"),
		flo.WithNATSURL("nats://nats.example"),
		flo.WithGroup("shop"),
		flo.WithSink(discard),
	}
	r, err := flo.NewReplicator(options...) // in one process
	fmt.Println(r.Status().Phase, err)
	w, err := flo.NewWorker(options...) // in another one
	fmt.Println(w.Status().Phase, err)
	// Output:
	// stopped <nil>
	// stopped <nil>
}

// Waiting until the destination holds what was committed: for a test, or before a cut-over.
func ExampleFlo_WaitFor() {
	var (
		ctx    context.Context // with a deadline
		source *pgx.Conn
		f      *flo.Flo // running, here or elsewhere
	)
	wait := func() error {
		if _, err := source.Exec(ctx, "INSERT INTO items VALUES (7)"); err != nil {
			return err
		}
		var lsn flo.LSN
		if err := source.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()").Scan(&lsn); err != nil {
			return err
		}
		return f.WaitFor(ctx, lsn)
	}
	_ = wait
}
