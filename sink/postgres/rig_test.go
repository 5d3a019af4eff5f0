package postgres

import (
	"context"
	"os"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// mark stands for a value in row.
type mark int

const (
	unchanged mark = iota + 1
	absent
)

var anyType = &decode.Type{Schema: "pg_catalog", Name: "text"}

// row makes a row: a string is a value, nil is NULL, and the marks are what they say.
func row(values ...any) decode.Row {
	out := make(decode.Row, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case nil:
			out[i] = decode.NullValue(anyType)
		case string:
			out[i] = decode.TextValue(anyType, []byte(v))
		case mark:
			if v == unchanged {
				out[i] = decode.UnchangedValue(anyType)
			}
		}
	}
	return out
}

// rel makes a relation; a column whose name begins with "*" is part of the key.
func rel(name string, columns ...string) *decode.Relation {
	r := &decode.Relation{OID: 1, Schema: "public", Name: name, Identity: decode.IdentityDefault}
	for _, c := range columns {
		key := c[0] == '*'
		if key {
			c = c[1:]
		}
		r.Columns = append(r.Columns, decode.Column{Name: c, Type: anyType, Modifier: -1, Key: key})
	}
	return r
}

// full makes a relation of REPLICA IDENTITY FULL.
func full(name string, columns ...string) *decode.Relation {
	r := rel(name, columns...)
	r.Identity = decode.IdentityFull
	for i := range r.Columns {
		r.Columns[i].Key = true
	}
	return r
}

func insert(r *decode.Relation, values ...any) *decode.Change {
	return &decode.Change{Op: decode.OpInsert, Relation: r, New: row(values...)}
}

func update(r *decode.Relation, values ...any) *decode.Change {
	return &decode.Change{Op: decode.OpUpdate, Relation: r, New: row(values...)}
}

func updateFrom(r *decode.Relation, old decode.Row, values ...any) *decode.Change {
	return &decode.Change{Op: decode.OpUpdate, Relation: r, Old: old, OldKey: r.HasKey(), New: row(values...)}
}

func remove(r *decode.Relation, old ...any) *decode.Change {
	return &decode.Change{Op: decode.OpDelete, Relation: r, Old: row(old...), OldKey: r.HasKey()}
}

// rig is a sink that is open on a database of its own.
type rig struct {
	t    *testing.T
	db   *flotest.DB
	sink *Sink
	st   sink.Start
	seq  uint64
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newSink(t testing.TB, url string, opts ...Option) *Sink {
	t.Helper()
	s, err := New(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// newRig runs ddl on a fresh database and opens a sink on it.
func newRig(t *testing.T, ddl string, opts ...Option) *rig {
	t.Helper()
	db := flotest.Postgres(t)
	if ddl != "" {
		db.Exec(t, ddl)
	}
	r := &rig{t: t, db: db, st: sink.Start{Group: "g", Worker: "w", Incarnation: "one", Epoch: 1}}
	r.sink = newSink(t, db.URL, opts...)
	r.open()
	return r
}

func (r *rig) open() decode.Checkpoint {
	r.t.Helper()
	cp, err := r.sink.Open(testContext(r.t), r.st)
	if err != nil {
		r.t.Fatalf("Open: %v", err)
	}
	return cp
}

func (r *rig) checkpoint() decode.Checkpoint {
	r.seq++
	return decode.Checkpoint{Incarnation: "one", Seq: r.seq, LSN: decode.LSN(r.seq), End: decode.LSN(r.seq + 1), Session: 7}
}

// try writes one batch that ends a transaction.
func (r *rig) try(changes ...*decode.Change) error {
	ordinals(changes)
	return r.sink.Write(testContext(r.t), &sink.Batch{Changes: changes, Checkpoint: r.checkpoint(), Epoch: r.st.Epoch})
}

func ordinals(changes []*decode.Change) {
	tx := &decode.Tx{XID: 1, CommitLSN: 1}
	for i, c := range changes {
		c.Tx, c.Ordinal = tx, uint64(i+1)
	}
}

// apply is try that must work.
func (r *rig) apply(changes ...*decode.Change) {
	r.t.Helper()
	if err := r.try(changes...); err != nil {
		r.t.Fatalf("Write: %v", err)
	}
}

// more writes one batch of a transaction that goes on.
func (r *rig) more(changes ...*decode.Change) {
	r.t.Helper()
	if err := r.sink.Write(testContext(r.t), &sink.Batch{Changes: changes, More: true, Epoch: r.st.Epoch}); err != nil {
		r.t.Fatalf("Write with More: %v", err)
	}
}

// want compares the rows of a query, as text.
func (r *rig) want(sql string, rows ...[]string) {
	r.t.Helper()
	got := r.db.Query(r.t, sql)
	if len(got) == 0 && len(rows) == 0 {
		return
	}
	if !reflect.DeepEqual(got, rows) {
		r.t.Fatalf("%s\n got %q\nwant %q", sql, got, rows)
	}
}

func is(values ...string) []string { return values }

func numberText(n int) string { return strconv.Itoa(n) }
