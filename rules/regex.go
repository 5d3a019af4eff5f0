package rules

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/pgflo/flo/decode"
)

// Regex replaces every match of a regular expression in a text column. Both are in Go's syntax: $1 or
// ${name} in replace stands for a group, $$ for a dollar sign. https://pkg.go.dev/regexp/syntax
//
// Its running time is linear in the value's length, whatever the pattern. NULL, unchanged and absent
// values stay what they are; old rows are changed too. A char(n) is matched without the blanks that
// fill it up. A result longer than the column is refused by the sink, not here: only the destination
// knows its own width.
//
// The column has to be text, varchar, char(n), citext, or a domain over one of them, and no part of the
// replica identity. Tables that lack it are left alone, unless Table names them exactly.
func Regex(column, pattern, replace string) Rule {
	r := &regexRule{column: column, pattern: pattern, replace: []byte(replace)}
	r.re, r.err = regexp.Compile(pattern)
	if r.err == nil {
		r.err = checkTemplate(r.re, replace)
	}
	return r
}

type regexRule struct {
	column, pattern string
	replace         []byte
	re              *regexp.Regexp
	err             error
}

func (r *regexRule) String() string { return fmt.Sprintf("Regex(%q)", r.column) }

// Validate implements the optional method that Validate looks for.
func (r *regexRule) Validate() error {
	switch {
	case r.column == "":
		return fmt.Errorf("rules: %w: Regex: name the column", ErrInvalidRule)
	case r.err != nil:
		return fmt.Errorf("rules: %w: %s: %w", ErrInvalidRule, r, r.err)
	case bytes.IndexByte(r.replace, 0) >= 0 || strings.ToValidUTF8(string(r.replace), "") != string(r.replace):
		return fmt.Errorf("rules: %w: %s: PostgreSQL's text holds UTF-8 without zero bytes, the replacement does not", ErrInvalidRule, r)
	}
	return nil
}

// Bind implements Rule.
func (r *regexRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *regexRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	i, err := bindColumn(r.String(), s, r.column)
	if err != nil || i < 0 {
		return s.unchanged(), err
	}
	base := baseOf(s.in.Columns[i].Type)
	if !isText(base) {
		return bound{}, typeError(r.String(), s.in, i, "Regex works on text, varchar, char(n), citext and domains over them: use Map")
	}
	padded := base.Name == "bpchar"
	return s.run(s.in, eachValue(s.in, i, func(v decode.Value) (decode.Value, error) {
		if v.Presence() != decode.Present {
			return v, nil
		}
		text := v.Bytes()
		if padded {
			text = bytes.TrimRight(text, " ")
		}
		if !r.re.Match(text) {
			return v, nil
		}
		return decode.TextValue(v.Type(), r.re.ReplaceAll(text, r.replace)), nil
	})), nil
}

// checkTemplate refuses a group that the pattern lacks: Go would write nothing in its place.
func checkTemplate(re *regexp.Regexp, template string) error {
	for {
		_, rest, ok := strings.Cut(template, "$")
		if !ok {
			return nil
		}
		if strings.HasPrefix(rest, "$") {
			template = rest[1:]
			continue
		}
		name, after := groupName(rest)
		template = after
		if name == "" {
			return fmt.Errorf("a lone $ in %q: write $$ for a dollar sign", "$"+rest)
		}
		n, err := strconv.Atoi(name)
		if err == nil && n <= re.NumSubexp() || err != nil && re.SubexpIndex(name) >= 0 {
			continue
		}
		return fmt.Errorf("the pattern %q has no group %q (a name goes on to the last letter, digit or _: ${1}x is group 1 and an x)", re, name)
	}
}

// groupName reads what regexp's Expand takes for a group's name behind a $.
func groupName(s string) (name, rest string) {
	if braced, ok := strings.CutPrefix(s, "{"); ok {
		name, rest, ok = strings.Cut(braced, "}")
		if !ok || strings.Trim(name, wordCharacters) != "" {
			return "", s
		}
		return name, rest
	}
	rest = strings.TrimLeft(s, wordCharacters)
	return s[:len(s)-len(rest)], rest
}

const wordCharacters = "0123456789_abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
