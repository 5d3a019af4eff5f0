package flo_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

// incarnation of the group's stream.
func (p *pipeline) incarnation(ctx context.Context) string {
	p.t.Helper()
	info, err := p.stream(ctx).Info(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	return info.Config.Metadata["flo.incarnation"]
}

// startsOver runs with a token until the destination is equal, and again, which must change nothing.
func (p *pipeline) startsOver(ctx context.Context, token string, opts ...flo.Option) {
	p.t.Helper()
	opts = append(opts, flo.WithResync(token))
	r := p.launch(ctx, append(opts, flo.WithSink(p.sink()))...)
	p.catchUp(ctx)
	if err := r.stop(); err != nil {
		p.t.Fatal(err)
	}
	p.equal(ctx)
	made := p.incarnation(ctx)
	p.src.Exec(p.t, `INSERT INTO t VALUES ((SELECT max(id) + 1 FROM t), 'behind the resync')`)
	r = p.launch(ctx, append(opts, flo.WithSink(p.sink()))...)
	p.catchUp(ctx)
	if err := r.stop(); err != nil {
		p.t.Fatal(err)
	}
	p.equal(ctx)
	if now := p.incarnation(ctx); now != made {
		p.t.Errorf("the same token has started over again: stream %s, then %s", made, now)
	}
}

func TestAResyncIsTheWayOutOfEveryStop(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	dropSlot := func() { p.src.Exec(t, `SELECT pg_drop_replication_slot('`+p.slot()+`')`) }
	deleteStream := func() {
		if err := p.jetStream().DeleteStream(ctx, streamName); err != nil {
			t.Fatal(err)
		}
	}
	deleteBucket := func() {
		if err := p.jetStream().DeleteKeyValue(ctx, streamName); err != nil {
			t.Fatal(err)
		}
	}
	for i, stop := range []struct {
		name  string
		broke func()
		class error // nil: it is no stop without the option, or not always the same one
	}{
		{"slot dropped", dropSlot, flo.ErrSlotLost},
		{"slot made again", func() {
			dropSlot()
			p.src.Exec(t, `INSERT INTO t VALUES (-5, 'lost')`)
			p.src.Exec(t, `SELECT pg_create_logical_replication_slot('`+p.slot()+`', 'pgoutput')`)
		}, flo.ErrGap},
		{"stream deleted", deleteStream, flo.ErrStreamLost},
		{"bucket deleted", deleteBucket, flo.ErrStreamLost},
		{"stream's settings changed", func() {
			c := p.stream(ctx).CachedInfo().Config
			c.MaxMsgs, c.Discard = 2, jetstream.DiscardOld
			if _, err := p.jetStream().UpdateStream(ctx, c); err != nil {
				t.Fatal(err)
			}
		}, flo.ErrStreamSettings},
		{"stream and bucket and slot deleted", func() { deleteStream(); deleteBucket(); dropSlot() }, nil},
		{"message missing", func() {
			s := p.stream(ctx)
			info, err := s.Info(ctx)
			if err == nil {
				err = s.DeleteMsg(ctx, info.State.LastSeq)
			}
			if err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"nothing at all", func() {}, nil},
	} {
		stop.broke()
		p.src.Exec(t, `INSERT INTO t VALUES (-1 - (SELECT count(*) FROM t), 'in the gap'); DELETE FROM t WHERE id = (SELECT max(id) FROM t)`)
		if stop.class != nil {
			wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), stop.class, "WithResync")
		}
		p.startsOver(ctx, fmt.Sprintf("ticket %d", i))
		if t.Failed() {
			t.Fatal(stop.name)
		}
	}
	// An earlier token is remembered, too, and the group goes on without any.
	made := p.incarnation(ctx)
	for _, opts := range [][]flo.Option{{flo.WithResync("ticket 5")}, nil} {
		r := p.launch(ctx, append(opts, flo.WithSink(p.sink()))...)
		p.catchUp(ctx)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
	}
	if now := p.incarnation(ctx); now != made {
		t.Error("an earlier token has started over again")
	}
}

// The slot of the group's own name is all that is left of it.
func TestAResyncTakesTheSlotThatIsLeftWhenNATSHasLostEverything(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	err := errors.Join(p.jetStream().DeleteStream(ctx, streamName), p.jetStream().DeleteKeyValue(ctx, streamName))
	if err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `DELETE FROM t WHERE id < 50; INSERT INTO t VALUES (1000, 'in the gap')`)
	wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), flo.ErrStreamLost, "WithResync")
	p.startsOver(ctx, "all gone")
}

// Whatever step was the last, the next start finishes what was begun, and only once.
func TestAResyncThatIsCutShortIsFinishedByTheNextStart(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	cut := errors.New("cut short")
	for step := range 6 {
		for _, again := range []bool{true, false} { // with the token, and by a replicator that knows nothing of it
			if !again && step%2 == 1 {
				continue // the others are enough
			}
			before := p.incarnation(ctx)
			token := fmt.Sprintf("step %d %t", step, again)
			f, err := flo.New(p.options(flo.WithResync(token), flo.WithSink(p.sink()))...)
			if err != nil {
				t.Fatal(err)
			}
			f.Replicator().BeforeResyncStep(func(at int) error {
				if at == step {
					return cut
				}
				return nil
			})
			if err := launch(t, ctx, f).ends(ctx); !errors.Is(err, cut) {
				t.Fatalf("step %d: %v", step, err)
			}
			p.src.Exec(t, `INSERT INTO t VALUES ((SELECT max(id) + 1 FROM t), 'between'); DELETE FROM t WHERE id = (SELECT min(id) FROM t)`)
			if !again {
				token = ""
			}
			r := p.launch(ctx, flo.WithResync(token), flo.WithSink(p.sink()))
			p.catchUp(ctx)
			if err := r.stop(); err != nil {
				t.Fatal(err)
			}
			p.equal(ctx)
			switch after := p.incarnation(ctx); {
			case step == 0 && !again && after != before:
				t.Error("a resync that had not begun has taken place")
			case !(step == 0 && !again) && after == before:
				t.Errorf("step %d, again %t: the resync did not take place", step, again)
			}
			if t.Failed() {
				t.Fatalf("step %d, again %t", step, again)
			}
		}
	}
	p.startsOver(ctx, "step 5 true") // that is: nothing begins again
}

// A worker elsewhere that knows nothing of the token follows, whatever its sink is.
func TestRunningWorkersFollowAResync(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i`)
	rep := launch(t, ctx, p.replicator())
	seen := new(flotest.Recorder)
	one, two := launch(t, ctx, p.worker(flo.WithSink(p.sink()))), launch(t, ctx, p.worker(flo.WithWorker("events", seen)))
	whole := func(n int) func() bool {
		return func() bool {
			one.running()
			two.running()
			return len(seen.Changes()) == n && p.dst.QueryString(t, `SELECT count(*) FROM t`) == "100"
		}
	}
	eventually(t, ctx, "both have the copy", whole(100))
	if err := rep.stop(); err != nil {
		t.Fatal(err)
	}
	p.dst.Exec(t, `DELETE FROM t WHERE id < 10`) // as if the destination had lost rows
	rep = launch(t, ctx, p.replicator(flo.WithResync("again")))
	eventually(t, ctx, "both have a copy again", whole(200))
	p.equal(ctx)
	rep.running()
}

func TestAWorkerWithATokenWaitsForTheReplicator(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	w := p.worker(flo.WithSink(p.sink()), flo.WithResync("late"))
	worker := launch(t, ctx, w)
	eventually(t, ctx, "it waits", func() bool { return w.Status().Phase == flo.PhaseWaiting })
	old := launch(t, ctx, p.replicator())
	p.src.Exec(t, `INSERT INTO t VALUES (1000, 'x')`)
	if err := old.stop(); err != nil {
		t.Fatal(err)
	}
	if ph := w.Status().Phase; ph != flo.PhaseWaiting {
		t.Errorf("it is %s", ph)
	}
	launch(t, ctx, p.replicator(flo.WithResync("late")))
	eventually(t, ctx, "it works", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "101" })
	worker.running()
}

func TestAResyncLeavesASlotThatIsNotTheGroups(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	made := p.incarnation(ctx)
	p.src.Exec(t, `SELECT pg_drop_replication_slot('`+p.slot()+`')`)
	p.src.Exec(t, `SELECT pg_create_logical_replication_slot('`+p.slot()+`', 'test_decoding')`)
	wantStop(t, p.launch(ctx, flo.WithSink(p.sink()), flo.WithResync("x")).ends(ctx), flo.ErrSlotLost, "test_decoding", "WithSlot")
	if p.incarnation(ctx) != made {
		t.Error("the stream was replaced")
	}
	p.src.Exec(t, `SELECT pg_drop_replication_slot('`+p.slot()+`')`)
	p.startsOver(ctx, "x")
}

func TestAResyncOfOtherModes(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	t.Run("CopyOnly", func(t *testing.T) {
		p := newPipeline(t, smallTable)
		p.src.Exec(t, `INSERT INTO t SELECT i, 'copied' FROM generate_series(1, 100) i`)
		opts := func(more ...flo.Option) []flo.Option {
			return append(more, flo.WithMode(flo.CopyOnly), flo.WithSink(p.sink()))
		}
		for _, token := range []string{"", "one", "one", "two"} {
			p.src.Exec(t, `DELETE FROM t WHERE id = (SELECT min(id) FROM t)`)
			before := p.dst.QueryString(t, `SELECT count(*) FROM t`)
			if err := p.launch(ctx, opts(flo.WithResync(token))...).ends(ctx); err != nil {
				t.Fatal(err)
			}
			if token == "one" && before == "98" { // the second time
				if now := p.dst.QueryString(t, `SELECT count(*) FROM t`); now != before {
					t.Errorf("the same token has copied again: %s rows", now)
				}
				continue
			}
			p.equal(ctx)
		}
	})
	t.Run("StreamOnly", func(t *testing.T) {
		p := newPipeline(t, smallTable)
		seen := new(flotest.Recorder)
		run := func(token string) *run {
			r := p.launch(ctx, flo.WithMode(flo.StreamOnly), flo.WithSink(sink.Func(seen.Write)), flo.WithResync(token))
			eventually(t, ctx, "it streams", func() bool {
				r.running()
				return p.f.Status().Replicator.Phase == flo.PhaseStreaming
			})
			return r
		}
		r := run("")
		p.src.Exec(t, `INSERT INTO t VALUES (1, 'seen')`)
		p.catchUp(ctx)
		if err := r.stop(); err != nil {
			t.Fatal(err)
		}
		p.src.Exec(t, `INSERT INTO t VALUES (2, 'left out')`)
		run("now")
		p.src.Exec(t, `INSERT INTO t VALUES (3, 'seen')`)
		p.catchUp(ctx)
		if n := len(seen.Changes()); n != 2 {
			t.Errorf("%d changes were seen, want the first and the third", n)
		}
	})
}

// A replicator that was paused within a resync, and whose successor has gone on with it, does no step of it any more.
func TestAResyncThatWasTakenOverIsLeftToTheOther(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	copied(t, ctx, p)
	f, err := flo.New(p.options(flo.WithResync("again"), flo.WithSink(p.sink()))...)
	if err != nil {
		t.Fatal(err)
	}
	kv, err := p.jetStream().KeyValue(ctx, streamName)
	if err != nil {
		t.Fatal(err)
	}
	done := errors.New("enough was seen")
	var steps []int
	taken := map[int]bool{}
	f.Replicator().BeforeResyncStep(func(at int) error {
		steps = append(steps, at)
		if at == 5 {
			return done
		}
		if at != 1 && at != 2 || taken[at] {
			return nil
		}
		taken[at] = true
		e, err := kv.Get(ctx, "resync") // as the successor does
		if err == nil {
			_, err = kv.Put(ctx, "resync", e.Value())
		}
		return err
	})
	if err := launch(t, ctx, f).ends(ctx); !errors.Is(err, done) {
		t.Fatal(err)
	}
	if got := fmt.Sprint(steps); !strings.HasPrefix(got, "[0 1 0 1 2 0 1 2 3 4 5]") {
		t.Errorf("steps %s", got)
	}
}
