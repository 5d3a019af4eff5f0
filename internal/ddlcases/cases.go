// Package ddlcases is for tests: schema changes of every kind that are replicated, with rows before, between and behind
// them, and what a database's catalog says of its tables.
package ddlcases

import (
	"fmt"
	"strings"
)

// Case is a piece of a table's life. Every second step, from the second one on, changes the schema; the others change
// rows.
type Case struct {
	Name  string
	Setup string // what there is before
	Steps []string
	// Apart: one of the steps can't stand in a transaction with others.
	Apart bool
	// Early: rows come in front of the command that makes their table, so that it takes a worker to follow.
	Early bool
	// Copied: more than the sink has a part in it, since tables are made, renamed or written anew, and copied afresh.
	Copied bool

	number int
}

// Schemas are those of the case's own: their names are as hostile as they may be.
func (c *Case) Schemas() [2]string {
	return [2]string{fmt.Sprintf(`"S %d""; DROP SCHEMA public; --.'"`, c.number), fmt.Sprintf(`"T ON ONLY %d.x"`, c.number)}
}

// Fill puts the schemas' names in the place of S and T.
func (c *Case) Fill(sql string) string {
	s := c.Schemas()
	return strings.NewReplacer("S.", s[0]+".", "{S}", s[0], "T.", s[1]+".", "{T}", s[1]).Replace(sql)
}

// Begin is the SQL of Setup.
func (c *Case) Begin() string { return c.Fill("CREATE SCHEMA {S}; CREATE SCHEMA {T}; " + c.Setup) }

// End is the SQL that drops all of it.
func (c *Case) End() string { return c.Fill("DROP SCHEMA {S}, {T} CASCADE") }

// Whole is all steps as one transaction.
func (c *Case) Whole() string {
	return c.Fill("BEGIN; " + strings.Join(c.Steps, "; ") + "; COMMIT")
}

// Step is one step as a transaction of its own.
func (c *Case) Step(i int) string {
	if c.Apart {
		return c.Fill(c.Steps[i])
	}
	return c.Fill("BEGIN; " + c.Steps[i] + "; COMMIT")
}

// All gives every case.
func All() []Case {
	all := []Case{
		{Name: "columns added", Setup: `CREATE TABLE S.t (id int PRIMARY KEY, v text); INSERT INTO S.t VALUES (1, 'a'), (2, 'b'), (3, NULL)`, Steps: []string{
			`INSERT INTO S.t VALUES (10, 'c')`,
			`ALTER TABLE S.t ADD a int, ADD b text NOT NULL DEFAULT 'it''s', ADD at timestamptz NOT NULL DEFAULT now()`,
			`INSERT INTO S.t (id, v, a) VALUES (11, 'd', 1); UPDATE S.t SET b = 'other' WHERE id = 1`,
			`ALTER TABLE S.t ADD c numeric(6,2) DEFAULT 1.25; ALTER TABLE S.t ADD tags text[] DEFAULT '{a,"b c",NULL}'`,
			`UPDATE S.t SET c = 2, v = 'z' WHERE id = 10; INSERT INTO S.t (id) VALUES (12); DELETE FROM S.t WHERE id = 2`,
		}},
		{Name: "columns dropped", Setup: `CREATE TABLE S.t (id int PRIMARY KEY, a int, b text, c int, UNIQUE (a), CHECK (c > 0)); CREATE INDEX ON S.t (b, c); INSERT INTO S.t VALUES (1, 1, 'a', 1), (2, 2, 'b', 2)`, Steps: []string{
			`INSERT INTO S.t VALUES (3, 3, 'c', 3)`,
			`ALTER TABLE S.t DROP COLUMN a`,
			`INSERT INTO S.t VALUES (4, 'd', 4); UPDATE S.t SET b = 'x' WHERE id = 1`,
			`ALTER TABLE S.t DROP COLUMN c CASCADE, ADD COLUMN a bigint DEFAULT 7`,
			`INSERT INTO S.t VALUES (5, 'e', 5000000000); UPDATE S.t SET a = 8 WHERE id = 2`,
		}},
		{Name: "columns renamed", Setup: `CREATE TABLE S.t (id int PRIMARY KEY, v text, w int DEFAULT 4 CHECK (w < 100)); CREATE INDEX ON S.t (v); INSERT INTO S.t VALUES (1, 'a', 1), (2, 'b', 2)`, Steps: []string{
			`INSERT INTO S.t VALUES (3, 'c', 3)`,
			`ALTER TABLE S.t RENAME COLUMN v TO x; ALTER TABLE S.t ADD COLUMN v text DEFAULT 'new'`,
			`INSERT INTO S.t (id, x, v) VALUES (4, 'old', 'new too'); UPDATE S.t SET v = 'changed' WHERE id = 1`,
			`ALTER TABLE S.t RENAME COLUMN x TO tmp; ALTER TABLE S.t RENAME COLUMN v TO x; ALTER TABLE S.t RENAME COLUMN tmp TO v; ALTER TABLE S.t RENAME COLUMN id TO "ID"`,
			`UPDATE S.t SET v = 'v', x = 'x' WHERE "ID" = 2; INSERT INTO S.t VALUES (5, 'five', DEFAULT, 'x5'); DELETE FROM S.t WHERE "ID" = 3`,
			`ALTER TABLE S.t DROP COLUMN x; ALTER TABLE S.t RENAME COLUMN v TO x; ALTER TABLE S.t ADD COLUMN v int`,
			`UPDATE S.t SET v = 6 WHERE x = 'v'; INSERT INTO S.t VALUES (6, 'six', 6, 6)`,
		}},
		{Name: "columns retyped", Copied: true, Setup: `CREATE TABLE S.t (id int PRIMARY KEY, v varchar(5), n int DEFAULT 1); CREATE INDEX ON S.t (n); INSERT INTO S.t VALUES (1, 'a', 1), (2, 'b', 2)`, Steps: []string{
			`INSERT INTO S.t VALUES (3, 'c', 3)`,
			`ALTER TABLE S.t ALTER COLUMN v TYPE varchar(50)`,
			`INSERT INTO S.t VALUES (4, 'longer than five', 4); UPDATE S.t SET n = 9 WHERE id = 1`,
			`ALTER TABLE S.t ALTER COLUMN id TYPE bigint, ALTER COLUMN v TYPE text`,
			`INSERT INTO S.t VALUES (5000000000, repeat('x', 100), 5)`,
			`ALTER TABLE S.t ALTER COLUMN n DROP DEFAULT, ALTER COLUMN n TYPE text USING 'n' || n, ALTER COLUMN n SET DEFAULT 'none'`,
			`INSERT INTO S.t (id) VALUES (6); UPDATE S.t SET n = 'seven' WHERE id = 2; DELETE FROM S.t WHERE id = 3`,
		}},
		{Name: "defaults", Setup: `CREATE TABLE S.t (id int PRIMARY KEY, v text DEFAULT 'a', at date); INSERT INTO S.t VALUES (1)`, Steps: []string{
			`INSERT INTO S.t VALUES (2)`,
			`ALTER TABLE S.t ALTER v SET DEFAULT 'b' || 'c', ALTER at SET DEFAULT '2024-02-29'`,
			`INSERT INTO S.t VALUES (3)`,
			`ALTER TABLE S.t ALTER v DROP DEFAULT`,
			`INSERT INTO S.t VALUES (4)`,
			`ALTER TABLE S.t ALTER at SET DEFAULT now(), ALTER v SET DEFAULT E'\\ "''\n'`,
			`INSERT INTO S.t VALUES (5); UPDATE S.t SET v = DEFAULT WHERE id = 1`,
		}},
		{Name: "not null", Setup: `CREATE TABLE S.t (id int PRIMARY KEY, v text, w text NOT NULL); INSERT INTO S.t VALUES (1, 'a', 'a')`, Steps: []string{
			`INSERT INTO S.t VALUES (2, 'b', 'b')`,
			`ALTER TABLE S.t ALTER v SET NOT NULL, ALTER w DROP NOT NULL`,
			`INSERT INTO S.t VALUES (3, 'c', NULL); UPDATE S.t SET w = NULL WHERE id = 1`,
			`ALTER TABLE S.t ALTER v DROP NOT NULL`,
			`INSERT INTO S.t VALUES (4, NULL, NULL)`,
		}},
		{Name: "indexes", Setup: `CREATE TABLE S.t (id int PRIMARY KEY, v text, n int); CREATE INDEX old ON S.t (n); INSERT INTO S.t VALUES (1, 'a', 1)`, Steps: []string{
			`INSERT INTO S.t VALUES (2, 'b', 2)`,
			`CREATE INDEX i ON S.t (v); CREATE UNIQUE INDEX u ON S.t (lower(v), n DESC NULLS LAST) INCLUDE (id) WHERE n > 0; CREATE INDEX h ON S.t USING hash (v)`,
			`INSERT INTO S.t VALUES (3, 'c', 3); UPDATE S.t SET v = 'A' WHERE id = 1`,
			`ALTER INDEX S.i RENAME TO "I'"";"; DROP INDEX S.old; COMMENT ON INDEX S.u IS 'unique'`,
			`DELETE FROM S.t WHERE id = 2; INSERT INTO S.t VALUES (4, 'c', 4)`,
			`DROP INDEX S."I'"";", S.u; CREATE INDEX old ON S.t (id, n)`,
			`INSERT INTO S.t VALUES (5, 'c', 3)`,
		}},
		{Name: "indexes made concurrently", Apart: true, Setup: `CREATE TABLE S.t (id int PRIMARY KEY, v text); INSERT INTO S.t VALUES (1, 'a')`, Steps: []string{
			`INSERT INTO S.t VALUES (2, 'b')`,
			`CREATE UNIQUE INDEX CONCURRENTLY i ON S.t (v)`,
			`INSERT INTO S.t VALUES (3, 'c'); UPDATE S.t SET v = 'aa' WHERE id = 1`,
			`REINDEX INDEX CONCURRENTLY S.i`,
			`DELETE FROM S.t WHERE id = 2; INSERT INTO S.t VALUES (4, 'b')`,
			`DROP INDEX CONCURRENTLY S.i`,
			`INSERT INTO S.t VALUES (5, 'b')`,
		}},
		{Name: "constraints", Setup: `CREATE TABLE S.p (id int PRIMARY KEY, k text NOT NULL, UNIQUE (k)); INSERT INTO S.p VALUES (1, 'one'), (2, 'two');
			CREATE TABLE S.t (id int NOT NULL, p int, k text, r int4range); ALTER TABLE S.t REPLICA IDENTITY FULL; INSERT INTO S.t VALUES (1, 1, 'one', '[1,2)')`, Steps: []string{
			`INSERT INTO S.t VALUES (2, 2, 'two', '[2,3)')`,
			`ALTER TABLE S.t ADD PRIMARY KEY (id), ADD CONSTRAINT fk FOREIGN KEY (p) REFERENCES S.p ON DELETE CASCADE DEFERRABLE, ADD CONSTRAINT ck CHECK (p > 0) NOT VALID,
				ADD CONSTRAINT un UNIQUE (k, p) DEFERRABLE INITIALLY DEFERRED, ADD CONSTRAINT ex EXCLUDE USING gist (r WITH &&)`,
			`INSERT INTO S.t VALUES (3, 1, 'two', '[3,4)'); UPDATE S.t SET p = 2 WHERE id = 1`,
			`SET CONSTRAINTS ALL IMMEDIATE; ALTER TABLE S.t VALIDATE CONSTRAINT ck; ALTER TABLE S.t RENAME CONSTRAINT un TO "Un'"";"; ALTER TABLE S.t DROP CONSTRAINT ex, ADD FOREIGN KEY (k) REFERENCES S.p (k)`,
			`INSERT INTO S.t VALUES (4, 1, 'one', '[1,9)')`,
			`SET CONSTRAINTS ALL IMMEDIATE; ALTER TABLE S.t DROP CONSTRAINT ck, DROP CONSTRAINT fk, ALTER CONSTRAINT t_k_fkey DEFERRABLE INITIALLY DEFERRED`,
			`INSERT INTO S.t VALUES (5, -1, 'one', NULL); DELETE FROM S.p WHERE id = 9`,
		}},
		{Name: "another primary key", Setup: `CREATE TABLE S.t (id int PRIMARY KEY, k text NOT NULL, v text); INSERT INTO S.t VALUES (1, 'one', 'a'), (2, 'two', 'b')`, Steps: []string{
			`UPDATE S.t SET v = 'c' WHERE id = 1`,
			`ALTER TABLE S.t DROP CONSTRAINT t_pkey, ADD CONSTRAINT other PRIMARY KEY (k)`,
			`UPDATE S.t SET id = 7, v = 'd' WHERE k = 'one'; INSERT INTO S.t VALUES (7, 'three', 'e')`,
			`CREATE UNIQUE INDEX t_id_k ON S.t (id, k); ALTER TABLE S.t ALTER id SET NOT NULL; ALTER TABLE S.t DROP CONSTRAINT other; ALTER TABLE S.t ADD CONSTRAINT id_k PRIMARY KEY USING INDEX t_id_k`,
			`UPDATE S.t SET k = 'four' WHERE id = 7 AND k = 'three'; DELETE FROM S.t WHERE id = 2`,
		}},
		{Name: "tables renamed", Setup: `CREATE TABLE S.t (id serial PRIMARY KEY, v text); CREATE TABLE S.c (id int PRIMARY KEY, t int REFERENCES S.t); INSERT INTO S.t (v) VALUES ('a'), ('b'); INSERT INTO S.c VALUES (1, 1)`, Steps: []string{
			`INSERT INTO S.t (v) VALUES ('c')`,
			`ALTER TABLE S.t RENAME TO "T'"";"`,
			`INSERT INTO S."T'"";" (v) VALUES ('d'); INSERT INTO S.c VALUES (2, 2)`,
			`ALTER TABLE S."T'"";" RENAME TO t2; ALTER TABLE S.t2 RENAME COLUMN v TO w; CREATE TABLE S.t (id int PRIMARY KEY, x int)`,
			`INSERT INTO S.t2 (w) VALUES ('e'); INSERT INTO S.t VALUES (1, 1); UPDATE S.t2 SET w = 'z' WHERE id = 1`,
			`DROP TABLE S.t; ALTER TABLE S.t2 RENAME TO t; ALTER TABLE S.t ALTER COLUMN id TYPE bigint`,
			`INSERT INTO S.t (w) VALUES ('f'); DELETE FROM S.t WHERE id = 3`,
		}},
		{Name: "tables that swap names", Copied: true, Setup: `CREATE TABLE S.a (id int PRIMARY KEY, v text); CREATE TABLE S.b (id int PRIMARY KEY, n int); INSERT INTO S.a VALUES (1, 'a'), (2, 'a'); INSERT INTO S.b VALUES (1, 1)`, Steps: []string{
			`INSERT INTO S.a VALUES (3, 'a'); INSERT INTO S.b VALUES (2, 2)`,
			`ALTER TABLE S.a RENAME TO tmp; ALTER TABLE S.b RENAME TO a; ALTER TABLE S.tmp RENAME TO b`,
			`INSERT INTO S.b VALUES (4, 'was a'); INSERT INTO S.a VALUES (3, 3); UPDATE S.b SET v = 'x' WHERE id = 1`,
			`ALTER TABLE S.b ALTER COLUMN id TYPE bigint; ALTER TABLE S.a ADD COLUMN r float8 DEFAULT random()`,
			`INSERT INTO S.b VALUES (5, 'was a'); INSERT INTO S.a VALUES (4, 4, 0.5); DELETE FROM S.b WHERE id = 2`,
			`ALTER TABLE S.a RENAME TO tmp; ALTER TABLE S.b RENAME TO a; ALTER TABLE S.tmp RENAME TO b`,
			`INSERT INTO S.a VALUES (6, 'back'); UPDATE S.b SET n = 9 WHERE id = 1`,
		}},
		{Name: "another schema", Copied: true, Setup: `CREATE TABLE S.t (id serial PRIMARY KEY, v text); CREATE INDEX i ON S.t (v); INSERT INTO S.t (v) VALUES ('a')`, Steps: []string{
			`INSERT INTO S.t (v) VALUES ('b')`,
			`ALTER TABLE S.t SET SCHEMA {T}`,
			`INSERT INTO T.t (v) VALUES ('c'); UPDATE T.t SET v = 'z' WHERE id = 1`,
			`ALTER TABLE T.t RENAME TO u; ALTER TABLE T.u SET SCHEMA {S}; CREATE TABLE T.t (id int PRIMARY KEY)`,
			`INSERT INTO S.u (v) VALUES ('d'); INSERT INTO T.t VALUES (1)`,
			`ALTER TABLE S.u ALTER COLUMN id TYPE bigint; ALTER SCHEMA {T} RENAME TO passing; ALTER SCHEMA passing RENAME TO {T}`,
			`INSERT INTO S.u (v) VALUES ('e'); INSERT INTO T.t VALUES (2)`,
		}},
		{Name: "tables made and dropped", Copied: true, Setup: `CREATE TABLE S.stays (id int PRIMARY KEY)`, Steps: []string{
			`INSERT INTO S.stays VALUES (1)`,
			`CREATE TABLE S.t (id int PRIMARY KEY, v text DEFAULT 'd', UNIQUE (v), CHECK (id > 0)); CREATE INDEX ON S.t (lower(v))`,
			`INSERT INTO S.t VALUES (1, DEFAULT), (2, 'b'); UPDATE S.t SET v = 'c' WHERE id = 2`,
			`DROP TABLE S.t; CREATE TABLE S.t (k text PRIMARY KEY, n int); CREATE TABLE S.u (LIKE S.t INCLUDING ALL)`,
			`INSERT INTO S.t VALUES ('k', 1); INSERT INTO S.u VALUES ('u', 2); INSERT INTO S.stays VALUES (2)`,
			`DROP TABLE S.u`,
			`UPDATE S.t SET n = 3`,
		}},
		{Name: "an enum", Setup: `CREATE TABLE S.t (id int PRIMARY KEY); INSERT INTO S.t VALUES (1)`, Steps: []string{
			`INSERT INTO S.t VALUES (2)`,
			`CREATE TYPE S.mood AS ENUM ('sad', 'ok'); ALTER TABLE S.t ADD COLUMN m S.mood DEFAULT 'ok'; COMMENT ON TYPE S.mood IS 'mood'`,
			`INSERT INTO S.t VALUES (3, 'sad')`,
			`ALTER TYPE S.mood RENAME VALUE 'sad' TO 'it''s "sad"'`,
			`INSERT INTO S.t VALUES (4, 'it''s "sad"')`,
			`ALTER TYPE S.mood ADD VALUE 'happy' BEFORE 'ok'; ALTER TYPE S.mood ADD VALUE 'last'; ALTER TYPE S.mood RENAME TO "Mo""od"`,
			`INSERT INTO S.t VALUES (5, 'ok'); UPDATE S.t SET m = NULL WHERE id = 1`,
		}},
		{Name: "labels of an enum, each at once in use", Apart: true, Setup: `CREATE TYPE S.e AS ENUM ('a'); CREATE TABLE S.t (id int PRIMARY KEY, e S.e, es S.e[]); INSERT INTO S.t VALUES (1, 'a', '{a}')`, Steps: []string{
			`INSERT INTO S.t VALUES (2, 'a')`,
			`ALTER TYPE S.e ADD VALUE 'b'`,
			`INSERT INTO S.t VALUES (3, 'b', '{a,b}')`,
			`ALTER TYPE S.e ADD VALUE 'c' BEFORE 'a'`,
			`UPDATE S.t SET e = 'c' WHERE id = 1`,
			`ALTER TYPE S.e RENAME VALUE 'b' TO 'bb'`,
			`INSERT INTO S.t VALUES (4, 'bb', '{c,bb}')`,
		}},
		{Name: "a composite type", Setup: `CREATE TYPE S.pair AS (a int, b text); CREATE TABLE S.t (id int PRIMARY KEY, p S.pair); INSERT INTO S.t VALUES (1, '(1,x)')`, Steps: []string{
			`INSERT INTO S.t VALUES (2, '(2,y)')`,
			`ALTER TYPE S.pair ADD ATTRIBUTE c date`,
			`INSERT INTO S.t VALUES (3, '(3,z,2024-01-01)')`,
			`ALTER TYPE S.pair RENAME ATTRIBUTE b TO "B"; ALTER TYPE S.pair DROP ATTRIBUTE a; COMMENT ON TYPE S.pair IS 'pair'`,
			`INSERT INTO S.t VALUES (4, '(w,2024-02-02)'); UPDATE S.t SET p = '(q,)' WHERE id = 1`,
		}},
		{Name: "a domain", Setup: `CREATE DOMAIN S.pos AS int CHECK (VALUE > 0); CREATE TABLE S.t (id int PRIMARY KEY, n S.pos); INSERT INTO S.t VALUES (1, 1)`, Steps: []string{
			`INSERT INTO S.t VALUES (2, 2)`,
			`ALTER DOMAIN S.pos ADD CONSTRAINT less CHECK (VALUE < 100); ALTER DOMAIN S.pos SET DEFAULT 5`,
			`INSERT INTO S.t VALUES (3, 3)`,
			`ALTER DOMAIN S.pos DROP CONSTRAINT pos_check; ALTER DOMAIN S.pos RENAME CONSTRAINT less TO "le'ss"; COMMENT ON DOMAIN S.pos IS 'any'; CREATE DOMAIN S.name AS text COLLATE "C"; ALTER TABLE S.t ADD COLUMN d S.name DEFAULT 'x'`,
			`INSERT INTO S.t VALUES (4, -4, 'y')`,
			`ALTER DOMAIN S.pos DROP DEFAULT; ALTER DOMAIN S.name SET NOT NULL`,
			`INSERT INTO S.t VALUES (5, 5, 'z')`,
		}},
		{Name: "comments", Setup: `CREATE TABLE S.t (id int PRIMARY KEY, v text CHECK (v <> '')); CREATE INDEX i ON S.t (v); COMMENT ON TABLE S.t IS 'before'; INSERT INTO S.t VALUES (1, 'a')`, Steps: []string{
			`INSERT INTO S.t VALUES (2, 'b')`,
			`COMMENT ON TABLE S.t IS E'it''s\ntwo; --'; COMMENT ON COLUMN S.t.v IS '$$'; COMMENT ON INDEX S.i IS 'index'; COMMENT ON CONSTRAINT t_v_check ON S.t IS 'check'`,
			`INSERT INTO S.t VALUES (3, 'c')`,
			`COMMENT ON TABLE S.t IS NULL; COMMENT ON COLUMN S.t.v IS 'other'; COMMENT ON INDEX S.i IS NULL`,
			`UPDATE S.t SET v = 'z'`,
		}},
	}
	all = append(all, more()...)
	for i := range all {
		all[i].number = i + 1
	}
	return all
}

// CatalogSQL describes a database's tables and types, a line each; of what partitions got from above without the names.
// The session's search path has to be pg_catalog.
const CatalogSQL = `WITH t AS (SELECT c.*, n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('flo', 'pg_catalog', 'information_schema', 'pg_toast'))
	SELECT format('table %I.%I %s %s %s %s parents %s comment %s', nspname, relname, relkind, reloptions, pg_get_partkeydef(oid), pg_get_expr(relpartbound, oid),
		ARRAY(SELECT inhparent::regclass::text FROM pg_inherits WHERE inhrelid = t.oid ORDER BY 1), obj_description(oid, 'pg_class')) FROM t
	UNION ALL SELECT format('column %I.%I.%I %s collation %s not null %s default %s identity %s generated %s comment %s', nspname, relname, attname, format_type(atttypid, atttypmod),
		attcollation::regcollation, attnotnull, pg_get_expr(adbin, adrelid), attidentity, attgenerated, col_description(t.oid, attnum))
		FROM t JOIN pg_attribute a ON attrelid = t.oid AND attnum > 0 AND NOT attisdropped LEFT JOIN pg_attrdef ON adrelid = t.oid AND adnum = attnum
	UNION ALL SELECT format('constraint %I.%I.%s %s valid %s comment %s', nspname, relname, CASE WHEN conparentid = 0 THEN conname END, pg_get_constraintdef(k.oid), convalidated,
		obj_description(k.oid, 'pg_constraint')) FROM t JOIN pg_constraint k ON conrelid = t.oid WHERE contype NOT IN ('t', 'n') -- NOT NULL has names from 18 on, which are not replicated
	UNION ALL SELECT CASE WHEN i.relispartition THEN format('partition of an index on %I.%I %s', t.nspname, t.relname, substring(pg_get_indexdef(i.oid) FROM ' USING .*'))
		ELSE format('index on %I.%I %s comment %s', t.nspname, t.relname, pg_get_indexdef(i.oid), obj_description(i.oid, 'pg_class')) END
		FROM t JOIN pg_index x ON indrelid = t.oid JOIN pg_class i ON i.oid = indexrelid WHERE indisvalid
	UNION ALL SELECT format('type %s %s labels %s fields %s base %s %s %s %s comment %s', y.oid::regtype, typtype,
			ARRAY(SELECT enumlabel FROM pg_enum WHERE enumtypid = y.oid ORDER BY enumsortorder),
			ARRAY(SELECT attname || ' ' || format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = typrelid AND attnum > 0 AND NOT attisdropped ORDER BY attnum),
			format_type(typbasetype, typtypmod), typnotnull, typdefault, ARRAY(SELECT conname || pg_get_constraintdef(oid) FROM pg_constraint WHERE contypid = y.oid ORDER BY 1),
			obj_description(y.oid, 'pg_type'))
		FROM pg_type y LEFT JOIN pg_class c ON c.oid = typrelid JOIN pg_namespace n ON n.oid = typnamespace
		WHERE typtype IN ('e', 'd', 'r', 'c') AND (typtype <> 'c' OR c.relkind = 'c') AND nspname NOT IN ('flo', 'pg_catalog', 'information_schema', 'pg_toast')
	ORDER BY 1`
