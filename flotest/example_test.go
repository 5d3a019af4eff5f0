package flotest_test

import (
	"context"
	"fmt"
	"log"

	"github.com/pgflo/flo/flotest"
)

func ExampleDiff() {
	ctx := context.Background()
	s, err := flotest.StartServer(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	for _, db := range []string{"shop", "copy"} {
		if _, err := s.CreateDatabase(ctx, db); err != nil {
			log.Fatal(err)
		}
		if _, err := s.RunPgbench(ctx, db, "-i", "-q"); err != nil {
			log.Fatal(err)
		}
	}
	report, err := flotest.Diff(ctx, s.URL("shop"), s.URL("copy"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(report)
	// Output:
	// "public"."pgbench_accounts": equal, 100000 rows
	// "public"."pgbench_branches": equal, 1 rows
	// "public"."pgbench_history": equal, 0 rows
	// "public"."pgbench_tellers": equal, 10 rows
}
