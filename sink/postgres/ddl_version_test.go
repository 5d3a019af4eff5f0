package postgres

import (
	"testing"

	"github.com/pgflo/flo/flotest"
)

// What later versions brought, as in TestSchemaChangesAreApplied.
func TestSchemaChangesOfLaterVersionsAreApplied(t *testing.T) {
	for _, c := range []struct {
		name     string
		version  int
		commands []string
	}{
		{"expressions", 17, []string{
			`CREATE TABLE public.g (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO public.g VALUES (1, 1), (2, 2)`,
			`ALTER TABLE public.g ALTER COLUMN twice SET EXPRESSION AS (a * 20); INSERT INTO public.g VALUES (3, 3)`,
			`BEGIN; INSERT INTO public.g VALUES (4, 4); ALTER TABLE public.g ALTER COLUMN twice SET EXPRESSION AS (a + 1), ADD COLUMN b int DEFAULT 7; UPDATE public.g SET a = 5 WHERE id = 1; COMMIT`,
		}},
		{"virtual generated columns", 18, []string{
			`CREATE TABLE public.v (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (a * 2), a int); INSERT INTO public.v (id, a) VALUES (1, 1), (2, NULL)`,
			`ALTER TABLE public.v ADD COLUMN thrice int GENERATED ALWAYS AS (a * 3) VIRTUAL; INSERT INTO public.v (id, a) VALUES (3, 3)`,
			`ALTER TABLE public.v ADD COLUMN kept int GENERATED ALWAYS AS (a * 4) STORED, ADD COLUMN sure int GENERATED ALWAYS AS (coalesce(a, 0)) VIRTUAL NOT NULL; UPDATE public.v SET a = 4 WHERE id = 1`,
			`ALTER TABLE public.v ALTER COLUMN twice SET EXPRESSION AS (a * 20); ALTER TABLE public.v ALTER COLUMN kept SET EXPRESSION AS (a * 40)`,
			`ALTER TABLE public.v RENAME COLUMN a TO b; UPDATE public.v SET b = 5 WHERE id = 2; INSERT INTO public.v (id, b) VALUES (4, 4)`,
			`ALTER TABLE public.v ALTER COLUMN thrice TYPE bigint; INSERT INTO public.v (id, b) VALUES (5, 5)`,
			`ALTER TABLE public.v ALTER COLUMN kept DROP EXPRESSION; UPDATE public.v SET kept = 7; INSERT INTO public.v (id, b, kept) VALUES (6, 6, 6)`,
			`ALTER TABLE public.v DROP COLUMN twice; DELETE FROM public.v WHERE id = 1`,
			`ALTER TABLE public.v DROP COLUMN b CASCADE; INSERT INTO public.v (id) VALUES (7)`,
			`CREATE TABLE public.like_it (LIKE public.v INCLUDING ALL); CREATE TABLE public.p (id int PRIMARY KEY, v int GENERATED ALWAYS AS (id + 1)) PARTITION BY RANGE (id); CREATE TABLE public.p1 PARTITION OF public.p DEFAULT; INSERT INTO public.p VALUES (1)`,
			`ALTER TABLE public.p ALTER COLUMN v SET EXPRESSION AS (id + 2); INSERT INTO public.p VALUES (2)`,
		}},
		{"constraints", 18, []string{
			`CREATE TABLE public.c (id int PRIMARY KEY, a int, b int); INSERT INTO public.c VALUES (1, 1, NULL)`,
			`ALTER TABLE public.c ADD CONSTRAINT positive CHECK (a > 0) NOT ENFORCED; INSERT INTO public.c VALUES (2, -2)`,
			`ALTER TABLE public.c ADD CONSTRAINT there NOT NULL b NOT VALID; INSERT INTO public.c VALUES (3, 3, 3); UPDATE public.c SET b = 0 WHERE b IS NULL; ALTER TABLE public.c VALIDATE CONSTRAINT there`,
			`ALTER TABLE public.c ADD CONSTRAINT here NOT NULL a; ALTER TABLE public.c RENAME CONSTRAINT here TO here2`,
			`CREATE TABLE public.r (id int PRIMARY KEY, c int); ALTER TABLE public.r ADD CONSTRAINT fk FOREIGN KEY (c) REFERENCES public.c NOT ENFORCED; INSERT INTO public.r VALUES (1, 100)`,
			`DELETE FROM public.r; ALTER TABLE public.r ALTER CONSTRAINT fk ENFORCED; INSERT INTO public.r VALUES (1, 1)`,
			`ALTER TABLE public.c DROP CONSTRAINT there, DROP CONSTRAINT positive; INSERT INTO public.c VALUES (5, -5)`,
			`CREATE TABLE public.spans (id int4range, at daterange, v text, PRIMARY KEY (id, at WITHOUT OVERLAPS)); INSERT INTO public.spans VALUES ('[1,2)', '[2024-01-01,2025-01-01)', 'a'), ('[2,3)', '[2024-01-01,2025-01-01)', 'b')`,
			`ALTER TABLE public.spans ADD COLUMN n int DEFAULT 3; UPDATE public.spans SET v = 'c' WHERE id = '[1,2)'; DELETE FROM public.spans WHERE id = '[2,3)'`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMirror(t)
			flotest.RequireVersion(t, m.src, c.version)
			for i, sql := range c.commands {
				m.apart = i%2 == 0
				m.do(sql)
			}
		})
	}
}

// NOT NULL … NOT VALID forbids new nulls at the source, and leaves older ones: so it must not stop the sink.
func TestANotNullThatIsNotValidComesWithItsValidation(t *testing.T) {
	m := newMirror(t)
	flotest.RequireVersion(t, m.src, 18)
	m.same(`CREATE TABLE public.c (id int PRIMARY KEY, a int); INSERT INTO public.c VALUES (1, NULL), (2, 2)`)
	nullable := func(want string) {
		t.Helper()
		if got := m.db.QueryString(t, `SELECT attnotnull FROM pg_attribute WHERE attrelid = 'public.c'::regclass AND attname = 'a'`); got != want {
			t.Fatalf("NOT NULL at the destination: %s, want %s", got, want)
		}
	}
	for _, c := range []struct{ sql, notNull string }{
		{`ALTER TABLE public.c ADD CONSTRAINT there NOT NULL a NOT VALID; INSERT INTO public.c VALUES (3, 3)`, "f"},
		{`ALTER TABLE public.c ADD COLUMN b int DEFAULT 4; UPDATE public.c SET a = 0 WHERE a IS NULL`, "f"},
		{`ALTER TABLE public.c VALIDATE CONSTRAINT there; INSERT INTO public.c VALUES (4, 4)`, "t"},
		{`ALTER TABLE public.c DROP CONSTRAINT there; INSERT INTO public.c VALUES (5, NULL)`, "f"},
	} {
		if err := m.bring(c.sql); err != nil {
			t.Fatal(err)
		}
		nullable(c.notNull)
	}
	m.equal("dropping it")
}
