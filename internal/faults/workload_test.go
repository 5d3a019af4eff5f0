//go:build unix

package faults

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/flotest"
)

// load is what writes to the source until it is told to stop.
type load struct {
	truncates atomic.Bool   // off while tables are copied: each one sends the table through another copy
	large     int           // rows of the largest transactions
	pace      time.Duration // a writer's longest wait between two transactions
	tires     int64         // after so many transactions a writer waits twice as long, and so on
	more      bool          // moreSchema is there
	streaming bool          // transactions that are sent before they end

	wg   sync.WaitGroup
	stop context.CancelFunc
	fail func(error)

	commits   atomic.Int64 // acknowledged to the writers of the mixed tables
	rollbacks atomic.Int64 // whole transactions: by choice, or refused by the server
	lost      atomic.Int64 // connections lost
	pgbench   atomic.Int64
	altered   atomic.Int64 // schema changes committed
}

// newLoad makes a load that ends with the rig's run at the latest.
func newLoad(r *rig) (*load, context.Context) {
	ctx, cancel := context.WithCancel(r.ctx)
	l := &load{stop: cancel, fail: r.fail, large: 12_000, pace: 10 * time.Millisecond, tires: 300}
	r.t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l, ctx
}

// finish stops the writers, waits for them, and says what they did.
func (l *load) finish(r *rig) {
	l.stop()
	l.wg.Wait()
	r.logf("written: %d mixed transactions (%d rolled back, %d connections lost), %d of pgbench",
		l.commits.Load(), l.rollbacks.Load(), l.lost.Load(), l.pgbench.Load())
}

// The mixed tables: names in mixed case, TOAST, a key of two columns, no key at all, one that is truncated.
const mixedSchema = `
CREATE TABLE "Mixed Case" (id bigint PRIMARY KEY, "Wide Text" text, n int NOT NULL DEFAULT 0, note text);
CREATE TABLE pairs (a int, b text, v numeric, doc jsonb, PRIMARY KEY (a, b));
CREATE TABLE append_log (at timestamptz NOT NULL DEFAULT clock_timestamp(), writer int, n bigint, what text);
CREATE TABLE scratch (id bigint PRIMARY KEY, v text);
CREATE TABLE scratch_too (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v text);`

// startPgbench makes pgbench's tables on both sides, fills the source's, and runs the default script
// on it, at a rate that leaves the machine some air.
func startPgbench(r *rig, l *load, ctx context.Context, rate int) {
	r.t.Helper()
	for url, steps := range map[string]string{r.source: "dtgp", r.dest: "dtp"} {
		if out, err := flotest.RunPgbench(ctx, url, "-i", "-q", "-I", steps); err != nil {
			r.t.Fatalf("pgbench -i: %v\n%s", err, out)
		}
	}
	const perRun = 100
	l.wg.Go(func() {
		for ctx.Err() == nil {
			out, err := flotest.RunPgbench(context.WithoutCancel(ctx), r.source, "-n", "-c", "2", "-t", fmt.Sprint(perRun/2), "-R", fmt.Sprint(rate))
			if err != nil {
				l.fail(fmt.Errorf("pgbench: %w\n%s", err, out))
				return
			}
			l.pgbench.Add(perRun)
		}
	})
}

// startMixed starts writers on the mixed tables, which must exist.
func startMixed(r *rig, l *load, ctx context.Context, seed uint64, writers int) {
	for i := range writers {
		w := &writer{load: l, rnd: random(seed, 1000+uint64(i)), id: i, url: r.source}
		l.wg.Go(func() { w.run(ctx) })
	}
}

// writer is one session that changes the mixed tables at random.
type writer struct {
	*load
	rnd *rand.Rand
	id  int
	url string
	n   int64 // transactions begun

	does func(context.Context, *pgx.Conn) error // instead of the usual transactions
}

// run writes until ctx ends. A connection that is lost is opened again: servers die in these tests.
func (w *writer) run(ctx context.Context) {
	for ctx.Err() == nil {
		conn, err := pgx.Connect(context.WithoutCancel(ctx), w.url)
		if err == nil {
			err = w.session(ctx, conn)
			conn.Close(context.WithoutCancel(ctx))
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil && !lost(err) {
			w.fail(fmt.Errorf("writer %d: %w", w.id, err))
			return
		}
		w.lost.Add(1)
		pause(ctx, 20*time.Millisecond) // until the server is back
	}
}

// lost reports whether an error is the server's or the connection's end.
func lost(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code[:2] == "57" || pg.Code[:2] == "08"
	}
	return true
}

func (w *writer) session(ctx context.Context, conn *pgx.Conn) error {
	if w.more {
		if err := w.resolvePrepared(context.WithoutCancel(ctx), conn); err != nil {
			return err
		}
	}
	for ctx.Err() == nil {
		err := w.next(ctx, conn)
		var pg *pgconn.PgError
		switch {
		case err == nil:
			w.commits.Add(1)
		case errors.Is(err, errChosen):
			w.rollbacks.Add(1)
		case errors.As(err, &pg) && (pg.Code == "40P01" || pg.Code == "23505" || pg.Code == "40001"): // deadlock, unique violation, a row that another writer moved to another partition
			w.rollbacks.Add(1)
		default:
			return err
		}
		pause(ctx, between(w.rnd, 0, w.pace*time.Duration(1+w.n/w.tires)))
	}
	return nil
}

// next does one transaction.
func (w *writer) next(ctx context.Context, conn *pgx.Conn) error {
	if w.does != nil {
		return w.does(ctx, conn)
	}
	if w.streaming && w.rnd.IntN(12) == 0 {
		return w.streamed(ctx, conn)
	}
	if w.more && w.rnd.IntN(40) == 0 {
		return w.prepared(ctx, conn)
	}
	return w.transaction(ctx, conn)
}

// errChosen rolls a transaction back by choice.
var errChosen = errors.New("rolled back")

// transaction is one of a few statements; it is finished even if ctx ends meanwhile.
func (w *writer) transaction(ctx context.Context, conn *pgx.Conn) error {
	w.n++
	work := context.WithoutCancel(ctx)
	return pgx.BeginFunc(work, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(work, `INSERT INTO append_log (writer, n, what) VALUES ($1, $2, $3)`, w.id, w.n, w.words(40)); err != nil {
			return err
		}
		for range w.rnd.IntN(6) {
			if err := w.step(ctx, tx); err != nil {
				return err
			}
		}
		switch w.rnd.IntN(100) {
		case 0:
			return errChosen
		case 1, 2: // stays open while the others commit
			pause(ctx, between(w.rnd, 50*time.Millisecond, 400*time.Millisecond))
		}
		return w.step(ctx, tx)
	})
}

// step is one change, or a savepoint with a few, half of which are rolled back.
func (w *writer) step(ctx context.Context, tx pgx.Tx) error {
	if w.rnd.IntN(8) > 0 {
		return w.change(context.WithoutCancel(ctx), tx)
	}
	err := pgx.BeginFunc(context.WithoutCancel(ctx), tx, func(sp pgx.Tx) error {
		for range 1 + w.rnd.IntN(3) {
			if err := w.change(context.WithoutCancel(ctx), sp); err != nil {
				return err
			}
		}
		if w.rnd.IntN(2) == 0 {
			return errChosen
		}
		return nil
	})
	if errors.Is(err, errChosen) {
		return nil
	}
	return err
}

// keys is how many rows the writers share, so that they meet.
const keys = 500

func (w *writer) change(ctx context.Context, tx pgx.Tx) error {
	id, other := 1+w.rnd.IntN(keys), 1+w.rnd.IntN(keys)
	exec := func(sql string, args ...any) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	}
	if w.more && w.rnd.IntN(3) == 0 {
		return w.changeMore(ctx, tx, id, other, exec)
	}
	switch n := w.rnd.IntN(1000); {
	case n < 200:
		return exec(`INSERT INTO "Mixed Case" VALUES ($1, $2, 0, $3) ON CONFLICT DO NOTHING`, id, w.wide(), w.words(30))
	case n < 420: // leaves the wide value alone
		return exec(`UPDATE "Mixed Case" SET n = n + 1, note = $2 WHERE id = $1`, id, w.words(50))
	case n < 470:
		return exec(`UPDATE "Mixed Case" SET "Wide Text" = $2 WHERE id = $1`, id, w.wide())
	case n < 550: // a new key, the wide value left alone
		return exec(`UPDATE "Mixed Case" SET id = $2 WHERE id = $1 AND NOT EXISTS (SELECT FROM "Mixed Case" WHERE id = $2)`, id, other)
	case n < 620:
		return exec(`DELETE FROM "Mixed Case" WHERE id = $1`, id)
	case n < 760:
		return exec(`INSERT INTO pairs VALUES ($1, $2, $3, $4) ON CONFLICT (a, b) DO UPDATE SET v = pairs.v + excluded.v`,
			id%20, w.words(3), float64(other)/100, fmt.Sprintf(`{"n": %d, "w": "%s"}`, other, w.words(10)))
	case n < 800:
		return exec(`UPDATE pairs SET b = b || 'x' WHERE a = $1 AND length(b) < 6 AND NOT EXISTS (SELECT FROM pairs p WHERE p.a = pairs.a AND p.b = pairs.b || 'x')`, id%20)
	case n < 840:
		return exec(`DELETE FROM pairs WHERE a = $1 AND b > 'm'`, id%20)
	case n < 960:
		return exec(`INSERT INTO scratch VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET v = excluded.v || scratch.id`, id, w.words(20))
	case n < 985:
		return exec(`INSERT INTO scratch_too (v) SELECT $1 || i FROM generate_series(1, $2::int) i`, w.words(8), 1+w.rnd.IntN(min(300, w.large)))
	case n < 987: // larger than a batch of the worker, up to many messages
		return exec(`INSERT INTO append_log (writer, n, what) SELECT $1, $2, repeat($3, 10) || i FROM generate_series(1, $4::int) i`, w.id, -w.n, w.words(20), min(500, w.large)+w.rnd.IntN(w.large))
	case n < 988: // a row larger than a message
		return exec(`INSERT INTO scratch VALUES ($1, repeat($2, 30000)) ON CONFLICT (id) DO UPDATE SET v = excluded.v`, id, w.words(50+w.rnd.IntN(50)))
	case n < 997 && !w.truncates.Load():
		return exec(`DELETE FROM scratch WHERE id % 5 = 0`)
	case n < 993:
		return exec(`TRUNCATE scratch`)
	case n < 997:
		return exec(`TRUNCATE scratch, scratch_too RESTART IDENTITY`)
	}
	return exec(`DELETE FROM scratch_too WHERE id % 3 = 0`)
}

// wide gives now and then what is stored out of line: random, so that compressing doesn't help.
func (w *writer) wide() *string {
	var s string
	switch w.rnd.IntN(4) {
	case 0:
		return nil
	case 1:
		s = w.words(30)
	default:
		b := make([]byte, 7_000+w.rnd.IntN(9_000))
		for i := range b {
			b[i] = byte(w.rnd.Uint32())
		}
		s = base64.StdEncoding.EncodeToString(b)
	}
	return &s
}

func (w *writer) words(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz"[w.rnd.IntN(26)]
	}
	return string(b)
}
