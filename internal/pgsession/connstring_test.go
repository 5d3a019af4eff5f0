package pgsession_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/internal/pgsession"
)

// Whatever is wrong with a connection string, wherever its password stands, none of it is in the error.
func TestParseConfigKeepsTheString(t *testing.T) {
	service := filepath.Join(t.TempDir(), "services")
	if err := os.WriteFile(service, []byte("[bad]\nhost=h\npassword=s3cret\nport=s3cret\n[worse]\npassword = s3cret\nsslmode=s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ conn, says string }{
		{"host=h password = s3cret port=99999999", "a port is not"},
		{"host=h password =s3cret port=x", "a port is not"},
		{"host=h password= s3cret port=x", "a port is not"},
		{"host=h PASSWORD=s3cret port=x", ""},
		{"host=h password=s3cret port=x", "a port is not"},
		{"host=h password='s3cret s3cret' port=x", "a port is not"},
		{`host=h password='it\'s s3cret' port=x`, "a port is not"},
		{`host=h password=a\ s3cret port=x`, "a port is not"},
		{"host=h password='s3cret port=x", "unterminated quoted string"},
		{"host=h password=my s3cret port=5432", "keywords and values"},
		{"host=h password=s3cret connect_timeout=s3cret", "connect_timeout"},
		{"host=h password=s3cret sslmode=s3cret", "sslmode is invalid"},
		{"host=h password=s3cret target_session_attrs=s3cret", "target_session_attrs"},
		{"host=h sslpassword = s3cret sslmode=no", "sslmode is invalid"},
		{"host=h password=x port='s3cret'", "a port is not"},
		{"host=h sslmode=require sslrootcert=/no/s3cret", "no such file"},
		{"host=h sslmode=require sslcert=/no/s3cret sslkey=/no/s3cret", "no such file"},
		{"host=h sslmode=require sslcert=s3cret", `both "sslcert" and "sslkey"`},
		{"host=h,i port=1,2,3 password = s3cret", "as many ports as hosts"},
		{"host=h password = s3cret statement_cache_capacity=x", "statement_cache_capacity"},
		{"host=h password = s3cret default_query_exec_mode=s3cret", "default_query_exec_mode"},
		{"service=s3cret servicefile=" + service, "service"},
		{"service=bad servicefile=" + service, "a port is not"},
		{"service=worse host=h servicefile=" + service, "sslmode is invalid"},
		{"service=bad servicefile=/no/s3cret", "service"},
		{"postgres://u:s3cret@localhost:x/d", ""},
		{"postgres://u:s3cret@localhost:99999999/d", "a port is not"},
		{"postgres://u:s3cret@localhost/d?sslmode=no", "sslmode is invalid"},
		{"postgres://u:s3/cret%zz@localhost/d", ""},
		{"postgres://u:%zzs3cret@localhost/d", ""},
		{"postgres://u:s3cret@local host/d", ""},
		{"postgres://u:s3cret", ""},
		{"postgres://u@h/d?password=s3cret&port=x", ""},
		{"postgres://u@h/d?pass%77ord=s3cret&sslmode=no", "sslmode is invalid"},
		{"postgresql://u:s3cret@[::1/d", ""},
		{"POSTGRES://u:s3cret@h/d", ""},
		{"mysql://u:s3cret@h/d", ""},
		{"u:s3cret@h/d", ""},
		{"s3cret", ""},
		{"=s3cret", ""},
		{"host=h password=s3cret\x00", ""},
	} {
		_, err := pgsession.ParseConfig(c.conn)
		if err == nil {
			// pgx takes more than libpq does; where it does, nothing is said.
			if c.says != "" {
				t.Errorf("%q is taken", c.conn)
			}
			continue
		}
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, "s3") || strings.Contains(text, "cret") {
			t.Errorf("%q: %s", c.conn, text)
		}
		if !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: %v does not say %q", c.conn, err, c.says)
		}
		var raw *pgconn.ParseConfigError
		if errors.As(err, &raw) {
			t.Errorf("%q: the error carries the whole string", c.conn)
		}
	}
}
