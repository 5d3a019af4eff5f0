package decode

import (
	"errors"
	"fmt"
)

// ErrMalformed is wrapped by every error about bytes that are not what PostgreSQL sends: cut, of an
// unknown kind, or not matching the relation that they name. The same bytes fail again however often
// they are tried: look for what damaged them, or for a newer flo.
var ErrMalformed = errors.New("decode: malformed bytes")

// ErrUnknownRelation is wrapped by the error about a change whose relation no Relation message has
// described yet. PostgreSQL describes a relation before its first change, so a reader that started
// in the middle, or lost a message, sees it.
var ErrUnknownRelation = errors.New("decode: change of a relation that was not described before it")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

func unknownRelation(oid uint32) error {
	return fmt.Errorf("%w: OID %d; read the stream from a message's first record", ErrUnknownRelation, oid)
}

// What a TypeError wraps, beside ErrMalformed for text that isn't of the value's type.
var (
	// ErrNoValue: the value is NULL, absent or unchanged (Value.Presence says which), so there is nothing to give.
	ErrNoValue = errors.New("decode: no value")
	// ErrType: the column's type is another than the one asked for. Value.Any and Value.Text take every type.
	ErrType = errors.New("decode: the column is of another type")
	// ErrNotFinite: the value is infinity, or NaN, and what was asked for can't hold it. Value.Infinity
	// tells it beforehand.
	ErrNotFinite = errors.New("decode: the value is infinity or NaN")
)

// TypeError is the error of a Value's typed access. It wraps ErrNoValue, ErrType, ErrNotFinite or
// ErrMalformed, and never holds the value itself, which may be a secret.
type TypeError struct {
	Type     *Type    // of the column; nil if it is not known
	Presence Presence // of the value
	Want     string   // what was asked for: "Int64", "Array" …
	Err      error    // one of the four
}

// Error names what was asked for, what there is, and why it doesn't go together.
func (e *TypeError) Error() string {
	name := "unknown type"
	if e.Type != nil {
		name = e.Type.Schema + "." + e.Type.Name
	}
	if e.Presence != Present {
		return fmt.Sprintf("%v: %s of a %s that is %s", e.Err, e.Want, name, e.Presence)
	}
	return fmt.Sprintf("%v: %s of a %s", e.Err, e.Want, name)
}

// Unwrap gives Err.
func (e *TypeError) Unwrap() error { return e.Err }
