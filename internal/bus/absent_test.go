package bus

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A server that can't read its store says "no message found" of what it has. That is not an empty stream.
func TestWhatTheServerCannotReadIsNotAbsent(t *testing.T) {
	t.Parallel()
	srv := tcpServer(t, t.TempDir(), "127.0.0.1:0")
	s := newTestStream(t, Config{JS: connect(t, srv.URL())})
	p := newTestPublisher(t, s, 1)
	for n := range uint64(3) {
		publish(t, p, n, 100)
	}
	drained(t, p)
	p.Close()
	if err := s.str.DeleteMsg(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if err := srv.Restart(t.Context()); err != nil { // so that it has nothing in memory
		t.Fatal(err)
	}
	blocks, err := filepath.Glob(filepath.Join(srv.Dir(), "jetstream", "*", "streams", s.Name(), "msgs", "*.blk"))
	if err != nil || len(blocks) != 1 {
		t.Fatal(blocks, err)
	}
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(blocks[0], away); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(blocks[0], 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	reads := map[string]func() (Message, error){
		"the tail":        func() (Message, error) { return s.Tail(ctx) },
		"the first":       func() (Message, error) { return s.Get(ctx, 1) },
		"the last":        func() (Message, error) { return s.Get(ctx, 3) },
		"the next":        func() (Message, error) { return s.Next(ctx, 2, s.ChangesSubject()) },
		"one of the copy": func() (Message, error) { return s.Next(ctx, 1, s.prefix+"*") },
	}
	var wg sync.WaitGroup
	for what, read := range reads {
		wg.Go(func() {
			if m, err := read(); !errors.Is(err, ErrUnreadable) {
				t.Errorf("%s, of a store that can't be read: sequence %d, %v", what, m.Seq, err)
			}
		})
	}
	wg.Wait()
	// What the index alone says needs no store.
	if _, err := s.Next(ctx, 1, s.CopyFilter(0)); !errors.Is(err, ErrEmpty) {
		t.Errorf("copied rows: %v", err)
	}
	if _, err := s.Get(ctx, 4); !errors.Is(err, ErrEmpty) {
		t.Errorf("behind the end: %v", err)
	}
	if err := os.Remove(blocks[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(away, blocks[0]); err != nil {
		t.Fatal(err)
	}
	for what, read := range reads {
		if m, err := read(); err != nil {
			t.Errorf("%s, of a store that can be read again: sequence %d, %v", what, m.Seq, err)
		}
	}
	for what, read := range map[string]func() (Message, error){
		"deleted":            func() (Message, error) { return s.Get(ctx, 2) },
		"behind the end":     func() (Message, error) { return s.Get(ctx, 4) },
		"next after the end": func() (Message, error) { return s.Next(ctx, 4, s.ChangesSubject()) },
		"of no such subject": func() (Message, error) { return s.Next(ctx, 1, s.CopyEndFilter(1)) },
	} {
		if m, err := read(); !errors.Is(err, ErrEmpty) {
			t.Errorf("%s: sequence %d, %v", what, m.Seq, err)
		}
	}
}

// Of a stream whose last messages were deleted the sequences stay.
func TestDeletedLastMessagesAreAbsent(t *testing.T) {
	t.Parallel()
	s := newTestStream(t, Config{JS: inProcess(t)})
	p := newTestPublisher(t, s, 1)
	for n := range uint64(3) {
		publish(t, p, n, 100)
	}
	drained(t, p)
	for seq := uint64(3); seq > 0; seq-- {
		if err := s.str.DeleteMsg(t.Context(), seq); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for n := seq; n < 5; n++ {
			if m, err := s.Get(t.Context(), n); !errors.Is(err, ErrEmpty) {
				t.Errorf("%d: sequence %d, %v", n, m.Seq, err)
			}
		}
		if took := time.Since(began); took > rollbackConfirm {
			t.Errorf("it took %s", took)
		}
	}
}

func TestNoStreamIsMadeAgainstMaking(t *testing.T) {
	t.Parallel()
	no := errors.New("no")
	cfg := Config{JS: inProcess(t), Group: "g", Making: func(context.Context) error { return no }}
	if _, _, err := Create(t.Context(), cfg, "1", "db"); !errors.Is(err, no) {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrNoStream) {
		t.Fatal(err)
	}
	cfg.Making = nil
	newTestStream(t, cfg)
	cfg.Making = func(context.Context) error { return no } // not asked for one that is there
	newTestStream(t, cfg)
}
