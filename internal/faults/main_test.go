//go:build unix

package faults

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/pgflo/flo/flotest"
)

var (
	seedFlag = flag.Uint64("seed", 0, "seed of all random choices; 0: that of flotest.Seed")
	kills    = flag.Int("kills", 0, "kills for each process while streaming; 0: the test's own number")
	logs     = flag.String("logs", "", "folder for the children's whole logs; empty: only the ends, when a test fails")
	runs     = flag.Int("runs", 0, "how often the tests with several rounds repeat; 0: the test's own number")
)

func TestMain(m *testing.M) {
	if role := os.Getenv(envRole); role != "" {
		os.Exit(runChild(role))
	}
	if err := waitTogether(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := flotest.Main(m, flotest.CheckLeaks())
	if exe := builtChild(); exe != "" {
		os.RemoveAll(filepath.Dir(exe))
	}
	os.Exit(code)
}

// together is how many tests run beside each other where nobody says so: they wait more than they work, and go test
// counts cores. More would make the machine too busy for the children's leases.
const together = 3

// waitTogether sets -parallel, unless it is given.
func waitTogether() error {
	flag.Parse()
	given := runtime.GOMAXPROCS(0) >= together || underRace
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(together))
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
	if *seedFlag == 0 {
		return flotest.Seed(t)
	}
	t.Logf("seed %d", *seedFlag)
	return *seedFlag
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
