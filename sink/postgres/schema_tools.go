package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tools are a pair of pg_dump and pg_restore.
type tools struct {
	dir     string
	version int // major
}

// toolPlaces are globs of folders where packages put them.
func toolPlaces() []string {
	return []string{
		"/usr/lib/postgresql/*/bin",                          // Debian, Ubuntu
		"/opt/homebrew/opt/postgresql*/bin",                  // Homebrew, arm64
		"/opt/homebrew/opt/libpq/bin",                        //
		"/usr/local/opt/postgresql*/bin",                     // Homebrew, amd64
		"/usr/local/opt/libpq/bin",                           //
		"/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",     // Homebrew, Linux
		"/usr/pgsql-*/bin",                                   // the PostgreSQL project's RPMs
		"/Applications/Postgres.app/Contents/Versions/*/bin", // Postgres.app
		"/usr/local/pgsql/bin",                               // from source
	}
}

// findTools gives the newest pair, if it is not older than the source: pg_dump refuses servers newer than
// itself. https://www.postgresql.org/docs/current/app-pgdump.html#PG-DUMP-NOTES
func findTools(ctx context.Context, dir string, source int) (tools, error) {
	var dirs []string
	if dir != "" {
		dirs = []string{dir}
	} else {
		for _, glob := range toolPlaces() {
			found, err := filepath.Glob(glob)
			if err != nil {
				return tools{}, fmt.Errorf("sink/postgres: %w", err)
			}
			dirs = append(dirs, found...)
		}
		dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)
	}
	var best tools
	var seen []string
	for _, d := range dirs {
		if !filepath.IsAbs(d) || slices.Contains(seen, d) {
			continue
		}
		seen = append(seen, d)
		if v := toolVersion(ctx, d); v > best.version {
			best = tools{dir: d, version: v}
		}
	}
	if err := ctx.Err(); err != nil {
		return tools{}, err
	}
	major := source / 10000
	switch {
	case best.version == 0 && dir != "":
		return tools{}, fmt.Errorf("sink/postgres: %w: %s holds no pg_dump with pg_restore; the source is PostgreSQL %d: %s", ErrSchemaTools, dir, major, toolAdvice(major))
	case best.version == 0:
		return tools{}, fmt.Errorf("sink/postgres: %w: neither PATH nor the usual places hold pg_dump with pg_restore; the source is PostgreSQL %d: %s", ErrSchemaTools, major, toolAdvice(major))
	case best.version < major:
		return tools{}, fmt.Errorf("sink/postgres: %w: the newest pg_dump found is version %d, in %s; the source is PostgreSQL %d: %s", ErrSchemaTools, best.version, best.dir, major, toolAdvice(major))
	}
	return best, nil
}

func toolAdvice(major int) string {
	install := fmt.Sprintf("apt-get install postgresql-client-%d", major)
	if runtime.GOOS == "darwin" {
		install = "brew install libpq"
	}
	return fmt.Sprintf("install the client programs of PostgreSQL %d or later (%s), or name their folder with SchemaTools", major, install)
}

// toolTimeout bounds the question for a version.
const toolTimeout = 10 * time.Second

var toolVersionPattern = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

// toolVersion gives the major version of the pair in dir; 0 if it isn't one.
func toolVersion(ctx context.Context, dir string) int {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	version := 0
	for _, name := range []string{"pg_dump", "pg_restore"} {
		path := filepath.Join(dir, name)
		if _, err := osexec.LookPath(path); err != nil {
			return 0
		}
		cmd := osexec.CommandContext(ctx, path, "--version")
		cmd.Env = toolEnvironment()
		out, err := cmd.Output()
		if err != nil {
			return 0
		}
		m := toolVersionPattern.FindSubmatch(out)
		if m == nil {
			return 0
		}
		v, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return 0
		}
		if version == 0 || v < version {
			version = v
		}
	}
	return version
}

// toolEnvironment is this process's, without what libpq would take from it.
func toolEnvironment() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C")
}

// toolGrace is how long a program that was told to end may take.
const toolGrace = 5 * time.Second

// maxToolError bounds what is quoted of a program's complaints.
const maxToolError = 4096

// run runs one of the programs and gives its output.
func (t tools) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := osexec.CommandContext(ctx, filepath.Join(t.dir, name), args...)
	cmd.Env = toolEnvironment()
	cmd.WaitDelay = toolGrace
	var stdout bytes.Buffer
	stderr := &tail{limit: maxToolError}
	cmd.Stdout, cmd.Stderr = &stdout, stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &toolError{name: name, err: err, said: strings.TrimSpace(string(stderr.data))}
	}
	return stdout.Bytes(), nil
}

// toolError is a program that failed.
type toolError struct {
	name, said string
	err        error
}

func (e *toolError) Error() string {
	return fmt.Sprintf("sink/postgres: %s: %v: %s", e.name, e.err, e.said)
}
func (e *toolError) Unwrap() error { return e.err }

// tail keeps the last bytes that are written to it.
type tail struct {
	data  []byte
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if over := len(t.data) - t.limit; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}

// lockWait bounds how long pg_dump waits for a table that somebody is altering.
const lockWait = time.Minute

// dump writes the source's schema, all of it but the tables of leave, into an archive in dir, and reads what it holds.
//
// The whole schema, for what a table needs stands elsewhere: types, functions, sequences, extensions. What
// is needed of it is chosen afterwards.
func (t tools) dump(ctx context.Context, sync *schemaSync, dir string, leave []string) (a *archive, err error) {
	b, err := openBridge(ctx, sync.source, sync.password, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	file := filepath.Join(dir, "schema")
	args := []string{"--format=custom", "--schema-only", "--no-owner", "--no-privileges", "--no-publications",
		"--no-subscriptions", "--no-security-labels", "--no-tablespaces", "--no-password", "--encoding=UTF8",
		"--lock-wait-timeout=" + strconv.FormatInt(lockWait.Milliseconds(), 10),
		"--host=" + dir, "--port=" + bridgePort, "--username=flo", "--dbname=flo", "--file=" + file}
	for _, table := range leave {
		args = append(args, "--exclude-table="+table)
	}
	if _, err := t.run(ctx, "pg_dump", args...); err != nil {
		return nil, err
	}
	a = &archive{tools: t, file: file}
	return a, a.list(ctx)
}

// restoreFlags are pg_restore's for both listing and writing: a list must mean the same as the script.
func (t tools) restoreFlags() []string {
	flags := []string{"--verbose", "--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions", "--no-security-labels", "--no-tablespaces"}
	if t.version >= 15 {
		flags = append(flags, "--no-table-access-method")
	}
	return flags
}

// privateDir makes a folder that nobody else can enter.
func privateDir() (string, error) {
	dir, err := os.MkdirTemp("", "flo") // short: a socket's path has about 100 bytes
	if err != nil {
		return "", fmt.Errorf("sink/postgres: a folder for pg_dump: %w", err)
	}
	return dir, nil
}

// patternOf quotes a table's name for pg_dump's options.
// https://www.postgresql.org/docs/current/app-psql.html#APP-PSQL-PATTERNS
func patternOf(schema, name string) string {
	quote := func(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
	return quote(schema) + "." + quote(name)
}
