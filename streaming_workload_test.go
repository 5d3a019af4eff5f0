package flo_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/flotest"
)

// streamedTables are what a streamedWriter writes to: one that all its sessions share, and one a session whose
// columns come and go.
const streamedTables = 3

func streamedSchema() []string {
	sql := []string{`CREATE TABLE shared (id bigint PRIMARY KEY, session int, v int, filler text)`}
	for i := range streamedTables {
		sql = append(sql, fmt.Sprintf(`CREATE TABLE own%d (id bigint PRIMARY KEY, v int, filler text)`, i))
	}
	return sql
}

// streamEarly makes the source send transactions of more than 64 kB before they end.
func streamEarly(t testing.TB, db *flotest.DB) {
	t.Helper()
	db.Exec(t, `ALTER DATABASE "`+db.Name+`" SET logical_decoding_work_mem = '64kB'`)
}

// streamedWriter runs transactions of several sessions, interleaved, with savepoints, rollbacks and changes of tables.
// Sessions never wait for each other: their keys in the shared table and their own tables are apart.
type streamedWriter struct {
	t        testing.TB
	r        *rand.Rand
	sessions []*streamedSession
	messages bool // some of flo's own
	ddl      bool // table changes are committed, too
}

type streamedSession struct {
	n          int
	conn       *pgx.Conn
	open       bool
	savepoints int
	next       int // id
	columns    int // added to the own table, ever
}

func newStreamedWriter(t testing.TB, db *flotest.DB, r *rand.Rand) *streamedWriter {
	w := &streamedWriter{t: t, r: r}
	for i := range streamedTables {
		w.sessions = append(w.sessions, &streamedSession{n: i, conn: db.Conn(t)})
	}
	return w
}

func (w *streamedWriter) exec(ctx context.Context, s *streamedSession, sql string) {
	w.t.Helper()
	if _, err := s.conn.Exec(ctx, sql); err != nil {
		w.t.Fatalf("session %d: %s: %v", s.n, sql, err)
	}
}

// steps does n things in sessions that it draws; finish ends all that is open.
func (w *streamedWriter) steps(ctx context.Context, n int) {
	w.t.Helper()
	for range n {
		w.step(ctx, w.sessions[w.r.IntN(len(w.sessions))])
	}
}

func (w *streamedWriter) finish(ctx context.Context) {
	w.t.Helper()
	for _, s := range w.sessions {
		if s.open {
			w.end(ctx, s)
		}
	}
}

func (w *streamedWriter) end(ctx context.Context, s *streamedSession) {
	w.t.Helper()
	sql := "COMMIT"
	if w.r.IntN(4) == 0 {
		sql = "ROLLBACK"
	}
	w.exec(ctx, s, sql)
	s.open, s.savepoints = false, 0
}

func (w *streamedWriter) step(ctx context.Context, s *streamedSession) {
	w.t.Helper()
	if !s.open {
		if w.r.IntN(3) == 0 { // a transaction that is never streamed
			w.exec(ctx, s, w.insert(s, "shared", 1+w.r.IntN(3)))
			return
		}
		w.exec(ctx, s, "BEGIN")
		s.open = true
	}
	own := fmt.Sprintf("own%d", s.n)
	switch x := w.r.IntN(20); {
	case x < 4:
		w.exec(ctx, s, w.insert(s, "shared", 1+w.r.IntN(200)))
	case x < 7:
		w.exec(ctx, s, w.insert(s, own, 1+w.r.IntN(200)))
	case x < 9:
		w.exec(ctx, s, fmt.Sprintf(`UPDATE shared SET v = v + 1 WHERE session = %d AND id %% %d = 0`, s.n, 1+w.r.IntN(5)))
	case x < 10:
		w.exec(ctx, s, fmt.Sprintf(`DELETE FROM %s WHERE id %% %d = 0`, own, 2+w.r.IntN(9)))
	case x < 11:
		w.exec(ctx, s, fmt.Sprintf(`UPDATE %s SET id = -id WHERE id %% %d = 1`, own, 3+w.r.IntN(9)))
	case x < 14 && s.savepoints < 4:
		s.savepoints++
		w.exec(ctx, s, fmt.Sprintf("SAVEPOINT s%d", s.savepoints))
		w.exec(ctx, s, w.insert(s, "shared", w.r.IntN(150)))
	case x < 16 && s.savepoints > 0:
		i := 1 + w.r.IntN(s.savepoints)
		w.exec(ctx, s, fmt.Sprintf("ROLLBACK TO s%d; RELEASE s%[1]d", i))
		s.savepoints = i - 1
	case x < 17 && s.savepoints > 0:
		i := 1 + w.r.IntN(s.savepoints)
		w.exec(ctx, s, fmt.Sprintf("RELEASE s%d", i))
		s.savepoints = i - 1
	case x < 18:
		w.alter(ctx, s, own)
	case x < 19 && w.messages:
		w.exec(ctx, s, `SELECT pg_logical_emit_message(true, 'flo', 'a message')`)
	default:
		w.end(ctx, s)
	}
}

// alter changes the own table within a savepoint that may be rolled back.
func (w *streamedWriter) alter(ctx context.Context, s *streamedSession, own string) {
	w.t.Helper()
	s.columns++
	c := fmt.Sprintf("c%d", s.columns)
	w.exec(ctx, s, "SAVEPOINT alter")
	switch w.r.IntN(5) {
	case 0:
		w.exec(ctx, s, "TRUNCATE "+own)
	case 4:
		w.exec(ctx, s, fmt.Sprintf("ALTER TABLE %s RENAME TO %[1]s_once", own))
		w.exec(ctx, s, w.insert(s, own+"_once", 1+w.r.IntN(150)))
		w.exec(ctx, s, fmt.Sprintf("ALTER TABLE %s_once RENAME TO %[1]s", own))
	case 1:
		w.exec(ctx, s, fmt.Sprintf("CREATE TYPE %s_%s AS ENUM ('a', 'b'); ALTER TABLE %[1]s ADD COLUMN %s %[1]s_%[2]s DEFAULT 'b'", own, c, c))
	default:
		w.exec(ctx, s, fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s int DEFAULT %d", own, c, s.columns))
	}
	w.exec(ctx, s, w.insert(s, own, 1+w.r.IntN(150)))
	if w.ddl && w.r.IntN(2) == 0 {
		w.exec(ctx, s, "RELEASE alter")
		return
	}
	w.exec(ctx, s, "ROLLBACK TO alter; RELEASE alter")
	w.exec(ctx, s, w.insert(s, own, 1+w.r.IntN(20)))
}

// insert gives an INSERT of n rows of about 300 bytes.
func (w *streamedWriter) insert(s *streamedSession, table string, n int) string {
	first := 1 + s.next
	s.next += max(n, 1)
	columns, values := "id, v, filler", "i, i % 100, repeat(md5(i::text), 8)"
	if table == "shared" {
		columns, values = columns+", session", values+fmt.Sprintf(", %d", s.n)
	}
	offset := 1_000_000 * (1 + s.n)
	return fmt.Sprintf("INSERT INTO %s (%s) SELECT %s FROM generate_series(%d, %d) i", table, columns, values, offset+first, offset+first+n-1)
}

// streamedChanges gives what a recorder has of the stream, a line each.
func streamedChanges(t testing.TB, r *flotest.Recorder) []string {
	t.Helper()
	var lines []string
	for _, c := range r.Changes() {
		if c.Copy != nil {
			continue
		}
		b, err := c.AppendJSON(nil)
		if err != nil {
			t.Fatal(err)
		}
		line := string(b)
		if c.Relation != nil { // the catalog version that it was decoded with
			var types []string
			for _, col := range c.Relation.Columns {
				types = append(types, fmt.Sprintf("%s %s %v", col.Name, col.Type.Name, col.Type.Labels))
			}
			line += strings.Join(types, ", ")
		}
		lines = append(lines, line)
	}
	return lines
}

// sameLines compares what two workers recorded.
func sameLines(t testing.TB, what string, got, want []string) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("%s: change %d is\n%.300s, without streaming\n%.300s", what, i, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d changes, %d without streaming", what, len(got), len(want))
	}
}
