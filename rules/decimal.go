package rules

import (
	"bytes"
	"cmp"
	"strconv"
	"strings"
)

// decimal is a number in decimal text, taken apart where it lies: comparing two neither rounds nor
// allocates, however many digits they have.
type decimal struct {
	class    int8   // -1: -Infinity, 0: finite, 1: Infinity, 2: NaN
	negative bool   // never of a zero
	whole    []byte // without leading zeros
	fraction []byte // without trailing zeros
}

// parseDecimal reads PostgreSQL's text of an integer or numeric.
func parseDecimal(b []byte) (decimal, bool) {
	var d decimal
	digits := b
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		d.negative, digits = b[0] == '-', b[1:]
	}
	if len(digits) > 0 && (digits[0] == 'N' || digits[0] == 'n' || digits[0] == 'I' || digits[0] == 'i') {
		return specialDecimal(b)
	}
	whole, fraction, _ := bytes.Cut(digits, []byte{'.'})
	if len(whole)+len(fraction) == 0 || !allDigits(whole) || !allDigits(fraction) {
		return decimal{}, false
	}
	d.whole, d.fraction = bytes.TrimLeft(whole, "0"), bytes.TrimRight(fraction, "0")
	if len(d.whole)+len(d.fraction) == 0 {
		d.negative = false
	}
	return d, true
}

func specialDecimal(b []byte) (decimal, bool) {
	switch strings.ToLower(string(b)) {
	case "nan":
		return decimal{class: 2}, true
	case "infinity", "+infinity", "inf", "+inf":
		return decimal{class: 1}, true
	case "-infinity", "-inf":
		return decimal{class: -1}, true
	}
	return decimal{}, false
}

func allDigits(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// maxExponent is more than a numeric can have before or behind the point.
// https://www.postgresql.org/docs/current/datatype-numeric.html
const maxExponent = 150_000

// parseDecimalLiteral also takes an exponent, as in 2.5e9, and gives the number without it.
func parseDecimalLiteral(s string) (decimal, string, bool) {
	s = strings.TrimSpace(s)
	at := strings.IndexAny(s, "eE")
	if at < 0 || strings.ContainsAny(s, "nNyY") {
		d, ok := parseDecimal([]byte(s))
		return d, s, ok
	}
	exponent, err := strconv.Atoi(s[at+1:])
	if err != nil || exponent > maxExponent || exponent < -maxExponent {
		return decimal{}, "", false
	}
	mantissa := s[:at]
	sign := ""
	if strings.HasPrefix(mantissa, "-") || strings.HasPrefix(mantissa, "+") {
		sign, mantissa = mantissa[:1], mantissa[1:]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	if whole+fraction == "" {
		return decimal{}, "", false
	}
	digits, point := whole+fraction, len(whole)+exponent
	if point < 0 {
		digits, point = strings.Repeat("0", -point)+digits, 0
	}
	if point > len(digits) {
		digits += strings.Repeat("0", point-len(digits))
	}
	plain := sign + digits[:point] + "." + digits[point:]
	d, ok := parseDecimal([]byte(plain))
	return d, d.String(), ok
}

// String writes the number in PostgreSQL's form.
func (d decimal) String() string {
	switch d.class {
	case 2:
		return "NaN"
	case 1:
		return "Infinity"
	case -1:
		return "-Infinity"
	}
	out := string(d.whole)
	if out == "" {
		out = "0"
	}
	if len(d.fraction) > 0 {
		out += "." + string(d.fraction)
	}
	if d.negative {
		out = "-" + out
	}
	return out
}

// compare orders as PostgreSQL does: NaN is equal to itself and above all else.
// https://www.postgresql.org/docs/current/datatype-numeric.html#DATATYPE-NUMERIC-DECIMAL
func (d decimal) compare(e decimal) int {
	if d.class != 0 || e.class != 0 {
		return cmp.Compare(d.class, e.class)
	}
	if d.negative != e.negative {
		if d.negative {
			return -1
		}
		return 1
	}
	c := cmp.Compare(len(d.whole), len(e.whole))
	if c == 0 {
		c = bytes.Compare(d.whole, e.whole)
	}
	if c == 0 {
		c = bytes.Compare(d.fraction, e.fraction)
	}
	if d.negative {
		return -c
	}
	return c
}
