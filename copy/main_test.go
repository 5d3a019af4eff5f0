package flocopy

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// appName is how the copy's sessions are found in pg_stat_activity.
const appName = "flocopy under test"

func connector(url string) func(context.Context) (*pgx.Conn, error) {
	return func(ctx context.Context) (*pgx.Conn, error) {
		cfg, err := pgx.ParseConfig(url)
		if err != nil {
			return nil, err
		}
		return pgsession.Connect(ctx, cfg, pgsession.Options{AppName: appName})
	}
}

// exporter holds a snapshot, and can look at it.
type exporter struct {
	conn *pgx.Conn
	name string
}

func export(t testing.TB, db *flotest.DB) *exporter {
	t.Helper()
	e := &exporter{conn: db.Conn(t)}
	if _, err := e.conn.Exec(t.Context(), "BEGIN ISOLATION LEVEL REPEATABLE READ"); err != nil {
		t.Fatal(err)
	}
	if err := e.conn.QueryRow(t.Context(), "SELECT pg_export_snapshot()").Scan(&e.name); err != nil {
		t.Fatal(err)
	}
	return e
}

// fingerprint of a query's rows as text: how many, and a hash that doesn't depend on their order.
func fingerprint(t testing.TB, c *pgx.Conn, from string) string {
	t.Helper()
	var s string
	err := c.QueryRow(t.Context(), `SELECT count(*) || ' rows, ' || coalesce(md5(string_agg(md5(x::text), '' ORDER BY md5(x::text))), '') FROM (`+from+`) x`).Scan(&s)
	if err != nil {
		t.Fatalf("%s: %v", from, err)
	}
	return s
}

// find makes a Table of a table in the database, with all of its columns.
func find(t testing.TB, db *flotest.DB, schema, name string) Table {
	t.Helper()
	rows := db.Query(t, `SELECT c.oid, a.attname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE n.nspname = $1 AND c.relname = $2 ORDER BY a.attnum`, schema, name)
	tab := Table{Schema: schema, Name: name}
	for _, r := range rows {
		if _, err := fmt.Sscan(r[0], &tab.OID); err != nil {
			t.Fatal(err)
		}
		if r[1] != flotest.Null {
			tab.Columns = append(tab.Columns, r[1])
		}
	}
	if tab.OID == 0 {
		t.Fatalf("no table %s.%s", schema, name)
	}
	return tab
}

// collector keeps what Run emits, and checks what must hold for every chunk.
type collector struct {
	t     testing.TB
	limit int

	mu     sync.Mutex
	data   map[uint32][][]byte // by OID
	rows   map[uint32]uint64
	chunks map[uint32]uint64
	next   map[[2]uint32]uint64 // by OID and range: the row that comes next
	ranges map[uint32]map[uint32]bool
	done   map[uint32]string
}

func newCollector(t testing.TB, limit int) *collector {
	return &collector{t: t, limit: limit, data: map[uint32][][]byte{}, rows: map[uint32]uint64{}, chunks: map[uint32]uint64{},
		next: map[[2]uint32]uint64{}, ranges: map[uint32]map[uint32]bool{}, done: map[uint32]string{}}
}

func (c *collector) emit(_ context.Context, ch Chunk) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	oid := ch.Table.OID
	if n := uint64(bytes.Count(ch.Data, []byte{'\n'})); n != ch.Rows || n == 0 || !bytes.HasSuffix(ch.Data, []byte{'\n'}) {
		c.t.Errorf("%s: chunk says %d rows, has %d row ends", ch.Table, ch.Rows, n)
	}
	if len(ch.Data) > c.limit && ch.Rows > 1 {
		c.t.Errorf("%s: chunk of %d rows has %d bytes, limit %d", ch.Table, ch.Rows, len(ch.Data), c.limit)
	}
	key := [2]uint32{oid, ch.Range}
	if ch.Row != c.next[key] {
		c.t.Errorf("%s range %d: chunk starts at row %d, want %d", ch.Table, ch.Range, ch.Row, c.next[key])
	}
	if c.done[oid] != "" {
		c.t.Errorf("%s: chunk behind TableDone", ch.Table)
	}
	if c.ranges[oid] == nil {
		c.ranges[oid] = map[uint32]bool{}
	}
	c.ranges[oid][ch.Range] = true
	c.next[key] += ch.Rows
	c.rows[oid] += ch.Rows
	c.chunks[oid]++
	c.data[oid] = append(c.data[oid], ch.Data)
	return nil
}

func (c *collector) tableDone(_ context.Context, t *Table, chunks, rows uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done[t.OID] != "" {
		c.t.Errorf("%s: done twice", t)
	}
	if chunks != c.chunks[t.OID] || rows != c.rows[t.OID] {
		c.t.Errorf("%s: TableDone says %d chunks, %d rows; emitted were %d, %d", t, chunks, rows, c.chunks[t.OID], c.rows[t.OID])
	}
	c.done[t.OID] = fmt.Sprintf("%d chunks, %d rows", chunks, rows)
	return nil
}

func (c *collector) config(db *flotest.DB, snapshot string, tables ...Table) Config {
	return Config{Connect: connector(db.URL), Snapshot: snapshot, Tables: tables, ChunkBytes: c.limit, Emit: c.emit, TableDone: c.tableDone}
}

// load feeds what was emitted of a table to COPY FROM in a copy of it, and gives the copy's name.
func (c *collector) load(conn *pgx.Conn, t Table) string {
	c.t.Helper()
	ctx := c.t.Context()
	dst := pgx.Identifier{"restored", fmt.Sprint("t", t.OID)}.Sanitize()
	cols := make([]string, len(t.Columns))
	for i, col := range t.Columns {
		cols[i] = pgx.Identifier{col}.Sanitize()
	}
	list := strings.Join(cols, ", ")
	for _, sql := range []string{"CREATE SCHEMA IF NOT EXISTS restored",
		"CREATE TABLE " + dst + " AS SELECT " + list + " FROM ONLY " + t.String() + " LIMIT 0"} {
		if _, err := conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			c.t.Fatalf("%s: %v", sql, err)
		}
	}
	if len(cols) > 0 {
		list = " (" + list + ")"
	}
	for _, data := range c.data[t.OID] {
		if _, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(data), "COPY "+dst+list+" FROM STDIN"); err != nil {
			c.t.Fatalf("load %s: %v", &t, err)
		}
	}
	return "SELECT * FROM " + dst
}

// checkEqual proves that what was emitted of a table is what the snapshot sees of it.
func (c *collector) checkEqual(e *exporter, conn *pgx.Conn, t Table) {
	c.t.Helper()
	cols := make([]string, len(t.Columns))
	for i, col := range t.Columns {
		cols[i] = pgx.Identifier{col}.Sanitize()
	}
	source := "SELECT " + strings.Join(cols, ", ") + " FROM ONLY " + t.String()
	if t.RowFilter != "" {
		source += " WHERE " + t.RowFilter
	}
	want := fingerprint(c.t, e.conn, source)
	if got := fingerprint(c.t, conn, c.load(conn, t)); got != want {
		c.t.Errorf("%s: restored %s; the snapshot has %s", &t, got, want)
	}
	if c.done[t.OID] == "" {
		c.t.Errorf("%s: TableDone was not called", &t)
	}
}

// connectAs opens sessions that act as another role.
func connectAs(url, role string) func(context.Context) (*pgx.Conn, error) {
	return func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := connector(url)(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := conn.Exec(ctx, "SET ROLE "+role); err != nil {
			return nil, err
		}
		return conn, nil
	}
}
