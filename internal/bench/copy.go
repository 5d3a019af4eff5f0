package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink/postgres"
)

// copies measures the first copy of a table.
func (b *bench) copies(ctx context.Context) error {
	for _, s := range []subject{
		{name: "native initial sync", run: b.nativeSync},
		{name: "psql COPY to psql COPY", run: b.psqlCopy},
		{name: "flo", ours: true, goal: 1, run: b.floCopy},
	} {
		s.group, s.changes = "copy", b.rows
		if err := b.calm(ctx, "rows"); err != nil {
			return err
		}
		if err := b.measure(ctx, s); err != nil {
			return err
		}
		if err := b.verify(ctx, "rows"); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err := execute(ctx, b.to, "DROP SUBSCRIPTION IF EXISTS sync"); err != nil {
			return err
		}
	}
	return nil
}

// nativeSync lets a subscription make its slot and copy the table.
func (b *bench) nativeSync(ctx context.Context) error {
	if err := execute(ctx, b.from, "DROP PUBLICATION IF EXISTS sync", "CREATE PUBLICATION sync FOR TABLE rows"); err != nil {
		return err
	}
	if err := execute(ctx, b.to, fmt.Sprintf("CREATE SUBSCRIPTION sync CONNECTION '%s' PUBLICATION sync", keywords(b.sourceURL))); err != nil {
		return err
	}
	for { // until the table's state is "synchronized" or "ready"
		var done bool
		if err := b.to.QueryRow(ctx, "SELECT count(*) = 1 FROM pg_subscription_rel WHERE srsubstate IN ('s', 'r')").Scan(&done); err != nil || done {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// psqlCopy copies the table by two psql and a pipe.
func (b *bench) psqlCopy(ctx context.Context) error {
	psql, err := exec.LookPath(filepath.Join(b.source.BinDir(), "psql"))
	if err != nil {
		if psql, err = exec.LookPath("psql"); err != nil {
			return err
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	out := exec.CommandContext(ctx, psql, "-X", "-q", "-c", "COPY rows TO STDOUT", b.sourceURL)
	in := exec.CommandContext(ctx, psql, "-X", "-q", "-c", "COPY rows FROM STDIN", b.targetURL)
	var complaints strings.Builder
	out.Stdout, in.Stdin = w, r
	in.Stderr = &complaints
	err = errors.Join(out.Start(), in.Start())
	w.Close()
	r.Close()
	if err != nil {
		return err
	}
	if err := errors.Join(out.Wait(), in.Wait()); err != nil {
		return fmt.Errorf("%w: %s", err, complaints.String())
	}
	return nil
}

// floCopy copies the table through JetStream.
func (b *bench) floCopy(ctx context.Context) error {
	destination, err := postgres.New(b.targetURL, postgres.WithConnections(b.connections))
	if err != nil {
		return err
	}
	f, err := flo.New(
		flo.WithSource(b.sourceURL), flo.WithNATSServer(b.nats), flo.WithGroup(b.newGroup()), flo.WithTables("rows"),
		flo.WithMode(flo.CopyOnly), flo.WithCopyConnections(b.connections), flo.WithSink(destination),
	)
	if err != nil {
		return err
	}
	return errors.Join(f.Run(ctx), f.Drop(ctx))
}

func (b *bench) newGroup() string {
	b.serial++
	return fmt.Sprintf("bench_%d", b.serial)
}
