package rules_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/rules"
)

// one is a table with a key and a column of some type.
func one(typ *decode.Type, modifier int32) *decode.Relation {
	return &decode.Relation{Schema: "public", Name: "one", Identity: decode.IdentityDefault, Columns: []decode.Column{
		{Name: "id", Type: tText, Modifier: -1, Key: true}, {Name: "v", Type: typ, Modifier: modifier},
	}}
}

// apply runs rules on one value.
func apply(t *testing.T, typ *decode.Type, modifier int32, v string, rs ...rules.Rule) string {
	t.Helper()
	_, f := mustBind(t, one(typ, modifier), rs...)
	got, err := run(t, f, ins, "", "1|"+v, false)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(got.new, "1|")
}

func TestRegexReplacesByGroups(t *testing.T) {
	for _, c := range []struct{ pattern, replace, in, want string }{
		{`^(\d{3})(\d{3})(\d{4})$`, "($1) $2-$3", "5551234567", "(555) 123-4567"},
		{`^(\d{3})(\d{3})(\d{4})$`, "($1) $2-$3", "555", "555"},
		{`(?P<user>[^@]+)@`, "${user}x$$", "ann@b", "annx$b"},
		{`日(.)`, "$1!", "日本日語", "本!語!"},
		{`.`, "", "日本", ""}, {`x`, "y", "NULL", "NULL"}, {`x`, "y", "~", "~"}, {`^$`, "empty", "", "empty"},
	} {
		if got := apply(t, tText, -1, c.in, rules.Regex("v", c.pattern, c.replace)); got != c.want {
			t.Errorf("%s → %s: %q became %q, want %q", c.pattern, c.replace, c.in, got, c.want)
		}
	}
	if got := apply(t, tChar, 4+6, "ab    ", rules.Regex("v", "b$", "x")); got != "ax" {
		t.Errorf("char(6): %q", got)
	}
	for _, r := range []rules.Rule{rules.Regex("", "x", ""), rules.Regex("v", "(", ""), rules.Regex("v", "(x)", "$2"), rules.Regex("v", "(x)", "$1a"), rules.Regex("v", "x", "5$"), rules.Regex("v", "x", "\x00"), rules.Regex("v", "x", "\xff"), rules.Regex("v", "x", "${a")} {
		if err := rules.Validate(r); !errors.Is(err, rules.ErrInvalidRule) {
			t.Errorf("%v: %v", r, err)
		}
	}
	if _, _, err := rules.Bind([]rules.Rule{rules.Regex("v", "x", "y")}, one(tInt, -1)); !errors.Is(err, rules.ErrType) {
		t.Error(err)
	}
}

var secret = []byte("0123456789abcdef")

func TestHashIsAKeyedSHA256OfTheValue(t *testing.T) {
	sum := func(s string) []byte {
		h := hmac.New(sha256.New, secret)
		h.Write([]byte(s))
		return h.Sum(nil)
	}
	digits := hex.EncodeToString(sum("ann"))
	for _, c := range []struct {
		typ      *decode.Type
		modifier int32
		in, want string
	}{
		{tText, -1, "ann", digits}, {tDomain, -1, "ann", digits}, {builtin("varchar"), 4 + 64, "ann", digits}, {tChar, 4 + 64, "ann   ", digits},
		{tCitext, -1, "ANN", digits}, {builtin("bytea"), -1, "ann", `\x` + digits}, {tText, -1, "NULL", "NULL"}, {tText, -1, "", hex.EncodeToString(sum(""))},
		{builtin("uuid"), -1, "ann", digits[:8] + "-" + digits[8:12] + "-8" + digits[13:16] + "-" + fmt.Sprintf("%02x", sum("ann")[8]&0x3f|0x80) + digits[18:20] + "-" + digits[20:32]},
	} {
		if got := apply(t, c.typ, c.modifier, c.in, rules.Hash("v", secret)); got != c.want {
			t.Errorf("%s: %q became %q, want %q", c.typ.Name, c.in, got, c.want)
		}
	}
	for _, c := range []decode.Column{{Type: tInt}, {Type: builtin("varchar"), Modifier: 4 + 63}, {Type: tChar, Modifier: 4 + 10}, {Type: builtin("jsonb")}, {}} {
		if _, _, err := rules.Bind([]rules.Rule{rules.Hash("v", secret)}, one(c.Type, c.Modifier)); !errors.Is(err, rules.ErrType) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := rules.Validate(rules.Hash("v", secret[:15])); !errors.Is(err, rules.ErrInvalidRule) || strings.Contains(err.Error(), string(secret[:15])) {
		t.Error(err)
	}
}

func TestHashChangesKeysOnlyWhenAsked(t *testing.T) {
	for _, c := range []struct {
		rule rules.Rule
		ok   bool
	}{
		{rules.Hash("id", secret), false}, {rules.Hash("id", secret, rules.HashKey()), true},
		{rules.On(rules.Hash("id", secret, rules.HashKey()), ins), false},
	} {
		_, f, err := rules.Bind([]rules.Rule{c.rule}, one(tText, -1))
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, rules.ErrKeyColumn) {
			t.Fatal(err)
		}
		if !c.ok {
			continue
		}
		got, err := run(t, f, upd, "7|-", "7|x", true)
		if old, new := strings.TrimSuffix(got.old, "|-"), strings.TrimSuffix(got.new, "|x"); err != nil || old != new || len(old) != 64 {
			t.Errorf("%+v, %v", got, err)
		}
	}
}

func TestConstAndSetNullReplaceEverythingThatIsThere(t *testing.T) {
	for _, c := range []struct{ in, null, value string }{{"x", "NULL", "c"}, {"NULL", "NULL", "c"}, {"~", "NULL", "c"}, {"-", "-", "-"}} {
		if got := apply(t, tText, -1, c.in, rules.SetNull("v")); got != c.null {
			t.Errorf("SetNull: %s became %s", c.in, got)
		}
		if got := apply(t, tText, -1, c.in, rules.Const("v", "c")); got != c.value {
			t.Errorf("Const: %s became %s", c.in, got)
		}
	}
}

func TestConstHasToFitTheColumn(t *testing.T) {
	num := func(p, s int32) int32 { return 4 + (p<<16 | s) }
	for _, c := range []struct {
		typ      string
		modifier int32
		value    any
		want     string // "" if it does not fit
	}{
		{"int2", -1, 32767, "32767"}, {"int2", -1, 32768, ""}, {"int4", -1, "1e3", "1000"}, {"int4", -1, 1.5, ""}, {"int8", -1, uint64(1) << 63, ""},
		{"numeric", num(5, 2), "123.45", "123.45"}, {"numeric", num(5, 2), "1234.5", ""}, {"numeric", num(5, 2), "1.234", ""}, {"numeric", -1, "NaN", "NaN"}, {"numeric", num(5, 2), "Infinity", ""},
		{"varchar", 4 + 3, "日本語", "日本語"}, {"varchar", 4 + 3, "日本語!", ""}, {"text", -1, 5, ""}, {"bool", -1, true, "t"}, {"bool", -1, "off", "f"},
		{"uuid", -1, "A0EEBC999C0B4EF8BB6D6BB9BD380A11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}, {"bytea", -1, []byte{1, 255}, `\x01ff`},
		{"date", -1, "2024-02-29", "2024-02-29"}, {"timestamptz", -1, "2024-02-29T12:00:00.5+01:00", "2024-02-29 11:00:00.5+00"}, {"timestamp", -1, "0044-03-15 01:02:03 BC", "0044-03-15 01:02:03 BC"},
		{"jsonb", -1, `{"a": [1]}`, `{"a": [1]}`}, {"json", -1, `{a}`, ""}, {"tsvector", -1, "a", ""}, {"float4", -1, 0.1, "0.1"}, {"oid", -1, -1, ""},
	} {
		_, f, err := rules.Bind([]rules.Rule{rules.Const("v", c.value)}, one(builtin(c.typ), c.modifier))
		if c.want == "" {
			if !errors.Is(err, rules.ErrType) {
				t.Errorf("%s, %v: %v", c.typ, c.value, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s, %v: %v", c.typ, c.value, err)
			continue
		}
		if got, _ := run(t, f, ins, "", "1|x", false); got.new != "1|"+c.want {
			t.Errorf("%s, %v: %s", c.typ, c.value, got.new)
		}
	}
}

func TestMapAndCast(t *testing.T) {
	upper := rules.Map("v", func(v decode.Value) (decode.Value, error) {
		if v.String() == "bad" {
			return v, errors.New("no good")
		}
		return decode.TextValue(v.Type(), []byte(strings.ToUpper(v.String()))), nil
	})
	if got := apply(t, tText, -1, "é", upper) + apply(t, tText, -1, "NULL", upper); got != "ÉNULL" {
		t.Error(got)
	}
	_, f := mustBind(t, one(tText, -1), upper)
	if _, err := run(t, f, ins, "", "1|bad", false); err == nil || !strings.Contains(err.Error(), `table public.one, column "v": no good`) {
		t.Error(err)
	}
	for _, c := range []struct {
		from, to string
		ok       bool
	}{{"int4", "text", true}, {"int4", "bigint", true}, {"int8", "int4", false}, {"text", "int4", false}, {"jsonb", "json", true}, {"float8", "numeric", false}, {"int8", "int8", true}} {
		out, _, err := rules.Bind([]rules.Rule{rules.Cast("v", c.to)}, one(builtin(c.from), -1))
		if (err == nil) != c.ok || err != nil && !errors.Is(err, rules.ErrType) {
			t.Errorf("%+v: %v", c, err)
		}
		if c.ok && out.Columns[1].Type.OID == 0 {
			t.Errorf("%+v: %+v", c, out.Columns[1].Type)
		}
	}
	if _, _, err := rules.Bind([]rules.Rule{rules.On(rules.Cast("v", "text"), ins)}, one(tInt, -1)); !errors.Is(err, rules.ErrInvalidRule) {
		t.Error(err)
	}
	if err := rules.Validate(rules.Cast("v", "money")); err == nil || !strings.Contains(err.Error(), "float8, int4") {
		t.Error(err)
	}
}

func TestAllRulesMayRunConcurrently(t *testing.T) {
	in := person(decode.IdentityFull)
	_, f := mustBind(t, in,
		rules.Where(rules.And(rules.Gte("age", 18), rules.Or(rules.In("email", "a", "margaret"), rules.Matches("ssn", "^x")), rules.Not(rules.IsNull("balance")), rules.Lt("balance", "1e9"))),
		rules.Filter(rules.Contains("email", "ret")), rules.Mask("email"), rules.Regex("phone", "(5+)", "<$1>"), rules.Hash("ssn", secret),
		rules.Const("weight", 5), rules.SetNull("rating"), rules.Cast("score", "numeric"), rules.Exclude("age"), rules.Route("shop.users", "a.b", rules.Only(ins, upd)),
	)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				c := decode.Change{Op: upd, Old: row("1|margaret|0|17|x|7|3|4|5"), New: row("1|~|555|18|x|7|3|4|5")}
				keep, err := f(&c)
				if got := show(c.New); err != nil || !keep || c.Op != ins || !strings.HasPrefix(got, "1|m******t|<555>|") || !strings.HasSuffix(got, "|7|3|NULL|5") || c.Relation.Name != "b" {
					t.Error(c.Op, got, keep, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
