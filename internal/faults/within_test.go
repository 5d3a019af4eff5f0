//go:build unix

package faults

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/internal/crashpoint"
)

// smallMessages is a max_payload with which little is staged at a time.
const smallMessages = 64 << 10

// stagedOf gives how many messages of a transaction each session has staged in the stream, by their subjects.
func (r *rig) stagedOf(js jetstream.JetStream, tx *openTx) map[string]uint64 {
	r.t.Helper()
	s, err := js.Stream(r.ctx, "flo_"+r.group)
	must(r.t, err)
	prefix := strings.TrimSuffix(s.CachedInfo().Config.Subjects[0], ">")
	info, err := s.Info(r.ctx, jetstream.WithSubjectFilter(prefix+"staged.*."+fmt.Sprint(tx.xid)))
	must(r.t, err)
	return info.State.Subjects
}

// awaitStaged waits until more of a transaction is staged than before.
func (r *rig) awaitStaged(js jetstream.JetStream, tx *openTx, before map[string]uint64) {
	r.t.Helper()
	for {
		for subject, n := range r.stagedOf(js, tx) {
			if n > before[subject] {
				return
			}
		}
		must(r.t, pause(r.ctx, 10*time.Millisecond))
	}
}

func (r *rig) jetStream() jetstream.JetStream {
	r.t.Helper()
	nc, err := nats.Connect(r.nats)
	must(r.t, err)
	r.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(r.t, err)
	return js
}

func (o *openTx) exec(sql string, args ...any) {
	o.r.t.Helper()
	_, err := o.tx.Exec(context.WithoutCancel(o.r.ctx), sql, args...)
	must(o.r.t, err)
}

// bulk writes so many rows of about 300 bytes.
func (o *openTx) bulk(note string, rows int) {
	o.r.t.Helper()
	o.exec(`INSERT INTO append_log (writer, n, what) SELECT -9, i, repeat($1, 30) || i FROM generate_series(1, $2::int) i`, note[:min(len(note), 8)], rows)
}

// Replicator and workers are killed within a transaction that is streamed before its commit: while it is open, between
// the end of what is staged and its record, and while the workers apply it in parts.
func TestKilledWithinAStreamedTransaction(t *testing.T) {
	t.Parallel()
	s := seed(t)
	rnd := random(s, 0)
	r := newRig(t, runLimit, "", "")
	r.exe = childBinary(t)
	r.natsProcessOf(childConfig{MaxPayload: smallMessages})
	r.both(mixedSchema)
	must(t, streamEarly(r.ctx, r.source))
	o := newOracle(r)
	folder := t.TempDir()
	repl := r.replicator(childConfig{Streaming: true})
	pg := r.worker(childConfig{BatchSize: 50})
	lines := r.worker(childConfig{Name: "file", Folder: folder, BatchSize: 50})
	r.streams(repl, pg, lines)
	js := r.jetStream()
	dies := func(m *member) {
		t.Helper()
		select {
		case <-m.process().exited:
		case <-r.ctx.Done():
			t.Fatalf("%s never got there: %+v", m.cfg.Name, m.process().last())
		}
		must(t, m.start())
	}
	for round := range brief(runs, 2, 1) {
		tx := openTransaction(r, `INSERT INTO append_log (writer, n) VALUES (-9, 0)`)
		for range 2 { // twice killed while it is open
			before := r.stagedOf(js, tx)
			tx.bulk("kept", 1000)
			tx.exec(`SAVEPOINT s`)
			tx.bulk("not kept", 500)
			if rnd.IntN(2) == 0 {
				tx.exec(`INSERT INTO scratch VALUES ($1, 'not kept')`, -round)
			}
			tx.exec(`ROLLBACK TO s`)
			tx.bulk("kept too", 500)
			r.awaitStaged(js, tx, before)
			must(t, execute(r.ctx, r.source, `INSERT INTO append_log (writer, what) VALUES (-10, 'beside it')`))
			repl.kill()
			must(t, repl.start())
		}
		must(t, repl.await(r.ctx, "it streams", func(s childStatus) bool { return s.Phase == flo.PhaseStreaming }))
		repl.kill()
		must(t, repl.startArmed(string(crashpoint.StagedEnded)+":1"))
		before := r.stagedOf(js, tx) // what the source had sent, and flo confirmed, comes again at the commit, unstaged
		tx.bulk("kept at last", 1000)
		r.awaitStaged(js, tx, before)
		pg.kill()
		must(t, pg.startArmed(string(crashpoint.PartWritten)+":20"))
		lines.kill()
		must(t, lines.startArmed(string(crashpoint.PartWritten)+":30"))
		tx.commit()
		dies(repl)
		dies(pg)
		dies(lines)
		for range 2 { // again, in mid-transaction, unless it is faster
			for _, m := range []*member{pg, lines} {
				must(t, pause(r.ctx, between(rnd, 0, 100*time.Millisecond)))
				m.kill()
				must(t, m.start())
			}
		}
		tx = openTransaction(r, `INSERT INTO append_log (writer, n) VALUES (-11, 0)`)
		tx.bulk("rolled back", 1000)
		before = r.stagedOf(js, tx)
		repl.kill()
		must(t, repl.startArmed(string(crashpoint.Staged)+":1"))
		dies(repl)
		r.awaitStaged(js, tx, before)
		must(t, tx.tx.Rollback(r.ctx))
	}
	r.catchUp()
	r.logKills()
	r.equal()
	r.stopAll()
	o.provesHistory(r, folder, func(url string) { must(t, execute(r.ctx, url, mixedSchema)) })
}

// A copy is cut short while transactions are streamed: one that is open since before the round that goes on with it, and
// commits before its snapshot; one that begins while the snapshot is waited for; and one over it.
func TestKilledInMidCopyBesideStreamedTransactions(t *testing.T) {
	t.Parallel()
	r := newRig(t, runLimit, "", "")
	r.natsProcessOf(childConfig{MaxPayload: smallMessages})
	r.both(mixedSchema + copySchema)
	must(t, streamEarly(r.ctx, r.source))
	must(t, execute(r.ctx, r.source, copyFill))
	way, slow := newThrottle(t, r.source, 2*copyRate)
	repl := r.replicator(childConfig{Source: slow, CopyConnections: 1, Streaming: true})
	pg := r.worker(childConfig{BatchSize: 100})
	copying := func(s childStatus) bool { return !s.CopyDone && s.CopyRows > 0 && s.RangesDone < s.Ranges }
	n := 0 // so that no two of them meet
	change := func(tx *openTx) {
		t.Helper()
		tx.bulk("streamed", 500)
		for _, table := range []string{"large_0", "large_5", `"Large Keyless"`} {
			n++
			sql := `INSERT INTO ` + table + ` SELECT 1000000 * $1::bigint + i, repeat(md5(i::text), 10) FROM generate_series(1, 300) i`
			tx.exec(sql, 2*n)
			tx.exec(`SAVEPOINT s`)
			tx.exec(sql, 2*n+1)
			tx.exec(`ROLLBACK TO s`)
		}
		tx.exec(`UPDATE large_5 SET v = v || 'x' WHERE id % 100 = $1`, n%100)
	}
	again := func() {
		t.Helper()
		repl.kill()
		// The session that makes the slot waits for a lock, and doesn't see that its client is gone.
		must(t, execute(r.ctx, r.source, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'walsender'`))
		for value[bool](r, r.source, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'walsender')`) {
			must(t, pause(r.ctx, 5*time.Millisecond))
		}
		must(t, repl.start())
	}
	must(t, repl.await(r.ctx, "it copies", copying))
	old := openTransaction(r, `INSERT INTO append_log (writer) VALUES (-3)`)
	js := r.jetStream()
	change(old)
	r.awaitStaged(js, old, nil)
	must(t, repl.await(r.ctx, "it still copies", copying))
	pg.kill()
	again()
	must(t, pg.start())
	awaitWaiter(r, old)
	change(old)
	between := openTransaction(r, `INSERT INTO append_log (writer) VALUES (-4)`)
	change(between)
	old.commit() // the full snapshot
	awaitWaiter(r, between)
	change(between)
	again() // one more round
	awaitWaiter(r, between)
	mid := openTransaction(r, `INSERT INTO append_log (writer) VALUES (-5)`)
	change(mid)
	between.commit()
	awaitWaiter(r, mid)
	across := openTransaction(r, `INSERT INTO append_log (writer) VALUES (-6)`)
	change(across)
	r.awaitStaged(js, across, nil)
	mid.commit() // the consistent point
	must(t, repl.await(r.ctx, "it copies again", func(s childStatus) bool { return s.CopyRows > 0 }))
	pg.kill()
	must(t, pg.start())
	change(across)
	way.set(weather{})
	across.commit()
	r.catchUp()
	r.logKills()
	r.equal()
	r.stopAll()
}
