package pgsession_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
)

func TestMain(m *testing.M) { os.Exit(flotest.Main(m, flotest.CheckLeaks())) }

// odd defaults of the database, beyond those of flotest's server.
var odd = map[string]string{
	"statement_timeout": "'11s'", "lock_timeout": "'12s'", "idle_in_transaction_session_timeout": "'13s'",
	"idle_session_timeout": "'14s'", "default_transaction_isolation": "'serializable'",
	"default_transaction_read_only": "on", "search_path": "nowhere", "row_security": "on",
	"standard_conforming_strings": "off", "client_encoding": "'LATIN1'",
}

func config(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func TestSettingsAreInForce(t *testing.T) {
	db := flotest.Postgres(t)
	for name, value := range odd {
		db.Exec(t, fmt.Sprintf("ALTER DATABASE %s SET %s = %s", db.Name, name, value))
	}
	asked := 0
	cfg := config(t, db.URL)
	password := cfg.Password
	cfg.Password = "expired"
	conn, err := pgsession.Connect(t.Context(), cfg, pgsession.Options{
		AppName:  `it's a \ "name"`,
		Password: func(context.Context) (string, error) { asked++; return password, nil },
		Extra:    map[string]string{"work_mem": "5MB"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for name, want := range map[string]string{
		"client_encoding": "UTF8", "DateStyle": "ISO, DMY", "IntervalStyle": "postgres", "extra_float_digits": "3",
		"TimeZone": "UTC", "bytea_output": "hex", "lc_monetary": "C", "xmloption": "content", "search_path": "pg_catalog",
		"row_security": "off", "statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0",
		"idle_session_timeout": "0", "default_transaction_isolation": "read committed", "default_transaction_read_only": "off",
		"standard_conforming_strings": "on", "application_name": `it's a \ "name"`, "work_mem": "5MB",
	} {
		var got string
		if err := conn.QueryRow(t.Context(), "SELECT current_setting($1)", name).Scan(&got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if asked != 1 {
		t.Errorf("the password callback was asked %d times", asked)
	}
}

func TestErrorsHoldNoPassword(t *testing.T) {
	const secret = "s3cret-Pass"
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	cfg := config(t, "postgres://somebody:"+secret+"@"+addr+"/x?sslmode=disable")
	_, err = pgsession.Connect(t.Context(), cfg, pgsession.Options{Password: func(context.Context) (string, error) { return secret + "2", nil }})
	if err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("connecting to nobody: %v", err)
	}
	if !pgsession.Transient(err) {
		t.Errorf("a refused connection is not transient: %v", err)
	}
	asking := errors.New("vault is sealed")
	if _, err := pgsession.Connect(t.Context(), cfg, pgsession.Options{Password: func(context.Context) (string, error) { return "", asking }}); !errors.Is(err, asking) {
		t.Errorf("the callback's error is %v", err)
	}
}

func TestTransient(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{context.Canceled, false},
		{errors.New("what"), false},
		{io.ErrUnexpectedEOF, true},
		{fmt.Errorf("x: %w", net.ErrClosed), true},
		{fmt.Errorf("x: %w", pgconn.ErrConnClosed), true},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, true},
		{&net.DNSError{}, true},
	} {
		if got := pgsession.Transient(c.err); got != c.want {
			t.Errorf("Transient(%v) = %v", c.err, got)
		}
	}
	for code, want := range map[string]bool{
		"57P01": true, "57P02": true, "57P03": true, "08006": true, "08P01": false, "53300": true, "40001": true,
		"40P01": true, "55006": true, "55P03": true, "23505": false, "42P01": false, "28P01": false, "42501": false, "58P01": false,
	} {
		if got := pgsession.Transient(fmt.Errorf("x: %w", &pgconn.PgError{Code: code})); got != want {
			t.Errorf("Transient(%s) = %v, want %v", code, got, want)
		}
	}
}
