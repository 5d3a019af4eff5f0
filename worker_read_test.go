package flo

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/state"
)

// stretch is a run of transactions as pgoutput sends them.
type stretch struct {
	ends    []decode.LSN // of the transactions
	changes []decode.Position
	frames  [][]byte
}

// newStretch makes transactions of random sizes, of one table.
func newStretch(rnd *rand.Rand, transactions int, large bool) *stretch {
	s := &stretch{}
	lsn := uint64(1000)
	for i := range transactions {
		n := 1 + rnd.IntN(4)
		if large && rnd.IntN(4) == 0 {
			n = 10 + rnd.IntN(20)
		}
		commit := lsn + uint64(n)*10
		end := commit + 8
		lsn = end
		s.frames = append(s.frames, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'B'}, commit), 0), uint32(i+1)))
		for o := range n {
			s.frames = append(s.frames, []byte("I\x00\x00\x40\x00N\x00\x01t\x00\x00\x00\x01x"))
			s.changes = append(s.changes, decode.Position{LSN: decode.LSN(commit), Ordinal: uint64(o + 1)})
		}
		s.frames = append(s.frames, binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{'C', 0}, commit), end), 0))
		s.ends = append(s.ends, decode.LSN(end))
	}
	return s
}

// relationFrame describes the table: OID 0x4000, one text column.
func relationFrame() []byte {
	return decode.AppendRelation(nil, &decode.Relation{OID: 0x4000, Schema: "public", Name: "t", Identity: 'f', Columns: []decode.Column{{Name: "v", Type: &decode.Type{OID: 25}}}})
}

// randomly says that messages end at random places.
func randomly(rnd *rand.Rand) func() bool {
	odds := 1 + rnd.IntN(12)
	return func() bool { return rnd.IntN(odds) == 0 }
}

// every says that they end behind so many frames.
func every(n int) func() bool {
	i := 0
	return func() bool { i++; return i%n == 0 }
}

// cut packs the stretch into messages.
func (s *stretch) cut(t *testing.T, session uint64, ends func() bool) (heads []wire.Header, bodies [][]byte) {
	t.Helper()
	p := pack.New(pack.Config{Session: session, Attempt: 1, CopyDone: true, Start: 1, Timeline: 1, Tail: wire.Point{End: 1000}, Target: 1 << 10})
	p.SetRelation(0x4000, wire.AppendFrame(nil, relationFrame()))
	take := func() {
		if !p.Empty() {
			b := p.Take(nil)
			heads, bodies = append(heads, b.Header), append(bodies, b.Body())
		}
	}
	for _, f := range s.frames {
		if err := p.Frame(f); err != nil {
			t.Fatal(err)
		}
		if ends() {
			take()
		}
	}
	take()
	return heads, bodies
}

// A stream that was rolled back is filled up again, with messages that end elsewhere than before: wherever a worker
// stands, it takes each change behind its position once, and none before.
func TestAWorkerTakesWhatIsBehindItsPositionHoweverMessagesAreCut(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 300 {
		s := newStretch(rnd, 2+rnd.IntN(8), true)
		heads, bodies := s.cut(t, 1, randomly(rnd))
		at := rnd.IntN(len(s.ends))
		cp := decode.Checkpoint{Incarnation: "i", Seq: 1000, LSN: 1, End: s.ends[at], Session: 2, Attempt: 1}
		got := feedAll(t, cp, heads, bodies)
		var want []decode.Position
		for _, c := range s.changes {
			if c.LSN >= cp.End {
				want = append(want, c)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("at %s of %v: %d changes, want %d", cp.End, s.ends, len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("at %s: change %d is %s, want %s", cp.End, i, got[i], want[i])
			}
		}
	}
}

// While the sink is busy a batch takes what has come, though nearly every message ends within a transaction.
func TestBatchesAreNotCutWhereMessagesAre(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for round := range 300 {
		busy := round%2 == 0 // until all messages have come; else it is free now and then
		s := newStretch(rnd, 2+rnd.IntN(8), !busy)
		where := randomly(rnd)
		if busy {
			where = every(8 + rnd.IntN(5)) // so that no transaction takes more than two messages
		}
		heads, bodies := s.cut(t, 1, where)
		f := newTestFeed(decode.Checkpoint{Incarnation: "i", Seq: 1000, LSN: 1, End: 1000, Session: 2, Attempt: 1}, 4*len(s.changes))
		msgs, failed := make(chan bus.Message), make(chan error, 1)
		f.msgs = msgs
		free := make(chan struct{})
		go func() {
			for i := range heads {
				msgs <- bus.Message{Seq: uint64(i + 1), Data: append(wire.AppendHeader(nil, &heads[i]), bodies[i]...)}
			}
			failed <- io.EOF
		}()
		var got []decode.Position
		batches := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			if busy {
				<-free
			}
			for b := range f.out {
				batches++
				for _, c := range b.Changes {
					got = append(got, c.Position())
				}
				if at := len(got); !b.More && at < len(s.changes) && at > 0 && s.changes[at].LSN == s.changes[at-1].LSN {
					t.Errorf("a batch ends within a transaction, and does not say so: behind %s", got[at-1])
				}
			}
		}()
		if err := f.loop(ctx, failed); err != io.EOF {
			t.Fatal(err)
		}
		close(free)
		if err := f.emit(ctx); err != nil {
			t.Fatal(err)
		}
		close(f.out)
		<-done
		if !slices.Equal(got, s.changes) {
			t.Fatalf("%d changes, want %d", len(got), len(s.changes))
		}
		if busy && batches != 1 {
			t.Fatalf("%d batches of %d messages", batches, len(heads))
		}
	}
}

// feedAll gives all messages to a worker's decoding stage, from the first one on, and collects what it hands over.
func feedAll(t *testing.T, cp decode.Checkpoint, heads []wire.Header, bodies [][]byte) (got []decode.Position) {
	t.Helper()
	f := newTestFeed(cp, 3)
	f.opt.flushInterval = time.Hour
	done := make(chan struct{})
	go func() {
		defer close(done)
		for b := range f.out {
			for _, c := range b.Changes {
				got = append(got, c.Position())
			}
		}
	}()
	for i := range heads {
		if err := f.whole(t.Context(), uint64(i+1), &heads[i], bodies[i]); err != nil {
			t.Fatalf("message %d from %+v to %+v, the worker at %+v: %v", i, heads[i].From, heads[i].To, f.pos, err)
		}
	}
	if err := f.emit(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(f.out)
	<-done
	return got
}

// transactional makes the stage hand transactions over before their end.
type transactional struct{ sink.Transactional }

func stateWorker() state.Worker { return state.Worker{Name: "w"} }

// newTestFeed is a worker's decoding stage at a checkpoint.
func newTestFeed(cp decode.Checkpoint, batchSize int) *feed {
	opt := &workerConfig{name: "w", batchSize: batchSize, batchBytes: 1 << 20, sink: sink.Func(func(context.Context, *sink.Batch) error { return nil })}
	w := &working{Worker: &Worker{cfg: newConfig(nil), opt: opt, log: slog.New(slog.DiscardHandler), tx: transactional{}}, stream: &bus.Stream{}, report: newReporter(nil, stateWorker(), 0), letters: &letters{}}
	f := &feed{working: w, out: make(chan *batch), pos: wire.Point{LSN: cp.LSN, End: cp.End}, cp: cp, parser: decode.NewParser(), rules: rules.NewBinder(nil), shapes: map[uint32]*decode.Relation{}}
	f.batch = f.newBatch()
	return f
}
