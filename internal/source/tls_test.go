//go:build unix

package source

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/pgflo/flo/flotest"
)

// certificate gives a running server a key and switches TLS on.
func certificate(t *testing.T, server *flotest.Server) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	folder, err := os.Stat(server.DataDir())
	must(t, err)
	owner := folder.Sys().(*syscall.Stat_t)
	for name, block := range map[string]*pem.Block{
		"server.crt": {Type: "CERTIFICATE", Bytes: der},
		"server.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		path := filepath.Join(server.DataDir(), name)
		must(t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
		must(t, os.Chown(path, int(owner.Uid), int(owner.Gid)))
	}
	must(t, server.SetSetting("ssl", "on"))
	must(t, server.Reload(t.Context()))
}

func TestStreamUnderTLS(t *testing.T) {
	server := flotest.NewServer(t)
	certificate(t, server)
	db := server.NewDB(t)
	db.Exec(t, "CREATE TABLE t (id int PRIMARY KEY, v text)")
	c := config(t, db.URL)
	c.Conn.TLSConfig = &tls.Config{InsecureSkipVerify: true}
	c.Conn.Fallbacks = nil
	p, point := publish(t, c, "t")
	s := start(t, t.Context(), c, p, point)
	if _, ok := s.conn.(*tls.Conn); !ok {
		t.Fatalf("the stream runs over %T", s.conn)
	}
	s.SetLazy(true)
	for range 20 { // deadlines in the middle of records and between them
		_, err := s.Next(time.Millisecond)
		must(t, err)
	}
	db.Exec(t, "INSERT INTO t VALUES (0, repeat(md5(random()::text), 100000))")
	insertMany(t, db, 1, 3000)
	if got := len(readUntil(t, s, 3000, 0)); got < 9000 {
		t.Errorf("%d frames", got)
	}
	s.Confirm(s.Received())
	must(t, s.Tick(time.Now()))
	eventually(t, "the slot to be confirmed", s, func() bool {
		return db.QueryString(t, "SELECT confirmed_flush_lsn FROM pg_replication_slots") == s.Confirmed().String()
	})
}
