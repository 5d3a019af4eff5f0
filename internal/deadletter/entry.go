// Package deadletter keeps the changes that a worker could not apply: one JetStream stream for each group, a
// subject for each letter. The subject says all that a worker has to know of a letter without reading it.
package deadletter

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pgflo/flo/decode"
)

// Kind of an Entry.
type Kind byte

const (
	Streamed Kind = 'c' // a change of the stream
	Copied   Kind = 'r' // a row of the initial copy
	// Emptied is no letter but a mark: the tables were truncated there, so that earlier letters of theirs are out
	// of date once the truncation is applied. Where a letter stands at the same position it does not count.
	Emptied Kind = 't'
)

// Row is the hash of what identifies a row within its table.
type Row [16]byte

// Entry is what a letter's subject says.
type Entry struct {
	Kind     Kind
	Position decode.Position // of Streamed and Emptied
	Copy     decode.CopyID   // of Copied
	Tables   []uint32        // OIDs; several only of a TRUNCATE
	Rows     []Row           // that the change is about, at most two: an update may change the key
	Whole    bool            // the change is about its tables as a whole, or nobody knows about which rows
}

// MaxTables is how many tables an Entry may have: a subject is bounded by the server's max_control_line.
const MaxTables = 100

// ID tells a letter from all others of its worker: "c-<commit LSN>-<ordinal>",
// "r-<point>-<table>-<attempt>-<range>-<row>" or "t-<commit LSN>-<ordinal>", LSNs as 16 hexadecimal digits.
func (e *Entry) ID() string {
	if e.Kind == Copied {
		c := &e.Copy
		return fmt.Sprintf("r-%016X-%d-%d-%d-%d", uint64(c.Point), c.Table, c.Attempt, c.Range, c.Row)
	}
	return fmt.Sprintf("%c-%016X-%d", e.Kind, uint64(e.Position.LSN), e.Position.Ordinal)
}

// LSN is the commit LSN of a change, the snapshot's point of a copied row.
func (e *Entry) LSN() decode.LSN {
	if e.Kind == Copied {
		return e.Copy.Point
	}
	return e.Position.LSN
}

// subject is the part of the subject behind the worker, without the number of the message's part.
func (e *Entry) subject() string {
	tables := make([]string, len(e.Tables))
	for i, t := range e.Tables {
		tables[i] = strconv.FormatUint(uint64(t), 10)
	}
	rows := make([]string, len(e.Rows))
	for i, r := range e.Rows {
		rows[i] = hex.EncodeToString(r[:])
	}
	about := strings.Join(rows, "-")
	switch {
	case e.Whole:
		about = "all"
	case about == "":
		about = "-"
	}
	return e.ID() + "." + cmp.Or(strings.Join(tables, "-"), "-") + "." + about
}

// parseEntry reads what subject wrote.
func parseEntry(s string) (e Entry, ok bool) {
	tokens := strings.Split(s, ".")
	if len(tokens) != 3 || len(tokens[0]) < 2 {
		return e, false
	}
	id := strings.Split(tokens[0], "-")
	e.Kind = Kind(id[0][0])
	numbers := make([]uint64, len(id)-1)
	for i, text := range id[1:] {
		base := 10
		if i == 0 {
			base = 16
		}
		n, err := strconv.ParseUint(text, base, 64)
		if err != nil {
			return e, false
		}
		numbers[i] = n
	}
	switch {
	case (e.Kind == Streamed || e.Kind == Emptied) && len(numbers) == 2:
		e.Position = decode.Position{LSN: decode.LSN(numbers[0]), Ordinal: numbers[1]}
	case e.Kind == Copied && len(numbers) == 5:
		e.Copy = decode.CopyID{Point: decode.LSN(numbers[0]), Table: uint32(numbers[1]), Attempt: uint32(numbers[2]), Range: uint32(numbers[3]), Row: numbers[4]}
	default:
		return e, false
	}
	if tokens[1] != "-" {
		for _, text := range strings.Split(tokens[1], "-") {
			n, err := strconv.ParseUint(text, 10, 32)
			if err != nil {
				return e, false
			}
			e.Tables = append(e.Tables, uint32(n))
		}
	}
	switch tokens[2] {
	case "all":
		e.Whole = true
	case "-":
	default:
		for _, text := range strings.Split(tokens[2], "-") {
			b, err := hex.DecodeString(text)
			if err != nil || len(b) != len(Row{}) {
				return e, false
			}
			e.Rows = append(e.Rows, Row(b))
		}
	}
	return e, e.subject() == s
}

// compare orders letters as the source made their changes: what was copied at a point stands behind the changes
// below the point, and before the others.
func compare(a, b *Entry) int {
	if c := cmp.Compare(a.LSN(), b.LSN()); c != 0 {
		return c
	}
	if a.Kind == Copied != (b.Kind == Copied) {
		if a.Kind == Copied {
			return -1
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(a.Position.Ordinal, b.Position.Ordinal), cmp.Compare(a.Copy.Attempt, b.Copy.Attempt), cmp.Compare(a.Copy.Table, b.Copy.Table),
		cmp.Compare(a.Copy.Range, b.Copy.Range), cmp.Compare(a.Copy.Row, b.Copy.Row), cmp.Compare(a.Kind, b.Kind), slices.Compare(a.Tables, b.Tables),
	)
}

// Obsolete reports whether e's change no longer counts because of a mark behind it: the table that it is about was
// emptied.
func (e *Entry) Obsolete(mark *Entry) bool {
	if mark.Kind != Emptied || e.Kind == Emptied || len(e.Tables) != 1 || !slices.Contains(mark.Tables, e.Tables[0]) {
		return false
	}
	if e.Kind == Copied {
		return e.Copy.Point <= mark.Position.LSN
	}
	return e.Position.Compare(mark.Position) < 0
}
