package statetest

import (
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/state"
)

func name(s string) decode.Name { return decode.Name{Schema: "public", Name: s} }

// What is remembered of tables only grows, whoever adds to it, until Drop.
func testTables(t *testing.T, s state.Store) {
	want := func(want ...state.Table) {
		t.Helper()
		got, err := s.Tables(t.Context())
		is(t, err, nil)
		if len(got) != len(want) || len(want) > 0 && !reflect.DeepEqual(got, want) {
			t.Fatalf("read %+v, want %+v", got, want)
		}
	}
	want()
	a := state.Table{OID: 1 << 31, Names: []decode.Name{name("a")}}
	b := state.Table{OID: 17, Names: []decode.Name{name("b")}, Ancestors: []decode.Name{name("mid"), name("root")}}
	is(t, s.AddTables(t.Context(), []state.Table{a, b}), nil)
	want(b, a)
	is(t, s.AddTables(t.Context(), []state.Table{{OID: 17, Names: []decode.Name{name("c")}, Ancestors: []decode.Name{name("new")}}}), nil)
	is(t, s.AddTables(t.Context(), []state.Table{{OID: 17, Names: []decode.Name{name("b")}}}), nil)
	b.Names, b.Ancestors = append(b.Names, name("c")), append(b.Ancestors, name("new"))
	want(b, a)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if err := s.AddTables(t.Context(), []state.Table{{OID: 17, Ancestors: []decode.Name{name(fmt.Sprint(i))}}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	got, err := s.Tables(t.Context())
	is(t, err, nil)
	if len(got) != 2 || len(got[0].Ancestors) != 7 {
		t.Fatalf("after four writers at a time: %+v", got)
	}
	is(t, s.Drop(t.Context()), nil)
}
