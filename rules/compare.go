package rules

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pgflo/flo/decode"
)

// comparer compares a column's values with one that a rule names.
type comparer struct {
	// canonical gives the text that PostgreSQL would write for the rule's value, or what is wrong with it.
	canonical func(l literal) (string, error)
	// against gives the comparison with such a text: negative if the column's value is below it.
	against func(canonical string) func(text []byte) (int, error)
	// ordered is false if only equality is known (an enum whose labels are not).
	ordered bool
	// byText: equal values have equal texts, so that Eq, Ne and In need no order.
	byText bool
	// text: Contains and Matches work; plain gives what they look at.
	text  bool
	plain func(text []byte) []byte
}

// comparerOf gives the comparer of a column's type, or an error that wraps ErrType.
func comparerOf(c *decode.Column) (*comparer, error) {
	base := baseOf(c.Type)
	switch {
	case base == nil:
	case isText(base):
		return textComparer(base), nil
	case base.Kind == decode.EnumType:
		return enumComparer(base), nil
	case isCatalog(base, "int2", "int4", "int8", "oid", "numeric"):
		return decimalComparer(), nil
	case isCatalog(base, "float4"):
		return floatComparer(32), nil
	case isCatalog(base, "float8"):
		return floatComparer(64), nil
	case isCatalog(base, "bool"):
		return bytesComparer(canonicalBool), nil
	case isCatalog(base, "uuid"):
		return bytesComparer(canonicalUUID), nil
	case isCatalog(base, "bytea"):
		return bytesComparer(canonicalBytea), nil
	case isCatalog(base, "name", "char"):
		return bytesComparer(canonicalText), nil
	case isCatalog(base, "date", "timestamp", "timestamptz"):
		return momentComparer(base), nil
	case isCatalog(base, "time"):
		return timeComparer(), nil
	case isCatalog(base, "interval"):
		return intervalComparer(), nil
	}
	return nil, fmt.Errorf("%w: %q is of type %s, which rules do not compare (numbers, text, booleans, dates and times, uuid, bytea and enums they do): use IsNull, or a rule of your own",
		ErrType, c.Name, typeName(c.Type))
}

// wants refuses literals of a kind that the type does not take, strings excepted.
func (l literal) wants(kind literalKind, what string) error {
	if l.kind == textLiteral || l.kind == kind {
		return nil
	}
	hint := ""
	if kind == textLiteral {
		hint = ": quote it"
	}
	return fmt.Errorf("%w: %s (%s) cannot be compared with %s%s", ErrType, l.text, l.kind, what, hint)
}

func malformed(l literal, what, example string) error {
	return fmt.Errorf("%w: %q is not %s, for example %s", ErrType, l.text, what, example)
}

// bytesComparer is for types whose canonical texts order as their values do.
func bytesComparer(canonical func(literal) (string, error)) *comparer {
	return &comparer{ordered: true, canonical: canonical, against: func(s string) func([]byte) (int, error) {
		want := []byte(s)
		return func(text []byte) (int, error) { return bytes.Compare(text, want), nil }
	}}
}

func canonicalText(l literal) (string, error) {
	if strings.ContainsRune(l.text, 0) || strings.ToValidUTF8(l.text, "") != l.text {
		return "", fmt.Errorf("%w: %q: PostgreSQL's text holds UTF-8 without zero bytes", ErrType, l.text)
	}
	return l.text, l.wants(textLiteral, "text")
}

func canonicalBool(l literal) (string, error) {
	if err := l.wants(boolLiteral, "a boolean"); err != nil {
		return "", err
	}
	v, ok := parseBool(l.text)
	if !ok {
		return "", malformed(l, "a boolean", "true or false")
	}
	return strconv.FormatBool(v)[:1], nil
}

func canonicalUUID(l literal) (string, error) {
	s, ok := parseUUID(l.text)
	if !ok || l.kind != textLiteral {
		return "", malformed(l, "a uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
	}
	return s, nil
}

// canonicalBytea wants hexadecimal: as text it orders as the bytes do.
func canonicalBytea(l literal) (string, error) {
	digits, ok := strings.CutPrefix(l.text, `\x`)
	digits = strings.ToLower(digits)
	if !ok || len(digits)%2 != 0 || strings.Trim(digits, "0123456789abcdef") != "" || l.kind != textLiteral && l.kind != bytesLiteral {
		return "", malformed(l, "a bytea in hexadecimal", `\x00ff`)
	}
	return `\x` + digits, nil
}

// textComparer compares by code point, which is the order of UTF-8's bytes (COLLATE "C"): a char(n)
// without the blanks that fill it up, citext in lower case.
func textComparer(base *decode.Type) *comparer {
	plain := func(b []byte) []byte { return b }
	switch base.Name {
	case "bpchar":
		plain = func(b []byte) []byte { return bytes.TrimRight(b, " ") }
	case "citext":
		plain = bytes.ToLower
	}
	return &comparer{ordered: true, text: true, plain: plain, canonical: canonicalText, against: func(s string) func([]byte) (int, error) {
		want := plain([]byte(s))
		return func(text []byte) (int, error) { return bytes.Compare(plain(text), want), nil }
	}}
}

// enumComparer compares by the order in which the type declares its labels. A row may have one that was added
// after the type was described (ALTER TYPE … ADD VALUE): only an order needs to know it.
func enumComparer(base *decode.Type) *comparer {
	labels := slices.Clone(base.Labels)
	canonical := func(l literal) (string, error) {
		if err := l.wants(textLiteral, "an enum"); err != nil {
			return "", err
		}
		if len(labels) > 0 && !slices.Contains(labels, l.text) {
			return "", &LabelError{base, l.text}
		}
		return l.text, nil
	}
	return &comparer{ordered: len(labels) > 0, byText: true, canonical: canonical, against: func(s string) func([]byte) (int, error) {
		want := slices.Index(labels, s)
		return func(text []byte) (int, error) {
			if string(text) == s {
				return 0, nil
			}
			at := slices.Index(labels, string(text))
			if at < 0 && len(labels) > 0 {
				return 0, &LabelError{base, string(text)}
			}
			return cmp.Or(cmp.Compare(at, want), 1), nil
		}
	}}
}

func quoteAll(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = strconv.Quote(s)
	}
	return strings.Join(quoted, ", ")
}

func decimalComparer() *comparer {
	canonical := func(l literal) (string, error) {
		if err := l.wants(numberLiteral, "a number"); err != nil {
			return "", err
		}
		d, text, ok := parseDecimalLiteral(l.text)
		if !ok {
			return "", malformed(l, "a number", "18 or 75.00")
		}
		if d.class != 0 {
			text = d.String()
		}
		return text, nil
	}
	return &comparer{ordered: true, canonical: canonical, against: func(s string) func([]byte) (int, error) {
		want, _ := parseDecimal([]byte(s))
		return func(text []byte) (int, error) {
			d, ok := parseDecimal(text)
			if !ok {
				return 0, fmt.Errorf("%w: %q is not a number", decode.ErrMalformed, text)
			}
			return d.compare(want), nil
		}
	}}
}

// floatComparer reads the rule's value in the column's own width, as SQL does with a quoted one:
// real '0.1' is 0.1.
func floatComparer(bits int) *comparer {
	canonical := func(l literal) (string, error) {
		if err := l.wants(numberLiteral, "a number"); err != nil {
			return "", err
		}
		d, plain, ok := parseDecimalLiteral(l.text)
		if !ok {
			return "", malformed(l, "a number", "18 or 75.00")
		}
		if d.class != 0 {
			return d.String(), nil
		}
		f, err := strconv.ParseFloat(plain, bits)
		if err != nil || f == 0 && len(d.whole)+len(d.fraction) > 0 {
			return "", fmt.Errorf("%w: %s is out of the range of a %d-bit float", ErrType, l.text, bits)
		}
		return floatText(f, bits), nil
	}
	return &comparer{ordered: true, canonical: canonical, against: func(s string) func([]byte) (int, error) {
		want, _ := strconv.ParseFloat(s, bits)
		return func(text []byte) (int, error) {
			f, err := strconv.ParseFloat(string(text), bits)
			if err != nil {
				return 0, fmt.Errorf("%w: %q is not a float", decode.ErrMalformed, text)
			}
			return compareFloats(f, want), nil
		}
	}}
}

// compareFloats orders as PostgreSQL does: NaN is equal to itself and above all else.
func compareFloats(a, b float64) int {
	switch {
	case math.IsNaN(a) && math.IsNaN(b):
		return 0
	case math.IsNaN(a):
		return 1
	case math.IsNaN(b):
		return -1
	}
	return cmp.Compare(a, b)
}

// momentComparer compares dates, and timestamps as instants.
func momentComparer(base *decode.Type) *comparer {
	typ := decode.BuiltinType(map[string]uint32{"date": 1082, "timestamp": 1114, "timestamptz": 1184}[base.Name])
	return &comparer{ordered: true,
		canonical: func(l literal) (string, error) { return canonicalMoment(base.Name, l) },
		against: func(s string) func([]byte) (int, error) {
			want, _ := parseMoment(s)
			return func(text []byte) (int, error) {
				v := decode.TextValue(typ, text)
				if inf := v.Infinity(); inf != 0 || want.infinite != 0 {
					return cmp.Compare(inf, want.infinite), nil
				}
				t, err := v.Time()
				if err != nil {
					return 0, err
				}
				return t.Compare(want.at), nil
			}
		}}
}

// canonicalMoment takes a zone for a timestamptz only, UTC if there is none: PostgreSQL would take the
// session's, and ignore one in a timestamp.
func canonicalMoment(typ string, l literal) (string, error) {
	if err := l.wants(timeLiteral, "a "+typ); err != nil {
		return "", err
	}
	m, ok := parseMoment(l.text)
	if !ok {
		return "", malformed(l, "a "+typ, map[string]string{"date": "2024-02-29", "timestamp": "2024-02-29 12:00:00", "timestamptz": "2024-02-29T12:00:00+01:00"}[typ])
	}
	switch {
	case m.infinite > 0:
		return "infinity", nil
	case m.infinite < 0:
		return "-infinity", nil
	case !inRange(typ, m.at):
		return "", fmt.Errorf("%w: %s is out of the range of a %s", ErrType, l.text, typ)
	}
	text := timeText(m.at)
	day, clock, _ := strings.Cut(text, " ")
	clock, era, _ := strings.Cut(clock, " ")
	if era != "" {
		era = " " + era
	}
	hour, minute, second := m.at.Clock()
	midnight := hour+minute+second+m.at.Nanosecond() == 0
	switch typ {
	case "date":
		if m.zone && (l.kind != timeLiteral || !isUTC(l.text)) || m.clock && !midnight {
			return "", fmt.Errorf("%w: %q has a time of day or a time zone, a date has none", ErrType, l.text)
		}
		return day + era, nil
	case "timestamp":
		if m.zone && !isUTC(l.text) {
			return "", fmt.Errorf("%w: %q has a time zone, a timestamp without time zone is no instant: leave the zone out (of a time.Time: give it in UTC), or compare a timestamptz", ErrType, l.text)
		}
		return day + " " + strings.TrimSuffix(clock, "+00") + era, nil
	}
	return text, nil
}

var utcSuffixes = [...]string{"Z", "+00", "+00:00", "+0000", "-00", "-00:00"}

func isUTC(s string) bool {
	s = strings.TrimSuffix(strings.TrimSpace(s), " BC")
	return slices.ContainsFunc(utcSuffixes[:], func(z string) bool { return strings.HasSuffix(s, z) })
}

func timeComparer() *comparer {
	typ := decode.BuiltinType(1083)
	canonical := func(l literal) (string, error) {
		if _, err := decode.TextValue(typ, []byte(l.text)).TimeOfDay(); err != nil || l.kind != textLiteral || !clockInRange(l.text) {
			return "", malformed(l, "a time of day", "12:30:00")
		}
		return l.text, nil
	}
	return &comparer{ordered: true, canonical: canonical, against: func(s string) func([]byte) (int, error) {
		want, _ := decode.TextValue(typ, []byte(s)).TimeOfDay()
		return func(text []byte) (int, error) {
			t, err := decode.TextValue(typ, text).TimeOfDay()
			return cmp.Compare(t, want), err
		}
	}}
}

// intervalComparer counts a month as 30 days and a day as 24 hours, as PostgreSQL does.
// https://github.com/postgres/postgres/blob/master/src/backend/utils/adt/timestamp.c (interval_cmp_value)
func intervalComparer() *comparer {
	typ := decode.BuiltinType(1186)
	span := func(text []byte) (days, micros int64, err error) {
		v := decode.TextValue(typ, text)
		if inf := v.Infinity(); inf != 0 { // from PostgreSQL 17 on
			return math.MaxInt64 * int64(inf), 0, nil
		}
		i, err := v.Interval()
		const day = int64(24 * time.Hour / time.Microsecond)
		days, micros = int64(i.Months)*30+int64(i.Days)+i.Microseconds/day, i.Microseconds%day
		if micros < 0 {
			days, micros = days-1, micros+day
		}
		return days, micros, err
	}
	canonical := func(l literal) (string, error) {
		if _, _, err := span([]byte(l.text)); err != nil || l.kind != textLiteral || decode.TextValue(typ, []byte(l.text)).Infinity() == 0 && !intervalInRange(l.text) {
			return "", malformed(l, "an interval", "1 day 02:00:00")
		}
		return l.text, nil
	}
	return &comparer{ordered: true, canonical: canonical, against: func(s string) func([]byte) (int, error) {
		wantDays, wantMicros, _ := span([]byte(s))
		return func(text []byte) (int, error) {
			days, micros, err := span(text)
			return cmp.Or(cmp.Compare(days, wantDays), cmp.Compare(micros, wantMicros)), err
		}
	}}
}
