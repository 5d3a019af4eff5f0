package flotest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// EnvBin names the environment variable with the folder of the PostgreSQL binaries to
// use. It beats every other place.
const EnvBin = "FLO_TEST_POSTGRES_BIN"

// ErrNoPostgres is wrapped by the error that says that no PostgreSQL server binaries
// were found, where they were sought, and how to install them.
var ErrNoPostgres = errors.New("flotest: no PostgreSQL binaries found")

// FindBinaries returns the folder that holds initdb and postgres: $FLO_TEST_POSTGRES_BIN
// if set, else the first of PATH, Debian's, Homebrew's, Red Hat's and the source
// distribution's places, the newest version first. The error wraps ErrNoPostgres.
func FindBinaries() (string, error) {
	return findTools(os.Getenv(EnvBin), os.Getenv("PATH"), "initdb", "postgres")
}

// Pgbench returns the path of the pgbench binary, from the same places as FindBinaries. The folder of
// $FLO_TEST_POSTGRES_BIN may lack it, for a server without client programs: another version's serves as well.
func Pgbench() (string, error) {
	dir, err := findTools(os.Getenv(EnvBin), os.Getenv("PATH"), "pgbench")
	if err != nil {
		dir, err = findTools("", os.Getenv("PATH"), "pgbench")
	}
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "pgbench"), nil
}

// installPlaces are globs of folders where packages put versions side by side.
func installPlaces() []string {
	return []string{
		"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
		"/opt/homebrew/opt/postgresql*/bin",                  // Homebrew, arm64
		"/usr/local/opt/postgresql*/bin",                     // Homebrew, amd64
		"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",     // Homebrew, Linux
		"/usr/pgsql-*/bin",                                   // the PostgreSQL project's RPMs
		"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
		"/usr/local/pgsql/bin",                               // from source
	}
}

// findTools returns the first folder that has all the tools. The folder of env, if
// given, is the only candidate then.
func findTools(env, path string, tools ...string) (string, error) {
	if env != "" {
		if hasTools(env, tools) {
			return env, nil
		}
		return "", fmt.Errorf("%w: $%s is %s, which doesn't hold %s", ErrNoPostgres, EnvBin, env, strings.Join(tools, " and "))
	}
	for _, dir := range filepath.SplitList(path) {
		if filepath.IsAbs(dir) && hasTools(dir, tools) {
			return dir, nil
		}
	}
	for _, glob := range installPlaces() {
		dirs, err := filepath.Glob(glob)
		if err != nil {
			return "", fmt.Errorf("flotest: glob %s: %w", glob, err)
		}
		slices.SortStableFunc(dirs, func(a, b string) int { return versionIn(b) - versionIn(a) })
		for _, dir := range dirs {
			if hasTools(dir, tools) {
				return dir, nil
			}
		}
	}
	return "", fmt.Errorf("%w: looked for %s in $%s, PATH, %s. Install them with: %s; or name their folder in $%s",
		ErrNoPostgres, strings.Join(tools, " and "), EnvBin, strings.Join(installPlaces(), ", "), installLine(runtime.GOOS), EnvBin)
}

func installLine(goos string) string {
	if goos == "darwin" {
		return "brew install postgresql@17"
	}
	return "apt-get install postgresql"
}

func hasTools(dir string, tools []string) bool {
	for _, t := range tools {
		if _, err := exec.LookPath(filepath.Join(dir, t)); err != nil {
			return false
		}
	}
	return true
}

var dumpVersion = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

var versionPattern = regexp.MustCompile(`(\d+)(?:\.(\d+))?`)

// versionIn reads the version out of an install folder: 15 → 1500, 9.6 → 906, none → 0.
func versionIn(dir string) int {
	all := versionPattern.FindAllStringSubmatch(dir, -1)
	if len(all) == 0 {
		return 0
	}
	m := all[len(all)-1]
	major, _ := strconv.Atoi(m[1]) // digits only; too many of them sort last
	minor, _ := strconv.Atoi(m[2])
	return major*100 + minor
}
