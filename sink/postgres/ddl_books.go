package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// structures are the sink's books of what the source's tables and types looked like when their last schema change
// was applied. They tell by OID and attnum which object a name means, so that a rename is one.
type structures struct {
	ctx   context.Context
	pg    *pgconn.PgConn
	table string
	st    *sink.Start
}

const (
	tablePage = "table"
	typePage  = "type"
)

// page is what the books hold of one table or type.
type page struct {
	kind   string
	oid    uint32
	source decode.Name
	dest   decode.Name
	table  *decode.TableShape // or
	typ    *decode.TypeShape
	awaits bool       // of a table: a fresh copy will bring its rows, since the source has written them anew
	until  decode.LSN // of a type: a copy has brought it as it was here, so what is told of it by earlier commits is past
}

// tablePaper and typePaper are pages as they are written.
type tablePaper struct {
	*decode.TableShape
	Awaits bool `json:"flo_awaits,omitempty"`
}

type typePaper struct {
	*decode.TypeShape
	Until decode.LSN `json:"flo_until,omitempty"`
}

func tableOf(t *decode.TableShape) *page {
	p := &page{kind: tablePage, oid: t.OID, source: t.Qualified(), dest: t.Qualified(), table: t}
	if t.Source != nil {
		p.source = *t.Source
	}
	return p
}

func typeOf(t *decode.TypeShape) *page {
	return &page{kind: typePage, oid: t.OID, source: t.Qualified(), dest: t.Qualified(), typ: t}
}

const structureColumns = "kind, source, source_schema, source_name, dest_schema, dest_name, shape"

func (b *structures) pages(where string, args ...string) ([]*page, error) {
	rows, err := query(b.ctx, b.pg, "SELECT "+structureColumns+" FROM "+b.table+" WHERE group_name = $1 AND worker = $2 AND "+where+" ORDER BY kind, source",
		append([]string{b.st.Group, b.st.Worker}, args...)...)
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: reading %s: %w", b.table, err)
	}
	out := make([]*page, 0, len(rows))
	for _, r := range rows {
		oid, err := strconv.ParseUint(string(r[1]), 10, 32)
		if err != nil {
			return nil, fmt.Errorf("sink/postgres: %s: OID %q: %w", b.table, r[1], err)
		}
		p := &page{
			kind: string(r[0]), oid: uint32(oid),
			source: decode.Name{Schema: string(r[2]), Name: string(r[3])}, dest: decode.Name{Schema: string(r[4]), Name: string(r[5])},
		}
		if p.kind == tablePage {
			paper := tablePaper{TableShape: new(decode.TableShape)}
			err = json.Unmarshal(r[6], &paper)
			p.table, p.awaits = paper.TableShape, paper.Awaits
		} else {
			paper := typePaper{TypeShape: new(decode.TypeShape)}
			err = json.Unmarshal(r[6], &paper)
			p.typ, p.until = paper.TypeShape, paper.Until
		}
		if err != nil {
			return nil, fmt.Errorf("sink/postgres: %s: OID %d: %w", b.table, oid, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func first(pages []*page, err error) (*page, error) {
	if err != nil || len(pages) == 0 {
		return nil, err
	}
	return pages[0], nil
}

// get gives the page of a source object, nil if there is none.
func (b *structures) get(kind string, oid uint32) (*page, error) {
	return first(b.pages("kind = $3 AND source = $4::oid", kind, number(oid)))
}

// called gives the page of what has a name at the source.
func (b *structures) called(kind string, source decode.Name) (*page, error) {
	return first(b.pages("kind = $3 AND source_schema = $4 AND source_name = $5", kind, source.Schema, source.Name))
}

// with gives the page that has a part with an OID: "constraints" or "indexes".
func (b *structures) with(kind, list string, oid uint32) (*page, error) {
	return first(b.pages("kind = $3 AND shape @> $4::jsonb", kind, fmt.Sprintf(`{%q: [{"oid": %d}]}`, list, oid)))
}

// withIndex gives the page of the table that has an index of a name. Its schema is its table's.
func (b *structures) withIndex(source decode.Name) (*page, error) {
	list, err := json.Marshal(map[string]any{"indexes": []any{map[string]string{"name": source.Name}}})
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: %s: %w", b.table, err)
	}
	return first(b.pages("kind = 'table' AND source_schema = $3 AND shape @> $4::jsonb", source.Schema, string(list)))
}

// sharing gives the pages of other source tables, of any group, that go into the same destination table.
func (b *structures) sharing(p *page) ([]*page, error) {
	other := *b
	rows, err := query(b.ctx, b.pg, "SELECT DISTINCT group_name, worker FROM "+b.table+` WHERE kind = $1 AND dest_schema = $2 AND dest_name = $3
		AND (group_name, worker, source) IS DISTINCT FROM ($4, $5, $6::oid)`, p.kind, p.dest.Schema, p.dest.Name, b.st.Group, b.st.Worker, number(p.oid))
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: reading %s: %w", b.table, err)
	}
	var out []*page
	for _, r := range rows {
		other.st = &sink.Start{Group: string(r[0]), Worker: string(r[1])}
		own := other.st.Group == b.st.Group && other.st.Worker == b.st.Worker
		pages, err := other.pages("kind = $3 AND dest_schema = $4 AND dest_name = $5", p.kind, p.dest.Schema, p.dest.Name)
		if err != nil {
			return nil, err
		}
		for _, q := range pages {
			if !own || q.oid != p.oid {
				out = append(out, q)
			}
		}
	}
	return out, nil
}

// put writes pages; those of other objects that had one of the names at the source are gone there.
func (b *structures) put(pages ...*page) error { return b.write(true, pages) }

// fill is put for objects that have no page.
func (b *structures) fill(pages []*page) error { return b.write(false, pages) }

func (b *structures) write(over bool, pages []*page) error {
	if len(pages) == 0 {
		return nil
	}
	type record struct {
		Kind         string `json:"kind"`
		Source       uint32 `json:"source"`
		SourceSchema string `json:"source_schema"`
		SourceName   string `json:"source_name"`
		DestSchema   string `json:"dest_schema"`
		DestName     string `json:"dest_name"`
		Shape        any    `json:"shape"`
	}
	records := make([]record, len(pages))
	for i, p := range pages {
		records[i] = record{p.kind, p.oid, p.source.Schema, p.source.Name, p.dest.Schema, p.dest.Name, tablePaper{p.table, p.awaits}}
		if p.kind == typePage {
			records[i].Shape = typePaper{p.typ, p.until}
		}
	}
	list, err := json.Marshal(records)
	if err != nil {
		return fmt.Errorf("sink/postgres: %s: %w", b.table, err)
	}
	const from = ` FROM jsonb_to_recordset($3::jsonb) AS r (kind text, source oid, source_schema text, source_name text, dest_schema text, dest_name text, shape jsonb)`
	_, err = exec(b.ctx, b.pg, "DELETE FROM "+b.table+" s USING (SELECT *"+from+`) r WHERE s.group_name = $1 AND s.worker = $2 AND s.kind = r.kind
		AND s.source_schema = r.source_schema AND s.source_name = r.source_name AND s.source <> r.source`, b.st.Group, b.st.Worker, string(list))
	if err != nil {
		return fmt.Errorf("sink/postgres: writing %s: %w", b.table, err)
	}
	conflict := "NOTHING"
	if over {
		conflict = `UPDATE SET source_schema = EXCLUDED.source_schema, source_name = EXCLUDED.source_name,
			dest_schema = EXCLUDED.dest_schema, dest_name = EXCLUDED.dest_name, shape = EXCLUDED.shape, updated_at = clock_timestamp()`
	}
	_, err = exec(b.ctx, b.pg, "INSERT INTO "+b.table+" (group_name, worker, "+structureColumns+") SELECT $1, $2, "+structureColumns+from+
		" ON CONFLICT (group_name, worker, kind, source) DO "+conflict, b.st.Group, b.st.Worker, string(list))
	if err != nil {
		return fmt.Errorf("sink/postgres: writing %s: %w", b.table, err)
	}
	return nil
}

// remove forgets a page.
func (b *structures) remove(p *page) error {
	_, err := exec(b.ctx, b.pg, "DELETE FROM "+b.table+" WHERE group_name = $1 AND worker = $2 AND kind = $3 AND source = $4::oid",
		b.st.Group, b.st.Worker, p.kind, number(p.oid))
	if err != nil {
		return fmt.Errorf("sink/postgres: writing %s: %w", b.table, err)
	}
	return nil
}

// baseline fills the books with what has no page in them.
func (d *ddl) baseline() error {
	var pages []*page
	for i := range d.change.Types {
		page := typeOf(&d.change.Types[i])
		page.until = d.copied
		pages = append(pages, page)
	}
	for i := range d.change.Tables {
		pages = append(pages, tableOf(&d.change.Tables[i]))
	}
	return d.books.fill(pages)
}
