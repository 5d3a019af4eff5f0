package main

import (
	"context"
	"errors"
	"strconv"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
)

// throwaway is what the demonstration works on.
type throwaway struct {
	source, target       *flotest.Server
	nats                 *embednats.Server
	sourceURL, targetURL string
}

const database = "bank"

func (t *throwaway) start(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		if t.source, err = flotest.StartServer(ctx); err != nil {
			return err
		}
		t.sourceURL, err = t.source.CreateDatabase(ctx, database)
		return err
	})
	g.Go(func() (err error) {
		if t.target, err = flotest.StartServer(ctx); err != nil {
			return err
		}
		t.targetURL, err = t.target.CreateDatabase(ctx, database)
		return err
	})
	g.Go(func() (err error) {
		t.nats, err = embednats.Start(ctx, embednats.WithTempDir())
		return err
	})
	return g.Wait()
}

// fill makes the tables on both sides, and the rows at the source.
func (t *throwaway) fill(ctx context.Context, scale int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := flotest.RunPgbench(ctx, t.sourceURL, "-i", "-q", "-s", strconv.Itoa(scale))
		return err
	})
	g.Go(func() error {
		_, err := flotest.RunPgbench(ctx, t.targetURL, "-i", "-I", "dtp", "-s", strconv.Itoa(scale))
		return err
	})
	return g.Wait()
}

// close ends and removes what was started.
func (t *throwaway) close() error {
	var errs []error
	if t.nats != nil {
		errs = append(errs, t.nats.Close())
	}
	for _, s := range []*flotest.Server{t.source, t.target} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}
