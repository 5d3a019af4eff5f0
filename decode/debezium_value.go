package decode

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// appendDebeziumValue appends a value that is not absent. modifier is its column's.
func appendDebeziumValue(dst []byte, v Value, modifier int32) []byte {
	f, _ := formOf(v.typ)
	switch v.presence {
	case Unchanged:
		return appendUnavailable(dst, f)
	case Null:
		return append(dst, "null"...)
	}
	if out, ok := appendDebeziumForm(dst, v, f, modifier); ok {
		return out
	}
	return appendValue(dst, &v)
}

func appendUnavailable(dst []byte, f form) []byte {
	switch f {
	case formBytea:
		dst = append(dst, '"')
		return append(base64.StdEncoding.AppendEncode(dst, []byte(DebeziumUnavailable)), '"')
	case formArray:
		return append(append(append(dst, `["`...), DebeziumUnavailable...), `"]`...)
	}
	return append(append(append(dst, '"'), DebeziumUnavailable...), '"')
}

// appendDebeziumForm appends what Debezium writes in a way of its own; false for all else.
func appendDebeziumForm(dst []byte, v Value, f form, modifier int32) ([]byte, bool) {
	switch f {
	case formJSON:
		return appendString(dst, v.data), true
	case formDate, formTimestamp, formTimestamptz:
		t, err := v.Time()
		if err != nil {
			return dst, false
		}
		return appendDebeziumTime(dst, t, f, modifier)
	case formTime:
		t, err := v.TimeOfDay()
		if err != nil {
			return dst, false
		}
		return strconv.AppendInt(dst, int64(t/debeziumUnit(modifier)), 10), true
	case formTimetz:
		t, err := v.TimeTZ()
		if err != nil {
			return dst, false
		}
		const day = 24 * time.Hour
		utc := ((t.Time-time.Duration(t.Offset)*time.Second)%day + day) % day
		return time.Time{}.Add(utc).AppendFormat(dst, `"15:04:05.999999Z"`), true
	case formInterval:
		i, err := v.Interval()
		if err != nil {
			return dst, false
		}
		return appendISOInterval(dst, i), true
	case formMoney:
		var buf [32]byte
		if n := plainMoney(buf[:0], v.data); isJSONNumber(n) {
			return append(dst, n...), true
		}
	case formHstore:
		h, err := v.Hstore()
		if err != nil {
			return dst, false
		}
		object, err := json.Marshal(h)
		return appendString(dst, object), err == nil
	case formArray, formVector:
		a, err := v.Array()
		if err != nil {
			return dst, false
		}
		return appendDebeziumArray(dst, &a, modifier), true
	}
	return dst, false
}

// debeziumUnit is what Debezium counts times of a column in: milliseconds if its declared precision
// needs no more, else microseconds. The type modifier of a time or timestamp is its precision.
func debeziumUnit(modifier int32) time.Duration {
	if modifier >= 0 && modifier <= 3 {
		return time.Millisecond
	}
	return time.Microsecond
}

func appendDebeziumTime(dst []byte, t time.Time, f form, modifier int32) ([]byte, bool) {
	seconds := t.Unix()
	switch {
	case f == formTimestamptz:
		if t.Year() < 1 || t.Year() > 9999 {
			return dst, false
		}
		return t.AppendFormat(dst, `"2006-01-02T15:04:05.999999Z"`), true
	case f == formDate:
		return strconv.AppendInt(dst, seconds/(24*60*60), 10), true // no part of a day: exact for negative ones, too
	case debeziumUnit(modifier) == time.Millisecond:
		return strconv.AppendInt(dst, t.UnixMilli(), 10), true
	case seconds >= math.MaxInt64/1_000_000 || seconds <= math.MinInt64/1_000_000:
		return dst, false
	}
	return strconv.AppendInt(dst, t.UnixMicro(), 10), true
}

// appendISOInterval appends "P1Y2M3DT4H5M6.78S" with all of its parts, each with its sign.
func appendISOInterval(dst []byte, i pgtype.Interval) []byte {
	const minute = 60 * 1000 * 1000
	dst = append(strconv.AppendInt(append(dst, `"P`...), int64(i.Months/12), 10), 'Y')
	dst = append(strconv.AppendInt(dst, int64(i.Months%12), 10), 'M')
	dst = append(strconv.AppendInt(dst, int64(i.Days), 10), `DT`...)
	dst = append(strconv.AppendInt(dst, i.Microseconds/(60*minute), 10), 'H')
	dst = append(strconv.AppendInt(dst, i.Microseconds/minute%60, 10), 'M')
	rest := i.Microseconds % minute
	if rest < 0 {
		dst, rest = append(dst, '-'), -rest
	}
	dst = strconv.AppendInt(dst, rest/1e6, 10)
	if rest %= 1e6; rest != 0 {
		digits := strconv.AppendInt(nil, 1e6+rest, 10) // a one before six digits
		dst = append(append(dst, '.'), bytes.TrimRight(digits[1:], "0")...)
	}
	return append(dst, `S"`...)
}

// appendDebeziumArray appends an array in the other for each dimension.
func appendDebeziumArray(dst []byte, a *pgtype.Array[Value], modifier int32) []byte {
	if len(a.Elements) == 0 {
		return append(dst, "[]"...)
	}
	for i := range a.Elements {
		if i > 0 {
			dst = append(dst, ',')
		}
		size := 1 // of the dimensions that begin, and end, here
		for d := len(a.Dims) - 1; d >= 0; d-- {
			if size *= int(a.Dims[d].Length); i%size == 0 {
				dst = append(dst, '[')
			}
		}
		dst = appendDebeziumValue(dst, a.Elements[i], modifier)
		size = 1
		for d := len(a.Dims) - 1; d >= 0; d-- {
			if size *= int(a.Dims[d].Length); (i+1)%size == 0 {
				dst = append(dst, ']')
			}
		}
	}
	return dst
}
