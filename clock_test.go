package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/sink"
)

// Whatever the pace of the acknowledgements, a position is confirmed a window behind its own acknowledgement,
// never sooner, and hardly later; and memory has a bound.
func TestTheReplayWindowConfirmsNothingYoungerThanItself(t *testing.T) {
	const window = 3 * time.Minute
	for name, pace := range map[string]func(*rand.Rand) time.Duration{
		"steadily":       func(*rand.Rand) time.Duration { return 10 * time.Millisecond },
		"rarely":         func(*rand.Rand) time.Duration { return 40 * time.Second },
		"at random":      func(r *rand.Rand) time.Duration { return time.Duration(r.ExpFloat64() * float64(2*time.Second)) },
		"with long gaps": func(r *rand.Rand) time.Duration { return time.Duration(r.IntN(2)*r.IntN(400)) * time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(1, 2))
				var a ackedPositions
				a.init(window, 100)
				stored := map[decode.LSN]time.Time{100: time.Now()}
				lsn, confirmed := decode.LSN(100), decode.LSN(0)
				look := func() {
					now := time.Now()
					at, moved := a.confirmable(now)
					if !moved {
						return
					}
					if at <= confirmed || now.Sub(stored[at]) < window {
						t.Fatalf("%s was confirmed %s after it was stored, behind %s", at, now.Sub(stored[at]), confirmed)
					}
					confirmed = at
				}
				for range 20_000 {
					time.Sleep(pace(rnd))
					lsn += decode.LSN(1 + rnd.IntN(100))
					stored[lsn] = time.Now()
					a.add(time.Now(), lsn)
					look()
					if len(a.ring) > windowSamples {
						t.Fatalf("%d samples", len(a.ring))
					}
				}
				time.Sleep(window)
				look()
				if confirmed != lsn {
					t.Errorf("%s of %s is confirmed a window behind the last one", confirmed, lsn)
				}
			})
		})
	}
}

// A wall clock that jumps moves nothing: times are compared by the monotonic clock. Where a clock without one is
// set back, nothing is confirmed until it is where it was.
func TestAClockThatJumpsConfirmsNothingEarly(t *testing.T) {
	var a ackedPositions
	a.init(time.Minute, 0)
	now := time.Now()
	a.add(now, 200)
	for _, jump := range []time.Duration{-time.Hour, -time.Minute, -1, 0, time.Minute - 1} {
		if at, moved := a.confirmable(now.Add(jump)); moved {
			t.Fatalf("%s was confirmed %s after it was stored", at, jump)
		}
	}
	wall := now.Add(24 * time.Hour).Round(0) // without the monotonic reading, as after a jump of the wall clock
	if d := time.Since(now); d > time.Minute || wall.Sub(now) < time.Hour {
		t.Fatalf("the clock itself: %s", d)
	}
	if at, moved := a.confirmable(now.Add(time.Minute)); !moved || at != 200 {
		t.Errorf("%s, %v after the window", at, moved)
	}
}

// clockFeed is a decoding stage that is given its batch by the test.
func clockFeed(interval time.Duration) *feed {
	opt := &workerConfig{name: "w", batchSize: 10, batchBytes: 1 << 20, flushInterval: interval,
		sink: sink.Func(func(context.Context, *sink.Batch) error { return nil })}
	w := &working{Worker: &Worker{cfg: newConfig(nil), opt: opt, log: slog.New(slog.DiscardHandler)}, report: newReporter(nil, stateWorker(), 0), letters: &letters{}}
	f := &feed{working: w, out: make(chan *batch)}
	f.batch = f.newBatch()
	return f
}

// take adds a whole transaction of n changes.
func (f *feed) take(n int) {
	for range n {
		f.batch.add(&decode.Change{Op: decode.OpInsert}, 10)
	}
	f.batch.whole, f.batch.moved = len(f.batch.Changes), true
}

func TestABatchWaitsForTheFlushIntervalAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 30 * time.Second
		f := clockFeed(interval)
		if out, due := f.offer(); out != nil || due != nil {
			t.Fatal("an empty batch is offered, or timed")
		}
		for range 3 { // each batch has an interval of its own
			began := time.Now()
			f.take(1)
			for more := 0; ; more++ {
				out, due := f.offer()
				if out != nil {
					break
				}
				select {
				case <-due:
				case <-time.After(7 * time.Second): // changes that come meanwhile don't put it off
					f.take(1)
				}
				if more > 100 {
					t.Fatal("it is never offered")
				}
			}
			if took := time.Since(began); took != interval {
				t.Errorf("offered after %s", took)
			}
			f.sent()
		}
		began := time.Now()
		f.take(9)
		if out, _ := f.offer(); out != nil {
			t.Error("offered before it was full")
		}
		f.take(1)
		if out, _ := f.offer(); out == nil || time.Since(began) != 0 {
			t.Error("a full batch waits")
		}
	})
}

func TestWithoutAFlushIntervalABatchWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := clockFeed(0)
		f.take(1)
		if out, due := f.offer(); out == nil || due != nil {
			t.Error("it is not offered at once")
		}
	})
}

// idling is a replication connection's owner without one, whose source is idle.
func idling(interval time.Duration) (*streaming, chan struct{}) {
	cfg := newConfig(nil)
	cfg.idleInterval = interval
	ask := make(chan struct{}, 1)
	st := &streaming{
		replication: &replication{r: &Replicator{cfg: cfg}, log: slog.New(slog.DiscardHandler)},
		packer:      pack.New(pack.Config{Session: 1, Attempt: 1, CopyDone: true, Tail: wire.Point{LSN: 50, End: 100}, Target: 1 << 10}),
		out:         make(chan *pack.Batch, 1), spare: make(chan []byte, 1), ask: ask,
	}
	return st, ask
}

func TestIdleMarkersKeepTheirIntervalUnlessSomebodyAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const interval = 10 * time.Second
		st, ask := idling(interval)
		var marks []time.Time
		step := func(moved bool) {
			t.Helper()
			if moved {
				st.packer.Seen(st.packer.At().End + 8)
			}
			if err := st.lookAround(t.Context()); err != nil {
				t.Fatal(err)
			}
			select {
			case b := <-st.out:
				if b.Header.To.End != st.packer.At().End || b.Changes != 0 {
					t.Fatalf("%+v", b.Header)
				}
				marks = append(marks, time.Now())
			default:
			}
			time.Sleep(quietWait)
		}
		for range int(5 * time.Minute / quietWait) {
			step(true)
		}
		if n := len(marks); n != 30 {
			t.Errorf("%d markers in 5 minutes", n)
		}
		for i := range marks[1:] {
			if d := marks[i+1].Sub(marks[i]); d < interval || d > interval+quietWait {
				t.Errorf("%s between markers %d and %d", d, i, i+1)
			}
		}
		marks = marks[:0]
		for range int(time.Minute / quietWait) { // nothing moves: nothing to say, for those who ask either
			select {
			case ask <- struct{}{}:
			default:
			}
			step(false)
		}
		if len(marks) > 1 { // what was seen since the last one
			t.Errorf("%d markers of the same position", len(marks))
		}
		marks = marks[:0]
		step(true)
		if len(marks) != 1 {
			t.Error("who asked had to wait for the interval")
		}
	})
}

// Sessions that fail at once are spaced out up to 15 s; one that lived for a while begins the spacing anew.
func TestFailedSessionsAreSpacedOutAndAGoodOneBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most = 15 * time.Second
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var ends []time.Time
		var pauses []time.Duration
		failing := fmt.Errorf("%w: on purpose", errAgain)
		err := retry(ctx, slog.New(slog.DiscardHandler), &commonStatus{}, func(context.Context) error {
			if n := len(ends); n > 0 {
				pauses = append(pauses, time.Since(ends[n-1]))
			}
			switch n := len(ends); {
			case n == 400:
				cancel()
			case n%100 == 99:
				time.Sleep(sessionGrace + time.Second)
			}
			ends = append(ends, time.Now())
			return failing
		})
		if err != nil || len(pauses) != 400 {
			t.Fatalf("%v, %d pauses", err, len(pauses))
		}
		var sum time.Duration
		for i, p := range pauses {
			attempt := i // since the last one that lived
			if i >= 99 {
				attempt = (i - 99) % 100
			}
			limit := min(most, 100*time.Millisecond<<min(attempt, 10))
			if p > limit {
				t.Errorf("pause %d took %s, at most %s is meant", i, p, limit)
			}
			sum += p
		}
		if mean := sum / 400; mean < most/4 || mean > most {
			t.Errorf("%s between sessions on average: too eager, or too slow", mean)
		}
	})
}

// What is under way when a stop begins has its share of the time, and then is told why it ends.
func TestWorkOutlivesAStopByItsShareAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 10 * time.Second
		forWork, forWait, forRelease := stopShares(bound)
		if !(0 < forWork && forWork < forWait && forWait < forRelease && forRelease < bound) {
			t.Fatalf("shares %s, %s, %s of %s", forWork, forWait, forRelease, bound)
		}
		ctx, stop := context.WithCancel(t.Context())
		work, done := outliving(ctx, forWork)
		defer done()
		time.Sleep(time.Hour)
		if work.Err() != nil {
			t.Fatal("it ended before the stop")
		}
		stop()
		began := time.Now()
		<-work.Done()
		if took := time.Since(began); took != forWork || !errors.Is(context.Cause(work), ErrNotDrained) {
			t.Errorf("ended after %s: %v", took, context.Cause(work))
		}
	})
}
