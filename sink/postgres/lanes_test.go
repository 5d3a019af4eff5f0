package postgres

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/sinktest"
)

func TestSinkPassesTheSuiteWithSeveralConnections(t *testing.T) {
	sinktest.Run(t, func(t *testing.T) sinktest.Harness {
		db := flotest.Postgres(t)
		return sinktest.Harness{
			Open:    func(t testing.TB) sink.Sink { return newSink(t, db.URL, WithApplyConnections(3)) },
			Prepare: func(t testing.TB, rel *decode.Relation) { createTable(t, db, rel) },
			Rows:    func(t testing.TB, rel *decode.Relation) []sinktest.Row { return tableRows(t, db, rel) },
		}
	})
}

// laneTables are tables whose rows are told apart by keys of several types, and some that are not.
func laneTables() []*lifeTable {
	types := map[string]string{"plain": "int4", "mail": "int8", "tree": "uuid", "identity": "int4", "deferred": "int4", "onlykey": "int4"}
	tables := lifeTables()
	for i, t := range tables {
		t.rel.OID = uint32(i + 1)
		if name := types[t.name]; name != "" {
			t.rel.Columns[0].Type = &decode.Type{Schema: "pg_catalog", Name: name}
		}
		if t.name == "mail" { // no value that another row may have
			t.values = func(w *life, n int) []any { return []any{"u" + numberText(n), w.text(), "1"} }
		}
	}
	return tables
}

// laneWork is transactions, one behind the other, the first at LSN 10.
func laneWork(w *life, n int) (txs [][]*decode.Change) {
	for len(txs) < n {
		w.still = w.rnd.IntN(8) > 0
		for batch := w.batch(); len(batch) > 0; {
			size := min(1+w.rnd.IntN(40), len(batch))
			tx := &decode.Tx{XID: uint32(len(txs) + 1), CommitLSN: decode.LSN(10*len(txs) + 15), EndLSN: decode.LSN(10*len(txs) + 20)}
			for i, c := range batch[:size] {
				c.Tx, c.Ordinal = tx, uint64(i+1)
			}
			txs, batch = append(txs, batch[:size]), batch[size:]
		}
	}
	return txs
}

func laneCheckpoint(end int) decode.Checkpoint {
	return decode.Checkpoint{Incarnation: "one", Seq: uint64(end), LSN: decode.LSN(10*end + 5), End: decode.LSN(10*end + 10), Session: 7}
}

// Several connections bring the rows to where one does, though connections are cut at random moments, what comes
// again is cut into other batches, and the number of connections changes.
func TestSeveralConnectionsDoWhatOneDoes(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))
	tables := laneTables()
	many := newRig(t, lifeDDL(tables), WithReplicaRole(), WithApplyConnections(3))
	one := newRig(t, lifeDDL(tables), WithReplicaRole())
	work := &life{rnd: rand.New(rand.NewPCG(seed, 11)), tables: tables, alive: make(map[string][]int)}
	txs := laneWork(work, 600) // of 300, in one run of twenty none went by several connections

	for i, tx := range txs {
		if err := one.sink.Write(testContext(t), &sink.Batch{Changes: tx, Checkpoint: laneCheckpoint(i + 1), Epoch: 1}); err != nil {
			t.Fatal(err)
		}
	}

	cutter, err := pgx.Connect(t.Context(), many.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer cutter.Close(t.Context())
	cuts, failures := 0, 0
	spread := uint64(0)
	for at := 0; at < len(txs); {
		n := min(1+rnd.IntN(20), len(txs)-at)
		var changes []*decode.Change
		for _, tx := range txs[at : at+n] {
			changes = append(changes, tx...)
		}
		cut := make(chan error, 1)
		if rnd.IntN(2) == 0 {
			cuts++
			after := time.Duration(rnd.IntN(6000)) * time.Microsecond
			lane := rnd.IntN(4)
			go func() {
				time.Sleep(after)
				_, err := cutter.Exec(t.Context(), `SELECT pg_terminate_backend(a.pid) FROM flo.backends b JOIN pg_stat_activity a ON a.pid = b.pid AND a.backend_start = b.backend_start
					WHERE b.worker = $1`, []string{"w", laneWorker("w", 1), laneWorker("w", 2), laneWorker("w", 3)}[lane])
				cut <- err
			}()
		} else {
			cut <- nil
		}
		b := &sink.Batch{Changes: changes, Checkpoint: laneCheckpoint(at + n), Epoch: many.st.Epoch}
		err := error(nil)
		if n == 1 && len(changes) > 1 { // a transaction in pieces
			err = many.sink.Write(testContext(t), &sink.Batch{Changes: changes[:len(changes)/2], More: true, Epoch: many.st.Epoch})
			b.Changes = changes[len(changes)/2:]
		}
		if err == nil {
			err = many.sink.Write(testContext(t), b)
		}
		if err := <-cut; err != nil {
			t.Fatal(err)
		}
		if err == nil {
			at += n
			continue
		}
		if sink.IsPermanent(err) {
			t.Fatalf("transactions %d to %d: %v", at, at+n, err)
		}
		failures++
		if rnd.IntN(3) == 0 { // another process, with another number of connections
			spread += many.sink.stats.spread.Load()
			many.sink = newSink(t, many.db.URL, WithReplicaRole(), WithApplyConnections(1+rnd.IntN(4)))
			many.st.Epoch++
		}
		cp := many.reopen()
		if !cp.IsZero() {
			at = int(cp.End-10) / 10
		} else {
			at = 0
		}
	}
	spread += many.sink.stats.spread.Load()
	t.Logf("%d transactions, %d cuts, %d batches failed, %d batches by several connections", len(txs), cuts, failures, spread)
	if spread == 0 || failures == 0 {
		t.Error("nothing was shown")
	}
	for _, table := range tables {
		sql := "SELECT t::text FROM " + quotedName(table.name) + " t ORDER BY 1"
		if got, want := many.db.Query(t, sql), one.db.Query(t, sql); !reflect.DeepEqual(got, want) {
			t.Errorf("table %s differs: %d rows, want %d; %s", table.name, len(got), len(want), firstDifference(got, want))
		}
	}
}

func firstDifference(got, want [][]string) string {
	for _, row := range got {
		if !slices.ContainsFunc(want, func(w []string) bool { return slices.Equal(row, w) }) {
			return fmt.Sprintf("first row too much: %q", row)
		}
	}
	for _, row := range want {
		if !slices.ContainsFunc(got, func(w []string) bool { return slices.Equal(row, w) }) {
			return fmt.Sprintf("first row missing: %q", row)
		}
	}
	return "the order"
}

// reopen is open, again and again while connections are cut.
func (r *rig) reopen() decode.Checkpoint {
	r.t.Helper()
	for {
		cp, err := r.sink.Open(testContext(r.t), r.st)
		if err == nil {
			return cp
		}
		if sink.IsPermanent(err) || r.t.Context().Err() != nil {
			r.t.Fatalf("Open: %v", err)
		}
	}
}

// A change that can't be taken is named by its place in the whole batch, whichever connection met it.
func TestSeveralConnectionsNameTheChange(t *testing.T) {
	r := newRig(t, "CREATE TABLE t (k int PRIMARY KEY, v int CHECK (v < 100))", WithApplyConnections(3))
	table := rel("t", "*k", "v")
	table.Columns[0].Type = &decode.Type{Schema: "pg_catalog", Name: "int4"}
	var changes []*decode.Change
	for n := range 200 {
		changes = append(changes, insert(table, numberText(n), pick(n == 137, "100", "1")))
	}
	at := 0
	try := func(changes ...*decode.Change) error {
		at++
		tx := &decode.Tx{XID: 1, CommitLSN: laneCheckpoint(at).LSN, EndLSN: laneCheckpoint(at).End}
		for i, c := range changes {
			c.Tx, c.Ordinal = tx, uint64(i+1)
		}
		return r.sink.Write(testContext(t), &sink.Batch{Changes: changes, Checkpoint: laneCheckpoint(at), Epoch: r.st.Epoch})
	}
	if err := try(insert(table, "-1", "1")); err != nil {
		t.Fatal(err)
	}
	err := try(changes...)
	var rejected *sink.RejectError
	if !errors.As(err, &rejected) || rejected.Index != 137 {
		t.Fatalf("error %v, want change 137 rejected", err)
	}
	r.open()
	changes[137] = insert(table, "137", "1")
	at--
	if err := try(changes...); err != nil {
		t.Fatal(err)
	}
	r.want("SELECT count(*)::text FROM t", is("201"))
	if r.sink.stats.spread.Load() == 0 {
		t.Error("one connection did it all")
	}
	r.want("SELECT worker FROM flo.checkpoints ORDER BY 1", is("w"), is("w lane 1"), is("w lane 2"))
	if got := r.db.Query(t, "SELECT DISTINCT checkpoint FROM flo.checkpoints"); len(got) != 1 {
		t.Errorf("checkpoints %q, want all the same", got)
	}
}

// A table with a unique constraint beside its key is left to one connection: a value may go from row to row.
func TestSeveralConnectionsHandAValueOn(t *testing.T) {
	r := newRig(t, "CREATE TABLE t (k int PRIMARY KEY, u text UNIQUE)", WithApplyConnections(4))
	table := rel("t", "*k", "u")
	table.Columns[0].Type = &decode.Type{Schema: "pg_catalog", Name: "int4"}
	var changes []*decode.Change
	const rows = 100
	r.apply(insert(table, "-1", "first"))
	for n := range rows {
		changes = append(changes, insert(table, numberText(n), "u"+numberText(n)))
	}
	r.apply(changes...)
	changes = nil
	for n := range rows { // each gets the value of the one before, which has given it up
		changes = append(changes, update(table, numberText(n), nil))
	}
	for n := range rows {
		changes = append(changes, update(table, numberText(n), "u"+numberText((n+rows-1)%rows)))
	}
	r.apply(changes...)
	r.want("SELECT count(*)::text FROM t WHERE u = 'u' || (k + 99) % 100", is("100"))
	if n := r.sink.stats.spread.Load(); n != 0 {
		t.Errorf("%d batches by several connections", n)
	}
}

func TestLaneOfAKeyIsTheSameInEveryProcess(t *testing.T) {
	table := rel("t", "*k", "v")
	table.Columns[0].Type = &decode.Type{Schema: "pg_catalog", Name: "int4"}
	var got []string
	for n := range 12 {
		lane := laneOf(insert(table, numberText(n), "x"), 4)
		if lane != laneOf(remove(table, numberText(n), absent), 4) {
			t.Errorf("key %d: another lane for its deletion", n)
		}
		got = append(got, numberText(lane))
	}
	// What is stored depends on it: an upgrade must not change it.
	if want := "1 0 3 2 1 0 3 2 1 0 2 3"; strings.Join(got, " ") != want {
		t.Errorf("lanes %q, want %q", strings.Join(got, " "), want)
	}
}
