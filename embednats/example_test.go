package embednats_test

import (
	"context"
	"fmt"
	"log"

	"github.com/pgflo/flo/embednats"
)

func ExampleStart() {
	ctx := context.Background()
	s, err := embednats.Start(ctx, embednats.WithTempDir()) // WithDir(path) keeps the data
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close()
	nc, err := s.Conn(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(nc.IsConnected(), s.URL() == "", s.SyncAlways())
	// Output: true true true
}
