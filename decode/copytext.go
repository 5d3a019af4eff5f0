package decode

import (
	"bytes"
	"fmt"
)

// CopyReader reads rows in COPY's text format with its default delimiter and null string: columns
// split by tabs, every row ended by a newline.
// https://www.postgresql.org/docs/current/sql-copy.html#id-1.9.3.55.9.2
type CopyReader struct {
	rel  *Relation
	data []byte
	row  uint64
	err  error
}

// NewCopyReader reads data, whole rows of rel with all of its columns in their order.
func NewCopyReader(rel *Relation, data []byte) *CopyReader {
	return &CopyReader{rel: rel, data: data}
}

// Next gives the next row, and false behind the last one. Values without escapes point into the
// data, others into a, which may be nil. An error wraps ErrMalformed, names the row, and stays.
func (r *CopyReader) Next(a *Arena) (Row, bool, error) {
	if r.err != nil || len(r.data) == 0 {
		return nil, false, r.err
	}
	end := bytes.IndexByte(r.data, '\n')
	if end < 0 {
		return nil, false, r.fail("has no newline at its end: the data is cut")
	}
	line := r.data[:end]
	row := a.Row(len(r.rel.Columns))
	if err := r.split(row, line, a); err != nil {
		return nil, false, err
	}
	r.data = r.data[end+1:]
	r.row++
	return row, true, nil
}

func (r *CopyReader) fail(format string, args ...any) error {
	r.err = malformed("COPY row %d of %s %s", r.row, r.rel.Qualified(), fmt.Sprintf(format, args...))
	r.data = nil
	return r.err
}

// split fills row from a line without its newline.
func (r *CopyReader) split(row Row, line []byte, a *Arena) error {
	if string(line) == `\.` {
		return r.fail("is an end-of-data mark")
	}
	if len(row) == 0 {
		if len(line) != 0 {
			return r.fail("has columns, its relation has none")
		}
		return nil
	}
	escapes := bytes.IndexByte(line, '\\') >= 0
	for i := range row {
		field, rest, more := cutField(line, escapes)
		if more != (i < len(row)-1) {
			return r.fail("has %d columns, its relation %d", i+1+countFields(rest, escapes, more), len(row))
		}
		line = rest
		v := &row[i]
		v.typ = r.rel.Columns[i].Type
		if !escapes || bytes.IndexByte(field, '\\') < 0 {
			v.presence, v.data = Present, field[:len(field):len(field)]
			continue
		}
		if string(field) == `\N` {
			v.presence = Null
			continue
		}
		text, ok := unescapeCopy(field, a.Bytes(len(field)))
		if !ok {
			return r.fail("column %q ends in a lone backslash", r.rel.Columns[i].Name)
		}
		v.presence, v.data = Present, text
	}
	return nil
}

// cutField splits at the first tab that no backslash escapes.
func cutField(line []byte, escapes bool) (field, rest []byte, more bool) {
	from := 0
	for {
		tab := bytes.IndexByte(line[from:], '\t')
		if tab < 0 {
			return line, nil, false
		}
		tab += from
		if !escapes || !escapedAt(line, tab) {
			return line[:tab], line[tab+1:], true
		}
		from = tab + 1
	}
}

// escapedAt reports whether an odd number of backslashes stands before i. They are not shared with a
// field before, whose tab stands between.
func escapedAt(line []byte, i int) bool {
	n := 0
	for i > n && line[i-1-n] == '\\' {
		n++
	}
	return n%2 == 1
}

func countFields(line []byte, escapes, more bool) int {
	n := 0
	for more {
		_, line, more = cutField(line, escapes)
		n++
	}
	return n
}

// unescapeCopy writes a field to buf, which is as long as the field: no escape is shorter than what
// it stands for.
func unescapeCopy(field, buf []byte) ([]byte, bool) {
	n := 0
	for len(field) > 0 {
		i := bytes.IndexByte(field, '\\')
		if i < 0 {
			n += copy(buf[n:], field)
			break
		}
		n += copy(buf[n:], field[:i])
		field = field[i+1:]
		if len(field) == 0 {
			return nil, false
		}
		c, size := copyEscape(field)
		buf[n] = c
		n++
		field = field[size:]
	}
	return buf[:n:n], true
}

// copyEscape reads what follows a backslash, at least one byte, as CopyReadAttributesText does
// (src/backend/commands/copyfromparse.c): a byte that means nothing special stands for itself.
func copyEscape(b []byte) (c byte, size int) {
	switch b[0] {
	case 'b':
		return '\b', 1
	case 'f':
		return '\f', 1
	case 'n':
		return '\n', 1
	case 'r':
		return '\r', 1
	case 't':
		return '\t', 1
	case 'v':
		return '\v', 1
	case '0', '1', '2', '3', '4', '5', '6', '7':
		for size < 3 && size < len(b) && b[size] >= '0' && b[size] <= '7' {
			c = c<<3 | (b[size] - '0')
			size++
		}
		return c, size
	case 'x':
		size = 1
		for size < 3 && size < len(b) {
			d, ok := hexDigit(b[size])
			if !ok {
				break
			}
			c = c<<4 | d
			size++
		}
		if size == 1 {
			return 'x', 1
		}
		return c, size
	}
	return b[0], 1
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10, true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// AppendCopyRow appends a row in COPY's text format, its newline included. Absent and unchanged
// values cannot be written: they are an error, and nothing is appended.
func AppendCopyRow(dst []byte, row Row) ([]byte, error) {
	start := len(dst)
	for i := range row {
		if i > 0 {
			dst = append(dst, '\t')
		}
		switch v := &row[i]; v.presence {
		case Null:
			dst = append(dst, '\\', 'N')
		case Present:
			dst = appendCopyText(dst, v.data)
		default:
			return dst[:start], fmt.Errorf("decode: column %d of the row is absent or unchanged: COPY needs a value or NULL", i)
		}
	}
	return append(dst, '\n'), nil
}

func appendCopyText(dst, text []byte) []byte {
	from := 0
	for i, c := range text {
		e := byte(0)
		switch c {
		case '\\':
			e = '\\'
		case '\b':
			e = 'b'
		case '\f':
			e = 'f'
		case '\n':
			e = 'n'
		case '\r':
			e = 'r'
		case '\t':
			e = 't'
		case '\v':
			e = 'v'
		default:
			continue
		}
		dst = append(dst, text[from:i]...)
		dst = append(dst, '\\', e)
		from = i + 1
	}
	return append(dst, text[from:]...)
}
