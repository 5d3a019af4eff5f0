package flo_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/ddlcases"
	"github.com/pgflo/flo/sink/postgres"
)

// sameTables waits until both catalogs say the same of tables and types, and the rows are the same: tables may yet be
// copied afresh.
func (p *pipeline) sameTables(ctx context.Context, after string) {
	p.t.Helper()
	p.catchUp(ctx)
	read := func(db *flotest.DB) (lines []string) {
		db.Exec(p.t, "SET search_path = pg_catalog")
		defer db.Exec(p.t, "RESET search_path")
		for _, r := range db.Query(p.t, ddlcases.CatalogSQL) {
			lines = append(lines, r[0])
		}
		return lines
	}
	for wait := within(p.t, ctx, time.Minute); ; {
		src, dst := read(p.src), read(p.dst)
		var diff []string
		for _, line := range src {
			if !slices.Contains(dst, line) {
				diff = append(diff, "only at the source: "+line)
			}
		}
		for _, line := range dst {
			if !slices.Contains(src, line) {
				diff = append(diff, "only at the destination: "+line)
			}
		}
		if diff == nil {
			rows, err := flotest.Diff(ctx, p.src.URL, p.dst.URL)
			if err != nil {
				diff = append(diff, err.Error())
			} else if !rows.Equal() {
				diff = append(diff, rows.String())
			}
		}
		if diff == nil {
			return
		}
		if pause(wait, 100*time.Millisecond) != nil {
			p.t.Fatalf("%s:\n%s\nstatus %+v", after, strings.Join(diff, "\n"), p.f.Status())
		}
	}
}

// Every kind of schema change, through replicator, stream and worker: each case in one transaction, and each step by
// itself, with the process started again between two steps. What had been there before was copied. All cases take FLO_BIG;
// otherwise it is those in which more than the sink has a part.
func TestEverySchemaChangeIsReplicated(t *testing.T) {
	long(t)
	parallel(t)
	cases := slices.DeleteFunc(ddlcases.All(), func(c ddlcases.Case) bool { return !c.Copied && sized(0, 1) == 0 })
	setUp := func(t *testing.T) (context.Context, *pipeline, func()) {
		t.Parallel()
		ctx, cancel := context.WithTimeout(context.Background(), 3*testTimeout)
		t.Cleanup(cancel)
		p := newPipeline(t)
		p.src.Exec(t, `CREATE PUBLICATION everything FOR ALL TABLES`)
		for _, c := range cases {
			p.src.Exec(t, c.Begin())
		}
		start := func() {
			p.start(ctx, flo.WithPublication("everything"), flo.WithDDL(), flo.WithSink(p.sink(postgres.WithReplicaRole())), flo.WithReplayWindow(time.Second))
		}
		start()
		p.sameTables(ctx, "the copy")
		return ctx, p, start
	}
	t.Run("in one transaction", func(t *testing.T) {
		ctx, p, _ := setUp(t)
		for _, c := range cases {
			if !c.Apart {
				p.src.Exec(t, c.Whole())
				p.catchUp(ctx)
			}
		}
		p.sameTables(ctx, "the transactions")
	})
	t.Run("across restarts", func(t *testing.T) {
		ctx, p, start := setUp(t)
		for i := range 9 {
			var done []string
			for _, c := range cases {
				if i < len(c.Steps) {
					p.src.Exec(t, c.Step(i))
					done = append(done, c.Name)
				}
			}
			if i%2 == 0 { // or what it finds at its start is all there is
				p.sameTables(ctx, fmt.Sprintf("step %d of ", i)+strings.Join(done, ", "))
			}
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			start()
		}
		p.sameTables(ctx, "the last restart")
	})
}
