package decode_test

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/pgflo/flo/decode"
)

// access is all typed access by name.
var access = map[string]func(decode.Value) (any, error){
	"Int64":      func(v decode.Value) (any, error) { return v.Int64() },
	"Uint64":     func(v decode.Value) (any, error) { return v.Uint64() },
	"Float64":    func(v decode.Value) (any, error) { return v.Float64() },
	"Bool":       func(v decode.Value) (any, error) { return v.Bool() },
	"Bytea":      func(v decode.Value) (any, error) { return v.Bytea() },
	"JSON":       func(v decode.Value) (any, error) { return v.JSON() },
	"Numeric":    func(v decode.Value) (any, error) { return v.Numeric() },
	"Rat":        func(v decode.Value) (any, error) { return v.Rat() },
	"UUID":       func(v decode.Value) (any, error) { return v.UUID() },
	"LSN":        func(v decode.Value) (any, error) { return v.LSN() },
	"Label":      func(v decode.Value) (any, error) { s, _, err := v.Label(); return s, err },
	"Time":       func(v decode.Value) (any, error) { return v.Time() },
	"TimeOfDay":  func(v decode.Value) (any, error) { return v.TimeOfDay() },
	"TimeTZ":     func(v decode.Value) (any, error) { return v.TimeTZ() },
	"Interval":   func(v decode.Value) (any, error) { return v.Interval() },
	"Prefix":     func(v decode.Value) (any, error) { return v.Prefix() },
	"MAC":        func(v decode.Value) (any, error) { return v.MAC() },
	"Bits":       func(v decode.Value) (any, error) { return v.Bits() },
	"Point":      func(v decode.Value) (any, error) { return v.Point() },
	"Line":       func(v decode.Value) (any, error) { return v.Line() },
	"Lseg":       func(v decode.Value) (any, error) { return v.Lseg() },
	"Box":        func(v decode.Value) (any, error) { return v.Box() },
	"Path":       func(v decode.Value) (any, error) { return v.Path() },
	"Polygon":    func(v decode.Value) (any, error) { return v.Polygon() },
	"Circle":     func(v decode.Value) (any, error) { return v.Circle() },
	"TID":        func(v decode.Value) (any, error) { return v.TID() },
	"TSVector":   func(v decode.Value) (any, error) { return v.TSVector() },
	"Hstore":     func(v decode.Value) (any, error) { return v.Hstore() },
	"Array":      func(v decode.Value) (any, error) { return v.Array() },
	"Range":      func(v decode.Value) (any, error) { return v.Range() },
	"Multirange": func(v decode.Value) (any, error) { return v.Multirange() },
	"Composite":  func(v decode.Value) (any, error) { return v.Composite() },
}

func builtin(oid uint32, text string) decode.Value {
	return decode.TextValue(decode.BuiltinType(oid), []byte(text))
}

// userType makes types that a user would have created.
func userType(kind decode.TypeKind, elem *decode.Type) *decode.Type {
	return &decode.Type{OID: 20000, Schema: "public", Name: "own", Kind: kind, Elem: elem}
}

func pairType() *decode.Type {
	t := userType(decode.CompositeType, nil)
	t.Fields = []decode.Field{{Name: "a", Type: decode.BuiltinType(23)}, {Name: "b", Type: decode.BuiltinType(25)}}
	return t
}

func TestNullAbsentAndUnchangedNeverLookLikeValues(t *testing.T) {
	types := []*decode.Type{nil, pairType(), userType(decode.EnumType, nil)}
	for oid := range uint32(5000) {
		if typ := decode.BuiltinType(oid); typ != nil {
			types = append(types, typ)
		}
	}
	for _, typ := range types {
		for _, v := range []decode.Value{{}, decode.NullValue(typ), decode.UnchangedValue(typ)} {
			all := map[string]func(decode.Value) (any, error){
				"Text": func(v decode.Value) (any, error) { return v.Text() },
				"Any":  func(v decode.Value) (any, error) { return v.Any() },
			}
			for name, f := range access {
				all[name] = f
			}
			for name, f := range all {
				got, err := f(v)
				if name == "Any" && v.IsNull() {
					if got != nil || err != nil {
						t.Fatalf("Any of NULL: %v, %v", got, err)
					}
					continue
				}
				var typed *decode.TypeError
				if !errors.Is(err, decode.ErrNoValue) || !errors.As(err, &typed) || typed.Presence != v.Presence() || typed.Type != v.Type() {
					t.Fatalf("%s of a %s %+v: %v, %v", name, v.Presence(), typ, got, err)
				}
				if got != nil && !reflect.ValueOf(got).IsZero() {
					t.Fatalf("%s gives %v beside its error", name, got)
				}
			}
			if v.Infinity() != 0 {
				t.Fatal("infinite")
			}
		}
	}
}

func TestAnotherTypeIsErrType(t *testing.T) {
	texts := map[string]bool{}
	for name, f := range access {
		_, err := f(builtin(pgtype.TextOID, "1"))
		if !errors.Is(err, decode.ErrType) || !strings.Contains(err.Error(), "pg_catalog.text") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		texts[name] = true
	}
	for _, v := range []decode.Value{builtin(20, "1"), builtin(1700, "1"), builtin(790, "$1.00")} {
		if _, err := v.Float64(); !errors.Is(err, decode.ErrType) {
			t.Errorf("Float64 of a %s, which it can't hold: %v", v.Type().Name, err)
		}
	}
}

// malformedValues are texts that PostgreSQL never sends for the type.
var malformedValues = []struct {
	typ   *decode.Type
	texts []string
}{
	{decode.BuiltinType(16), []string{"", "true", "T"}},
	{decode.BuiltinType(21), []string{"", "x", "32768", "1.0", "0x1", " 1"}},
	{decode.BuiltinType(23), []string{"2147483648"}},
	{decode.BuiltinType(26), []string{"-1", "4294967296"}},
	{decode.BuiltinType(701), []string{"", "1,5", "1e999"}},
	{decode.BuiltinType(1700), []string{"", "1e5", "1.2.3", "0x10", "inf", "-"}},
	{decode.BuiltinType(790), []string{"", "1.00", "$", "$x", "-1", "($1.00)", "€1"}},
	{decode.BuiltinType(17), []string{"", "abc", `\x0`, `\xzz`}},
	{decode.BuiltinType(2950), []string{"", "x", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1z"}},
	{decode.BuiltinType(1082), []string{"", "2024-02-30", "01/02/2024", "yesterday"}},
	{decode.BuiltinType(1184), []string{"", "2024-01-01 00:00:00", "2024-13-01 00:00:00+00"}},
	{decode.BuiltinType(1083), []string{"", "25:00:00x", "1"}},
	{decode.BuiltinType(1266), []string{"", "01:00:00", "01:00:00+1", "01:00:00+01:2", "01:00:00+01:00:00:00", "+01"}},
	{decode.BuiltinType(1186), []string{"1 fortnight", "1:2", "P1Y"}},
	{decode.BuiltinType(869), []string{"", "1.2.3", "1.2.3.4/33", "fe80::1%eth0"}},
	{decode.BuiltinType(829), []string{"", "08:00"}},
	{decode.BuiltinType(1560), []string{"102"}},
	{decode.BuiltinType(600), []string{"", "(1)", "(1,x)"}},
	{decode.BuiltinType(3220), []string{"", "0", "G/0"}},
	{decode.BuiltinType(1007), []string{"", "{", "}", "{1", "{1,", "{1,}", "{,1}", "{{}}", "{{1},2}", "{1,{2}}", "{{1,2},{3}}", "{1}}", "{1}x", "[0:1]={1}", "[0:0={1}", "[1:0]={}", "[1:1]={}",
		"[0:0]{1}", "[0:0]={{1}}", "[0:2147483647]={1}", "[-2147483648:2147483647]={1}", "{{{{{{{1}}}}}}}", `{"1`, `{"1\`, `{"1"2}`, `{1\2}`, "[99999999999:1]={1}"}},
	{pairType(), []string{"", "(", "()", "(1)", "(1,2,3)", "(1,2", "(1,2)x", `(1,"x)`, `(1,"x"y)`, `(1,x"y")`, `(1,"\`}},
	{decode.BuiltinType(3904), []string{"", "[", "[1", "[1,", "[1,2", "1,2)", "[1,2)x", "[1;2)", "emptyx", `["1,2)`}},
	{decode.BuiltinType(4451), []string{"", "{", "{[1,2)", "{[1,2),}", "{,}", "[1,2)", "{[1,2)}x", "{[1,2) [3,4)}"}},
}

func TestMalformedTextIsErrMalformedAndKeptSecret(t *testing.T) {
	for _, c := range malformedValues {
		for _, text := range c.texts {
			got, err := decode.TextValue(c.typ, []byte(text)).Any()
			if !errors.Is(err, decode.ErrMalformed) || got != nil {
				t.Errorf("%s %q: %#v, %v", c.typ.Name, text, got, err)
			}
		}
	}
	_, err := builtin(1184, "secret").Time()
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("the value is in the error: %v", err)
	}
}

func TestTypedAccess(t *testing.T) {
	vector := pgtype.Array[any]{Elements: []any{int16(1), int16(-2)}, Dims: []pgtype.ArrayDimension{{Length: 2}}, Valid: true}
	domain := userType(decode.DomainType, userType(decode.DomainType, decode.BuiltinType(23)))
	geometry := userType(decode.BaseType, nil)
	geometry.Delimiter = ':'
	for _, c := range []struct {
		v    decode.Value
		want any
	}{
		{builtin(790, "-$92,233,720,368,547,758.08"), pgtype.Numeric{Int: big.NewInt(math.MinInt64), Exp: -2, Valid: true}},
		{builtin(790, "$0.05"), pgtype.Numeric{Int: big.NewInt(5), Exp: -2, Valid: true}},
		{builtin(1266, "24:00:00-15:59:59"), decode.TimeTZ{Time: 24 * time.Hour, Offset: -15*3600 - 59*60 - 59}},
		{builtin(1266, "01:02:03.000004+05:30"), decode.TimeTZ{Time: time.Hour + 2*time.Minute + 3*time.Second + 4*time.Microsecond, Offset: 5*3600 + 30*60}},
		{builtin(1186, "infinity"), pgtype.Infinity},
		{builtin(1186, "-infinity"), pgtype.NegativeInfinity},
		{builtin(22, "1 -2"), vector},
		{builtin(30, ""), pgtype.Array[any]{Elements: []any{}, Valid: true}},
		{decode.TextValue(domain, []byte("5")), int32(5)},
		{decode.TextValue(userType(decode.ArrayType, geometry), []byte("{a,b:NULL}")), pgtype.Array[any]{Elements: []any{"a,b", nil}, Dims: []pgtype.ArrayDimension{{Length: 2, LowerBound: 1}}, Valid: true}},
		{decode.TextValue(&decode.Type{OID: 30000, Schema: "pg_catalog", Name: "int4"}, []byte("5")), int32(5)}, // a domain known by its Type message
		{decode.TextValue(userType(decode.BaseType, nil), []byte("[1,2,3]")), "[1,2,3]"},                        // an extension's
		{decode.TextValue(userType(decode.ArrayType, nil), []byte("{1}")), "{1}"},                               // of what is not known
		{decode.TextValue(userType(decode.RangeType, nil), []byte("[1,2)")), "[1,2)"},
		{decode.TextValue(nil, []byte("x")), "x"},
	} {
		if got, err := c.v.Any(); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %q: %#v, %v, want %#v", c.v.Type().Base().Name, c.v, got, err, c.want)
		}
	}
}

func TestTimesFarAway(t *testing.T) {
	for _, c := range []struct {
		v    decode.Value
		want time.Time
		inf  int
	}{
		{builtin(1082, "0044-03-15 BC"), time.Date(-43, 3, 15, 0, 0, 0, 0, time.UTC), 0},
		{builtin(1114, "4714-11-24 00:00:00 BC"), time.Date(-4713, 11, 24, 0, 0, 0, 0, time.UTC), 0},
		{builtin(1184, "2024-01-01 00:00:00.5+05:30"), time.Date(2023, 12, 31, 18, 30, 0, 5e8, time.UTC), 0},
		{builtin(1184, "infinity"), time.Time{}, 1},
		{builtin(1082, "-infinity"), time.Time{}, -1},
	} {
		got, err := c.v.Time()
		if c.inf != 0 && !errors.Is(err, decode.ErrNotFinite) || c.inf == 0 && err != nil || !got.Equal(c.want) || c.v.Infinity() != c.inf {
			t.Errorf("%q: %v, %v, infinity %d", c.v, got, err, c.v.Infinity())
		}
	}
	if builtin(25, "infinity").Infinity() != 0 || builtin(1700, "-Infinity").Infinity() != -1 || builtin(701, "NaN").Infinity() != 0 {
		t.Error("Infinity")
	}
	if _, err := builtin(1186, "infinity").Interval(); !errors.Is(err, decode.ErrNotFinite) {
		t.Error(err)
	}
}

func TestRatIsExact(t *testing.T) {
	for text, want := range map[string]string{"1.50": "3/2", "-0.001": "-1/1000", "1200": "1200/1", "123456789012345678901234567890.5": "246913578024691357802469135781/2"} {
		if r, err := builtin(1700, text).Rat(); err != nil || r.String() != want {
			t.Errorf("%s: %v, %v", text, r, err)
		}
	}
	for _, text := range []string{"NaN", "Infinity", "-Infinity"} {
		if _, err := builtin(1700, text).Rat(); !errors.Is(err, decode.ErrNotFinite) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestLabelKnowsTheOrder(t *testing.T) {
	mood := userType(decode.EnumType, nil)
	mood.Labels = []string{"sad", "ok"}
	for label, want := range map[string]int{"sad": 0, "ok": 1, "added later": -1} {
		if got, place, err := decode.TextValue(mood, []byte(label)).Label(); err != nil || got != label || place != want {
			t.Errorf("%q: %q, %d, %v", label, got, place, err)
		}
	}
}

// TestTypesMadeOfThemselvesEnd proves that types made by hand, not by PostgreSQL, don't hang Any.
func TestTypesMadeOfThemselvesEnd(t *testing.T) {
	array := userType(decode.ArrayType, nil)
	array.Elem = array
	text := "x"
	for range 12 {
		text = `{"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"}`
	}
	if _, err := decode.TextValue(array, []byte(text)).Any(); err == nil {
		t.Error("no error")
	}
	domain := userType(decode.DomainType, nil)
	domain.Elem = domain
	if got, err := decode.TextValue(domain, []byte("x")).Any(); err != nil || got != "x" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestScalarAccessDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	n, f, b, at, id := builtin(20, "-9223372036854775808"), builtin(701, "1.5"), builtin(16, "t"), builtin(1184, "2024-01-01 00:00:00+00"), builtin(2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")
	if a := testing.AllocsPerRun(100, func() {
		_, err1 := n.Int64()
		_, err2 := f.Float64()
		_, err3 := b.Bool()
		if err := errors.Join(err1, err2, err3); err != nil || f.Infinity() != 0 {
			t.Fatal(err)
		}
	}); a != 0 {
		t.Errorf("%v allocations", a)
	}
	for name, get := range map[string]func() error{"Time": func() error { _, err := at.Time(); return err }, "UUID": func() error { _, err := id.UUID(); return err }} {
		if a := testing.AllocsPerRun(100, func() {
			if err := get(); err != nil {
				t.Fatal(err)
			}
		}); a > 4 {
			t.Errorf("%s: %v allocations", name, a)
		}
	}
}

func ExampleValue_Any() {
	for _, v := range []decode.Value{
		builtin(23, "42"), builtin(1184, "2024-02-29 12:00:00+00"), builtin(1007, "{1,NULL,3}"),
		decode.NullValue(decode.BuiltinType(25)), decode.UnchangedValue(decode.BuiltinType(25)),
	} {
		value, err := v.Any()
		fmt.Printf("%T %v, %v\n", value, value, err)
	}
	// Output:
	// int32 42, <nil>
	// time.Time 2024-02-29 12:00:00 +0000 UTC, <nil>
	// pgtype.Array[interface {}] {[1 <nil> 3] [{3 1}] true}, <nil>
	// <nil> <nil>, <nil>
	// <nil> <nil>, decode: no value: Any of a pg_catalog.text that is unchanged
}

func ExampleValue_Numeric() {
	price := builtin(1700, "123456789012345678901234567890.10")
	n, err := price.Numeric()
	fmt.Println(n.Int, n.Exp, err)
	r, err := price.Rat()
	fmt.Println(r.FloatString(2), err)
	// Output:
	// 12345678901234567890123456789010 -2 <nil>
	// 123456789012345678901234567890.10 <nil>
}

func ExampleValue_Array() {
	a, err := builtin(1009, `[0:1]={"a,b",NULL}`).Array()
	if err != nil {
		panic(err)
	}
	for i, e := range a.Elements {
		fmt.Println(int(a.Dims[0].LowerBound)+i, e.Presence(), e)
	}
	// Output:
	// 0 present a,b
	// 1 null
}

func ExampleValue_Composite() {
	row, err := decode.TextValue(pairType(), []byte(`(1,"x ""y""")`)).Composite()
	fmt.Println(row[0], row[1], err)
	// Output: 1 x "y" <nil>
}

func ExampleValue_Range() {
	r, err := builtin(3904, "[1,10)").Range()
	fmt.Println(r.Lower, r.LowerType == pgtype.Inclusive, r.Upper, r.UpperType == pgtype.Exclusive, err)
	// Output: 1 true 10 true <nil>
}
