package flo_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// guardedNATS is a NATS server with the users of docs/operations.md, and one that may do everything.
type guardedNATS struct {
	url string
	mu  sync.Mutex
	bad []string // what was refused
}

// startGuardedNATS starts one, leaving out the lines of the configuration that hold one of the words.
func startGuardedNATS(t testing.TB, withoutLines ...string) *guardedNATS {
	t.Helper()
	dir := t.TempDir()
	var kept []string
	for _, line := range strings.Split(documented(t, "# nats-server.conf"), "\n") {
		left := false
		for _, w := range withoutLines {
			left = left || strings.Contains(line, w)
		}
		if !left {
			kept = append(kept, line)
		}
	}
	conf := fmt.Sprintf("listen: \"127.0.0.1:-1\"\njetstream { store_dir: %q }\n", dir) +
		strings.Replace(strings.Join(kept, "\n"), "users: [", "users: [\n { user: admin, password: secret }", 1)
	file := filepath.Join(dir, "nats-server.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the NATS server is not ready")
	}
	return &guardedNATS{url: strings.TrimPrefix(s.ClientURL(), "nats://")}
}

// as is the way to the server for a user; what the server refuses is kept.
func (g *guardedNATS) as(user string) flo.Option {
	return flo.WithNATSURL("nats://"+user+":secret@"+g.url, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.bad = append(g.bad, user+": "+err.Error())
	}))
}

func (g *guardedNATS) nothingRefused(t testing.TB) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.bad) > 0 {
		t.Errorf("NATS refused:\n%s", strings.Join(g.bad, "\n"))
	}
}

// A replicator and a worker live a whole life with the documented permissions: copy, stream, purge, a second
// start that drops an earlier attempt's copy, Drop.
func TestTheDocumentedNATSPermissionsAreEnough(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	g := startGuardedNATS(t)
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 5000) i`)
	p.link = g.as("flo_replicator")
	rep := p.replicator()
	one := launch(t, ctx, rep)
	eventually(t, ctx, "the copy to begin", func() bool { return rep.Status().Phase == flo.PhaseCopying })
	if err := one.stop(); err != nil { // cut short: the next start drops what was copied
		t.Fatal(err)
	}
	rep = p.replicator(flo.WithStreamMaxBytes(64 << 20))
	two := launch(t, ctx, rep)
	p.link = g.as("flo_worker")
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	count := func() string { return p.dst.QueryString(t, `SELECT count(*) FROM t`) }
	eventually(t, ctx, "the copy", func() bool { return count() == "5000" })
	p.src.Exec(t, `INSERT INTO t VALUES (10000, 'x')`)
	eventually(t, ctx, "the stream", func() bool { return count() == "5001" })
	nc, err := nats.Connect("nats://admin:secret@" + g.url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "the purge", func() bool {
		s, err := js.Stream(ctx, streamName)
		return err == nil && s.CachedInfo().State.FirstSeq > 1 && s.CachedInfo().State.Bytes < 1<<20
	})
	p.equal(ctx)
	for _, r := range []*run{w, two} {
		if err := r.stop(); err != nil {
			t.Error(err)
		}
	}
	if err := rep.RemoveWorker(ctx, "default"); err != nil {
		t.Error(err)
	}
	if err := rep.Drop(ctx); err != nil {
		t.Error(err)
	}
	g.nothingRefused(t)
}

// Made beforehand as documented, stream and bucket spare the replicator the right to make them.
func TestStreamAndBucketMadeBeforehandNeedNoRightToMakeThem(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	g := startGuardedNATS(t, "STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE")
	nc, err := nats.Connect("nats://admin:secret@" + g.url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	for _, block := range strings.Split(string(doc), "```json\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		block = strings.NewReplacer("7300000000000000000", p.src.QueryString(t, `SELECT system_identifier FROM pg_control_system()`),
			`"flo.database": "shop"`, fmt.Sprintf(`"flo.database": %q`, p.src.Name)).Replace(block)
		var c jetstream.StreamConfig
		if err := json.Unmarshal([]byte(block), &c); err != nil {
			t.Fatal(err)
		}
		if _, err := js.CreateStream(ctx, c); err != nil {
			t.Fatal(err)
		}
		made++
	}
	if made != 2 {
		t.Fatalf("%d configurations are documented, want 2", made)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.link = g.as("flo_replicator")
	rep := launch(t, ctx, p.replicator())
	p.link = g.as("flo_worker")
	w := launch(t, ctx, p.worker(flo.WithSink(p.sink())))
	eventually(t, ctx, "the copy", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "1" })
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	eventually(t, ctx, "the stream", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM t`) == "2" })
	rep.running()
	if err := w.stop(); err != nil {
		t.Error(err)
	}
	if err := rep.stop(); err != nil {
		t.Error(err)
	}
	g.nothingRefused(t)
}

func TestAMissingNATSPermissionIsNamedInTheLog(t *testing.T) {
	long(t)
	ctx := testContext(t)
	g := startGuardedNATS(t)
	log := new(journal)
	w, err := flo.NewWorker(flo.WithGroup("other"), flo.WithNATSURL("nats://flo_worker:secret@"+g.url), flo.WithLogger(log.logger()), flo.WithSink(new(flotest.Recorder)))
	if err != nil {
		t.Fatal(err)
	}
	r := launch(t, ctx, w)
	eventually(t, ctx, "the log names the subject", func() bool { return strings.Contains(log.String(), "STREAM.INFO.flo_other") })
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("the log holds the password: %s", log.String())
	}
}
