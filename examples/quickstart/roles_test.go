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

// documented gives the SQL block of docs/operations.md that begins with a comment.
func documented(t *testing.T, comment string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, found := strings.Cut(string(text), "```sql\n-- "+comment+"\n")
	if !found {
		t.Fatalf("docs/operations.md has no block that begins with %q", comment)
	}
	block, _, _ = strings.Cut(block, "```")
	return block
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
	f, err := pipeline(settings{group: "shop"}, as(t, source.URL, "flo_source"), as(t, target.URL, "flo_target"), flo.WithNATSServer(flotest.NATS(t)))
	if err != nil {
		t.Fatal(err)
	}
	run, stop := context.WithCancelCause(ctx)
	done := make(chan error, 1)
	go func() {
		err := f.Run(run)
		stop(err)
		done <- err
	}()
	source.Exec(t, "UPDATE items SET name = 'other' WHERE id < 10; DELETE FROM items WHERE id = 50; INSERT INTO log VALUES ('a'); TRUNCATE log; INSERT INTO log VALUES ('b')")
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
	flotest.Equal(t, ctx, source.URL, target.URL, "items", "log")
	if err := f.Drop(ctx); err != nil {
		t.Error(err)
	}
}
