package decode_test

import (
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
)

// wide is a relation like a usual table's, and an update of it.
func wide() (*decode.Relation, []byte) {
	r := &decode.Relation{OID: 20002, Schema: "public", Name: "orders", Identity: decode.IdentityDefault}
	var cols []string
	for _, c := range []struct {
		name string
		oid  uint32
		text string
	}{
		{"id", 20, "123456"}, {"count", 23, "17"}, {"name", 25, "some customer's name"}, {"price", 1700, "1234.50"},
		{"doc", 3802, `{"a": 1, "list": [1, 2, 3], "text": "some text"}`}, {"at", 1184, "2024-02-29 12:00:00.123456+00"}, {"note", 25, strings.Repeat("x", 80)},
	} {
		r.Columns = append(r.Columns, decode.Column{Name: c.name, Type: decode.BuiltinType(c.oid), Modifier: -1, Key: c.name == "id"})
		cols = append(cols, "t"+c.text)
	}
	return r, rowFrame('U', r.OID, 'N', tuple(cols...))
}

// decoder gives what one message of a stream costs: its relation again, n changes, JSON of each.
func decoder(t testing.TB, n int, asJSON bool) func() {
	rel, change := wide()
	p, a, frame, transaction := decode.NewParser(), decode.NewArena(), decode.AppendRelation(nil, rel), tx()
	var out []byte
	return func() {
		if _, err := p.Relation(frame); err != nil {
			t.Fatal(err)
		}
		for i := range n {
			c, err := p.Change(change, a)
			if err != nil {
				t.Fatal(err)
			}
			c.Tx, c.Ordinal = transaction, uint64(i)
			if asJSON {
				if out, err = c.AppendJSON(out[:0]); err != nil {
					t.Fatal(err)
				}
			}
		}
		a.Reset()
	}
}

func copyDecoder(t testing.TB, n int) func() {
	rel, change := wide()
	p := decode.NewParser()
	if _, err := p.Relation(decode.AppendRelation(nil, rel)); err != nil {
		t.Fatal(err)
	}
	c, err := p.Change(change, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.New[6] = decode.TextValue(c.New[6].Type(), []byte("with\ta tab"))
	var data []byte
	for range n {
		if data, err = decode.AppendCopyRow(data, c.New); err != nil {
			t.Fatal(err)
		}
	}
	a := decode.NewArena()
	return func() {
		r := decode.NewCopyReader(rel, data)
		for i := 0; ; i++ {
			row, ok, err := r.Next(a)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			a.CopiedRow(rel, decode.CopyID{Row: uint64(i)}, row)
		}
		a.Reset()
	}
}

func TestHotPathsDoNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("allocations are counted without the race detector")
	}
	for name, f := range map[string]func(){
		"changes":          decoder(t, 100, false),
		"changes and JSON": decoder(t, 100, true),
	} {
		f()
		if n := testing.AllocsPerRun(20, f); n != 0 {
			t.Errorf("%s: %v allocations for 100 changes", name, n)
		}
	}
	f := copyDecoder(t, 100)
	f()
	if n := testing.AllocsPerRun(20, f); n > 1 { // the reader
		t.Errorf("copy: %v allocations for 100 rows", n)
	}
	c := decode.Change{Op: decode.OpInsert, Relation: texts(1), New: decode.Row{decode.TextValue(nil, []byte("ünïcödé \xff"))}}
	out := make([]byte, 0, 1000)
	if n := testing.AllocsPerRun(20, func() { out, _ = c.AppendJSON(out[:0]) }); n != 0 {
		t.Errorf("JSON outside ASCII: %v allocations", n)
	}
}

func BenchmarkChange(b *testing.B)     { benchmark(b, decoder(b, 100, false)) }
func BenchmarkChangeJSON(b *testing.B) { benchmark(b, decoder(b, 100, true)) }
func BenchmarkCopyReader(b *testing.B) { benchmark(b, copyDecoder(b, 100)) }

// benchmark reports the time of one of 100 rows.
func benchmark(b *testing.B, hundred func()) {
	b.ReportAllocs()
	for b.Loop() {
		hundred()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/row")
}
