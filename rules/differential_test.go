package rules_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// kind is a column type, the values that its rows and its conditions take, and how SQL compares it.
type kind struct {
	column, sql string
	typ         *decode.Type
	values      []string
	random      func(*rand.Rand) string
	compare     string // SQL of a comparison: %[1]s the column, %[2]s the operator, %[3]s the quoted value
	text        bool
}

func pick(r *rand.Rand, list ...string) string { return list[r.IntN(len(list))] }

func randomText(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(4) {
		b.WriteString(pick(r, "a", "b", "B", "é", "日", "🙂", " ", "'", `\`, "%", "\n", "\t", "z"))
	}
	return b.String()
}

func randomNumber(r *rand.Rand) string {
	s := strconv.FormatInt(r.Int64N(2000)-1000, 10)
	switch r.IntN(4) {
	case 0:
		return s
	case 1:
		return s + "." + strconv.Itoa(r.IntN(100))
	case 2:
		return s + "." + strings.Repeat("0", r.IntN(30)) + strconv.Itoa(r.IntN(3))
	}
	return s + strings.Repeat("9", r.IntN(40)) + ".50"
}

func randomMoment(r *rand.Rand) time.Time {
	return time.Date(r.IntN(4)*700-700, time.Month(1+r.IntN(3)), 1+r.IntN(3), r.IntN(3), r.IntN(2), 0, r.IntN(3)*1000, time.UTC)
}

func pgTime(t time.Time, layout, zone string) string {
	y, era := t.Year(), ""
	if y < 1 {
		y, era = 1-y, " BC"
	}
	return fmt.Sprintf("%04d-%s%s%s", y, t.Format(layout), zone, era)
}

func kinds() []kind {
	const plain = "%[1]s %[2]s %[3]s"
	text := func(column, sql string, t *decode.Type) kind {
		return kind{column, sql, t, []string{"", "a", "A", "é", "日本", "a b"}, randomText, `%[1]s COLLATE "C" %[2]s %[3]s`, true}
	}
	numbers := []string{"0", "-1", "1", "17.5", "32767", "2147483647", "2500000000", "9223372036854775807", "1e3", "99999999999999999999.1"}
	whole := func(limit int64) func(*rand.Rand) string {
		return func(r *rand.Rand) string { return strconv.FormatInt(r.Int64N(limit)-limit/2, 10) }
	}
	zones := []string{"+00", "+05:30", "-08", "+01:00"}
	return []kind{
		{"i2", "int2", decode.BuiltinType(21), numbers, whole(20), "%[1]s::numeric %[2]s %[3]s::numeric", false},
		{"i4", "int4", decode.BuiltinType(23), numbers, whole(2000), "%[1]s::numeric %[2]s %[3]s::numeric", false},
		{"i8", "int8", decode.BuiltinType(20), numbers, whole(1 << 62), "%[1]s::numeric %[2]s %[3]s::numeric", false},
		{"num", "numeric", decode.BuiltinType(1700), append(numbers, "NaN", "Infinity", "-Infinity", "0.10", "-0.000"), randomNumber, plain, false},
		{"f4", "float4", decode.BuiltinType(700), []string{"0", "-0", "0.1", "1e-10", "NaN", "Infinity", "-Infinity", "3.4e38"}, func(r *rand.Rand) string { return strconv.Itoa(r.IntN(30)) + ".1" }, plain, false},
		{"f8", "float8", decode.BuiltinType(701), []string{"0", "-0", "0.1", "1e-300", "NaN", "Infinity", "-Infinity", "1.7e308"}, func(r *rand.Rand) string { return strconv.Itoa(r.IntN(30)) + ".1" }, plain, false},
		{"b", "bool", decode.BuiltinType(16), []string{"true", "f", "yes", "OFF", "1", "0", "t"}, func(r *rand.Rand) string { return pick(r, "t", "f") }, plain, false},
		text("t", "text", decode.BuiltinType(25)),
		text("v", "varchar(20)", decode.BuiltinType(1043)),
		text("c", "char(6)", decode.BuiltinType(1042)),
		{"ci", "citext", &decode.Type{Schema: "public", Name: "citext", Extension: "citext"}, []string{"", "a", "A", "é", "日本", "A b"}, randomText,
			`lower(%[1]s::text) COLLATE "C" %[2]s lower(%[3]s)`, false},
		text("d", "short_text", &decode.Type{Schema: "public", Name: "short_text", Kind: decode.DomainType, Elem: decode.BuiltinType(25)}),
		{"e", "mood", &decode.Type{Schema: "public", Name: "mood", Kind: decode.EnumType, Labels: []string{"sad", "ok", "happy", "Ünique"}}, []string{"sad", "ok", "happy", "Ünique"},
			func(r *rand.Rand) string { return pick(r, "sad", "ok", "happy", "Ünique") }, plain, false},
		{"u", "uuid", decode.BuiltinType(2950), []string{"00000000-0000-0000-0000-000000000001", "{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", "a0eebc999c0b4ef8bb6d6bb9bd380a12"},
			func(r *rand.Rand) string {
				return fmt.Sprintf("a0eebc99-9c0b-4ef8-bb6d-6bb9bd38%04x", 0xa10+r.IntN(4))
			}, plain, false},
		{"y", "bytea", decode.BuiltinType(17), []string{`\x`, `\x00`, `\xFF`, `\x00ff`}, func(r *rand.Rand) string { return fmt.Sprintf(`\x%02x%02x`, r.IntN(2), r.IntN(256)) }, plain, false},
		{"da", "date", decode.BuiltinType(1082), []string{"2000-01-01", "0701-01-01 BC", "infinity", "-infinity", "5874897-12-31"},
			func(r *rand.Rand) string { return pgTime(randomMoment(r), "01-02", "") }, plain, false},
		{"ts", "timestamp", decode.BuiltinType(1114), []string{"2000-01-01", "2000-01-01 00:00:00.0000015", "0701-01-01 00:00:00 BC", "infinity", "-infinity", "294276-12-31 23:59:59.999999"},
			func(r *rand.Rand) string { return pgTime(randomMoment(r), "01-02 15:04:05.999999", "") }, plain, false},
		{"tz", "timestamptz", decode.BuiltinType(1184), []string{"2000-01-01", "2000-01-01T00:00:00Z", "0701-01-01 00:00:00+00 BC", "infinity", "-infinity", "2000-01-01 24:00:00+00"},
			func(r *rand.Rand) string { return pgTime(randomMoment(r), "01-02 15:04:05.999999", pick(r, zones...)) }, plain, false},
		{"ti", "time", decode.BuiltinType(1083), []string{"00:00:00", "24:00:00", "12:00:00.000001"}, func(r *rand.Rand) string { return fmt.Sprintf("%02d:%02d:00", r.IntN(3), r.IntN(3)) }, plain, false},
		{"iv", "interval", decode.BuiltinType(1186), []string{"00:00:00", "1 mon", "30 days", "-1 days", "720:00:00", "1 year 2 mons 3 days 04:05:06.7"},
			func(r *rand.Rand) string {
				return fmt.Sprintf("%d mons %d days %02d:00:00", r.IntN(3), r.IntN(60)-30, r.IntN(50))
			}, plain, false},
	}
}

func quoteSQL(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func (k kind) value(r *rand.Rand) string {
	if r.IntN(2) == 0 {
		return pick(r, k.values...)
	}
	return k.random(r)
}

// condition makes a random condition twice: for flo and in SQL.
func condition(r *rand.Rand, all []kind, depth int) (rules.Condition, string) {
	if depth > 0 && r.IntN(2) == 0 {
		a, sqlA := condition(r, all, depth-1)
		b, sqlB := condition(r, all, depth-1)
		switch r.IntN(3) {
		case 0:
			return rules.And(a, b), "(" + sqlA + " AND " + sqlB + ")"
		case 1:
			return rules.Or(a, b), "(" + sqlA + " OR " + sqlB + ")"
		}
		return rules.Not(a), "NOT (" + sqlA + ")"
	}
	k := all[r.IntN(len(all))]
	compare := func(op, v string) string { return fmt.Sprintf(k.compare, k.column, op, quoteSQL(v)) }
	switch n := r.IntN(10); {
	case n == 0:
		return rules.IsNull(k.column), k.column + " IS NULL"
	case n == 1:
		v, w := k.value(r), k.value(r)
		return rules.In(k.column, v, w), "(" + compare("=", v) + " OR " + compare("=", w) + ")"
	case n < 4 && k.text:
		part := strings.TrimRight(randomText(r), " ") // of char(n), SQL's cast to text takes them too
		return rules.Contains(k.column, part), fmt.Sprintf("strpos(%s::text, %s) > 0", k.column, quoteSQL(part))
	case n < 5 && k.text:
		pattern := pick(r, "^a", "[a-z]b", "é$", "^(a|b)+$", "^$", "日|🙂", "[^a]")
		return rules.Matches(k.column, pattern), fmt.Sprintf("%s::text ~ %s", k.column, quoteSQL(pattern))
	}
	v := k.value(r)
	ops := []struct {
		make func(string, any) rules.Condition
		sql  string
	}{{rules.Eq, "="}, {rules.Ne, "<>"}, {rules.Gt, ">"}, {rules.Gte, ">="}, {rules.Lt, "<"}, {rules.Lte, "<="}}
	op := ops[r.IntN(len(ops))]
	return op.make(k.column, v), compare(op.sql, v)
}

// settings are those of flo's sessions.
const settings = `SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET client_encoding = 'UTF8'`

func fill(t *testing.T, db *flotest.DB, r *rand.Rand, all []kind, rows int) {
	db.Exec(t, `CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'Ünique'); CREATE DOMAIN short_text AS text`)
	columns := []string{"id int PRIMARY KEY"}
	for _, k := range all {
		columns = append(columns, k.column+" "+k.sql)
	}
	db.Exec(t, "CREATE TABLE r ("+strings.Join(columns, ", ")+")")
	var b strings.Builder
	for id := range rows {
		fmt.Fprintf(&b, "%s(%d", pick2(id == 0, "", ", "), id)
		for _, k := range all {
			v := k.value(r)
			switch {
			case r.IntN(6) == 0:
				b.WriteString(", NULL")
				continue
			case strings.HasPrefix(k.sql, "int") && k.sql != "interval":
				v = k.random(r) // the edges are beyond the type, on purpose
			case k.sql == "char(6)" || k.sql == "varchar(20)":
				v = string([]rune(v)[:min(6, len([]rune(v)))])
			}
			b.WriteString(", " + quoteSQL(v))
		}
		b.WriteString(")")
	}
	if err := db.TryExec(t.Context(), "SET TimeZone = 'UTC'; INSERT INTO r VALUES "+b.String()); err != nil {
		t.Fatalf("%.300s", err.Error())
	}
}

func pick2(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

func TestConditionsAgreeWithPostgreSQL(t *testing.T) {
	seed := flotest.Seed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	db := flotest.Postgres(t)
	all := kinds()
	fill(t, db, r, all, 150)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn := db.Conn(t)
	if _, err := conn.Exec(ctx, settings, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	if _, err := conn.PgConn().CopyTo(ctx, &data, "COPY (SELECT * FROM r ORDER BY id) TO STDOUT"); err != nil {
		t.Fatal(err)
	}
	rel := &decode.Relation{Schema: "public", Name: "r", Identity: decode.IdentityFull, Columns: []decode.Column{{Name: "id", Type: decode.BuiltinType(23), Modifier: -1, Key: true}}}
	for _, k := range all {
		rel.Columns = append(rel.Columns, decode.Column{Name: k.column, Type: k.typ, Modifier: -1, Key: true})
	}
	matched := 0
	for range 1500 {
		c, sql := condition(r, all, 2)
		var want []string
		rows, err := conn.Query(ctx, "SELECT id FROM r WHERE "+sql+" ORDER BY id")
		if err == nil {
			want, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (string, error) {
				var id int
				err := row.Scan(&id)
				return strconv.Itoa(id), err
			})
		}
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		_, f, err := rules.Bind([]rules.Rule{rules.Filter(c, rules.DropTruncate())}, rel)
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		var got []string
		in := decode.NewCopyReader(rel, data.Bytes())
		for {
			row, ok, err := in.Next(nil)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			ch := decode.Change{Op: decode.OpInsert, New: row}
			keep, err := f(&ch)
			if err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
			if keep {
				got = append(got, row[0].String())
			}
		}
		if strings.Join(got, ",") != strings.Join(want, ",") {
			t.Fatalf("%s\nas %s\nflo:        %v\nPostgreSQL: %v", sql, c, got, want)
		}
		matched += len(got)
	}
	if matched == 0 {
		t.Error("no condition matched a row")
	}
}
