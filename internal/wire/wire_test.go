package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
)

var update = flag.Bool("update", false, "write the golden files anew")

// samples are messages that between them use every field and every record.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	asJSON := func(dst []byte, typ RecordType, v any) []byte {
		t.Helper()
		dst, err := AppendJSON(dst, typ, v)
		if err != nil {
			t.Fatal(err)
		}
		return dst
	}
	from := Point{LSN: 0x1_6B3748, End: 0x1_6B3778}
	all := map[string][]byte{}

	b := AppendHeader(nil, &Header{Kind: Changes, Session: 0x0102030405060708})
	all["empty"] = b

	b = AppendHeader(nil, &Header{Kind: Changes, Session: 1, Attempt: 1, Timeline: 1, To: Point{LSN: 0, End: 0x1_000000}})
	b = asJSON(b, RecInit, Init{Attempt: 1, Slot: "flo_g"})
	b = asJSON(b, RecStart, Start{Attempt: 1, Point: 0x1_000000, Slot: "flo_g", System: "7300000000000000000",
		Database: "db", Timeline: 1, Mode: "copy-and-stream", Tables: []uint32{16384, 16390}})
	b = asJSON(b, RecRound, NewRound(2, 1, map[uint32]uint32{16390: 2, 16384: 1, 16500: 2}))
	b = asJSON(b, RecCopyDone, CopyDone{Attempt: 1, Finished: true})
	all["start"] = b

	b = AppendHeader(nil, &Header{Kind: Changes, Session: 1, Attempt: 1, CopyDone: true, Start: 300, Timeline: 2, From: from,
		To: Point{LSN: 0x2_000000, End: 0x1_6B3778, Open: true, Ordinal: 1000, Hash: 0xDEADBEEF00000064}})
	b = AppendRecord(b, RecDescribe, []byte(`{}`))
	for _, frame := range []string{"R\x00\x00\x40\x00s\x00t\x00d\x00\x00", "B0123456789abcdefghij", "I\x00\x00\x40\x00N\x00\x00", "C\x000123456789abcdefghijklmn"} {
		b = AppendFrame(b, []byte(frame))
	}
	all["open"] = b

	b = AppendHeader(nil, &Header{Kind: Changes, Session: 1, Attempt: 1, Start: 300, From: Point{LSN: 5, End: 3, Open: true, Ordinal: 7, Hash: 9}, To: Point{LSN: 3, End: 8}})
	b = AppendRecord(b, RecAbort, nil)
	b = AppendRecord(b, RecIdle, nil)
	b = AppendRecord(b, RecBarrier, []byte(`{}`))
	all["markers"] = b

	b = AppendHeader(nil, &Header{Kind: Copy, Session: math.MaxUint64, Attempt: math.MaxUint32, Start: math.MaxUint64,
		Partition: math.MaxUint32, Timeline: math.MaxUint32, From: from, To: from, Part: math.MaxUint32 - 1, Parts: math.MaxUint32})
	b = asJSON(b, RecCopyBegin, CopyBegin{Table: 16384, Attempt: 1, Point: 0x1_000000, Relation: []byte("R\x00\x00\x40\x00s\x00t\x00d\x00\x00")})
	b = AppendCopyChunk(b, &CopyChunk{ID: decode.CopyID{Point: 0x1_000000, Table: 16384, Attempt: 1, Range: 3, Row: 4096}, Rows: 2, Data: []byte("1\ta\n2\t\\N\n")})
	b = asJSON(b, RecCopyEnd, CopyEnd{Table: 16384, Attempt: 1, Chunks: 4, Rows: 4098})
	all["copy"] = b

	b = AppendHeader(nil, &Header{Kind: Staged, Session: 1, Attempt: 1, Start: 300, Timeline: 1})
	b = AppendSub(b, 0)
	b = AppendFrame(b, []byte("R\x00\x00\x40\x00s\x00t\x00d\x00\x00"))
	b = AppendSplitFrame(b, 'I', []byte("\x00\x00\x40\x00N\x00\x00"))
	b = AppendSub(b, 300)
	b = AppendSplitFrame(b, 'I', []byte("\x00\x00\x40\x00N\x00\x00"))
	b = asJSON(b, RecStagedEnd, StagedEnd{XID: 731, End: 0x2_000030})
	b = asJSON(b, RecStreamed, Streamed{
		XID: 731, Commit: 0x2_000000, End: 0x2_000030, Time: time.Date(2026, 11, 22, 1, 2, 3, 456789000, time.UTC), Origin: "o",
		First: 17, Last: 40, Messages: 20, Aborted: XIDSet{{3, 3}, {5, 300}},
		Relations: []StreamedRelation{{OID: 16384, Name: decode.Name{Schema: "s", Name: "t"}, Description: []byte(`{"relation":16384}`)}},
	})
	all["streamed"] = b
	return all
}

// The bytes of version 1 never change: a stream outlives the program that wrote it.
func TestGolden(t *testing.T) {
	for name, msg := range samples(t) {
		file := filepath.Join("testdata", name+".hex")
		text := hex.Dump(msg)
		if *update {
			if err := os.MkdirAll("testdata", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.ReplaceAll(string(want), "\r", ""); got != text {
			t.Errorf("%s: the bytes have changed: readers of existing streams would break; is\n%swas\n%s", name, text, got)
		}
	}
}

func TestSamplesAreRead(t *testing.T) {
	want := map[string][]RecordType{
		"empty":    nil,
		"start":    {RecInit, RecStart, RecRound, RecCopyDone},
		"open":     {RecDescribe, 'R', 'B', 'I', 'C'},
		"markers":  {RecAbort, RecIdle, RecBarrier},
		"copy":     {RecCopyBegin, RecCopyChunk, RecCopyEnd},
		"streamed": {RecSub, 'R', 'I', RecSub, 'I', RecStagedEnd, RecStreamed},
	}
	for name, msg := range samples(t) {
		_, body, err := Parse(msg)
		if err != nil {
			t.Fatal(name, err)
		}
		var got []RecordType
		for {
			rec, rest, err := Next(body)
			if err != nil {
				t.Fatal(name, err)
			}
			if rec.Type == 0 {
				break
			}
			if rec.Type >= 0x40 && rec.Data[0] != byte(rec.Type) {
				t.Errorf("%s: a frame lost its type", name)
			}
			got = append(got, rec.Type)
			body = rest
		}
		if !reflect.DeepEqual(got, want[name]) {
			t.Errorf("%s: records %v, want %v", name, got, want[name])
		}
	}
}

func randomPoint(r *rand.Rand) Point {
	p := Point{LSN: decode.LSN(r.Uint64() >> r.IntN(64)), End: decode.LSN(r.Uint64() >> r.IntN(64))}
	if r.IntN(2) == 0 {
		p.Open, p.Ordinal, p.Hash = true, r.Uint64()>>r.IntN(64), r.Uint64()
	}
	return p
}

func TestHeaderRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 20_000 {
		h := Header{
			Kind: Kind(1 + r.IntN(3)), Session: r.Uint64(), Attempt: r.Uint32() >> r.IntN(32), CopyDone: r.IntN(2) == 0,
			Start: r.Uint64() >> r.IntN(64), Partition: r.Uint32() >> r.IntN(32), Timeline: r.Uint32() >> r.IntN(32),
			From: randomPoint(r), To: randomPoint(r), Parts: 1 + r.Uint32N(math.MaxUint32),
		}
		h.Part = r.Uint32N(h.Parts)
		body := []byte("body")
		b := AppendHeader([]byte("before"), &h)[len("before"):]
		if len(b) > HeaderRoom {
			t.Fatalf("%+v takes %d bytes, HeaderRoom is %d", h, len(b), HeaderRoom)
		}
		got, rest, err := Parse(append(b, body...))
		if err != nil || got != h || !bytes.Equal(rest, body) {
			t.Fatalf("wrote %+v, read %+v, rest %q, %v", h, got, rest, err)
		}
		if _, _, err := Parse(b[:r.IntN(len(b))]); !errors.Is(err, ErrFormat) {
			t.Fatalf("a cut header of %+v: %v", h, err)
		}
	}
}

func TestPartsDefaultToOne(t *testing.T) {
	h, _, err := Parse(AppendHeader(nil, &Header{Kind: Copy}))
	if err != nil || h.Parts != 1 || h.Part != 0 {
		t.Fatal(h, err)
	}
}

func TestCopyChunkRoundTrip(t *testing.T) {
	for _, want := range []CopyChunk{
		{Data: []byte{}},
		{ID: decode.CopyID{Point: math.MaxUint64, Table: math.MaxUint32, Attempt: math.MaxUint32, Range: math.MaxUint32, Row: math.MaxUint64},
			Rows: math.MaxUint64, Data: []byte("x\n")},
	} {
		rec, rest, err := Next(AppendCopyChunk(nil, &want))
		if err != nil || rec.Type != RecCopyChunk || len(rest) != 0 {
			t.Fatal(rec, rest, err)
		}
		got, err := ParseCopyChunk(rec.Data)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("read %+v, wrote %+v: %v", got, want, err)
		}
	}
	if _, err := ParseCopyChunk([]byte{1, 2, 3}); !errors.Is(err, ErrFormat) {
		t.Fatal(err)
	}
}

func TestBadMessagesAreErrors(t *testing.T) {
	good := AppendHeader(nil, &Header{Kind: Changes})
	change := func(i int, c byte) []byte { b := bytes.Clone(good); b[i] = c; return b }
	for name, msg := range map[string][]byte{
		"nothing": nil, "magic": change(0, 'x'), "version": change(3, '2'), "kind 0": change(4, 0), "kind 4": change(4, 4), "flags": change(5, 16),
		"parts 0": change(len(good)-5, 0),
	} {
		if _, _, err := Parse(msg); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, body := range map[string][]byte{
		"empty record": {0}, "cut": {5, 'I'}, "huge": {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 'I'},
		"overlong": bytes.Repeat([]byte{0xff}, 12), "type 0": {1, 0},
	} {
		if _, _, err := Next(body); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestIsChange(t *testing.T) {
	for frame, want := range map[string]bool{
		"": false, "I": true, "U": true, "D": true, "T": true, "B": false, "C": false, "R": false, "M": false,
		"M\x0112345678flo\x00": true, "M\x0112345678flow\x00": false, "M\x0112345678flo": false,
	} {
		if IsChange([]byte(frame)) != want {
			t.Errorf("%q", frame)
		}
	}
}

func TestHasherResumes(t *testing.T) {
	var whole, first Hasher
	for _, f := range []string{"Ia", "Ub", "Dc"} {
		whole.Add([]byte(f))
	}
	first.Add([]byte("Ia"))
	second := ResumeHasher(first.Sum())
	second.Add([]byte("Ub"))
	second.Add([]byte("Dc"))
	if second.Sum() != whole.Sum() || first.Sum() == whole.Sum() {
		t.Fatal(first.Sum(), second.Sum(), whole.Sum())
	}
	// CRC-32C of IaUbDc, and six bytes: pinned, since it stands in streams.
	if got := whole.Sum(); got != 0x8c107f2d00000006 {
		t.Fatalf("%#x", got)
	}
}

// FuzzParse reads arbitrary bytes as a message: an error or records that lie within it, no panic,
// nothing allocated by what a length claims.
func FuzzParse(f *testing.F) {
	for _, msg := range samples(f) {
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		h, body, err := Parse(msg)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatal(err)
			}
			return
		}
		again, _, err := Parse(AppendHeader(nil, &h))
		if err != nil || again != h {
			t.Fatalf("%+v became %+v: %v", h, again, err)
		}
		total := 0
		for len(body) > 0 {
			rec, rest, err := Next(body)
			if err != nil {
				if !errors.Is(err, ErrFormat) {
					t.Fatal(err)
				}
				return
			}
			if rec.Type == 0 || len(rest) >= len(body) {
				t.Fatal("a record that takes nothing")
			}
			total += len(rec.Data)
			body = rest
			switch rec.Type {
			case RecCopyChunk:
				if c, err := ParseCopyChunk(rec.Data); err == nil && len(c.Data) > len(rec.Data) {
					t.Fatal("a chunk larger than its record")
				}
			default:
				IsChange(rec.Data)
			}
		}
		if total > len(msg) {
			t.Fatalf("%d bytes of records in a message of %d", total, len(msg))
		}
	})
}
