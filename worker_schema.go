package flo

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
)

// WithDDLFromRelations hands schema changes to the sink without event triggers at the source: before the first row of a
// table, and before each whose table has other columns than before, a change of decode.OpSchema that is Observed.
// It has columns and their types only, so a renamed column looks like one that was dropped and another one (sink/postgres
// stops with ErrDDL where these have the same type, for the values would be lost: rename or add it by hand), and
// commands that no row follows (DROP TABLE among them) are not seen. A table that got a column is copied afresh
// where the sink takes copies, since the default that its older rows have is not known. Not beside WithDDL.
func WithDDLFromRelations() WorkerOption { return func(w *workerConfig) { w.observe = true } }

// schemaTaken does what a schema change, ruled already, means for the worker itself.
func (f *feed) schemaTaken(ctx context.Context, s *decode.SchemaChange) {
	for _, d := range s.Dropped {
		if _, waits := f.skips[d.OID]; waits && d.Kind == "table" { // for a copy that will never come
			f.unskip(d.OID)
			f.report.got([]uint32{d.OID})
		}
	}
	for i := range s.Tables {
		if t := &s.Tables[i]; t.Rewritten {
			f.withhold(ctx, t)
		}
	}
}

// withhold leaves a table's changes out until it has been copied afresh: a command has changed its rows, and no
// change tells of that.
func (f *feed) withhold(ctx context.Context, t *decode.TableShape) {
	log := f.log.With(slog.String("table", names.Qualified(t.Schema, t.Name)))
	switch {
	case f.working.copy == nil:
		return // it takes changes only
	case f.noCopy:
		log.WarnContext(ctx, "a command has written the table's rows anew, and the group doesn't copy: what the destination has of them stays as it was")
		return
	case t.Kind != "r" || t.Made:
		return
	}
	log.InfoContext(ctx, "a command has written the table's rows anew: they are copied afresh")
	f.setSkip(t.OID, pending)
	f.report.want([]uint32{t.OID}, f.cp.Attempt)
	t.CopyFollows = true
}

// supersede leaves out of a schema change the tables whose copy is of a later time, and has told the sink of their
// structure. Of one whose copy is yet to come it leaves that it is no partition any more: others may take its place
// before. It reports whether anything is left.
func (f *feed) supersede(s *decode.SchemaChange) bool {
	if f.working.copy == nil || len(f.skips) == 0 {
		return true
	}
	later := func(oid uint32) bool {
		at, skipped := f.skips[oid]
		return skipped && (at == pending || f.tx.CommitLSN < at)
	}
	s.Tables = slices.DeleteFunc(s.Tables, func(t decode.TableShape) bool {
		if f.skips[t.OID] == pending && !s.Baseline && !t.Made && t.Kind == "r" && len(t.Parents) == 0 {
			s.Detached = append(s.Detached, t.OID)
		}
		return later(t.OID)
	})
	s.Dropped = slices.DeleteFunc(s.Dropped, func(d decode.Dropped) bool { return d.Kind == "table column" && later(d.OID) })
	return s.HasStructure()
}

// unskip takes a table's changes again.
func (f *feed) unskip(table uint32) {
	delete(f.skips, table)
}

// observe adds what is told of a row's table before the row, if that is news. The table may be one whose rows
// are left out from then on.
func (f *feed) observe(ctx context.Context, frame []byte, rel *decode.Relation) error {
	if rel == f.shape { // nearly always
		return nil
	}
	f.shape = rel
	before := f.shapes[rel.OID]
	f.shapes[rel.OID] = rel
	fresh := before == nil && f.parser.IsNew(rel.OID)
	if before == rel || !f.opt.observe && !fresh {
		return nil
	}
	if before != nil && sameShape(before, rel) {
		return nil
	}
	t := observed(rel)
	t.Made = fresh
	if before != nil {
		t.Rewritten = slices.ContainsFunc(rel.Columns, func(c decode.Column) bool { return before.Column(c.Name) < 0 })
	}
	s, err := f.rules.Schema(&decode.SchemaChange{Observed: true, Tables: []decode.TableShape{t}})
	if err != nil {
		return fmt.Errorf("rule: %w", err)
	}
	f.batch.add(&decode.Change{Op: decode.OpSchema, Tx: f.tx, Ordinal: f.ordinal, Schema: s}, 0)
	if f.opt.policy == DeadLetter {
		f.batch.origins = append(f.batch.origins, f.origin(frame, rel, nil))
	}
	f.schemaTaken(ctx, s)
	return nil
}

func sameShape(a, b *decode.Relation) bool {
	return a.Schema == b.Schema && a.Name == b.Name && a.Identity == b.Identity && slices.EqualFunc(a.Columns, b.Columns, func(x, y decode.Column) bool {
		return x.Name == y.Name && x.Type.OID == y.Type.OID && x.Modifier == y.Modifier && x.Key == y.Key
	})
}

// observed is a table's shape as far as a Relation message tells it.
func observed(rel *decode.Relation) decode.TableShape {
	t := decode.TableShape{OID: rel.OID, Schema: rel.Schema, Name: rel.Name, Kind: "r", Persistence: "p", Identity: string(rune(rel.Identity)), Ancestors: rel.Ancestors}
	for i := range rel.Columns {
		t.Columns = append(t.Columns, decode.ColumnShape{Name: rel.Columns[i].Name, Type: typeText(rel.Columns[i].Type, rel.Columns[i].Modifier), Local: true})
	}
	return t
}

// typeText is format_type's text under an empty search path, as far as the modifiers of built-in types go
// (src/backend/utils/adt/format_type.c, numeric.c, timestamp.c, varbit.c).
func typeText(t *decode.Type, modifier int32) string {
	if t.Kind == decode.ArrayType && t.Elem != nil {
		return typeText(t.Elem, modifier) + "[]"
	}
	if t.Schema != "pg_catalog" {
		return quoteName(t.Schema) + "." + quoteName(t.Name)
	}
	const header = 4 // VARHDRSZ
	size := func(name string, n int32) string {
		if modifier < 0 {
			return name
		}
		return fmt.Sprintf("%s(%d)", name, n)
	}
	zoned := func(name, zone string) string { return size(name, modifier) + zone }
	switch t.Name {
	case "int2":
		return "smallint"
	case "int4":
		return "integer"
	case "int8":
		return "bigint"
	case "float4":
		return "real"
	case "float8":
		return "double precision"
	case "bool":
		return "boolean"
	case "varchar":
		return size("character varying", modifier-header)
	case "bpchar":
		if modifier < 0 {
			return "bpchar"
		}
		return size("character", modifier-header)
	case "bit":
		if modifier < 0 {
			return `"bit"`
		}
		return size("bit", modifier)
	case "varbit":
		return size("bit varying", modifier)
	case "numeric":
		if modifier < header {
			return "numeric"
		}
		m := modifier - header
		return fmt.Sprintf("numeric(%d,%d)", m>>16&0xffff, (m&0x7ff^1024)-1024)
	case "timestamp":
		return zoned("timestamp", " without time zone")
	case "timestamptz":
		return zoned("timestamp", " with time zone")
	case "time":
		return zoned("time", " without time zone")
	case "timetz":
		return zoned("time", " with time zone")
	case "char":
		return `"char"`
	}
	return quoteName(t.Name)
}

// quoteName quotes a name where it has to be, but for keywords.
func quoteName(s string) string {
	plain := s != "" && (s[0] == '_' || s[0] >= 'a' && s[0] <= 'z') && !strings.ContainsFunc(s, func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	})
	if plain {
		return s
	}
	return names.Quote(s)
}
