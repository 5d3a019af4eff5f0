package main

import (
	"context"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// documented gives the SQL of docs/operations.md behind a comment, up to the end of its block.
func documented(t *testing.T, comment string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(text), "-- "+comment+"\n")
	if !found {
		t.Fatalf("docs/operations.md has no SQL behind the comment %q", comment)
	}
	block, _, _ = strings.Cut(block, "```")
	return block
}

func TestDocumentedFreshStart(t *testing.T) {
	source, target, nats := flotest.Postgres(t), flotest.Postgres(t), flotest.NATS(t)
	for _, db := range []*flotest.DB{source, target} {
		db.Exec(t, "CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE orders (id int PRIMARY KEY)")
	}
	source.Exec(t, "INSERT INTO users SELECT generate_series(1, 100)")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		f, err := pipeline(settings{group: "shop"}, source.URL, target.URL, flo.WithNATSServer(nats))
		if err != nil {
			t.Fatal(err)
		}
		runUntilApplied(ctx, t, f, source)
		flotest.Equal(t, ctx, source.URL, target.URL, "users", "orders")
		if err := f.Drop(ctx); err != nil {
			t.Fatal(err)
		}
		target.Exec(t, documented(t, "at the destination, to start over"))
	}
}

// runUntilApplied runs a pipeline until it has applied what the source has committed by now.
func runUntilApplied(ctx context.Context, t *testing.T, f *flo.Flo, source *flotest.DB) {
	t.Helper()
	run, stop := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() {
		err := f.Run(run)
		stop(err)
		done <- err
	}()
	var end flo.LSN
	if err := end.Scan(source.QueryString(t, "SELECT pg_current_wal_flush_lsn()")); err != nil {
		t.Fatal(err)
	}
	if err := f.WaitFor(run, end); err != nil {
		t.Error(err)
	}
	stop(nil)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// as gives a database's URL for another user.
func as(t *testing.T, address, user string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, "secret")
	return u.String()
}

func TestDocumentedGrantsAreEnough(t *testing.T) {
	server := flotest.NewServer(t)
	source, target := server.NewDB(t), server.NewDB(t)
	source.Exec(t, "CREATE ROLE shop_owner")
	for _, db := range []*flotest.DB{source, target} {
		db.Exec(t, "CREATE TABLE items (id int PRIMARY KEY, name text); CREATE TABLE log (line text); ALTER TABLE items OWNER TO shop_owner; ALTER TABLE log OWNER TO shop_owner")
	}
	source.Exec(t, "INSERT INTO items SELECT i, 'item' FROM generate_series(1, 100) i")
	source.Exec(t, strings.ReplaceAll(documented(t, "at the source"), "DATABASE shop", "DATABASE "+source.Name))
	target.Exec(t, strings.ReplaceAll(documented(t, "at the destination"), "DATABASE shop", "DATABASE "+target.Name))

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	nats := flotest.NATS(t)
	run := func() *flo.Flo {
		f, err := pipeline(settings{group: "shop"}, as(t, source.URL, "flo_source"), as(t, target.URL, "flo_target"), flo.WithNATSServer(nats))
		if err != nil {
			t.Fatal(err)
		}
		runUntilApplied(ctx, t, f, source)
		return f
	}
	run()
	source.Exec(t, "UPDATE items SET name = 'other' WHERE id < 10; DELETE FROM items WHERE id = 50; INSERT INTO log VALUES ('a'); TRUNCATE log; INSERT INTO log VALUES ('b')")
	f := run()
	flotest.Equal(t, ctx, source.URL, target.URL, "items", "log")
	if err := f.Drop(ctx); err != nil {
		t.Error(err)
	}
}
