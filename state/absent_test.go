package state_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/state"
)

// A server that can't read its store says "no message found" of what it has. That is not a record that is missing.
func TestARecordThatTheServerCannotReadIsNotMissing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	srv := flotest.NATS(t)
	nc, err := srv.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := state.NewNATS(ctx, js, "g", 1, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"there", "gone"} {
		if _, err := s.PutWorker(ctx, state.Worker{Name: name}, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteWorker(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	missing := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if _, _, err := s.Worker(ctx, name); !errors.Is(err, state.ErrNotFound) {
				t.Errorf("worker %s: %v", name, err)
			}
		}
	}
	missing("gone", "never")
	if err := srv.Restart(ctx); err != nil { // so that it has nothing in memory
		t.Fatal(err)
	}
	blocks, err := filepath.Glob(filepath.Join(srv.Dir(), "jetstream", "*", "streams", "KV_"+state.BucketName("g"), "msgs", "*.blk"))
	if err != nil || len(blocks) != 1 {
		t.Fatal(blocks, err)
	}
	away := filepath.Join(t.TempDir(), "away")
	if err := errors.Join(os.Rename(blocks[0], away), os.Mkdir(blocks[0], 0o700)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Worker(ctx, "there"); !errors.Is(err, state.ErrUnreadable) {
		t.Errorf("of a store that can't be read: %v", err)
	}
	missing("never")
	if err := errors.Join(os.Remove(blocks[0]), os.Rename(away, blocks[0])); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Worker(ctx, "there"); err != nil {
		t.Errorf("of a store that can be read again: %v", err)
	}
	missing("gone", "never")
}
