//go:build unix

package flo_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

// secure is a server that takes flo's roles by TLS and SCRAM only, and the file of the authority that signed its
// certificate. The superuser gets in as before.
func secure(t testing.TB) (server *flotest.Server, authority string) {
	t.Helper()
	server = flotest.NewServer(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	like, err := os.Stat(filepath.Join(server.DataDir(), "PG_VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	put := func(path string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := keepOwner(like, path); err != nil {
			t.Fatal(err)
		}
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	put(filepath.Join(server.DataDir(), "server.crt"), certificate)
	put(filepath.Join(server.DataDir(), "server.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	hba := filepath.Join(server.DataDir(), "pg_hba.conf")
	old, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	put(hba, append([]byte("hostssl all +secured all scram-sha-256\nhost all +secured all reject\nlocal all +secured reject\n"), old...))
	authority = filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(authority, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := server.SetSetting("ssl", "on"); err != nil {
		t.Fatal(err)
	}
	if err := server.SetSetting("password_encryption", "scram-sha-256"); err != nil {
		t.Fatal(err)
	}
	if err := server.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	return server, authority
}

// secured makes a role that the server takes by TLS and SCRAM only; the URL verifies the server.
func secured(t testing.TB, db *flotest.DB, name, password, authority, attributes string) (urlOf func(password, mode string) string) {
	t.Helper()
	db.Exec(t, fmt.Sprintf(`CREATE ROLE secured; CREATE ROLE %[1]q LOGIN %[3]s PASSWORD '%[2]s'; GRANT secured TO %[1]q; GRANT pg_read_all_data, pg_write_all_data TO %[1]q;
		ALTER DATABASE %[4]q OWNER TO %[1]q; ALTER TABLE t OWNER TO %[1]q`, name, password, attributes, db.Name))
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	return func(password, mode string) string {
		u.User = url.UserPassword(name, password)
		u.RawQuery = url.Values{"sslmode": {mode}, "sslrootcert": {authority}}.Encode()
		return u.String()
	}
}

// both makes a pipeline between two such servers.
func both(t testing.TB) (p *pipeline, src, dst func(password, mode string) string) {
	t.Helper()
	one, ca1 := secure(t)
	two, ca2 := secure(t)
	p = &pipeline{t: t, src: one.NewDB(t), dst: two.NewDB(t), nats: flotest.NATS(t)}
	p.link = flo.WithNATSServer(p.nats)
	p.src.Exec(t, smallTable)
	p.dst.Exec(t, smallTable)
	return p, secured(t, p.src, "reader", "src-pass-1", ca1, "REPLICATION"), secured(t, p.dst, "writer", "dst-pass-1", ca2, "")
}

func TestTLSAndSCRAMToBothDatabasesWithNamedSessions(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p, src, dst := both(t)
	s, err := postgres.New(dst("dst-pass-1", "verify-full"))
	if err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 5000) i`)
	p.start(ctx, flo.WithSource(src("src-pass-1", "verify-full")), flo.WithSink(s))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (10000, 'streamed')`)
	p.catchUp(ctx)
	p.equal(ctx)
	for db, want := range map[*flotest.DB]string{p.src: "flo shop", p.dst: "flo shop/default"} {
		var rows [][]string
		eventually(t, ctx, "all sessions to be named", func() bool { // by the first statement of each
			rows = db.Query(t, `SELECT a.application_name, s.ssl, a.backend_type FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) WHERE a.usename IN ('reader', 'writer')`)
			for _, r := range rows {
				if r[0] != want {
					return false
				}
			}
			return len(rows) > 0
		})
		for _, r := range rows {
			if r[1] != "t" {
				t.Errorf("a session without TLS: %v", r)
			}
		}
	}
	if n := p.src.QueryString(t, `SELECT count(*) FROM pg_stat_replication WHERE application_name = 'flo shop'`); n != "1" {
		t.Errorf("%s named walsenders", n)
	}
	// Without TLS the servers don't take these roles: so what ran above had it.
	plain, err := flo.NewReplicator(flo.WithGroup("plain"), p.link, flo.WithSource(src("src-pass-1", "disable")))
	if err != nil {
		t.Fatal(err)
	}
	var pg *pgconn.PgError
	if err := plain.Run(ctx); !errors.As(err, &pg) || pg.Code != "28000" {
		t.Errorf("without TLS: %v", err)
	}
}

// The databases' passwords are changed before the callbacks know them: flo asks until they do, and goes on.
func TestPasswordsThatRotateAreAskedForAgain(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p, src, dst := both(t)
	var srcPass, dstPass atomic.Value
	srcPass.Store("src-pass-1")
	dstPass.Store("dst-pass-1")
	from := func(v *atomic.Value) func(context.Context) (string, error) {
		return func(context.Context) (string, error) { return v.Load().(string), nil }
	}
	s, err := postgres.New(dst("unused", "verify-full"), postgres.WithPassword(from(&dstPass)))
	if err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithSource(src("unused", "verify-full")), flo.WithPassword(from(&srcPass)), flo.WithSink(s))
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.catchUp(ctx)
	const end = `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename IN ('reader', 'writer')`
	p.src.Exec(t, `ALTER ROLE reader PASSWORD 'src-pass-2'; `+end)
	p.dst.Exec(t, `ALTER ROLE writer PASSWORD 'dst-pass-2'; `+end)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	const refused = "is asked for again"
	eventually(t, ctx, "the old passwords to be refused", func() bool {
		st := p.f.Status()
		return strings.Contains(st.Replicator.LastError, refused)
	})
	srcPass.Store("src-pass-2")
	eventually(t, ctx, "the destination's old password to be refused", func() bool {
		return strings.Contains(p.f.Status().Workers[0].LastError, refused)
	})
	dstPass.Store("dst-pass-2")
	p.catchUp(ctx)
	p.equal(ctx)
	if st := fmt.Sprintf("%+v", p.f.Status()); strings.Contains(st, "-pass-") {
		t.Errorf("the status holds a password: %s", st)
	}
}
