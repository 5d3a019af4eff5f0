package postgres

import (
	"testing"

	"github.com/pgflo/flo/decode"
)

// A type that the source changes in a way that can't be repeated does not cost the rows of other source tables in the
// same destination table: a fresh copy of the one brings back none of theirs.
func TestARetypeThatCantBeRepeatedSparesTheRowsOfOthers(t *testing.T) {
	m := newMirror(t)
	m.routes = map[string]string{"one": "merged", "two": "merged"}
	if err := m.bring(`CREATE TABLE public.one (id int PRIMARY KEY, v text); CREATE TABLE public.two (id int PRIMARY KEY, v text);
		INSERT INTO public.one VALUES (1, 'a'); INSERT INTO public.two VALUES (2, 'bc')`); err != nil {
		t.Fatal(err)
	}
	var kept []*decode.Change
	m.edited = func(c []*decode.Change) { kept = c }
	m.refused(`ALTER TABLE public.one ALTER COLUMN v TYPE int USING length(v)`, "merged", "other tables", `ALTER COLUMN "v" TYPE integer USING an expression`)
	m.want(`SELECT * FROM merged ORDER BY id`, is("1", "a"), is("2", "bc"))
	m.db.Exec(t, `ALTER TABLE merged ALTER COLUMN v TYPE integer USING length(v)`)
	m.again(kept)
	m.want(`SELECT * FROM merged ORDER BY id`, is("1", "1"), is("2", "2"))
}
