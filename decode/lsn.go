package decode

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in PostgreSQL's write-ahead log: a byte offset, written by PostgreSQL as two
// hexadecimal halves ("16/B374D848", type pg_lsn).
// https://www.postgresql.org/docs/current/datatype-pg-lsn.html
type LSN uint64

// String gives PostgreSQL's own notation, for example "0/16B3748".
func (l LSN) String() string {
	var buf [17]byte
	return string(l.append(buf[:0]))
}

// append appends PostgreSQL's own notation.
func (l LSN) append(dst []byte) []byte {
	dst = appendUpperHex(dst, uint32(l>>32))
	return appendUpperHex(append(dst, '/'), uint32(l))
}

// appendUpperHex appends v's hexadecimal digits, without leading zeros.
func appendUpperHex(dst []byte, v uint32) []byte {
	shift := 28
	for shift > 0 && v>>shift == 0 {
		shift -= 4
	}
	for ; shift >= 0; shift -= 4 {
		dst = append(dst, "0123456789ABCDEF"[v>>shift&15])
	}
	return dst
}

// ParseLSN reads PostgreSQL's notation.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok || len(hi) > 8 || len(lo) > 8 {
		return 0, fmt.Errorf("decode: %q is not an LSN: want the form 16/B374D848", s)
	}
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if err1 != nil || err2 != nil {
		return 0, fmt.Errorf("decode: %q is not an LSN: want the form 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

// Scan implements sql.Scanner for pg_lsn columns read as text.
func (l *LSN) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		*l = 0
		return nil
	case string:
		p, err := ParseLSN(v)
		*l = p
		return err
	case []byte:
		p, err := ParseLSN(string(v))
		*l = p
		return err
	}
	return fmt.Errorf("decode: cannot scan %T into an LSN", src)
}

// MarshalText writes PostgreSQL's notation.
func (l LSN) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads PostgreSQL's notation.
func (l *LSN) UnmarshalText(b []byte) error {
	p, err := ParseLSN(string(b))
	if err != nil {
		return err
	}
	*l = p
	return nil
}
