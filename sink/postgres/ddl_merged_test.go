package postgres

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// copied copies a source table whole, as a worker would.
func (m *mirror) copied(name string, attempt uint32, kept ...uint32) {
	m.t.Helper()
	r := &decode.Relation{Schema: "public", Name: name, Identity: decode.IdentityDefault}
	var list []string
	for _, c := range m.src.Query(m.t, `SELECT a.attname, a.atttypid, t.typname, coalesce(a.attnum = ANY (i.indkey), false), a.attrelid FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`, "public."+name) {
		oid, err := strconv.ParseUint(c[1], 10, 32)
		if err != nil {
			m.t.Fatal(err)
		}
		class, err := strconv.ParseUint(c[4], 10, 32)
		if err != nil {
			m.t.Fatal(err)
		}
		r.OID = uint32(class)
		r.Columns = append(r.Columns, decode.Column{Name: c[0], Key: c[3] == "true" || c[3] == "t", Modifier: -1, Type: &decode.Type{OID: uint32(oid), Schema: "pg_catalog", Name: c[2]}})
		list = append(list, ident(c[0]))
	}
	var rows bytes.Buffer
	tag, err := m.src.Conn(m.t).PgConn().CopyTo(m.t.Context(), &rows, "COPY public."+name+" ("+strings.Join(list, ", ")+") TO STDOUT")
	if err != nil {
		m.t.Fatal(err)
	}
	table := sink.CopyTable{Relation: r, From: r, Source: r.OID, Attempt: attempt, Base: attempt, Kept: kept, Point: decode.LSN(attempt)}
	n := uint64(tag.RowsAffected())
	chunk := &sink.CopyChunk{Table: table, ID: decode.CopyID{Point: table.Point, Table: r.OID, Attempt: attempt}, Rows: n, Data: rows.Bytes(), Epoch: m.st.Epoch}
	ctx := testContext(m.t)
	if m.ahead {
		table.Schema = new(decode.SchemaChange)
		if err := json.Unmarshal([]byte(m.src.QueryString(m.t, "SELECT flo.ddl_describe($1::regclass)", "public."+name)), table.Schema); err != nil {
			m.t.Fatal(err)
		}
		if err := m.sink.BeginCopy(ctx, []sink.CopyTable{table}); err != nil {
			m.t.Fatalf("copying %s: %v", name, err)
		}
	}
	if err := m.sink.BeginTable(ctx, table); err != nil {
		m.t.Fatalf("copying %s: %v", name, err)
	}
	if err := m.sink.WriteChunk(ctx, chunk); err != nil {
		m.t.Fatalf("copying %s: %v", name, err)
	}
	table.Chunks, table.Rows = 1, n
	if err := m.sink.EndTable(ctx, table); err != nil {
		m.t.Fatalf("copying %s: %v", name, err)
	}
}

// brought compares the rows that are not of others, and the keys that flo knows as its own.
func (m *mirror) brought(after string, tables map[string]string) {
	m.t.Helper()
	for name, key := range tables {
		all := "SELECT coalesce(string_agg(t::text, ' ' ORDER BY " + key + "), '') FROM public." + name + " t"
		want := m.src.QueryString(m.t, all)
		if got := m.db.QueryString(m.t, all+" WHERE "+key+"::bigint > 0"); got != want {
			m.t.Errorf("%s has\n%s\nwant\n%s", name, got, want)
		}
		if n := m.db.QueryString(m.t, "SELECT count(*) FROM public."+name+" WHERE "+key+"::bigint <= 0"); n != "2" {
			m.t.Errorf("%s has %s rows of others, want 2", name, n)
		}
		keys := m.sink.keysTable(&m.st, decode.Name{Schema: "public", Name: name})
		want = m.src.QueryString(m.t, "SELECT coalesce(string_agg("+key+"::text, ' ' ORDER BY "+key+"), '') FROM public."+name)
		if got := m.db.QueryString(m.t, "SELECT coalesce(string_agg("+ident(key)+"::text, ' ' ORDER BY "+ident(key)+"), '') FROM "+keys); got != want {
			m.t.Errorf("the keys of %s are %s, want %s", name, got, want)
		}
	}
	if n := m.db.QueryString(m.t, "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname LIKE 'keys\\_%'"); n != fmt.Sprint(len(tables)) {
		m.t.Errorf("%s tables of keys", n)
	}
	if m.t.Failed() {
		m.t.Fatalf("after %s", after)
	}
}

// Tables whose copies were merged are renamed, swap their names, and get other names and types for their keys: what flo has
// brought stays known, and a later copy takes out what is gone, and nothing else.
func TestMergedTablesAreAltered(t *testing.T) {
	const tables = `CREATE TABLE public.a (id int PRIMARY KEY, v text); CREATE TABLE public.b (id int PRIMARY KEY, v text);`
	for _, seen := range []bool{true, false} {
		t.Run(map[bool]string{true: "with event triggers", false: "by rows alone"}[seen], func(t *testing.T) {
			m, key := newMirror(t, WithMergeCopy()), "id"
			m.routes = map[string]string{} // fresh copies are the test's
			m.same(tables)
			m.src.Exec(t, `INSERT INTO public.a SELECT i, 'a' FROM generate_series(1, 5) i; INSERT INTO public.b SELECT i, 'b' FROM generate_series(1, 3) i`)
			m.read()
			m.db.Exec(t, `INSERT INTO public.a VALUES (-1, 'others'), (0, 'others'); INSERT INTO public.b VALUES (-1, 'others'), (0, 'others')`)
			if !seen {
				m.edit = func(s *decode.SchemaChange) {
					s.Observed, s.Types, s.Dropped = true, nil, nil
					for i := range s.Tables {
						o := &s.Tables[i]
						*o = decode.TableShape{OID: o.OID, Schema: o.Schema, Name: o.Name, Identity: o.Identity, Columns: o.Columns}
						for k, c := range o.Columns {
							o.Columns[k] = decode.ColumnShape{Name: c.Name, Type: c.Type}
						}
					}
				}
			}
			bring := func(sql string) {
				t.Helper()
				if err := m.bring(sql); err != nil {
					t.Fatalf("%s: %v", sql, err)
				}
				clear(m.copies)
			}
			bring(`SELECT flo.ddl_baseline(ARRAY['public.a'::regclass, 'public.b'::regclass]::oid[])`)
			if !seen {
				bring(`COMMENT ON TABLE public.a IS 'x'; COMMENT ON TABLE public.b IS 'x'`)
			}
			m.copied("a", 1)
			m.copied("b", 1)
			m.brought("the copy", map[string]string{"a": "id", "b": "id"})
			bring(`INSERT INTO public.a VALUES (6, 'streamed'); DELETE FROM public.a WHERE id = 1; ALTER TABLE public.a RENAME TO c; UPDATE public.c SET id = 7 WHERE id = 2; INSERT INTO public.c VALUES (8, 'x')`)
			m.brought("a new name", map[string]string{"c": "id", "b": "id"})
			if seen { // else it could not be told from another column
				key = "k"
				bring(`DELETE FROM public.c WHERE id = 3; ALTER TABLE public.c RENAME COLUMN id TO "the Key"; INSERT INTO public.c VALUES (9, 'y'); ALTER TABLE public.c RENAME COLUMN "the Key" TO k; DELETE FROM public.c WHERE k = 9`)
				m.brought("another name of the key", map[string]string{"c": key, "b": "id"})
			}
			bring(`ALTER TABLE public.c RENAME TO tmp; ALTER TABLE public.b RENAME TO c; ALTER TABLE public.tmp RENAME TO b; INSERT INTO public.b VALUES (10, 'was a'); INSERT INTO public.c VALUES (11, 'was b'); DELETE FROM public.c WHERE id = 1`)
			m.brought("names that were swapped", map[string]string{"b": key, "c": "id"})
			m.restart(WithMergeCopy())
			m.src.Exec(t, `ALTER TABLE public.b ALTER COLUMN `+key+` TYPE bigint`) // by writing it anew: a copy follows
			bring(`INSERT INTO public.c VALUES (12, 'streamed')`)
			m.src.Exec(t, `DELETE FROM public.b WHERE `+key+` = 10; INSERT INTO public.b VALUES (5000000000, 'large')`)
			m.read()
			m.copied("b", 2)
			m.brought("a copy of one", map[string]string{"b": key, "c": "id"})
			bring(`DELETE FROM public.b WHERE ` + key + ` = 5000000000; UPDATE public.c SET id = id + 100`)
			m.brought("what came behind it", map[string]string{"b": key, "c": "id"})
		})
	}
}
