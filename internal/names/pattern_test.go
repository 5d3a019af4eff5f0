package names

import (
	"errors"
	"strings"
	"testing"
)

func TestMatch(t *testing.T) {
	long := strings.Repeat("é", 31) + "x"
	for _, c := range []struct {
		pattern, schema, table string
		want                   bool
	}{
		{"users", "public", "users", true},
		{"users", "shop", "users", false},
		{"users", "public", "Users", false},
		{"Users", "public", "users", false},
		{"shop.users", "shop", "users", true},
		{"shop.*", "shop", "users", true},
		{"shop.*", "shop2", "users", false},
		{"*.*", "a.b", `c"d`, true},
		{"*", "public", "x", true},
		{"*", "other", "x", false},
		{"shop.a*b*c", "shop", "abc", true},
		{"shop.a*b*c", "shop", "a--b--c", true},
		{"shop.a*b*c", "shop", "ac", false},
		{"shop.ab*ba", "shop", "aba", false},
		{"shop.**", "shop", "x", true},
		{`"a.b"."c*"`, "a.b", "c*", true},
		{`"a.b"."c*"`, "a.b", "cx", false},
		{`"a""b".c`, `a"b`, "c", true},
		{`x."log_"*`, "x", "log_1", true},
		{`x."*"*`, "x", "*1", true},
		{`x."*"*`, "x", "a1", false},
		{`"; DROP TABLE x; --"`, "public", "; DROP TABLE x; --", true},
		{"my table", "public", "my table", true},
		{" users", "public", "users", false},
		{Qualified(`a.*"b`, long), `a.*"b`, long, true},
	} {
		p, err := Parse(c.pattern)
		if err != nil {
			t.Errorf("Parse(%q): %v", c.pattern, err)
			continue
		}
		if got := p.Match(c.schema, c.table); got != c.want {
			t.Errorf("%q matches %q.%q: %v, want %v", c.pattern, c.schema, c.table, got, c.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", ".", "a.", ".a", "a.b.c", `"a`, `a."`, `""`, `a.""`, "a\x00b", "\"a\x00\"", "\xff",
		strings.Repeat("x", 64), `a."` + strings.Repeat("x", 64) + `"`,
	} {
		if _, err := Parse(s); !errors.Is(err, ErrSyntax) {
			t.Errorf("Parse(%q) = %v, want ErrSyntax", s, err)
		}
	}
	if _, err := ParseAll([]string{"a", "", "b", "."}); err == nil || strings.Count(err.Error(), "not a name") != 2 {
		t.Errorf("ParseAll reports %v, want both bad ones", err)
	}
	if (Pattern{}).Match("", "") {
		t.Error("the zero pattern matches")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"a.b", `"a.b"."c""*"*`, "*.*", `"`, "a..b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := Parse(s)
		if err != nil {
			return
		}
		schema, table, ok := p.Exact()
		if !ok {
			return
		}
		if !p.Match(schema, table) {
			t.Fatalf("%q does not match its own name", s)
		}
		q, err := Parse(Qualified(schema, table))
		if err != nil || !q.Match(schema, table) {
			t.Fatalf("%q, quoted, is not the same name: %v", s, err)
		}
	})
}
