package source

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
)

// Columns that are renamed, added and dropped while tables are described have one name in a description, in its indexes too,
// and what is published is what the structure has.
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
	r.db.Exec(t, "CREATE PUBLICATION p FOR ALL TABLES")
	ctx, cancel := context.WithCancel(t.Context())
	renaming, stopped := connect(t, r.c), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ctx.Err() == nil; n++ {
			i := n % tables
			sql := fmt.Sprintf("ALTER TABLE public.t%[1]d RENAME a_%[2]d TO a_%[3]d; ALTER TABLE public.t%[1]d ADD b_%[2]d int DEFAULT 7", i, n/tables, n/tables+1)
			if n >= tables {
				sql += fmt.Sprintf("; ALTER TABLE public.t%d DROP b_%d", i, n/tables-1)
			}
			if _, err := renaming.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil && ctx.Err() == nil {
				t.Error(err)
				return
			}
		}
	}()
	conn, exporting, calm, altered := connect(t, r.c), connect(t, r.c), 0, 0
	for range 40 {
		tx, err := exporting.Begin(t.Context())
		must(t, err)
		var snapshot string
		must(t, tx.QueryRow(t.Context(), "SELECT pg_export_snapshot()").Scan(&snapshot))
		now, err := r.c.StructureAt(t.Context(), conn, snapshot, []string{"p"}, oids[:5])
		must(t, err)
		must(t, tx.Rollback(t.Context()))
		if n := len(now.Shapes) + len(now.Altered); n != 5 {
			t.Errorf("%d of 5 tables", n)
		}
		altered += len(now.Altered)
		for oid, text := range now.Shapes {
			var s decode.SchemaChange
			must(t, json.Unmarshal(text, &s))
			name := s.Tables[0].Columns[0].Name
			if def := s.Tables[0].Indexes[0].Definition; !strings.Contains(def, "("+name+" ") {
				t.Errorf("column %s, %s", name, def)
			}
			var sent, made []string
			for _, col := range now.Tables[oid].Columns {
				sent = append(sent, col.Name)
			}
			for _, col := range s.Tables[0].Columns {
				made = append(made, col.Name)
			}
			if !slices.Equal(sent, made) {
				t.Errorf("published are %q, the structure has %q", sent, made)
			}
			calm++
		}
	}
	cancel()
	<-stopped
	if calm == 0 || altered == 0 {
		t.Errorf("%d tables were described, %d altered meanwhile", calm, altered)
	}
}

// What came between a snapshot and the description is no part of either.
func TestATableThatWasAlteredBehindTheSnapshotIsNotDescribed(t *testing.T) {
	r := newDDLRig(t)
	r.db.Exec(t, `CREATE TABLE added (a int PRIMARY KEY); CREATE TABLE gone (a int PRIMARY KEY, x int); CREATE TABLE swapped (a int PRIMARY KEY, x int);
		CREATE TABLE dropped (a int PRIMARY KEY); CREATE INDEX i ON dropped ((a + 1)); CREATE TABLE calm (a int PRIMARY KEY); CREATE PUBLICATION p FOR ALL TABLES`)
	conn, exporting := connect(t, r.c), connect(t, r.c)
	tx, err := exporting.Begin(t.Context())
	must(t, err)
	var snapshot string
	var oids []uint32
	must(t, tx.QueryRow(t.Context(), `SELECT pg_export_snapshot(), ARRAY(SELECT n::regclass::oid FROM unnest('{public.added,public.gone,public.swapped,public.dropped,public.calm}'::text[]) n)`).Scan(&snapshot, &oids))
	r.db.Exec(t, `ALTER TABLE added ADD x timestamptz DEFAULT now(); ALTER TABLE gone DROP x; ALTER TABLE swapped DROP x; ALTER TABLE swapped ADD x int; DROP TABLE dropped`)
	now, err := r.c.StructureAt(t.Context(), conn, snapshot, []string{"p"}, oids)
	must(t, err)
	if !slices.Equal(now.Altered, oids[:4]) {
		t.Errorf("altered are %d of %d", now.Altered, oids)
	}
	if len(now.Shapes) != 1 || now.Shapes[oids[4]] == nil || len(now.Tables) != 1 || len(now.Tables[oids[4]].Columns) != 1 {
		t.Errorf("%d structures, %v", len(now.Shapes), now.Tables)
	}
}

// Indexes that come and go while their table is described, the only one that is: the server then says "cache lookup failed" of what its
// query has still seen.
func TestIndexesThatComeAndGoWhileATableIsDescribed(t *testing.T) {
	r := newDDLRig(t)
	r.db.Exec(t, `CREATE TABLE t (a int PRIMARY KEY, b int, c int, d int); CREATE PUBLICATION p FOR ALL TABLES`)
	conn, exporting := connect(t, r.c), connect(t, r.c)
	var oid uint32
	must(t, conn.QueryRow(t.Context(), "SELECT 'public.t'::regclass::oid").Scan(&oid))
	ctx, cancel := context.WithCancel(t.Context())
	var stopped sync.WaitGroup
	for _, column := range []string{"b", "c", "d"} {
		indexing := connect(t, r.c)
		stopped.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				sql := []string{fmt.Sprintf("CREATE INDEX %s ON public.t (%[1]s)", column), "DROP INDEX IF EXISTS public." + column}[n%2]
				if _, err := indexing.Exec(ctx, sql); err != nil && ctx.Err() == nil && pgsession.SQLState(err) != "40P01" {
					t.Error(err)
					return
				}
			}
		})
	}
	altered := 0
	for range 60 {
		tx, err := exporting.Begin(t.Context())
		must(t, err)
		var snapshot string
		must(t, tx.QueryRow(t.Context(), "SELECT pg_export_snapshot()").Scan(&snapshot))
		now, err := r.c.StructureAt(t.Context(), conn, snapshot, []string{"p"}, []uint32{oid})
		if err != nil {
			t.Errorf("after %d altered: %v", altered, err)
			break
		}
		must(t, tx.Rollback(t.Context()))
		altered += len(now.Altered)
	}
	cancel()
	stopped.Wait()
	if altered == 0 {
		t.Error("nothing was in the way")
	}
	t.Logf("altered meanwhile: %d of 60", altered)
}
