// Package names is the one grammar of names in flo's options, rules and routes.
//
//	pattern = [ part "." ] part
//	part    = { quoted | "*" | any character but . " * }
//	quoted  = '"' { any character but '"' | '""' } '"'
//
// Case counts and nothing is folded: Users and users are two names. A * outside quotes stands for any
// run of characters, none included, within its part. Inside quotes every character stands for itself
// and "" for one quote, so "a.b"."c*" names table c* of schema a.b. Without a schema, schema public is
// meant.
package names

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// ErrSyntax is wrapped by every error of Parse.
var ErrSyntax = errors.New("not a name")

// MaxLength is the longest name that PostgreSQL keeps, in bytes (NAMEDATALEN - 1).
// https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS
const MaxLength = 63

// DefaultSchema is the schema of a name that has none.
const DefaultSchema = "public"

// Pattern is a parsed name or pattern of a table. The zero Pattern matches nothing.
type Pattern struct {
	text   string
	schema part
	table  part
}

// part is the literal pieces between the wildcards: n wildcards make n+1 pieces.
type part []string

// Parse reads a name or pattern. Its errors wrap ErrSyntax and say what is wrong with which text.
func Parse(s string) (Pattern, error) {
	parts, err := parse(s)
	if err != nil {
		return Pattern{}, fmt.Errorf("%w: %q: %s", ErrSyntax, s, err)
	}
	p := Pattern{text: s, table: parts[len(parts)-1]}
	switch len(parts) {
	case 1:
		p.schema = part{DefaultSchema}
	case 2:
		p.schema = parts[0]
	default:
		return Pattern{}, fmt.Errorf(`%w: %q: more than one dot; quote a name that holds a dot: "a.b".c`, ErrSyntax, s)
	}
	return p, nil
}

// ParseAll reads several patterns and reports all bad ones at once.
func ParseAll(texts []string) ([]Pattern, error) {
	var errs []error
	patterns := make([]Pattern, 0, len(texts))
	for _, s := range texts {
		p, err := Parse(s)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		patterns = append(patterns, p)
	}
	return patterns, errors.Join(errs...)
}

// parse splits a text into its parts.
func parse(s string) ([]part, error) {
	if !utf8.ValidString(s) {
		return nil, errors.New("not UTF-8")
	}
	var (
		parts   []part
		current part
		piece   strings.Builder
		seen    bool // something stands in the current part
	)
	end := func() error {
		if !seen {
			return errors.New("a part is empty")
		}
		current = append(current, piece.String())
		for _, literal := range current {
			if len(literal) > MaxLength {
				return fmt.Errorf("longer than PostgreSQL's %d bytes", MaxLength)
			}
		}
		if len(current) == 1 && current[0] == "" {
			return errors.New("a part is empty")
		}
		parts = append(parts, current)
		current, seen = nil, false
		piece.Reset()
		return nil
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case 0:
			return nil, errors.New("a zero byte")
		case '.':
			if err := end(); err != nil {
				return nil, err
			}
		case '*':
			current, seen = append(current, piece.String()), true
			piece.Reset()
		case '"':
			n, err := quoted(s[i+1:], &piece)
			if err != nil {
				return nil, err
			}
			i += n
			seen = true
		default:
			piece.WriteByte(c)
			seen = true
		}
	}
	if err := end(); err != nil {
		return nil, err
	}
	return parts, nil
}

// quoted reads behind an opening quote up to and with the closing one, and gives the bytes read.
func quoted(s string, into *strings.Builder) (int, error) {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == 0:
			return 0, errors.New("a zero byte")
		case s[i] != '"':
			into.WriteByte(s[i])
		case i+1 < len(s) && s[i+1] == '"':
			into.WriteByte('"')
			i++
		default:
			return i + 1, nil
		}
	}
	return 0, errors.New("a quote is not closed")
}

// MustParse is Parse for patterns written in a program's text; it panics on a bad one.
func MustParse(s string) Pattern {
	p, err := Parse(s)
	if err != nil {
		panic(err)
	}
	return p
}

// Match reports whether the table of that exact name is meant.
func (p Pattern) Match(schema, table string) bool {
	return p.schema.match(schema) && p.table.match(table)
}

// Exact gives the one name that is meant; ok is false for a pattern with a wildcard.
func (p Pattern) Exact() (schema, table string, ok bool) {
	if len(p.schema) != 1 || len(p.table) != 1 {
		return "", "", false
	}
	return p.schema[0], p.table[0], true
}

// ExactSchema gives the schema that is meant; ok is false if the schema has a wildcard.
func (p Pattern) ExactSchema() (schema string, ok bool) {
	if len(p.schema) != 1 {
		return "", false
	}
	return p.schema[0], true
}

// String gives the text that was parsed.
func (p Pattern) String() string { return p.text }

// match finds the first piece at the start, the last at the end, and each other one as early as it can.
func (p part) match(s string) bool {
	if len(p) == 0 {
		return false
	}
	if len(p) == 1 {
		return s == p[0]
	}
	first, last := p[0], p[len(p)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, piece := range p[1 : len(p)-1] {
		i := strings.Index(s, piece)
		if i < 0 {
			return false
		}
		s = s[i+len(piece):]
	}
	return true
}

// Any reports whether one of the patterns matches.
func Any(patterns []Pattern, schema, table string) bool {
	for i := range patterns {
		if patterns[i].Match(schema, table) {
			return true
		}
	}
	return false
}

// Quote gives a name as an SQL identifier, always in quotes, so that nothing in it is folded or read as
// SQL.
func Quote(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// Qualified gives schema and table as one quoted SQL name; it is also a pattern for exactly that table.
func Qualified(schema, table string) string { return Quote(schema) + "." + Quote(table) }
