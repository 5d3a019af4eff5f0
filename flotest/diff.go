package flotest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// maxSamples bounds the differing rows that a TableReport quotes.
const maxSamples = 10

// maxSampleBytes bounds the quoted part of a row.
const maxSampleBytes = 500

// Report is what Diff found.
type Report struct {
	Tables []TableReport
}

// TableReport is one table's comparison. Rows are compared as multisets of their text.
type TableReport struct {
	// Table is the quoted name.
	Table string
	// RowsA and RowsB count the rows on each side.
	RowsA, RowsB int64
	// OnlyA and OnlyB count the rows that have no equal on the other side.
	OnlyA, OnlyB int64
	// Samples quotes the first differing rows, at most 10, "- " before those of a and
	// "+ " before those of b, cut at 500 bytes.
	Samples []string
	// Problem says why rows weren't compared at all: table missing on one side, or other
	// columns. "" if they were.
	Problem string
}

// Equal reports whether the table is the same on both sides.
func (r TableReport) Equal() bool { return r.Problem == "" && r.OnlyA == 0 && r.OnlyB == 0 }

// Equal reports whether all tables are the same on both sides.
func (r Report) Equal() bool { return r.Differences() == 0 }

// Rows counts the rows of a in all tables.
func (r Report) Rows() (n int64) {
	for _, t := range r.Tables {
		n += t.RowsA
	}
	return n
}

// Differences counts the differing rows and the tables that couldn't be compared.
func (r Report) Differences() (n int64) {
	for _, t := range r.Tables {
		if n += t.OnlyA + t.OnlyB; t.Problem != "" {
			n++
		}
	}
	return n
}

// String shows each table in a line, and below it what differs.
func (r Report) String() string {
	var b strings.Builder
	for _, t := range r.Tables {
		switch {
		case t.Problem != "":
			fmt.Fprintf(&b, "%s: %s\n", t.Table, t.Problem)
		case t.Equal():
			fmt.Fprintf(&b, "%s: equal, %d rows\n", t.Table, t.RowsA)
		default:
			fmt.Fprintf(&b, "%s: %d rows against %d; %d only in a (-), %d only in b (+)\n", t.Table, t.RowsA, t.RowsB, t.OnlyA, t.OnlyB)
			for _, s := range t.Samples {
				fmt.Fprintf(&b, "  %s\n", s)
			}
		}
	}
	return b.String()
}

// Diff compares tables of two databases row by row, by the text PostgreSQL gives for a
// row, under the same session settings on both sides. Memory stays flat: both sides sort,
// Diff merges. Columns are matched by name, so their order may differ. The two sides are
// not read at one instant: let writers pause.
//
// Names are "schema.table" or "table" (in public) in exact case; parts may be quoted as
// in SQL. Without names all tables of both sides are compared, but for the schema flo and
// the system's. The error is of the comparing itself; differences are in the Report.
func Diff(ctx context.Context, aURL, bURL string, tables ...string) (Report, error) {
	var report Report
	err := withConn(ctx, aURL, func(a *pgx.Conn) error {
		return withConn(ctx, bURL, func(b *pgx.Conn) error {
			d, err := newDiffer(ctx, a, b)
			if err != nil {
				return err
			}
			names, err := d.names(ctx, tables)
			if err != nil {
				return err
			}
			for _, n := range names {
				t, err := d.table(ctx, n)
				if err != nil {
					return fmt.Errorf("flotest: diff %s: %w", t.Table, err)
				}
				report.Tables = append(report.Tables, t)
			}
			return nil
		})
	})
	return report, err
}

// Equal fails the test, showing the first differences, unless the tables hold the same
// rows in both databases. See Diff for names. The test goes on.
func Equal(t testing.TB, ctx context.Context, aURL, bURL string, tables ...string) {
	t.Helper()
	report, err := Diff(ctx, aURL, bURL, tables...)
	if err != nil {
		t.Fatal(err)
	}
	if !report.Equal() {
		t.Errorf("databases differ:\n%s", report)
	}
}

type differ struct {
	a, b *pgx.Conn
	utf8 bool // both servers keep text as UTF-8, so COLLATE "C" sorts alike on both
}

func newDiffer(ctx context.Context, a, b *pgx.Conn) (*differ, error) {
	d := &differ{a: a, b: b, utf8: true}
	for _, c := range []*pgx.Conn{a, b} {
		// Row security would hide rows; off makes it an error. With an empty search_path
		// type and schema names come out qualified, alike on both sides.
		if _, err := c.PgConn().Exec(ctx, "SET row_security = off; SET search_path = pg_catalog; SET statement_timeout = 0").ReadAll(); err != nil {
			return nil, fmt.Errorf("flotest: diff: %w", err)
		}
		if c.PgConn().ParameterStatus("server_encoding") != "UTF8" {
			d.utf8 = false
		}
	}
	return d, nil
}

type tableName struct{ schema, name string }

func (d *differ) names(ctx context.Context, tables []string) (names []tableName, err error) {
	for _, t := range tables {
		n, err := parseTable(t)
		if err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	if len(tables) > 0 {
		return names, nil
	}
	for _, c := range []*pgx.Conn{d.a, d.b} {
		rows, err := c.Query(ctx, `SELECT n.nspname::text, c.relname::text
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence <> 't'
			  AND n.nspname <> 'flo' AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'`)
		if err != nil {
			return nil, fmt.Errorf("flotest: diff: %w", err)
		}
		found, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (n tableName, err error) {
			err = r.Scan(&n.schema, &n.name)
			return n, err
		})
		if err != nil {
			return nil, fmt.Errorf("flotest: diff: %w", err)
		}
		names = append(names, found...)
	}
	slices.SortFunc(names, func(x, y tableName) int {
		if c := strings.Compare(x.schema, y.schema); c != 0 {
			return c
		}
		return strings.Compare(x.name, y.name)
	})
	return slices.Compact(names), nil
}

// parseTable splits a table's name at the dot outside quotes.
func parseTable(s string) (tableName, error) {
	var parts []string
	var part strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' && quoted && i+1 < len(s) && s[i+1] == '"':
			part.WriteByte('"')
			i++
		case c == '"':
			quoted = !quoted
		case c == '.' && !quoted:
			parts = append(parts, part.String())
			part.Reset()
		default:
			part.WriteByte(c)
		}
	}
	parts = append(parts, part.String())
	if len(parts) == 1 {
		parts = []string{"public", parts[0]}
	}
	if quoted || len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return tableName{}, fmt.Errorf("flotest: diff: %q is no table name: want table, schema.table or \"Schema\".\"Table\"", s)
	}
	return tableName{parts[0], parts[1]}, nil
}

// columns lists a table's columns in order; nil if there is no such table.
func columns(ctx context.Context, c *pgx.Conn, n tableName) ([]string, error) {
	rows, err := c.Query(ctx, `SELECT ARRAY(SELECT attname::text FROM pg_attribute
			WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2`, n.schema, n.name)
	if err != nil {
		return nil, err
	}
	cols, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[[]string])
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return cols, err
}

func (d *differ) table(ctx context.Context, n tableName) (TableReport, error) {
	t := TableReport{Table: quote(n.schema, n.name)}
	colsA, err := columns(ctx, d.a, n)
	if err != nil {
		return t, err
	}
	colsB, err := columns(ctx, d.b, n)
	if err != nil {
		return t, err
	}
	switch {
	case colsA == nil && colsB == nil:
		t.Problem = "missing in both"
	case colsA == nil:
		t.Problem = "missing in a"
	case colsB == nil:
		t.Problem = "missing in b"
	case !slices.Equal(slices.Sorted(slices.Values(colsA)), slices.Sorted(slices.Values(colsB))):
		t.Problem = fmt.Sprintf("columns differ: %q in a, %q in b", colsA, colsB)
	}
	if t.Problem != "" {
		return t, nil
	}
	return t, d.rows(ctx, &t, d.query(n, colsA))
}

// query reads a table's rows as text, sorted by bytes.
func (d *differ) query(n tableName, cols []string) string {
	quoted := make([]string, len(cols))
	for i, c := range cols {
		quoted[i] = "t." + quote(c)
	}
	order := `r.x COLLATE "C"`
	if !d.utf8 {
		order = `convert_to(r.x, 'UTF8')`
	}
	return fmt.Sprintf(`SELECT r.x FROM (SELECT ROW(%s)::text AS x FROM %s AS t) AS r ORDER BY %s`,
		strings.Join(quoted, ", "), quote(n.schema, n.name), order)
}

// rows merges the two sorted sides.
func (d *differ) rows(ctx context.Context, t *TableReport, sql string) error {
	a, b := openSide(ctx, d.a, sql), openSide(ctx, d.b, sql)
	okA, okB := a.next(), b.next()
	for okA || okB {
		order := 0
		switch {
		case !okB:
			order = -1
		case !okA:
			order = 1
		default:
			order = bytes.Compare(a.row, b.row)
		}
		if order < 0 {
			t.OnlyA++
			t.sample("- ", a.row)
		}
		if order > 0 {
			t.OnlyB++
			t.sample("+ ", b.row)
		}
		if order <= 0 {
			t.RowsA++
			okA = a.next()
		}
		if order >= 0 {
			t.RowsB++
			okB = b.next()
		}
	}
	return errors.Join(a.close(), b.close())
}

func (t *TableReport) sample(sign string, row []byte) {
	if len(t.Samples) >= maxSamples {
		return
	}
	if len(row) > maxSampleBytes {
		t.Samples = append(t.Samples, fmt.Sprintf("%s%s… (%d bytes)", sign, row[:maxSampleBytes], len(row)))
		return
	}
	t.Samples = append(t.Samples, sign+string(row))
}

// side reads one side's rows, each valid until the next.
type side struct {
	r   *pgconn.ResultReader
	row []byte
}

func openSide(ctx context.Context, c *pgx.Conn, sql string) *side {
	return &side{r: c.PgConn().ExecParams(ctx, sql, nil, nil, nil, nil)}
}

func (s *side) next() bool {
	if !s.r.NextRow() {
		return false
	}
	s.row = s.r.Values()[0]
	return true
}

func (s *side) close() error {
	_, err := s.r.Close()
	return err
}
