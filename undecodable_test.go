package flo_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/flotest"
)

// Of a transaction that writes to a table behind a TRUNCATE, which came while the slot was being made, PostgreSQL doesn't know
// the table's file (SNAPBUILD_FULL_SNAPSHOT in src/backend/replication/logical/snapbuild.c). The session that made the slot makes
// another one; a later one has the copy behind it.
func TestASlotThatCannotDecodeStopsALaterSession(t *testing.T) {
	long(t)
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t)
	p.use(flotest.NewServer(t).NewDB(t)) // where nobody else's transactions are waited for
	for _, db := range []*flotest.DB{p.src, p.dst} {
		db.Exec(t, smallTable)
		db.Exec(t, `CREATE TABLE scratch (id bigint PRIMARY KEY)`)
	}
	oldest := p.openTransaction(ctx, `INSERT INTO t VALUES (1, 'oldest')`)
	r := p.launch(ctx, flo.WithSink(p.sink()))
	p.slotWaits(ctx)
	truncate := p.openTransaction(ctx, `TRUNCATE scratch`)
	last := p.openTransaction(ctx, `INSERT INTO t VALUES (2, 'last')`)
	oldest() // now the snapshot is full
	p.slotWaits(ctx)
	truncate()
	across := p.openTransaction(ctx, `INSERT INTO scratch VALUES (1)`)
	last() // now it is consistent
	eventually(t, ctx, "the copy is whole", func() bool { return p.f.Status().Replicator.CopyDone })
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	across()
	for range 2 {
		wantStop(t, p.launch(ctx, flo.WithSink(p.sink())).ends(ctx), flo.ErrUndecodable, p.slot(), "WithResync")
	}
	p.startsOver(ctx, "undecodable")
}

// openTransaction begins one, and gives what commits it.
func (p *pipeline) openTransaction(ctx context.Context, sql string) (commit func()) {
	p.t.Helper()
	conn, err := pgx.Connect(ctx, p.src.URL)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close(context.WithoutCancel(ctx)) })
	tx, err := conn.Begin(ctx)
	if err == nil {
		_, err = tx.Exec(ctx, sql)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return func() {
		p.t.Helper()
		if err := tx.Commit(ctx); err != nil {
			p.t.Fatal(err)
		}
	}
}

// slotWaits returns once the slot's creation waits for a transaction, which is another one each time it is called.
func (p *pipeline) slotWaits(ctx context.Context) {
	p.t.Helper()
	waits := `SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = current_database() AND locktype = 'transactionid' AND NOT granted`
	eventually(p.t, ctx, "the slot's creation to wait for a transaction", func() bool { return p.src.QueryString(p.t, waits) != "0" })
}
