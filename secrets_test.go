package flo_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// journal keeps a log.
type journal struct {
	mu  sync.Mutex
	buf strings.Builder
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.String()
}

func (j *journal) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// allRecords gives the raw messages of the group's stream and bucket, subjects and headers included.
func allRecords(t testing.TB, ctx context.Context, natsURL string) string {
	t.Helper()
	nc, err := nats.Connect(natsURL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, name := range []string{streamName, "KV_" + streamName} {
		s, err := js.Stream(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		info := s.CachedInfo()
		fmt.Fprintf(&b, "%+v\n", info.Config)
		for seq := info.State.FirstSeq; seq <= info.State.LastSeq; seq++ {
			m, err := s.GetMsg(ctx, seq)
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "%s %v %s\n", m.Subject, m.Header, m.Data)
		}
	}
	return b.String()
}

// Everything that can fail by a password, or beside one, fails here; then all that flo has said and stored is
// searched for the passwords.
func TestNoSecretIsInAnyLogErrorStatusOrRecord(t *testing.T) {
	ctx := testContext(t)
	const (
		srcSecret, dstSecret, natsSecret = "s3cret-of-source", "s3cret-of-destination", "secret" // as documented
		wrong                            = "s3cret-that-is-wrong"
	)
	p := newPipeline(t, smallTable)
	g := startGuardedNATS(t)
	source, fill := role(t, p.src, "reader", "REPLICATION", `GRANT SELECT ON t TO $role`, `ALTER ROLE $role PASSWORD '`+srcSecret+`'`,
		`CREATE PUBLICATION shop_pub FOR TABLE t`)
	target, dstFill := role(t, p.dst, "writer", "", `ALTER ROLE $role PASSWORD '`+dstSecret+`'`, `GRANT CREATE ON DATABASE $db TO $role; GRANT ALL ON t TO $role`)
	as := func(u, password string) string {
		x, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		x.User = url.UserPassword(x.User.Username(), password)
		return x.String()
	}
	log, said := new(journal), new(strings.Builder)
	attempt := func(src, dst, natsURL string, until func(f *flo.Flo) bool, opts ...flo.Option) error {
		t.Helper()
		s, err := postgres.New(dst, postgres.WithLogger(log.logger()))
		if err != nil {
			t.Fatal(err)
		}
		f, err := flo.New(append([]flo.Option{flo.WithGroup("shop"), flo.WithSource(src), flo.WithPublication("shop_pub"), flo.WithNATSURL(natsURL),
			flo.WithIdleInterval(200 * time.Millisecond), flo.WithLogger(log.logger()), flo.WithSink(sink.Sink(s))}, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		r := launch(t, ctx, f)
		eventually(t, within(t, ctx, 20*time.Second), "the failure", func() bool {
			fmt.Fprintf(said, "%+v\n", f.Status())
			select {
			case <-r.done:
				return true
			default:
				return until != nil && until(f)
			}
		})
		err = r.stop()
		fmt.Fprintf(said, "%v\n%+v\n%#v\n%+v\n", err, err, err, f.Status())
		return err
	}
	admin := "nats://admin:" + natsSecret + "@" + g.url
	good := func(f *flo.Flo) bool { return f.Status().Workers[0].Applied > 0 }
	retried := func(f *flo.Flo) bool { return f.Status().Replicator.LastError != "" }
	wantStop(t, attempt(as(source, wrong), as(target, dstSecret), admin, nil), flo.ErrCredentials)
	wantStop(t, attempt(as(source, srcSecret), as(target, wrong), admin, nil), postgres.ErrCredentials)
	attempt(as(source, srcSecret), as(target, dstSecret), "nats://admin:"+wrong+"@"+g.url, retried)
	attempt(as(source, srcSecret), as(target, dstSecret), "nats://admin:"+wrong+"@127.0.0.1:1", retried)
	attempt(strings.Replace(as(source, srcSecret), "127.0.0.1", "no-such-host.invalid", 1), as(target, dstSecret), admin, retried)
	attempt(as(source, srcSecret), as(target, dstSecret), admin, retried, flo.WithPassword(func(context.Context) (string, error) { return wrong, nil }))
	attempt(as(source, srcSecret), as(target, dstSecret), admin, retried, flo.WithPassword(func(context.Context) (string, error) { return "", context.DeadlineExceeded }))
	attempt(as(source, srcSecret), as(target, dstSecret), admin, good)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	attempt(as(source, srcSecret), as(target, dstSecret), admin, func(f *flo.Flo) bool { // sessions that end under it
		if !good(f) {
			return false
		}
		p.src.Exec(t, fill(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'reader_`+p.src.Name+`'`))
		p.dst.Exec(t, dstFill(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'writer_`+p.dst.Name+`'`))
		return retried(f)
	})
	for of, text := range map[string]string{"log": log.String(), "errors and statuses": said.String(), "stream and bucket": allRecords(t, ctx, admin)} {
		if len(text) < 500 {
			t.Errorf("%s: only %d bytes: the test has seen nothing", of, len(text))
		}
		for _, secret := range []string{srcSecret, dstSecret, wrong, ":" + natsSecret + "@"} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s: the secret is in %q", of, text[max(0, i-200):min(len(text), i+100)])
			}
		}
	}
	if !strings.Contains(log.String(), "28P01") && !strings.Contains(said.String(), "28P01") && !strings.Contains(said.String(), "password authentication failed") {
		t.Errorf("no password was refused")
	}
}
