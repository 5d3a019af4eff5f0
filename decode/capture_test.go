package decode_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/flotest"
)

var update = flag.Bool("update", false, "write what is captured from PostgreSQL to testdata")

const capturedFile = "testdata/pgoutput.hex"

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// workload makes every kind of message that pgoutput sends. Each element is a call of its own, so a
// transaction unless it says otherwise.
var workload = []string{
	`INSERT INTO plain VALUES (1, 'one', 1.50, true, '{"a": 1.0, "b": [1, 2]}', '\xdeadbeef', '{1,NULL,3}', '2024-02-29 12:00:00.123456+00')`,
	`BEGIN; INSERT INTO plain (id, name) VALUES (2, ''), (3, NULL); UPDATE plain SET name = 'zwei' WHERE id = 2;
	 UPDATE plain SET id = 30 WHERE id = 3; DELETE FROM plain WHERE id = 1; COMMIT`,
	`INSERT INTO "Mixed ""Case".  "we.ird	name" VALUES (1, 'happy', 5, (1, 'x"y'), 'a\b')`,
	`UPDATE "Mixed ""Case"."we.ird	name" SET mood = 'sad'`,
	`INSERT INTO toasted SELECT 1, string_agg(md5(i::text), ''), 0 FROM generate_series(1, 300) i`,
	`UPDATE toasted SET n = 1`,
	`UPDATE toasted SET id = 2`,
	`INSERT INTO whole SELECT 1, string_agg(md5(i::text), ''), NULL FROM generate_series(1, 300) i`,
	`UPDATE whole SET n = 1`,
	`DELETE FROM whole`,
	`INSERT INTO by_index VALUES (1, 'a', 'b')`,
	`UPDATE by_index SET code = 'c'`,
	`DELETE FROM by_index`,
	`INSERT INTO keyless VALUES ('NaN', 'Infinity', '-infinity', '4714-11-24 BC', 'Infinity')`,
	`INSERT INTO parted VALUES (1), (1001)`,
	`ALTER TABLE plain ADD COLUMN extra int DEFAULT 7`,
	`UPDATE plain SET name = NULL WHERE id = 2`,
	`ALTER TYPE mood RENAME TO temper`,
	`UPDATE "Mixed ""Case"."we.ird	name" SET n = NULL`,
	`SELECT pg_logical_emit_message(true, 'flo', 'transactional'), pg_logical_emit_message(true, '', '\x00ff0a'::bytea)`,
	`SELECT pg_logical_emit_message(false, 'beside', 'at once')`,
	`TRUNCATE plain, toasted RESTART IDENTITY CASCADE`,
	`TRUNCATE whole`,
	`INSERT INTO no_columns DEFAULT VALUES`,
	`SELECT pg_replication_origin_create('elsewhere' || current_database())`, // in the next one's transaction PostgreSQL 14 wouldn't know its name yet
	`SELECT pg_replication_origin_session_setup('elsewhere' || current_database());
	 BEGIN; SELECT pg_replication_origin_xact_setup('0/1234ABCD', '2024-01-01 00:00:00+00');
	 INSERT INTO plain (id) VALUES (9); COMMIT;
	 SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('elsewhere' || current_database())`,
}

const workloadTables = `
CREATE TABLE plain (id int PRIMARY KEY, name text, price numeric(10,2), ok bool, doc jsonb, raw bytea, list int[], at timestamptz);
CREATE SCHEMA "Mixed ""Case";
CREATE TYPE mood AS ENUM ('happy', 'sad');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE "Mixed ""Case"."we.ird	name" ("Id" bigint PRIMARY KEY, mood mood, n positive, p pair, "col ""q""" text);
CREATE TABLE toasted (id int PRIMARY KEY, big text, n int);
ALTER TABLE toasted ALTER big SET STORAGE EXTERNAL;
CREATE TABLE whole (id int, big text, n int);
ALTER TABLE whole ALTER big SET STORAGE EXTERNAL, REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL UNIQUE, other text);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
CREATE TABLE keyless (f float8, g float4, d timestamp, bc date, n float8);
CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (1000);
CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (1000) TO (2000);
CREATE TABLE no_columns ();
CREATE PUBLICATION everything FOR ALL TABLES`

// capture runs the workload and gives the frames that pgoutput made of it.
func capture(t *testing.T, db *flotest.DB) [][]byte {
	t.Helper()
	slot := db.Name // unique on the server
	db.Exec(t, workloadTables)
	db.Exec(t, fmt.Sprintf(`SELECT pg_create_logical_replication_slot('%s', 'pgoutput')`, slot))
	for _, sql := range workload {
		db.Exec(t, sql)
	}
	rows, err := db.Conn(t).Query(t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '2', 'publication_names', 'everything', 'messages', 'true')`, slot)
	if err != nil {
		t.Fatal(err)
	}
	frames, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		t.Fatal(err)
	}
	return frames
}

// captured gives the frames in testdata, from PostgreSQL 15.
func captured(t testing.TB) [][]byte {
	t.Helper()
	data, err := os.ReadFile(capturedFile)
	if err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		frame, err := hex.DecodeString(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, frame)
	}
	return frames
}

func TestLiveFramesAgreeWithOracle(t *testing.T) {
	frames := capture(t, flotest.Postgres(t))
	checkAgainstOracle(t, frames)
	if *update {
		var out []byte
		for _, f := range frames {
			out = append(hex.AppendEncode(out, f), '\n')
		}
		if err := os.WriteFile(capturedFile, out, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCapturedFramesAgreeWithOracle(t *testing.T) { checkAgainstOracle(t, captured(t)) }
