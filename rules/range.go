package rules

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// inRange reports whether a date, timestamp or timestamptz can be this instant: from Julian day 0 on.
// https://www.postgresql.org/docs/current/datatype-datetime.html
func inRange(typ string, at time.Time) bool {
	first, end := time.Date(-4713, time.November, 24, 0, 0, 0, 0, time.UTC), time.Date(294277, time.January, 1, 0, 0, 0, 0, time.UTC)
	if typ == "date" {
		end = time.Date(5874898, time.January, 1, 0, 0, 0, 0, time.UTC)
	}
	return !at.Before(first) && at.Before(end)
}

// clockInRange checks the minutes and seconds of "hh:mm:ss" and a fraction; a second may be 60.
func clockInRange(text string) bool {
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return false
	}
	second, _, _ := strings.Cut(parts[2], ".")
	m, merr := strconv.Atoi(parts[1])
	s, serr := strconv.Atoi(second)
	return merr == nil && serr == nil && m >= 0 && m <= 59 && s >= 0 && s <= 60
}

// maxHours is how many an interval's 64 bits of microseconds hold.
const maxHours = math.MaxInt64/int64(time.Hour/time.Microsecond) - 1

// intervalInRange checks an interval in PostgreSQL's own form: 32 bits of months and of days, 64 of microseconds.
// https://github.com/postgres/postgres/blob/master/src/include/datatype/timestamp.h (Interval)
func intervalInRange(text string) bool {
	var months, days int64
	fields := strings.Fields(text)
	for len(fields) >= 2 {
		n, err := strconv.ParseInt(fields[0], 10, 32)
		if err != nil {
			return false
		}
		switch strings.TrimSuffix(fields[1], "s") {
		case "year":
			months += 12 * n
		case "mon":
			months += n
		case "day":
			days += n
		default:
			return false
		}
		fields = fields[2:]
	}
	if months != int64(int32(months)) || days != int64(int32(days)) {
		return false
	}
	if len(fields) == 0 {
		return true
	}
	hours, _, _ := strings.Cut(fields[0], ":")
	h, err := strconv.ParseInt(strings.TrimLeft(hours, "+-"), 10, 64)
	return err == nil && h <= maxHours && clockInRange(fields[0])
}
