package bus

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
)

// fill publishes n messages of a session and waits for them.
func fill(t testing.TB, s *Stream, session, n uint64, size int) {
	t.Helper()
	p := newTestPublisher(t, s, session)
	for i := range n {
		publish(t, p, i, size)
	}
	drained(t, p)
	p.Close()
}

func TestReaderFilters(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t)})
	p := newTestPublisher(t, s, 1)
	for i := range uint64(30) {
		subject := []string{s.ChangesSubject(), s.CopySubject(1, 9), s.CopySubject(2, 9)}[i%3]
		if err := p.Publish(t.Context(), subject, [][]byte{message(1, i, 0)}, i); err != nil {
			t.Fatal(err)
		}
	}
	drained(t, p)
	for filter, want := range map[string][]uint64{
		s.ChangesSubject(): {10, 13, 16},
		s.CopyFilter(1):    {11, 14, 17},
		s.CopyFilter(0):    {11, 12, 14},
	} {
		r := s.Read(t.Context(), filter, 10, ReaderOptions{})
		for _, seq := range want {
			m, err := r.Next(t.Context())
			if err != nil || m.Seq != seq {
				t.Fatalf("%s: read %d, %v; want %d", filter, m.Seq, err, seq)
			}
			if _, n := number(t, m); n != seq-1 || m.Time.IsZero() {
				t.Fatalf("message %d at %d", n, m.Seq)
			}
		}
		r.Close()
	}
	if a, table, ok := s.ParseCopySubject(s.CopySubject(3, 16384)); !ok || a != 3 || table != 16384 {
		t.Fatal(a, table, ok)
	}
	if _, _, ok := s.ParseCopySubject(s.ChangesSubject()); ok {
		t.Fatal("changes taken for a copy")
	}
	m, err := s.Next(t.Context(), 13, s.CopyFilter(2))
	if err != nil || m.Seq != 15 {
		t.Fatal(m.Seq, err)
	}
	if _, err := s.Next(t.Context(), 30, s.CopyFilter(1)); !errors.Is(err, ErrEmpty) {
		t.Fatal(err)
	}
	if m, err := s.Tail(t.Context()); err != nil || m.Seq != 28 {
		t.Fatal(m.Seq, err)
	}
}

// What is fetched ahead is bounded in bytes, and no size of message stalls the reader.
func TestReaderWithLargeAndSmallMessages(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t)})
	p := newTestPublisher(t, s, 1)
	const n = 600
	go func() {
		for i := range uint64(n) {
			size := 100
			if i%7 == 0 {
				size = s.MaxPayload()
			}
			if err := p.Publish(t.Context(), s.ChangesSubject(), [][]byte{message(1, i, size)}, i); err != nil {
				t.Error(err)
			}
		}
	}()
	r := s.Read(t.Context(), s.ChangesSubject(), 1, ReaderOptions{PullMaxBytes: 1}) // is raised
	defer r.Close()
	for i := range uint64(n) {
		m, err := r.Next(t.Context())
		if err != nil || m.Seq != i+1 {
			t.Fatal(m.Seq, err)
		}
		if i == 0 || i == n/2 { // let it prefetch: no more than the limit may wait
			until(t, "something is prefetched", func() bool { _, b, _ := r.sub.Pending(); return b > 0 })
		}
		if _, b, _ := r.sub.Pending(); b > r.limit {
			t.Fatalf("%d bytes wait, limit %d", b, r.limit)
		}
	}
}

func TestReaderShowsThatItsStartIsGone(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t)})
	fill(t, s, 1, 10, 100)
	if err := s.PurgeChanges(t.Context(), 6, 10); err != nil {
		t.Fatal(err)
	}
	r := s.Read(t.Context(), s.ChangesSubject(), 2, ReaderOptions{})
	defer r.Close()
	if m, err := r.Next(t.Context()); err != nil || m.Seq != 6 {
		t.Fatal(m.Seq, err)
	}
}

func TestReaderGoesOnAfterItsConsumerWasDeleted(t *testing.T) {
	js := inProcess(t)
	s := newTestStream(t, Config{JS: js})
	fill(t, s, 1, 2, 100)
	r := s.Read(t.Context(), s.ChangesSubject(), 1, ReaderOptions{})
	defer r.Close()
	for want := range uint64(2) {
		if m, err := r.Next(t.Context()); err != nil || m.Seq != want+1 {
			t.Fatal(m.Seq, err)
		}
	}
	if err := js.DeleteConsumer(t.Context(), s.Name(), r.consumer); err != nil {
		t.Fatal(err)
	}
	fill(t, s, 2, 1, 100)
	if m, err := r.Next(t.Context()); err != nil || m.Seq != 3 {
		t.Fatal(m.Seq, err)
	}
}

func TestReaderEnds(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t)})
	before := goleak.IgnoreCurrent()
	r := s.Read(t.Context(), s.ChangesSubject(), 1, ReaderOptions{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := r.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	fill(t, s, 1, 1, 100)
	if m, err := r.Next(t.Context()); err != nil || m.Seq != 1 {
		t.Fatal(m.Seq, err)
	}
	r.Close()
	r.Close()
	if _, err := r.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	goleak.VerifyNone(t, before)

	life, end := context.WithCancel(t.Context())
	r = s.Read(life, s.ChangesSubject(), 2, ReaderOptions{})
	defer r.Close()
	end()
	if _, err := r.Next(t.Context()); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// The server loses the last messages: neither side may go on as if nothing had happened, nor hang.
func TestRollbackIsNoticed(t *testing.T) {
	srv := tcpServer(t, t.TempDir(), "127.0.0.1:0")
	s := newTestStream(t, Config{JS: connect(t, srv.URL())})
	fill(t, s, 1, 5, 100)
	p := newTestPublisher(t, s, 2)
	busy := newTestReader(t, s, 1, 5)
	idle := newTestReader(t, s, 1, 5)
	refilled := newTestReader(t, s, 1, 5)
	rollback(t, srv, func() {
		for i := range uint64(5) {
			publish(t, p, i, 100)
		}
		drained(t, p)
		for _, r := range []*Reader{busy, idle, refilled} {
			for want := uint64(6); want <= 10; want++ {
				if m, err := r.Next(t.Context()); err != nil || m.Seq != want {
					t.Fatal(m.Seq, err)
				}
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if _, err := idle.Next(ctx); !errors.Is(err, ErrRolledBack) {
		t.Fatal(err)
	}
	publish(t, p, 5, 100)
	failed(t, p, ErrRolledBack)
	if err := s.PurgeChanges(ctx, 3, 10); !errors.Is(err, ErrRolledBack) {
		t.Fatal(err)
	}
	fill(t, s, 3, 2, 100)
	if _, err := busy.Next(ctx); !errors.Is(err, ErrRolledBack) {
		t.Fatal(err)
	}
	fill(t, s, 4, 10, 100) // sequences beyond what was read, other messages
	if _, err := refilled.Next(ctx); !errors.Is(err, ErrRolledBack) {
		t.Fatal(err)
	}
}

func newTestReader(t testing.TB, s *Stream, from, to uint64) *Reader {
	t.Helper()
	r := s.Read(t.Context(), s.ChangesSubject(), from, ReaderOptions{})
	t.Cleanup(r.Close)
	for want := from; want <= to; want++ {
		if m, err := r.Next(t.Context()); err != nil || m.Seq != want {
			t.Fatal(m.Seq, err)
		}
	}
	return r
}

func TestPurge(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t)})
	fill(t, s, 1, 5, 100) // changes at 1 to 5
	p := newTestPublisher(t, s, 2)
	for i := range uint64(4) { // copies of attempts 1, 2, 1, 2 at 6 to 9
		if err := p.Publish(t.Context(), s.CopySubject(uint32(1+i%2), 9), [][]byte{message(2, i, 0)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	drained(t, p)
	have := func(want ...uint64) {
		t.Helper()
		info, err := s.Info(t.Context())
		if err != nil || info.LastSeq != 9 || info.Msgs != uint64(len(want)) {
			t.Fatal(info, err)
		}
		for _, seq := range want {
			if _, err := s.Get(t.Context(), seq); err != nil {
				t.Fatal(seq, err)
			}
		}
	}
	for _, err := range []error{s.PurgeChanges(t.Context(), 10, 9), s.PurgeCopy(t.Context(), 0, 10, 9)} {
		if !errors.Is(err, ErrBeyondTail) {
			t.Fatal(err)
		}
	}
	for _, err := range []error{s.PurgeChanges(t.Context(), 1000, 1000), s.PurgeCopy(t.Context(), 0, 1000, 1000)} {
		if !errors.Is(err, ErrRolledBack) {
			t.Fatal(err)
		}
	}
	have(1, 2, 3, 4, 5, 6, 7, 8, 9)
	purge := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	purge(s.PurgeChanges(t.Context(), 0, 9)) // not "all", as the server would take it
	purge(s.PurgeCopy(t.Context(), 0, 0, 9))
	purge(s.PurgeChanges(t.Context(), 3, 9))
	have(3, 4, 5, 6, 7, 8, 9)
	purge(s.PurgeCopy(t.Context(), 1, 9, 9))
	have(3, 4, 5, 7, 9)
	purge(s.PurgeChanges(t.Context(), 9, 9)) // the last one stays
	have(5, 7, 9)
	purge(s.PurgeCopy(t.Context(), 0, 9, 9))
	have(5, 9)
	if m, err := s.Tail(t.Context()); err != nil || m.Seq != 5 {
		t.Fatal(m.Seq, err)
	}
}

// What the guards in purge are for: the server itself does as it is told.
func TestServerPurgesBeyondTheTail(t *testing.T) {
	s := newTestStream(t, Config{JS: inProcess(t)})
	fill(t, s, 1, 5, 100)
	if err := s.str.Purge(t.Context(), jetstream.WithPurgeSequence(1000)); err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil || info.Msgs != 0 || info.LastSeq < 999 {
		t.Fatalf("the server has changed: %+v, %v", info, err)
	}
}

func TestCreateOpenAndBind(t *testing.T) {
	js := inProcess(t)
	cfg := Config{JS: js, Group: "g"}
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrNoStream) {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{JS: js, Group: "a.b"}); !errors.Is(err, ErrConfig) {
		t.Fatal(err)
	}
	type made struct {
		s       *Stream
		created bool
		err     error
	}
	results := make(chan made)
	for range 4 {
		go func() {
			s, created, err := Create(t.Context(), cfg, "1", "db")
			results <- made{s, created, err}
		}()
	}
	count, incarnation := 0, ""
	for range 4 {
		m := <-results
		if m.err != nil {
			t.Fatal(m.err)
		}
		if m.created {
			count++
		}
		if incarnation == "" {
			incarnation = m.s.Incarnation()
		}
		if m.s.Incarnation() != incarnation || m.s.System() != "1" || m.s.Database() != "db" || m.s.Created().IsZero() {
			t.Fatalf("%+v", m.s)
		}
	}
	if count != 1 {
		t.Fatalf("made %d times", count)
	}
	for _, src := range [][2]string{{"2", "db"}, {"1", "other"}} {
		if _, _, err := Create(t.Context(), cfg, src[0], src[1]); !errors.Is(err, ErrOtherSource) {
			t.Fatal(err)
		}
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Tail(t.Context()); !errors.Is(err, ErrEmpty) {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), 1); !errors.Is(err, ErrEmpty) {
		t.Fatal(err)
	}
}

func TestSettingsAreChecked(t *testing.T) {
	js := inProcess(t)
	s := newTestStream(t, Config{JS: js})
	good := s.str.CachedInfo().Config
	change := func(f func(*jetstream.StreamConfig)) {
		c := good
		f(&c)
		if _, err := js.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	for name, f := range map[string]func(*jetstream.StreamConfig){
		"max age":      func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
		"discard":      func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld },
		"allow direct": func(c *jetstream.StreamConfig) { c.AllowDirect = true },
		"max messages": func(c *jetstream.StreamConfig) { c.MaxMsgs = 100 },
		"subjects":     func(c *jetstream.StreamConfig) { c.Subjects = append([]string{"x"}, c.Subjects...) },
	} {
		change(f)
		var ce *ConfigError
		if _, err := Open(t.Context(), Config{JS: js, Group: "g"}); !errors.As(err, &ce) || len(ce.Differs) != 1 {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := s.Info(t.Context()); !errors.As(err, &ce) {
			t.Errorf("%s: %v", name, err)
		}
	}
	change(func(*jetstream.StreamConfig) {})
	if _, err := s.Info(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestTheWriterChangesTheLimit(t *testing.T) {
	js := connect(t, flotest.NATS(t, embednats.WithListen("127.0.0.1:0")).URL())
	for _, limit := range []int64{0, 1 << 20, 2 << 20, 0} {
		s, _, err := Create(t.Context(), Config{JS: js, Group: "g", MaxBytes: limit}, "1", "db")
		if err != nil {
			t.Fatal(err)
		}
		if got := s.str.CachedInfo().Config.MaxBytes; limit != 0 && got != limit {
			t.Errorf("limit %d, asked for %d", got, limit)
		}
	}
}

func TestOtherAPIPrefix(t *testing.T) {
	srv := flotest.NATS(t, embednats.WithListen("127.0.0.1:0"))
	nc, err := srv.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Without a mapping on the server the default prefix is the only one that answers; giving it
	// explicitly goes the same way as another one would.
	js, err := jetstream.NewWithAPIPrefix(nc, "$JS.API")
	if err != nil {
		t.Fatal(err)
	}
	s := newTestStream(t, Config{JS: js})
	fill(t, s, 1, 1, 100)
	newTestReader(t, s, 1, 1)
	for opts, want := range map[string]string{"a.b": "a.b.X", "a.b.": "a.b.X"} {
		js, err := jetstream.NewWithAPIPrefix(nc, opts)
		if err != nil {
			t.Fatal(err)
		}
		if got := (&Stream{js: js}).apiSubject("X"); got != want {
			t.Errorf("%s: %s", opts, got)
		}
	}
	js, err = jetstream.NewWithDomain(nc, "hub")
	if err != nil {
		t.Fatal(err)
	}
	if got := (&Stream{js: js}).apiSubject("X"); got != "$JS.hub.API.X" {
		t.Error(got)
	}
}
