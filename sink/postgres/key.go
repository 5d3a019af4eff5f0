package postgres

import "bytes"

// keyForm says when the texts of a key column tell its values apart: texts of that form are equal if and
// only if the values are. Without one, two changes may be about the same row and look as if they were not.
type keyForm byte

const (
	noForm      keyForm = iota // equal values may have several texts, as with citext or interval
	plainForm                  // any text
	varcharForm                // any that does not end in a space, which varchar(n) may cut off
	paddedForm                 // trailing spaces mean nothing
	integerForm                // decimal digits, without leading zeros
	uuidForm                   // lower case, with hyphens
	byteaForm                  // \x and lower case
	boolForm                   // t or f
	dateForm                   // 2006-01-02
	momentForm                 // 2006-01-02 15:04:05.999999
	zonedForm                  // the same, at +00
)

// keyFormOf judges a column by the type's OID, which for these is the same everywhere (pg_type.dat).
func keyFormOf(c *column) keyForm {
	switch c.typ {
	case 20, 21, 23, 26: // int8, int2, int4, oid
		return integerForm
	case 1700: // numeric; of a negative scale, or one that rounds, integers may meet
		if scale := int32(c.modifier-4) << 21 >> 21; c.modifier < 0 || scale >= 0 {
			return integerForm
		}
	case 2950:
		return uuidForm
	case 17:
		return byteaForm
	case 16:
		return boolForm
	case 1082:
		return dateForm
	case 1114, 1184: // timestamp, timestamptz; a precision would round
		if c.modifier >= 0 {
			return noForm
		}
		if c.typ == 1184 {
			return zonedForm
		}
		return momentForm
	case 25:
		if c.exact {
			return plainForm
		}
	case 1043:
		switch {
		case c.exact && c.modifier < 0:
			return plainForm
		case c.exact:
			return varcharForm
		}
	case 1042:
		if c.exact {
			return paddedForm
		}
	default:
		if c.enum {
			return plainForm
		}
	}
	return noForm
}

// text gives what stands for the value among others of its column; false if it is not of the form.
func (f keyForm) text(v []byte) ([]byte, bool) {
	switch f {
	case plainForm:
		return v, true
	case varcharForm:
		return v, len(v) == 0 || v[len(v)-1] != ' '
	case paddedForm:
		return bytes.TrimRight(v, " "), true
	case integerForm:
		return v, isInteger(v)
	case uuidForm:
		return v, isLike(v, "hhhhhhhh-hhhh-hhhh-hhhh-hhhhhhhhhhhh")
	case byteaForm:
		return v, isBytea(v)
	case boolForm:
		return v, len(v) == 1 && (v[0] == 't' || v[0] == 'f')
	case dateForm:
		return v, isLike(v, "dddd-dd-dd")
	case momentForm:
		return v, isMoment(v)
	case zonedForm:
		at, ok := bytes.CutSuffix(v, []byte("+00"))
		return v, ok && isMoment(at)
	}
	return nil, false
}

func isInteger(v []byte) bool {
	d := bytes.TrimPrefix(v, []byte("-"))
	if len(d) == 0 || d[0] == '0' && len(v) > 1 {
		return false
	}
	for _, c := range d {
		if c < '0' || c > '9' {
			return false
		}
	}
	return true
}

// isLike compares with a pattern: d for a decimal digit, h for a hexadecimal one in lower case.
func isLike(v []byte, pattern string) bool {
	if len(v) != len(pattern) {
		return false
	}
	for i, c := range v {
		digit := c >= '0' && c <= '9'
		switch pattern[i] {
		case 'd':
			if !digit {
				return false
			}
		case 'h':
			if !digit && (c < 'a' || c > 'f') {
				return false
			}
		default:
			if c != pattern[i] {
				return false
			}
		}
	}
	return true
}

func isBytea(v []byte) bool {
	hex, ok := bytes.CutPrefix(v, []byte(`\x`))
	if !ok || len(hex)%2 != 0 {
		return false
	}
	for i := range hex {
		if !isLike(hex[i:i+1], "h") {
			return false
		}
	}
	return true
}

// isMoment takes a date and time as PostgreSQL writes them: 24:00 and :60 are other texts of the next
// minute, and the fraction does not end in 0.
func isMoment(v []byte) bool {
	const whole = len("2006-01-02 15:04:05")
	if len(v) < whole || !isLike(v[:whole], "dddd-dd-dd dd:dd:dd") || string(v[11:13]) > "23" || string(v[17:19]) > "59" {
		return false
	}
	fraction := v[whole:]
	if len(fraction) == 0 {
		return true
	}
	const digits = "dddddd"
	n := len(fraction) - 1
	return fraction[0] == '.' && n >= 1 && n <= len(digits) && isLike(fraction[1:], digits[:n]) && fraction[n] != '0'
}
