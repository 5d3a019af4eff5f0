package flotest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// RequireVersion skips a test that needs a newer server than db's, by its major version.
func RequireVersion(t testing.TB, db *DB, major int) {
	t.Helper()
	if is := majorVersion(t, db); is < major {
		t.Skipf("the server is PostgreSQL %d, the test is about what came with %d", is, major)
	}
}

func majorVersion(t testing.TB, db *DB) int {
	t.Helper()
	v, err := strconv.Atoi(db.QueryString(t, "SHOW server_version_num"))
	if err != nil {
		t.Fatal(err)
	}
	return v / 10000
}

// RequireDump skips a test that needs pg_dump if the tests run with server binaries of their own ($FLO_TEST_POSTGRES_BIN)
// and no pg_dump is there that is as new as the server of db: pg_dump refuses a newer one.
// https://www.postgresql.org/docs/current/app-pgdump.html#PG-DUMP-NOTES
func RequireDump(t testing.TB, db *DB) {
	t.Helper()
	if os.Getenv(EnvBin) == "" {
		return
	}
	server := majorVersion(t, db)
	best := 0
	dirs := append([]string{os.Getenv(EnvBin)}, filepath.SplitList(os.Getenv("PATH"))...)
	for _, glob := range installPlaces() {
		found, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, found...)
	}
	for _, dir := range dirs {
		out, err := exec.CommandContext(t.Context(), filepath.Join(dir, "pg_dump"), "--version").Output()
		if err != nil {
			continue
		}
		if m := dumpVersion.FindSubmatch(out); m != nil {
			major, _ := strconv.Atoi(string(m[1])) // digits only
			best = max(best, major)
		}
	}
	if best < server {
		t.Skipf("the server is PostgreSQL %d, and the newest pg_dump here is of version %d", server, best)
	}
}
