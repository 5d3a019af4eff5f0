package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

func TestSinkPassesTheSuite(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		nc, err := flotest.NATS(t).Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		events, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "events", Subjects: []string{"events.*"}})
		if err != nil {
			t.Fatal(err)
		}
		return sinktest.Harness{
			Open:     func(testing.TB) sink.Sink { return Events{JS: js} },
			Read:     func(t testing.TB) []sinktest.Entry { return entries(t, events) },
			MaxValue: 500 << 10, // a message holds 1 MiB
		}
	})
}

func entries(t testing.TB, events jetstream.Stream) []sinktest.Entry {
	var lines bytes.Buffer
	err := read(t.Context(), events, func(data []byte) error {
		lines.Write(append(data, '\n'))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := sinktest.ParseLines(&lines)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestExampleFindsNoDifference(t *testing.T) {
	flotest.RequireOwnServer(t)
	var out strings.Builder
	if err := run(t.Context(), &out); err != nil || !strings.Contains(out.String(), "differences: 0\n") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
