package source

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
)

// Columns that are renamed while tables are described have one name in a description, in its indexes, too.
func TestATableIsDescribedAsItStoodAtOneMoment(t *testing.T) {
	r := newDDLRig(t)
	var oids []uint32
	const tables = 20
	for i := range tables {
		r.db.Exec(t, fmt.Sprintf(`CREATE TABLE t%[1]d (a_0 int, PRIMARY KEY (a_0)); CREATE INDEX i%[1]d ON t%[1]d ((a_0 + 1))`, i))
		var oid uint32
		must(t, connect(t, r.c).QueryRow(t.Context(), fmt.Sprintf("SELECT 'public.t%d'::regclass::oid", i)).Scan(&oid))
		oids = append(oids, oid)
	}
	ctx, cancel := context.WithCancel(t.Context())
	renaming, stopped := connect(t, r.c), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ctx.Err() == nil; n++ {
			i := n % tables
			if _, err := renaming.Exec(ctx, fmt.Sprintf("ALTER TABLE public.t%d RENAME a_%d TO a_%d", i, n/tables, n/tables+1)); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	conn, calm := connect(t, r.c), 0
	for range 40 {
		shapes, err := r.c.Shapes(t.Context(), conn, oids[:5])
		must(t, err)
		for _, text := range shapes {
			var s decode.SchemaChange
			must(t, json.Unmarshal(text, &s))
			name := s.Tables[0].Columns[0].Name
			if def := s.Tables[0].Indexes[0].Definition; !strings.Contains(def, "("+name+" ") {
				t.Errorf("column %s, %s", name, def)
			}
			calm++
		}
	}
	cancel()
	<-stopped
	if calm == 0 {
		t.Error("nothing was described")
	}
}
