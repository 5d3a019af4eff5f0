//go:build unix

package faults

import (
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pgflo/flo/flotest"
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of all random choices; 0: one from the clock")
	kills    = flag.Int("kills", 0, "kills for each process while streaming; 0: the test's own number")
	logs     = flag.String("logs", "", "folder for the children's whole logs; empty: only the ends, when a test fails")
	runs     = flag.Int("runs", 0, "how often the tests with several rounds repeat; 0: the test's own number")
)

func TestMain(m *testing.M) {
	if role := os.Getenv(envRole); role != "" {
		os.Exit(runChild(role))
	}
	code := flotest.Main(m, flotest.CheckLeaks())
	if exe := builtChild(); exe != "" {
		os.RemoveAll(filepath.Dir(exe))
	}
	os.Exit(code)
}

// or gives a flag's value, or a default if it is not set.
func or(flag *int, standard int) int {
	if *flag > 0 {
		return *flag
	}
	return standard
}

// brief is or with a lower default under -short.
func brief(flag *int, standard, short int) int {
	if testing.Short() {
		standard = short
	}
	return or(flag, standard)
}

// seed gives the test's seed, and says it.
func seed(t testing.TB) uint64 {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", s)
	return s
}

// random gives a source of choices of its own to each party of a test, so that one party's luck does
// not depend on how the others are scheduled.
func random(seed, party uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, party)) }

// between draws a duration.
func between(rnd *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(rnd.Int64N(int64(high-low)+1))
}

// pause waits, as the schedule of faults or the pace of a writer has it.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
