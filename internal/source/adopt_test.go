package source

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgflo/flo/flotest"
)

func TestAdoptPublicationsRefusesWhatLosesChanges(t *testing.T) {
	db := flotest.Postgres(t)
	flotest.RequireVersion(t, db, 15) // row filters and column lists
	db.Exec(t, `CREATE TABLE keyed (id int PRIMARY KEY, v text); CREATE TABLE keyless (v text);
		CREATE TABLE whole (a int, b int); ALTER TABLE whole REPLICA IDENTITY FULL;
		CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (9)`)
	c := config(t, db.URL)
	conn, err := c.Connect(t.Context())
	must(t, err)
	defer conn.Close(t.Context())
	for _, p := range []struct {
		name, sql string
		class     error
		says      string
	}{
		{"via_root", `FOR TABLE parts WITH (publish_via_partition_root = true)`, ErrSource, "publish_via_partition_root = false"},
		{"no_update", `FOR TABLE keyed WITH (publish = 'insert, delete, truncate')`, ErrTable, "does not publish update,"},
		{"no_truncate", `FOR TABLE keyed WITH (publish = 'insert, update, delete')`, ErrTable, "does not publish truncate,"},
		{"insert_only", `FOR TABLE keyless WITH (publish = 'insert')`, ErrTable, "truncate"},
		{"keyless_updates", `FOR TABLE keyless, keyed`, ErrTable, "fail at the source"},
		{"no_key_column", `FOR TABLE keyed (v)`, ErrTable, "leaves column \"id\""},
		{"part_of_full", `FOR TABLE whole (a)`, ErrTable, "leaves column \"b\""},
	} {
		db.Exec(t, "CREATE PUBLICATION "+p.name+" "+p.sql)
		_, err := c.AdoptPublications(t.Context(), conn, []string{p.name})
		if !errors.Is(err, p.class) || !strings.Contains(err.Error(), p.says) {
			t.Errorf("%s: %v, want %v with %q", p.name, err, p.class, p.says)
		}
	}
	if _, err := c.AdoptPublications(t.Context(), conn, []string{"absent", "no_update"}); !errors.Is(err, ErrSource) || !strings.Contains(err.Error(), `"absent" does not exist`) {
		t.Errorf("a publication that is missing: %v", err)
	}
	db.Exec(t, `CREATE PUBLICATION one FOR TABLE keyed; CREATE PUBLICATION two FOR TABLE keyed, whole`)
	if _, err := c.AdoptPublications(t.Context(), conn, []string{"one", "two"}); !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), `"one" and "two"`) {
		t.Errorf("a table in two publications: %v", err)
	}
}

func TestAdoptPublicationsTakesThemAsTheyAre(t *testing.T) {
	db := flotest.Postgres(t)
	flotest.RequireVersion(t, db, 15) // row filters and column lists
	db.Exec(t, `CREATE TABLE keyed (id int PRIMARY KEY, v text, secret text); CREATE TABLE keyless (v text);
		CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (9);
		CREATE PUBLICATION a FOR TABLE keyed (id, v) WHERE (id > 10), parts; CREATE PUBLICATION b FOR TABLE keyless WITH (publish = 'insert, truncate')`)
	c := config(t, db.URL)
	conn, err := c.Connect(t.Context())
	must(t, err)
	defer conn.Close(t.Context())
	p, err := c.AdoptPublications(t.Context(), conn, []string{"a", "b"})
	must(t, err)
	if len(p.Tables) != 3 || p.Tables[0].Name != "keyed" || p.Tables[1].Name != "keyless" || p.Tables[2].Name != "part" {
		t.Fatalf("%+v", p.Tables)
	}
	if k := p.Tables[0]; k.RowFilter != "(id > 10)" || len(k.Columns) != 2 {
		t.Errorf("filter %q, columns %v", k.RowFilter, k.Columns)
	}
	if len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "keyless") || len(p.Names) != 2 {
		t.Errorf("%q, %q", p.Warnings, p.Names)
	}
}
