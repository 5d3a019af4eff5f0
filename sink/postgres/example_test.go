package postgres_test

import (
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
