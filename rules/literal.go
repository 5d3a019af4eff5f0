package rules

import (
	"encoding/hex"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// literal is a value of a condition or of Const as the program or the file wrote it.
type literal struct {
	text string
	kind literalKind
}

// literalKind keeps a number from being compared with text: 10 is less than 5 there.
type literalKind uint8

const (
	textLiteral literalKind = iota // a string: read as the column's type
	numberLiteral
	boolLiteral
	timeLiteral
	bytesLiteral
)

func (k literalKind) String() string {
	return [...]string{"text", "a number", "a boolean", "a time", "bytes"}[k]
}

// literalOf reads a Go value: a string, boolean, number, []byte, time.Time, one of a type based on
// those, or what writes itself as text (fmt.Stringer: UUIDs, decimals).
func literalOf(v any) (literal, error) {
	switch v := v.(type) {
	case nil:
		return literal{}, fmt.Errorf("%w: nil is no value to compare with, as NULL is not in SQL: use IsNull", ErrInvalidRule)
	case literal:
		return v, nil
	case string:
		return literal{v, textLiteral}, nil
	case time.Time:
		return literal{zonedText(v), timeLiteral}, nil
	case []byte:
		return literal{`\x` + hex.EncodeToString(v), bytesLiteral}, nil
	}
	r := reflect.ValueOf(v)
	if s, ok := v.(fmt.Stringer); ok {
		if r.Kind() == reflect.Pointer && r.IsNil() {
			return literal{}, fmt.Errorf("%w: a nil %T is no value to compare with", ErrInvalidRule, v)
		}
		return literal{s.String(), textLiteral}, nil
	}
	switch r.Kind() {
	case reflect.String:
		return literal{r.String(), textLiteral}, nil
	case reflect.Bool:
		return literal{strconv.FormatBool(r.Bool()), boolLiteral}, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return literal{strconv.FormatInt(r.Int(), 10), numberLiteral}, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return literal{strconv.FormatUint(r.Uint(), 10), numberLiteral}, nil
	case reflect.Float32:
		return literal{floatText(r.Float(), 32), numberLiteral}, nil
	case reflect.Float64:
		return literal{floatText(r.Float(), 64), numberLiteral}, nil
	}
	return literal{}, fmt.Errorf("%w: a %T is no value to compare with: give a string, number, boolean, []byte or time.Time", ErrInvalidRule, v)
}

func floatText(f float64, bits int) string {
	switch {
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	return strconv.FormatFloat(f, 'g', -1, bits)
}

// timeText writes an instant as PostgreSQL does, in UTC.
func timeText(t time.Time) string { return writeTime(t.UTC(), "-07") }

// zonedText writes a time with the zone that it has: a timestamp without time zone takes none but UTC.
func zonedText(t time.Time) string {
	if _, offset := t.Zone(); offset == 0 {
		return timeText(t)
	}
	return writeTime(t, "-07:00:00")
}

func writeTime(t time.Time, zone string) string {
	year, era := t.Year(), ""
	if year < 1 {
		year, era = 1-year, " BC"
	}
	return fmt.Sprintf("%04d-%s%s", year, t.Format("01-02 15:04:05.999999"+zone), era)
}

// timePattern is ISO 8601 as PostgreSQL writes it, and RFC 3339.
// https://www.postgresql.org/docs/current/datatype-datetime.html#DATATYPE-DATETIME-INPUT
var timePattern = regexp.MustCompile(`^(\d{4,7})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?)?(?: ?(Z|[+-]\d\d(?::?\d\d(?::\d\d)?)?))?( BC)?$`)

// moment is a parsed date or time.
type moment struct {
	at       time.Time
	infinite int // 1, -1; 0: at counts
	clock    bool
	zone     bool
}

func parseMoment(s string) (moment, bool) {
	s = strings.TrimSpace(s)
	switch strings.ToLower(s) {
	case "infinity", "+infinity":
		return moment{infinite: 1}, true
	case "-infinity":
		return moment{infinite: -1}, true
	}
	m := timePattern.FindStringSubmatch(s)
	if m == nil {
		return moment{}, false
	}
	n := func(i int) int { v, _ := strconv.Atoi(m[i]); return v }
	year := n(1)
	if year == 0 {
		return moment{}, false
	}
	if m[9] != "" {
		year = 1 - year
	}
	micros := 0.0
	if m[7] != "" { // PostgreSQL rounds the fraction to microseconds, half to even
		f, _ := strconv.ParseFloat("0"+m[7], 64)
		micros = math.RoundToEven(f * 1e6)
	}
	hour, minute, second := n(4), n(5), n(6)
	if hour > 24 || minute > 59 || second > 60 || hour == 24 && (minute > 0 || second > 0 || micros > 0) {
		return moment{}, false
	}
	day := time.Date(year, time.Month(n(2)), n(3), 0, 0, 0, 0, time.UTC)
	if int(day.Month()) != n(2) || day.Day() != n(3) {
		return moment{}, false
	}
	offset, ok := parseOffset(m[8])
	at := day.Add(time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute + time.Duration(second-offset)*time.Second + time.Duration(micros)*time.Microsecond)
	return moment{at: at, clock: m[4] != "", zone: m[8] != ""}, ok
}

// parseOffset reads a zone's seconds east of UTC.
func parseOffset(s string) (int, bool) {
	if s == "" || s == "Z" {
		return 0, true
	}
	digits := strings.ReplaceAll(s[1:], ":", "")
	seconds := 0
	for unit := 3600; digits != ""; unit /= 60 {
		n, _ := strconv.Atoi(digits[:2])
		if unit < 3600 && n > 59 || n > 15 && unit == 3600 {
			return 0, false
		}
		seconds += n * unit
		digits = digits[2:]
	}
	if s[0] == '-' {
		seconds = -seconds
	}
	return seconds, true
}

// parseBool reads what PostgreSQL's boolean input takes.
// https://www.postgresql.org/docs/current/datatype-boolean.html
func parseBool(s string) (value, ok bool) {
	s = strings.ToLower(strings.TrimSpace(s))
	switch {
	case s == "":
		return false, false
	case s == "1" || s == "on" || strings.HasPrefix("true", s) || strings.HasPrefix("yes", s):
		return true, true
	case s == "0" || s == "of" || s == "off" || strings.HasPrefix("false", s) || strings.HasPrefix("no", s):
		return false, true
	}
	return false, false
}

var uuidPattern = regexp.MustCompile(`^[0-9a-fA-F]{4}(?:-?[0-9a-fA-F]{4}){7}$`)

// parseUUID gives a UUID in PostgreSQL's own form.
// https://www.postgresql.org/docs/current/datatype-uuid.html
func parseUUID(s string) (string, bool) {
	if inner, ok := strings.CutPrefix(s, "{"); ok {
		if s, ok = strings.CutSuffix(inner, "}"); !ok {
			return "", false
		}
	}
	if !uuidPattern.MatchString(s) {
		return "", false
	}
	h := strings.ToLower(strings.ReplaceAll(s, "-", ""))
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:], true
}
