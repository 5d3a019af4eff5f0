package sinktest_test

import (
	"bytes"
	"context"
	"testing"

	"go.uber.org/goleak"

	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The smallest sink there is passes.
func TestFuncSinkPasses(t *testing.T) {
	sinktest.Run(t, func(*testing.T) sinktest.Harness {
		var place bytes.Buffer
		return sinktest.Harness{
			Open: func(testing.TB) sink.Sink {
				return sink.Func(func(ctx context.Context, b *sink.Batch) error {
					if err := ctx.Err(); err != nil {
						return err
					}
					for i, c := range b.Changes {
						line, err := c.AppendJSON(nil)
						if err != nil {
							return sink.Reject(i, err)
						}
						place.Write(append(line, '\n'))
					}
					return nil
				})
			},
			Read: func(t testing.TB) []sinktest.Entry {
				entries, err := sinktest.ParseLines(bytes.NewReader(place.Bytes()))
				if err != nil {
					t.Fatal(err)
				}
				return entries
			},
		}
	})
}

func TestParseLinesRefusesTornLines(t *testing.T) {
	for _, bad := range []string{`{"op":"insert"}`, "{\"op\":\"ins\n", "text\n"} {
		if _, err := sinktest.ParseLines(bytes.NewReader([]byte(bad))); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
