package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/pgflo/flo"
)

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

// reader takes the backlog that stands behind its slot.
type reader struct {
	name   string
	ours   bool
	writes bool // the destination holds the rows afterwards
	read   func(context.Context) error
	end    func(context.Context) error
}

// subscription makes the slot of a native subscription.
func (b *bench) subscription(ctx context.Context) (reader, error) {
	err := execute(ctx, b.from,
		"DROP PUBLICATION IF EXISTS native",
		"CREATE PUBLICATION native FOR TABLE changes",
		"SELECT pg_create_logical_replication_slot('native', 'pgoutput')")
	return reader{
		name: "native subscription, backlog", writes: true,
		read: func(ctx context.Context) error {
			if err := execute(ctx, b.to, fmt.Sprintf(
				"CREATE SUBSCRIPTION native CONNECTION '%s' PUBLICATION native WITH (create_slot = false, slot_name = native, copy_data = false)",
				keywords(b.sourceURL))); err != nil {
				return err
			}
			return b.arrived(ctx)
		},
		end: func(ctx context.Context) error { return execute(ctx, b.to, "DROP SUBSCRIPTION native") },
	}, err
}

// keywords writes a URL as keywords and values, which libpq of all versions takes.
func keywords(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	password, _ := u.User.Password()
	return fmt.Sprintf("host=%s port=%s user=%s password=%s dbname=%s", u.Hostname(), u.Port(), u.User.Username(), password, strings.TrimPrefix(u.Path, "/"))
}

// arrived waits for the last row: changes arrive in order.
func (b *bench) arrived(ctx context.Context) error {
	for {
		var there bool
		if err := b.to.QueryRow(ctx, "SELECT EXISTS (SELECT FROM changes WHERE id = $1)", b.last).Scan(&there); err != nil || there {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pollInterval is how often a wait looks again.
const pollInterval = 20 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pollInterval):
		return nil
	}
}

// position is a position behind everything that the source has committed.
func (b *bench) position(ctx context.Context) (lsn flo.LSN, err error) {
	// Commits that were not waited for are flushed by the checkpoint behind them.
	err = b.from.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()").Scan(&lsn)
	return lsn, err
}
