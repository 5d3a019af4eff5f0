package ledger_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pgflo/flo/internal/faults/ledger"
)

func TestLedgerGoesOnAfterAnInterrupt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.jsonl")
	if all, err := ledger.Read(path); err != nil || len(all) != 0 || ledger.Next(all, 1) != 1 {
		t.Fatal(all, err)
	}
	for i, result := range []string{ledger.OK, "a difference"} {
		if err := ledger.Append(path, ledger.Entry{Seed: uint64(40 + i), Kills: 3, Cuts: 4, Result: result}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"seed":42,"com`); err != nil { // torn
		t.Fatal(err)
	}
	f.Close()
	all, err := ledger.Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if next := ledger.Next(all, 40); next != 42 {
		t.Errorf("the next seed is %d", next)
	}
	if next := ledger.Next(all, 39); next != 39 {
		t.Errorf("the next seed is %d, and not the one that an interrupt left out", next)
	}
	if s := ledger.Sum(all); s.Runs != 2 || s.Failed != 1 || s.Kills != 6 || s.Cuts != 8 {
		t.Error(s)
	}
}
