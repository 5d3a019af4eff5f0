package postgres

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/pgflo/flo/decode"
)

// positions are those of changes, in their order. Neither rules nor the number of lanes have a part in them, so that
// what they say of a batch holds for every later start.
type positions []decode.Position

// positionsOf gives those of streamed changes.
func positionsOf(changes []*decode.Change) positions {
	out := make(positions, 0, len(changes))
	for _, c := range changes {
		if c.Tx != nil && c.Op != decode.OpMessage {
			out = append(out, c.Position())
		}
	}
	return out
}

// has reports whether a change's position is among them.
func (p positions) has(c *decode.Change) bool {
	if len(p) == 0 || c.Tx == nil {
		return false
	}
	_, ok := slices.BinarySearchFunc(p, c.Position(), decode.Position.Compare)
	return ok
}

// from gives those at and behind an LSN.
func (p positions) from(end decode.LSN) positions {
	at, _ := slices.BinarySearchFunc(p, decode.Position{LSN: end}, decode.Position.Compare)
	return p[at:]
}

// and gives them with others, in order.
func (p positions) and(others positions) positions {
	all := slices.Concat(p, others)
	slices.SortFunc(all, decode.Position.Compare)
	return slices.Compact(all)
}

// text writes them in about two bytes each: of each transaction what its LSN has more than the one before, the number
// of changes, and of each of those what its ordinal has more than the one before, as uvarints, in base64.
func (p positions) text() string {
	var out []byte
	last := decode.LSN(0)
	for len(p) > 0 {
		n := slices.IndexFunc(p, func(q decode.Position) bool { return q.LSN != p[0].LSN })
		if n < 0 {
			n = len(p)
		}
		out = binary.AppendUvarint(out, uint64(p[0].LSN-last))
		out = binary.AppendUvarint(out, uint64(n))
		ordinal := uint64(0)
		for _, q := range p[:n] {
			out = binary.AppendUvarint(out, q.Ordinal-ordinal)
			ordinal = q.Ordinal
		}
		last, p = p[0].LSN, p[n:]
	}
	return base64.RawStdEncoding.EncodeToString(out)
}

// errPositions is a text that positions.text has not written.
var errPositions = errors.New("not the positions of changes")

// parsePositions reads what text wrote.
func parsePositions(text string) (positions, error) {
	b, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPositions, err)
	}
	next := func() (v uint64) {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			err, b = errPositions, nil
			return 0
		}
		b = b[n:]
		return v
	}
	var out positions
	at := decode.Position{}
	for len(b) > 0 {
		at = decode.Position{LSN: at.LSN + decode.LSN(next())}
		for range next() {
			if at.Ordinal += next(); err != nil {
				return nil, err
			}
			out = append(out, at)
		}
	}
	return out, err
}
