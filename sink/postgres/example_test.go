package postgres_test

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pgflo/flo/sink/postgres"
)

// A sink for a warehouse that has foreign keys of its own, filled over four connections.
func ExampleNew() {
	s, err := postgres.New("postgres://flo@warehouse/shop",
		postgres.WithReplicaRole(),        // foreign keys and triggers rest while flo writes
		postgres.WithTruncateBeforeCopy(), // whatever is there gives way to the copy
		postgres.WithConnections(4),
		postgres.WithLogger(slog.Default()),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(s.Parallel())
	// Output: 4
}

// A sink that makes the tables it needs, and everything that belongs to them.
func ExampleWithSchemaSync() {
	s, err := postgres.New("postgres://flo@warehouse/shop",
		postgres.WithReplicaRole(),
		postgres.WithSchemaSync("postgres://flo@db/shop", postgres.SchemaJobs(8)),
	)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%q\n", s.SchemaStatus().Phase) // nothing is done before the copy
	// Output: ""
}

// The last step of a cut-over.
func ExampleSyncSequences() {
	all, err := postgres.SyncSequences(context.Background(), "postgres://flo@db/shop", "postgres://flo@warehouse/shop")
	for _, q := range all {
		fmt.Println(q.Source, q.Destination, q.Last, q.Set)
	}
	if err != nil {
		fmt.Println(err)
	}
}
