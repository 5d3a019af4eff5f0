package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/flotest"
)

// A connection that breaks in the middle of a pipeline is closed by pgconn on a goroutine of its own: the race
// detector sees who else touches it then.
func TestAbandonedPipelineOfABrokenConnection(t *testing.T) {
	url := flotest.Postgres(t).URL
	for range 20 {
		pg, err := pgconn.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		q := newPipeline(t.Context(), &session{pg: pg}, nil)
		if err := q.run(0, "SELECT pg_sleep(0)"); err != nil {
			t.Fatal(err)
		}
		if err := pg.Conn().(interface{ CloseRead() error }).CloseRead(); err != nil { // what is sent still goes out
			t.Fatal(err)
		}
		if err := q.finish(); err == nil {
			t.Fatal("a pipeline over a closed connection ended well")
		}
		q.abandon()
		<-pg.CleanupDone()
	}
}
