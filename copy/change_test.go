package flocopy

import (
	"errors"
	"strings"
	"testing"

	"github.com/pgflo/flo/flotest"
)

// What happens to a table between the snapshot and its copy, and what the copy must say.
func TestTableThatChangedUnderTheSnapshotIsNoticed(t *testing.T) {
	db := flotest.Postgres(t)
	changes := map[string]struct {
		sql      string
		dropped  bool // *TableError with ErrDropped will do as well
		harmless bool
	}{
		"truncate":            {sql: "TRUNCATE t"},
		"truncate and refill": {sql: "TRUNCATE t; INSERT INTO t SELECT i, 'new' FROM generate_series(1, 10) i"},
		"vacuum full":         {sql: "VACUUM FULL t"},
		"cluster":             {sql: "CLUSTER t USING t_pkey"},
		"rewrite":             {sql: "ALTER TABLE t ALTER id TYPE bigint"},
		"drop":                {sql: "DROP TABLE t", dropped: true},
		"drop and recreate":   {sql: "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v text)"},
		"rename":              {sql: "ALTER TABLE t RENAME TO other", dropped: true},
		"rename and replace":  {sql: "ALTER TABLE t RENAME TO other; CREATE TABLE t (id int, v text)"},
		"schema rename":       {sql: "ALTER SCHEMA s RENAME TO away", dropped: true},
		"column drop":         {sql: "ALTER TABLE t DROP v"},
		"column replace":      {sql: "ALTER TABLE t DROP v; ALTER TABLE t ADD v text"},
		"column swap":         {sql: "ALTER TABLE t RENAME v TO x; ALTER TABLE t ADD v int"},
		"add column":          {sql: "ALTER TABLE t ADD more int DEFAULT 7", harmless: true},
		"plain vacuum":        {sql: "DELETE FROM t; VACUUM t", harmless: true},
	}
	// Before the planning, and between the planning and the first COPY.
	for _, moment := range []string{"before plan", "after plan"} {
		for name, c := range changes {
			t.Run(moment+"/"+name, func(t *testing.T) {
				db.Exec(t, `DROP SCHEMA IF EXISTS s, away CASCADE; CREATE SCHEMA s; SET search_path = s;
					CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('v', 500) FROM generate_series(1, 1000) i`)
				e := export(t, db)
				col := newCollector(t, 4<<10)
				tab := find(t, db, "s", "t")
				cfg := col.config(db, e.name, tab)
				cfg.RangePages = 8
				change := func() {
					for _, sql := range strings.Split(c.sql, ";") {
						db.Exec(t, sql)
					}
				}
				if moment == "before plan" {
					cfg.Started = change
				} else {
					cfg.Progress = func(p Progress) {
						if p.RangesDone == 0 {
							change()
						}
					}
				}
				err := Run(t.Context(), cfg)
				var rewritten *RewrittenError
				switch {
				case c.harmless && err == nil:
					if col.rows[tab.OID] != 1000 {
						t.Errorf("%d rows, the snapshot has 1000", col.rows[tab.OID])
					}
				case !c.harmless && errors.As(err, &rewritten) && rewritten.Table.OID == tab.OID && strings.Contains(err.Error(), `"s"."t"`):
				case c.dropped && errors.Is(err, ErrDropped) && strings.Contains(err.Error(), `"s"."t"`):
				default:
					t.Errorf("%v", err)
				}
			})
		}
	}
}

func TestTableThatMayNotBeReadSaysHowToAllowIt(t *testing.T) {
	db := flotest.Postgres(t)
	role := "copy role " + db.Name
	quoted := `"` + role + `"`
	db.Exec(t, `CREATE ROLE `+quoted+`; CREATE SCHEMA s;
		CREATE TABLE s.t (id int, v text, secret text); INSERT INTO s.t VALUES (1, 'a', 'b'), (2, 'c', 'd');
		GRANT USAGE ON SCHEMA s TO `+quoted)
	t.Cleanup(func() { // a role belongs to the whole server
		if err := db.TryExec(t.Context(), "SELECT 1"); err == nil {
			db.Exec(t, "DROP OWNED BY "+quoted+"; DROP ROLE "+quoted)
		}
	})
	for _, c := range []struct {
		name, sql, undo string
		columns         []string
		want            error
		remedy          string
	}{
		{name: "nothing granted", want: ErrPermission, remedy: `GRANT SELECT ON TABLE "s"."t" TO ` + quoted},
		{name: "all granted", sql: "GRANT SELECT ON s.t TO " + quoted},
		{name: "revoked", sql: "REVOKE SELECT ON s.t FROM " + quoted, want: ErrPermission, remedy: "GRANT SELECT"},
		{name: "columns granted", sql: "GRANT SELECT (id, v) ON s.t TO " + quoted, columns: []string{"id", "v"}},
		{name: "a column missing", want: ErrPermission, remedy: "GRANT SELECT"},
		{name: "no schema", sql: "GRANT SELECT ON s.t TO " + quoted + "; REVOKE USAGE ON SCHEMA s FROM " + quoted, want: ErrPermission, remedy: `GRANT USAGE ON SCHEMA "s"`},
		{name: "row security", sql: "GRANT USAGE ON SCHEMA s TO " + quoted + "; ALTER TABLE s.t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON s.t USING (id = 1)", want: ErrRowSecurity, remedy: "ALTER ROLE " + quoted + " BYPASSRLS"},
		{name: "bypass", sql: "ALTER ROLE " + quoted + " BYPASSRLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tab := find(t, db, "s", "t")
			if c.columns != nil {
				tab.Columns = c.columns
			}
			// Granted or denied before the planning, or behind it, where only COPY finds out.
			for _, late := range []bool{false, true} {
				if c.sql != "" && !late {
					db.Exec(t, c.sql)
				}
				e := export(t, db)
				col := newCollector(t, 1000)
				cfg := col.config(db, e.name, tab)
				cfg.Connect = connectAs(db.URL, quoted)
				if late && c.want != nil {
					db.Exec(t, "ALTER TABLE s.t DISABLE ROW LEVEL SECURITY; GRANT USAGE ON SCHEMA s TO "+quoted+"; GRANT SELECT ON s.t TO "+quoted)
					cfg.Progress = func(p Progress) {
						if p.RangesDone > 0 {
							return
						}
						if c.want == ErrRowSecurity {
							db.Exec(t, "ALTER TABLE s.t ENABLE ROW LEVEL SECURITY")
						} else {
							db.Exec(t, "REVOKE SELECT ON s.t FROM "+quoted)
						}
					}
				}
				err := Run(t.Context(), cfg)
				remedy := c.remedy
				if late && c.want == ErrPermission {
					remedy = "GRANT SELECT ON TABLE"
				}
				var te *TableError
				if !errors.Is(err, c.want) || (c.want != nil && (!errors.As(err, &te) || !strings.Contains(err.Error(), remedy))) {
					t.Errorf("late %v: %v; want %v with %q", late, err, c.want, remedy)
				}
			}
		})
	}
}

func TestOnlyOrdinaryTablesAreCopied(t *testing.T) {
	db := flotest.Postgres(t)
	db.Exec(t, "CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE VIEW v AS SELECT 1 AS id")
	e := export(t, db)
	for _, name := range []string{"p", "v"} {
		col := newCollector(t, 1000)
		err := Run(t.Context(), col.config(db, e.name, find(t, db, "public", name)))
		var te *TableError
		if !errors.As(err, &te) || te.Table.Name != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	db.Exec(t, "CREATE TABLE later (id int)")
	col := newCollector(t, 1000)
	if err := Run(t.Context(), col.config(db, e.name, find(t, db, "public", "later"))); !errors.Is(err, ErrDropped) {
		t.Errorf("table that is younger than the snapshot: %v", err)
	}
}
