package decode

import (
	"encoding/hex"
	"encoding/json"
	"math/big"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgtype"
)

// Typed access parses a value's text when it is asked, and not before. All methods give a *TypeError
// if the value is NULL, absent or unchanged, of another type, or malformed; a domain is what it is
// over. Any takes every type; the table of types is there.

// Int64 gives an integer: smallint, integer, bigint, oid, xid or cid.
func (v Value) Int64() (int64, error) {
	if _, _, err := v.need("Int64", 1<<formInt2|1<<formInt4|1<<formInt8|1<<formOID); err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(v.data), 10, 64)
	if err != nil {
		return 0, v.fail("Int64", ErrMalformed)
	}
	return n, nil
}

// Uint64 gives an oid, xid, cid or xid8.
func (v Value) Uint64() (uint64, error) {
	if _, _, err := v.need("Uint64", 1<<formOID|1<<formXID8); err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(string(v.data), 10, 64)
	if err != nil {
		return 0, v.fail("Uint64", ErrMalformed)
	}
	return n, nil
}

// Float64 gives a real or a double precision, NaN and infinities included, and smallint and integer,
// which it holds exactly. For bigint, numeric and money, which it doesn't, use Numeric.
func (v Value) Float64() (float64, error) {
	f, _, err := v.need("Float64", 1<<formFloat4|1<<formFloat8|1<<formInt2|1<<formInt4)
	if err != nil {
		return 0, err
	}
	bits := 64
	if f == formFloat4 {
		bits = 32
	}
	n, err := strconv.ParseFloat(string(v.data), bits)
	if err != nil {
		return 0, v.fail("Float64", ErrMalformed)
	}
	return n, nil
}

// Bool gives a boolean.
func (v Value) Bool() (bool, error) {
	if _, _, err := v.need("Bool", 1<<formBool); err != nil {
		return false, err
	}
	switch string(v.data) {
	case "t":
		return true, nil
	case "f":
		return false, nil
	}
	return false, v.fail("Bool", ErrMalformed)
}

// Text gives PostgreSQL's text of a value of any type. String does, too, but tells a NULL from an empty text by nothing.
func (v Value) Text() (string, error) {
	if v.presence != Present {
		return "", v.fail("Text", ErrNoValue)
	}
	return string(v.data), nil
}

// Bytea gives a bytea's bytes, in memory of their own.
func (v Value) Bytea() ([]byte, error) {
	if _, _, err := v.need("Bytea", 1<<formBytea); err != nil {
		return nil, err
	}
	if len(v.data) < 2 || v.data[0] != '\\' || v.data[1] != 'x' || len(v.data)%2 != 0 {
		return nil, v.fail("Bytea", ErrMalformed)
	}
	b := make([]byte, len(v.data)/2-1)
	if _, err := hex.Decode(b, v.data[2:]); err != nil {
		return nil, v.fail("Bytea", ErrMalformed)
	}
	return b, nil
}

// JSON gives a json or jsonb as it stands: the digits of its numbers, and of a json the white space,
// order and repetition of its keys, too. It shares the value's bytes.
func (v Value) JSON() (json.RawMessage, error) {
	if _, _, err := v.need("JSON", 1<<formJSON); err != nil {
		return nil, err
	}
	return json.RawMessage(v.data), nil
}

// numericForms are those that Numeric takes.
const numericForms = 1<<formNumeric | 1<<formMoney | 1<<formInt2 | 1<<formInt4 | 1<<formInt8 | 1<<formOID | 1<<formXID8

// Numeric gives a numeric exactly: every digit, the scale (Exp is its negative if there are decimals),
// NaN, infinities. It takes integers, too, and money, in the currency's units with two decimals.
func (v Value) Numeric() (pgtype.Numeric, error) { return v.numeric("Numeric") }

func (v Value) numeric(want string) (pgtype.Numeric, error) {
	f, _, err := v.need(want, numericForms)
	if err != nil {
		return pgtype.Numeric{}, err
	}
	text := v.data
	if f == formMoney {
		var buf [32]byte
		if text = plainMoney(buf[:0], text); text == nil {
			return pgtype.Numeric{}, v.fail(want, ErrMalformed)
		}
	}
	n, err := scanText[pgtype.Numeric](pgtype.NumericCodec{}, text)
	if err != nil {
		return pgtype.Numeric{}, v.fail(want, ErrMalformed)
	}
	return n, nil
}

// plainMoney appends an amount of money without its dollar sign and commas: flo's sessions set
// lc_monetary to C. nil if it isn't one.
func plainMoney(dst, text []byte) []byte {
	if len(text) > 0 && text[0] == '-' {
		dst, text = append(dst, '-'), text[1:]
	}
	if len(text) == 0 || text[0] != '$' {
		return nil
	}
	for _, c := range text[1:] {
		if c != ',' {
			dst = append(dst, c)
		}
	}
	return dst
}

// Rat gives what Numeric gives as a fraction, for calculations. NaN and infinity are ErrNotFinite.
func (v Value) Rat() (*big.Rat, error) {
	n, err := v.numeric("Rat")
	if err != nil {
		return nil, err
	}
	if n.NaN || n.InfinityModifier != pgtype.Finite {
		return nil, v.fail("Rat", ErrNotFinite)
	}
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(max(int64(n.Exp), -int64(n.Exp))), nil)
	if n.Exp < 0 {
		return new(big.Rat).SetFrac(n.Int, power), nil
	}
	return new(big.Rat).SetInt(power.Mul(power, n.Int)), nil
}

// Infinity gives 1 for infinity, -1 for minus infinity, 0 for all else: of a date, timestamp, interval,
// real, double precision or numeric. A NULL is not infinite.
func (v Value) Infinity() int {
	const of = 1<<formDate | 1<<formTimestamp | 1<<formTimestamptz | 1<<formInterval | 1<<formFloat4 | 1<<formFloat8 | 1<<formNumeric
	if _, _, err := v.need("Infinity", of); err != nil {
		return 0
	}
	return infinity(v.data)
}

func infinity(text []byte) int {
	switch string(text) {
	case "infinity", "Infinity":
		return 1
	case "-infinity", "-Infinity":
		return -1
	}
	return 0
}

// UUID gives a uuid.
func (v Value) UUID() ([16]byte, error) {
	if _, _, err := v.need("UUID", 1<<formUUID); err != nil {
		return [16]byte{}, err
	}
	u, err := scanText[pgtype.UUID](pgtype.UUIDCodec{}, v.data)
	if err != nil {
		return [16]byte{}, v.fail("UUID", ErrMalformed)
	}
	return u.Bytes, nil
}

// LSN gives a pg_lsn.
func (v Value) LSN() (LSN, error) {
	if _, _, err := v.need("LSN", 1<<formLSN); err != nil {
		return 0, err
	}
	l, err := ParseLSN(string(v.data))
	if err != nil {
		return 0, v.fail("LSN", ErrMalformed)
	}
	return l, nil
}

// Label gives an enum's label and its place in the enum's order, from 0. The place is -1 if it is not
// known: of a label that was added after the table was last described.
func (v Value) Label() (label string, place int, err error) {
	_, t, err := v.need("Label", 1<<formEnum)
	if err != nil {
		return "", -1, err
	}
	label = string(v.data)
	return label, slices.Index(t.Labels, label), nil
}

// scanText reads text as pgtype does.
func scanText[T any](codec pgtype.Codec, text []byte) (value T, err error) {
	plan := codec.PlanScan(nil, 0, pgtype.TextFormatCode, &value)
	if plan == nil {
		return value, ErrType
	}
	if text == nil {
		text = []byte{} // nil means NULL to pgtype
	}
	err = plan.Scan(text, &value)
	return value, err
}
