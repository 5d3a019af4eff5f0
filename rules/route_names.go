package rules

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/pgflo/flo/internal/names"
)

// parse reads the names of a route.
func (r *routeRule) parse() error {
	if err := r.parseFrom(); err != nil {
		return err
	}
	schema, table, err := splitName(r.to)
	if err != nil {
		return err
	}
	r.schema = destination{same: true}
	if schema != "" {
		if r.schema, err = r.parsePart(schema); err != nil {
			return err
		}
	}
	r.table, err = r.parsePart(table)
	return err
}

func (r *routeRule) parseFrom() error {
	if !hasGroup(r.from) {
		from := r.from
		if schema, _, err := splitName(from); r.anySchema && err == nil && schema == "" {
			from = "*." + from
		} else {
			r.anySchema = false
		}
		var err error
		if r.pattern, err = names.Parse(from); err != nil {
			return err
		}
		_, table, _ := splitName(from)
		p, err := names.Parse(table)
		if err != nil {
			return err
		}
		_, _, exactTable := p.Exact()
		_, _, exact := r.pattern.Exact()
		r.exact = exact || r.anySchema && exactTable
		r.anySchema = r.anySchema && exactTable
		return nil
	}
	schema, table, err := splitName(r.from)
	if err != nil {
		return err
	}
	for _, part := range []string{schema, table} { // by themselves, so that an error shows what the user wrote
		if _, err := regexp.Compile(part); err != nil {
			return err
		}
	}
	switch {
	case schema != "":
	case r.anySchema:
		schema = `[^\x00]*`
	default:
		schema = regexp.QuoteMeta(names.DefaultSchema)
	}
	r.anySchema = false
	r.groups, err = regexp.Compile(`(?s)^(?:` + schema + `)\x00(?:` + table + `)$`)
	return err
}

// parsePart reads one part of the destination's name.
func (r *routeRule) parsePart(s string) (destination, error) {
	if s == "*" {
		return destination{same: true}, nil
	}
	if r.groups != nil {
		return destination{text: s}, checkTemplate(r.groups, s)
	}
	p, err := names.Parse(s)
	if err != nil {
		return destination{}, err
	}
	_, text, ok := p.Exact()
	if !ok {
		return destination{}, fmt.Errorf("%q: in a destination * stands alone, for the source's name", s)
	}
	return destination{text: text}, nil
}

// hasGroup reports whether an opening parenthesis stands outside quotes.
func hasGroup(s string) bool {
	quoted := false
	for i := range len(s) {
		switch s[i] {
		case '"':
			quoted = !quoted
		case '(':
			if !quoted {
				return true
			}
		}
	}
	return false
}

// splitName splits a name at the dot that is neither quoted nor within parentheses, brackets or braces; a
// backslash before the dot goes with it.
func splitName(s string) (schema, table string, err error) {
	quoted, depth, at := false, 0, -1
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '\\' && i+1 < len(s) && s[i+1] != '.':
			i++
		case strings.IndexByte("([{", c) >= 0:
			depth++
		case strings.IndexByte(")]}", c) >= 0:
			depth--
		case c == '.' && depth == 0:
			if at >= 0 {
				return "", "", fmt.Errorf("%q: more than one dot between schema and table", s)
			}
			at = i
		}
	}
	if at < 0 {
		return "", s, checkPart(s)
	}
	schema, table = strings.TrimSuffix(s[:at], `\`), s[at+1:]
	return schema, table, errors.Join(checkPart(schema), checkPart(table))
}

func checkPart(s string) error {
	if s == "" {
		return errors.New("a name is empty")
	}
	return nil
}
