package source

import (
	"strconv"
	"time"

	"github.com/pgflo/flo/decode"
)

// number reads an integer column; NULL, and what is none, is 0.
func number(text []byte) int64 {
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// lsnOrZero reads a pg_lsn column; NULL is 0.
func lsnOrZero(lsn *decode.LSN, text []byte) error {
	if text == nil {
		*lsn = 0
		return nil
	}
	p, err := decode.ParseLSN(string(text))
	*lsn = p
	return err
}

// micros reads microseconds of Unix time; NULL is the zero time.
func micros(text []byte) time.Time {
	if text == nil {
		return time.Time{}
	}
	return time.UnixMicro(number(text))
}
