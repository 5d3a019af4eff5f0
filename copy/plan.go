package flocopy

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// tidRangeVersion is the first PostgreSQL that reads only the pages that a condition on ctid
	// names (TID Range Scan); before it each range would read the whole table.
	// https://www.postgresql.org/docs/14/release-14.html
	tidRangeVersion = 140000
	// planBatch is how many tables are asked about in one round trip.
	planBatch = 256
	// minRangePages keeps tables that are nearly all TOAST from being cut into tiny ranges.
	minRangePages = 16
	// maxRanges of one table: a table has at most 2^32 blocks, and a range's number has to fit.
	maxRanges = 1 << 24
)

// tablePlan is a table, cut into ranges, and how far its copy is.
type tablePlan struct {
	table    *Table
	bytes    int64 // heap and TOAST
	pages    int64 // of the heap
	step     int64 // pages a range
	ranges   uint32
	next     uint32 // first range that nobody has taken
	lost     bool   // it was rewritten or dropped
	progress Progress
}

// pageRange is one COPY.
type pageRange struct {
	plan   *tablePlan
	number uint32
}

// query is the COPY statement of a range. The last range is open-ended, in case that the table was
// measured before its last visible row was written.
func (r pageRange) query() string {
	t := r.plan.table
	var b strings.Builder
	b.WriteString("COPY (SELECT ")
	for i, c := range t.Columns {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(pgx.Identifier{c}.Sanitize())
	}
	b.WriteString(" FROM ONLY " + t.String())
	word := " WHERE "
	condition := func(c string) {
		b.WriteString(word + c)
		word = " AND "
	}
	if r.number > 0 {
		condition(fmt.Sprintf("ctid >= '(%d,0)'::tid", int64(r.number)*r.plan.step))
	}
	if r.number+1 < r.plan.ranges {
		condition(fmt.Sprintf("ctid < '(%d,0)'::tid", int64(r.number+1)*r.plan.step))
	}
	if t.RowFilter != "" {
		condition("(" + t.RowFilter + ")")
	}
	b.WriteString(") TO STDOUT")
	return b.String()
}

// planQuery measures a table and finds what would keep it from being copied, before hours have been
// spent on others. Sizes are those of the files, not pg_class.relpages, which is 0 or stale where
// nobody ran ANALYZE. Columns of the catalog's tables come from the snapshot; pg_relation_filenode,
// to_regclass and the privilege functions see what is there now.
const planQuery = `SELECT c.relkind,
  c.relfilenode IS NOT DISTINCT FROM pg_relation_filenode(c.oid),
  c.relname = $3 AND n.nspname = $2,
  coalesce(pg_relation_size(c.oid), 0),
  coalesce(pg_table_size(c.oid), 0),
  current_setting('block_size'),
  row_security_active(c.oid),
  has_schema_privilege(n.oid, 'USAGE') AND (has_table_privilege(c.oid, 'SELECT') OR NOT EXISTS (
    SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = ANY ($4::text[])
    AND has_column_privilege(c.oid, a.attnum, 'SELECT') IS FALSE)),
  ARRAY (SELECT w FROM unnest($4::text[]) w WHERE NOT EXISTS (
    SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = w AND a.attnum > 0 AND NOT a.attisdropped))::text,
  current_user
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid`

// planTables measures all tables in the snapshot's transaction, and tells which of them are lost to it.
func planTables(ctx context.Context, w *worker, cfg *Config) (plans []*tablePlan, gone []error, err error) {
	plans = make([]*tablePlan, 0, len(cfg.Tables))
	for lo := 0; lo < len(cfg.Tables); lo += planBatch {
		hi := min(lo+planBatch, len(cfg.Tables))
		batch := &pgconn.Batch{}
		for i := lo; i < hi; i++ {
			t := &cfg.Tables[i]
			batch.ExecParams(planQuery, [][]byte{oidText(t.OID), []byte(t.Schema), []byte(t.Name), textArray(t.Columns)}, nil, nil, nil)
		}
		results, err := w.conn.PgConn().ExecBatch(ctx, batch).ReadAll()
		if err != nil {
			return nil, nil, fmt.Errorf("flocopy: measure the tables: %w", err)
		}
		for i, res := range results {
			p, err := planTable(&cfg.Tables[lo+i], res.Rows, cfg.RangePages, w.version)
			switch {
			case lost(err):
				gone = append(gone, err)
			case err != nil:
				return nil, nil, err
			default:
				plans = append(plans, p)
			}
		}
	}
	return plans, gone, nil
}

// planTable reads planQuery's answer about one table.
func planTable(t *Table, rows [][][]byte, rangePages int64, version int) (*tablePlan, error) {
	if len(rows) != 1 || len(rows[0]) != 10 {
		return nil, &TableError{Table: *t, Kind: ErrDropped, Remedy: fmt.Sprintf("the snapshot sees no table with OID %d", t.OID)}
	}
	f := rows[0]
	yes := func(i int) bool { return string(f[i]) == "t" }
	switch {
	case string(f[0]) != "r":
		return nil, &TableError{Table: *t, Remedy: fmt.Sprintf("pg_class.relkind is %q: only ordinary tables and leaf partitions can be copied", f[0])}
	case !yes(2):
		return nil, &RewrittenError{Table: *t, Reason: fmt.Sprintf("the snapshot knows the table with OID %d by another name", t.OID)}
	case !yes(1):
		return nil, &RewrittenError{Table: *t, Reason: "its file was replaced, by TRUNCATE, VACUUM FULL, CLUSTER or ALTER TABLE, or it was dropped"}
	case string(f[8]) != "{}":
		return nil, &RewrittenError{Table: *t, Reason: fmt.Sprintf("the snapshot sees no columns %s", f[8])}
	case yes(6):
		return nil, rowSecurityError(t, string(f[9]), nil)
	case !yes(7):
		return nil, &TableError{Table: *t, Kind: ErrPermission, Remedy: grantRemedy(t, string(f[9]))}
	}
	var n [3]int64
	for i := range n {
		v, err := strconv.ParseInt(string(f[3+i]), 10, 64)
		if err != nil {
			return nil, &TableError{Table: *t, Err: fmt.Errorf("read its size: %w", err)}
		}
		n[i] = v
	}
	return newTablePlan(t, n[0], n[1], max(n[2], 1), rangePages, version), nil
}

// newTablePlan cuts a table. Where TOAST makes up most of a table, its heap pages weigh more, and a
// range has fewer of them.
func newTablePlan(t *Table, heap, total, block, rangePages int64, version int) *tablePlan {
	p := &tablePlan{table: t, bytes: max(heap, total), pages: (heap + block - 1) / block, step: rangePages, ranges: 1}
	if total > heap && heap > 0 {
		weighed := int64(float64(rangePages) * float64(heap) / float64(total))
		p.step = max(weighed, min(minRangePages, rangePages))
	}
	p.step = max(p.step, (p.pages+maxRanges-1)/maxRanges)
	if version >= tidRangeVersion && p.pages > p.step {
		p.ranges = uint32((p.pages + p.step - 1) / p.step)
	}
	p.progress = Progress{Table: t, Bytes: p.bytes, Ranges: p.ranges}
	return p
}

// schedule hands out ranges: the largest tables first, so that no long one is left for the end, and
// all connections on one table, so that no lock is held for longer than needed.
type schedule struct {
	report func(Progress)

	mu    sync.Mutex
	plans []*tablePlan // those that still have ranges to hand out
	lost  []error      // tables that this snapshot can't give
}

func newSchedule(plans []*tablePlan, report func(Progress)) *schedule {
	s := &schedule{plans: slices.Clone(plans), report: report}
	slices.SortStableFunc(s.plans, func(a, b *tablePlan) int {
		switch {
		case a.bytes > b.bytes:
			return -1
		case a.bytes < b.bytes:
			return 1
		}
		return 0
	})
	if report != nil {
		for _, p := range s.plans {
			report(p.progress)
		}
	}
	return s
}

// take the next range; false if there is none.
func (s *schedule) take() (pageRange, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.plans) > 0 {
		p := s.plans[0]
		if p.next < p.ranges {
			p.next++
			return pageRange{plan: p, number: p.next - 1}, true
		}
		s.plans = s.plans[1:]
	}
	return pageRange{}, false
}

// lose gives a table up: its other ranges are not read.
func (s *schedule) lose(r pageRange, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := r.plan
	p.next = p.ranges
	if !p.lost {
		p.lost = true
		s.lost = append(s.lost, err)
	}
}

// finish counts a range that is done, and reports whether the table is.
func (s *schedule) finish(r pageRange, n counts) (total Progress, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &r.plan.progress
	p.RangesDone++
	p.Chunks += n.chunks
	p.Rows += n.rows
	p.Data += n.bytes
	if s.report != nil {
		s.report(*p)
	}
	return *p, p.RangesDone == p.Ranges && !r.plan.lost
}

func oidText(oid uint32) []byte { return strconv.AppendUint(nil, uint64(oid), 10) }

// textArray writes a one-dimensional text[].
// https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
func textArray(list []string) []byte {
	out := []byte{'{'}
	for i, s := range list {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, '"')
		for j := 0; j < len(s); j++ {
			if s[j] == '"' || s[j] == '\\' {
				out = append(out, '\\')
			}
			out = append(out, s[j])
		}
		out = append(out, '"')
	}
	return append(out, '}')
}
