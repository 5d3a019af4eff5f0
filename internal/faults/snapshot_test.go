//go:build unix

package faults

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/flotest"
)

// A transaction is open while the slot is created, which waits for it and says whose it is; others
// write before, during and behind the slot's consistent point. All of it arrives once: the table
// without a key shows what would come twice.
func TestOpenTransactionOverSlotCreationAndWritersRacingTheCopy(t *testing.T) {
	t.Parallel()
	s := seed(t)
	for round := range brief(runs, 2, 1) {
		t.Run(fmt.Sprint(round), func(t *testing.T) { openTransactionOverSlotCreation(t, s+uint64(round)) })
	}
}

// ownSource is a database on a server of its own: a slot waits for the open transactions of all databases of its server,
// so that two tests that hold some would wait for each other.
func ownSource(t *testing.T) string {
	t.Helper()
	return flotest.NewServer(t).NewDB(t).URL
}

func openTransactionOverSlotCreation(t *testing.T, s uint64) {
	rnd := random(s, 0)
	r := newRig(t, 3*time.Minute, ownSource(t), "")
	r.localNATS()
	r.both(mixedSchema)
	must(t, execute(r.ctx, r.source, `INSERT INTO append_log (writer, n, what) SELECT -1, i, 'before' FROM generate_series(1, 20000) i`))
	l, writing := newLoad(r)
	startMixed(r, l, writing, s, 3)

	holder, err := pgx.Connect(r.ctx, r.source)
	must(t, err)
	defer holder.Close(r.ctx)
	tx, err := holder.Begin(r.ctx)
	must(t, err)
	hold := func(n int) {
		for i := range n {
			_, err := tx.Exec(r.ctx, `INSERT INTO append_log (writer, n, what) VALUES (-2, $1, 'held open')`, i)
			must(t, err)
			_, err = tx.Exec(r.ctx, `INSERT INTO "Mixed Case" (id, note) VALUES ($1, 'held open')`, keys+1+rnd.IntN(1<<40))
			must(t, err)
		}
	}
	hold(1 + rnd.IntN(20))

	repl := r.replicator(childConfig{CopyConnections: 1 + rnd.IntN(3)})
	pg := r.worker(childConfig{})
	who := fmt.Sprint(holder.PgConn().PID())
	must(t, repl.await(r.ctx, "the warning names the open transaction's process "+who, func(s childStatus) bool {
		return strings.Contains(strings.Join(s.Warnings, "\n"), who)
	}))
	must(t, pause(r.ctx, between(rnd, 0, 300*time.Millisecond)))
	hold(1 + rnd.IntN(20))
	if repl.process().last().CopyDone {
		t.Fatal("the copy was done while the transaction was open")
	}
	must(t, tx.Commit(r.ctx))
	r.streams(repl, pg)
	must(t, pause(r.ctx, between(rnd, 0, 300*time.Millisecond)))
	l.finish(r)
	r.catchUp()
	r.equal()
	r.stopAll()
}

// PostgreSQL forgets what transactions do to the catalog while it waits for the oldest ones
// (SNAPBUILD_BUILDING_SNAPSHOT in src/backend/replication/logical/snapbuild.c): a transaction that begins
// behind such a TRUNCATE, and commits behind the slot's consistent point, is decoded with a catalog that
// doesn't know the table's new file, and fails with "could not map filenode". The slot is of no use
// then: flo makes another one while its copy is not done.
func TestSlotThatCannotDecodeIsMadeAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, 3*time.Minute, ownSource(t), "")
	r.localNATS()
	r.both(mixedSchema)
	must(t, execute(r.ctx, r.source, `INSERT INTO append_log (writer, n, what) SELECT -1, i, 'before' FROM generate_series(1, 20000) i`))
	_, slow := newThrottle(t, r.source, 1e6) // the error has to come in mid-copy
	oldest := openTransaction(r, `INSERT INTO append_log (writer) VALUES (-3)`)
	repl := r.replicator(childConfig{Source: slow})
	r.worker(childConfig{})
	awaitWaiter(r, oldest)
	truncate := openTransaction(r, `TRUNCATE scratch`)
	last := openTransaction(r, `INSERT INTO append_log (writer) VALUES (-4)`)
	oldest.commit() // the full snapshot
	awaitWaiter(r, last, truncate)
	truncate.commit()
	across := openTransaction(r, `INSERT INTO scratch VALUES (1, 'across the consistent point')`)
	last.commit() // the consistent point
	must(t, repl.await(r.ctx, "it copies", func(s childStatus) bool { return s.CopyRows > 0 }))
	across.commit()
	r.catchUp()
	r.logf("the replicator was interrupted %d times", repl.process().last().Retries)
	r.equal()
	r.stopAll()
}

// openTx is a transaction that a test holds open at the source.
type openTx struct {
	r   *rig
	tx  pgx.Tx
	xid uint32
}

func openTransaction(r *rig, sql string) *openTx {
	r.t.Helper()
	conn, err := pgx.Connect(r.ctx, r.source)
	must(r.t, err)
	r.t.Cleanup(func() { conn.Close(context.Background()) })
	o := &openTx{r: r}
	o.tx, err = conn.Begin(r.ctx)
	must(r.t, err)
	_, err = o.tx.Exec(r.ctx, sql)
	must(r.t, err)
	must(r.t, o.tx.QueryRow(r.ctx, `SELECT pg_current_xact_id()::xid`).Scan(&o.xid))
	return o
}

func (o *openTx) commit() {
	o.r.t.Helper()
	must(o.r.t, o.tx.Commit(o.r.ctx))
}

// awaitWaiter returns when somebody in the source's database, the slot's creation, waits for the end of one of the transactions.
func awaitWaiter(r *rig, txs ...*openTx) {
	r.t.Helper()
	var xids []string
	for _, o := range txs {
		xids = append(xids, fmt.Sprint(o.xid))
	}
	for !value[bool](r, r.source, `SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
		WHERE datname = current_database() AND locktype = 'transactionid' AND NOT granted AND transactionid::text = ANY($1))`, xids) {
		must(r.t, pause(r.ctx, 5*time.Millisecond))
	}
}
