// Package throwaway gives the examples what a program has already: PostgreSQL and JetStream. Both are
// gone when the example ends.
package throwaway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
)

// Bound is how long an example may take.
const Bound = time.Minute

// Servers are a PostgreSQL server and a JetStream server in this process.
type Servers struct {
	NATS     *embednats.Server
	postgres *flotest.Server
}

// Start starts both.
func Start(ctx context.Context) (*Servers, error) {
	postgres, err := flotest.StartServer(ctx)
	if err != nil {
		return nil, err
	}
	nats, err := embednats.Start(ctx, embednats.WithTempDir())
	if err != nil {
		return nil, errors.Join(err, postgres.Close())
	}
	return &Servers{NATS: nats, postgres: postgres}, nil
}

// Close ends both, and removes what they stored.
func (s *Servers) Close() error { return errors.Join(s.NATS.Close(), s.postgres.Close()) }

// Database makes a database, runs SQL in it, and gives its URL.
func (s *Servers) Database(ctx context.Context, name, sql string) (url string, err error) {
	if url, err = s.postgres.CreateDatabase(ctx, name); err != nil {
		return "", err
	}
	_, err = Exec(ctx, url, sql)
	return url, err
}

// Exec runs SQL, and gives a position of the write-ahead log behind it, for flo's WaitFor.
func Exec(ctx context.Context, url, sql string) (end flo.LSN, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return 0, err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, sql); err != nil {
		return 0, err
	}
	err = conn.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()").Scan(&end)
	return end, err
}

// Apply runs SQL at the source and waits until the pipeline's workers have applied all that is there.
func Apply(ctx context.Context, f *flo.Flo, source, sql string) error {
	end, err := Exec(ctx, source, sql)
	if err != nil {
		return err
	}
	return f.WaitFor(ctx, end)
}

// Rows gives the rows of a query, as text.
func Rows(ctx context.Context, url, sql string) (rows [][]string, err error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	result, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(result, func(r pgx.CollectableRow) ([]string, error) {
		values, err := r.Values()
		row := make([]string, len(values))
		for i, v := range values {
			row[i] = fmt.Sprint(v)
		}
		return row, err
	})
}

// While runs a pipeline, does some work, and ends the pipeline, which drains what it has read.
func While(ctx context.Context, pipeline func(context.Context) error, work func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, Bound)
	defer cancel()
	running, stop := context.WithCancelCause(ctx)
	ended := make(chan error, 1)
	go func() {
		err := pipeline(running)
		stop(err) // so that the work doesn't wait for it
		ended <- err
	}()
	err := work(running)
	stop(nil)
	return errors.Join(<-ended, err)
}
