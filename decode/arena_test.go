package decode_test

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/pgflo/flo/decode"
)

func TestArenaGivesZeroesThatDoNotOverlap(t *testing.T) {
	a := decode.NewArena()
	for round := range 3 {
		var rows []decode.Row
		var texts [][]byte
		for i := range 5000 {
			c, row, b := a.Change(), a.Row(i%7), a.Bytes(i%100)
			if !reflect.DeepEqual(*c, decode.Change{}) || row == nil || b == nil || cap(row) != len(row) || cap(b) != len(b) {
				t.Fatalf("round %d: %+v", round, c)
			}
			c.Ordinal = uint64(i)
			for j := range row {
				if row[j].Presence() != decode.Absent {
					t.Fatalf("round %d: %+v", round, row[j])
				}
				row[j] = decode.TextValue(nil, []byte{byte(i)})
			}
			for j := range b {
				if b[j] != 0 {
					t.Fatalf("round %d: bytes not cleared", round)
				}
				b[j] = byte(i)
			}
			rows, texts = append(rows, row), append(texts, b)
		}
		for i := range rows {
			for _, v := range rows[i] {
				if v.Bytes()[0] != byte(i) {
					t.Fatal("rows overlap")
				}
			}
			if !bytes.Equal(texts[i], bytes.Repeat([]byte{byte(i)}, i%100)) {
				t.Fatal("bytes overlap")
			}
		}
		a.Reset()
	}
}

func TestArenaIsBoundedAndReused(t *testing.T) {
	a := decode.NewArena()
	batch := func(n int) float64 {
		return testing.AllocsPerRun(1, func() {
			for range n {
				a.CopiedRow(nil, decode.CopyID{}, a.Row(10))
				a.Bytes(20)
			}
			a.Reset()
		})
	}
	batch(1000)
	if n := batch(1000); n != 0 {
		t.Errorf("%v allocations for a batch like the one before", n)
	}
	batch(200_000)
	if n := batch(200_000); n < 500 {
		t.Errorf("%v allocations for a huge batch: Reset kept all of the one before", n)
	}
	if n := batch(10_000); n != 0 {
		t.Errorf("%v allocations for a batch below the limit", n)
	}
	if row := a.Row(60_000); len(row) != 60_000 {
		t.Error("a row wider than a slab")
	}
}

func TestCloneSharesNoBytes(t *testing.T) {
	p := decode.NewParser()
	for i, f := range captured(t) {
		f = bytes.Clone(f)
		if bytes.IndexByte([]byte("IUDTM"), f[0]) < 0 {
			if err := feed(p, f); err != nil {
				t.Fatal(err)
			}
			continue
		}
		a := decode.NewArena()
		c, err := p.Change(f, a)
		if err != nil {
			t.Fatal(err)
		}
		c.Tx, c.Ordinal, c.Copy = tx(), 3, &decode.CopyID{Row: 9}
		clone := c.Clone()
		if !reflect.DeepEqual(c, clone) {
			t.Fatalf("frame %d: %+v, cloned %+v", i, c, clone)
		}
		if clone.Tx == c.Tx || clone.Copy == c.Copy || clone.Relation != c.Relation {
			t.Fatalf("frame %d: what is shared: %+v", i, clone)
		}
		want, err := clone.AppendJSON(nil)
		if err != nil {
			t.Fatal(err)
		}
		clear(f)
		c.Tx.XID, c.Copy.Row = 0, 0
		a.Reset()
		if got, err := clone.AppendJSON(nil); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("frame %d: the clone changed: %s, %v", i, got, err)
		}
	}
	c := decode.Change{Op: decode.OpSchema, Schema: &decode.SchemaChange{Tag: "x"}}
	if d := c.Clone(); d.Schema == c.Schema || d.Schema.Tag != "x" || d.New != nil {
		t.Errorf("%+v", d)
	}
}
