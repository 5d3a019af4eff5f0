package postgres

import (
	"bytes"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
)

// toolScript makes a folder with pg_dump and pg_restore of a shell script.
func toolScript(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"pg_dump", "pg_restore"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+strings.ReplaceAll(script, "NAME", name)+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestToolsThatAreMissingOrOlderThanTheSource(t *testing.T) {
	src := flotest.Postgres(t)
	src.Exec(t, "CREATE TABLE t (id int PRIMARY KEY)")
	for name, dir := range map[string]string{
		"missing": t.TempDir(), "older": toolScript(t, `echo "NAME (PostgreSQL) 12.3 (Debian)"`), "broken": toolScript(t, "exit 1"),
	} {
		r := newRig(t, "", WithSchemaSync(src.URL, SchemaTools(dir)))
		err := r.sink.BeginCopy(testContext(t), []sink.CopyTable{copyOf(t, src, "t")})
		if !errors.Is(err, ErrSchemaTools) || !sink.IsPermanent(err) || !strings.Contains(err.Error(), "SchemaTools") || !strings.Contains(err.Error(), "install") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New("postgres://h/d", WithSchemaSync("postgres://u:s3cret@h:x/d", SchemaJobs(0))); !errors.Is(err, ErrInvalidOption) ||
		!strings.Contains(err.Error(), "SchemaJobs") || strings.Contains(err.Error(), "s3cret") {
		t.Error(err)
	}
	if _, err := New("postgres://h/d", WithSchemaSyncConfig(nil)); !errors.Is(err, ErrInvalidOption) {
		t.Error(err)
	}
}

// A role that may read the copied table alone is enough, and its password stands in no argument, environment,
// file or log.
func TestSchemaSyncAsAPoorRoleThatKeepsItsPassword(t *testing.T) {
	flotest.RequireOwnServer(t)
	found, err := findTools(testContext(t), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	src := flotest.Postgres(t)
	flotest.RequireDump(t, src)
	const secret = "s3cr:et\\'x"
	role := "poor_" + src.Name
	src.Exec(t, `CREATE ROLE `+role+` LOGIN PASSWORD `+"'"+strings.ReplaceAll(secret, "'", "''")+"'"+`;
		CREATE SCHEMA hidden; CREATE TABLE hidden.h (id int); CREATE TABLE "not ""read.able*" (id int); CREATE TABLE t (id serial PRIMARY KEY, v text); GRANT SELECT ON t TO `+role)
	t.Cleanup(func() { src.Exec(t, `DROP OWNED BY `+role+`; DROP ROLE `+role) })
	u, err := url.Parse(src.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, secret)
	trace := filepath.Join(t.TempDir(), "trace")
	dir := toolScript(t, `{ echo "$0 $@"; env; for f in "$TMPDIR"/flo*/*; do [ -f "$f" ] && cat "$f"; done; } >>'`+trace+`'; exec '`+found.dir+`/NAME' "$@"`)
	t.Setenv("PGPASSWORD", "misleading")
	t.Setenv("PGHOST", "nowhere.invalid")
	t.Setenv("TMPDIR", t.TempDir())
	var log bytes.Buffer
	r := newRig(t, "", WithSchemaSync(u.String(), SchemaTools(dir)), WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	tables := []sink.CopyTable{copyOf(t, src, "t")}
	if err := r.sink.BeginCopy(testContext(t), tables); err != nil {
		t.Fatal(err)
	}
	if err := r.sink.EndCopy(testContext(t), tables); err != nil {
		t.Fatal(err)
	}
	r.want("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 't'::regclass", is("PRIMARY KEY (id)"))
	traced, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(traced, []byte("--schema-only")) {
		t.Error("nothing was traced")
	}
	if bytes.Contains(traced, []byte("s3cr")) || bytes.Contains(traced, []byte("PGHOST")) || strings.Contains(log.String(), "s3cr") {
		t.Errorf("the password or the process's own settings went out:\n%s", traced)
	}
	left, err := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// Without the replica role what would fire is left out, with the SQL for later; a foreign key to a table
// that isn't there, or that a filter has broken, is left out in any case.
func TestSchemaSyncLeavesOutWhatCannotStand(t *testing.T) {
	src := flotest.Postgres(t)
	flotest.RequireDump(t, src)
	src.Exec(t, `CREATE TABLE away (id int PRIMARY KEY); CREATE TABLE p (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY, p int CONSTRAINT to_p REFERENCES p, a int CONSTRAINT to_away REFERENCES away);
		CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER trg BEFORE INSERT ON p FOR EACH ROW EXECUTE FUNCTION f()`)
	tables := []sink.CopyTable{copyOf(t, src, "p"), copyOf(t, src, "c")}
	copyAll := func(r *rig, filtered bool) error {
		tables := []sink.CopyTable{tables[0], tables[1]}
		tables[0].Filtered = filtered
		if err := r.sink.BeginCopy(testContext(t), tables); err != nil {
			t.Fatal(err)
		}
		r.db.Exec(t, "INSERT INTO c VALUES (1, 1, 1)") // whose parent is missing
		return r.sink.EndCopy(testContext(t), tables)
	}
	left := func(r *rig) string {
		var names []string
		for _, o := range r.sink.SchemaStatus().LeftOut {
			if o.SQL == "" || o.Reason == "" {
				t.Errorf("%+v", o)
			}
			names = append(names, strings.Fields(o.Name)[2])
		}
		return strings.Join(names, " ")
	}
	r := newRig(t, "", WithSchemaSync(src.URL))
	if err := copyAll(r, false); err != nil || left(r) != "to_away to_p trg" {
		t.Errorf("%v: %s", err, left(r))
	}
	r = newRig(t, "", WithSchemaSync(src.URL), WithReplicaRole())
	if err := copyAll(r, true); err != nil || left(r) != "to_away to_p" {
		t.Errorf("%v: %s", err, left(r))
	}
	r.want("SELECT count(*)::text FROM pg_trigger WHERE tgname = 'trg'", is("1"))
	r = newRig(t, "", WithSchemaSync(src.URL), WithReplicaRole())
	err := copyAll(r, false)
	var failed *SchemaError
	if !errors.As(err, &failed) || !errors.Is(err, ErrSchema) || !sink.IsPermanent(err) || len(failed.Failed) != 1 || !strings.Contains(err.Error(), "to_p") {
		t.Fatalf("%v", err)
	}
	// What is mended is gone on with.
	r.db.Exec(t, "INSERT INTO p VALUES (1)")
	if err := r.sink.EndCopy(testContext(t), tables); err != nil {
		t.Error(err)
	}
}

// Another database than the pipeline's source is told by its OIDs; what can't be made is listed, all of it.
func TestSchemaSyncSaysWhatIsWrong(t *testing.T) {
	src, other := flotest.Postgres(t), flotest.Postgres(t)
	flotest.RequireDump(t, src)
	src.Exec(t, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, v text UNIQUE, w text); CREATE INDEX b_w ON b (w)`)
	table := copyOf(t, src, "a")
	table.Source = 4294967000
	r := newRig(t, "", WithSchemaSync(other.URL))
	if err := r.sink.BeginCopy(testContext(t), []sink.CopyTable{table}); !errors.Is(err, ErrSchemaSource) || !sink.IsPermanent(err) {
		t.Error(err)
	}
	r = newRig(t, "CREATE TABLE taken (id int); CREATE INDEX b_pkey ON taken (id); CREATE INDEX b_w ON taken (id)", WithSchemaSync(src.URL))
	tables := []sink.CopyTable{copyOf(t, src, "a"), copyOf(t, src, "b")}
	if err := r.sink.BeginCopy(testContext(t), tables); err != nil {
		t.Fatal(err)
	}
	r.db.Exec(t, "INSERT INTO b VALUES (1, 'x'), (2, 'x')")
	err := r.sink.EndCopy(testContext(t), tables)
	var failed *SchemaError
	if !errors.As(err, &failed) || len(failed.Failed) != 3 {
		t.Fatal(err)
	}
	for _, part := range []string{"b_pkey", "b_v_key", "b_w", "PRIMARY KEY (id)", "UNIQUE (v)"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%v lacks %s", err, part)
		}
	}
	r.want("SELECT count(*)::text FROM pg_index WHERE indrelid = 'a'::regclass", is("1"))
}
