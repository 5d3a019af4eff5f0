//go:build unix

package faults

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A transaction is open while the slot is created, which waits for it and says whose it is; others
// write before, during and behind the slot's consistent point. All of it arrives once: the table
// without a key shows what would come twice.
func TestOpenTransactionOverSlotCreationAndWritersRacingTheCopy(t *testing.T) {
	s := seed(t)
	for round := range or(runs, 10) {
		t.Run(fmt.Sprint(round), func(t *testing.T) { openTransactionOverSlotCreation(t, s+uint64(round)) })
	}
}

func openTransactionOverSlotCreation(t *testing.T, s uint64) {
	rnd := random(s, 0)
	r := newRig(t, time.Minute, "", "")
	r.localNATS()
	r.both(mixedSchema)
	must(t, execute(r.ctx, r.source, `INSERT INTO append_log (writer, n, what) SELECT -1, i, 'before' FROM generate_series(1, 20000) i`))
	l, writing := newLoad(r, false)
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
