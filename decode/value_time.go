package decode

import (
	"bytes"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Time gives a timestamptz as an instant, a timestamp as that clock reading in UTC, and a date as its
// first moment in UTC. Years BC are time's years up to 0: 1 BC is 0, 4714 BC is -4713. infinity and
// -infinity are ErrNotFinite.
func (v Value) Time() (time.Time, error) {
	t, inf, err := v.moment("Time")
	if err == nil && inf != pgtype.Finite {
		err = v.fail("Time", ErrNotFinite)
	}
	return t, err
}

func (v Value) moment(want string) (time.Time, pgtype.InfinityModifier, error) {
	f, _, err := v.need(want, 1<<formDate|1<<formTimestamp|1<<formTimestamptz)
	if err != nil {
		return time.Time{}, 0, err
	}
	switch f {
	case formDate:
		d, err := scanText[pgtype.Date](pgtype.DateCodec{}, v.data)
		if err == nil {
			return d.Time, d.InfinityModifier, nil
		}
	case formTimestamp:
		t, err := scanText[pgtype.Timestamp](&pgtype.TimestampCodec{}, v.data)
		if err == nil {
			return t.Time, t.InfinityModifier, nil
		}
	default:
		t, err := scanText[pgtype.Timestamptz](&pgtype.TimestamptzCodec{ScanLocation: time.UTC}, v.data)
		if err == nil {
			return t.Time, t.InfinityModifier, nil
		}
	}
	return time.Time{}, 0, v.fail(want, ErrMalformed)
}

// TimeOfDay gives a time as what has passed since midnight, up to 24 hours included.
func (v Value) TimeOfDay() (time.Duration, error) {
	if _, _, err := v.need("TimeOfDay", 1<<formTime); err != nil {
		return 0, err
	}
	d, ok := timeOfDay(v.data)
	if !ok {
		return 0, v.fail("TimeOfDay", ErrMalformed)
	}
	return d, nil
}

// timeOfDay reads "hh:mm:ss" and a fraction. pgtype passes over what it doesn't understand.
func timeOfDay(text []byte) (time.Duration, bool) {
	const whole = len("hh:mm:ss")
	if len(text) < whole || len(text) > whole && (text[whole] != '.' || digits(text[whole+1:]) != len(text)-whole-1) {
		return 0, false
	}
	t, err := scanText[pgtype.Time](pgtype.TimeCodec{}, text)
	d := time.Duration(t.Microseconds) * time.Microsecond
	return d, err == nil && d >= 0 && d <= 24*time.Hour
}

// TimeTZ is a timetz: a time of day and a zone.
type TimeTZ struct {
	Time   time.Duration // since midnight in that zone
	Offset int           // seconds east of UTC
}

// TimeTZ gives a timetz.
func (v Value) TimeTZ() (TimeTZ, error) {
	if _, _, err := v.need("TimeTZ", 1<<formTimetz); err != nil {
		return TimeTZ{}, err
	}
	if i := bytes.LastIndexAny(v.data, "+-"); i > 0 {
		t, ok1 := timeOfDay(v.data[:i])
		offset, ok2 := zoneOffset(v.data[i:])
		if ok1 && ok2 {
			return TimeTZ{Time: t, Offset: offset}, nil
		}
	}
	return TimeTZ{}, v.fail("TimeTZ", ErrMalformed)
}

// zoneOffset reads "+hh", "-hh:mm" or "+hh:mm:ss".
func zoneOffset(text []byte) (seconds int, ok bool) {
	negative := text[0] == '-'
	text = text[1:]
	for unit := 3600; unit > 0; unit /= 60 {
		if len(text) < 2 || digits(text[:2]) != 2 {
			return 0, false
		}
		seconds += unit * (int(text[0]-'0')*10 + int(text[1]-'0'))
		if text = text[2:]; len(text) == 0 {
			if negative {
				seconds = -seconds
			}
			return seconds, true
		}
		if text[0] != ':' {
			return 0, false
		}
		text = text[1:]
	}
	return 0, false
}

// Interval gives an interval in its three parts, which PostgreSQL keeps apart: months, days and
// microseconds. infinity and -infinity (PostgreSQL 17) are ErrNotFinite.
func (v Value) Interval() (pgtype.Interval, error) {
	if _, _, err := v.need("Interval", 1<<formInterval); err != nil {
		return pgtype.Interval{}, err
	}
	if infinity(v.data) != 0 {
		return pgtype.Interval{}, v.fail("Interval", ErrNotFinite)
	}
	i, err := scanText[pgtype.Interval](pgtype.IntervalCodec{}, v.data)
	if err != nil {
		return pgtype.Interval{}, v.fail("Interval", ErrMalformed)
	}
	return i, nil
}
