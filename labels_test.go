package flo_test

import (
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/rules"
)

func TestALabelAddedToAnEnumIsKnownToItsFilters(t *testing.T) {
	long(t)
	parallel(t)
	for name, c := range map[string]struct {
		condition rules.Condition
		sql       string
	}{
		"equal":           {rules.Eq("m", "ok"), `m = 'ok'`},
		"not equal":       {rules.Ne("m", "ok"), `m <> 'ok'`},
		"in":              {rules.In("m", "sad", "ok"), `m IN ('sad', 'ok')`},
		"above":           {rules.Gt("m", "sad"), `m > 'sad'`},
		"at most":         {rules.Lte("m", "ok"), `m <= 'ok'`},
		"above, a domain": {rules.And(rules.Gt("d", "sad"), rules.Gte("m", "sad")), `d::mood > 'sad' AND m >= 'sad'`},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, `CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN humour AS mood; CREATE TABLE a (id int PRIMARY KEY, m mood, d humour)`)
			p.src.Exec(t, `INSERT INTO a VALUES (1, 'ok', 'ok')`)
			p.start(ctx, flo.WithSink(p.sink()), flo.WithRules(rules.Where(c.condition, rules.PassTruncate())))
			p.catchUp(ctx)
			p.src.Exec(t, `INSERT INTO a VALUES (2, 'sad', 'ok')`)
			p.catchUp(ctx)
			for _, label := range []string{`'glum' BEFORE 'ok'`, `'happy'`} {
				for _, db := range []interface {
					Exec(testing.TB, string, ...any)
				}{p.src, p.dst} {
					db.Exec(t, `ALTER TYPE mood ADD VALUE `+label)
				}
			}
			p.src.Exec(t, `INSERT INTO a VALUES (3, 'glum', 'happy'), (4, 'happy', 'happy'), (5, 'ok', 'glum'); UPDATE a SET m = 'glum' WHERE id = 1`)
			p.catchUp(ctx)
			p.wantRows("after new labels", `SELECT * FROM a WHERE `+c.sql+` ORDER BY id`, `SELECT * FROM a ORDER BY id`)
			if err := p.stop(); err != nil {
				t.Fatal(err)
			}
			p.src.Exec(t, `ALTER TYPE mood ADD VALUE 'last'`)
			p.dst.Exec(t, `ALTER TYPE mood ADD VALUE 'last'`)
			p.src.Exec(t, `INSERT INTO a VALUES (6, 'last', 'last')`)
			// The filter names a label that the stream's description of the table lacks.
			p.start(ctx, flo.WithSink(p.sink()), flo.WithRules(rules.Where(rules.And(c.condition, rules.Ne("m", "last")), rules.PassTruncate())))
			p.src.Exec(t, `INSERT INTO a VALUES (7, 'happy', 'last')`)
			p.catchUp(ctx)
			p.wantRows("after another start", `SELECT * FROM a WHERE `+c.sql+` AND m <> 'last' ORDER BY id`, `SELECT * FROM a ORDER BY id`)
		})
	}
}

func TestALabelThatWasRenamedBehindARowIsSaidToBe(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE a (id int PRIMARY KEY, m mood)`)
	list := flo.WithRules(rules.Where(rules.Gt("m", "sad"), rules.PassTruncate()))
	p.ranOnce(ctx, flo.WithSink(p.sink()), list)
	p.dst.Exec(t, `ALTER TYPE mood ADD VALUE 'happy'`)
	p.src.Exec(t, `ALTER TYPE mood ADD VALUE 'happy'`)
	p.src.Exec(t, `INSERT INTO a VALUES (1, 'happy')`)
	p.src.Exec(t, `ALTER TYPE mood RENAME VALUE 'happy' TO 'glad'`)
	wantStop(t, p.launch(ctx, flo.WithSink(p.sink()), list).ends(ctx), rules.ErrType, `"happy"`, "rename it back")
	p.src.Exec(t, `ALTER TYPE mood RENAME VALUE 'glad' TO 'happy'`)
	p.start(ctx, flo.WithSink(p.sink()), list)
	p.catchUp(ctx)
	p.wantRows("renamed back", `TABLE a`, `TABLE a`)
}

func TestAMisspeltLabelStopsAtTheStart(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE a (id int PRIMARY KEY, m mood)`)
	err := p.launch(ctx, flo.WithSink(p.sink()), flo.WithRules(rules.Where(rules.Eq("m", "okay"), rules.PassTruncate()))).ends(ctx)
	wantStop(t, err, rules.ErrType, `no label "okay"`, `"sad", "ok"`)
}
