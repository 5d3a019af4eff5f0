package flo_test

import (
	"testing"
	"time"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/sink/postgres"
)

// What the owner adds to the publication is copied, whenever that is, and nothing else is copied again.
func TestATableThatTheOwnerAddsToThePublicationIsCopied(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	const tables = `CREATE TABLE t (id bigint PRIMARY KEY, v text); CREATE TABLE busy (id bigint PRIMARY KEY, v text);
		CREATE TABLE quiet (id bigint PRIMARY KEY, v text); CREATE TABLE later (id bigint PRIMARY KEY, v text)`
	p := newPipeline(t, tables)
	for _, table := range []string{"t", "busy", "quiet", "later"} {
		p.src.Exec(t, `INSERT INTO `+table+` SELECT i, 'old' FROM generate_series(1, 100) i`)
	}
	p.src.Exec(t, `CREATE PUBLICATION shop_pub FOR TABLE t`)
	start := func() *run {
		return p.launch(ctx, flo.WithPublication("shop_pub"), flo.WithIdleInterval(100*time.Millisecond), flo.WithSink(p.sink(postgres.WithReplicaRole())))
	}
	published := []string{"public.t"}
	want := func(attempts map[string]string) {
		t.Helper()
		p.catchUp(ctx)
		p.equal(ctx, published...)
		got := p.attempts()
		for table, attempt := range attempts {
			if got[table] != attempt {
				t.Errorf("copied by attempts %v, want %v", got, attempts)
			}
		}
	}
	r := start()
	want(map[string]string{"t": "1"})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	// A start that finds what it knows copies nothing.
	r = start()
	want(map[string]string{"t": "1"})

	// Rows that are not copied yet are changed at once; WithReplicaRole would not let that pass.
	p.src.Exec(t, `ALTER PUBLICATION shop_pub ADD TABLE busy`)
	p.src.Exec(t, `UPDATE busy SET v = 'new' WHERE id < 10; DELETE FROM busy WHERE id > 90; INSERT INTO busy VALUES (1000, 'new'); UPDATE t SET v = 'new' WHERE id = 1`)
	published = append(published, "public.busy")
	eventually(t, ctx, "the table is copied", func() bool { r.running(); return p.attempts()["busy"] != "" })
	want(map[string]string{"t": "1", "busy": "2"})

	// One that nobody writes to is found, too.
	p.src.Exec(t, `ALTER PUBLICATION shop_pub ADD TABLE quiet`)
	published = append(published, "public.quiet")
	eventually(t, ctx, "the quiet table is copied", func() bool { r.running(); return p.attempts()["quiet"] != "" })
	want(map[string]string{"t": "1", "busy": "2", "quiet": "3"})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}

	// While nobody looks, a table is added, and another one leaves and comes back.
	p.src.Exec(t, `ALTER PUBLICATION shop_pub DROP TABLE quiet`)
	p.src.Exec(t, `DELETE FROM quiet WHERE id < 50; UPDATE quiet SET v = 'unseen'`)
	p.src.Exec(t, `ALTER PUBLICATION shop_pub ADD TABLE quiet, later`)
	p.src.Exec(t, `UPDATE later SET v = 'new' WHERE id < 10; UPDATE busy SET v = 'newer' WHERE id < 5; DELETE FROM quiet WHERE id < 60`)
	published = append(published, "public.later")
	r = start()
	eventually(t, ctx, "both are copied", func() bool { r.running(); return p.attempts()["later"] != "" && p.attempts()["quiet"] == "4" })
	want(map[string]string{"t": "1", "busy": "2", "quiet": "4", "later": "4"})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}
