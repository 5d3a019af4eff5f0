package bus

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
)

func TestPublisherKeepsGroupsTogetherAndAcknowledgesInOrder(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t), WindowMsgs: 8, WindowBytes: 4096})
	p := newTestPublisher(t, s, 1)
	var mu sync.Mutex
	lastOf := map[string]uint64{}
	var order []uint64
	p.OnAck(func(token any, last uint64) {
		mu.Lock()
		defer mu.Unlock()
		lastOf[token.(string)] = last
		order = append(order, last)
	})
	const writers, groups = 4, 50
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range groups {
				parts := make([][]byte, 1+i%20) // some are larger than the window
				for k := range parts {
					parts[k] = message(1, uint64(w<<32|i<<8|k), 300)
				}
				if err := p.Publish(t.Context(), s.CopySubject(1, uint32(w)), parts, fmt.Sprintf("%d/%d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	drained(t, p)
	if len(order) != writers*groups {
		t.Fatalf("%d acknowledgements", len(order))
	}
	for i := 1; i < len(order); i++ {
		if order[i] <= order[i-1] {
			t.Fatalf("acknowledged %d after %d", order[i], order[i-1])
		}
	}
	for w := range writers {
		for i := range groups {
			n := 1 + i%20
			first := lastOf[fmt.Sprintf("%d/%d", w, i)] - uint64(n) + 1
			for k := range n {
				m, err := s.Get(t.Context(), first+uint64(k))
				if err != nil {
					t.Fatal(err)
				}
				if _, num := number(t, m); num != uint64(w<<32|i<<8|k) {
					t.Fatalf("group %d/%d part %d is not at %d", w, i, k, m.Seq)
				}
			}
		}
	}
	if st := p.Status(); st.Doubts != 0 || st.Groups != 0 || st.Bytes != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestPublishRefusesWhatIsTooLarge(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t)})
	p := newTestPublisher(t, s, 1)
	err := p.Publish(t.Context(), s.ChangesSubject(), [][]byte{make([]byte, s.MaxPayload()+1)}, nil)
	if !errors.Is(err, ErrTooLarge) {
		t.Fatal(err)
	}
	publish(t, p, 0, s.MaxPayload())
	drained(t, p)
}

func TestSecondPublisherFencesTheFirst(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t)})
	a := newTestPublisher(t, s, 1)
	publish(t, a, 0, 100)
	drained(t, a)
	b := newTestPublisher(t, s, 2)
	publish(t, b, 0, 100)
	drained(t, b)
	publish(t, a, 1, 100)
	failed(t, a, ErrFenced)
	if err := a.Publish(t.Context(), s.ChangesSubject(), [][]byte{message(1, 2, 0)}, nil); !errors.Is(err, ErrFenced) {
		t.Fatal(err)
	}
	publish(t, b, 1, 100)
	drained(t, b)
	stands(t, s, 2, 2, 2)
}

func TestPublisherSeesThatTheStreamWasMadeAgain(t *testing.T) {
	js := inProcess(t)
	s := newTestStream(t, Config{JS: js})
	p := newTestPublisher(t, s, 1)
	publish(t, p, 0, 100)
	drained(t, p)
	r := s.Read(t.Context(), s.ChangesSubject(), 1, ReaderOptions{})
	defer r.Close()
	if _, err := r.Next(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := newTestStream(t, Config{JS: js})
	if again.Incarnation() == s.Incarnation() {
		t.Fatal("same incarnation")
	}
	q := newTestPublisher(t, again, 2)
	publish(t, q, 0, 100)
	drained(t, q)
	publish(t, p, 1, 100)
	failed(t, p, ErrStreamGone)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := r.Next(ctx); !errors.Is(err, ErrStreamGone) {
		t.Fatal(err)
	}
	for _, f := range []func() error{
		func() error { _, err := s.Tail(ctx); return err },
		func() error { _, err := s.Get(ctx, 1); return err },
		func() error { _, err := s.Next(ctx, 1, s.ChangesSubject()); return err },
		func() error { _, err := s.Info(ctx); return err },
		func() error { return s.PurgeCopy(ctx, 0, 2, 2) },
	} {
		if err := f(); !errors.Is(err, ErrStreamGone) {
			t.Fatal(err)
		}
	}
	if err := s.Delete(ctx); err != nil { // gone: nothing to do, and the new one stays
		t.Fatal(err)
	}
	stands(t, again, 2, 1, 1)
}

// The server stores everything, but its answers are lost; then the connection is cut.
func TestLostAnswersAreFoundInTheStream(t *testing.T) {
	srv := flotest.NATS(t, embednats.WithListen("127.0.0.1:0"), embednats.WithSyncInterval(time.Minute))
	px := newProxy(t, hostport(srv))
	s := newTestStream(t, Config{JS: connect(t, px.url())})
	direct, err := Open(t.Context(), Config{JS: connect(t, srv.URL()), Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	p := newTestPublisher(t, s, 7)
	var a acks
	p.OnAck(a.on)
	publish(t, p, 0, 1000)
	drained(t, p)
	px.mute.Store(true)
	for i := range uint64(20) {
		publish(t, p, i+1, 1000)
	}
	until(t, "all is stored", func() bool {
		info, err := direct.Info(t.Context())
		return err == nil && info.LastSeq == 21
	})
	px.mute.Store(false)
	px.cut()
	drained(t, p)
	a.check(t, 21)
	stands(t, direct, 7, 1, 21)
	if st := p.Status(); st.Doubts == 0 || st.Repeated != 0 {
		t.Fatalf("%+v", st)
	}
}

// Only a timeout tells that answers are lost: the connection stays up.
func TestTimeoutIsADoubt(t *testing.T) {
	srv := flotest.NATS(t, embednats.WithListen("127.0.0.1:0"), embednats.WithSyncInterval(time.Minute))
	px := newProxy(t, hostport(srv))
	s := newTestStream(t, Config{JS: connect(t, px.url()), PublishTimeout: 300 * time.Millisecond})
	p := newTestPublisher(t, s, 7)
	var a acks
	p.OnAck(a.on)
	px.mute.Store(true)
	for i := range uint64(5) {
		publish(t, p, i, 1000)
	}
	until(t, "the publisher doubts", func() bool { return p.Status().State == Doubting })
	px.mute.Store(false)
	px.cut() // the muted bytes have left a hole in the protocol
	drained(t, p)
	a.check(t, 5)
	stands(t, s, 7, 1, 5)
}

// The connection is cut again and again, at random bytes of either direction.
func TestPublisherAndReaderOverABadConnection(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	srv := flotest.NATS(t, embednats.WithListen("127.0.0.1:0"), embednats.WithSyncInterval(time.Minute))
	px := newProxy(t, hostport(srv))
	var mu sync.Mutex
	px.rnd = func() int64 {
		mu.Lock()
		defer mu.Unlock()
		return 1 + rnd.Int64N(2<<20)
	}
	s := newTestStream(t, Config{JS: connect(t, px.url())})
	reading, err := Open(t.Context(), Config{JS: connect(t, px.url()), Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	p := newTestPublisher(t, s, 7)
	var a acks
	p.OnAck(a.on)
	const n = 2000
	done := make(chan error, 1)
	go func() {
		r := reading.Read(t.Context(), reading.ChangesSubject(), 1, ReaderOptions{})
		defer r.Close()
		for i := range uint64(n) {
			m, err := r.Next(t.Context())
			if err != nil {
				done <- err
				return
			}
			if _, num := number(t, m); m.Seq != i+1 || num != i {
				done <- fmt.Errorf("read message %d at %d, want %d at %d", num, m.Seq, i, i+1)
				return
			}
		}
		done <- nil
	}()
	px.budget.Store(px.rnd())
	for i := range uint64(n) {
		mu.Lock()
		size := rnd.IntN(4000)
		mu.Unlock()
		publish(t, p, i, size)
	}
	drained(t, p)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	px.budget.Store(0)
	a.check(t, n)
	direct, err := Open(t.Context(), Config{JS: connect(t, srv.URL()), Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	stands(t, direct, 7, 1, n)
	t.Logf("%d cuts, %+v", px.cuts.Load(), p.Status())
}

func TestServerRestartsInMidWindow(t *testing.T) {
	srv := flotest.NATS(t, embednats.WithListen("127.0.0.1:0"), embednats.WithSyncInterval(time.Minute))
	s := newTestStream(t, Config{JS: connect(t, srv.URL())})
	p := newTestPublisher(t, s, 7)
	var a acks
	p.OnAck(a.on)
	r := s.Read(t.Context(), s.ChangesSubject(), 1, ReaderOptions{})
	defer r.Close()
	const n = 2000
	restarted := make(chan error, 1)
	for i := range uint64(n) {
		publish(t, p, i, 2000)
		if i == n/2 {
			go func() {
				start := time.Now()
				err := srv.Restart(t.Context())
				t.Logf("restart took %s", time.Since(start))
				restarted <- err
			}()
		}
	}
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	drained(t, p)
	t.Logf("drained %s after the restart", time.Since(start))
	a.check(t, n)
	stands(t, s, 7, 1, n)
	for i := range uint64(n) {
		m, err := r.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m.Seq != i+1 {
			t.Fatalf("read %d, want %d", m.Seq, i+1)
		}
	}
	t.Logf("%+v", p.Status())
}

func TestFullStreamStallsUntilThereIsRoom(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t), MaxBytes: 64 << 10})
	p := newTestPublisher(t, s, 7)
	var a acks
	p.OnAck(a.on)
	for i := range uint64(100) {
		publish(t, p, i, 1000)
	}
	until(t, "the stream is full", func() bool { return p.Status().State == Stalled })
	st := p.Status()
	if st.Stalls != 1 || st.Reason == nil || st.Groups == 0 {
		t.Fatalf("%+v", st)
	}
	until(t, "the first refused message was tried again", func() bool { return p.Status().Repeated > 0 })
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.PurgeChanges(t.Context(), info.LastSeq, info.LastSeq); err != nil {
		t.Fatal(err)
	}
	drained(t, p)
	a.check(t, 100)
	if st := p.Status(); st.State != Sending || st.Stalls == 0 {
		t.Fatalf("%+v", st)
	}
	for seq := info.LastSeq; seq <= 100; seq++ {
		m, err := s.Get(t.Context(), seq)
		if err != nil {
			t.Fatal(err)
		}
		if _, n := number(t, m); n != seq-1 {
			t.Fatalf("sequence %d holds message %d", seq, n)
		}
	}
}

// The network delivers a copy of a message before, and another one after, the message itself.
func TestLateCopiesDoNoHarm(t *testing.T) {
	js := inProcess(t)
	s := newTestStream(t, Config{JS: js})
	p := newTestPublisher(t, s, 7)
	var a acks
	p.OnAck(a.on)
	publish(t, p, 0, 100)
	drained(t, p)
	late := func() error {
		m := &nats.Msg{Subject: s.ChangesSubject(), Data: message(7, 1, 100), Header: nats.Header{"Nats-Expected-Last-Sequence": {"1"}}}
		_, err := js.PublishMsg(t.Context(), m)
		return err
	}
	if err := late(); err != nil {
		t.Fatal(err)
	}
	publish(t, p, 1, 100)
	publish(t, p, 2, 100)
	drained(t, p)
	if err := late(); err == nil {
		t.Fatal("stored twice")
	}
	a.check(t, 3)
	stands(t, s, 7, 1, 3)
	if st := p.Status(); st.Doubts == 0 {
		t.Fatalf("%+v", st)
	}
}

func TestPublisherEnds(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t), MaxBytes: 4 << 10, WindowMsgs: 2})
	p := newTestPublisher(t, s, 7)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var err error
	for i := uint64(0); err == nil; i++ { // fills the stream, then the window
		err = p.Publish(ctx, s.ChangesSubject(), [][]byte{message(7, i, 1000)}, i)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	if err := p.Drained(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	p.Close()
	p.Close()
	if err := p.Publish(t.Context(), s.ChangesSubject(), [][]byte{message(7, 0, 0)}, nil); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}

	life, end := context.WithCancel(t.Context())
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	q, err := s.NewPublisher(life, 8, info.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	end()
	failed(t, q, context.Canceled)
	q.Close()
}

// One fsync a message against none: the first is bound by the disk.
func BenchmarkPublish(b *testing.B) {
	for name, opts := range map[string][]embednats.Option{"sync=always": nil, "sync=1m": {embednats.WithSyncInterval(time.Minute)}} {
		b.Run(name, func(b *testing.B) { benchmarkPublish(b, opts) })
	}
}

func benchmarkPublish(b *testing.B, opts []embednats.Option) {
	nc, err := flotest.NATS(b, opts...).Conn(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		b.Fatal(err)
	}
	s := newTestStream(b, Config{JS: js})
	p := newTestPublisher(b, s, 1)
	const size = 256 << 10
	data := message(1, 0, size)
	b.SetBytes(size)
	for b.Loop() {
		if err := p.Publish(b.Context(), s.ChangesSubject(), [][]byte{data}, nil); err != nil {
			b.Fatal(err)
		}
	}
	drained(b, p)
	b.StopTimer()
	if st := p.Status(); st.Doubts != 0 {
		b.Fatalf("%+v", st)
	}
}
