package flotest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// RequireDump skips a test that needs pg_dump if the tests run with server binaries of their own ($FLO_TEST_POSTGRES_BIN)
// and no pg_dump is there that is as new as the server of db: pg_dump refuses a newer one.
// https://www.postgresql.org/docs/current/app-pgdump.html#PG-DUMP-NOTES
func RequireDump(t testing.TB, db *DB) {
	t.Helper()
	if os.Getenv(EnvBin) == "" {
		return
	}
	server, err := strconv.Atoi(db.QueryString(t, "SHOW server_version_num"))
	if err != nil {
		t.Fatal(err)
	}
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
	if best < server/10000 {
		t.Skipf("the server is PostgreSQL %d, and the newest pg_dump here is of version %d", server/10000, best)
	}
}
