package flo_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/embednats"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/postgres"
)

// with gives options of both halves; extra may replace them.
func with(extra ...flo.Option) []flo.Option {
	nothing := sink.Func(func(context.Context, *sink.Batch) error { return nil })
	return append([]flo.Option{flo.WithGroup("shop"), flo.WithSource("host=h"), flo.WithSink(nothing)}, extra...)
}

// wantInvalid checks that err is about an option, says what, and holds no password.
func wantInvalid(t testing.TB, of string, err error, says string) {
	t.Helper()
	if !errors.Is(err, flo.ErrInvalidOption) {
		t.Errorf("%s: got %v, want ErrInvalidOption", of, err)
		return
	}
	if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, "s3") || strings.Contains(text, "cret") {
		t.Errorf("%s: the password is in %s", of, text)
	}
	if !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v does not say %q", of, err, says)
	}
	var u *url.Error
	var p *pgconn.ParseConfigError
	if errors.As(err, &u) || errors.As(err, &p) {
		t.Errorf("%s: the error carries the whole string", of)
	}
}

func TestNATSURLsAreCheckedAndKept(t *testing.T) {
	for u, says := range map[string]string{
		"nats://u:s3cret@127.0.0.1:x":            "the port",
		"nats://u:%zzs3cret@127.0.0.1":           "'%'",
		"nats://u:s3cret@local host:4222":        "host name",
		"nats://u:s3 cret@h":                     "percent-encoded",
		"nats://u:s3/cret@h":                     "percent-encoded",
		"nats://u:s3cret":                        "the port",
		"nats://u:12/s3cret@h":                   "behind the host",
		"nats://u:12#s3cret@h":                   "behind the host",
		"nats://u:s3,cret@h":                     "URL 1",
		"nats://h, nats://u:s3cret@127.0.0.1:x,": "URL 2",
		"u:s3cret@h:x":                           "the port",
		"nats://u:s3cret@":                       "no host",
		"nats://u:s3cret@[::1":                   "percent-encoded",
		"nats://u:s3cret@h\x7f":                  "percent-encoded",
		"":                                       "no URL",
		" , ":                                    "no URL",
	} {
		_, err := flo.New(with(flo.WithNATSURL(u))...)
		wantInvalid(t, u, err, says)
		if strings.Count(fmt.Sprint(err), "invalid option") != 1 {
			t.Errorf("%q is reported more than once: %v", u, err)
		}
	}
	for _, u := range []string{"h", "h:4222", "nats://u:s3%2Fcret@h:4222", "nats://a, tls://u:p@b:1 ,c", "nats://[::1]:4222", "wss://h/path", "nats://token@h"} {
		if _, err := flo.New(with(flo.WithNATSURL(u))...); err != nil {
			t.Errorf("%q: %v", u, err)
		}
	}
}

func TestSourceStringsAreKept(t *testing.T) {
	link := flo.WithNATSURL("nats://h")
	for _, s := range []string{
		"host=h password = s3cret port=99999999", "host=h password='it s3cret' port=x", "host=h password='s3cret",
		"postgres://u:s3cret@h:x/d", "postgres://u:%zzs3cret@h/d", "postgres://u:s3cret@h/d?sslmode=s3cret", "service=s3cret servicefile=/no/s3cret",
	} {
		for half, f := range map[string]func() error{
			"New":           func() error { _, err := flo.New(with(link, flo.WithSource(s))...); return err },
			"NewReplicator": func() error { _, err := flo.NewReplicator(with(link, flo.WithSource(s))...); return err },
		} {
			wantInvalid(t, half+" "+s, f(), "WithSource: the connection string cannot be parsed")
		}
	}
}

func TestNilsAreNamed(t *testing.T) {
	link := flo.WithNATSURL("nats://h")
	for says, opts := range map[string][]flo.Option{
		"WithNATSServer: the server is nil":          with(flo.WithNATSServer((*embednats.Server)(nil))),
		"WithNATSServer: the server":                 with(flo.WithNATSServer(nil)),
		"WithNATS: the connection is nil":            with(flo.WithNATS(nil)),
		"WithJetStream: the context is nil":          with(flo.WithJetStream((jetstream.JetStream)(nil))),
		"WithSourceConfig: the configuration is nil": with(link, flo.WithSourceConfig(nil)),
		`worker "pg": the sink is nil`:               with(link, flo.WithWorker("pg", (*postgres.Sink)(nil))),
		`worker "f": the sink is nil`:                with(link, flo.WithWorker("f", sink.Func(nil))),
		`worker "n": the sink is nil`:                with(link, flo.WithWorker("n", nil)),
		`Each: the function is nil`:                  with(link, flo.WithRules(rules.Each(nil))),
	} {
		_, err := flo.New(opts...)
		wantInvalid(t, says, err, says)
		if strings.Count(fmt.Sprint(err), "invalid option") != 1 {
			t.Errorf("%s: more than that is reported: %v", says, err)
		}
	}
	// Options that are nil are none.
	if _, err := flo.New(with(link, nil, flo.CommonOption(nil), flo.ReplicatorOption(nil), flo.WorkerOption(nil),
		flo.WithWorker("w", sink.Func(func(context.Context, *sink.Batch) error { return nil }), nil))...); err != nil {
		t.Error(err)
	}
}

func TestReplayWindowsOutOfRangeAreRefused(t *testing.T) {
	link := flo.WithNATSURL("nats://h")
	for _, d := range []time.Duration{-1, -time.Second, 25 * time.Hour} {
		_, err := flo.New(with(link, flo.WithReplayWindow(d))...)
		wantInvalid(t, d.String(), err, "WithReplayWindow("+d.String()+")")
	}
	for _, d := range []time.Duration{0, time.Second, 24 * time.Hour} {
		if _, err := flo.New(with(link, flo.WithReplayWindow(d))...); err != nil {
			t.Error(err)
		}
	}
}

// One list of options serves every process: what is wrong with the other half is that half's matter.
func TestTheOtherHalfsOptionsAreIgnored(t *testing.T) {
	link := flo.WithNATSURL("nats://h")
	for _, bad := range []flo.Option{
		flo.WithSource("host=h port=x"), flo.WithSourceConfig(nil), flo.WithReplayWindow(-1), flo.WithMode("x"), flo.WithSlot("-"),
		flo.WithTables(`"`), flo.WithCopyConnections(0), flo.WithStreamReplicas(2), flo.WithStreamMaxBytes(1), flo.WithIdleInterval(0),
	} {
		if _, err := flo.NewWorker(with(link, bad)...); err != nil {
			t.Errorf("NewWorker: %v", err)
		}
		_, err := flo.NewReplicator(with(link, bad)...)
		wantInvalid(t, "NewReplicator", err, "")
	}
	for _, bad := range []flo.Option{flo.WithBatchSize(0), flo.WithBatchBytes(0), flo.WithFlushInterval(-1), flo.WithRules(nil), flo.WithSink(nil)} {
		if _, err := flo.NewReplicator(with(link, bad)...); err != nil {
			t.Errorf("NewReplicator: %v", err)
		}
		_, err := flo.NewWorker(with(link, bad)...)
		wantInvalid(t, "NewWorker", err, "")
	}
}

// A table without columns has rows all the same: copied and streamed, they arrive.
func TestTableWithoutColumns(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t, "CREATE TABLE bare ()")
	p.src.Exec(t, "INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES")
	p.start(ctx, flo.WithSink(p.sink()))
	p.catchUp(ctx)
	if n := p.dst.QueryString(t, "SELECT count(*) FROM bare"); n != "2" {
		t.Fatalf("%s rows were copied, want 2", n)
	}
	p.src.Exec(t, "INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES")
	p.catchUp(ctx)
	if n := p.dst.QueryString(t, "SELECT count(*) FROM bare"); n != "5" {
		t.Fatalf("%s rows after streaming, want 5", n)
	}
}

func TestGuardAndStopOptionsAreChecked(t *testing.T) {
	for of, opt := range map[string]flo.Option{
		"WithWALLimit(1)":         flo.WithWALLimit(1, flo.WarnOnWAL),
		"WithWALLimit(-1)":        flo.WithWALLimit(-1, flo.StopOnWAL),
		`WithWALLimit("sideways"`: flo.WithWALLimit(1<<30, "sideways"),
		`WithStartAt("later")`:    flo.WithStartAt("later"),
		"WithStopTimeout(0s)":     flo.WithStopTimeout(0),
		"WithStopTimeout(1h0m0s)": flo.WithStopTimeout(time.Hour),
	} {
		_, err := flo.New(with(opt)...)
		wantInvalid(t, of, err, strings.SplitN(of, "(", 2)[0])
	}
}
