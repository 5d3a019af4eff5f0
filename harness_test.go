package flo_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/sink"
)

// runner is what has a Run: a Flo, a Replicator, a Worker.
type runner interface {
	Run(ctx context.Context) error
}

// run is one call of Run in the background.
type run struct {
	t      testing.TB
	of     runner
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// long leaves a test out of -short, which is how the race detector's run is kept short: it takes its time, and
// what it shows is no matter of races.
func long(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes long: left out by -short")
	}
}

func launch(t testing.TB, ctx context.Context, r runner) *run {
	ctx, cancel := context.WithCancel(ctx)
	x := &run{t: t, of: r, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		x.err = r.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-x.done })
	return x
}

// ends waits until Run returns by itself.
func (r *run) ends(ctx context.Context) error {
	r.t.Helper()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		r.t.Fatal("Run goes on, it should have ended by itself")
		return nil
	}
}

// stop ends Run, and gives what it returned.
func (r *run) stop() error {
	r.cancel()
	<-r.done
	return r.err
}

// running fails the test if Run has ended.
func (r *run) running() {
	r.t.Helper()
	select {
	case <-r.done:
		r.t.Fatalf("Run ended: %v", r.err)
	default:
	}
}

// launch makes a Flo of the pipeline's options and runs it; unlike start it leaves errors to the test.
func (p *pipeline) launch(ctx context.Context, opts ...flo.Option) *run {
	p.t.Helper()
	f, err := flo.New(p.options(opts...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.f = f
	return launch(p.t, ctx, f)
}

func (p *pipeline) replicator(opts ...flo.Option) *flo.Replicator {
	p.t.Helper()
	r, err := flo.NewReplicator(p.options(opts...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

func (p *pipeline) worker(opts ...flo.Option) *flo.Worker {
	p.t.Helper()
	w, err := flo.NewWorker(p.options(opts...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	return w
}

// wantStop checks an error's class and that its text names the cause and the remedy.
func wantStop(t testing.TB, err, class error, words ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got %v, want %v", err, class)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the text lacks %q: %v", w, err)
		}
	}
}

// eventually polls until ok. It stands for a wait on something that tells nobody when it changes.
func eventually(t testing.TB, ctx context.Context, what string, ok func() bool) {
	t.Helper()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// within bounds a step of a test.
func within(t testing.TB, ctx context.Context, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(ctx, d)
	t.Cleanup(cancel)
	return ctx
}

// jetStream connects to the pipeline's server, beside flo.
func (p *pipeline) jetStream() jetstream.JetStream {
	p.t.Helper()
	nc, err := p.nats.Conn(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		p.t.Fatal(err)
	}
	return js
}

const streamName = "flo_shop"

func (p *pipeline) stream(ctx context.Context) jetstream.Stream {
	p.t.Helper()
	s, err := p.jetStream().Stream(ctx, streamName)
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// stored is a message of the stream.
type stored struct {
	seq     uint64
	subject string
	head    wire.Header
	body    []byte
}

func (m *stored) changes() bool { return strings.HasSuffix(m.subject, ".changes") }

// has reports whether a message holds a record; false for parts.
func (m *stored) has(t wire.RecordType) bool {
	if m.head.Parts > 1 {
		return false
	}
	found := false
	wire.Walk(m.body, func(r wire.Record) error { found = found || r.Type == t; return nil })
	return found
}

// messages reads the whole stream.
func (p *pipeline) messages(ctx context.Context) []stored {
	p.t.Helper()
	s := p.stream(ctx)
	info, err := s.Info(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	var all []stored
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
		m, err := s.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			p.t.Fatal(err)
		}
		h, body, err := wire.Parse(m.Data)
		if err != nil {
			p.t.Fatal(err)
		}
		all = append(all, stored{seq, m.Subject, h, body})
	}
	return all
}

// now is the source's position.
func (p *pipeline) now() flo.LSN {
	p.t.Helper()
	lsn, err := decode.ParseLSN(p.src.QueryString(p.t, "SELECT pg_current_wal_flush_lsn()"))
	if err != nil {
		p.t.Fatal(err)
	}
	return lsn
}

// published waits until everything that is committed by now is in the stream.
func (p *pipeline) published(ctx context.Context, r *flo.Replicator) {
	p.t.Helper()
	lsn := p.now()
	eventually(p.t, ctx, "the stream holds all", func() bool { return r.Status().Published >= lsn })
}

// equal compares all tables.
func (p *pipeline) equal(ctx context.Context, tables ...string) {
	p.t.Helper()
	flotest.Equal(p.t, ctx, p.src.URL, p.dst.URL, tables...)
}

// store is a NATS server whose address and folder stay while it is stopped, rolled back and started.
type store struct {
	t      testing.TB
	dir    string
	addr   string
	opts   []embednats.Option
	server *embednats.Server
}

// withStore gives the pipeline such a server.
func (p *pipeline) withStore(opts ...embednats.Option) *store {
	p.t.Helper()
	s := &store{t: p.t, dir: filepath.Join(p.t.TempDir(), "nats"), addr: "127.0.0.1:0", opts: opts}
	s.start()
	s.addr = strings.TrimPrefix(s.server.URL(), "nats://")
	if _, _, err := net.SplitHostPort(s.addr); err != nil {
		p.t.Fatal(err)
	}
	p.nats = s.server
	p.link = flo.WithNATSURL(s.server.URL(), nats.ReconnectWait(50*time.Millisecond))
	p.t.Cleanup(func() { s.server.Close() })
	return s
}

func (s *store) start() {
	s.t.Helper()
	server, err := embednats.Start(context.Background(), append([]embednats.Option{embednats.WithDir(s.dir), embednats.WithListen(s.addr)}, s.opts...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = server
}

func (s *store) close() {
	s.t.Helper()
	if err := s.server.Close(); err != nil {
		s.t.Fatal(err)
	}
}

// save stops the server, copies its folder, and starts it again.
func (s *store) save() (backup string) {
	s.t.Helper()
	s.close()
	backup = filepath.Join(s.t.TempDir(), "backup")
	copyTree(s.t, s.dir, backup)
	s.start()
	return backup
}

// restore puts a backup in the place of a stopped server's folder.
func (s *store) restore(backup string) {
	s.t.Helper()
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Fatal(err)
	}
	copyTree(s.t, backup, s.dir)
}

// copyTree copies a folder with modes and, as root, owners.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			err = os.MkdirAll(dst, 0o700)
		case info.Mode().IsRegular():
			var b []byte
			if b, err = os.ReadFile(path); err == nil {
				err = os.WriteFile(dst, b, info.Mode().Perm())
			}
		default:
			return nil // sockets and the like
		}
		if err != nil {
			return err
		}
		return keepOwner(info, dst)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// use points the pipeline at other databases.
func (p *pipeline) use(src *flotest.DB) { p.src = src }

var _ sink.Sink = (*flotest.Recorder)(nil)

// madeStream waits until the replicator has made the stream.
func (p *pipeline) madeStream(ctx context.Context) jetstream.Stream {
	p.t.Helper()
	js := p.jetStream()
	var s jetstream.Stream
	eventually(p.t, ctx, "the stream is made", func() (ok bool) {
		asked, cancel := context.WithTimeout(ctx, 2*time.Second) // an answer may be lost while streams are made
		defer cancel()
		var err error
		s, err = js.Stream(asked, streamName)
		return err == nil
	})
	return s
}

// withSubjects asks for the subjects of the pipeline's stream that match.
func withSubjects(p *pipeline, filter string) jetstream.StreamInfoOpt {
	s := p.stream(context.Background())
	prefix := strings.TrimSuffix(s.CachedInfo().Config.Subjects[0], ">")
	return jetstream.WithSubjectFilter(prefix + filter)
}
