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
