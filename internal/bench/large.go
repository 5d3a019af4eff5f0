package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
)

// large is one transaction of all rows, written while flo runs: how long it takes to commit, and from its commit
// to JetStream and to the destination.
func (b *bench) large(ctx context.Context, run int, streaming bool) (err error) {
	if err := execute(ctx, b.from, "TRUNCATE changes"); err != nil {
		return err
	}
	if err := b.calm(ctx, "changes"); err != nil {
		return err
	}
	destination, err := destination(b.targetURL)
	if err != nil {
		return err
	}
	f, err := flo.New(
		flo.WithSource(b.sourceURL), flo.WithNATSServer(b.nats), flo.WithGroup(fmt.Sprintf("large_%d_%t", run, streaming)), flo.WithTables("changes"),
		flo.WithMode(flo.StreamOnly), flo.WithSink(destination), flo.WithStreaming(streaming), flo.WithIdleInterval(100*time.Millisecond),
	)
	if err != nil {
		return err
	}
	work, cancel := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() {
		err := f.Run(work)
		cancel(err)
		done <- err
	}()
	defer func() {
		cancel(nil)
		err = errors.Join(err, <-done, f.Drop(ctx))
	}()
	at, err := b.position(ctx)
	if err != nil {
		return err
	}
	if err := f.WaitFor(work, at); err != nil { // it runs
		return err
	}
	before, began := processTime(), time.Now()
	if err := execute(ctx, b.from, "INSERT INTO changes SELECT * FROM rows"); err != nil {
		return err
	}
	committed := time.Now()
	if at, err = b.position(ctx); err != nil {
		return err
	}
	stored, err := published(work, f, at)
	if err != nil {
		return err
	}
	if err := f.WaitFor(work, at); err != nil {
		return err
	}
	applied := time.Now()
	name := "whole"
	if streaming {
		name = "streamed"
	}
	fmt.Printf("| %s | %.2f s | %.2f s | %.2f s | %.2f s | %.2f s |\n", name, committed.Sub(began).Seconds(), stored.Sub(committed).Seconds(),
		applied.Sub(committed).Seconds(), applied.Sub(began).Seconds(), (processTime() - before).Seconds())
	return b.verify(ctx, "changes")
}

// published waits until the stream holds all up to a position.
func published(ctx context.Context, f *flo.Flo, at decode.LSN) (time.Time, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for f.Status().Replicator.Published < at {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return time.Time{}, context.Cause(ctx)
		}
	}
	return time.Now(), nil
}

// larges measures both ways, one after the other, as often as asked for.
func (b *bench) larges(ctx context.Context) error {
	fmt.Printf("one transaction of %d rows of %s each; %s\n\n", b.rows, b.rowSize(ctx), b.version(ctx))
	fmt.Println("| how it is read | to commit | from commit to JetStream | from commit to the destination | in all | CPU of flo and JetStream |")
	fmt.Println("|---|---|---|---|---|---|")
	for i := range b.runs {
		for _, streaming := range []bool{false, true} {
			if err := b.large(ctx, i, streaming); err != nil {
				return err
			}
		}
	}
	return nil
}
