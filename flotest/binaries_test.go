package flotest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindTools(t *testing.T) {
	full, empty := t.TempDir(), t.TempDir()
	for _, tool := range []string{"initdb", "postgres"} {
		if err := os.WriteFile(filepath.Join(full, tool), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, env, path, want string }{
		{"variable", full, "", full},
		{"variable beats PATH", empty, full, ""},
		{"PATH", "", empty + string(os.PathListSeparator) + full, full},
	} {
		got, err := findTools(c.env, c.path, "initdb", "postgres")
		if got != c.want || (c.want == "") != errors.Is(err, ErrNoPostgres) {
			t.Errorf("%s: %q, %v", c.name, got, err)
		}
	}
	_, err := findTools("", "", "no-such-tool")
	if !errors.Is(err, ErrNoPostgres) || !strings.Contains(err.Error(), "install postgresql") {
		t.Errorf("missing: %v", err)
	}
	if line := installLine("darwin"); !strings.HasPrefix(line, "brew install postgresql@") {
		t.Error(line)
	}
}

func TestVersionIn(t *testing.T) {
	for dir, want := range map[string]int{
		"/usr/lib/postgresql/15/bin":          1500,
		"/usr/lib/postgresql/9.6/bin":         906,
		"/opt/homebrew/opt/postgresql@17/bin": 1700,
		"/usr/pgsql-16/bin":                   1600,
		"/usr/local/pgsql/bin":                0,
	} {
		if got := versionIn(dir); got != want {
			t.Errorf("%s: %d, want %d", dir, got, want)
		}
	}
}

func TestInDatabase(t *testing.T) {
	for conn, want := range map[string]string{
		"postgres://u:p@h:1/old?sslmode=disable": "postgres://u:p@h:1/n?sslmode=disable",
		"postgresql://h?dbname=old&port=2":       "postgresql://h/n?port=2",
		"host=h dbname=old":                      "host=h dbname=old dbname='n'",
	} {
		if got := inDatabase(conn, "n"); got != want {
			t.Errorf("%s: %s, want %s", conn, got, want)
		}
	}
}
