package flo_test

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// commitsWait makes the source's commits wait for the synchronous standbys of that name.
func (p *pipeline) commitsWait(ctx context.Context, standbys string) {
	p.t.Helper()
	if err := p.src.Server.SetSetting("synchronous_standby_names", standbys); err != nil {
		p.t.Fatal(err)
	}
	if err := p.src.Server.Reload(ctx); err != nil {
		p.t.Fatal(err)
	}
}

// execBeside executes SQL on a connection of its own; done is closed behind it.
func (p *pipeline) execBeside(ctx context.Context, sql string) (done chan struct{}) {
	p.t.Helper()
	conn, err := pgx.Connect(ctx, p.src.URL)
	if err != nil {
		p.t.Fatal(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close(context.WithoutCancel(ctx))
		if _, err := conn.Exec(ctx, sql); err != nil {
			p.t.Errorf("%s: %v", sql, err)
		}
	}()
	return done
}

// A commit is decoded before others see it, and long before where it waits for a standby. What rules need to know
// of its tables is not asked as of before.
func TestATransactionThatIsNotVisibleYetKeepsItsMask(t *testing.T) {
	long(t)
	parallel(t)
	for name, streamed := range map[string]bool{"whole": false, "streamed": true} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t)
			p.src = flotest.NewServer(t, flotest.WithSetting("logical_decoding_work_mem", "64kB")).NewDB(t)
			p.src.Exec(t, partitioned+`; CREATE TABLE other (id int PRIMARY KEY, email text)`)
			rec := &flotest.Recorder{}
			opts := []flo.Option{flo.WithSink(rec), flo.WithRules(masked("root"), masked("plain"))}
			if streamed {
				opts = append(opts, flo.WithStreaming(true))
			}
			p.start(ctx, opts...)
			p.catchUp(ctx)
			p.commitsWait(ctx, "nobody")
			before := len(rec.Changes())
			done := p.execBeside(ctx, `ALTER TABLE plain RENAME TO people; INSERT INTO people VALUES (2, 'secret');
				ALTER TABLE root ATTACH PARTITION other FOR VALUES FROM (200) TO (300); INSERT INTO root SELECT i, 'secret' FROM generate_series(200, 299) i;
				INSERT INTO people SELECT i, 'secret' FROM generate_series(3, 3000) i`)
			eventually(t, ctx, "flo waits until it can see the transaction", func() bool {
				return p.src.QueryString(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'flo%' AND query LIKE '%pg_current_snapshot%'`) != "0"
			})
			if n := len(rec.Changes()); n != before {
				t.Errorf("%d changes of a transaction that can't be seen yet", n-before)
			}
			p.commitsWait(ctx, "")
			<-done
			p.catchUp(ctx)
			if got := told(t, rec); strings.Contains(got, "secret") {
				t.Error("passed unmasked")
			}
			if n := len(rec.Changes()); n < before+3000 {
				t.Errorf("%d changes of 3,099", n-before)
			}
			p.wantRenameWarning()
		})
	}
}

// Where commits wait for flo itself, flo can't wait for them.
func TestFloAsASynchronousStandby(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.src = flotest.NewServer(t).NewDB(t)
	p.src.Exec(t, partitioned)
	rec := &flotest.Recorder{}
	p.start(ctx, flo.WithSink(rec))
	p.catchUp(ctx)
	p.commitsWait(ctx, "*")
	t.Cleanup(func() { p.commitsWait(ctx, "") })
	before := len(rec.Changes())
	done := p.execBeside(ctx, `INSERT INTO plain VALUES (2, 'two')`)
	eventually(t, ctx, "its commit ends", func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	})
	p.catchUp(ctx)
	if n := len(rec.Changes()); n != before+1 {
		t.Errorf("%d changes, want one", n-before)
	}
	if w := strings.Join(p.f.Status().Replicator.Warnings, "\n"); !strings.Contains(w, "synchronous_standby_names") {
		t.Errorf("no warning: %q", w)
	}
}
