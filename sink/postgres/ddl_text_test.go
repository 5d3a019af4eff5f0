package postgres

import (
	"testing"

	"github.com/pgflo/flo/decode"
)

// Definitions are taken apart at names, whatever these hold.
func TestDefinitionsAreCutAtNames(t *testing.T) {
	to := decode.Name{Schema: `o"ther`, Name: "New ON table"}
	for _, c := range []struct{ definition, want string }{
		{"CREATE INDEX i ON public.t USING btree (a)", `CREATE INDEX "n" ON "o""ther"."New ON table" USING btree (a)`},
		{`CREATE UNIQUE INDEX " ON ""x" ON ONLY "A.b"."c USING d" USING gin (f(" ON ") public.ops) WHERE (a > ' USING '::text)`,
			`CREATE UNIQUE INDEX "n" ON "o""ther"."New ON table" USING gin (f(" ON ") public.ops) WHERE (a > ' USING '::text)`},
		{"DROP TABLE t; CREATE INDEX i ON t USING btree (a)", ""},
		{"CREATE INDEX i", ""},
		{`CREATE INDEX "i`, ""},
	} {
		got := ""
		if x, ok := parseIndex(c.definition); ok {
			got = x.sql("n", to, false)
		}
		if got != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.definition, got, c.want)
		}
	}
	k, ok := parseForeignKey(`FOREIGN KEY (a, " REFERENCES ""x") REFERENCES "S.p"."par""ent"(id, b) MATCH FULL ON DELETE CASCADE NOT VALID`)
	if !ok || k.other != (decode.Name{Schema: "S.p", Name: `par"ent`}) ||
		k.sql(to) != `FOREIGN KEY (a, " REFERENCES ""x") REFERENCES "o""ther"."New ON table"(id, b) MATCH FULL ON DELETE CASCADE NOT VALID` {
		t.Errorf("%+v %v", k, ok)
	}
	for text, want := range map[string]decode.Name{
		`nextval('public.t_id_seq'::regclass)`:                {Schema: "public", Name: "t_id_seq"},
		`nextval('"S.p"."it''s ""one"""'::regclass)`:          {Schema: "S.p", Name: `it's "one"`},
		`nextval('a.b'::regclass) + nextval('c.d'::regclass)`: {},
		`nextval(('a.b'::text)::regclass)`:                    {},
		`now()`:                                               {},
	} {
		if got, ok := parseNextval(text); ok != (want != decode.Name{}) || ok && got != want {
			t.Errorf("%s: %+v %v", text, got, ok)
		}
	}
}
