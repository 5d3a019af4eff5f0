package flo_test

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/internal/wire"
)

// openedTx is a transaction that a test holds open.
type openedTx struct {
	p    *pipeline
	ctx  context.Context
	conn *pgx.Conn
	xid  string
	n    int
}

// begin opens one that has an XID.
func (p *pipeline) begin(ctx context.Context, n int) *openedTx {
	p.t.Helper()
	o := &openedTx{p: p, ctx: ctx, conn: p.src.Conn(p.t), n: n}
	o.exec(`BEGIN`)
	if err := o.conn.QueryRow(ctx, `SELECT pg_current_xact_id()::xid::text`).Scan(&o.xid); err != nil {
		p.t.Fatal(err)
	}
	return o
}

func (o *openedTx) exec(sql string, args ...any) {
	o.p.t.Helper()
	if _, err := o.conn.Exec(o.ctx, sql, args...); err != nil {
		o.p.t.Fatalf("%s: %v", sql, err)
	}
}

// change writes to both tables more than logical_decoding_work_mem, rolls a part of it back, and goes on.
func (o *openedTx) change() {
	o.p.t.Helper()
	rows := func(note string) {
		o.n++
		o.exec(`INSERT INTO member SELECT $1::int * 10000 + i, repeat($2, 100) FROM generate_series(1, 1200) i`, o.n, note)
		o.exec(`INSERT INTO joining SELECT $1::int, i, repeat($2, 100) FROM generate_series(1, 1200) i`, o.n, note)
	}
	rows("keep")
	o.exec(`SAVEPOINT s`)
	rows("gone")
	o.exec(`UPDATE member SET v = 'gone' WHERE id / 10000 = $1`, o.n)
	o.exec(`ROLLBACK TO s`)
	o.exec(`UPDATE member SET v = v || 'x' WHERE id / 10000 = $1 AND id % 10 = 0`, o.n-1)
}

// holdsUp waits until somebody, the making of a slot, waits for the transaction's end.
func (o *openedTx) holdsUp() {
	o.p.t.Helper()
	conn := o.p.src.Conn(o.p.t)
	eventually(o.p.t, o.ctx, "transaction "+o.xid+" holds a slot up", func() (waits bool) {
		err := conn.QueryRow(o.ctx, `SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
			WHERE datname = current_database() AND locktype = 'transactionid' AND NOT granted AND transactionid::text = $1)`, o.xid).Scan(&waits)
		return err == nil && waits
	})
}

// isStaged waits until a part of the transaction is in the stream, staged since sequence after.
func (o *openedTx) isStaged(after uint64) {
	o.p.t.Helper()
	eventually(o.p.t, o.ctx, "a part of transaction "+o.xid+" is staged", func() bool {
		return slices.ContainsFunc(o.p.messages(o.ctx), func(m stored) bool {
			return m.seq > after && m.head.Kind == wire.Staged && strings.HasSuffix(m.subject, "."+o.xid)
		})
	})
}

var ordinalOf = regexp.MustCompile(`"ordinal":\d+,`)

// linesOf gives a table's streamed changes, without their ordinals: a table that wasn't published yet has none.
func linesOf(t testing.TB, rec *flotest.Recorder, table string) (lines []string) {
	for _, line := range streamedChanges(t, rec) {
		if strings.Contains(line, `"table":"`+table+`"`) {
			lines = append(lines, ordinalOf.ReplaceAllString(line, ""))
		}
	}
	return lines
}

// A table joins at a restart while transactions are streamed that write to it: one that is staged since before the
// round's marker and commits below its snapshot, one that begins while the snapshot is waited for, and one over the
// snapshot. The first two are in the copy, and of the stream only the other table's changes count; the third comes
// by the stream, all of it.
func TestATableJoinsBesideStreamedTransactions(t *testing.T) {
	parallel(t)
	ctx := testContext(t)
	p := newPipeline(t, `CREATE TABLE member (id int PRIMARY KEY, v text)`, `CREATE TABLE joining (tx int, n int, v text)`)
	streamEarly(t, p.src)
	rec := &flotest.Recorder{}
	whole, want := p.whole(ctx)
	start := func(tables ...string) {
		t.Helper()
		p.start(ctx, flo.WithStreaming(true), flo.WithTables(tables...), flo.WithWorker("lines", rec), flo.WithWorker("tables", p.sink()))
	}
	start("member")
	p.catchUp(ctx)
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	before := p.begin(ctx, 100)
	before.change()
	before.isStaged(0)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	before.change()
	start("member", "joining")
	before.holdsUp()
	before.change()
	between := p.begin(ctx, 200)
	between.change()
	before.exec(`COMMIT`) // the full snapshot: what begins now isn't waited for
	between.holdsUp()
	over := p.begin(ctx, 300)
	over.change()
	over.isStaged(0)
	between.exec(`COMMIT`) // the consistent point
	eventually(t, ctx, "the round is copied", func() bool { return p.f.Status().Replicator.CopyDone })
	over.change()
	over.exec(`COMMIT`)
	p.src.Exec(t, `INSERT INTO joining VALUES (400, 1, 'behind it'); INSERT INTO member VALUES (1, 'behind it')`)
	p.catchUp(ctx)
	if err := whole.WaitFor(ctx, p.now()); err != nil {
		t.Fatal(err)
	}
	p.equal(ctx)
	sameLines(t, "member", linesOf(t, rec, "member"), linesOf(t, want, "member"))
	got, all := linesOf(t, rec, "joining"), linesOf(t, want, "joining")
	if len(got) != 2*1200+1 || len(got) > len(all) {
		t.Fatalf("%d streamed rows of the table that joined, of %d: want those of the transaction over the snapshot, and one", len(got), len(all))
	}
	sameLines(t, "joining", got, all[len(all)-len(got):])
	copied := 0
	var last decode.Position
	for _, c := range rec.Changes() {
		if c.Copy != nil {
			copied++
			continue
		}
		if at := c.Position(); at.LSN < last.LSN || at.LSN == last.LSN && at.Ordinal <= last.Ordinal {
			t.Fatalf("%s comes behind %s", at, last)
		}
		last = c.Position()
	}
	if want := 4 * 1200; copied != want {
		t.Errorf("%d copied rows, want the %d of the transactions below the snapshot", copied, want)
	}
	eventually(t, ctx, "they were streamed", func() bool { return p.streamedTxns() != "0" })
	p.noneStaged(ctx)
}
