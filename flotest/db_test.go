package flotest_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"github.com/pgflo/flo/flotest"
)

func TestQueryGivesText(t *testing.T) {
	db := flotest.Postgres(t)
	sql := "SELECT timestamptz '2024-02-03 04:05:06+00', NULL, bytea '\\x00ff', 7"
	want := []string{"2024-02-03 04:05:06+00", flotest.Null, "\\x00ff", "7"}
	if got := db.Query(t, sql); len(got) != 1 || !slices.Equal(got[0], want) {
		t.Errorf("%q", got)
	}
	if got := db.Query(t, sql+"::int + $1", 1); len(got) != 1 || got[0][3] != "8" || got[0][0] != want[0] {
		t.Errorf("with arguments: %q", got)
	}
}

// TestSharedServerIsOdd proves that a session that sets nothing is unlike PostgreSQL's usual.
func TestSharedServerIsOdd(t *testing.T) {
	flotest.RequireOwnServer(t)
	db := flotest.Postgres(t)
	conn, err := pgconn.Connect(t.Context(), db.URL)
	must(t, err)
	defer conn.Close(t.Context())
	r, err := conn.Exec(t.Context(), "SELECT timestamptz '2024-02-03 04:05:06+00', '\\x00ff'::bytea, (0.1::float8 + 0.2)::text").ReadAll()
	must(t, err)
	row := r[0].Rows[0]
	if a, b, c := string(row[0]), string(row[1]), string(row[2]); a != "03/02/2024 09:35:06 IST" || b != `\000\377` || c != "0.3" {
		t.Errorf("%q %q %q", a, b, c)
	}
}

func TestDatabaseGoesWithEverythingInItsWay(t *testing.T) {
	var name string
	ctx := t.Context()
	outer := flotest.Postgres(t)
	t.Run("user", func(t *testing.T) {
		db := flotest.Postgres(t)
		name = db.Name
		db.Exec(t, "CREATE TABLE x (a int primary key)")
		db.Exec(t, "CREATE PUBLICATION p FOR ALL TABLES")
		idle := "idle_" + name
		db.Exec(t, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", idle)
		db.Exec(t, "CREATE SUBSCRIPTION "+name+"_sub CONNECTION 'dbname=nowhere' PUBLICATION p WITH (connect = false)")
		c := db.Conn(t)
		if _, err := c.PgConn().Exec(ctx, "BEGIN").ReadAll(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.PgConn().Exec(ctx, "INSERT INTO x VALUES (1); PREPARE TRANSACTION '"+name+"'").ReadAll(); err != nil {
			t.Fatal(err)
		}
		// A walsender in the middle of streaming, which its client never ends.
		cfg, err := pgconn.ParseConfig(db.URL)
		must(t, err)
		cfg.RuntimeParams["replication"] = "database"
		ws, err := pgconn.ConnectConfig(ctx, cfg)
		must(t, err)
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			ws.Close(ctx)
		})
		must(t, pglogrepl.StartReplication(ctx, ws, idle, 0, pglogrepl.StartReplicationOptions{
			PluginArgs: []string{"proto_version '1'", "publication_names 'p'"}}))
	})
	if n := outer.QueryString(t, "SELECT (SELECT count(*) FROM pg_database WHERE datname = $1) + (SELECT count(*) FROM pg_replication_slots WHERE database = $1)", name); n != "0" {
		t.Errorf("%s databases and slots are left", n)
	}
}

func TestNATS(t *testing.T) {
	nc := flotest.NATSConn(t)
	must(t, nc.Flush())
	if flotest.NATS(t).URL() != "" {
		t.Error("listens")
	}
}

func TestLeakOptionsLeaveServersOut(t *testing.T) {
	opts := append(flotest.LeakOptions(), goleak.IgnoreCurrent())
	flotest.NewServer(t)
	goleak.VerifyNone(t, opts...)
}
