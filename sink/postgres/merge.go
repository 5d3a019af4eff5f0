package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// WithMergeCopy is for destination tables that hold rows of others, or must not be seen empty: a copy is not written
// into them but into a table of flo's own schema, and when all of it is there, it is merged in by key, in one
// transaction. Rows of others, told by their keys, stay. Patterns name destination tables, as flo.WithTables does source
// tables; none: all tables. Default: no table.
//
// flo remembers the keys of the rows that it has brought. So a later copy, or a TRUNCATE at the source, also takes out
// those that are gone at the source, and no others. A row of others whose key comes from the source is flo's from then
// on.
//
// The destination needs a unique index on the source's key, or for a source without one a primary key, else
// ErrMergeKey; the role needs CREATE on flo's schema. Set it from the first copy on: rows that flo brought before are
// taken for rows of others.
func WithMergeCopy(tables ...string) Option {
	return func(c *config) {
		c.merge = append(c.merge, tables...)
		c.mergeAll = c.mergeAll || len(tables) == 0
	}
}

// ErrMergeKey says that a table of WithMergeCopy has no key to merge by.
var ErrMergeKey error = refusal("a copy can't be merged into the destination table: it needs a primary key, or a unique index on the source's key; make one, or leave the table out of WithMergeCopy")

// parseMerge reads the patterns of WithMergeCopy.
func (c *config) parseMerge(invalid func(string, ...any)) {
	for _, text := range c.merge {
		p, err := names.Parse(text)
		if err != nil {
			invalid("WithMergeCopy(%q): %v", text, err)
		}
		c.mergePatterns = append(c.mergePatterns, p)
	}
}

// merges reports whether copies into a table are to be merged.
func (c *config) merges(table decode.Name) bool {
	return c.mergeAll || names.Any(c.mergePatterns, table.Schema, table.Name)
}

// mergeKey is what tells the rows of a destination table apart.
type mergeKey struct {
	cols       []int // of the relation
	ops        []string
	deferrable bool
}

// mergeKey gives it: the source's key, or where that has none the destination's.
func (b *binding) mergeKey() (k mergeKey, err error) {
	switch {
	case b.rel.HasKey() && b.key != nil:
		k = mergeKey{b.keyCols, b.keyOps, b.key.deferrable}
	case !b.rel.HasKey() && b.primIdx != nil:
		k = mergeKey{b.primary, b.primOps, b.primIdx.deferrable}
	default:
		return k, tableError(b.table.name, ErrMergeKey, "")
	}
	for _, i := range k.cols {
		if c := b.columns[i]; c.generated || !c.castable {
			return k, tableError(b.table.name, ErrMergeKey, fmt.Sprintf("its key's column %q is generated, or of a type that has a cast of its own from text", c.name))
		}
	}
	return k, nil
}

// columns gives the key's columns, quoted, behind an alias.
func (k *mergeKey) columns(b *binding, alias string) string {
	out := make([]string, len(k.cols))
	for n, i := range k.cols {
		out[n] = alias + b.columns[i].quoted
	}
	return strings.Join(out, ", ")
}

// equal is the condition that two tables' rows have the same key.
func (k *mergeKey) equal(b *binding, left, right string) string {
	out := make([]string, len(k.cols))
	for n, i := range k.cols {
		out[n] = left + "." + b.columns[i].quoted + " " + k.ops[n] + " " + right + "." + b.columns[i].quoted
	}
	return strings.Join(out, " AND ")
}

// Names of the merge's tables in flo's schema: a worker's begin with the same digits.
func hashed(n int, parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])[:n]
}

// stagePrefix and keysPrefix begin the names of the tables that hold an attempt's rows, by source, and the keys of the
// rows that were brought, by destination.
func keysPrefix(st *sink.Start) string {
	return "keys_" + hashed(10, st.Group, laneOwner(st.Worker)) + "_"
}

func keysName(st *sink.Start, dest decode.Name) string {
	return keysPrefix(st) + hashed(16, dest.Schema, dest.Name)
}

func (s *Sink) stage(st *sink.Start, source uint32) string {
	return pgx.Identifier{s.config.schema, "stage_" + hashed(10, st.Group, laneOwner(st.Worker)) + "_" + number(source)}.Sanitize()
}

func (s *Sink) keysTable(st *sink.Start, dest decode.Name) string {
	return pgx.Identifier{s.config.schema, keysName(st, dest)}.Sanitize()
}

// staged reports whether the attempt of a source that was begun goes into a table of its own, and notes it for the
// chunks.
func (s *Sink) staged(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, t sink.CopyTable) (bool, error) {
	is, err := yes(ctx, pg, "SELECT to_regclass($1) IS NOT NULL", s.stage(st, t.Source))
	if err == nil {
		s.noteStaged(t, is)
	}
	return is, err
}

func (s *Sink) noteStaged(t sink.CopyTable, is bool) {
	if is {
		s.merging.Store(t.Source, t.Attempt)
	} else {
		s.merging.Delete(t.Source)
	}
}

// isStaged reports what BeginTable has found.
func (s *Sink) isStaged(t sink.CopyTable) bool {
	attempt, ok := s.merging.Load(t.Source)
	return ok && attempt == t.Attempt
}

// copyTarget is where a chunk's rows go.
func (s *Sink) copyTarget(st *sink.Start, t sink.CopyTable, b *binding) string {
	if s.isStaged(t) {
		return s.stage(st, t.Source)
	}
	return b.table.sql
}

// beginMerge makes the table for an attempt's rows. It is a logged one: the books say which chunks it has, and a server
// that crashes would empty an unlogged one.
func (s *Sink) beginMerge(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, t sink.CopyTable, b *binding) error {
	key, err := b.mergeKey()
	if err != nil {
		return err
	}
	stage := s.stage(st, t.Source)
	columns := make([]string, len(b.columns))
	for i, c := range b.columns {
		columns[i] = c.quoted
	}
	// With the columns' types, modifiers and collations, and none of their constraints.
	err = simple(ctx, pg, "DROP TABLE IF EXISTS "+stage+"; CREATE TABLE "+stage+" AS SELECT "+strings.Join(columns, ", ")+" FROM "+b.table.from+" WITH NO DATA; "+
		"COMMENT ON TABLE "+stage+" IS "+literal("flo: a copy that will be merged into "+b.table.name.String()))
	if err == nil {
		err = s.ensureKeys(ctx, pg, st, b, key)
	}
	if pgsession.SQLState(err) == "42501" {
		return tableError(b.table.name, fmt.Errorf("%w: WithMergeCopy makes tables in schema %s: GRANT USAGE, CREATE ON SCHEMA %s to it: %w", ErrPrivilege, s.books.schema, s.books.schema, err), "")
	}
	return err
}

// ensureKeys makes the table of keys. One of other columns can't be gone on with: what it says is forgotten.
func (s *Sink) ensureKeys(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, b *binding, key mergeKey) error {
	name := keysName(st, b.table.name)
	have, err := s.readKeys(ctx, pg, name)
	if err != nil {
		return err
	}
	if slices.Equal(have[name], key.names(b)) {
		return nil
	}
	quoted := s.keysTable(st, b.table.name)
	if have[name] != nil {
		s.config.logger.WarnContext(ctx, "the key of a merged table has changed: rows that were brought under the old one are taken for the destination's own", "table", b.table.name.String())
	}
	return simple(ctx, pg, "DROP TABLE IF EXISTS "+quoted+"; CREATE TABLE "+quoted+" AS SELECT "+key.columns(b, "")+", 0::oid AS "+fromSource+" FROM "+b.table.from+" WITH NO DATA; "+
		"ALTER TABLE "+quoted+" ADD PRIMARY KEY ("+key.columns(b, "")+", "+fromSource+"); "+
		"COMMENT ON TABLE "+quoted+" IS "+literal("flo: keys of the rows that worker "+st.Worker+" of group "+st.Group+" has brought to "+b.table.name.String()))
}

// fromSource of a table of keys is the OID of the source table that a row came from.
const fromSource = "flo_source"

// names of the key's columns.
func (k *mergeKey) names(b *binding) []string {
	out := make([]string, len(k.cols))
	for n, i := range k.cols {
		out[n] = b.columns[i].name
	}
	return out
}

// merge brings a source's rows into the destination, in the transaction that ends its copy.
type merge struct {
	*Sink
	ctx   context.Context
	pg    *pgconn.PgConn
	st    *sink.Start
	t     sink.CopyTable
	b     *binding
	key   mergeKey
	stage string
	keys  string
	mine  string // the sources whose rows this one replaces, as a list
}

// merge ends the copy of a source whose rows are staged; rows is their number.
func (s *Sink) merge(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, t sink.CopyTable, b *binding, rows string) error {
	key, err := b.mergeKey()
	if err != nil {
		return err
	}
	m := &merge{Sink: s, ctx: ctx, pg: pg, st: st, t: t, b: b, key: key, stage: s.stage(st, t.Source), keys: s.keysTable(st, b.table.name)}
	// The session is set up for few rows.
	if err := simple(ctx, pg, "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET LOCAL enable_seqscan = on; ANALYZE "+m.stage); err != nil {
		return err
	}
	if m.mine, err = m.replaced(); err != nil {
		return err
	}
	for _, step := range []func() error{m.removeGone, func() error { return m.upsert(rows) }, m.remember} {
		if err := step(); err != nil {
			return err
		}
	}
	return simple(ctx, pg, "DROP TABLE "+m.stage)
}

// replaced gives the sources whose rows count no more: this one's from before, and those of tables that the group no
// longer has.
func (m *merge) replaced() (string, error) {
	kept := make([]string, len(m.t.Kept))
	for i, oid := range m.t.Kept {
		kept[i] = number(oid)
	}
	rows, err := query(m.ctx, m.pg, "SELECT DISTINCT "+fromSource+" FROM "+m.keys+" k WHERE "+fromSource+" <> $1::oid AND "+fromSource+" <> ALL ($2::oid[]) AND NOT EXISTS (SELECT FROM "+m.books.copies+
		" c WHERE c.group_name = $3 AND c.worker = $4 AND c.source = k."+fromSource+" AND c.incarnation = $5 AND c.attempt = $6 AND c.dest_schema = $7 AND c.dest_table = $8)",
		number(m.t.Source), "{"+strings.Join(kept, ",")+"}", m.st.Group, m.st.Worker, m.st.Incarnation, number(m.t.Attempt), m.b.table.name.Schema, m.b.table.name.Name)
	list := number(m.t.Source)
	for _, r := range rows {
		list += ", " + string(r[0])
	}
	return list, err
}

// removeGone takes out what was brought, and is in the copy no more.
func (m *merge) removeGone() error {
	k := &m.key
	n, err := exec(m.ctx, m.pg, "DELETE FROM "+m.b.table.from+" AS d USING "+m.keys+" AS k WHERE k."+fromSource+" IN ("+m.mine+") AND "+k.equal(m.b, "d", "k")+
		" AND NOT EXISTS (SELECT FROM "+m.stage+" AS s WHERE "+k.equal(m.b, "s", "k")+")"+
		" AND NOT EXISTS (SELECT FROM "+m.keys+" AS o WHERE "+k.equal(m.b, "o", "k")+" AND o."+fromSource+" NOT IN ("+m.mine+"))")
	if err == nil && n > 0 {
		m.config.logger.InfoContext(m.ctx, "rows that are gone at the source were taken out", "table", m.b.table.name.String(), "rows", n)
	}
	return err
}

// upsert writes the rows.
func (m *merge) upsert(rows string) error {
	var cols, set []string
	always := false
	for i, c := range m.b.columns {
		if c.generated {
			continue
		}
		cols = append(cols, c.quoted)
		if slices.Contains(m.key.cols, i) {
			continue
		}
		always = always || c.always
		set = append(set, c.quoted)
	}
	list := strings.Join(cols, ", ")
	into := "INSERT INTO " + m.b.table.sql + " AS d (" + list + ") OVERRIDING SYSTEM VALUE SELECT " + list + " FROM " + m.stage + " AS s"
	equal := m.key.equal(m.b, "d", "s")
	assign := func(from string) string {
		out := make([]string, len(set))
		for i, c := range set {
			out[i] = c + " = " + from + "." + c
		}
		return strings.Join(out, ", ")
	}
	var steps []string
	counted := true
	switch {
	case always: // an identity that no SET can change
		steps = []string{"DELETE FROM " + m.b.table.from + " AS d USING " + m.stage + " AS s WHERE " + equal, into}
	case m.key.deferrable: // can't arbitrate ON CONFLICT
		steps = []string{"LOCK TABLE " + m.b.table.sql + " IN SHARE ROW EXCLUSIVE MODE"}
		if len(set) > 0 {
			steps = append(steps, "UPDATE "+m.b.table.from+" AS d SET "+assign("s")+" FROM "+m.stage+" AS s WHERE "+equal)
		}
		counted = len(set) > 0
		steps = append(steps, into+" WHERE NOT EXISTS (SELECT FROM "+m.b.table.from+" AS d WHERE "+equal+")")
	default:
		conflict := " ON CONFLICT (" + m.key.columns(m.b, "") + ") DO UPDATE SET " + assign("EXCLUDED")
		if counted = len(set) > 0; !counted {
			conflict = " ON CONFLICT DO NOTHING"
		}
		steps = []string{into + conflict}
	}
	var n int64
	for _, sql := range steps {
		met, err := exec(m.ctx, m.pg, sql)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(sql, "DELETE") {
			n += max(met, 0)
		}
	}
	if counted && number(uint64(n)) != rows {
		return fmt.Errorf("%w: %d of %s rows were merged", ErrCopyIncomplete, n, rows)
	}
	return nil
}

// remember notes the keys of what was brought.
func (m *merge) remember() error {
	k := &m.key
	if _, err := exec(m.ctx, m.pg, "DELETE FROM "+m.keys+" AS k WHERE "+fromSource+" IN ("+m.mine+") AND ("+fromSource+" <> $1::oid OR NOT EXISTS (SELECT FROM "+m.stage+" AS s WHERE "+k.equal(m.b, "s", "k")+"))",
		number(m.t.Source)); err != nil {
		return err
	}
	_, err := exec(m.ctx, m.pg, "INSERT INTO "+m.keys+" ("+k.columns(m.b, "")+", "+fromSource+") SELECT "+k.columns(m.b, "")+", $1::oid FROM "+m.stage+" ON CONFLICT DO NOTHING", number(m.t.Source))
	return err
}
