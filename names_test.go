package flo_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
)

// told are the changes that a sink got, as JSON.
func told(t *testing.T, rec *flotest.Recorder) string {
	t.Helper()
	var b []byte
	for _, c := range rec.Changes() {
		var err error
		if b, err = c.AppendJSON(b); err != nil {
			t.Fatal(err)
		}
		b = append(b, '\n')
	}
	return string(b)
}

const partitioned = `CREATE TABLE root (id int PRIMARY KEY, email text) PARTITION BY RANGE (id);
	CREATE TABLE mid PARTITION OF root FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (id);
	CREATE TABLE leaf PARTITION OF mid FOR VALUES FROM (0) TO (50);
	CREATE TABLE rest PARTITION OF root DEFAULT;
	CREATE TABLE plain (id int PRIMARY KEY, email text);
	INSERT INTO root VALUES (1, 'secret'), (500, 'secret'); INSERT INTO plain VALUES (1, 'secret')`

func masked(table string) rules.Rule {
	return rules.Table(table, rules.Mask("email", rules.KeepFirst(0), rules.KeepLast(0)))
}

func TestNoMaskIsLostToWhatHappensToATableBeforeItsRowsAreDecoded(t *testing.T) {
	parallel(t)
	for name, c := range map[string]struct{ backlog, later string }{
		"detached":            {`INSERT INTO root VALUES (3, 'secret'); ALTER TABLE mid DETACH PARTITION leaf`, `INSERT INTO leaf VALUES (4, 'secret')`},
		"the middle detached": {`INSERT INTO root VALUES (3, 'secret'); ALTER TABLE root DETACH PARTITION mid`, `INSERT INTO leaf VALUES (4, 'secret')`},
		"dropped":             {`INSERT INTO root VALUES (3, 'secret'); DROP TABLE leaf`, ``},
		"the root renamed":    {`INSERT INTO root VALUES (3, 'secret'); ALTER TABLE root RENAME TO trunk`, `INSERT INTO trunk VALUES (4, 'secret')`},
		"renamed":             {`INSERT INTO plain VALUES (2, 'secret'); ALTER TABLE plain RENAME TO people; INSERT INTO people VALUES (3, 'secret')`, `UPDATE people SET email = 'secret too'`},
		"renamed twice":       {`ALTER TABLE plain RENAME TO people; INSERT INTO people VALUES (3, 'secret'); ALTER TABLE people RENAME TO folk`, `INSERT INTO folk VALUES (4, 'secret')`},
		"another schema":      {`CREATE SCHEMA s; ALTER TABLE plain SET SCHEMA s; INSERT INTO s.plain VALUES (3, 'secret')`, `INSERT INTO s.plain VALUES (4, 'secret')`},
		"renamed and dropped": {`ALTER TABLE plain RENAME TO people; INSERT INTO people VALUES (3, 'secret'); DROP TABLE people`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t)
			p.src.Exec(t, partitioned)
			rec := &flotest.Recorder{}
			opts := []flo.Option{flo.WithSink(rec), flo.WithRules(masked("root"), masked("plain"))}
			p.start(ctx, opts...)
			p.catchUp(ctx)
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			before := len(rec.Changes())
			p.src.Exec(t, c.backlog)
			for _, sql := range []string{``, c.later} {
				p.src.Exec(t, sql)
				p.start(ctx, opts...)
				p.catchUp(ctx)
				if err := p.stop(); err != nil {
					t.Fatal(err)
				}
			}
			if len(rec.Changes()) == before {
				t.Error("nothing arrived")
			}
			if got := told(t, rec); strings.Contains(got, "secret") {
				t.Errorf("passed unmasked:\n%s", got)
			}
		})
	}
}

func TestARenameIsAWarningAndLeavesTheMask(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, partitioned)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithSink(rec), flo.WithRules(masked("plain")), flo.WithTables("plain"))
	p.catchUp(ctx)
	p.src.Exec(t, `ALTER TABLE plain RENAME TO people; INSERT INTO people VALUES (2, 'secret')`)
	p.catchUp(ctx)
	if got := told(t, rec); strings.Contains(got, "secret") || !strings.Contains(got, `"people"`) {
		t.Errorf("passed unmasked, or not at all:\n%s", got)
	}
	p.wantRenameWarning()
}

// wantRenameWarning wants one warning that plain is called people now.
func (p *pipeline) wantRenameWarning() {
	p.t.Helper()
	warnings := p.f.Status().Replicator.Warnings
	about := func(w string) bool { return strings.Contains(w, `"people" was called "public"."plain" before`) }
	if i := slices.IndexFunc(warnings, about); i < 0 || slices.ContainsFunc(warnings[i+1:], about) {
		p.t.Errorf("want one warning of the rename: %q", warnings)
	}
}

// A record that was lost, or that a group of an earlier version never had.
func TestATableOfWhichNothingIsKnownStopsTheReplicator(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, partitioned)
	rec := &flotest.Recorder{}
	p.ranOnce(ctx, flo.WithSink(rec), flo.WithRules(masked("root"), masked("plain")))
	p.src.Exec(t, `INSERT INTO root VALUES (3, 'secret'); DROP TABLE leaf`)
	kv, err := p.jetStream().KeyValue(ctx, streamName)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := kv.Keys(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if strings.HasPrefix(k, "tables.") {
			if err := kv.Purge(ctx, k); err != nil {
				t.Fatal(err)
			}
		}
	}
	wantStop(t, p.launch(ctx, flo.WithSink(rec), flo.WithRules(masked("root"), masked("plain"))).ends(ctx), flo.ErrTableForgotten, "leaf", "Drop")
	if got := told(t, rec); strings.Contains(got, "secret") {
		t.Errorf("passed unmasked:\n%s", got)
	}
}
