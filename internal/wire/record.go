package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"github.com/pgflo/flo/decode"
)

// RecordType is a record's first byte. Letters are pgoutput messages, passed through as PostgreSQL
// sent them ('B', 'C', 'O', 'R', 'Y', 'I', 'U', 'D', 'T', 'M'; 'S', 'E', 'c' and 'A'
// are never passed on); bytes below 0x40 are flo's own.
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
type RecordType byte

const (
	RecDescribe  RecordType = 0x01 // a decode.Description, JSON, before the Relation message it belongs to
	RecInit      RecordType = 0x02 // a slot is about to be created, JSON Init
	RecStart     RecordType = 0x03 // it was created: changes begin here, JSON Start
	RecCopyBegin RecordType = 0x04 // describes a table that an attempt copies, JSON CopyBegin
	RecCopyDone  RecordType = 0x05 // all tables of the attempt are whole in the stream, JSON CopyDone
	RecIdle      RecordType = 0x06 // nothing happened up to Header.To.End
	RecAbort     RecordType = 0x07 // forget the open transaction; it comes again whole
	RecBarrier   RecordType = 0x08 // kept for live re-copies
	RecRound     RecordType = 0x09 // some tables are copied afresh, or for the first time: the worker drains them here, JSON Round
	RecStreamed  RecordType = 0x0A // a whole transaction whose changes are staged, JSON Streamed
	RecSub       RecordType = 0x0B // in staged messages: of which subtransaction the frames behind it are, a uvarint
	RecStagedEnd RecordType = 0x0C // how long a transaction's staged messages are needed, JSON StagedEnd
	RecCopyChunk RecordType = 0x10 // copied rows, binary CopyChunk
	RecCopyEnd   RecordType = 0x11 // a table's copy is whole, JSON CopyEnd
)

// Init is written before a replication slot is created: a slot found behind it, with no Start, was
// never read and may be dropped.
type Init struct {
	Attempt uint32 `json:"attempt"`
	Slot    string `json:"slot"`
}

// Start says where changes begin.
type Start struct {
	Attempt  uint32     `json:"attempt"`
	Point    decode.LSN `json:"point"` // the slot's consistent point
	Slot     string     `json:"slot"`
	System   string     `json:"system"` // IDENTIFY_SYSTEM's systemid
	Database string     `json:"database"`
	Timeline int32      `json:"timeline"`
	Mode     string     `json:"mode"`
	// Tables are those that the worker drains here before it goes on.
	Tables []uint32 `json:"tables,omitempty"`
	// Before is the attempt that preceded this one in the stream; 0: none.
	Before uint32 `json:"before,omitempty"`
}

// Round is an attempt that goes on with what the stream has: tables whose copy was cut short, that were
// rewritten under it, or that joined the group. The worker drains them before it goes on, and then skips, of
// each, the changes of transactions that committed below the point that its CopyBegin names: the copy
// holds them.
type Round struct {
	Attempt uint32 `json:"attempt"`
	// Base is the attempt of the Start that this one goes on from; what older attempts copied counts no more.
	// 0: all that was copied since is drained.
	Base uint32 `json:"base,omitempty"`
	// Tables of the group, by the attempt that copies, or copied, them; 0: drained long ago.
	Tables []RoundTables `json:"tables"`
	// Before is the attempt that preceded this one in the stream.
	Before uint32 `json:"before,omitempty"`
}

// RoundTables are tables of one attempt.
type RoundTables struct {
	Attempt uint32   `json:"attempt"`
	Tables  []uint32 `json:"tables"`
}

// Latest gives the attempt that counts for each table of the group.
func (r *Round) Latest() map[uint32]uint32 {
	latest := map[uint32]uint32{}
	for _, t := range r.Tables {
		for _, oid := range t.Tables {
			latest[oid] = t.Attempt
		}
	}
	return latest
}

// NewRound groups the tables by their attempts.
func NewRound(attempt, base uint32, latest map[uint32]uint32) Round {
	by := map[uint32][]uint32{}
	for oid, a := range latest {
		by[a] = append(by[a], oid)
	}
	r := Round{Attempt: attempt, Base: base}
	for _, a := range slices.Sorted(maps.Keys(by)) {
		slices.Sort(by[a])
		r.Tables = append(r.Tables, RoundTables{Attempt: a, Tables: by[a]})
	}
	return r
}

// CopyBegin describes a table before its chunks. Relation is a pgoutput Relation message made from the
// catalog, Point the consistent point of the snapshot, Schema a decode.SchemaChange: the table's structure, where
// schema changes are replicated.
type CopyBegin struct {
	Table    uint32     `json:"table"`
	Attempt  uint32     `json:"attempt"`
	Point    decode.LSN `json:"point"`
	Relation []byte     `json:"relation"`

	Schema json.RawMessage `json:"schema,omitempty"`
}

// CopyDone ends an attempt's copy.
type CopyDone struct {
	Attempt uint32 `json:"attempt"`
	// Finished: nothing follows, the mode was CopyOnly.
	Finished bool `json:"finished,omitempty"`
}

// CopyEnd ends a table's copy.
type CopyEnd struct {
	Table   uint32 `json:"table"`
	Attempt uint32 `json:"attempt"`
	Chunks  uint64 `json:"chunks"`
	Rows    uint64 `json:"rows"`
}

// CopyChunk is a run of whole rows in COPY's text format.
type CopyChunk struct {
	ID   decode.CopyID // Row is the first row's number within the range
	Rows uint64
	Data []byte
}

// Record of a body. Data is without the type byte for flo's own records, with it for pgoutput's.
type Record struct {
	Type RecordType
	Data []byte
}

// AppendFrame appends a pgoutput message as a record.
func AppendFrame(dst, frame []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(frame)))
	return append(dst, frame...)
}

// AppendRecord appends one of flo's own records.
func AppendRecord(dst []byte, t RecordType, data []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(data)+1))
	dst = append(dst, byte(t))
	return append(dst, data...)
}

// AppendJSON appends one of flo's own records whose data is JSON.
func AppendJSON(dst []byte, t RecordType, v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return dst, fmt.Errorf("wire: record %#x: %w", byte(t), err)
	}
	return AppendRecord(dst, t, data), nil
}

// AppendCopyChunk appends copied rows.
func AppendCopyChunk(dst []byte, c *CopyChunk) []byte {
	return append(AppendCopyChunkHead(dst, c), c.Data...)
}

// CopyChunkRoom is more than the head of a copy chunk takes, in bytes.
const CopyChunkRoom = 80

// AppendCopyChunkHead appends all of the record that stands before c.Data.
func AppendCopyChunkHead(dst []byte, c *CopyChunk) []byte {
	var head [CopyChunkRoom]byte
	h := append(head[:0], byte(RecCopyChunk))
	for _, v := range []uint64{uint64(c.ID.Point), uint64(c.ID.Table), uint64(c.ID.Attempt), uint64(c.ID.Range), c.ID.Row, c.Rows} {
		h = binary.AppendUvarint(h, v)
	}
	dst = binary.AppendUvarint(dst, uint64(len(h)+len(c.Data)))
	return append(dst, h...)
}

// ParseCopyChunk reads a RecCopyChunk record's data, which it aliases.
func ParseCopyChunk(data []byte) (CopyChunk, error) {
	r := reader{b: data}
	var c CopyChunk
	c.ID.Point = decode.LSN(r.uvarint())
	c.ID.Table = r.uint32()
	c.ID.Attempt = r.uint32()
	c.ID.Range = r.uint32()
	c.ID.Row = r.uvarint()
	c.Rows = r.uvarint()
	c.Data = r.b
	if r.bad {
		return c, fmt.Errorf("%w: copy chunk cut", ErrFormat)
	}
	return c, nil
}

// Next takes the first record off a body. It returns a zero Type at the end.
func Next(body []byte) (rec Record, rest []byte, err error) {
	if len(body) == 0 {
		return Record{}, nil, nil
	}
	n, k := binary.Uvarint(body)
	if k <= 0 || n == 0 || n > uint64(len(body)-k) {
		return Record{}, nil, fmt.Errorf("%w: record cut", ErrFormat)
	}
	data := body[k : k+int(n)]
	rest = body[k+int(n):]
	t := RecordType(data[0])
	if t == 0 { // would be taken for the end
		return Record{}, nil, fmt.Errorf("%w: record of type 0", ErrFormat)
	}
	if t < 0x40 {
		data = data[1:]
	}
	return Record{Type: t, Data: data}, rest, nil
}

// IsChange reports whether a pgoutput message counts for Ordinal: Insert, Update, Delete, Truncate,
// and Message with flo's prefix.
func IsChange(frame []byte) bool {
	return len(frame) > 0 && IsSplitChange(frame[0], frame[1:])
}

// IsSplitChange is IsChange of a message that comes in two pieces: its type and the rest.
func IsSplitChange(kind byte, rest []byte) bool {
	switch kind {
	case 'I', 'U', 'D', 'T':
		return true
	case 'M':
		return isFloMessage(rest)
	}
	return false
}

// isFloMessage reads a Message's prefix, behind the type: flags (1 byte), LSN (8 bytes), prefix as a C string.
func isFloMessage(rest []byte) bool {
	const prefix = "flo\x00"
	return len(rest) >= 9+len(prefix) && string(rest[9:9+len(prefix)]) == prefix
}

// Hasher is the running hash of an open transaction's change frames: CRC-32C of the bytes and their
// number. It tells whether a transaction that is decoded again begins as the published part does.
type Hasher struct {
	crc uint32
	n   uint32
}

// ResumeHasher goes on from a hash taken by Sum.
func ResumeHasher(sum uint64) Hasher { return Hasher{crc: uint32(sum >> 32), n: uint32(sum)} }

// Add a change frame.
func (h *Hasher) Add(frame []byte) {
	h.crc = crc32.Update(h.crc, castagnoli, frame)
	h.n += uint32(len(frame))
}

// Sum of the frames so far.
func (h *Hasher) Sum() uint64 { return uint64(h.crc)<<32 | uint64(h.n) }

var castagnoli = crc32.MakeTable(crc32.Castagnoli)
