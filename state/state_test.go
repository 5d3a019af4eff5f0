package state_test

import (
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/state"
	"github.com/pgflo/flo/state/statetest"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

func jetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(flotest.NATSConn(t))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestMemory(t *testing.T) {
	statetest.Run(t, func(*testing.T) state.Store { return state.NewMemory() })
}

func TestNATS(t *testing.T) {
	statetest.Run(t, func(t *testing.T) state.Store {
		s, err := state.NewNATS(t.Context(), jetStream(t), "g", 1, true)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestNATSValuesAreReadableJSON(t *testing.T) {
	js := jetStream(t)
	s, err := state.NewNATS(t.Context(), js, "g", 0, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutWorker(t.Context(), state.Worker{Name: "w", Epoch: 4}, 0); err != nil {
		t.Fatal(err)
	}
	kv, err := js.KeyValue(t.Context(), "flo_g")
	if err != nil {
		t.Fatal(err)
	}
	e, err := kv.Get(t.Context(), "workers.w")
	if err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(e.Value(), &v); err != nil || v["name"] != "w" || v["epoch"] != 4.0 {
		t.Fatalf("%s: %v", e.Value(), err)
	}
}

func TestNATSOpen(t *testing.T) {
	js := jetStream(t)
	if _, err := state.NewNATS(t.Context(), js, "g", 0, false); !errors.Is(err, state.ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := state.NewNATS(t.Context(), js, "a.b", 0, true); !errors.Is(err, state.ErrName) {
		t.Fatal(err)
	}
	a, err := state.NewNATS(t.Context(), js, "g", 0, true)
	if err != nil {
		t.Fatal(err)
	}
	b, err := state.NewNATS(t.Context(), js, "g", 0, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.PutWorker(t.Context(), state.Worker{Name: "w"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Worker(t.Context(), "w"); err != nil {
		t.Fatal(err)
	}
}

// A bucket made by other means allows direct reads.
func TestNATSRefusesBucketWithDirectReads(t *testing.T) {
	js := jetStream(t)
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "flo_g"}); err != nil {
		t.Fatal(err)
	}
	if _, err := state.NewNATS(t.Context(), js, "g", 0, false); !errors.Is(err, state.ErrBucket) {
		t.Fatal(err)
	}
	if _, err := state.NewNATS(t.Context(), js, "g", 0, true); err != nil { // turns them off
		t.Fatal(err)
	}
	str, err := js.Stream(t.Context(), "KV_flo_g")
	if err != nil || str.CachedInfo().Config.AllowDirect {
		t.Fatal(err, str.CachedInfo().Config.AllowDirect)
	}
	if _, err := state.NewNATS(t.Context(), js, "g", 0, false); err != nil {
		t.Fatal(err)
	}
}

func TestNATSRefusesBucketThatForgets(t *testing.T) {
	js := jetStream(t)
	if _, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "flo_g", TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if _, err := state.NewNATS(t.Context(), js, "g", 0, true); !errors.Is(err, state.ErrBucket) {
		t.Fatal(err)
	}
}
