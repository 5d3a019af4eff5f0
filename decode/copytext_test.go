package decode_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
)

// texts is a relation of n text columns.
func texts(n int) *decode.Relation {
	r := &decode.Relation{OID: 20001, Schema: "public", Name: "texts", Identity: decode.IdentityNothing}
	for i := range n {
		r.Columns = append(r.Columns, decode.Column{Name: fmt.Sprintf("c%d", i), Type: decode.BuiltinType(25), Modifier: -1})
	}
	return r
}

// null stands for NULL in wanted rows.
const null = "\x00NULL"

func shown(row decode.Row) []string {
	out := []string{}
	for _, v := range row {
		if v.IsNull() {
			out = append(out, null)
		} else {
			out = append(out, v.String())
		}
	}
	return out
}

func TestCopyReader(t *testing.T) {
	for _, c := range []struct {
		data string
		want [][]string
	}{
		{"", nil},
		{"a\tb\n", [][]string{{"a", "b"}}},
		{"\t\n", [][]string{{"", ""}}},
		{`\N` + "\t" + `\\N` + "\n", [][]string{{null, `\N`}}},
		{`\b\f\n\r\t\v\\` + "\tx\n", [][]string{{"\b\f\n\r\t\v\\", "x"}}},
		{`\101\7\60\1011` + "\t" + `\x41\xa\x4g\xg\x` + "\n", [][]string{{"A\a0A1", "A\n\x04gxgx"}}},
		{`\a\.\"\N.` + "\t" + `a\N` + "\n", [][]string{{`a."N.`, "aN"}}},
		{"a\\\tb\tc\n", [][]string{{"a\tb", "c"}}},
		{"a\\\\\tb\n", [][]string{{`a\`, "b"}}},
		{`\\.` + "\t\nä\t€\n", [][]string{{`\.`, ""}, {"ä", "€"}}},
		{"a\rb\t\x01\n", [][]string{{"a\rb", "\x01"}}},
	} {
		r := decode.NewCopyReader(texts(2), []byte(c.data))
		a := decode.NewArena()
		var got [][]string
		for {
			row, ok, err := r.Next(a)
			if err != nil {
				t.Errorf("%q: %v", c.data, err)
			}
			if !ok {
				break
			}
			got = append(got, shown(row))
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%q: %q, want %q", c.data, got, c.want)
		}
	}
}

func TestCopyReaderOneAndNoColumns(t *testing.T) {
	for columns, want := range [][]string{{}, {""}} {
		r := decode.NewCopyReader(texts(columns), []byte("\n\n"))
		for range 2 {
			row, ok, err := r.Next(nil)
			if !ok || err != nil || row == nil || !reflect.DeepEqual(shown(row), want) {
				t.Errorf("%d columns: %v, %v, %v", columns, row, ok, err)
			}
		}
		if _, ok, err := r.Next(nil); ok || err != nil {
			t.Errorf("behind the end: %v, %v", ok, err)
		}
	}
}

func TestCopyReaderErrorsNameTheRowAndStay(t *testing.T) {
	for data, text := range map[string]string{
		"a\tb":                 "no newline",
		"a\tb\nc\n":            "row 1 of public.texts has 1 columns, its relation 2",
		"a\tb\tc\td\n":         "has 4 columns",
		"a\\\tb\tc\td\te\\t\n": "has 4 columns",
		"\\N\\\tb\n":           "has 1 columns",
		"a\tb\\\n":             `column "c1" ends in a lone backslash`,
		"\\.\n":                "end-of-data",
		"\n":                   "has 1 columns",
	} {
		r := decode.NewCopyReader(texts(2), []byte(data))
		var err error
		for ok := true; ok && err == nil; {
			_, ok, err = r.Next(nil)
		}
		if !errors.Is(err, decode.ErrMalformed) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, want %q", data, err, text)
		}
		if _, ok, again := r.Next(nil); ok || again != err {
			t.Errorf("%q: the error did not stay: %v", data, again)
		}
	}
	if _, _, err := decode.NewCopyReader(texts(0), []byte("x\n")).Next(nil); !errors.Is(err, decode.ErrMalformed) {
		t.Errorf("a value where there is no column: %v", err)
	}
}

func TestCopyValuesPointIntoTheData(t *testing.T) {
	data := []byte("plain\twith\\ttab\n")
	row, _, err := decode.NewCopyReader(texts(2), data).Next(decode.NewArena())
	if err != nil {
		t.Fatal(err)
	}
	data[0] = 'P'
	if row[0].String() != "Plain" || row[1].String() != "with\ttab" {
		t.Errorf("%q", shown(row))
	}
}

func TestAppendCopyRowRefusesWhatIsNotThere(t *testing.T) {
	text := decode.BuiltinType(25)
	for _, v := range []decode.Value{{}, decode.UnchangedValue(text)} {
		out, err := decode.AppendCopyRow([]byte("kept"), decode.Row{decode.NullValue(text), v})
		if err == nil || string(out) != "kept" {
			t.Errorf("%v: %q, %v", v.Presence(), out, err)
		}
	}
	out, err := decode.AppendCopyRow(nil, decode.Row{})
	if err != nil || string(out) != "\n" {
		t.Errorf("no columns: %q, %v", out, err)
	}
}

func TestCopyRowsRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	rel, a := texts(3), decode.NewArena()
	const alphabet = "\\\\\\\t\n\r\b\f\vN.x0aä\x01\xff"
	for range 2000 {
		var data []byte
		var want [][]string
		for range rnd.IntN(4) {
			row := a.Row(3)
			for i := range row {
				row[i] = decode.NullValue(decode.BuiltinType(25))
				if rnd.IntN(4) > 0 {
					b := make([]byte, rnd.IntN(6))
					for j := range b {
						b[j] = alphabet[rnd.IntN(len(alphabet))]
					}
					row[i] = decode.TextValue(decode.BuiltinType(25), b)
				}
			}
			var err error
			if data, err = decode.AppendCopyRow(data, row); err != nil {
				t.Fatal(err)
			}
			want = append(want, shown(row))
		}
		r := decode.NewCopyReader(rel, data)
		for _, w := range want {
			row, ok, err := r.Next(a)
			if err != nil || !ok || !reflect.DeepEqual(shown(row), w) {
				t.Fatalf("%q: %q, %v, %v, want %q", data, shown(row), ok, err, w)
			}
		}
		if _, ok, err := r.Next(a); ok || err != nil {
			t.Fatalf("%q: more rows, or %v", data, err)
		}
		a.Reset()
	}
}

// TestCopyFromPostgres reads what COPY TO wrote, and writes it again byte for byte.
func TestCopyFromPostgres(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, `CREATE TABLE texts (c0 text, c1 text, c2 text);
		INSERT INTO texts SELECT chr(i), 'a' || chr(i) || '\' || chr(i) || 'N', CASE WHEN i % 3 > 0 THEN '\N' END FROM generate_series(1, 300) i;
		INSERT INTO texts VALUES ('', '\.', E'\n\r\t\b\f\v\\'), (E'\r\n', NULL, repeat(E'\\\t', 70000))`)
	var out bytes.Buffer
	if _, err := db.Conn(t).PgConn().CopyTo(context.Background(), &out, `COPY (SELECT * FROM texts ORDER BY ctid) TO STDOUT`); err != nil {
		t.Fatal(err)
	}
	want := db.Query(t, `SELECT c0, c1, coalesce(c2, $$`+"NULL"+`$$) FROM texts ORDER BY ctid`)
	r, a := decode.NewCopyReader(texts(3), out.Bytes()), decode.NewArena()
	var again []byte
	for i, w := range want {
		row, ok, err := r.Next(a)
		if err != nil || !ok {
			t.Fatalf("row %d: %v, %v", i, ok, err)
		}
		for j, v := range row {
			if got := v.String(); got != w[j] && !(v.IsNull() && w[j] == flotest.Null) {
				t.Fatalf("row %d, column %d: %q, want %q", i, j, got, w[j])
			}
		}
		if again, err = decode.AppendCopyRow(again, row); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok, err := r.Next(a); ok || err != nil {
		t.Errorf("more rows than in the table, or %v", err)
	}
	if !bytes.Equal(again, out.Bytes()) {
		t.Error("written again, the rows differ from what PostgreSQL wrote")
	}
}
