package flo_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/rules"
	"github.com/pgflo/flo/sink/postgres"
)

// wantRows compares what a statement gives at the source with what another gives at the destination.
func (p *pipeline) wantRows(what, source, destination string) {
	p.t.Helper()
	want, got := p.src.Query(p.t, source), p.dst.Query(p.t, destination)
	text := func(rows [][]string) string {
		var lines []string
		for _, r := range rows {
			lines = append(lines, strings.Join(r, "|"))
		}
		return strings.Join(lines, "\n")
	}
	if w, g := text(want), text(got); w != g {
		p.t.Fatalf("%s: the destination has\n%.2000s\nwant\n%.2000s", what, g, w)
	}
}

// churn changes rows in all ways that a filter on age has to follow.
var churn = []string{
	`UPDATE people SET age = age + 3 WHERE id % 3 = 0`,              // some come in
	`UPDATE people SET age = NULL WHERE id % 17 = 0`,                // some leave
	`UPDATE people SET name = name || '日本' WHERE id % 5 = 0`,        // some stay, large values unchanged
	`UPDATE people SET id = id + 10000 WHERE id % 7 = 0`,            // other keys
	`UPDATE people SET id = id + 20000, age = 40 WHERE id % 11 = 0`, // other keys, coming in
	`UPDATE people SET id = id + 40000, age = 4 WHERE id % 13 = 0`,  // other keys, leaving
	`DELETE FROM people WHERE id % 19 = 0`,                          //
	`BEGIN; UPDATE people SET age = 1; UPDATE people SET age = id % 60; COMMIT`,
	`INSERT INTO people (id, name, age) SELECT i, 'late ' || i, i % 50 FROM generate_series(90000, 90200) i`,
}

func TestMaskExcludeWhereAndRouteMakeTheDestinationTheFilteredSource(t *testing.T) {
	const source = `CREATE TABLE people (id int PRIMARY KEY, name text, ssn text, age int, note text)`
	const destination = `CREATE SCHEMA crm; CREATE TABLE crm.customers (customer_id int PRIMARY KEY, full_name text, age int, note text)`
	const want = `SELECT id, CASE WHEN length(name) < 3 THEN repeat('*', length(name))
			ELSE left(name, 1) || repeat('*', length(name) - 2) || right(name, 1) END, age, md5(note)
		FROM people WHERE age >= 30 ORDER BY id`
	const got = `SELECT customer_id, full_name, age, md5(note) FROM crm.customers ORDER BY 1`
	list := []rules.Rule{
		rules.Route("people", "crm.customers", rules.RenameColumn("id", "customer_id"), rules.RenameColumn("name", "full_name"), rules.PassTruncate()),
		rules.Table("people", rules.Where(rules.Gte("age", 30), rules.PassTruncate()), rules.Mask("name"), rules.Exclude("ssn")),
	}
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, source)
	p.src.Exec(t, `ALTER TABLE people REPLICA IDENTITY FULL`)
	p.dst.Exec(t, destination)
	p.src.Exec(t, `INSERT INTO people SELECT i, CASE WHEN i % 4 = 0 THEN 'Ä' ELSE 'naïve ' || i || ' 🙂' END, 'secret ' || i, i % 60,
		CASE WHEN i % 10 = 0 THEN (SELECT string_agg(md5((i * j)::text), '') FROM generate_series(1, 300) j) END FROM generate_series(1, 1000) i`)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithRules(list...))
	p.catchUp(ctx)
	p.wantRows("after the copy", want, got)
	for _, sql := range churn {
		p.src.Exec(t, sql)
		p.catchUp(ctx)
		p.wantRows(sql, want, got)
	}
	p.src.Exec(t, `TRUNCATE people; INSERT INTO people (id, age) VALUES (1, 30), (2, 29)`)
	p.catchUp(ctx)
	p.wantRows("after TRUNCATE", want, got)
}

func TestWhereFollowsATableThatHasOnlyItsKeyAsOldRow(t *testing.T) {
	long(t)
	for name, unique := range map[string]string{"with the key at the destination": "PRIMARY KEY", "without an index there": ""} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t)
			p.src.Exec(t, `CREATE TABLE people (id int PRIMARY KEY, name varchar(5), age int)`)
			p.dst.Exec(t, `CREATE TABLE people (id int `+unique+`, name varchar(5), age int)`)
			p.src.Exec(t, `INSERT INTO people SELECT i, 'n' || i, i % 60 FROM generate_series(1, 500) i`)
			p.start(ctx, flo.WithSink(p.sink(postgres.WithTolerated(postgres.MisfitKey))), flo.WithRules(rules.Where(rules.And(rules.Gte("age", 30), rules.Ne("age", 35)), rules.PassTruncate())))
			const want, got = `SELECT * FROM people WHERE age >= 30 AND age <> 35 ORDER BY id`, `SELECT * FROM people ORDER BY id`
			for _, sql := range churn {
				sql = strings.NewReplacer("name || '日本'", "'日本'", "'late ' || i", "'late'").Replace(sql)
				p.src.Exec(t, sql)
				p.catchUp(ctx)
				p.wantRows(sql, want, got)
			}
		})
	}
}

func TestWhereFollowsRandomChanges(t *testing.T) {
	long(t)
	seed := flotest.Seed(t)
	r := rand.New(rand.NewPCG(seed, 2))
	ctx := testContext(t)
	p := newPipeline(t)
	const columns = ` (id int PRIMARY KEY, n int, at timestamptz, tag varchar(5))`
	p.src.Exec(t, `CREATE TABLE by_key`+columns+`; CREATE TABLE by_row`+columns+`; ALTER TABLE by_row REPLICA IDENTITY FULL; ALTER TABLE by_row ADD note text`)
	p.dst.Exec(t, `CREATE TABLE by_key`+columns+`; CREATE TABLE by_row`+columns+`; ALTER TABLE by_row ADD note text`)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithRules(rules.Where(rules.And(
		rules.Or(rules.Gt("n", 50), rules.Eq("tag", "é")), rules.Lt("at", "2024-06-01T02:00:00+02:00")), rules.PassTruncate())))
	const where = ` WHERE (n > 50 OR tag = 'é') AND at < '2024-06-01 00:00:00+00' ORDER BY id`
	values := func(id string) string {
		return fmt.Sprintf(`%s, nullif((random() * 100)::int, %d), nullif('2024-05-31 23:00:00+00'::timestamptz + random() * interval '2 h', NULL), nullif((ARRAY['é', 'e', '', 'x'])[1 + (random() * 3)::int], 'x')`, id, r.IntN(100))
	}
	p.src.Exec(t, fmt.Sprintf(`SELECT setseed(%f)`, r.Float64()))
	for i := range 60 {
		m, k := 2+r.IntN(7), r.IntN(7)
		sql := []string{
			fmt.Sprintf(`INSERT INTO %%[1]s (id, n, at, tag) SELECT %s FROM generate_series(%d, %d) i`, values("i"), i*100, i*100+r.IntN(60)),
			fmt.Sprintf(`UPDATE %%[1]s SET (n, at, tag) = (SELECT n, at, tag FROM (SELECT %s) x (id, n, at, tag) WHERE %%[1]s.id IS NOT NULL) WHERE id %% %d = %d`, values("0"), m, k%m),
			fmt.Sprintf(`UPDATE %%[1]s SET id = -id - 1, n = 100 - n WHERE id %% %d = %d AND NOT EXISTS (SELECT FROM %%[1]s y WHERE y.id = -%%[1]s.id - 1)`, m, k%m),
			fmt.Sprintf(`DELETE FROM %%[1]s WHERE id %% %d = %d`, 10*m, k),
			`UPDATE %[1]s SET tag = 'é' WHERE tag IS NULL`,
		}[r.IntN(5)]
		for _, table := range []string{"by_key", "by_row"} {
			p.src.Exec(t, strings.ReplaceAll(strings.ReplaceAll(sql, "%[1]s", table), "%%", "%"))
		}
		if i%15 == 3 {
			p.src.Exec(t, `UPDATE by_row SET note = (SELECT string_agg(md5((id * j)::text), '') FROM generate_series(1, 200) j) WHERE id % 20 = 0`)
		}
		if i%20 == 19 {
			p.catchUp(ctx)
			p.wantRows("by key", `SELECT * FROM by_key`+where, `SELECT * FROM by_key ORDER BY id`)
			p.wantRows("by row", `SELECT id, n, at, tag, md5(note) FROM by_row`+where, `SELECT id, n, at, tag, md5(note) FROM by_row ORDER BY id`)
		}
	}
	if p.dst.QueryString(t, `SELECT count(*) > 5 FROM by_key`) != "true" && p.dst.QueryString(t, `SELECT count(*) > 5 FROM by_key`) != "t" {
		t.Error("hardly a row matched: the test shows little")
	}
}

func TestAPartitionIsMaskedByItsRootsName(t *testing.T) {
	ctx := testContext(t)
	p := newPipeline(t)
	for _, db := range []*flotest.DB{p.src, p.dst} {
		db.Exec(t, `CREATE TABLE users (id int, name text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
			CREATE TABLE users_1 PARTITION OF users FOR VALUES FROM (0) TO (100);
			CREATE TABLE users_x PARTITION OF users FOR VALUES FROM (100) TO (300) PARTITION BY RANGE (id);
			CREATE TABLE users_2 PARTITION OF users_x FOR VALUES FROM (100) TO (300);
			CREATE TABLE everyone (id int PRIMARY KEY, name text)`)
	}
	p.src.Exec(t, `INSERT INTO users SELECT i, 'margaret' FROM generate_series(1, 200) i`)
	p.start(ctx, flo.WithSink(p.sink()), flo.WithTables("public.users"), flo.WithRules(
		rules.Table("public.users", rules.Mask("name")),
		rules.Route("users", "everyone", rules.Only(decode.OpInsert, decode.OpUpdate, decode.OpDelete)),
	))
	p.src.Exec(t, `INSERT INTO users SELECT i, 'josephine' FROM generate_series(201, 250) i; UPDATE users SET id = id + 250 WHERE id BETWEEN 40 AND 45; UPDATE users SET name = 'renée' WHERE id % 9 = 0`)
	p.catchUp(ctx)
	p.wantRows("all partitions", `SELECT id, left(name, 1) || repeat('*', length(name) - 2) || right(name, 1) FROM users ORDER BY id`, `SELECT id, name FROM everyone ORDER BY id`)
	p.src.Exec(t, `TRUNCATE users_1`)
	p.src.Exec(t, `INSERT INTO users VALUES (1, 'anna')`)
	p.catchUp(ctx)
	if n := p.dst.QueryString(t, `SELECT count(*) FROM everyone WHERE id < 100`); n == "1" {
		t.Error("a TRUNCATE that the route leaves out came through")
	}
}

func TestTenantsMeetInOneTable(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.dst.Exec(t, `CREATE SCHEMA "all"; CREATE TABLE "all".orders (tenant text, id int, PRIMARY KEY (tenant, id))`)
	for _, tenant := range []string{"a", "b", "c"} {
		p.src.Exec(t, `CREATE SCHEMA tenant_`+tenant+`; CREATE TABLE tenant_`+tenant+`.orders (tenant text DEFAULT '`+tenant+`', id int, PRIMARY KEY (tenant, id));
			INSERT INTO tenant_`+tenant+`.orders (id) SELECT generate_series(1, 500)`)
	}
	p.start(ctx, flo.WithSink(p.sink()), flo.WithTables("tenant_*.*"), flo.WithRules(rules.Route(`(tenant_.*).(.*)`, `all.$2`, rules.DropTruncate())))
	p.src.Exec(t, `UPDATE tenant_b.orders SET id = -id WHERE id < 10; DELETE FROM tenant_c.orders WHERE id > 100; INSERT INTO tenant_a.orders (id) VALUES (777)`)
	p.catchUp(ctx)
	p.wantRows("all tenants", `SELECT * FROM (TABLE tenant_a.orders UNION ALL TABLE tenant_b.orders UNION ALL TABLE tenant_c.orders) x ORDER BY 1, 2`, `SELECT * FROM "all".orders ORDER BY 1, 2`)
}

func TestRulesThatDoNotFitStopTheWorkerBeforeItsFirstRow(t *testing.T) {
	long(t)
	for name, c := range map[string]struct {
		rule rules.Rule
		want error
	}{
		"type":   {rules.Filter(rules.Gte("age", "old"), rules.DropTruncate()), rules.ErrType},
		"column": {rules.Table("people", rules.Mask("nmae")), rules.ErrNoColumn},
		"key":    {rules.Table("people", rules.Exclude("id")), rules.ErrKeyColumn},
		"full":   {rules.Where(rules.Gte("age", 30), rules.PassTruncate()), rules.ErrNeedsFull},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, `CREATE TABLE people (id int PRIMARY KEY, name text, age int)`, `CREATE TABLE aaa (id int PRIMARY KEY)`)
			p.src.Exec(t, `INSERT INTO people VALUES (1, 'x', 1); INSERT INTO aaa VALUES (1)`)
			err := p.launch(ctx, flo.WithSink(p.sink()), flo.WithRules(c.rule)).ends(ctx)
			var bind *rules.BindError
			if !errors.Is(err, c.want) || !errors.As(err, &bind) || bind.Table.Name != "people" {
				t.Fatal(err)
			}
			if n := p.dst.QueryString(t, `SELECT (SELECT count(*) FROM people) + (SELECT count(*) FROM aaa)`); n != "0" {
				t.Errorf("%s rows were written", n)
			}
		})
	}
}

func TestATruncateUnderAFilterDoesWhatTheRulesSay(t *testing.T) {
	adult := rules.Gte("age", 18)
	only := rules.Route("people", "public.people", rules.Only(decode.OpInsert, decode.OpUpdate, decode.OpDelete))
	file, err := rules.Load(strings.NewReader(`tables: {people: [{type: filter, column: age, parameters: {operator: gte, value: 18}, operations: [INSERT, UPDATE]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		rules []rules.Rule
		left  string // rows at the destination
	}{
		"passes":            {[]rules.Rule{rules.Filter(adult, rules.PassTruncate())}, "1"},
		"dropped":           {[]rules.Rule{rules.Filter(adult, rules.DropTruncate())}, "2"},
		"dropped by route":  {[]rules.Rule{rules.Filter(adult), only}, "2"},
		"dropped in a file": {file, "2"},
		"not the filter's":  {[]rules.Rule{rules.On(rules.Filter(adult), decode.OpInsert)}, "1"},
		"no filter, no say": {[]rules.Rule{rules.Mask("name")}, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			p := newPipeline(t, `CREATE TABLE people (id int PRIMARY KEY, name text, age int)`)
			p.launch(ctx, flo.WithSink(p.sink(postgres.WithMissingRowsCounted())), flo.WithRules(c.rules...))
			p.src.Exec(t, `INSERT INTO people VALUES (1, 'x', 20)`)
			p.catchUp(ctx)
			p.src.Exec(t, `BEGIN; TRUNCATE people; INSERT INTO people VALUES (2, 'y', 20); COMMIT`)
			p.catchUp(ctx)
			if n := p.dst.QueryString(t, `SELECT count(*) FROM people`); n != c.left {
				t.Errorf("%s rows, want %s", n, c.left)
			}
		})
	}
}

func TestAFilterThatDoesNotSayWhatATruncateMeansIsRefusedAtTheStart(t *testing.T) {
	long(t)
	filter := rules.Filter(rules.Gte("age", 18))
	words := []string{"people", `Filter("age" >= "18")`, "PassTruncate()", "DropTruncate()"}
	t.Run("by New", func(t *testing.T) {
		p := newPipeline(t)
		_, err := flo.New(p.options(flo.WithSink(p.sink()), flo.WithRules(rules.Table("people", filter)))...)
		wantStop(t, err, rules.ErrTruncate, words...)
	})
	t.Run("when the table is met", func(t *testing.T) { // only then is it known that the route is another table's
		ctx := testContext(t)
		p := newPipeline(t, `CREATE TABLE people (id int PRIMARY KEY, name text, age int)`, `CREATE TABLE orders (id int PRIMARY KEY)`)
		p.src.Exec(t, `INSERT INTO people VALUES (1, 'x', 20); INSERT INTO orders VALUES (1)`)
		err := p.launch(ctx, flo.WithSink(p.sink()), flo.WithRules(filter, rules.Route("orders", "orders", rules.DropTruncate()))).ends(ctx)
		wantStop(t, err, rules.ErrTruncate, words...)
		var bind *rules.BindError
		if !errors.As(err, &bind) || bind.Table.Name != "people" {
			t.Error(err)
		}
		if n := p.dst.QueryString(t, `SELECT (SELECT count(*) FROM people) + (SELECT count(*) FROM orders)`); n != "0" {
			t.Errorf("%s rows were written", n)
		}
	})
}

func TestARouteAloneLeavesTheCopyUnparsed(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.src.Exec(t, `CREATE TABLE t (id int PRIMARY KEY, "odd.Name" text)`)
	p.dst.Exec(t, `CREATE SCHEMA x; CREATE TABLE x."T 2" ("odd.Name 2" text, id int PRIMARY KEY)`)
	p.src.Exec(t, `INSERT INTO t SELECT i, E'a\tb\\\n' || i FROM generate_series(1, 2000) i`)
	routes, err := rules.LoadRoutes(strings.NewReader(`t: {source_table: t, destination_table: 'x."T 2"', column_mappings: [{source: odd.Name, destination: odd.Name 2}], operations: [INSERT, DELETE]}`))
	if err != nil {
		t.Fatal(err)
	}
	p.start(ctx, flo.WithSink(p.sink()), flo.WithRules(routes...))
	p.catchUp(ctx)
	p.src.Exec(t, `DELETE FROM t WHERE id % 2 = 0; INSERT INTO t VALUES (-1, NULL)`)
	p.catchUp(ctx)
	p.wantRows("routed", `SELECT id, "odd.Name" FROM t ORDER BY id`, `SELECT id, "odd.Name 2" FROM x."T 2" ORDER BY id`)
	p.src.Exec(t, `UPDATE t SET "odd.Name" = 'dropped' WHERE id = 1`)
	p.catchUp(ctx)
	if n := p.dst.QueryString(t, `SELECT count(*) FROM x."T 2" WHERE "odd.Name 2" = 'dropped'`); n != "0" {
		t.Error("an update came through a route without UPDATE")
	}
}
