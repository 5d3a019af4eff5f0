package decode_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
)

// FuzzParser feeds a relation known beforehand, a description, and two messages of any kind: they give errors of
// the two known kinds, or changes that can be cloned and written as JSON on one line.
func FuzzParser(f *testing.F) {
	var before []byte
	for _, frame := range captured(f) {
		f.Add([]byte(`{"relation":20000,"types":[{"oid":20010,"schema":"s","name":"t","kind":3,"elem":23}]}`), before, frame)
		if frame[0] == 'R' {
			before = frame
		}
	}
	f.Fuzz(func(t *testing.T, description, first, second []byte) {
		p, a := usersParser(t), decode.NewArena()
		known := func(err error) {
			if err != nil && !errors.Is(err, decode.ErrMalformed) && !errors.Is(err, decode.ErrUnknownRelation) {
				t.Fatalf("error of no kind: %v", err)
			}
		}
		known(p.DescribeJSON(description))
		for _, frame := range [][]byte{first, second} {
			known(feed(p, frame))
			if r, err := p.Relation(frame); err == nil {
				again, err := decode.NewParser().Relation(decode.AppendRelation(nil, r))
				if err != nil || again.Qualified() != r.Qualified() || len(again.Columns) != len(r.Columns) {
					t.Fatalf("%+v became %+v (%v)", r, again, err)
				}
			}
			c, err := p.Change(frame, a)
			known(err)
			if err != nil {
				continue
			}
			line, err := c.Clone().AppendJSON(nil)
			if err != nil || !json.Valid(line) || bytes.ContainsAny(line, "\n\r") {
				t.Fatalf("not a line of JSON: %q, %v", line, err)
			}
		}
	})
}

// FuzzCopyReader reads any bytes as rows: they give ErrMalformed, or rows that, written and read
// again, are the same.
func FuzzCopyReader(f *testing.F) {
	for _, s := range []string{"", "a\tb\n", "\\N\t\\\\N\n", "\\101\\x4a\\q\t\\b\\f\\n\\r\\t\\v\n", "a\\\tb\tc\n", "a\\\\\tb\nc\td\n", "x", "\\.\n", "\t\\\n", "\xff\t\\xz\n"} {
		f.Add(uint8(2), []byte(s))
	}
	f.Add(uint8(0), []byte("\n\n"))
	f.Add(uint8(1), []byte("\n\\N\n"))
	f.Fuzz(func(t *testing.T, columns uint8, data []byte) {
		rel, a := texts(int(columns%5)), decode.NewArena()
		r := decode.NewCopyReader(rel, data)
		for {
			row, ok, err := r.Next(a)
			if err != nil && !errors.Is(err, decode.ErrMalformed) {
				t.Fatalf("error of no kind: %v", err)
			}
			if !ok {
				break
			}
			line, err := decode.AppendCopyRow(nil, row)
			if err != nil || bytes.IndexByte(line, '\n') != len(line)-1 {
				t.Fatalf("%q written as %q, %v", shown(row), line, err)
			}
			again, ok, err := decode.NewCopyReader(rel, line).Next(a)
			if err != nil || !ok {
				t.Fatalf("%q read again: %v", line, err)
			}
			for i := range row {
				if row[i].Presence() != again[i].Presence() || !bytes.Equal(row[i].Bytes(), again[i].Bytes()) {
					t.Fatalf("%q became %q", shown(row), shown(again))
				}
			}
		}
	})
}

// FuzzValue reads any text as every kind of type: it gives a value or ErrMalformed, and takes no more memory than
// the text's own size allows.
func FuzzValue(f *testing.F) {
	for i, typ := range fuzzTypes() {
		for _, c := range malformedValues {
			if c.typ.Name == typ.Name {
				for _, text := range c.texts {
					f.Add(uint8(i), []byte(text))
				}
			}
		}
		for _, text := range oracleValues[strings.TrimPrefix(typ.Name, "_")] {
			f.Add(uint8(i), []byte(text))
		}
		for _, text := range oracleValues[strings.TrimPrefix(typ.Name, "_")+"[]"] {
			f.Add(uint8(i), []byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, text []byte) {
		types := fuzzTypes()
		typ := types[int(which)%len(types)]
		v := decode.TextValue(typ, text)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := v.Any()
		runtime.ReadMemStats(&after)
		if limit := uint64(1<<20 + 2000*len(text)); after.TotalAlloc-before.TotalAlloc > limit {
			t.Fatalf("%d bytes allocated for %d of text", after.TotalAlloc-before.TotalAlloc, len(text))
		}
		if err != nil && (!errors.Is(err, decode.ErrMalformed) || got != nil) {
			t.Fatalf("error of no kind: %v, %v", got, err)
		}
		for name, get := range access {
			if _, err := get(v); err != nil && !errors.Is(err, decode.ErrMalformed) && !errors.Is(err, decode.ErrType) && !errors.Is(err, decode.ErrNotFinite) {
				t.Fatalf("%s: error of no kind: %v", name, err)
			}
		}
		rel := &decode.Relation{Schema: "s", Name: "t", Columns: []decode.Column{{Name: "c", Type: typ}}}
		c := &decode.Change{Op: decode.OpInsert, Relation: rel, New: decode.Row{v}}
		for _, encode := range []decode.Encoder{decode.JSON, decode.Debezium("f")} {
			line, err := encode(nil, c)
			if err != nil || !json.Valid(line) || bytes.ContainsAny(line, "\n\r") {
				t.Fatalf("not a line of JSON: %q, %v", line, err)
			}
		}
	})
}

// fuzzTypes are the types whose text is parsed, and some that are made of others.
func fuzzTypes() []*decode.Type {
	var types []*decode.Type
	for oid := range uint32(7000) {
		if t := decode.BuiltinType(oid); t != nil {
			types = append(types, t)
		}
	}
	pairs := userType(decode.ArrayType, pairType())
	outer := userType(decode.CompositeType, nil)
	outer.Fields = []decode.Field{{Name: "list", Type: pairs}, {Name: "r", Type: decode.BuiltinType(3908)}, {Name: "m", Type: decode.BuiltinType(4533)}}
	hstore := &decode.Type{OID: 20001, Schema: "public", Name: "hstore", Extension: "hstore"}
	return append(types, pairType(), pairs, outer, hstore, userType(decode.DomainType, pairs))
}
