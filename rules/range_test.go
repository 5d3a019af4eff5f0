package rules_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// bindEq binds Eq(column, v) to a column of a built-in type.
func bindEq(oid uint32, v any) (rules.Func, error) {
	rel := &decode.Relation{OID: 1, Schema: "public", Name: "p", Identity: decode.IdentityFull,
		Columns: []decode.Column{{Name: "a", Type: decode.BuiltinType(oid), Modifier: -1, Key: true}}}
	_, f, err := rules.Bind([]rules.Rule{rules.Filter(rules.Eq("a", v), rules.DropTruncate())}, rel)
	return f, err
}

func TestATimeWithAZoneIsNoTimestampWithoutOne(t *testing.T) {
	const date, timestamp, timestamptz = 1082, 1114, 1184
	zurich, lmt := time.FixedZone("CET", 3600), time.FixedZone("LMT", 34*60+8)
	for name, c := range map[string]struct {
		oid   uint32
		v     time.Time
		equal string // "": refused
	}{
		"UTC":                      {timestamp, time.Date(2024, 5, 6, 7, 8, 9, 123000, time.UTC), "2024-05-06 07:08:09.000123"},
		"no offset":                {timestamp, time.Date(2024, 5, 6, 7, 8, 9, 0, time.FixedZone("GMT", 0)), "2024-05-06 07:08:09"},
		"a zone":                   {timestamp, time.Date(2024, 5, 6, 7, 8, 9, 0, zurich), ""},
		"an instant":               {timestamptz, time.Date(2024, 5, 6, 7, 8, 9, 0, zurich), "2024-05-06 06:08:09+00"},
		"an instant, with seconds": {timestamptz, time.Date(1850, 5, 6, 7, 8, 9, 0, lmt), "1850-05-06 06:34:01+00"},
		"an instant BC":            {timestamptz, time.Date(-43, 1, 1, 0, 30, 0, 0, zurich), "0045-12-31 23:30:00+00 BC"},
		"a date":                   {date, time.Date(2024, 5, 6, 0, 0, 0, 0, time.UTC), "2024-05-06"},
		"a date with a zone":       {date, time.Date(2024, 5, 6, 0, 0, 0, 0, zurich), ""},
		"a date at noon":           {date, time.Date(2024, 5, 6, 12, 0, 0, 0, time.UTC), ""},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := bindEq(c.oid, c.v)
			if c.equal == "" {
				if !errors.Is(err, rules.ErrType) || !strings.Contains(err.Error(), "time") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			keep, err := f(&decode.Change{Op: decode.OpInsert, New: decode.Row{decode.TextValue(decode.BuiltinType(c.oid), []byte(c.equal))}})
			if !keep || err != nil {
				t.Errorf("%s is not equal to %s: %v", c.v, c.equal, err)
			}
		})
	}
}

func TestValuesThatNoColumnHoldsAreRefused(t *testing.T) {
	for _, c := range []struct {
		oid uint32
		v   string
		ok  bool
	}{
		{1082, "5874897-12-31", true}, {1082, "5874898-01-01", false}, {1082, "4714-11-24 BC", true}, {1082, "4714-11-23 BC", false}, {1082, "2023-02-29", false},
		{1114, "294276-12-31 23:59:59.999999", true}, {1114, "294277-01-01", false}, {1114, "4714-11-24 00:00:00 BC", true}, {1114, "4714-11-23 23:59:59 BC", false},
		{1184, "294276-12-31 23:59:59+00", true}, {1184, "294276-12-31 23:59:59-01", false}, {1184, "4714-11-24 00:00:00+01 BC", false},
		{1083, "24:00:00", true}, {1083, "23:59:60", true}, {1083, "24:00:01", false}, {1083, "12:60:00", false}, {1083, "12:00:61", false},
		{1186, "2147483647 days", true}, {1186, "2147483648 days", false}, {1186, "2147483648 mons", false}, {1186, "178956971 years", false}, {1186, "10:00:61", false}, {1186, "10:61:00", false},
		{701, "1e308", true}, {701, "1e309", false}, {701, "1e-320", true}, {701, "1e-400", false}, {701, "0e-400", true},
		{700, "1e38", true}, {700, "1e39", false}, {700, "1e-50", false},
		// Numbers are compared as such, whatever the column's width.
		{21, "40000", true}, {23, "17.5", true}, {26, "-1", true},
	} {
		_, err := bindEq(c.oid, c.v)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, rules.ErrType) {
			t.Errorf("%s %q: %v", decode.BuiltinType(c.oid).Name, c.v, err)
		}
	}
}
