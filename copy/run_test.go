package flocopy

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/flotest"
)

// writers change a table until stop is called: inserts, updates that move rows, deletes.
func writers(t *testing.T, db *flotest.DB, table string, n int, seed uint64) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range n {
		conn := db.Conn(t)
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		wg.Go(func() {
			for ctx.Err() == nil {
				sql := []string{
					"INSERT INTO " + table + " (pad) SELECT repeat('n', 300) FROM generate_series(1, 20)",
					"UPDATE " + table + " SET pad = pad || 'u' WHERE id % 97 = " + fmt.Sprint(rnd.IntN(97)),
					"DELETE FROM " + table + " WHERE id % 997 = " + fmt.Sprint(rnd.IntN(997)),
				}[rnd.IntN(3)]
				if _, err := conn.Exec(ctx, sql); err != nil && ctx.Err() == nil {
					t.Errorf("%s: %v", sql, err)
					return
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func TestCopyIsExactlyTheSnapshotWhileWritersRace(t *testing.T) {
	seed := flotest.Seed(t)
	db := flotest.Postgres(t)
	// Never analysed: pg_class.relpages is 0 or -1 in the whole test.
	db.Exec(t, `CREATE TABLE t (id bigserial PRIMARY KEY, pad text) WITH (autovacuum_enabled = off);
		INSERT INTO t (pad) SELECT repeat('x', 300) FROM generate_series(1, 10000)`)
	stop := writers(t, db, "t", 2, seed)
	e := export(t, db)
	c := newCollector(t, 8<<10)
	tab := find(t, db, "public", "t")
	cfg := c.config(db, e.name, tab)
	cfg.Connections, cfg.RangePages = 4, 16
	var last Progress
	cfg.Progress = func(p Progress) { last = p }
	err := Run(t.Context(), cfg)
	stop()
	if err != nil {
		t.Fatal(err)
	}
	c.checkEqual(e, db.Conn(t), tab)
	if last.Ranges < 20 || last.RangesDone != last.Ranges || last.Rows != c.rows[tab.OID] || last.Chunks != c.chunks[tab.OID] {
		t.Errorf("progress at the end: %+v", last)
	}
	if n := len(c.ranges[tab.OID]); n < 20 {
		t.Errorf("rows came from %d ranges of %d", n, last.Ranges)
	}
}

func TestEveryKindOfTableIsCopiedExactly(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, `
CREATE SCHEMA "Shop; DROP SCHEMA public";
CREATE TABLE "Shop; DROP SCHEMA public"."Order ""Items"".x" ("select" int, "Weird, ""Col""; --" text, "ünï" text);
INSERT INTO "Shop; DROP SCHEMA public"."Order ""Items"".x" SELECT i, 'v' || i, NULL FROM generate_series(1, 3000) i;
CREATE TABLE parent (id int, v text); CREATE TABLE child (extra int) INHERITS (parent);
INSERT INTO parent SELECT i, 'p' FROM generate_series(1, 2000) i;
INSERT INTO child SELECT i, 'c', i FROM generate_series(1, 2000) i;
CREATE TABLE part (id int, v text) PARTITION BY RANGE (id);
CREATE TABLE part_a PARTITION OF part FOR VALUES FROM (0) TO (1000);
CREATE TABLE part_b PARTITION OF part FOR VALUES FROM (1000) TO (9000);
INSERT INTO part SELECT i, 'x' FROM generate_series(0, 3000) i;
CREATE TABLE empty (id int PRIMARY KEY);
CREATE TABLE emptied (id int, v text); INSERT INTO emptied SELECT i, repeat('x', 500) FROM generate_series(1, 3000) i; DELETE FROM emptied;
CREATE TABLE nocolumns (); INSERT INTO nocolumns SELECT FROM generate_series(1, 700);
CREATE TABLE keyless (a text); INSERT INTO keyless SELECT 'same' FROM generate_series(1, 500);
CREATE TABLE escapes (a text, b text, c bytea);
INSERT INTO escapes SELECT E'line\nbreak\r\ttab\\n\\N\\.', CASE i % 4 WHEN 0 THEN '' WHEN 1 THEN NULL WHEN 2 THEN '\N' ELSE E'\\.\n\\.' END, decode('000a0d5c09ff', 'hex') FROM generate_series(1, 900) i;
CREATE TABLE huge (id int, v text); INSERT INTO huge SELECT i, repeat(chr(64 + i), 9000000) FROM generate_series(1, 2) i;
CREATE TABLE toasted (id int, v text); ALTER TABLE toasted ALTER v SET STORAGE EXTERNAL;
INSERT INTO toasted SELECT i, repeat('t', 3000) FROM generate_series(1, 2000) i;
CREATE TABLE filtered (id int, v text, secret text); INSERT INTO filtered SELECT i, 'v', 's' FROM generate_series(1, 3000) i;
CREATE TABLE dropped (a int, gone int, b text); INSERT INTO dropped SELECT i, i, 'b' FROM generate_series(1, 3000) i; ALTER TABLE dropped DROP gone;
CREATE TABLE generated (a int, twice int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO generated SELECT generate_series(1, 100);
CREATE TABLE types (a date, b timestamptz, c interval, d bytea, e float8, f xml, g money, h numeric, i jsonb, j int4range, k text[]);
INSERT INTO types VALUES ('0044-03-15 BC', 'infinity', '1 year -2 days', '\x00ff', 'NaN', 'text only', '12.34', 'NaN', '{"a": [1, null]}', '[1,5)', '[0:1]={a,NULL}');
`)
	weird := find(t, db, "Shop; DROP SCHEMA public", `Order "Items".x`)
	filtered := find(t, db, "public", "filtered")
	filtered.Columns = []string{"v", "id"}
	filtered.RowFilter = "id % 3 = 0 OR id = 1"
	tables := []Table{weird, filtered}
	for _, name := range []string{"parent", "child", "part_a", "part_b", "empty", "emptied", "nocolumns", "keyless", "escapes", "huge", "toasted", "dropped", "generated", "types"} {
		tables = append(tables, find(t, db, "public", name))
	}
	e := export(t, db)
	c := newCollector(t, 16<<10)
	cfg := c.config(db, e.name, tables...)
	cfg.Connections, cfg.RangePages = 3, 4
	seen := map[string]Progress{}
	cfg.Progress = func(p Progress) { seen[p.Table.Name] = p }
	started := 0
	cfg.Started = func() { started++ }
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	conn := db.Conn(t)
	for _, tab := range tables {
		c.checkEqual(e, conn, tab)
	}
	for _, name := range []string{"empty", "emptied"} {
		if got := c.done[find(t, db, "public", name).OID]; got != "0 chunks, 0 rows" {
			t.Errorf("%s: %s", name, got)
		}
	}
	if started != 1 || len(seen) != len(tables) {
		t.Errorf("Started called %d times, %d of %d tables reported", started, len(seen), len(tables))
	}
	if seen["parent"].Ranges < 2 || seen["keyless"].Ranges != 1 || seen["toasted"].Ranges < 4 {
		t.Errorf("ranges: parent %d, keyless %d, toasted %d", seen["parent"].Ranges, seen["keyless"].Ranges, seen["toasted"].Ranges)
	}
}

func TestHugeRowCostsOneCopyOfItself(t *testing.T) {
	const size = 64 << 20
	db := flotest.Postgres(t)
	db.Exec(t, fmt.Sprintf("CREATE TABLE huge (v text); INSERT INTO huge VALUES ('small'), (repeat('x', %d)), ('small')", size))
	e := export(t, db)
	var lengths []int
	cfg := Config{Connect: connector(db.URL), Snapshot: e.name, Tables: []Table{find(t, db, "public", "huge")}, Connections: 1,
		Emit: func(_ context.Context, c Chunk) error { lengths = append(lengths, len(c.Data)); return nil }}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if !slices.Equal(lengths, []int{6, size + 1, 6}) {
		t.Errorf("chunks of %v bytes", lengths)
	}
	// pgconn's message and the chunk.
	if n := after.TotalAlloc - before.TotalAlloc; n > 2*size+(8<<20) {
		t.Errorf("%d MiB allocated for a row of %d MiB", n>>20, size>>20)
	}
}

func TestExportingSessionMayEndOnceStarted(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int); INSERT INTO t SELECT generate_series(1, 5000)")
	e := export(t, db)
	c := newCollector(t, 1000)
	cfg := c.config(db, e.name, find(t, db, "public", "t"))
	cfg.RangePages = 2
	cfg.Started = func() {
		if err := e.conn.Close(t.Context()); err != nil {
			t.Error(err)
		}
		db.Exec(t, "INSERT INTO t SELECT generate_series(1, 1000)")
	}
	if err := Run(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	if n := c.rows[cfg.Tables[0].OID]; n != 5000 {
		t.Errorf("%d rows, the snapshot has 5000", n)
	}
	if err := Run(t.Context(), cfg); !errors.Is(err, ErrSnapshotGone) {
		t.Errorf("second copy from the ended session: %v", err)
	}
}

func TestTableIsLockedOnlyWhileItIsCopied(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, `CREATE TABLE first (v text); INSERT INTO first SELECT repeat('x', 1000) FROM generate_series(1, 200);
		CREATE TABLE second (v text); INSERT INTO second VALUES ('x')`)
	e := export(t, db)
	truncate := func(name string) error {
		return db.TryExec(t.Context(), "SET lock_timeout = '100ms'; TRUNCATE "+name)
	}
	err := Run(t.Context(), Config{Connect: connector(db.URL), Snapshot: e.name, Connections: 1, RangePages: 4,
		Tables: []Table{find(t, db, "public", "second"), find(t, db, "public", "first")},
		Emit: func(_ context.Context, c Chunk) error {
			if c.Table.Name == "first" { // the larger one comes first
				if err := truncate("first"); sqlState(err) != stateLockNotAvailable {
					t.Errorf("TRUNCATE of the table that is being copied: %v", err)
				}
				return nil
			}
			if err := truncate("first"); err != nil {
				t.Errorf("TRUNCATE of a table that is whole: %v", err)
			}
			return nil
		}})
	if err != nil {
		t.Fatal(err)
	}
}

// waitGone waits until no session of the copy is left on the server.
func waitGone(t *testing.T, db *flotest.DB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		n := db.QueryString(t, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1", appName)
		if n == "0" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s sessions of the copy are left", n)
		case <-tick.C:
		}
	}
}

func TestEndOfContextAndErrorsOfCallbacksEndTheCopy(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (v text); INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 20000)")
	tab := find(t, db, "public", "t")
	boom := errors.New("boom")
	ok := func(context.Context, Chunk) error { return nil }
	for name, c := range map[string]struct {
		emit func(context.Context, Chunk) error
		done func(context.Context, *Table, uint64, uint64) error
		want error
	}{
		"emit fails":       {func(context.Context, Chunk) error { return boom }, nil, boom},
		"table done fails": {ok, func(context.Context, *Table, uint64, uint64) error { return boom }, boom},
		"context ends":     {nil, nil, context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			e := export(t, db)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.emit == nil { // back-pressure that never ends
				c.emit = func(ctx context.Context, _ Chunk) error { cancel(); <-ctx.Done(); return ctx.Err() }
			}
			err := Run(ctx, Config{Connect: connector(db.URL), Snapshot: e.name, Tables: []Table{tab}, RangePages: 64, Emit: c.emit, TableDone: c.done})
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			waitGone(t, db)
		})
	}
}

func TestBrokenConfigIsReportedAtOnce(t *testing.T) {
	err := Run(t.Context(), Config{Connections: 1000, RangePages: -1, ChunkBytes: -1, Room: -1, Tables: []Table{{OID: 1, Schema: "a", Name: "b"}, {OID: 1, Schema: "a", Name: "b"}, {}}})
	if !errors.Is(err, ErrInvalidConfig) {
		t.Fatal(err)
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 9 {
		t.Errorf("want 9 mistakes: %v", err)
	}
}

func TestConnectFailureNamesWhatFailed(t *testing.T) {
	db := flotest.Postgres(t)
	e := export(t, db)
	boom := errors.New("no route")
	n := 0
	var mu sync.Mutex
	err := Run(t.Context(), Config{Snapshot: e.name, Connections: 3, Emit: func(context.Context, Chunk) error { return nil },
		Connect: func(ctx context.Context) (*pgx.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			if n++; n == 2 {
				return nil, boom
			}
			return connector(db.URL)(ctx)
		}})
	if !errors.Is(err, boom) {
		t.Error(err)
	}
	waitGone(t, db)
}
