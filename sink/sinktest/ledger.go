package sinktest

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/pgflo/flo/decode"
)

// ledger knows what the destination has to hold.
type ledger struct {
	h      Harness
	ids    []string
	tables map[*decode.Relation]map[string]Row // by id
}

func newLedger(h Harness) *ledger {
	return &ledger{h: h, tables: map[*decode.Relation]map[string]Row{}}
}

// wrote takes changes that the sink has taken. Their bytes are copied.
func (l *ledger) wrote(changes ...*decode.Change) {
	for _, c := range changes {
		l.ids = append(l.ids, identity(c))
		l.apply(c)
	}
}

func (l *ledger) table(rel *decode.Relation) map[string]Row {
	if l.tables[rel] == nil {
		l.tables[rel] = map[string]Row{}
	}
	return l.tables[rel]
}

func (l *ledger) apply(c *decode.Change) {
	switch c.Op {
	case decode.OpInsert:
		if c.Old != nil { // it takes that row's place
			delete(l.table(c.Relation), c.Old[0].String())
		}
		l.table(c.Relation)[c.New[0].String()] = merge(Row{}, c)
	case decode.OpUpdate:
		rows, old := l.table(c.Relation), c.New[0].String()
		if c.Old != nil {
			old = c.Old[0].String()
		}
		row := merge(maps.Clone(rows[old]), c)
		delete(rows, old)
		rows[c.New[0].String()] = row
	case decode.OpDelete:
		delete(l.table(c.Relation), c.Old[0].String())
	case decode.OpTruncate:
		for _, rel := range c.Truncate.Relations {
			clear(l.table(rel))
		}
	}
}

// merge puts the values that a change has over a row.
func merge(row Row, c *decode.Change) Row {
	if row == nil {
		row = Row{}
	}
	for i, v := range c.New {
		name := c.Relation.Columns[i].Name
		switch v.Presence() {
		case decode.Null:
			row[name] = nil
		case decode.Present:
			text := v.String()
			row[name] = &text
		}
	}
	return row
}

// check compares the destination with the ledger. With repeats changes may stand there again, behind
// where they stood first. A destination of tables never shows them.
func (l *ledger) check(t testing.TB, when string, repeats bool) {
	t.Helper()
	if l.h.Read != nil {
		got := ids(l.h.Read(t))
		if repeats {
			got = withoutRepeats(got)
		}
		if !slices.Equal(got, l.ids) {
			t.Errorf("%s: the destination holds %v\nwant %v", when, got, l.ids)
		}
	}
	l.checkRows(t, when)
}

// checkRows compares the tables, if the destination has any.
func (l *ledger) checkRows(t testing.TB, when string) {
	t.Helper()
	if l.h.Rows == nil {
		return
	}
	for rel, want := range l.tables {
		got := map[string]Row{}
		rows := l.h.Rows(t, rel)
		for _, r := range rows {
			if r["id"] != nil {
				got[*r["id"]] = r
			}
		}
		if len(rows) != len(want) || len(got) != len(want) {
			t.Errorf("%s: %s has %d rows of %d keys, want %d: %v", when, rel.Qualified(), len(rows), len(got), len(want), slices.Sorted(maps.Keys(got)))
		}
		for id, r := range want {
			if have := got[id]; have != nil && !maps.EqualFunc(have, r, equalText) {
				t.Errorf("%s: row %q of %s is %s\nwant %s", when, id, rel.Qualified(), show(have), show(r))
			}
		}
	}
}

func equalText(a, b *string) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

func show(r Row) string {
	text := ""
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if r[name] == nil {
			text += fmt.Sprintf(" %q=NULL", name)
		} else {
			text += fmt.Sprintf(" %q=%.60q", name, *r[name])
		}
	}
	return text
}

func ids(entries []Entry) []string {
	list := make([]string, len(entries))
	for i, e := range entries {
		list[i] = e.ID
	}
	return list
}

func withoutRepeats(list []string) []string {
	seen := map[string]bool{}
	return slices.DeleteFunc(list, func(id string) bool {
		was := seen[id]
		seen[id] = true
		return was
	})
}
