package postgres

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
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
		switch t.name { // with their constraints, nearly all batches would be one connection's
		case "mail":
			t.ddl, t.unique = "k bigint PRIMARY KEY, u text, a text, b int", ""
		case "deferred":
			t.ddl = "k int PRIMARY KEY, u int, v text"
		}
	}
	return tables
}

// laneWork is transactions, one behind the other, the first at LSN 10.
func laneWork(w *life, n int) (txs [][]*decode.Change) {
	for len(txs) < n {
		w.still = w.rnd.IntN(20) > 0
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
	seed := flotest.Seed(t)
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
		n := min(1+rnd.IntN(12), len(txs)-at)
		var changes []*decode.Change
		for _, tx := range txs[at : at+n] {
			changes = append(changes, tx...)
		}
		cut := make(chan error, 1)
		if rnd.IntN(3) == 0 {
			cuts++
			after := time.Duration(rnd.IntN(6000)) * time.Microsecond
			lane := rnd.IntN(4)
			go func() {
				time.Sleep(after)
				_, err := cutter.Exec(t.Context(), `SELECT pg_terminate_backend(a.pid) FROM flo.backends b JOIN pg_stat_activity a ON a.pid = b.pid AND a.backend_start = b.backend_start
					WHERE b.worker = $1`, laneWorker("w", lane))
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
			many.sink = newSink(t, many.db.URL, WithReplicaRole(), WithApplyConnections([]int{1, 2, 3, 3, 4}[rnd.IntN(5)]))
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

// laneBatch makes a batch of transactions, the first being that number.
func (r *rig) laneBatch(first int, txs ...[]*decode.Change) *sink.Batch {
	b := &sink.Batch{Checkpoint: laneCheckpoint(first + len(txs) - 1), Epoch: r.st.Epoch}
	for i, changes := range txs {
		cp := laneCheckpoint(first + i)
		tx := &decode.Tx{XID: uint32(first + i), CommitLSN: cp.LSN, EndLSN: cp.End}
		for n, c := range changes {
			c.Tx, c.Ordinal = tx, uint64(n+1)
		}
		b.Changes = append(b.Changes, changes...)
	}
	return b
}

func (r *rig) write(b *sink.Batch) {
	r.t.Helper()
	if err := r.sink.Write(testContext(r.t), b); err != nil {
		r.t.Fatalf("Write: %v", err)
	}
}

// typed makes a relation whose columns have a type.
func typed(typ, name string, columns ...string) *decode.Relation {
	r := rel(name, columns...)
	for i := range r.Columns {
		r.Columns[i].Type = &decode.Type{Schema: "pg_catalog", Name: typ}
	}
	return r
}

func manyInserts(table *decode.Relation, from, to int) (out []*decode.Change) {
	for n := from; n < to; n++ {
		out = append(out, insert(table, numberText(n), "1"))
	}
	return out
}

// Connections that were cut short with some of them ahead don't lose a change, nor bring one twice, though what comes
// again goes to other tables and has other keys, and the number of connections is another one.
func TestSeveralConnectionsCutShortGoOnByOtherRules(t *testing.T) {
	r := newRig(t, "CREATE TABLE before (k int PRIMARY KEY, v int); CREATE TABLE after (k int PRIMARY KEY, v int)", WithApplyConnections(3))
	before, after := typed("int4", "before", "*k", "v"), typed("int4", "after", "*k", "v")
	r.write(r.laneBatch(1, manyInserts(before, -1, 0)))

	blocker, err := pgx.Connect(t.Context(), r.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Close(t.Context())
	if _, err := blocker.Exec(t.Context(), "BEGIN; INSERT INTO before VALUES (17, 17)"); err != nil {
		t.Fatal(err)
	}
	cut := make(chan error, 1)
	go func() { // one connection waits; when the others are there it is ended
		for t.Context().Err() == nil {
			var ended int
			err := blocker.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
				AND datname = current_database() AND 2 = (SELECT count(*) FROM flo.checkpoints WHERE checkpoint LIKE '%"seq":3%')`).Scan(&ended)
			if err != nil || ended > 0 {
				cut <- err
				return
			}
		}
		cut <- t.Context().Err()
	}()
	err = r.sink.Write(testContext(t), r.laneBatch(2, manyInserts(before, 0, 100), manyInserts(before, 100, 200)))
	if err == nil || sink.IsPermanent(err) {
		t.Fatalf("error %v, want a lost connection", err)
	}
	if err := <-cut; err != nil {
		t.Fatal(err)
	}
	if _, err := blocker.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}

	batches := []*sink.Batch{r.laneBatch(2, manyInserts(after, 1000, 1100)), r.laneBatch(3, manyInserts(after, 1100, 1200)), r.laneBatch(4, manyInserts(after, 1200, 1400))}
	for i, connections := range []int{2, 1, 4} { // another process each
		r.st.Epoch++
		r.sink = newSink(t, r.db.URL, WithApplyConnections(connections))
		if cp := r.open(); cp != laneCheckpoint(i+1) {
			t.Fatalf("with %d connections: checkpoint %+v, want that of transaction %d", connections, cp, i+1)
		}
		batches[i].Epoch = r.st.Epoch
		r.write(batches[i])
		if n := r.sink.stats.spread.Load(); (n > 0) != (i == 2) {
			t.Errorf("with %d connections: %d batches by several", connections, n)
		}
	}
	const all = "(SELECT k FROM before WHERE k >= 0 UNION ALL SELECT k - 1000 FROM after) t"
	r.want("SELECT count(*), count(DISTINCT k), min(k), max(k) FROM "+all, is("400", "400", "0", "399"))
	r.want("SELECT count(*) > 20 FROM before UNION ALL SELECT count(*) > 220 FROM after", is("t"), is("t"))
	r.want("SELECT worker FROM flo.checkpoints ORDER BY 1", is("w"), is("w lane 1"), is("w lane 2"), is("w lane 3"))
}

// What acts on other tables, and tables whose rows may stand in each other's way, keep the source's order.
func TestSeveralConnectionsLeaveTablesToOne(t *testing.T) {
	r := newRig(t, `CREATE TABLE plain (k int PRIMARY KEY, v int); CREATE TABLE log (k int, v int);
		CREATE TABLE watched (k int PRIMARY KEY, v int); CREATE TABLE ruled (k int PRIMARY KEY, v int); CREATE TABLE narrow (k int PRIMARY KEY, v int);
		CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN INSERT INTO public.log VALUES (NEW.k, NEW.v); RETURN NEW; END$$;
		CREATE TRIGGER note AFTER INSERT ON watched FOR EACH ROW EXECUTE FUNCTION note(); ALTER TABLE watched ENABLE ALWAYS TRIGGER note;
		CREATE RULE note AS ON INSERT TO ruled DO ALSO INSERT INTO log VALUES (NEW.k, NEW.v); ALTER TABLE ruled ENABLE ALWAYS RULE note;
		CREATE TABLE root (k int PRIMARY KEY, v int) PARTITION BY RANGE (k); CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (MAXVALUE);
		CREATE TABLE strict (k int PRIMARY KEY, v int) PARTITION BY RANGE (k); CREATE TABLE strict_leaf PARTITION OF strict FOR VALUES FROM (0) TO (MAXVALUE);
		CREATE UNIQUE INDEX ON strict_leaf (v, k)`,
		WithReplicaRole(), WithApplyConnections(3))
	int4 := func(name string) *decode.Relation { return typed("int4", name, "*k", "v") }
	r.write(r.laneBatch(1, manyInserts(int4("plain"), -1, 0)))
	for i, c := range []struct {
		name    string
		changes []*decode.Change
		spread  bool
	}{
		{"a plain table", manyInserts(int4("plain"), 0, 100), true},
		{"a trigger", manyInserts(int4("watched"), 0, 100), false},
		{"a rule", manyInserts(rel("ruled", "k", "v"), 0, 100), false},
		{"a partitioned table", manyInserts(int4("root"), 0, 100), true},
		{"a partition with a constraint of its own", manyInserts(int4("strict"), 0, 100), false},
		{"a partition", manyInserts(int4("leaf"), 100, 200), true},
		{"a partition and its root", append(manyInserts(int4("leaf"), 200, 250), manyInserts(int4("root"), 250, 300)...), false},
		{"two sources with keys of one type", append(manyInserts(int4("plain"), 200, 250), manyInserts(int4("plain"), 250, 300)...), true},
		{"two sources with keys of two types", append(manyInserts(int4("plain"), 300, 350), manyInserts(typed("int8", "plain", "*k", "v"), 350, 400)...), false},
		{"a unique key of fewer columns than the source's", manyInserts(typed("int4", "narrow", "*k", "*v"), 0, 100), false},
	} {
		was := r.sink.stats.spread.Load()
		r.write(r.laneBatch(i+2, c.changes))
		if got := r.sink.stats.spread.Load() > was; got != c.spread {
			t.Errorf("%s: by several connections %v, want %v", c.name, got, c.spread)
		}
	}
	r.want("SELECT count(*)::text FROM log", is("200"))
	r.want("SELECT count(*)::text FROM (SELECT k, (row_number() OVER (ORDER BY ctid) - 1) % 100 AS n FROM log) t WHERE k <> n", is("0"))
}

func TestPositionsAreReadAsTheyWereWritten(t *testing.T) {
	seed := flotest.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 5))
	var p positions
	at := decode.Position{LSN: 1 << 40}
	for range 2000 {
		if rnd.IntN(5) == 0 {
			at = decode.Position{LSN: at.LSN + decode.LSN(1+rnd.Uint64N(1<<rnd.IntN(40)))}
		}
		at.Ordinal += 1 + rnd.Uint64N(1<<rnd.IntN(10))
		p = append(p, at)
		text := p.text()
		if got, err := parsePositions(text); err != nil || !slices.Equal(got, p) {
			t.Fatalf("%d positions: %v, %v, want %v", len(p), got, err, p)
		}
		if short := text[:rnd.IntN(len(text))]; len(p) < 100 { // not of importance what comes of it, but no panic
			if got, err := parsePositions(short); err == nil && len(got) > len(p) {
				t.Fatalf("%q of %q: %v", short, text, got)
			}
		}
	}
	if got, err := parsePositions(""); err != nil || len(got) != 0 {
		t.Errorf("nothing: %v, %v", got, err)
	}
	for _, bad := range []string{"!", "AQ", "Af////////////8B"} {
		if got, err := parsePositions(bad); !errors.Is(err, errPositions) {
			t.Errorf("%q: %v, %v", bad, got, err)
		}
	}
	cut := p[1000]
	for _, q := range p {
		c := &decode.Change{Op: decode.OpInsert, Tx: &decode.Tx{CommitLSN: q.LSN}, Ordinal: q.Ordinal}
		if !p.has(c) || p.from(cut.LSN).has(c) != (q.LSN >= cut.LSN) || p[:1000].and(p[500:]).has(c) != true {
			t.Fatalf("position %v", q)
		}
		if c.Ordinal += 1 << 30; p.has(c) {
			t.Fatalf("position %v is not there", c.Position())
		}
	}
}

// A change that can't be taken is named by its place in the whole batch, whichever connection met it.
func TestSeveralConnectionsNameTheChange(t *testing.T) {
	r := newRig(t, "CREATE TABLE t (k int PRIMARY KEY, v int CHECK (v < 100))", WithApplyConnections(3))
	table := typed("int4", "t", "*k", "v")
	var changes []*decode.Change
	for n := range 200 {
		changes = append(changes, insert(table, numberText(n), pick(n == 137, "100", "1")))
	}
	at := 0
	try := func(changes ...*decode.Change) error {
		at++
		return r.sink.Write(testContext(t), r.laneBatch(at, changes))
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
	if err := try(manyInserts(table, 200, 300)...); err != nil { // this time none is ahead
		t.Fatal(err)
	}
	r.want("SELECT count(*)::text FROM t", is("301"))
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

func TestADeletionGoesWhereItsRowWent(t *testing.T) {
	table := typed("int4", "t", "*k", "v")
	seen := map[int]bool{}
	for n := range 100 {
		lane := laneOf(insert(table, numberText(n), "x"), 4)
		if lane != laneOf(remove(table, numberText(n), absent), 4) {
			t.Errorf("key %d: another lane for its deletion", n)
		}
		seen[lane] = true
	}
	if len(seen) != 4 {
		t.Errorf("keys go to %d lanes of 4", len(seen))
	}
}
