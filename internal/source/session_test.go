package source

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/pgsession"
)

func TestBothKindsOfSessionHaveTheSettings(t *testing.T) {
	db := flotest.Postgres(t)
	for _, s := range []string{"statement_timeout = '11s'", "lock_timeout = '12s'", "idle_session_timeout = '14s'",
		"idle_in_transaction_session_timeout = '13s'", "search_path = nowhere", "client_encoding = 'LATIN1'"} {
		db.Exec(t, fmt.Sprintf("ALTER DATABASE %s SET %s", db.Name, s))
	}
	c := config(t, db.URL)
	replication, err := c.connectReplication(t.Context(), nil)
	must(t, err)
	defer hangUp(t.Context(), replication)
	for kind, conn := range map[string]*pgconn.PgConn{"ordinary": connect(t, c).PgConn(), "replication": replication} {
		for name, want := range map[string]string{
			"client_encoding": "UTF8", "DateStyle": "ISO, DMY", "IntervalStyle": "postgres", "extra_float_digits": "3",
			"TimeZone": "UTC", "bytea_output": "hex", "lc_monetary": "C", "xmloption": "content", "search_path": "pg_catalog",
			"row_security": "off", "statement_timeout": "0", "lock_timeout": "0", "idle_in_transaction_session_timeout": "0",
			"idle_session_timeout": "0", "application_name": "flo test",
		} {
			rows, err := query(t.Context(), conn, "SHOW "+name)
			must(t, err)
			if got := string(rows[0][0]); got != want {
				t.Errorf("%s session: %s is %q, want %q", kind, name, got, want)
			}
		}
	}
}

// role makes a role that may log in and do nothing else, and gives its configuration.
func role(t testing.TB, db *flotest.DB, options string) Config {
	t.Helper()
	name := "r_" + db.Name
	db.Exec(t, "CREATE ROLE "+name+" LOGIN PASSWORD 'pw-of-role' "+options)
	t.Cleanup(func() { db.Exec(t, "DROP OWNED BY "+name+"; DROP ROLE "+name) })
	c := config(t, db.URL)
	c.Conn.User, c.Conn.Password = name, "pw-of-role"
	return c
}

func TestRowSecurityIsAnError(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE t (id int); ALTER TABLE t ENABLE ROW LEVEL SECURITY; INSERT INTO t VALUES (1); GRANT SELECT ON t TO public")
	c := role(t, db, "")
	_, err := connect(t, c).Exec(t.Context(), "COPY public.t TO STDOUT")
	if pgsession.SQLState(err) != sqlPrivilege {
		t.Errorf("COPY of a filtered table: %v", err)
	}
}

func TestMissingPrivilegesNameTheGrant(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE SCHEMA s; CREATE TABLE s.t (id int PRIMARY KEY)")
	c := role(t, db, "")
	user := c.Conn.User
	if _, err := c.Identify(t.Context()); !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), `ALTER ROLE "`+user+`" REPLICATION`) {
		t.Errorf("replicating: %v", err)
	} else if strings.Contains(err.Error(), "pw-of-role") {
		t.Errorf("the password is in: %v", err)
	}
	conn := connect(t, c)
	tables, _, err := c.ResolveTables(t.Context(), conn, patterns(t, "s.t"), nil)
	must(t, err)
	ensure := func() error {
		_, err := c.EnsurePublication(t.Context(), conn, PublicationSpec{Name: "flo_p", Tables: tables})
		return err
	}
	err = ensure()
	for _, want := range []string{"GRANT CREATE ON DATABASE", `GRANT "postgres" TO`} {
		if !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), want) {
			t.Errorf("publishing: %v does not hold %s", err, want)
		}
	}
	err = c.CheckSelect(t.Context(), conn, tables)
	for _, want := range []string{`GRANT USAGE ON SCHEMA "s"`, `GRANT SELECT ON TABLE "s"."t"`} {
		if !errors.Is(err, ErrPrivilege) || !strings.Contains(err.Error(), want) {
			t.Errorf("reading: %v does not hold %s", err, want)
		}
	}
	db.Exec(t, fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s; ALTER TABLE s.t OWNER TO %[2]s; GRANT USAGE ON SCHEMA s TO %[2]s", db.Name, user))
	must(t, ensure())
	must(t, c.CheckSelect(t.Context(), conn, tables))
}
