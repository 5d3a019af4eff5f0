package deadletter_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/deadletter"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m)) }

func connect(t *testing.T) (context.Context, jetstream.JetStream) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	nc, err := flotest.NATS(t).Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return ctx, js
}

func TestALetterIsStoredOnceAndReadWhole(t *testing.T) {
	ctx, js := connect(t)
	s := deadletter.Open(js, "shop", "abc", "default", 1)
	if all, err := s.List(ctx); err != nil || len(all) != 0 {
		t.Fatal(all, err)
	}
	if err := s.Create(ctx); err != nil {
		t.Fatal(err)
	}
	limit := int(js.Conn().MaxPayload())
	for i, size := range []int{0, 1, limit - 600, limit, 3*limit + 17} {
		e := deadletter.Entry{Kind: deadletter.Streamed, Position: decode.Position{LSN: 7, Ordinal: uint64(i + 1)}, Tables: []uint32{5}}
		body := bytes.Repeat([]byte("x\n"), size/2+1)[:size]
		for _, reason := range []string{"first", "again"} {
			if err := s.Put(ctx, &e, deadletter.Head{Op: "insert", Reason: reason, Time: time.Now()}, body); err != nil {
				t.Fatal(err)
			}
		}
		h, got, err := s.Get(ctx, &e)
		if err != nil || !bytes.Equal(got, body) || h.Reason != "first" || h.Worker != "default" || h.Group != "shop" {
			t.Errorf("%d bytes: %+v, %d bytes, %v", size, h, len(got), err)
		}
	}
	other := deadletter.Open(js, "shop", "abc", "other", 1)
	if err := other.Create(ctx); err != nil { // it is there
		t.Fatal(err)
	}
	if err := other.Put(ctx, &deadletter.Entry{Kind: deadletter.Streamed, Position: decode.Position{LSN: 7, Ordinal: 1}}, deadletter.Head{}, nil); err != nil {
		t.Fatal(err)
	}
	all, err := s.List(ctx)
	if err != nil || len(all) != 5 || all[4].Position.Ordinal != 5 {
		t.Fatal(all, err)
	}
	if err := s.Delete(ctx, &all[4]); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Get(ctx, &all[4]); !errors.Is(err, deadletter.ErrNotFound) {
		t.Errorf("after Delete: %v", err)
	}
	if h, err := s.Last(ctx); err != nil || h.Bytes != limit {
		t.Errorf("last %+v, %v", h, err)
	}
	if err := s.DeleteAll(ctx); err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(ctx, deadletter.StreamName("shop"))
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("%d messages left, want that of the other worker", n)
	}
	for range 2 {
		if err := deadletter.Drop(ctx, js, "shop"); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAStreamThatForgetsIsRefused(t *testing.T) {
	ctx, js := connect(t)
	if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: deadletter.StreamName("shop"), Subjects: []string{"flo-dead.shop.>"}, MaxAge: time.Hour}); err != nil {
		t.Fatal(err)
	}
	s := deadletter.Open(js, "shop", "abc", "default", 1)
	if _, err := s.List(ctx); !errors.Is(err, deadletter.ErrStream) {
		t.Errorf("List: %v", err)
	}
	if err := deadletter.Open(js, "shop", "abc", "default", 1).Create(ctx); !errors.Is(err, deadletter.ErrStream) {
		t.Errorf("Create: %v", err)
	}
	// Too few servers for so many replicas.
	if err := deadletter.Open(js, "other", "abc", "default", 3).Create(ctx); !errors.Is(err, deadletter.ErrStream) {
		t.Errorf("Create: %v", err)
	}
}
