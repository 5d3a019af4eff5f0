package statetest

import (
	"reflect"
	"testing"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/state"
)

// Requests to start over are remembered until Drop, and the tables' names until they are forgotten.
func testResync(t *testing.T, s state.Store) {
	want := func(want state.Resync) {
		t.Helper()
		got, _, err := s.Resync(t.Context())
		is(t, err, nil)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("read %+v, want %+v", got, want)
		}
	}
	want(state.Resync{})
	r := state.Resync{
		Pending: "two, \"quoted\"", Token: "one", Incarnation: "def", Tokens: []string{"one"}, Replaces: []string{"abc"},
		Updated: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC),
	}
	rev, err := s.PutResync(t.Context(), r, 0)
	is(t, err, nil)
	want(r)
	_, err = s.PutResync(t.Context(), state.Resync{Pending: "late"}, 0)
	is(t, err, state.ErrConflict)
	want(r)
	next, err := s.PutResync(t.Context(), r, rev)
	is(t, err, nil)
	if _, now, err := s.Resync(t.Context()); err != nil || now != next || next <= rev {
		t.Fatalf("revision %d behind %d, read %d: %v", next, rev, now, err)
	}
	if !r.Answers("one") || r.Answers("two") {
		t.Error("it answers the wrong requests")
	}
	is(t, s.ForgetTables(t.Context()), nil)
	is(t, s.AddTables(t.Context(), []state.Table{{OID: 1, Names: []decode.Name{name("a")}}, {OID: 77, Names: []decode.Name{name("b")}}}), nil)
	is(t, s.ForgetTables(t.Context()), nil)
	tables, err := s.Tables(t.Context())
	is(t, err, nil)
	if len(tables) != 0 {
		t.Fatalf("%d tables are left", len(tables))
	}
	is(t, s.AddTables(t.Context(), []state.Table{{OID: 77, Names: []decode.Name{name("c")}}}), nil)
	if tables, err = s.Tables(t.Context()); err != nil || len(tables) != 1 || len(tables[0].Names) != 1 {
		t.Fatalf("%+v, %v", tables, err)
	}
	is(t, s.Drop(t.Context()), nil)
}

// The record of the publications is what was written last.
func testAdopted(t *testing.T, s state.Store) {
	_, err := s.Adopted(t.Context())
	is(t, err, state.ErrNotFound)
	many := make(map[uint32][]uint32)
	for i := range uint32(50_000) {
		many[20_000+3*i] = []uint32{400_000 + i}
	}
	of := map[string]state.Publication{"p \"q\"": {OID: 1, Owner: 10, Row: 1<<32 - 1}}
	for _, a := range []state.Adopted{{Tables: many, Publications: of}, {Tables: map[uint32][]uint32{7: {8}}, Publications: of}, {Tables: map[uint32][]uint32{1 << 31: {17, 18}, 5: {17}}}, {Tables: map[uint32][]uint32{}}} {
		is(t, s.PutAdopted(t.Context(), a), nil)
		got, err := s.Adopted(t.Context())
		is(t, err, nil)
		if len(got.Tables) != len(a.Tables) || len(a.Tables) > 0 && !reflect.DeepEqual(got, a) {
			t.Fatalf("read %+v, want %+v", got, a)
		}
	}
	is(t, s.Drop(t.Context()), nil)
}
