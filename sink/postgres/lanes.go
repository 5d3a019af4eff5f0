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
	"github.com/pgflo/flo/sink"
)

// WithApplyConnections lets n connections apply the streamed changes of a batch side by side, each those of its
// own keys: 1 to MaxConnections, 1 by default. It is for a destination that one connection cannot keep busy.
//
// What a source transaction did then becomes visible in up to n pieces, at slightly different moments, so that
// readers of the destination may see a part of it. Everything else stays: each change once, those of a row in
// their order, and behind each batch all of it. A transaction that spans several batches, TRUNCATE, schema
// changes, updates that change a key, batches with a table that has a unique or exclusion constraint beside its
// key, and batches that are small stay whole, on one connection.
//
// Changes are told apart by key columns of the types smallint, integer, bigint, oid, uuid, boolean, bytea, date and
// timestamp, whose equal values have equal texts; tables whose key has none of these go to one connection each.
// What the server refuses, of some connections' part, is applied again in the original order.
func WithApplyConnections(n int) Option { return func(c *config) { c.lanes = n } }

// lanes are the connections that apply a batch side by side. Each is a Sink with a checkpoint row of its own,
// the first one being the Sink itself; a lane's checkpoint says up to where the changes of its keys are there.
//
// When all goes well the checkpoints are equal between two batches. A crash may leave some ahead: Open then
// gives the least, and of what comes again each lane passes over what it has. Until all are equal the number
// of lanes stays as it was, since it says which keys are whose.
type lanes struct {
	all  []*Sink // the Sink itself first; empty: it applies alone
	at   []decode.Checkpoint
	want int   // as configured
	exec *Sink // writes the transaction that goes on (More)

	parts [][]*decode.Change
	from  [][]int // where each change of a part stands in the batch
}

// laneMark stands between the worker's name and a lane's number in the lane's row: no worker's name holds it.
const laneMark = " lane "

// leastParallel is how many changes a batch has that is worth several transactions.
const leastParallel = 64

func laneWorker(worker string, n int) string { return worker + laneMark + strconv.Itoa(n) }

// laneOwner gives the worker on whose behalf a lane writes.
func laneOwner(worker string) string {
	worker, _, _ = strings.Cut(worker, laneMark)
	return worker
}

// openLanes takes the lanes over, and gives the checkpoint from which changes have to come again.
func (s *Sink) openLanes(ctx context.Context, st sink.Start, own decode.Checkpoint) (decode.Checkpoint, error) {
	l := &s.lanes
	l.want, l.exec = s.config.lanes, nil
	rows, err := query(ctx, s.main.pg, "SELECT worker FROM "+s.books.checkpoints+" WHERE group_name = $1 AND starts_with(worker, $2) AND checkpoint <> ''", st.Group, st.Worker+laneMark)
	if err != nil {
		return own, fmt.Errorf("sink/postgres: looking for the checkpoints of several connections: %w", err)
	}
	n := 1
	for _, r := range rows {
		lane, err := strconv.Atoi(strings.TrimPrefix(string(r[0]), st.Worker+laneMark))
		if err != nil || lane < 1 || lane >= MaxConnections {
			return own, sink.Permanent(fmt.Errorf("sink/postgres: %s has a row of worker %q", s.books.checkpoints, r[0]))
		}
		n = max(n, lane+1)
	}
	if n == 1 && l.want == 1 {
		l.all, l.at = nil, nil
		return own, nil
	}
	if err := l.take(ctx, s, st, n); err != nil {
		return own, err
	}
	least := l.least()
	if l.equal() {
		if err := l.settle(ctx, st); err != nil {
			return own, err
		}
	}
	return least, nil
}

// take opens n lanes beside, and including, the first one.
func (l *lanes) take(ctx context.Context, first *Sink, st sink.Start, n int) error {
	if len(l.all) == 0 {
		l.all = []*Sink{first}
	}
	for len(l.all) < n {
		lane := &Sink{config: first.config, books: first.books, pids: map[uint32]struct{}{}, stats: first.stats, keys: first.keys, asides: first.asides, schema: first.schema, generation: first.generation, prepared: true, pool: newPool(0)}
		l.all = append(l.all, lane)
	}
	l.at = l.at[:0]
	for i, lane := range l.all[:n] {
		if i > 0 {
			st := st
			st.Worker = laneWorker(st.Worker, i)
			if _, err := lane.openOne(ctx, st); err != nil {
				return err
			}
		}
		var cp decode.Checkpoint
		if err := cp.UnmarshalText([]byte(lane.stored)); err != nil {
			return sink.Permanent(fmt.Errorf("sink/postgres: checkpoint of lane %d: %w", i, err))
		}
		l.at = append(l.at, cp)
	}
	return l.shrink(ctx, n)
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

// settle makes the number of lanes what it is meant to be, when all are equal: none is behind, so that it
// doesn't matter any more whose a key was.
func (l *lanes) settle(ctx context.Context, st sink.Start) error {
	first := l.all[0]
	if len(l.all) != l.want || slices.ContainsFunc(l.all, func(lane *Sink) bool { return lane.stored != first.stored }) {
		if err := l.take(ctx, first, st, l.want); err != nil {
			return err
		}
		if err := l.copyCheckpoint(ctx, st); err != nil {
			return err
		}
	}
	if l.want == 1 {
		l.all, l.at = nil, nil
	}
	return nil
}

// copyCheckpoint gives all lanes the first one's checkpoint, and forgets those that are no more.
func (l *lanes) copyCheckpoint(ctx context.Context, st sink.Start) error {
	first, names := l.all[0], l.names(st.Worker)
	pg := first.main.pg
	if err := simple(ctx, pg, begin); err != nil {
		return fmt.Errorf("sink/postgres: %w", err)
	}
	if err := first.guard(ctx, pg, &st, "FOR NO KEY UPDATE"); err != nil {
		return err
	}
	table := first.books.checkpoints
	if _, err := exec(ctx, pg, "UPDATE "+table+" c SET checkpoint = f.checkpoint, incarnation = f.incarnation, updated_at = clock_timestamp() FROM "+table+
		" f WHERE f.group_name = $1 AND f.worker = $2 AND c.group_name = $1 AND c.worker = ANY ($3::text[])", st.Group, st.Worker, nameArray(names)); err != nil {
		return fmt.Errorf("sink/postgres: making the checkpoints of several connections: %w", err)
	}
	if _, err := exec(ctx, pg, "DELETE FROM "+table+" WHERE group_name = $1 AND starts_with(worker, $2) AND worker <> ALL ($3::text[])",
		st.Group, st.Worker+laneMark, nameArray(names)); err != nil {
		return fmt.Errorf("sink/postgres: tidying the checkpoints of several connections: %w", err)
	}
	if err := commit(ctx, pg); err != nil {
		return fmt.Errorf("sink/postgres: making the checkpoints of several connections: %w", err)
	}
	for i, lane := range l.all {
		lane.stored, l.at[i] = first.stored, l.at[0]
	}
	return nil
}

// names of all lanes' rows.
func (l *lanes) names(worker string) []string {
	names := []string{worker}
	for i := 1; i < len(l.all); i++ {
		names = append(names, laneWorker(worker, i))
	}
	return names
}

// nameArray writes an array of names as PostgreSQL reads it.
func nameArray(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(n) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// equal reports whether no lane is ahead of another one. A row without a checkpoint is a lane that has never
// taken part.
func (l *lanes) equal() bool {
	for _, lane := range l.all {
		if lane.stored != l.all[0].stored && lane.stored != "" {
			return false
		}
	}
	return true
}

// least gives the checkpoint that every lane has reached.
func (l *lanes) least() decode.Checkpoint {
	least := l.at[0]
	for i, cp := range l.at {
		if l.all[i].stored != "" && cp.End < least.End {
			least = cp
		}
	}
	return least
}

// write applies a batch by all lanes.
func (l *lanes) write(ctx context.Context, b *sink.Batch) error {
	st := *l.all[0].start.Load()
	parallel, err := l.parallel(ctx, b)
	switch {
	case err != nil:
		err = judge(err, -1)
	case parallel:
		err = l.spread(ctx, b, &st)
	default:
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
		for _, lane := range l.all {
			lane.fail(ctx)
		}
		l.exec = nil
		return err
	}
	if !b.More && len(l.all) != l.want && l.equal() {
		if err := l.settle(ctx, st); err != nil {
			l.all[0].fail(ctx)
			return err
		}
	}
	return nil
}

// parallel reports whether a batch may be, and is worth being, applied by several. A unique value that goes from a
// row of one lane to a row of another one would have to be written in one order, which after a crash, with one
// lane ahead, there may not be.
func (l *lanes) parallel(ctx context.Context, b *sink.Batch) (bool, error) {
	cp := &b.Checkpoint
	if l.exec != nil || b.More || len(b.Changes) < leastParallel || cp.IsZero() || cp.Replayed != "" || len(l.all) < 2 {
		return false, nil
	}
	for i := range l.at { // what isn't about positions alone is stored for all at once
		if l.at[i].Incarnation != cp.Incarnation || l.at[i].Attempt != cp.Attempt || l.at[i].Skip != cp.Skip {
			return false, nil
		}
	}
	keys := map[uint32]*decode.Relation{}
	for _, c := range b.Changes {
		if c.Op == decode.OpMessage {
			continue
		}
		if c.Tx == nil || c.Relation == nil || c.Op == decode.OpTruncate || c.Op == decode.OpSchema {
			return false, nil
		}
		if before := keys[c.Relation.OID]; before == nil {
			keys[c.Relation.OID] = c.Relation
			bound, err := l.all[0].main.bind(ctx, c.Relation)
			if err != nil || bound.table.uniques > 1 {
				return false, err
			}
		} else if before != c.Relation && !sameKey(before, c.Relation) {
			return false, nil
		}
		if c.Op != decode.OpDelete && movesKey(c) {
			return false, nil
		}
	}
	return true, nil
}

// sameKey reports whether two versions of a relation are told apart by the same columns.
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

// laneOf gives the lane of a change, the same in every process: FNV-1a of the table's name and the key.
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

// has reports whether a lane holds a change already.
func (l *lanes) has(lane int, c *decode.Change, st *sink.Start) bool {
	at := &l.at[lane]
	return c.Tx != nil && at.Incarnation == st.Incarnation && c.Tx.CommitLSN < at.End
}

// spread lets each lane apply its changes, with a checkpoint each.
func (l *lanes) spread(ctx context.Context, b *sink.Batch, st *sink.Start) error {
	n := len(l.all)
	for len(l.parts) < n {
		l.parts, l.from = append(l.parts, nil), append(l.from, nil)
	}
	for i := range n {
		l.parts[i], l.from[i] = l.parts[i][:0], l.from[i][:0]
	}
	equal := l.equal()
	for i, c := range b.Changes {
		if lane := laneOf(c, n); equal || !l.has(lane, c, st) {
			l.parts[lane] = append(l.parts[lane], c)
			l.from[lane] = append(l.from[lane], i)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, lane := range l.all {
		if l.at[i].End > b.Checkpoint.End {
			continue // it has all of it
		}
		g.Go(func() error {
			err := lane.writeOne(gctx, &sink.Batch{Changes: l.parts[i], Checkpoint: b.Checkpoint, Epoch: b.Epoch, Lazy: b.Lazy})
			return place(err, l.from[i])
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.all[0].stats.spread.Add(1)
	l.reached(b.Checkpoint)
	return nil
}

// place lets an error name its change by where it stands in the whole batch.
func place(err error, from []int) error {
	var r *sink.RejectError
	if errors.As(err, &r) && r.Index < len(from) {
		r.Index = from[r.Index]
	}
	return err
}

// serial applies a batch on one connection, with the checkpoints of all lanes that are not ahead of it.
func (l *lanes) serial(ctx context.Context, b *sink.Batch, st *sink.Start) error {
	equal := l.equal()
	if b.Checkpoint.Replayed != "" && !equal {
		return sink.Permanent(errors.New("sink/postgres: the worker was cut short between its connections: let it run until it has caught up, then Replay"))
	}
	exec := l.exec
	if exec == nil {
		least := 0
		for i := range l.at {
			if l.at[i].End < l.at[least].End {
				least = i
			}
		}
		exec = l.all[least]
	}
	out, from := *b, []int(nil)
	if !equal {
		out.Changes = nil
		for i, c := range b.Changes {
			if !l.has(laneOf(c, len(l.all)), c, st) {
				out.Changes, from = append(out.Changes, c), append(from, i)
			}
		}
	}
	exec.followers = ""
	if !b.More && !b.Checkpoint.IsZero() {
		names := l.names(st.Worker)
		for i := len(names) - 1; i >= 0; i-- {
			if at := &l.at[i]; at.Incarnation == b.Checkpoint.Incarnation && at.End > b.Checkpoint.End {
				names = slices.Delete(names, i, i+1)
			}
		}
		exec.followers = nameArray(names)
	}
	err := exec.writeOne(ctx, &out)
	exec.followers = ""
	if err != nil {
		return place(err, from)
	}
	l.exec = nil
	switch {
	case b.More:
		l.exec = exec
	case !b.Checkpoint.IsZero():
		l.reached(b.Checkpoint)
	}
	for _, c := range b.Changes {
		if c.Op == decode.OpSchema { // what the other lanes know of the tables is old
			for _, lane := range l.all {
				if lane != exec && lane.main != nil {
					if err := lane.main.forget(ctx); err != nil {
						return judge(err, -1)
					}
				}
			}
			break
		}
	}
	return nil
}

// reached notes the checkpoint of those that are not ahead of it.
func (l *lanes) reached(cp decode.Checkpoint) {
	text, err := cp.MarshalText()
	if err != nil {
		return // it was written
	}
	for i, lane := range l.all {
		if l.at[i].Incarnation != cp.Incarnation || l.at[i].End <= cp.End {
			l.at[i], lane.stored = cp, string(text)
		}
	}
}

// close ends the lanes beside the first one.
func (l *lanes) close(ctx context.Context) error {
	if len(l.all) == 0 {
		return nil
	}
	err := l.shrink(ctx, 1)
	l.all, l.at = nil, nil
	return err
}
