package flotest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

func TestRecorder(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var r flotest.Recorder
	row := []byte("before")
	batch := &sink.Batch{Epoch: 7, Changes: []*decode.Change{{Op: decode.OpInsert, Ordinal: 1, New: decode.Row{decode.TextValue(nil, row)}}}}
	boom := errors.New("boom")
	r.FailNext(2, boom)
	for range 2 {
		if err := r.Write(ctx, batch); !errors.Is(err, boom) {
			t.Fatalf("Write: %v, want boom", err)
		}
	}
	waited := make(chan error, 1)
	go func() { waited <- r.WaitN(ctx, 2) }()
	must(t, r.Write(ctx, batch))
	copy(row, "after!") // the batch's bytes are the worker's again
	must(t, r.Write(ctx, batch))
	must(t, <-waited)
	got := r.Changes()
	if a, b := got[0].New[0].String(), got[1].New[0].String(); a != "before" || b != "after!" {
		t.Errorf("recorded %q and %q", a, b)
	}
	if _, epoch := r.Checkpoint(); epoch != 7 || r.Batches() != 2 {
		t.Errorf("epoch %d, %d batches", epoch, r.Batches())
	}
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if err := r.WaitN(short, 3); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitN: %v", err)
	}
}
