package flotest

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// EnvSeed names the environment variable that gives Seed its number.
const EnvSeed = "FLO_TEST_SEED"

// Seed returns the seed of a test's random choices, and logs it: the number in $FLO_TEST_SEED, so that a run can be
// repeated, or one from the clock.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv(EnvSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatalf("$%s must be a number from 0 to 2^64-1: %v", EnvSeed, err)
		}
	}
	t.Logf("%s=%d", EnvSeed, seed)
	return seed
}
