// Package records is the text that the sinks stdout and file write: one JSON object after the other, each
// on a line of its own, or indented.
package records

import (
	"bytes"
	"encoding/json"

	"github.com/pgflo/flo/decode"
)

// Prefix is how every object on a line begins, whatever the envelope (decode.Encoder).
const Prefix = `{"op":"`

// PrettyPrefix is how every indented object begins.
const PrettyPrefix = "{\n" + indent + `"op": "`

const indent = "  "

// Format writes changes. It keeps buffers, so it is for one goroutine.
type Format struct {
	encode   decode.Encoder
	pretty   bool
	one      []byte
	indented bytes.Buffer
}

// NewFormat makes a Format of an envelope; nil is decode.JSON.
func NewFormat(encode decode.Encoder, pretty bool) *Format {
	if encode == nil {
		encode = decode.JSON
	}
	return &Format{encode: encode, pretty: pretty}
}

// Prefix is how every object of the format begins.
func (f *Format) Prefix() string {
	if f.pretty {
		return PrettyPrefix
	}
	return Prefix
}

// Append appends a change's objects, each with a newline behind it, and gives how many they are: an
// envelope may have none or several. On an error nothing is appended.
//
// No indented object has a line within it that begins with '}': that is how its end is found.
func (f *Format) Append(dst []byte, c *decode.Change) (out []byte, objects int, err error) {
	if f.pretty {
		return f.appendPretty(dst, c)
	}
	out, err = f.encode(dst, c)
	if err != nil || len(out) == len(dst) {
		return dst, 0, err
	}
	objects = 1 + bytes.Count(out[len(dst):], []byte{'\n'})
	return append(out, '\n'), objects, nil
}

func (f *Format) appendPretty(dst []byte, c *decode.Change) (out []byte, objects int, err error) {
	f.one, err = f.encode(f.one[:0], c)
	if err != nil {
		return dst, 0, err
	}
	f.indented.Reset()
	for line := range bytes.Lines(f.one) {
		if err := json.Indent(&f.indented, bytes.TrimSuffix(line, []byte{'\n'}), "", indent); err != nil {
			return dst, 0, err
		}
		f.indented.WriteByte('\n')
		objects++
	}
	dst = append(dst, f.indented.Bytes()...)
	const keep = 4 << 20 // a huge row's buffers are let go
	if cap(f.one) > keep {
		f.one = nil
	}
	if f.indented.Cap() > keep {
		f.indented = bytes.Buffer{}
	}
	return dst, objects, nil
}
