package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// WithApplyConnections lets n connections apply the streamed changes of a batch side by side, each those of its
// own keys: 1 to MaxConnections, 1 by default. It is for a destination that one connection cannot keep busy. Their
// number may change at every start.
//
// What a source transaction did then becomes visible in up to n pieces, at slightly different moments, so that
// readers of the destination may see a part of it. Everything else stays: each change once, those of a row in
// their order, and behind each batch all of it. A transaction that spans several batches, TRUNCATE, schema
// changes, updates that change a key, and batches that are small stay whole, on one connection; so do batches with a
// table that has a unique or exclusion constraint beside its key, a deferrable key, a trigger that fires, a rule or
// row-level security, and those with a partition and its root, or with sources of different keys that go into one table.
//
// Changes are told apart by key columns of the types smallint, integer, bigint, oid, uuid, boolean, bytea, date and
// timestamp, whose equal values have equal texts; tables whose key has none of these go to one connection each.
// What the server refuses, of some connections' part, is applied again in the original order.
func WithApplyConnections(n int) Option { return func(c *config) { c.lanes = n } }

// lanes are the connections that apply a batch side by side. Each is a Sink with a checkpoint row of its own, the first
// one being the Sink itself.
//
// Between two batches all rows say the same. A crash may leave some a batch behind: with its checkpoint each lane
// stores which changes it has brought there, so Open can give all rows the checkpoint of those behind, and keep what is
// there beyond it. Until that comes to an end one connection goes on, which passes over it.
type lanes struct {
	all   []*Sink // the Sink itself first; empty: it applies alone
	at    decode.Checkpoint
	ahead positions // of changes behind at that are there

	met   bool // on locks of each other: once, in order
	parts [][]*decode.Change
	from  [][]int // where each change of a part stands in the batch
}

// laneMark is what a lane stores with a batch's checkpoint: its own alone if there are no rows.
type laneMark struct {
	rows  string // whose checkpoint it is, as an array of names
	ahead string // what is there beyond other rows' checkpoint
}

// laneSign stands between the worker's name and a lane's number in the lane's row: no worker's name holds it.
const laneSign = " lane "

// leastParallel is how many changes a batch has that is worth several transactions.
const leastParallel = 64

func laneWorker(worker string, n int) string {
	if n == 0 {
		return worker
	}
	return worker + laneSign + strconv.Itoa(n)
}

// laneOwner gives the worker on whose behalf a lane writes.
func laneOwner(worker string) string {
	worker, _, _ = strings.Cut(worker, laneSign)
	return worker
}

// openLanes takes the lanes over, and gives the checkpoint from which changes have to come again.
func (s *Sink) openLanes(ctx context.Context, st sink.Start, own decode.Checkpoint) (decode.Checkpoint, error) {
	l := &s.lanes
	rows, err := query(ctx, s.main.pg, "SELECT worker, ahead FROM "+s.books.checkpoints+" WHERE group_name = $1 AND (worker = $2 OR starts_with(worker, $3))",
		st.Group, st.Worker, st.Worker+laneSign)
	if err != nil {
		return own, fmt.Errorf("sink/postgres: looking for the checkpoints of several connections: %w", err)
	}
	n := s.config.lanes
	alone := n == 1
	for _, r := range rows {
		alone = alone && len(r[1]) == 0
		name, ok := strings.CutPrefix(string(r[0]), st.Worker+laneSign)
		if !ok {
			continue
		}
		lane, err := strconv.Atoi(name)
		if err != nil || lane < 1 || lane >= MaxConnections {
			return own, sink.Permanent(fmt.Errorf("sink/postgres: %s has a row of worker %q", s.books.checkpoints, r[0]))
		}
		n, alone = max(n, lane+1), false
	}
	if alone {
		return own, s.lanes.close(ctx)
	}
	if err := l.take(ctx, s, st, n); err != nil {
		return own, err
	}
	if err := l.even(ctx, st, s.config.lanes); err != nil {
		return own, err
	}
	return l.at, l.shrink(ctx, s.config.lanes)
}

// take opens n lanes, the first one included: also those that will be no more, so that none of a predecessor's writes.
func (l *lanes) take(ctx context.Context, first *Sink, st sink.Start, n int) error {
	if len(l.all) == 0 {
		l.all = []*Sink{first}
	}
	for len(l.all) < n {
		lane := &Sink{config: first.config, books: first.books, pids: map[uint32]struct{}{}, stats: first.stats, keys: first.keys, asides: first.asides, schema: first.schema, generation: first.generation, prepared: true, pool: newPool(0)}
		l.all = append(l.all, lane)
	}
	for i, lane := range l.all[1:] {
		st := st
		st.Worker = laneWorker(st.Worker, i+1)
		if _, err := lane.openOne(ctx, st); err != nil {
			return err
		}
	}
	return nil
}

// shrink closes the lanes from n on.
func (l *lanes) shrink(ctx context.Context, n int) error {
	var errs []error
	for _, lane := range l.all[n:] {
		errs = append(errs, lane.Close(ctx))
	}
	clear(l.all[n:])
	l.all = l.all[:n]
	return errors.Join(errs...)
}

// even gives n rows the checkpoint that all lanes have reached, and keeps what is there beyond it; other rows go.
func (l *lanes) even(ctx context.Context, st sink.Start, n int) error {
	first := l.all[0]
	pg, table := first.main.pg, first.books.checkpoints
	if err := simple(ctx, pg, begin); err != nil {
		return fmt.Errorf("sink/postgres: %w", err)
	}
	if err := first.guard(ctx, pg, &st, "FOR NO KEY UPDATE"); err != nil {
		return err
	}
	rows, err := query(ctx, pg, "SELECT worker, checkpoint, ahead FROM "+table+" WHERE group_name = $1 AND (worker = $2 OR starts_with(worker, $3)) AND checkpoint <> ''",
		st.Group, st.Worker, st.Worker+laneSign)
	if err != nil {
		return fmt.Errorf("sink/postgres: reading the checkpoints of several connections: %w", err)
	}
	stored, err := l.compare(rows)
	if err != nil {
		return sink.Permanent(fmt.Errorf("sink/postgres: %s of group %q: %w", table, st.Group, err))
	}
	if _, err := exec(ctx, pg, "DELETE FROM "+table+" WHERE group_name = $1 AND starts_with(worker, $2) AND worker <> ALL ($3::text[])",
		st.Group, st.Worker+laneSign, laneRows(st.Worker, n)); err != nil {
		return fmt.Errorf("sink/postgres: tidying the checkpoints of several connections: %w", err)
	}
	if _, err := exec(ctx, pg, first.books.storeAll, st.Group, laneRows(st.Worker, n), stored, l.at.Incarnation, l.ahead.text()); err != nil {
		return fmt.Errorf("sink/postgres: making the checkpoints of several connections: %w", err)
	}
	if err := commit(ctx, pg); err != nil {
		return fmt.Errorf("sink/postgres: making the checkpoints of several connections: %w", err)
	}
	for _, lane := range l.all {
		lane.stored = stored
	}
	if l.at.Incarnation != st.Incarnation { // positions are of another stream
		l.ahead = nil
	}
	return nil
}

// compare finds the checkpoint that all lanes have reached, whose text it gives, and what is there beyond it. A row
// without a checkpoint is that of a lane that has never taken part.
func (l *lanes) compare(rows [][][]byte) (stored string, err error) {
	l.at, l.ahead = decode.Checkpoint{}, nil
	for _, r := range rows {
		var cp decode.Checkpoint
		if err := cp.UnmarshalText(r[1]); err != nil {
			return "", fmt.Errorf("worker %q: %w", r[0], err)
		}
		ahead, err := parsePositions(string(r[2]))
		if err != nil {
			return "", fmt.Errorf("worker %q: %w", r[0], err)
		}
		if stored != "" && cp.Incarnation != l.at.Incarnation { // one transaction changes them
			return "", fmt.Errorf("worker %q: a checkpoint of incarnation %q beside one of %q", r[0], cp.Incarnation, l.at.Incarnation)
		}
		if stored == "" || cp.End < l.at.End {
			stored, l.at = string(r[1]), cp
		}
		l.ahead = l.ahead.and(ahead)
	}
	l.ahead = l.ahead.from(l.at.End)
	return stored, nil
}

// laneRows gives the names of n lanes' rows, as an array.
func laneRows(worker string, n int) string {
	names := make([]string, n)
	for i := range names {
		names[i] = laneWorker(worker, i)
	}
	return nameArray(names)
}

// nameArray writes an array of names as PostgreSQL reads it.
func nameArray(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(n) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// write applies a batch by all lanes.
func (l *lanes) write(ctx context.Context, b *sink.Batch) error {
	st := *l.all[0].start.Load()
	parallel := l.parallel(ctx, b)
	var err error
	if parallel {
		err = l.spread(ctx, b, &st)
	} else {
		err = l.serial(ctx, b, &st)
	}
	if err != nil && parallel && sink.IsPermanent(err) && !errors.Is(err, sink.ErrLeaseLost) {
		// Lanes that met on a constraint, perhaps: in order, and by one, it may be taken. If not, the error says
		// which change it is.
		if _, oerr := l.all[0].Open(ctx, st); oerr != nil {
			return oerr
		}
		err = l.serial(ctx, b, &st)
	}
	if err != nil {
		l.met = l.met || pgsession.SQLState(err) == "40P01"
		for _, lane := range l.all {
			lane.fail(ctx)
		}
		return err
	}
	l.met = l.met && b.More
	return nil
}

// parallel reports whether a batch may be, and is worth being, applied by several.
func (l *lanes) parallel(ctx context.Context, b *sink.Batch) bool {
	cp, first := &b.Checkpoint, l.all[0]
	if len(l.all) < 2 || len(l.ahead) > 0 || l.met || first.tx.begun || b.More || len(b.Changes) < leastParallel || cp.Replayed != "" {
		return false
	}
	// What isn't about positions alone is stored for all at once.
	if cp.IsZero() || l.at.Incarnation != cp.Incarnation || l.at.Attempt != cp.Attempt || l.at.Skip != cp.Skip {
		return false
	}
	if first.main.generation != first.generation.Load() {
		return false // what is known of the tables is old
	}
	known := map[*decode.Relation]bool{}
	families := map[string]*decode.Relation{}
	for _, c := range b.Changes {
		if c.Op == decode.OpMessage {
			continue
		}
		if c.Tx == nil || c.Relation == nil || c.Op == decode.OpTruncate || c.Op == decode.OpSchema {
			return false
		}
		if !known[c.Relation] {
			bound, err := first.main.bind(ctx, c.Relation)
			if err != nil || first.checkPlace(ctx, bound) != nil || !bound.apart(families) { // one says which change the error is about
				return false
			}
			known[c.Relation] = true
		}
		if c.Op != decode.OpDelete && movesKey(c) {
			return false
		}
	}
	return true
}

// apart reports whether the rows of a table have nothing to do with each other, so that their order doesn't matter.
// Triggers and rules may take a change to the rows of others. A unique value that goes from row to row, be it between
// a partition and its root, has to be written in one order, which after a crash, with one lane ahead, there may not be.
func (b *binding) apart(families map[string]*decode.Relation) bool {
	t := b.table
	if !t.calm || t.uniques > 1 || t.uniques == 1 && b.key == nil && b.rel.HasKey() {
		return false
	}
	before := families[t.family]
	families[t.family] = b.rel
	return before == nil || sameKey(before, b.rel)
}

// sameKey reports whether two relations, or versions of one, are one table whose rows are told apart by the same columns.
func sameKey(a, b *decode.Relation) bool {
	key := func(r *decode.Relation) (key []string) {
		for i := range r.Columns {
			if c := &r.Columns[i]; telling(r, c) {
				key = append(key, c.Name, c.Type.Name)
			}
		}
		return key
	}
	return a.Schema == b.Schema && a.Name == b.Name && slices.Equal(key(a), key(b))
}

// movesKey reports whether a change may give a row another key.
func movesKey(c *decode.Change) bool {
	for i := range c.Relation.Columns {
		if !telling(c.Relation, &c.Relation.Columns[i]) {
			continue
		}
		if i >= len(c.New) || c.New[i].Presence() != decode.Present {
			return true
		}
		if c.Old != nil && (i >= len(c.Old) || string(c.Old[i].Bytes()) != string(c.New[i].Bytes())) {
			return true
		}
	}
	return false
}

// telling reports whether rows are told apart by a column: of the key, and of a type whose equal values have
// equal texts, whatever the collation.
func telling(r *decode.Relation, c *decode.Column) bool {
	if !c.Key || !r.HasKey() || c.Type == nil || c.Type.Schema != "pg_catalog" {
		return false
	}
	switch c.Type.Name {
	case "int2", "int4", "int8", "oid", "uuid", "bool", "bytea", "date", "timestamp", "timestamptz":
		return true
	}
	return false
}

// laneOf gives the lane of a change: FNV-1a of the table's name and the key.
func laneOf(c *decode.Change, n int) int {
	if c.Relation == nil {
		return 0
	}
	const offset, prime = 14695981039346656037, 1099511628211
	h := uint64(offset)
	add := func(b byte) { h = (h ^ uint64(b)) * prime }
	for _, s := range [...]string{c.Relation.Schema, c.Relation.Name} {
		for i := range len(s) {
			add(s[i])
		}
		add(0)
	}
	row := c.New
	if c.Op == decode.OpDelete {
		row = c.Old
	}
	for i := range c.Relation.Columns {
		if i < len(row) && telling(c.Relation, &c.Relation.Columns[i]) {
			for _, b := range row[i].Bytes() {
				add(b)
			}
			add(0)
		}
	}
	h ^= h >> 32 // the low bits of FNV are its weakest
	return int(h % uint64(n))
}

// spread lets each lane apply its changes, with a checkpoint each.
func (l *lanes) spread(ctx context.Context, b *sink.Batch, st *sink.Start) error {
	n := len(l.all)
	for len(l.parts) < n {
		l.parts, l.from = append(l.parts, nil), append(l.from, nil)
	}
	for i := range l.parts {
		l.parts[i], l.from[i] = l.parts[i][:0], l.from[i][:0]
	}
	for i, c := range b.Changes {
		lane := laneOf(c, n)
		l.parts[lane] = append(l.parts[lane], c)
		l.from[lane] = append(l.from[lane], i)
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, lane := range l.all {
		g.Go(func() error {
			mark := laneMark{nameArray([]string{laneWorker(st.Worker, i)}), positionsOf(l.parts[i]).text()}
			err := lane.writeMarked(gctx, &sink.Batch{Changes: l.parts[i], Checkpoint: b.Checkpoint, Epoch: b.Epoch, Lazy: b.Lazy}, mark)
			return place(err, l.from[i])
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.all[0].stats.spread.Add(1)
	l.reached(b.Checkpoint, nil)
	return nil
}

// writeMarked applies a batch by this connection, and stores a mark with its checkpoint.
func (s *Sink) writeMarked(ctx context.Context, b *sink.Batch, m laneMark) error {
	s.mark = m
	err := s.writeOne(ctx, b)
	s.mark = laneMark{}
	return err
}

// place lets an error name its change by where it stands in the whole batch.
func place(err error, from []int) error {
	var r *sink.RejectError
	if errors.As(err, &r) && r.Index < len(from) {
		r.Index = from[r.Index]
	}
	return err
}

// serial applies a batch on the first connection, with the checkpoints of all lanes, and passes over what is there.
func (l *lanes) serial(ctx context.Context, b *sink.Batch, st *sink.Start) error {
	out, from, ahead := *b, []int(nil), l.ahead
	if len(ahead) > 0 {
		out.Changes = nil
		for i, c := range b.Changes {
			if !ahead.has(c) {
				out.Changes, from = append(out.Changes, c), append(from, i)
			}
		}
	}
	stores := !b.More && !b.Checkpoint.IsZero()
	var mark laneMark
	if stores {
		if ahead = ahead.from(b.Checkpoint.End); b.Checkpoint.Incarnation != l.at.Incarnation {
			ahead = nil
		}
		mark = laneMark{laneRows(st.Worker, len(l.all)), ahead.text()}
	}
	if err := l.all[0].writeMarked(ctx, &out, mark); err != nil {
		return place(err, from)
	}
	if stores {
		l.reached(b.Checkpoint, ahead)
	}
	return nil
}

// reached notes the checkpoint of all lanes, and what is there beyond it.
func (l *lanes) reached(cp decode.Checkpoint, ahead positions) {
	for _, lane := range l.all {
		lane.stored = l.all[0].stored
	}
	l.at, l.ahead = cp, ahead
}

// close ends the lanes beside the first one.
func (l *lanes) close(ctx context.Context) error {
	if len(l.all) == 0 {
		return nil
	}
	err := l.shrink(ctx, 1)
	l.all, l.ahead = nil, nil
	return err
}
