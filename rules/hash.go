package rules

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/pgflo/flo/decode"
)

// MinHashKey is the shortest key of Hash, in bytes.
const MinHashKey = 16

// Hash replaces a value by its HMAC-SHA-256 under a key: the same value becomes the same hash in every
// table and run, so joins still work, and without the key nobody can try out guesses. Keep the key
// secret and unchanged; with another one old and new rows no longer meet.
//
// Text columns (text, varchar and char of 64 and more, citext, domains over them) get 64 hexadecimal
// digits, bytea 32 bytes, uuid the hash's first 16 bytes in the form of a version 8 UUID. A char(n)
// is hashed without the blanks that fill it up, citext in lower case. NULL stays NULL, unchanged and
// absent values stay what they are; old rows are hashed too.
//
// The column may be no part of the replica identity without HashKey. Tables that lack it are left
// alone, unless Table names them exactly. The rule keeps a copy of key.
func Hash(column string, key []byte, opts ...HashOption) Rule {
	r := &hashRule{column: column, key: bytes.Clone(key)}
	for _, o := range opts {
		o(r)
	}
	return r
}

// HashOption changes what Hash accepts.
type HashOption func(*hashRule)

// HashKey lets Hash change columns of the replica identity: a row's key then is the same hash in all of
// its changes. The rule must then run for all operations, not within On.
func HashKey() HashOption { return func(r *hashRule) { r.identity = true } }

type hashRule struct {
	column   string
	key      []byte
	identity bool
}

func (r *hashRule) String() string { return fmt.Sprintf("Hash(%q)", r.column) }

// Validate implements the optional method that Validate looks for.
func (r *hashRule) Validate() error {
	switch {
	case r.column == "":
		return fmt.Errorf("rules: %w: Hash: name the column", ErrInvalidRule)
	case len(r.key) < MinHashKey:
		return fmt.Errorf("rules: %w: %s: the key has %d bytes, it needs %d or more: take them from crypto/rand, once, and keep them secret", ErrInvalidRule, r, len(r.key), MinHashKey)
	}
	return nil
}

// Bind implements Rule.
func (r *hashRule) Bind(in *decode.Relation) (*decode.Relation, Func, error) {
	return bindAlone(r, in)
}

func (r *hashRule) bind(s scope) (bound, error) {
	if err := r.Validate(); err != nil {
		return bound{}, err
	}
	find := bindColumns
	if r.identity && s.ops == 0 {
		find = findColumns
	}
	found, err := find(r.String(), s, []string{r.column})
	if err != nil || len(found) == 0 {
		return s.unchanged(), err
	}
	i := found[0]
	write := r.writer(&s.in.Columns[i])
	if write == nil {
		return bound{}, typeError(r.String(), s.in, i, "Hash works on text, varchar and char of 64 characters or more, citext, bytea, uuid and domains over them")
	}
	return s.run(s.in, eachValue(s.in, i, func(v decode.Value) (decode.Value, error) {
		if v.Presence() != decode.Present {
			return v, nil
		}
		return decode.TextValue(v.Type(), write(v.Bytes())), nil
	})), nil
}

// hexHash is the length of a hash in hexadecimal digits.
const hexHash = 2 * sha256.Size

// writer gives what hashes a column's text, nil if its type can't hold a hash.
func (r *hashRule) writer(c *decode.Column) func([]byte) []byte {
	base := baseOf(c.Type)
	sum := func(b []byte) []byte {
		h := hmac.New(sha256.New, r.key)
		h.Write(b)
		return h.Sum(nil)
	}
	switch {
	case isText(base) && base.Name == "citext":
		return func(b []byte) []byte { return hex.AppendEncode(nil, sum(bytes.ToLower(b))) }
	case isText(base):
		if n, limited := maxCharacters(c); limited && n < hexHash {
			return nil
		}
		if base.Name == "bpchar" {
			return func(b []byte) []byte { return hex.AppendEncode(nil, sum(bytes.TrimRight(b, " "))) }
		}
		return func(b []byte) []byte { return hex.AppendEncode(nil, sum(b)) }
	case isCatalog(base, "bytea"):
		return func(b []byte) []byte { return hex.AppendEncode([]byte(`\x`), sum(b)) }
	case isCatalog(base, "uuid"):
		return func(b []byte) []byte { return appendUUID(nil, sum(b)) }
	}
	return nil
}

// appendUUID writes 16 bytes as a UUID of version 8, whose bits are the maker's own.
// https://www.rfc-editor.org/rfc/rfc9562#name-uuid-version-8
func appendUUID(dst, b []byte) []byte {
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	for at, n := range [...]int{4, 2, 2, 2, 6} {
		if at > 0 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, b[:n])
		b = b[n:]
	}
	return dst
}
