package flo_test

import (
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink/postgres"
)

// role makes a login role of a database and gives the database's URL with it. $role and $db stand for the quoted
// names in the statements.
func role(t testing.TB, db *flotest.DB, name, attributes string, statements ...string) (string, func(sql string) string) {
	t.Helper()
	quoted := fmt.Sprintf("%q", name+"_"+db.Name)
	fill := func(sql string) string {
		return strings.NewReplacer("$role", quoted, "$db", fmt.Sprintf("%q", db.Name)).Replace(sql)
	}
	db.Exec(t, fill(`CREATE ROLE $role LOGIN PASSWORD 'x' `+attributes))
	t.Cleanup(func() { db.Exec(t, fill(`DROP OWNED BY $role CASCADE; DROP ROLE $role`)) })
	for _, s := range statements {
		db.Exec(t, fill(s))
	}
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(name+"_"+db.Name, "x")
	return u.String(), fill
}

// documented gives the statements of a code block of docs/operations.md: the one that begins with this comment.
func documented(t testing.TB, comment string) string {
	t.Helper()
	doc, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), comment+"\n")
	if !ok {
		t.Fatalf("docs/operations.md has no block that begins with %q", comment)
	}
	block, _, _ := strings.Cut(rest, "```")
	return block
}

// asRole takes the role's making out of a documented block, and puts the test's names in.
func asRole(block, name string) string {
	var kept []string
	for _, line := range strings.Split(block, "\n") {
		if !strings.HasPrefix(line, "CREATE ROLE") {
			kept = append(kept, line)
		}
	}
	return strings.NewReplacer(name, "$role", "DATABASE shop ", "DATABASE $db ").Replace(strings.Join(kept, "\n"))
}

// The owner's publication, with a row filter and a column list, is enough for a role with REPLICATION and SELECT.
func TestARoleWithReplicationAndSelectReplicatesWhatTheOwnerPublishes(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE users (id bigint PRIMARY KEY, name text, secret text)`, `CREATE TABLE log (what text)`, `CREATE TABLE other (id int PRIMARY KEY)`)
	flotest.RequireVersion(t, p.src, 15) // row filters and column lists
	p.src.Exec(t, `INSERT INTO users SELECT i, 'user ' || i, 'secret' FROM generate_series(1, 100) i; INSERT INTO log VALUES ('copied'); INSERT INTO other VALUES (1)`)
	p.src.Exec(t, documented(t, "-- at the source, by the owner"))
	source, fill := role(t, p.src, "reader", "REPLICATION", asRole(documented(t, "-- at the source, with the owner's publication"), "flo_source"))
	// Nothing beyond that: least of all what publishing would take.
	if got := p.src.QueryString(t, fill(`SELECT has_database_privilege('`+"reader_"+p.src.Name+`', current_database(), 'CREATE')`)); got != "f" {
		t.Fatal("the role may create publications")
	}
	opts := []flo.Option{flo.WithSource(source), flo.WithPublication("shop_pub", "shop_log")}
	r := p.launch(ctx, append(opts, flo.WithSink(p.sink()))...)
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO users VALUES (1001, 'new', 'secret'), (1002, 'new', 'secret'); UPDATE users SET name = 'changed' WHERE id IN (51, 1); DELETE FROM users WHERE id = 52;
		UPDATE users SET id = 2000 WHERE id = 2; INSERT INTO log VALUES ('streamed'); INSERT INTO other VALUES (2)`)
	p.catchUp(ctx)
	const all = `SELECT id, name FROM users WHERE id > 50 ORDER BY id`
	if want, got := fmt.Sprint(p.src.Query(t, all)), fmt.Sprint(p.dst.Query(t, strings.Replace(all, "WHERE id > 50", "", 1))); got != want {
		t.Errorf("the destination has\n%s\nwant\n%s", got, want)
	}
	if got := p.dst.QueryString(t, `SELECT count(secret) || ' ' || (SELECT count(*) FROM log) || ' ' || (SELECT count(*) FROM other) FROM users`); got != "0 2 0" {
		t.Errorf("secrets, log lines and others: %s", got)
	}
	// The owner changes it while flo runs: what comes is copied, what is lost with that is an error.
	p.src.Exec(t, fill(`GRANT SELECT ON other TO $role; ALTER PUBLICATION shop_pub ADD TABLE other`))
	eventually(t, ctx, "the added table is copied", func() bool { return p.dst.QueryString(t, `SELECT count(*) FROM other`) == "2" })
	p.src.Exec(t, `ALTER PUBLICATION shop_pub SET (publish = 'insert')`)
	wantStop(t, r.ends(ctx), flo.ErrTables, "does not publish update, delete, truncate", "start again")
	p.src.Exec(t, `ALTER PUBLICATION shop_pub SET (publish = 'insert, update, delete, truncate')`)
	if err := p.f.Drop(ctx); err != nil {
		t.Fatal(err)
	}
	if got := p.src.QueryString(t, `SELECT count(*) || ' ' || (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) FROM pg_publication`); got != "2 0" {
		t.Errorf("publications and slots after Drop: %s, want the owner's two and none", got)
	}
}

func TestWithPublicationRefusesWhatItCantUse(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable, keylessTable)
	p.src.Exec(t, `CREATE PUBLICATION all_of_it FOR ALL TABLES`)
	err := p.launch(ctx, flo.WithPublication("all_of_it"), flo.WithSink(p.sink())).ends(ctx)
	wantStop(t, err, flo.ErrTables, "log", "no replica identity", "REPLICA IDENTITY FULL")
	err = p.launch(ctx, flo.WithPublication("absent"), flo.WithSink(p.sink())).ends(ctx)
	wantStop(t, err, flo.ErrSourceSettings, "absent", "CREATE PUBLICATION")
	if n := p.src.QueryString(t, `SELECT count(*) FROM pg_replication_slots WHERE database = current_database()`); n != "0" {
		t.Errorf("%s slots were made", n)
	}
	for _, opts := range [][]flo.Option{{flo.WithPublication()}, {flo.WithPublication("a", "a")}, {flo.WithPublication("")}, {flo.WithPublication("a"), flo.WithTables("t")}} {
		_, err := flo.New(with(opts...)...)
		wantInvalid(t, "WithPublication", err, "WithPublication")
	}
}

// A superuser's FOR ALL TABLES asks nothing more of flo's role; one without REPLICATION or SELECT is told so.
func TestARoleIsToldWhatItLacksForAPublicationOfAllTables(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x'); CREATE PUBLICATION all_of_it FOR ALL TABLES`)
	source, fill := role(t, p.src, "reader", "")
	opts := func() []flo.Option {
		return []flo.Option{flo.WithSource(source), flo.WithPublication("all_of_it"), flo.WithSink(p.sink())}
	}
	wantStop(t, p.launch(ctx, opts()...).ends(ctx), flo.ErrPrivilege, "ALTER ROLE", "REPLICATION")
	p.src.Exec(t, fill(`ALTER ROLE $role REPLICATION`))
	wantStop(t, p.launch(ctx, opts()...).ends(ctx), flo.ErrPrivilege, "GRANT SELECT ON TABLE")
	p.src.Exec(t, fill(`GRANT SELECT ON t TO $role`))
	p.start(ctx, opts()...)
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x')`)
	p.catchUp(ctx)
	p.equal(ctx)
}

// A role that may not read a table, or not publish it, is told what to be granted; with that it works.
func TestTheDocumentedRolesAreEnoughForPublicationsOfTheirOwn(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t)
	// As documented: the tables belong to shop_owner.
	owner, fill := role(t, p.src, "shop_owner", "", `GRANT CREATE ON SCHEMA public TO $role`)
	_ = owner
	p.src.Exec(t, fill(`SET ROLE $role; CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE log (at timestamptz, what text); RESET ROLE; INSERT INTO t VALUES (1, 'x')`))
	p.dst.Exec(t, `CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE log (at timestamptz, what text)`)
	ownerName := "shop_owner_" + p.src.Name
	grants := asRole(documented(t, "-- at the source"), "flo_source")
	source, srcFill := role(t, p.src, "flo_source", "REPLICATION")
	target, dstFill := role(t, p.dst, "flo_target", "")
	try := func(dst string) *run {
		s, err := postgres.New(dst)
		if err != nil {
			t.Fatal(err)
		}
		return p.launch(ctx, flo.WithSource(source), flo.WithSink(s))
	}
	// The replicator alone: a worker beside it might make schema flo before it fails.
	wantStop(t, launch(t, ctx, p.replicator(flo.WithSource(source))).ends(ctx), flo.ErrPrivilege, "GRANT")
	p.src.Exec(t, srcFill(strings.ReplaceAll(grants, "shop_owner", fmt.Sprintf("%q", ownerName))))
	// The destination's role has nothing yet.
	err := try(target).ends(ctx)
	wantStop(t, err, postgres.ErrPrivilege, "GRANT CREATE ON DATABASE", "SetupSQL")
	p.dst.Exec(t, dstFill(asRole(documented(t, "-- at the destination"), "flo_target")))
	r := try(target)
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'y'); UPDATE t SET v = 'z' WHERE id = 1; INSERT INTO log VALUES (now(), 'x')`)
	p.catchUp(ctx)
	p.equal(ctx)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if err := p.f.Drop(ctx); err != nil {
		t.Fatal(err)
	}
}

// Where an administrator has run SetupSQL, the destination's role creates nothing.
func TestADestinationRoleWithoutCreateUsesWhatSetupSQLMade(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.dst.Exec(t, p.sink().SetupSQL())
	target, _ := role(t, p.dst, "flo_target", "", asRole(documented(t, "-- at the destination, after SetupSQL"), "flo_target"))
	s, err := postgres.New(target)
	if err != nil {
		t.Fatal(err)
	}
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'x')`)
	p.start(ctx, flo.WithSink(s))
	p.catchUp(ctx)
	p.src.Exec(t, `INSERT INTO t VALUES (2, 'x'); TRUNCATE t; INSERT INTO t VALUES (3, 'x')`)
	p.catchUp(ctx)
	p.equal(ctx)
}

// Row security: the copy needs BYPASSRLS or ownership; what the role would not see is an error, not a gap.
func TestUnderRowSecurityBypassRLSIsNeededAndEnough(t *testing.T) {
	long(t)
	ctx := testContext(t)
	p := newPipeline(t, smallTable)
	p.src.Exec(t, `INSERT INTO t VALUES (1, 'seen'), (2, 'hidden'); ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY half ON t USING (id = 1);
		CREATE PUBLICATION shop_pub FOR TABLE t`)
	source, fill := role(t, p.src, "reader", "REPLICATION", `GRANT SELECT ON t TO $role`)
	opts := []flo.Option{flo.WithSource(source), flo.WithPublication("shop_pub"), flo.WithSink(p.sink())}
	wantStop(t, p.launch(ctx, opts...).ends(ctx), flo.ErrPrivilege)
	p.src.Exec(t, fill(`ALTER ROLE $role BYPASSRLS`))
	p.start(ctx, flo.WithSource(source), flo.WithPublication("shop_pub"), flo.WithSink(p.sink()))
	p.catchUp(ctx)
	p.equal(ctx)
}
