package decode

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"
)

// jsonForm is how a type's values stand in JSON.
type jsonForm uint8

const (
	jsonString jsonForm = iota
	jsonNumber
	jsonBool
	jsonRaw
	jsonBytes
)

func jsonFormOf(t *Type) jsonForm {
	f, t := formOf(t)
	switch f {
	case formInt2, formInt4, formInt8, formFloat4, formFloat8, formNumeric:
		return jsonNumber
	case formOID:
		if t.OID == pgtype.OIDOID {
			return jsonNumber
		}
	case formBool:
		return jsonBool
	case formJSON:
		return jsonRaw
	case formBytea:
		return jsonBytes
	}
	return jsonString
}

// appendValue appends a null or present value. Text that isn't of its type's form (NaN, say) becomes
// a string.
func appendValue(dst []byte, v *Value) []byte {
	if v.presence == Null {
		return append(dst, "null"...)
	}
	text := v.data
	switch jsonFormOf(v.typ) {
	case jsonNumber:
		if isJSONNumber(text) {
			return append(dst, text...)
		}
	case jsonBool:
		if string(text) == "t" {
			return append(dst, "true"...)
		}
		if string(text) == "f" {
			return append(dst, "false"...)
		}
	case jsonRaw:
		if !utf8.Valid(text) {
			text = bytes.ToValidUTF8(text, []byte(replacement))
		}
		if json.Valid(text) {
			return appendCompact(dst, text)
		}
	case jsonBytes:
		if out, ok := appendBytea(dst, text); ok {
			return out
		}
	}
	return appendString(dst, text)
}

// isJSONNumber checks the grammar of RFC 8259, section 6.
func isJSONNumber(b []byte) bool {
	if len(b) > 0 && b[0] == '-' {
		b = b[1:]
	}
	n := digits(b)
	if n == 0 || n > 1 && b[0] == '0' {
		return false
	}
	b = b[n:]
	if len(b) > 0 && b[0] == '.' {
		n = digits(b[1:])
		if n == 0 {
			return false
		}
		b = b[1+n:]
	}
	if len(b) > 0 && (b[0] == 'e' || b[0] == 'E') {
		b = b[1:]
		if len(b) > 0 && (b[0] == '+' || b[0] == '-') {
			b = b[1:]
		}
		n = digits(b)
		if n == 0 {
			return false
		}
		b = b[n:]
	}
	return len(b) == 0
}

// digits counts the leading digits.
func digits(b []byte) int {
	n := 0
	for n < len(b) && b[n] >= '0' && b[n] <= '9' {
		n++
	}
	return n
}

// appendCompact appends valid JSON without the white space between its tokens, every other byte as
// it is: numbers keep their digits, objects their order and repeated keys.
func appendCompact(dst, text []byte) []byte {
	from := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
		case ' ', '\t', '\n', '\r':
			dst = append(dst, text[from:i]...)
			from = i + 1
		}
	}
	return append(dst, text[from:]...)
}

// byteaChunk is how many bytes of a bytea are turned to base64 at a time: a multiple of three, so
// that no padding falls between.
const byteaChunk = 384

// appendBytea appends a bytea as a base64 string. PostgreSQL writes it as \x and hexadecimal digits
// (bytea_output = hex, which flo's sessions set).
// https://www.postgresql.org/docs/current/datatype-binary.html
func appendBytea(dst, text []byte) ([]byte, bool) {
	if len(text) < 2 || text[0] != '\\' || text[1] != 'x' || len(text)%2 != 0 {
		return dst, false
	}
	start := len(dst)
	dst = append(dst, '"')
	var buf [byteaChunk]byte
	for text = text[2:]; len(text) > 0; {
		part := text[:min(len(text), 2*byteaChunk)]
		n, err := hex.Decode(buf[:], part)
		if err != nil {
			return dst[:start], false
		}
		dst = base64.StdEncoding.AppendEncode(dst, buf[:n])
		text = text[len(part):]
	}
	return append(dst, '"'), true
}

// replacement stands for bytes that are not UTF-8: U+FFFD.
const replacement = "\uFFFD"

const hexDigits = "0123456789abcdef"

// appendString appends a JSON string: quotes, backslashes and control characters escaped, what is
// not UTF-8 replaced.
func appendString[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, size := decodeRune(s[i:])
			if r != utf8.RuneError || size != 1 {
				i += size
				continue
			}
			dst = append(append(dst, s[from:i]...), replacement...)
		} else {
			dst = appendEscape(append(dst, s[from:i]...), c)
		}
		i++
		from = i
	}
	return append(append(dst, s[from:]...), '"')
}

func decodeRune[T string | []byte](s T) (rune, int) {
	return utf8.DecodeRuneInString(string(s[:min(len(s), utf8.UTFMax)]))
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\n':
		return append(dst, '\\', 'n')
	case '\r':
		return append(dst, '\\', 'r')
	case '\t':
		return append(dst, '\\', 't')
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}
