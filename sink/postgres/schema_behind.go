package postgres

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// pg_dump tells how tables stand now. Between a copy's point and now the source may have altered or dropped them: rows of
// the copy don't fit what it makes then, and the schema changes that come in the stream are the very ones that are
// there already. Such tables are made as the round tells they stood at its point (sink.CopyTable.Schema).

// outdated is what of a copy's tables is no more at the source as it was at the copy's point.
type outdated struct {
	told  *decode.SchemaChange // those whose structure the round tells, with what they are partitions of; nil: none
	oids  map[uint32]bool      // those of the copy among them
	gone  map[uint32]bool      // dropped, and the round doesn't tell
	other []string             // names of those that have other columns now, and the round doesn't tell
}

// describing is what flo's event triggers describe tables with.
const describing = `SELECT c.oid, flo.ddl_describe(c.oid)::text FROM pg_class c WHERE c.oid = ANY ($1::oid[])`

// readOutdated compares the copy's tables with those of the source. It comes behind pg_dump: what is as it was then has
// been so all the time.
func (c *sourceCatalog) readOutdated(ctx context.Context, pg *pgconn.PgConn, tables []sink.CopyTable, told bool) (*outdated, error) {
	o := &outdated{oids: map[uint32]bool{}, gone: map[uint32]bool{}}
	list := make([]uint32, len(tables))
	for i, t := range tables {
		list[i] = t.Source
	}
	there := &sourceCatalog{tables: map[uint32]*sourceTable{}}
	if err := there.readNamed(ctx, pg, list); err != nil {
		return nil, err
	}
	now, err := describeNow(ctx, pg, tables, list, told)
	if err != nil {
		return nil, err
	}
	for _, t := range tables {
		src := there.tables[t.Source]
		if c.tables[t.Source] == nil { // it was gone when the others were looked at
			src = nil
		}
		switch known := told && t.Schema != nil; {
		case known && (src == nil || !asTold(t.Schema, now[t.Source], src)):
			o.oids[t.Source] = true
		case known:
		case src == nil:
			o.gone[t.Source] = true
		case t.From != nil && slices.ContainsFunc(t.From.Columns, func(f decode.Column) bool {
			return !slices.ContainsFunc(src.columns, func(s sourceColumn) bool { return s.name == f.Name })
		}):
			o.other = append(o.other, src.name.String())
		}
	}
	c.spread(o, tables)
	o.collect(tables)
	return o, nil
}

// describeNow has the source describe tables as it did for the round; it gives nothing of them where the role may not.
func describeNow(ctx context.Context, pg *pgconn.PgConn, tables []sink.CopyTable, list []uint32, told bool) (map[uint32]*decode.SchemaChange, error) {
	if !told || !slices.ContainsFunc(tables, func(t sink.CopyTable) bool { return t.Schema != nil }) {
		return nil, nil
	}
	may, err := yes(ctx, pg, `SELECT coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE'), false)
		FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'flo' AND p.proname = 'ddl_describe'`)
	if err != nil || !may {
		return nil, err
	}
	rows, err := query(ctx, pg, describing, oids(list))
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: describing the source's tables: %w", err)
	}
	now := make(map[uint32]*decode.SchemaChange, len(rows))
	for _, r := range rows {
		if r[1] == nil {
			continue
		}
		s := &decode.SchemaChange{}
		if err := json.Unmarshal(r[1], s); err != nil {
			return nil, fmt.Errorf("sink/postgres: describing the source's tables: %w", err)
		}
		now[oidOf(r[0])] = s
	}
	return now, nil
}

// asTold reports whether a table stands as the round tells; by its columns' names alone if the source can't describe it.
func asTold(was, now *decode.SchemaChange, src *sourceTable) bool {
	if now == nil {
		for i := range was.Tables {
			t := &was.Tables[i]
			if tableOf(t).source != src.name {
				continue
			}
			names := slices.Clone(t.LeftOut)
			for j := range t.Columns {
				names = append(names, sourceName(&t.Columns[j]))
			}
			return !slices.ContainsFunc(src.columns, func(c sourceColumn) bool { return !c.generated && !slices.Contains(names, c.name) }) &&
				!slices.ContainsFunc(names, func(n string) bool {
					return !slices.ContainsFunc(src.columns, func(c sourceColumn) bool { return c.name == n })
				})
		}
		return false
	}
	return slices.EqualFunc(was.Tables, now.Tables, sameTable) && slices.EqualFunc(was.Types, now.Types, sameType)
}

// sameTable compares a table of a round, which rules have been at, with how it stands.
func sameTable(was, now decode.TableShape) bool {
	left := slices.DeleteFunc(slices.Clone(now.Columns), func(c decode.ColumnShape) bool { return slices.Contains(was.LeftOut, c.Name) })
	return was.OID == now.OID && tableOf(&was).source == now.Qualified() && was.Kind == now.Kind && was.Bound == now.Bound &&
		was.PartitionKey == now.PartitionKey && slices.Equal(was.Parents, now.Parents) &&
		slices.EqualFunc(was.Columns, left, sameColumn) && sameConstraints(was.Constraints, now.Constraints) &&
		slices.EqualFunc(was.Indexes, now.Indexes, func(a, b decode.IndexShape) bool {
			return a.Name == b.Name && a.Definition == b.Definition && a.Valid == b.Valid
		})
}

func sameColumn(a, b decode.ColumnShape) bool {
	return a.Num == b.Num && sourceName(&a) == sourceName(&b) && a.Type == b.Type && a.NotNull == b.NotNull && sameText(a.Default, b.Default) &&
		a.Identity == b.Identity && a.Generated == b.Generated && (a.Collation == nil) == (b.Collation == nil) && (a.Collation == nil || *a.Collation == *b.Collation)
}

// sameConstraints passes over their OIDs, by which they are ordered: a column's new type changes those.
func sameConstraints(a, b []decode.ConstraintShape) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(c decode.ConstraintShape) bool {
		return !slices.ContainsFunc(b, func(d decode.ConstraintShape) bool { return c.Name == d.Name && c.Definition == d.Definition })
	})
}

func sameType(a, b decode.TypeShape) bool {
	return a.OID == b.OID && a.Qualified() == b.Qualified() && a.Kind == b.Kind && a.Base == b.Base && a.NotNull == b.NotNull &&
		slices.Equal(a.Labels, b.Labels) && slices.EqualFunc(a.Fields, b.Fields, sameColumn) && sameText(a.Default, b.Default) &&
		sameConstraints(a.Constraints, b.Constraints)
}

// spread takes in the rest of the partition trees: the keys of their tables are made together.
func (c *sourceCatalog) spread(o *outdated, tables []sink.CopyTable) {
	roots := map[decode.Name]bool{}
	each := func(t *sink.CopyTable, f func(decode.Name)) {
		if src := c.tables[t.Source]; src != nil && src.root != t.Source && c.tables[src.root] != nil {
			f(c.tables[src.root].name)
		}
		for i := range t.Schema.Tables {
			if s := &t.Schema.Tables[i]; s.OID == t.Source && len(s.Ancestors) > 0 {
				f(s.Ancestors[len(s.Ancestors)-1])
			}
		}
	}
	for i := range tables {
		if o.oids[tables[i].Source] {
			each(&tables[i], func(n decode.Name) { roots[n] = true })
		}
	}
	for i := range tables {
		if t := &tables[i]; t.Schema != nil && len(o.oids) > 0 {
			each(t, func(n decode.Name) {
				if roots[n] {
					o.oids[t.Source] = true
				}
			})
		}
	}
}

// collect makes one change of all structures: one table may need another.
func (o *outdated) collect(tables []sink.CopyTable) {
	if len(o.oids) == 0 {
		return
	}
	o.told = &decode.SchemaChange{Baseline: true}
	for _, t := range tables {
		if !o.oids[t.Source] {
			continue
		}
		for _, s := range t.Schema.Tables {
			if !slices.ContainsFunc(o.told.Tables, func(k decode.TableShape) bool { return k.OID == s.OID }) {
				o.told.Tables = append(o.told.Tables, s)
			}
		}
		for _, s := range t.Schema.Types {
			if !slices.ContainsFunc(o.told.Types, func(k decode.TypeShape) bool { return k.OID == s.OID }) {
				o.told.Types = append(o.told.Types, s)
			}
		}
	}
}

// bare is a table without what is better made behind the rows.
func bare(t decode.TableShape, foreignOnly bool) decode.TableShape {
	t.Constraints = slices.DeleteFunc(slices.Clone(t.Constraints), func(c decode.ConstraintShape) bool {
		return c.Kind == "f" || !foreignOnly && (c.Kind == "p" || c.Kind == "u" || c.Kind == "x")
	})
	if !foreignOnly {
		t.Indexes = nil
	}
	return t
}

// makeTold makes the tables that the source has no more as they were, where the destination lacks them.
func (s *Sink) makeTold(ctx context.Context, o *outdated) error {
	if o.told == nil {
		return nil
	}
	names := make([]string, len(o.told.Tables))
	for i := range o.told.Tables {
		names[i] = o.told.Tables[i].Qualified().String()
	}
	s.config.logger.InfoContext(ctx, "the source has altered or dropped tables since their copy began: they are made as they were, schema changes follow in the stream",
		"tables", strings.Join(names, ", "))
	return s.withSchemas(ctx, []sink.CopyTable{{Schema: o.told}}, (*ddl).makeMissing)
}

func (d *ddl) makeMissing() error {
	whole := d.change
	some := *whole
	some.Baseline, some.Tables = false, nil
	for _, t := range whole.Tables {
		live, err := d.live(t.Qualified())
		if err != nil {
			return err
		}
		if live != nil {
			continue
		}
		t = bare(t, false)
		t.Made = true
		some.Tables = append(some.Tables, t)
	}
	if len(some.Tables) == 0 {
		return nil
	}
	d.change = &some
	defer func() { d.change = whole }()
	if err := d.types(); err != nil {
		return err
	}
	return d.tables()
}

// makeToldKeys makes their keys and indexes, behind the rows; the foreign keys too, if foreign says so.
func (s *Sink) makeToldKeys(ctx context.Context, o *outdated, foreign bool) error {
	if o.told == nil {
		return nil
	}
	return s.withSchemas(ctx, []sink.CopyTable{{Schema: o.told}}, func(d *ddl) error { return d.makeKeys(foreign) })
}

func (d *ddl) makeKeys(foreign bool) error {
	whole := d.change
	some := *whole
	some.Baseline, some.Tables, some.Types = false, nil, nil
	for _, t := range whole.Tables {
		p, err := d.books.get(tablePage, t.OID)
		if err != nil {
			return err
		}
		if p == nil || p.dest != t.Qualified() {
			continue
		}
		// What the books say is there may have waited for the rows.
		shape := bare(*p.table, foreign)
		p.table = &shape
		if err := d.books.put(p); err != nil {
			return err
		}
		some.Tables = append(some.Tables, bare(t, !foreign))
		if foreign {
			some.Tables[len(some.Tables)-1] = t
		}
	}
	d.change = &some
	defer func() { d.change = whole }()
	return d.tables()
}

// makeGone makes tables that were dropped at the source since their copy, with their columns and key: nothing else is
// known of them, and nothing but their rows is still to come.
func (s *Sink) makeGone(ctx context.Context, o *outdated, tables []sink.CopyTable) error {
	if len(o.gone) == 0 {
		return nil
	}
	return s.with(ctx, func(c *session, st *sink.Start) error {
		f := &fitting{Sink: s, pg: c.pg, st: st, types: typeTable{}, seen: map[string]bool{}}
		for _, t := range tables {
			if !o.gone[t.Source] {
				continue
			}
			name := t.Relation.Qualified()
			there, err := yes(ctx, c.pg, relationThere, name.Schema, name.Name)
			if err != nil {
				return err
			}
			if there {
				continue
			}
			s.config.logger.WarnContext(ctx, "a table was dropped at the source since its copy began: it is made with columns and key alone", "table", name.String())
			sql, err := f.createTable(ctx, t.Relation)
			if err != nil {
				return err
			}
			if there, err = yes(ctx, c.pg, schemaThere, name.Schema); err != nil {
				return err
			} else if !there {
				sql = "CREATE SCHEMA " + ident(name.Schema) + "; " + sql
			}
			if err := simple(ctx, c.pg, sql); err != nil && !taken(err) {
				return tableError(name, err, "making it, which the source has dropped since")
			}
		}
		return nil
	})
}

// explain adds to a misfit that the source has altered the table meanwhile.
func (o *outdated) explain(err error) error {
	if err == nil || len(o.other) == 0 {
		return err
	}
	return fmt.Errorf("sink/postgres: %w: %s: %w", ErrSchemaAltered, strings.Join(o.other, ", "), err)
}

// made reports whether a source table is made as a round tells: the copy's, and those that they are partitions of.
func (o *outdated) made(oid uint32) bool {
	return o.told != nil && slices.ContainsFunc(o.told.Tables, func(t decode.TableShape) bool { return t.OID == oid })
}
