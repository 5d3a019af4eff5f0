package flo_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
)

// allLetters reads a worker's dead letters.
func (p *pipeline) allLetters(ctx context.Context, worker string) (all []*flo.Letter) {
	p.t.Helper()
	f, err := flo.New(p.options(flo.WithSink(new(flotest.Recorder)))...)
	if err != nil {
		p.t.Fatal(err)
	}
	for l, err := range f.DeadLetters(ctx, worker) {
		if err != nil {
			p.t.Fatal(err)
		}
		all = append(all, l)
	}
	return all
}

func (p *pipeline) wantLetters(ctx context.Context, want ...string) []*flo.Letter {
	p.t.Helper()
	all := p.allLetters(ctx, "default")
	var got []string
	for _, l := range all {
		c, err := l.Change()
		if err != nil {
			p.t.Fatal(err)
		}
		row := c.New
		if row == nil {
			row = c.Old
		}
		text := l.Op
		for _, v := range row {
			text += " " + v.String()
		}
		got = append(got, text)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		p.t.Fatalf("letters %q, want %q", got, want)
	}
	return all
}

// replay runs Replay of a worker of its own, with the sink closed behind it.
func (p *pipeline) replay(ctx context.Context, opts ...flo.Option) (int, error) {
	p.t.Helper()
	s := p.sink()
	w := p.worker(append(opts, flo.WithSink(s), flo.WithErrorPolicy(flo.DeadLetter))...)
	n, err := w.Replay(ctx)
	if cerr := s.Close(ctx); cerr != nil {
		p.t.Error(cerr)
	}
	return n, err
}

const noBad = `ALTER TABLE t ADD CONSTRAINT no_bad CHECK (v NOT LIKE 'bad%')`

// midway makes transactions with refused rows among good ones, and changes that follow them.
func midway(p *pipeline) {
	p.src.Exec(p.t, `BEGIN; INSERT INTO t VALUES (1, 'a'), (2, 'bad 2'), (3, 'c'), (4, 'bad 4'), (5, 'e'); UPDATE t SET v = 'c2' WHERE id = 3; COMMIT`)
	p.src.Exec(p.t, `UPDATE t SET v = 'good 2' WHERE id = 2`)    // follows
	p.src.Exec(p.t, `UPDATE t SET id = 40 WHERE id = 4`)         // follows, and is both rows from then on
	p.src.Exec(p.t, `INSERT INTO t VALUES (4, 'another')`)       // follows
	p.src.Exec(p.t, `UPDATE t SET v = 'forty' WHERE id = 40`)    // follows
	p.src.Exec(p.t, `UPDATE t SET v = 'good 5' WHERE id = 5`)    // does not
	p.src.Exec(p.t, `INSERT INTO t VALUES (6, 'f'), (7, 'bad')`) // its own
}

func TestARefusedRowBecomesADeadLetterAndTheRestOfItsTransactionIsApplied(t *testing.T) {
	for name, size := range map[string]int{"in one batch": 10_000, "over batches": 2} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, smallTable)
			p.dst.Exec(t, noBad)
			p.start(ctx, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter), flo.WithBatchSize(size))
			p.catchUp(ctx)
			midway(p)
			p.catchUp(ctx)
			if got := p.dst.QueryString(t, `SELECT string_agg(id || v, ' ' ORDER BY id) FROM t`); got != "1a 3c2 5good 5 6f" {
				t.Errorf("the destination has %s", got)
			}
			if n := p.dst.QueryString(t, `SELECT count(DISTINCT xmin::text) FROM t WHERE id IN (1, 3)`); n != "1" {
				t.Error("the rest of the transaction is not one transaction at the destination")
			}
			st := p.f.Status().Workers[0]
			if st.DeadLetters != 7 || st.LastDeadLetter == "" || st.LastError != "" {
				t.Errorf("status %+v", st)
			}
			if _, err := p.f.Replay(ctx, "default"); !errors.Is(err, flo.ErrRunning) {
				t.Errorf("Replay while it runs: %v", err)
			}
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			all := p.wantLetters(ctx, "insert 2 bad 2", "insert 4 bad 4", "update 2 good 2", "update 40 bad 4", "insert 4 another", "update 40 forty", "insert 7 bad")
			l := all[0]
			if !strings.Contains(l.Reason, "no_bad") || l.Table.String() != "public.t" || l.Position.Ordinal != 2 || l.Tx.XID == 0 || l.Raw[0] != 'I' || l.Worker != "default" || time.Since(l.Time) > time.Minute {
				t.Errorf("%+v", l)
			}
			_, secret := password(t, p.dst)
			for _, l := range all {
				if secret != "" && strings.Contains(l.Reason, secret) {
					t.Errorf("the reason holds the destination's password: %s", l.Reason)
				}
			}

			n, err := p.replay(ctx) // nothing was mended: what failed stays, with all that follows it
			var se *flo.SinkError
			if n != 0 || !errors.As(err, &se) || se.Position != l.Position {
				t.Fatalf("replayed %d, %v", n, err)
			}
			p.wantLetters(ctx, "insert 2 bad 2", "insert 4 bad 4", "update 2 good 2", "update 40 bad 4", "insert 4 another", "update 40 forty", "insert 7 bad")
			p.dst.Exec(t, `ALTER TABLE t DROP CONSTRAINT no_bad`)
			if n, err := p.replay(ctx); n != 7 || err != nil {
				t.Fatalf("replayed %d, %v", n, err)
			}
			p.wantLetters(ctx)
			p.equal(ctx)
			p.start(ctx, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))
			p.src.Exec(t, `UPDATE t SET v = v || '!'; INSERT INTO t VALUES (8, 'h')`)
			p.catchUp(ctx)
			p.equal(ctx)
		})
	}
}

func TestDropDeletesDeadLetters(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'), (2, 'bad')`)
	p.ranOnce(ctx, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))
	js := p.jetStream()
	if _, err := js.Stream(ctx, "flo-dead_shop"); err != nil {
		t.Fatal(err)
	}
	if err := p.f.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Stream(ctx, "flo-dead_shop"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("after Drop: %v", err)
	}
}

func TestCopiedRowsThatAreRefusedBecomeDeadLetters(t *testing.T) {
	long(t)
	upper := rules.Table("public.t", rules.Regex("v", "copied", "Copied"))
	for name, opts := range map[string][]flo.Option{"raw": nil, "by rules": {flo.WithRules(upper)}} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, smallTable)
			p.dst.Exec(t, noBad)
			p.src.Exec(t, `INSERT INTO t SELECT i, CASE WHEN i % 300 = 7 THEN 'bad' ELSE 'copied ' || i END FROM generate_series(1, 1000) i`)
			p.start(ctx, append(opts, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))...)
			p.catchUp(ctx)
			p.src.Exec(t, `UPDATE t SET v = 'better' WHERE id IN (7, 8)`) // one follows, one does not
			p.catchUp(ctx)
			if got := p.dst.QueryString(t, `SELECT count(*) || ' ' || count(*) FILTER (WHERE v = 'better') FROM t`); got != "996 1" {
				t.Errorf("the destination has %s", got)
			}
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			all := p.wantLetters(ctx, "insert 7 bad", "insert 307 bad", "insert 607 bad", "insert 907 bad", "update 7 better")
			if c := all[1].Copy; c == nil || c.Row != 306 || string(all[1].Raw) != "307\tbad\n" {
				t.Errorf("%+v", all[1])
			}
			p.dst.Exec(t, `ALTER TABLE t DROP CONSTRAINT no_bad`)
			if n, err := p.replay(ctx, opts...); n != 5 || err != nil {
				t.Fatalf("replayed %d, %v", n, err)
			}
			if opts == nil {
				p.equal(ctx)
			}
		})
	}
}

func TestARuleThatFailsOnARowMakesADeadLetter(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a'), (2, 'odd'), (3, 'c')`)
	var mended atomic.Bool
	odd := rules.Each(func(c *decode.Change) (bool, error) {
		for _, v := range c.New {
			if v.String() == "odd" && !mended.Load() {
				return false, errors.New("too odd")
			}
		}
		return true, nil
	})
	rec := new(flotest.Recorder)
	p.start(ctx, flo.WithRules(odd), flo.WithErrorPolicy(flo.DeadLetter), flo.WithSink(p.sink()), flo.WithWorker("rec", rec))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (4, 'd'), (5, 'odd'), (6, 'f')`)
	p.catchUp(ctx)
	if got := p.dst.QueryString(t, `SELECT string_agg(id::text, ' ' ORDER BY id) FROM t`); got != "1 3 4 6" || len(rec.Changes()) != 4 {
		t.Errorf("the destination has %s, the recorder %d changes", got, len(rec.Changes()))
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	all := p.wantLetters(ctx, "insert 2 odd", "insert 5 odd")
	if all[0].Reason != "rule: too odd" || len(p.allLetters(ctx, "rec")) != 2 {
		t.Errorf("%+v", all[0])
	}
	mended.Store(true)
	if n, err := p.replay(ctx, flo.WithRules(odd)); n != 2 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	p.equal(ctx)
	w := p.worker(flo.WithRules(odd), flo.WithWorker("rec", rec))
	if n, err := w.Replay(ctx); n != 2 || err != nil || len(rec.Changes()) != 6 {
		t.Fatalf("replayed %d, %v; %d changes", n, err, len(rec.Changes()))
	}
}

// dying is a transactional sink in front of another one that cuts the worker off when it is opened again.
type dying struct {
	sink.Transactional
	cancel context.CancelFunc
	opens  int
}

func (d *dying) Unwrap() sink.Sink { return d.Transactional }

func (d *dying) Open(ctx context.Context, s sink.Start) (decode.Checkpoint, error) {
	if d.opens++; d.opens > 1 {
		d.cancel()
		return decode.Checkpoint{}, errors.New("cut off")
	}
	return d.Transactional.Open(ctx, s)
}

func TestACrashBetweenLetterAndCheckpointNeitherLosesNorRepeats(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	rep := p.replicator(flo.WithMode(flo.StreamOnly))
	launch(t, ctx, rep)
	p.published(ctx, rep)
	midway(p)
	p.published(ctx, rep)
	letters := 0
	for range 20 { // each worker gets one letter further
		wctx, cancel := context.WithCancel(ctx)
		d := &dying{Transactional: p.sink(), cancel: cancel}
		run := launch(t, wctx, p.worker(flo.WithSink(d), flo.WithErrorPolicy(flo.DeadLetter)))
		eventually(t, ctx, "it is cut off, or done", func() bool {
			return wctx.Err() != nil || p.dst.QueryString(t, `SELECT count(*) FROM pg_tables WHERE schemaname = 'flo'`) != "0" && p.dst.QueryString(t, `SELECT count(*) FROM t`) == "4"
		})
		if err := run.stop(); err != nil {
			t.Fatal(err)
		}
		n := len(p.allLetters(ctx, "default"))
		if n < letters {
			t.Errorf("%d letters, there were %d", n, letters)
		}
		letters = n
		if wctx.Err() == nil {
			break
		}
	}
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter)))
	eventually(t, ctx, "all is applied", func() bool {
		return w.of.(*flo.Worker).Status().Applied >= p.now() || rep.Status().Published == w.of.(*flo.Worker).Status().Applied
	})
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	p.wantLetters(ctx, "insert 2 bad 2", "insert 4 bad 4", "update 2 good 2", "update 40 bad 4", "insert 4 another", "update 40 forty", "insert 7 bad")
	p.dst.Exec(t, `ALTER TABLE t DROP CONSTRAINT no_bad`)
	if n, err := p.replay(ctx); n != 7 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	p.equal(ctx)
}

func TestTooManyDeadLettersStop(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	rep := p.replicator(flo.WithMode(flo.StreamOnly))
	launch(t, ctx, rep)
	p.published(ctx, rep)
	p.src.Exec(t, `INSERT INTO t SELECT i, 'bad' FROM generate_series(1, 10) i`)
	p.src.Exec(t, `INSERT INTO t VALUES (11, 'good')`)
	for range 2 { // stopping again is no way around it
		err := launch(t, ctx, p.worker(flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter), flo.WithDeadLetterLimit(3))).ends(ctx)
		var se *flo.SinkError
		if !errors.As(err, &se) || se.Position.Ordinal != 4 {
			t.Fatalf("got %v", err)
		}
		wantStop(t, err, flo.ErrDeadLetters, "no_bad", "Replay", "WithDeadLetterLimit")
		p.wantLetters(ctx, "insert 1 bad", "insert 2 bad", "insert 3 bad")
	}
	if n, err := p.replay(ctx); n != 0 || err == nil || !strings.Contains(err.Error(), "has not passed") {
		t.Errorf("replayed %d, %v", n, err)
	}
	p.dst.Exec(t, `ALTER TABLE t DROP CONSTRAINT no_bad`)
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter), flo.WithDeadLetterLimit(3)))
	eventually(t, ctx, "the rest is applied", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "8" })
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if n, err := p.replay(ctx); n != 3 || err != nil {
		t.Fatalf("replayed %d, %v", n, err)
	}
	p.equal(ctx)
}

func TestAChangeThatCannotBeDecodedBecomesADeadLetter(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'a')`)
	p.ranOnce(ctx, flo.WithSink(p.sink()))
	all := p.messages(ctx)
	var last stored
	for _, m := range all {
		if m.changes() {
			last = m
		}
	}
	h := last.head
	h.From, h.Part, h.Parts = h.To, 0, 1
	commit, end := h.To.End+8, h.To.End+16
	h.To = wire.Point{LSN: commit, End: end}
	rel := &decode.Relation{OID: 99999, Schema: "public", Name: "t", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: decode.BuiltinType(20), Modifier: -1, Key: true}, {Name: "v", Type: decode.BuiltinType(25), Modifier: -1}}}
	insert := func(id string) []byte {
		b := append([]byte("I\x00\x01\x86\x9fN\x00\x02t\x00\x00\x00\x01"), id...)
		return append(b, 'n')
	}
	var n [8]byte
	u64 := func(v decode.LSN) string { binary.BigEndian.PutUint64(n[:], uint64(v)); return string(n[:]) }
	body := wire.AppendFrame(nil, decode.AppendRelation(nil, rel))
	body = wire.AppendFrame(body, []byte("B"+u64(commit)+u64(0)+"\x00\x00\x00\x07"))
	body = wire.AppendFrame(body, insert("2"))
	body = wire.AppendFrame(body, insert("3")[:12]) // cut
	body = wire.AppendFrame(body, insert("4"))      // nobody knows whether it is about the same row
	body = wire.AppendFrame(body, []byte("C\x00"+u64(commit)+u64(end)+u64(0)))
	if _, err := p.jetStream().Publish(ctx, last.subject, append(wire.AppendHeader(nil, &h), body...)); err != nil {
		t.Fatal(err)
	}
	err := launch(t, ctx, p.worker(flo.WithSink(p.sink()))).ends(ctx)
	var se *flo.SinkError
	if !errors.As(err, &se) || !errors.Is(err, decode.ErrMalformed) || se.Position != (flo.Position{LSN: commit, Ordinal: 2}) || se.Table.Name != "t" {
		t.Fatalf("got %v", err)
	}
	w := p.worker(flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))
	r := launch(t, ctx, w)
	eventually(t, ctx, "it is passed", func() bool { return w.Status().Applied == end })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if got := p.dst.QueryString(t, `SELECT string_agg(id::text, ' ' ORDER BY id) FROM t`); got != "1 2" {
		t.Errorf("the destination has %s", got)
	}
	letters := p.allLetters(ctx, "default")
	if len(letters) != 2 || string(letters[0].Raw) != string(insert("3")[:12]) || !strings.Contains(letters[0].Reason, "decoded") {
		t.Fatalf("%+v", letters)
	}
	if _, err := letters[0].Change(); !errors.Is(err, decode.ErrMalformed) {
		t.Errorf("Change: %v", err)
	}
	if n, err := p.replay(ctx); n != 0 || !errors.Is(err, decode.ErrMalformed) {
		t.Errorf("replayed %d, %v", n, err)
	}
	s := p.sink()
	d := p.worker(flo.WithSink(s))
	if err := d.Discard(ctx, letters[0].ID); err != nil {
		t.Fatal(err)
	}
	if n, err := d.Replay(ctx); n != 1 || err != nil {
		t.Errorf("replayed %d, %v", n, err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if got := p.dst.QueryString(t, `SELECT string_agg(id::text, ' ' ORDER BY id) FROM t`); got != "1 2 4" {
		t.Errorf("the destination has %s", got)
	}
}

func TestStatusSaysSinceWhenASinkFails(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	rec := new(flotest.Recorder)
	p.start(ctx, flo.WithMode(flo.StreamOnly), flo.WithSink(rec))
	p.catchUp(ctx)
	began := time.Now()
	rec.FailNext(1_000_000, errors.New("not now"))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	eventually(t, ctx, "it has failed three times", func() bool { return p.f.Status().Workers[0].Failing.Tries >= 3 })
	if st := p.f.Status().Workers[0]; st.Failing.Since.Before(began) || st.Phase != flo.PhaseRetrying || !strings.Contains(st.LastError, "not now") {
		t.Errorf("%+v", st)
	}
	rec.FailNext(0, nil)
	p.catchUp(ctx)
	if st := p.f.Status().Workers[0]; st.Failing != (flo.Failing{}) || st.LastError != "" {
		t.Errorf("afterwards: %+v", st)
	}
}

func TestBadErrorPoliciesAreRefused(t *testing.T) {
	long(t)
	for _, o := range []flo.Option{flo.WithErrorPolicy("skip"), flo.WithDeadLetterLimit(0), flo.WithDeadLetterLimit(100_001)} {
		if _, err := flo.New(with(flo.WithNATSURL("nats://h"), o)...); !errors.Is(err, flo.ErrInvalidOption) {
			t.Errorf("got %v", err)
		}
	}
}

func TestARemovedWorkerLeavesNoDeadLetters(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, noBad)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'bad')`)
	p.ranOnce(ctx, flo.WithSink(p.sink()), flo.WithErrorPolicy(flo.DeadLetter))
	p.wantLetters(ctx, "insert 1 bad")
	if err := p.f.RemoveWorker(ctx, "default"); err != nil {
		t.Fatal(err)
	}
	p.wantLetters(ctx)
}
