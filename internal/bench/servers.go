package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
)

// servers are what is measured on.
type servers struct {
	source, target       *flotest.Server
	sourceURL, targetURL string
	from, to             *pgx.Conn
	sourceFar, targetFar *far
	nats                 *embednats.Server
}

func (s *servers) conns() []*pgx.Conn { return []*pgx.Conn{s.from, s.to} }

// table is the shape of both tables: a key, and rows of about 240 bytes.
const table = `CREATE TABLE %s (id bigint PRIMARY KEY, shop int, name text, price numeric(12,2), attributes jsonb, updated timestamptz, note text)`

// row makes a row of a number.
const row = `i, i %% 1000, 'customer ' || i, (i %% 100000) / 100.0,
	jsonb_build_object('colour', (ARRAY['red', 'green', 'blue'])[i %% 3 + 1], 'weight', i %% 977, 'tags', ARRAY['a', 'b', i::text]),
	'2026-01-01'::timestamptz + i * interval '1 second', repeat(md5(i::text), 3)`

func (b *bench) start(ctx context.Context) (err error) {
	settings := []flotest.ServerOption{
		flotest.WithSetting("shared_buffers", "512MB"),
		flotest.WithSetting("max_wal_size", "16GB"),
		flotest.WithSetting("checkpoint_timeout", "1h"),
		flotest.WithSetting("track_commit_timestamp", "on"),
	}
	if b.source, err = flotest.StartServer(ctx, settings...); err != nil {
		return err
	}
	if b.target, err = flotest.StartServer(ctx, settings...); err != nil {
		return err
	}
	if b.sourceURL, err = b.source.CreateDatabase(ctx, "bench"); err != nil {
		return err
	}
	if b.targetURL, err = b.target.CreateDatabase(ctx, "bench"); err != nil {
		return err
	}
	if b.from, err = pgx.Connect(ctx, b.sourceURL); err != nil {
		return err
	}
	if b.to, err = pgx.Connect(ctx, b.targetURL); err != nil {
		return err
	}
	for _, c := range b.conns() {
		if err := execute(ctx, c, "SET timezone = 'UTC'", fmt.Sprintf(table, "rows"), fmt.Sprintf(table, "changes"),
			"CREATE TABLE ticks (id bigint PRIMARY KEY)"); err != nil {
			return err
		}
	}
	if b.sourceFar, err = newFar(b.sourceURL); err != nil {
		return err
	}
	if b.targetFar, err = newFar(b.targetURL); err != nil {
		return err
	}
	if err := execute(ctx, b.from,
		fmt.Sprintf("INSERT INTO rows SELECT "+row+" FROM generate_series(1, %d) i", b.rows),
		"VACUUM ANALYZE rows",
		`CREATE PROCEDURE backlog(n int, tx int) LANGUAGE plpgsql AS $$ BEGIN
			FOR i IN 1 .. n BY tx LOOP
				INSERT INTO changes SELECT * FROM rows r WHERE r.id BETWEEN i AND least(i + tx - 1, n);
				COMMIT;
			END LOOP;
		END $$`,
	); err != nil {
		return err
	}
	b.nats, err = embednats.Start(ctx, embednats.WithTempDir())
	return err
}

func execute(ctx context.Context, c *pgx.Conn, statements ...string) error {
	for _, sql := range statements {
		if _, err := c.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", strings.SplitN(sql, "\n", 2)[0], err)
		}
	}
	return nil
}

// calm empties a table of the destination, and lets both servers write what is behind.
func (b *bench) calm(ctx context.Context, table string) error {
	if err := execute(ctx, b.to, "TRUNCATE "+table, "CHECKPOINT"); err != nil {
		return err
	}
	return execute(ctx, b.from, "CHECKPOINT")
}

// verify compares a table's sides by number and hash of the rows.
func (b *bench) verify(ctx context.Context, table string) error {
	question := "SELECT count(*) || ' rows, hash ' || COALESCE(sum(hashtextextended(t::text, 0)::numeric), 0) FROM " + table + " t"
	var a, z string
	if err := b.from.QueryRow(ctx, question).Scan(&a); err != nil {
		return err
	}
	if err := b.to.QueryRow(ctx, question).Scan(&z); err != nil {
		return err
	}
	if a != z {
		return fmt.Errorf("table %s: source %s, destination %s", table, a, z)
	}
	return nil
}

func (b *bench) rowSize(ctx context.Context) (size string) {
	if err := b.from.QueryRow(ctx, "SELECT avg(octet_length(t::text))::int || ' bytes' FROM rows t").Scan(&size); err != nil {
		return "?"
	}
	return size
}

func (b *bench) version(ctx context.Context) (version string) {
	if err := b.from.QueryRow(ctx, "SELECT 'PostgreSQL ' || current_setting('server_version')").Scan(&version); err != nil {
		return "PostgreSQL ?"
	}
	return version
}

func (b *bench) close() error {
	var errs []error
	for _, c := range b.conns() {
		if c != nil {
			c.Close(context.Background())
		}
	}
	for _, f := range []*far{b.sourceFar, b.targetFar} {
		if f != nil {
			errs = append(errs, f.close())
		}
	}
	if b.nats != nil {
		errs = append(errs, b.nats.Close())
	}
	for _, s := range []*flotest.Server{b.source, b.target} {
		if s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}
