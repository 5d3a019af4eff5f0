package rules_test

import (
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// BenchmarkRules is the cost of a row.
func BenchmarkRules(b *testing.B) {
	drop := rules.DropTruncate()
	for _, c := range []struct {
		name string
		rule rules.Rule
	}{
		{"mask", rules.Mask("email")}, {"regex", rules.Regex("phone", `^(\d{3})(\d+)$`, "$1-$2")}, {"hash", rules.Hash("ssn", secret)},
		{"exclude", rules.Exclude("weight")}, {"filter-int", rules.Filter(rules.Gte("age", 18), drop)}, {"filter-numeric", rules.Filter(rules.Lt("balance", "99.999999999999999999"), drop)},
		{"filter-text", rules.Filter(rules.Contains("email", "@example"), drop)}, {"where", rules.Where(rules.And(rules.Gte("age", 18), rules.Lt("score", 100)), drop)},
	} {
		b.Run(c.name, func(b *testing.B) {
			_, f := mustBind(b, person(decode.IdentityFull), c.rule)
			row := row("1|margaret@example.com|5551234567|18|078051120|75.00|7|1.5|80")
			work := make(decode.Row, len(row))
			b.ReportAllocs()
			for b.Loop() {
				copy(work, row)
				ch := decode.Change{Op: ins, New: work}
				if _, err := f(&ch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
