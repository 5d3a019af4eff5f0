package main

import (
	"os"
	"strings"
	"testing"

	"github.com/pgflo/flo/flotest"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

func TestExampleLetsNothingThrough(t *testing.T) {
	flotest.RequireOwnServer(t)
	var out strings.Builder
	err := run(t.Context(), &out)
	for _, want := range []string{"M******t", "***@example.org", "小****ら", "rows: 3 of 4", "values in clear text: 0\n"} {
		if err != nil || !strings.Contains(out.String(), want) {
			t.Fatalf("%v; want %q in\n%s", err, want, out.String())
		}
	}
}
