package sinktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// patience is how long a sink may take to return after its context ended.
const patience = 5 * time.Second

// Run runs the suite, each part as a subtest with a destination of its own.
func Run(t *testing.T, f Factory) {
	for _, part := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"Order", testOrder},
		{"EmptyBatch", testEmptyBatch},
		{"Repetition", testRepetition},
		{"Restart", testRestart},
		{"ContextEnds", testContextEnds},
		{"NullAbsentUnchanged", testPresence},
		{"EveryOperation", testEveryOperation},
		{"CopiedRows", testCopiedRows},
		{"HostileNamesAndValues", testHostile},
		{"BigRow", testBigRow},
		{"KeepsNoBytes", testKeepsNoBytes},
		{"CloseUnused", testCloseUnused},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, f(t)) })
	}
}

// session is a sink that is open, as a worker has it.
type session struct {
	t      testing.TB
	sink   sink.Sink
	closed bool
}

func open(t *testing.T, h Harness) *session {
	t.Helper()
	s := &session{t: t, sink: h.Open(t)}
	t.Cleanup(s.close)
	if tr := as[sink.Transactional](s.sink); tr != nil {
		start := sink.Start{Group: "sinktest", Worker: "default", Incarnation: "sinktest", Epoch: 1}
		if _, err := tr.Open(t.Context(), start); err != nil {
			t.Fatalf("Open: %v", err)
		}
	}
	return s
}

// as finds an optional interface, through Unwrap too; nil if it isn't there.
func as[T sink.Sink](s sink.Sink) (found T) {
	for s != nil {
		if x, ok := s.(T); ok {
			return x
		}
		u, ok := s.(interface{ Unwrap() sink.Sink })
		if !ok {
			break
		}
		s = u.Unwrap()
	}
	return found
}

func (s *session) close() {
	if s.closed {
		return
	}
	s.closed = true
	for x := s.sink; x != nil; {
		if c, ok := x.(sink.Closer); ok {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := c.Close(ctx); err != nil {
				s.t.Errorf("Close: %v", err)
			}
			return
		}
		u, ok := x.(interface{ Unwrap() sink.Sink })
		if !ok {
			return
		}
		x = u.Unwrap()
	}
}

func (s *session) write(b *sink.Batch) {
	s.t.Helper()
	if err := s.sink.Write(s.t.Context(), b); err != nil {
		s.t.Fatalf("Write: %v", err)
	}
}

// read gives what the destination holds; ok is false if the harness can't tell.
func read(t *testing.T, h Harness) (entries []Entry, ok bool) {
	t.Helper()
	if h.Read == nil {
		return nil, false
	}
	return h.Read(t), true
}

func ids(entries []Entry) []string {
	list := make([]string, len(entries))
	for i, e := range entries {
		list[i] = e.ID
	}
	return list
}

// checkOrder wants each identity once, in order, after repeats have been dropped: a repeat is one that
// stood before.
func checkOrder(t *testing.T, h Harness, want []string, repeats bool) {
	t.Helper()
	entries, ok := read(t, h)
	if !ok {
		return
	}
	got := ids(entries)
	if repeats {
		seen := map[string]bool{}
		got = slices.DeleteFunc(got, func(id string) bool {
			was := seen[id]
			seen[id] = true
			return was
		})
	}
	if !slices.Equal(got, want) {
		t.Errorf("the destination holds %v\nwant %v", got, want)
	}
}

func testOrder(t *testing.T, h Harness) {
	src, s := newSource("public", "orders", "note"), open(t, h)
	var want []string
	for n := range 10 {
		var all []*decode.Change
		for k := range 3 {
			var tx []*decode.Change
			for i := range 1 + n*k {
				tx = append(tx, src.insert(fmt.Sprintf("%d-%d-%d", n, k, i), "x"))
			}
			all = append(all, src.transaction(tx...)...)
		}
		for _, c := range all {
			want = append(want, identity(c))
		}
		s.write(src.batch(all))
	}
	s.close()
	checkOrder(t, h, want, false)
}

func testEmptyBatch(t *testing.T, h Harness) {
	src, s := newSource("public", "t"), open(t, h)
	s.write(src.batch(nil))
	one := src.transaction(src.insert("1"))
	s.write(src.batch(one))
	s.write(src.batch(nil))
	s.close()
	checkOrder(t, h, []string{identity(one[0])}, false)
}

// testRepetition gives changes again, cut differently, as after an error. A transactional sink knows
// by its checkpoint what it has, so a worker doesn't do that to it.
func testRepetition(t *testing.T, h Harness) {
	src, s := newSource("public", "t"), open(t, h)
	if as[sink.Transactional](s.sink) != nil {
		t.Skip("a transactional sink is never given again what it has committed")
	}
	a, b, c := src.transaction(src.insert("1"), src.insert("2")), src.transaction(src.insert("3")), src.transaction(src.insert("4"))
	s.write(src.batch(slices.Concat(a, b)))
	s.write(src.batch(a))
	s.write(src.batch(slices.Concat(b, c)))
	s.close()
	checkOrder(t, h, []string{identity(a[0]), identity(a[1]), identity(b[0]), identity(c[0])}, true)
}

func testRestart(t *testing.T, h Harness) {
	src := newSource("public", "t")
	var want []string
	for i := range 3 {
		s := open(t, h)
		tx := src.transaction(src.insert(fmt.Sprint(i)))
		s.write(src.batch(tx))
		s.close()
		want = append(want, identity(tx[0]))
	}
	checkOrder(t, h, want, false)
}

func testContextEnds(t *testing.T, h Harness) {
	src, s := newSource("public", "t"), open(t, h)
	tx := src.transaction(src.insert("1"), src.insert("2"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	begin := time.Now()
	err := s.sink.Write(ctx, src.batch(tx))
	if took := time.Since(begin); took > patience {
		t.Errorf("Write took %s after its context had ended", took)
	}
	if sink.IsPermanent(err) {
		t.Errorf("the end of the context is no permanent error: %v", err)
	}
	if err != nil {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Write: %v; want context.Canceled in its chain", err)
		}
		if tr := as[sink.Transactional](s.sink); tr != nil {
			if _, err := tr.Open(t.Context(), sink.Start{Group: "sinktest", Worker: "default", Incarnation: "sinktest", Epoch: 1}); err != nil {
				t.Fatalf("Open after an error: %v", err)
			}
		}
		s.write(src.batch(tx))
	}
	s.close()
	checkOrder(t, h, []string{identity(tx[0]), identity(tx[1])}, true)
}

func testPresence(t *testing.T, h Harness) {
	src, s := newSource("public", "t", "null", "empty", "unchanged", "absent"), open(t, h)
	row := src.row("1", "", "", "", "")
	row[1], row[3], row[4] = decode.NullValue(textType()), decode.UnchangedValue(textType()), decode.Value{}
	s.write(src.batch(src.transaction(&decode.Change{Op: decode.OpUpdate, Relation: src.rel, New: row})))
	s.close()
	entries, ok := read(t, h)
	if !ok {
		return
	}
	if len(entries) != 1 {
		t.Fatalf("%d changes, want 1", len(entries))
	}
	e := entries[0]
	if v, ok := e.New["null"]; !ok || v != nil {
		t.Errorf("NULL became %v (there: %v)", v, ok)
	}
	if v := e.New["empty"]; v == nil || *v != "" {
		t.Errorf("the empty string became %v", v)
	}
	for _, name := range []string{"unchanged", "absent"} {
		if v, ok := e.New[name]; ok {
			t.Errorf("the %s column has a value: %v", name, v)
		}
	}
	if e.Unchanged != nil && !slices.Equal(e.Unchanged, []string{"unchanged"}) {
		t.Errorf("unchanged columns: %v", e.Unchanged)
	}
}

// testEveryOperation: a sink takes each operation or says ErrUnsupported, never another error.
func testEveryOperation(t *testing.T, h Harness) {
	src, s := newSource("public", "t", "v"), open(t, h)
	key := src.row("1")
	var want []string
	for _, c := range []*decode.Change{
		src.insert("1", "a"),
		{Op: decode.OpUpdate, Relation: src.rel, New: src.row("1", "b")},
		{Op: decode.OpUpdate, Relation: src.rel, Old: key, OldKey: true, New: src.row("2", "b")},
		{Op: decode.OpDelete, Relation: src.rel, Old: src.row("2"), OldKey: true},
		{Op: decode.OpTruncate, Truncate: &decode.Truncate{Relations: []*decode.Relation{src.rel}, RestartIdentity: true}},
		{Op: decode.OpSchema, Schema: &decode.SchemaChange{Tag: "COMMENT", Query: "COMMENT ON TABLE t IS 'x'"}},
		{Op: decode.OpMessage, Message: &decode.Message{Prefix: "app", Content: []byte("\x00\xff"), Transactional: true}},
	} {
		tx := src.transaction(c)
		err := s.sink.Write(t.Context(), src.batch(tx))
		switch {
		case err == nil:
			want = append(want, identity(tx[0]))
		case c.Op != decode.OpInsert && errors.Is(err, sink.ErrUnsupported):
		default:
			t.Errorf("%s: %v", c.Op, err)
		}
	}
	s.close()
	checkOrder(t, h, want, false)
}

func testCopiedRows(t *testing.T, h Harness) {
	src, s := newSource("public", "t"), open(t, h)
	var all []*decode.Change
	var want []string
	for i := range 5 {
		c := src.insert(fmt.Sprint(i))
		c.Copy = &decode.CopyID{Point: src.lsn, Table: src.rel.OID, Attempt: 1, Range: 2, Row: uint64(i)}
		all, want = append(all, c), append(want, identity(c))
	}
	s.write(src.batch(all))
	s.close()
	entries, ok := read(t, h)
	if ok && len(entries) == len(want) && entries[0].ID != want[0] && as[sink.CopySink](s.sink) != nil {
		return // a sink with a copy path of its own needn't keep the identities of single rows
	}
	checkOrder(t, h, want, false)
}

func testHostile(t *testing.T, h Harness) {
	values := []string{"plain", `quote " back \ slash`, "line\nbreak\r\n\ttab", "\x01\x1f\x7f", "\u2028\u2029", "日本語 🙂", `{"json": [1, null]}`,
		"'; DROP TABLE t; --", `\N`, `\.`, "null", strings.Repeat("x", 10000)}
	src := newSource(`Sch"ema.x`, `Ta"ble; DROP TABLE t; --`, `Col"umn`, "select", "日本", strings.Repeat("n", 63))
	s := open(t, h)
	var all []*decode.Change
	for i, v := range values {
		all = append(all, src.insert(fmt.Sprint(i), v, v, v, v))
	}
	s.write(src.batch(src.transaction(all...)))
	s.close()
	entries, ok := read(t, h)
	if !ok {
		return
	}
	if len(entries) != len(values) {
		t.Fatalf("%d changes, want %d", len(entries), len(values))
	}
	for i, e := range entries {
		if e.Schema != src.rel.Schema || e.Table != src.rel.Name {
			t.Errorf("table became %q.%q", e.Schema, e.Table)
		}
		for _, c := range src.rel.Columns[1:] {
			if got := e.New[c.Name]; got == nil || *got != values[i] {
				t.Errorf("column %q: %.60q became %v", c.Name, values[i], got)
			}
		}
	}
}

func testBigRow(t *testing.T, h Harness) {
	size := h.MaxValue
	if size == 0 {
		size = 8 << 20
	}
	src, s := newSource("public", "t", "v"), open(t, h)
	big := strings.Repeat("0123456789abcde\n", size/16)
	tx := src.transaction(src.insert("1", "small"), src.insert("2", big), src.insert("3", "small"))
	s.write(src.batch(tx))
	s.close()
	entries, ok := read(t, h)
	if !ok {
		return
	}
	if len(entries) != 3 {
		t.Fatalf("%d changes, want 3", len(entries))
	}
	if v := entries[1].New["v"]; v == nil || *v != big {
		t.Error("the big value is not what was written")
	}
}

// testKeepsNoBytes overwrites what a sink was given once Write has returned, as the worker does.
func testKeepsNoBytes(t *testing.T, h Harness) {
	src, s := newSource("public", "t", "v"), open(t, h)
	var want []string
	for i := range 20 {
		value := bytes.Repeat([]byte{'a' + byte(i)}, 100)
		c := src.insert(fmt.Sprint(i))
		c.New[1] = decode.TextValue(textType(), value)
		tx := src.transaction(c)
		want = append(want, string(value))
		s.write(src.batch(tx))
		clear(value)
		*c = decode.Change{}
		tx[0] = nil
	}
	s.close()
	entries, ok := read(t, h)
	if !ok {
		return
	}
	if len(entries) != len(want) {
		t.Fatalf("%d changes, want %d", len(entries), len(want))
	}
	for i, e := range entries {
		if v := e.New["v"]; v == nil || *v != want[i] {
			t.Errorf("change %d was altered after Write had returned", i)
		}
	}
}

func testCloseUnused(t *testing.T, h Harness) {
	s := &session{t: t, sink: h.Open(t)}
	s.close()
	checkOrder(t, h, []string{}, false)
}
