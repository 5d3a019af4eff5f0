package sinktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// Run runs the suite, each part as a subtest with a destination of its own.
func Run(t *testing.T, f Factory) {
	for _, part := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"Order", testOrder},
		{"EmptyBatch", testEmptyBatch},
		{"LargeTransaction", testLargeTransaction},
		{"Repetition", testRepetition},
		{"Restart", testRestart},
		{"ContextEnds", testContextEnds},
		{"NullAbsentUnchanged", testPresence},
		{"EveryOperation", testEveryOperation},
		{"ReplacingInsert", testReplacingInsert},
		{"CopiedRows", testCopiedRows},
		{"HostileNamesAndValues", testHostile},
		{"BigRow", testBigRow},
		{"KeepsNoBytes", testKeepsNoBytes},
		{"CloseUnused", testCloseUnused},
		{"Transactional", testTransactional(f)},
		{"CopySink", testCopySink(f)},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, f(t)) })
	}
}

func testOrder(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "orders", "note"), open(t, h), newLedger(h)
	for n := range 10 {
		var all []*decode.Change
		for k := range 3 {
			var tx []*decode.Change
			for i := range 1 + n*k {
				tx = append(tx, src.insert(fmt.Sprintf("%d-%d-%d", n, k, i), "x"))
			}
			// A row whose value tells which change came last.
			if n == 0 && k == 0 {
				tx = append(tx, src.insert("last", "first"))
			} else {
				tx = append(tx, src.update("last", fmt.Sprintf("%d-%d", n, k)))
			}
			all = append(all, src.transaction(tx...)...)
		}
		l.wrote(all...)
		s.write(src.batch(all))
	}
	s.close()
	l.check(t, "at the end", false)
}

func testEmptyBatch(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "t"), open(t, h), newLedger(h)
	s.write(src.batch(nil))
	one := src.transaction(src.insert("1"))
	l.wrote(one...)
	s.write(src.batch(one))
	s.write(src.batch(nil))
	s.close()
	l.check(t, "at the end", false)
}

// testLargeTransaction gives a transaction in several batches.
func testLargeTransaction(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "t", "v"), open(t, h), newLedger(h)
	var all []*decode.Change
	for i := range 250 {
		all = append(all, src.insert(fmt.Sprint(i), "x"))
	}
	all = append(all, src.update("7", "y"), &decode.Change{Op: decode.OpDelete, Relation: src.rel, Old: src.row("8"), OldKey: true})
	src.transaction(all...)
	l.wrote(all...)
	for len(all) > 100 {
		s.write(&sink.Batch{Changes: all[:100], More: true})
		spoil(all[:100])
		all = all[100:]
	}
	next := src.transaction(src.insert("next", "z"))
	l.wrote(next...)
	s.write(src.batch(slices.Concat(all, next)))
	s.close()
	l.check(t, "at the end", false)
}

// spoil overwrites what a sink was given, as the worker does once Write has returned.
func spoil(changes []*decode.Change) {
	for i, c := range changes {
		for _, v := range c.New {
			for k := range v.Bytes() {
				v.Bytes()[k] = '?'
			}
		}
		*c = decode.Change{}
		changes[i] = nil
	}
}

// testRepetition gives changes again, cut differently, as after an error. A transactional sink knows
// by its checkpoint what it has, so a worker doesn't do that to it.
func testRepetition(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "t", "v"), open(t, h), newLedger(h)
	if s.tx != nil {
		t.Skip("a transactional sink is never given again what it has committed")
	}
	a, b := src.transaction(src.insert("1", "a"), src.insert("2", "a")), src.transaction(src.insert("3", "a"), src.update("1", "b"))
	c := src.transaction(&decode.Change{Op: decode.OpDelete, Relation: src.rel, Old: src.row("2"), OldKey: true})
	l.wrote(slices.Concat(a, b, c)...)
	s.write(src.batch(slices.Concat(a, b)))
	s.write(src.batch(a))
	s.write(src.batch(slices.Concat(b, c)))
	s.close()
	l.check(t, "at the end", true)
}

func testRestart(t *testing.T, h Harness) {
	src, l := newSource(t, h, "public", "t"), newLedger(h)
	for i := range 3 {
		s := open(t, h)
		tx := src.transaction(src.insert(fmt.Sprint(i)))
		l.wrote(tx...)
		s.write(src.batch(tx))
		s.close()
	}
	l.check(t, "at the end", false)
}

func testContextEnds(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "t"), open(t, h), newLedger(h)
	tx := src.transaction(src.insert("1"), src.insert("2"))
	l.wrote(tx...)
	if err := ended(t, "Write", func(ctx context.Context) error { return s.tryWrite(ctx, src.batch(tx)) }); err != nil {
		s.open()
		s.write(src.batch(tx))
	}
	s.close()
	l.check(t, "at the end", true)
}

func testPresence(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "t", "null", "empty", "unchanged", "absent"), open(t, h), newLedger(h)
	row := src.row("1", "", "", "", "")
	row[1], row[3], row[4] = decode.NullValue(textType()), decode.UnchangedValue(textType()), decode.Value{}
	tx := src.transaction(src.insert("1", "a", "b", "c", "d"), &decode.Change{Op: decode.OpUpdate, Relation: src.rel, New: row})
	l.wrote(tx...)
	s.write(src.batch(tx))
	s.close()
	l.checkRows(t, "at the end") // the unchanged and the absent column keep what they had
	if h.Read == nil {
		return
	}
	entries := h.Read(t)
	if len(entries) != 2 {
		t.Fatalf("%d changes, want 2", len(entries))
	}
	e := entries[1]
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
	src, s, l := newSource(t, h, "public", "t", "v"), open(t, h), newLedger(h)
	key := src.row("1")
	for _, c := range []*decode.Change{
		src.insert("1", "a"),
		src.update("1", "b"),
		{Op: decode.OpUpdate, Relation: src.rel, Old: key, OldKey: true, New: src.row("2", "b")},
		{Op: decode.OpDelete, Relation: src.rel, Old: src.row("2"), OldKey: true},
		src.insert("3", "c"),
		{Op: decode.OpTruncate, Truncate: &decode.Truncate{Relations: []*decode.Relation{src.rel}, RestartIdentity: true}},
		src.insert("4", "d"),
		{Op: decode.OpMessage, Message: &decode.Message{Prefix: "app", Content: []byte("\x00\xff"), Transactional: true}},
	} {
		tx := src.transaction(c)
		err := s.tryWrite(t.Context(), src.batch(tx))
		switch {
		case err == nil:
			l.wrote(tx...)
		case c.Op != decode.OpInsert && errors.Is(err, sink.ErrUnsupported):
			s.open()
		default:
			t.Errorf("%s: %v", c.Op, err)
			s.open()
		}
		l.checkRows(t, "behind "+c.Op.String())
	}
	schema := src.transaction(&decode.Change{Op: decode.OpSchema, Schema: &decode.SchemaChange{Tag: "COMMENT", Query: "COMMENT ON TABLE t IS 'x'"}})
	switch err := s.tryWrite(t.Context(), src.batch(schema)); {
	case err == nil:
		l.wrote(schema...)
	case !errors.Is(err, sink.ErrUnsupported):
		t.Errorf("schema: %v", err)
	}
	s.close()
	l.check(t, "at the end", false)
}

// testCopiedRows gives rows of the copy one by one, as a sink gets them that takes no raw chunks.
func testCopiedRows(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "t"), open(t, h), newLedger(h)
	if s.copy != nil {
		t.Skip("a sink.CopySink is given chunks")
	}
	var all []*decode.Change
	for i := range 5 {
		c := src.insert(fmt.Sprint(i))
		c.Copy = &decode.CopyID{Point: src.lsn, Table: src.rel.OID, Attempt: 1, Range: 2, Row: uint64(i)}
		all = append(all, c)
	}
	l.wrote(all...)
	s.write(src.batch(all))
	s.close()
	l.check(t, "at the end", false)
}

// hostileValues are hard to quote, escape or encode.
func hostileValues() []string {
	return []string{"plain", `quote " back \ slash`, "line\nbreak\r\n\ttab", "\x01\x1f\x7f", "\u2028\u2029", "日本語 🙂", `{"json": [1, null]}`,
		"'; DROP TABLE t; --", `\N`, `\.`, "null", "", " ", strings.Repeat("x", 10000)}
}

func testHostile(t *testing.T, h Harness) {
	values := hostileValues()
	src := newSource(t, h, `Sch"ema.x`, `Ta"ble; DROP TABLE t; --`, `Col"umn`, "select", "日本", strings.Repeat("n", 63))
	s, l := open(t, h), newLedger(h)
	var all []*decode.Change
	for i, v := range values {
		all = append(all, src.insert(fmt.Sprint(i), v, v, v, v))
	}
	for _, v := range values[:len(values)-1] { // as keys, too
		all = append(all, src.insert("key "+v))
	}
	src.transaction(all...)
	for _, c := range all[len(values):] {
		for i := range c.New[1:] {
			c.New[1+i] = decode.NullValue(textType())
		}
	}
	l.wrote(all...)
	s.write(src.batch(all))
	s.close()
	l.checkRows(t, "at the end")
	if h.Read == nil {
		return
	}
	entries := h.Read(t)
	if len(entries) != len(all) {
		t.Fatalf("%d changes, want %d", len(entries), len(all))
	}
	for i, e := range entries {
		if e.Schema != src.rel.Schema || e.Table != src.rel.Name {
			t.Errorf("table became %q.%q", e.Schema, e.Table)
		}
		want := merge(nil, all[i])
		for _, c := range src.rel.Columns {
			if got := e.New[c.Name]; !equalText(got, want[c.Name]) {
				t.Errorf("column %q became %s, want %s", c.Name, show(Row{"": got}), show(Row{"": want[c.Name]}))
			}
		}
	}
}

func testBigRow(t *testing.T, h Harness) {
	size := h.MaxValue
	if size == 0 {
		size = 8 << 20
	}
	src, s, l := newSource(t, h, "public", "t", "v"), open(t, h), newLedger(h)
	big := strings.Repeat("0123456789abcde\n", size/16)
	tx := src.transaction(src.insert("1", "small"), src.insert("2", big), src.insert("3", "small"))
	l.wrote(tx...)
	s.write(src.batch(tx))
	s.close()
	l.checkRows(t, "at the end")
	if h.Read == nil {
		return
	}
	entries := h.Read(t)
	if len(entries) != 3 {
		t.Fatalf("%d changes, want 3", len(entries))
	}
	if v := entries[1].New["v"]; v == nil || *v != big {
		t.Error("the big value is not what was written")
	}
}

func testKeepsNoBytes(t *testing.T, h Harness) {
	src, s, l := newSource(t, h, "public", "t", "v"), open(t, h), newLedger(h)
	var want []string
	for i := range 20 {
		value := bytes.Repeat([]byte{'a' + byte(i)}, 100)
		c := src.insert(fmt.Sprint(i))
		c.New[1] = decode.TextValue(textType(), value)
		tx := src.transaction(c)
		want = append(want, string(value))
		l.wrote(c)
		s.write(src.batch(tx))
		spoil(tx)
	}
	s.close()
	l.checkRows(t, "at the end")
	if h.Read == nil {
		return
	}
	entries := h.Read(t)
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
	newSession(t, h, start(1)).close()
	newLedger(h).check(t, "at the end", false)
}
