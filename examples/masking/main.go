// Command masking shows rules on a live pipeline: personal data leaves the source masked, hashed or not
// at all, copied rows and changes alike.
//
//	go run ./examples/masking
//
// It starts a throwaway PostgreSQL server and JetStream, replicates a table into another database while
// it changes, shows both, checks that nothing came through in clear text, and removes everything.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/examples/internal/throwaway"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink/postgres"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "masking:", err)
		os.Exit(1)
	}
}

const schema = `CREATE TABLE people (id int PRIMARY KEY, name text, email text, phone text, tax_id text, notes text, age int);
	INSERT INTO people VALUES
		(1, 'Margaret', 'margaret@example.com', '+1 555 0100', '123-45-6789', 'likes tea', 41),
		(2, '小林 さくら', 'sakura@example.com', '+81 55 0101', '987-65-4321', NULL, 33),
		(3, 'Tim', NULL, '+1 555 0102', '111-22-3333', 'a child', 12)`

// The destination has no column for the notes: nobody there may see them.
const destination = `CREATE TABLE people (id int PRIMARY KEY, name text, email text, phone text, tax_id text, age int)`

const changes = `INSERT INTO people VALUES (4, 'Zoë', 'zoe@example.com', '+49 555 0103', '123-45-6789', 'new', 27);
	UPDATE people SET email = 'maggie@example.org', notes = 'moved' WHERE id = 1`

// people is what happens to the table, in this order.
func people(key []byte) rules.Rule {
	return rules.Table("public.people",
		// Minors stay at home. Nothing else writes to the copy, so a TRUNCATE may empty it.
		rules.Filter(rules.Gte("age", 18), rules.PassTruncate()),
		rules.Mask("name"),                    // M******t
		rules.Regex("email", `^[^@]*`, "***"), // ***@example.com
		rules.Mask("phone", rules.KeepFirst(3), rules.KeepLast(2)),
		rules.Hash("tax_id", key), // equal numbers stay equal, so that joins work
		rules.Exclude("notes"),
	)
}

func run(ctx context.Context, out io.Writer) (err error) {
	servers, err := throwaway.Start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, servers.Close()) }()
	source, err := servers.Database(ctx, "clinic", schema)
	if err != nil {
		return err
	}
	target, err := servers.Database(ctx, "statistics", destination)
	if err != nil {
		return err
	}
	sink, err := postgres.New(target)
	if err != nil {
		return err
	}
	f, err := flo.New(
		flo.WithSource(source),
		flo.WithNATSServer(servers.NATS),
		flo.WithGroup("clinic"),
		flo.WithTables("public.people"),
		flo.WithSink(sink),
		flo.WithRules(people([]byte(rand.Text()))),
	)
	if err != nil {
		return err
	}
	return throwaway.While(ctx, f.Run, func(ctx context.Context) error {
		if err := throwaway.Apply(ctx, f, source, "SELECT 'until the table is copied'"); err != nil {
			return err
		}
		if err := throwaway.Apply(ctx, f, source, changes); err != nil {
			return err
		}
		return compare(ctx, out, source, target)
	})
}

// adults are the rows that may leave the source.
const adults = 3

// compare shows both tables, and looks for what should not be at the destination.
func compare(ctx context.Context, out io.Writer, source, target string) error {
	const columns = "SELECT id, name, email, phone, tax_id, age FROM people ORDER BY id"
	before, err := throwaway.Rows(ctx, source, columns)
	if err != nil {
		return err
	}
	after, err := throwaway.Rows(ctx, target, columns)
	if err != nil {
		return err
	}
	show(out, "source", before)
	show(out, "destination", after)
	leaks := 0
	for _, row := range after {
		for _, secret := range before {
			for i := 1; i <= 4; i++ { // name to tax_id
				if secret[i] != "<nil>" && strings.Contains(strings.Join(row, "\n"), secret[i]) {
					leaks++
				}
			}
		}
	}
	equal := len(after) == adults && after[0][4] == after[2][4]
	fmt.Fprintf(out, "rows: %d of %d; equal tax numbers have equal hashes: %v; values in clear text: %d\n", len(after), len(before), equal, leaks)
	if leaks > 0 || !equal {
		return errors.New("the rules have not done what they should")
	}
	return nil
}

func show(out io.Writer, title string, rows [][]string) {
	fmt.Fprintln(out, title)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, v := range row {
			if len(v) == 64 { // a hash
				row[i] = v[:12] + "…"
			}
		}
		fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
	}
	w.Flush()
}
