package wire

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"testing"
)

// A set of rolled back subtransactions is compared with a plain list of XIDs, over random savepoints.
func TestAnXIDSetKnowsWhatWasRolledBack(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var set XIDSet
		aborted := map[uint32]bool{}
		var open []uint32 // the savepoints that have an XID
		next := uint32(1)
		for range r.IntN(300) {
			switch r.IntN(4) {
			case 0, 1: // other transactions take XIDs as well
				next += r.Uint32N(3)
				open = append(open, next)
				next++
			case 2:
				if len(open) > 0 { // released, into those below
					open = open[:r.IntN(len(open))]
				}
			case 3:
				if len(open) > 0 {
					i := r.IntN(len(open))
					for x := open[i]; x < next; x++ {
						aborted[x] = true
					}
					if r.IntN(2) == 0 { // descendants come first, as in DecodeAbort
						for _, x := range open[i:] {
							set = set.Abort(x, next-1)
						}
					}
					set = set.Abort(open[i], next-1)
					open = open[:i]
				}
			}
		}
		text, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		var again XIDSet
		if err := json.Unmarshal(text, &again); err != nil {
			t.Fatal(err)
		}
		if len(set) > 0 && !reflect.DeepEqual(set, again) {
			t.Fatalf("wrote %v, read %v", set, again)
		}
		for x := range next + 2 {
			if again.Has(x) != aborted[x] {
				t.Fatalf("%d: in the set %v, rolled back %v: %v", x, again.Has(x), aborted[x], set)
			}
		}
	}
}

func TestABadXIDSetIsAnError(t *testing.T) {
	for _, text := range []string{`"gA=="`, `"AQ=="`, `"/////w8B"`, `"AQAAAA=="`, `5`, `"!"`} {
		var s XIDSet
		if err := json.Unmarshal([]byte(text), &s); err == nil {
			t.Errorf("%s was read as %v", text, s)
		}
	}
}
