package flo_test

import (
	"context"
	"fmt"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink/postgres"
)

// Changes that the warehouse will never take are laid aside, at most 100, while the others go on; the audit's worker
// stops at the first one.
func ExampleWithErrorPolicy() {
	warehouse, _ := postgres.New("postgres://flo@warehouse.example/shop")
	audit, _ := postgres.New("postgres://flo@audit.example/shop")
	_, err := flo.New(
		flo.WithSource("postgres://flo@db.example/shop"),
		flo.WithNATSURL("nats://nats.example"),
		flo.WithGroup("shop"),
		flo.WithWorker("warehouse", warehouse, flo.WithErrorPolicy(flo.DeadLetter), flo.WithDeadLetterLimit(100)),
		flo.WithWorker("audit", audit, flo.WithErrorPolicy(flo.Stop)),
	)
	fmt.Println(err)
	// Output: <nil>
}

// Once the destination is mended, and the worker stopped, its dead letters are written again.
func ExampleFlo_Replay() {
	ctx := context.Background()
	warehouse, err := postgres.New("postgres://flo@warehouse.example/shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer warehouse.Close(ctx) // Replay leaves it open
	f, err := flo.New(
		flo.WithSource("postgres://flo@db.example/shop"),
		flo.WithNATSURL("nats://nats.example"),
		flo.WithGroup("shop"),
		flo.WithSink(warehouse),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	for l, err := range f.DeadLetters(ctx, "default") {
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(l.ID, l.Table, l.Op, l.Reason)
	}
	n, err := f.Replay(ctx, "default")
	fmt.Println(n, "were written;", err)
}
