package flo_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/faults/ledger"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink/postgres"
)

// goFiles parses the project's files.
func goFiles(t *testing.T, each func(path string, f *ast.File)) {
	t.Helper()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err == nil {
			each(filepath.ToSlash(path), f)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestEveryGuaranteeNamesATestThatExists(t *testing.T) {
	text, err := os.ReadFile("docs/guarantees.md")
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`").FindAllStringSubmatch(string(text), -1) {
		named[m[1]] = true
	}
	if len(named) < 100 {
		t.Fatalf("only %d tests are named: is this the page?", len(named))
	}
	goFiles(t, func(path string, f *ast.File) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil {
				continue
			}
			if strings.HasPrefix(fn.Name.Name, "Fuzz") && !strings.Contains(string(text), "`"+fn.Name.Name+"`") {
				t.Errorf("%s: %s is not named in docs/guarantees.md", path, fn.Name.Name)
			}
			delete(named, fn.Name.Name)
		}
	})
	for name := range named {
		t.Errorf("docs/guarantees.md names %s, which does not exist", name)
	}
}

// grouped writes a number with a comma between thousands.
func grouped(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return fmt.Sprintf("%s,%03d", grouped(n/1000), n%1000)
}

func TestTheCampaignsFiguresAreTheLedgers(t *testing.T) {
	all, err := ledger.Read("internal/faults/ledger.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	sum := ledger.Sum(all)
	for file, figures := range map[string][]string{
		"README.md": {grouped(sum.Runs) + " seeded runs, " + grouped(sum.Kills+sum.Cuts) + " kills and cuts", "as of commit " + all[len(all)-1].Commit},
		"docs/guarantees.md": {
			grouped(sum.Runs) + " runs, seeds 1 to " + grouped(int(ledger.Next(all, 1))-1), "with " + grouped(sum.Kills) + " kills, " + grouped(sum.Cuts) + " cuts and " + grouped(sum.Restarts) + " restarts",
			fmt.Sprintf("%.1f million rows", float64(sum.Rows)/1e6), grouped(sum.Failed) + " runs ended without a result",
			"streamed transactions, " + grouped(int(sum.Streamed)) + " of them, and " + grouped(int(sum.Schema)) + " schema changes", "the last one " + all[len(all)-1].Commit,
		},
	} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		page := strings.Join(strings.Fields(string(text)), " ")
		for _, f := range figures {
			if !strings.Contains(page, f) {
				t.Errorf("%s does not say %q, as the ledger does", file, f)
			}
		}
	}
}

// forTests are packages that aren't part of a host program.
var forTests = regexp.MustCompile(`^(examples|flotest|internal/bench|internal/faults|sink/sinktest|state/statetest)/`)

// What a library has no business to do, by what it would have to call: print, exit, trap signals, serve HTTP.
func TestTheLibraryNeitherPrintsNorExitsNorTrapsSignals(t *testing.T) {
	goFiles(t, func(path string, f *ast.File) {
		if strings.HasSuffix(path, "_test.go") || forTests.MatchString(path) {
			return
		}
		for _, i := range f.Imports {
			if p := strings.Trim(i.Path.Value, `"`); p == "log" || p == "os/signal" || p == "flag" || p == "expvar" || p == "net/http/pprof" ||
				p == "net/http" && !strings.HasPrefix(path, "sink/webhook/") { // which calls others
				t.Errorf("%s imports %s", path, p)
			}
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init", path)
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "panic" && !strings.HasPrefix(fn.Name.Name, "Must") || id.Name == "print" || id.Name == "println") {
						t.Errorf("%s: %s calls %s", path, fn.Name.Name, id.Name)
					}
				case *ast.SelectorExpr:
					of, ok := n.X.(*ast.Ident)
					if !ok {
						return true
					}
					switch what := of.Name + "." + n.Sel.Name; what {
					case "os.Stdout", "os.Stderr":
						if !strings.HasPrefix(path, "sink/stdout/") {
							t.Errorf("%s: %s uses %s", path, fn.Name.Name, what)
						}
					case "http.Server", "http.ListenAndServe", "http.ListenAndServeTLS", "http.Serve", "http.ServeTLS", "http.Handle", "http.HandleFunc", "http.DefaultServeMux":
						t.Errorf("%s: %s uses %s: it serves", path, fn.Name.Name, what)
					case "net.Listen", "net.ListenConfig", "net.ListenTCP", "net.ListenUnix", "net.ListenPacket", "net.ListenUDP", "tls.Listen", "tls.NewListener":
						if path != "sink/postgres/schema_bridge.go" { // for pg_dump alone, in a folder of its own
							t.Errorf("%s: %s uses %s: it listens", path, fn.Name.Name, what)
						}
					case "os.Exit", "fmt.Print", "fmt.Printf", "fmt.Println", "runtime.GOMAXPROCS", "slog.SetDefault":
						t.Errorf("%s: %s calls %s", path, fn.Name.Name, what)
					}
				}
				return true
			})
		}
	})
}

// Two groups in one process, on one source and one NATS server: other tables, other rules for the same
// table, other destinations, and the end of one is nothing to the other.
func TestTwoGroupsInOneProcessDoNotMeet(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	schema := `CREATE TABLE shared (id int PRIMARY KEY, secret text); CREATE TABLE one (id int PRIMARY KEY); CREATE TABLE two (id int PRIMARY KEY)`
	src, server := flotest.Postgres(t), flotest.NATS(t)
	src.Exec(t, schema+`; INSERT INTO shared VALUES (1, 'abcdef'); INSERT INTO one VALUES (1); INSERT INTO two VALUES (1)`)
	group := func(name string, opts ...flo.Option) (*flo.Flo, *run, *flotest.DB) {
		dst := flotest.Postgres(t)
		dst.Exec(t, schema)
		s, err := postgres.New(dst.URL)
		if err != nil {
			t.Fatal(err)
		}
		f, err := flo.New(append([]flo.Option{flo.WithGroup(name), flo.WithSlot(name + "_" + src.Name), flo.WithSource(src.URL), flo.WithNATSServer(server),
			flo.WithLogger(logger(t)), flo.WithSink(s)}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		return f, launch(t, ctx, f), dst
	}
	a, runA, dstA := group("a", flo.WithTables("shared", "one"), flo.WithRules(rules.Table("shared", rules.Mask("secret"))))
	b, runB, dstB := group("b", flo.WithTables("shared", "two"))
	p := &pipeline{t: t, src: src}
	for i := range 3 {
		src.Exec(t, `INSERT INTO shared SELECT max(id) + 1, 'ghijkl' FROM shared; INSERT INTO one SELECT max(id) + 1 FROM one; INSERT INTO two SELECT max(id) + 1 FROM two`)
		for _, f := range []*flo.Flo{a, b} {
			if i == 2 && f == a {
				continue
			}
			if err := f.WaitFor(ctx, p.now()); err != nil {
				t.Fatal(err)
			}
		}
		if i == 1 {
			if err := runA.stop(); err != nil {
				t.Fatal(err)
			}
			if err := a.Drop(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	runB.running()
	const held = `SELECT (SELECT count(*) FROM shared) || ' ' || (SELECT count(*) FROM shared WHERE secret IN ('abcdef', 'ghijkl')) || ' ' || (SELECT count(*) FROM one) || ' ' || (SELECT count(*) FROM two)`
	if got := dstA.QueryString(t, held); got != "3 0 3 0" {
		t.Errorf("the first group's destination has %s", got)
	}
	if got := dstB.QueryString(t, held); got != "4 4 0 4" {
		t.Errorf("the second group's destination has %s", got)
	}
}
