package postgres

import (
	"strings"

	"github.com/pgflo/flo/decode"
)

// The definitions that PostgreSQL writes have a fixed form (ruleutils.c: pg_get_indexdef_worker,
// pg_get_constraintdef_worker): keywords in capitals, one space between words, names quoted where they have to be.

// cutName reads a name, quoted or not, off the front of s.
func cutName(s string) (name, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, ` .("`)
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], end > 0
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		if s[i] != '"' {
			b.WriteByte(s[i])
			continue
		}
		if i+1 < len(s) && s[i+1] == '"' {
			b.WriteByte('"')
			i++
			continue
		}
		return b.String(), s[i+1:], b.Len() > 0
	}
	return "", "", false
}

// cutQualified reads a name that may have a schema in front of it.
func cutQualified(s string) (name decode.Name, rest string, ok bool) {
	name.Name, rest, ok = cutName(s)
	if !ok || !strings.HasPrefix(rest, ".") {
		return name, rest, ok
	}
	name.Schema = name.Name
	name.Name, rest, ok = cutName(rest[1:])
	return name, rest, ok
}

// indexText is an index's definition without the names of the index and of its table.
type indexText struct {
	unique bool
	rest   string // from USING on
}

// parseIndex reads "CREATE [UNIQUE] INDEX name ON [ONLY] schema.table USING …". Of a partitioned index ONLY is
// always written, whether it has parts or not.
func parseIndex(definition string) (x indexText, ok bool) {
	rest, ok := strings.CutPrefix(definition, "CREATE ")
	if !ok {
		return x, false
	}
	rest, x.unique = strings.CutPrefix(rest, "UNIQUE ")
	if rest, ok = strings.CutPrefix(rest, "INDEX "); !ok {
		return x, false
	}
	if _, rest, ok = cutName(rest); !ok {
		return x, false
	}
	if rest, ok = strings.CutPrefix(rest, " ON "); !ok {
		return x, false
	}
	rest, _ = strings.CutPrefix(rest, "ONLY ")
	if _, rest, ok = cutQualified(rest); !ok {
		return x, false
	}
	x.rest, ok = strings.CutPrefix(rest, " USING ")
	return x, ok
}

func (x indexText) sql(name string, table decode.Name, only bool) string {
	return "CREATE " + pick(x.unique, "UNIQUE ", "") + "INDEX " + ident(name) + " ON " + pick(only, "ONLY ", "") + identOf(table) + " USING " + x.rest
}

// foreignKey is a foreign key's definition, cut at the other table's name.
type foreignKey struct {
	before string // up to REFERENCES
	other  decode.Name
	after  string
}

// parseForeignKey reads "FOREIGN KEY (…) REFERENCES schema.table(…) …".
func parseForeignKey(definition string) (k foreignKey, ok bool) {
	const word = " REFERENCES "
	quoted := false
	for i := range len(definition) {
		if definition[i] == '"' {
			quoted = !quoted // a doubled quote leaves it as it was
			continue
		}
		if quoted || !strings.HasPrefix(definition[i:], word) {
			continue
		}
		k.before = definition[:i]
		k.other, k.after, ok = cutQualified(definition[i+len(word):])
		return k, ok && strings.HasPrefix(k.before, "FOREIGN KEY ")
	}
	return k, false
}

func (k foreignKey) sql(other decode.Name) string {
	return k.before + " REFERENCES " + identOf(other) + k.after
}

// parseNextval reads "nextval('schema.sequence'::regclass)", all that a serial column's default is.
func parseNextval(expression string) (seq decode.Name, ok bool) {
	rest, ok := strings.CutPrefix(expression, "nextval('")
	if !ok {
		return seq, false
	}
	rest, ok = strings.CutSuffix(rest, "'::regclass)")
	if !ok || strings.Contains(strings.ReplaceAll(rest, "''", ""), "'") {
		return seq, false
	}
	seq, rest, ok = cutQualified(strings.ReplaceAll(rest, "''", "'"))
	return seq, ok && rest == "" && seq.Schema != ""
}
