package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/sink"
)

// A copied table is a row of copies, by worker and source table. Its chunks are rows of copy_chunks,
// each written in the transaction that writes the chunk's rows, until EndTable has counted them.
//
// Locks: a chunk holds its rows in checkpoints and copies FOR KEY SHARE, so that neither a takeover nor
// another attempt, which want them FOR UPDATE, gets between its check and its commit.

// BeginTable makes a destination table ready for a copy attempt. The same attempt again, by number and point, changes nothing:
// behind a NATS that was rolled back another one may have the number.
// A new one empties the table of what flo has written, unless another source table of the same attempt,
// routed into the same table, has done so, or only rows of others that still count stand in it; where such
// rows stand among those of this source it is a *sink.TogetherError. Rows that flo has not written are
// ErrNotEmpty without WithTruncateBeforeCopy. It waits for a transaction that Write has left open (More), so it
// has no place within one.
func (s *Sink) BeginTable(ctx context.Context, t sink.CopyTable) error {
	return s.with(ctx, func(c *session, st *sink.Start) error {
		if t.Relation == nil {
			return errShape
		}
		c.bindings.clear() // a table's beginning is rare, and its catalog may have changed
		b, err := c.bind(ctx, t.Relation)
		if err != nil {
			return err
		}
		if !s.config.merges(b.table.name) {
			err = b.copyable()
		} else {
			_, err = b.mergeKey()
		}
		if err != nil {
			return err
		}
		if err := simple(ctx, c.pg, begin); err != nil {
			return err
		}
		// One table at a time: two sources of one destination must not both empty it.
		if err := s.guard(ctx, c.pg, st, "FOR NO KEY UPDATE"); err != nil {
			return err
		}
		if err := s.beginTable(ctx, c.pg, st, t, b); err != nil {
			return fmt.Errorf("sink/postgres: beginning the copy into %s: %w", b.table.name, err)
		}
		if err := commit(ctx, c.pg); err != nil {
			return err
		}
		if _, err := s.staged(ctx, c.pg, st, t); err != nil {
			return err
		}
		keys, err := s.readKeys(ctx, c.pg, keysName(st, b.table.name))
		if err == nil {
			s.keys.note(keysName(st, b.table.name), keys[keysName(st, b.table.name)])
		}
		return err
	})
}

// copyable refuses what COPY cannot fill.
func (b *binding) copyable() error {
	var generated []string
	for i, col := range b.columns {
		if col.generated {
			generated = append(generated, b.rel.Columns[i].Name)
		}
	}
	if generated != nil {
		return tableError(b.table.name, ErrGenerated, strings.Join(generated, ", "))
	}
	return nil
}

// guard locks the checkpoint row and makes sure that this epoch still is the one that writes.
func (s *Sink) guard(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, lock string) error {
	rows, err := query(ctx, pg, "SELECT epoch FROM "+s.books.checkpoints+" WHERE group_name = $1 AND worker = $2 "+lock, st.Group, st.Worker)
	if err != nil {
		return fmt.Errorf("sink/postgres: reading the epoch: %w", err)
	}
	if len(rows) != 1 {
		return fmt.Errorf("sink/postgres: the checkpoint's row is gone: %w", ErrCheckpointMoved)
	}
	return checkEpoch(rows[0][0], *st)
}

func (s *Sink) beginTable(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, t sink.CopyTable, b *binding) error {
	dest := b.table
	kept := make([]string, len(t.Kept))
	for i, oid := range t.Kept {
		kept[i] = number(oid)
	}
	rows, err := query(ctx, pg, `SELECT source::text,
			source = $3::oid AND incarnation = $4 AND attempt = $5::bigint AND point = $11::pg_lsn,
			incarnation = $4 AND attempt = $5::bigint AND point = $11::pg_lsn,
			incarnation = $4 AND attempt >= $8::bigint AND source = ANY ($9::oid[]),
			dest_schema = $6 AND dest_table = $7 OR dest_oid = $10::oid
		FROM `+s.books.copies+` WHERE group_name = $1 AND worker = $2 AND (source = $3::oid OR dest_schema = $6 AND dest_table = $7 OR dest_oid = $10::oid)
		FOR UPDATE`,
		st.Group, st.Worker, number(t.Source), st.Incarnation, number(t.Attempt), dest.name.Schema, dest.name.Name,
		number(t.Base), "{"+strings.Join(kept, ",")+"}", dest.oid, t.Point.String())
	if err != nil {
		return err
	}
	var begun, stale bool
	var counting []uint32
	for _, r := range rows {
		is := func(i int) bool { return string(r[i]) == "t" }
		here := is(4)
		switch {
		case is(1) && here:
			return nil
		case is(2) && here:
			begun = true // and emptied
		case is(3) && here:
			source, err := strconv.ParseUint(string(r[0]), 10, 32)
			if err != nil {
				return err
			}
			counting = append(counting, uint32(source))
		case here:
			stale = true
		}
	}
	if t.Resumed {
		return tableError(dest.name, ErrCopyLost, "")
	}
	if s.config.merges(dest.name) {
		if err := s.beginMerge(ctx, pg, st, t, b); err != nil {
			return err
		}
		return s.recordAttempt(ctx, pg, st, t, dest, true)
	}
	if err := simple(ctx, pg, "DROP TABLE IF EXISTS "+s.stage(st, t.Source)); err != nil { // the option was left out since
		return err
	}
	switch {
	case begun:
	case len(counting) > 0 && stale:
		return &sink.TogetherError{Table: dest.name.String(), Sources: append(counting, t.Source)}
	case len(counting) > 0:
	default:
		if err := s.empty(ctx, pg, st, dest, stale); lacksPrivilege(err) {
			return tableError(dest.name, err, "emptying it")
		} else if err != nil {
			return err
		}
	}
	return s.recordAttempt(ctx, pg, st, t, dest, begun || len(counting) > 0)
}

// recordAttempt forgets the earlier copies of the source, and of all others into the destination if it was
// emptied, and notes this one.
func (s *Sink) recordAttempt(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, t sink.CopyTable, dest *table, shared bool) error {
	b := s.books
	_, err := exec(ctx, pg, `WITH gone AS (DELETE FROM `+b.copies+` WHERE group_name = $1 AND worker = $2
			AND (source = $3::oid OR NOT $6::bool AND (dest_schema = $4 AND dest_table = $5 OR dest_oid = $7::oid))
			RETURNING source)
		DELETE FROM `+b.chunks+` c USING gone WHERE c.group_name = $1 AND c.worker = $2 AND c.source = gone.source`,
		st.Group, st.Worker, number(t.Source), dest.name.Schema, dest.name.Name, strconv.FormatBool(shared), dest.oid)
	if err != nil {
		return err
	}
	_, err = exec(ctx, pg, `INSERT INTO `+b.copies+` (group_name, worker, source, incarnation, attempt, point, dest_schema, dest_table, dest_oid)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		st.Group, st.Worker, number(t.Source), st.Incarnation, number(t.Attempt), t.Point.String(), dest.name.Schema, dest.name.Name, dest.oid)
	return err
}

// empty makes the destination table empty, or sees that it is.
func (s *Sink) empty(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, dest *table, ours bool) error {
	some, err := yes(ctx, pg, "SELECT EXISTS (SELECT FROM "+dest.from+")")
	if err != nil {
		return err
	}
	keys := s.keysTable(st, dest.name)
	merged, err := yes(ctx, pg, "SELECT to_regclass($1) IS NOT NULL", keys)
	if err != nil {
		return err
	}
	if some && merged && !s.config.truncate {
		return tableError(dest.name, ErrNotEmpty, "copies were merged into it, so rows of others may stand there: use WithMergeCopy again")
	}
	if some && !ours && !s.config.truncate {
		return tableError(dest.name, ErrNotEmpty, "")
	}
	if merged {
		if err := simple(ctx, pg, "DROP TABLE "+keys); err != nil {
			return err
		}
	}
	if !some {
		return nil
	}
	s.config.logger.InfoContext(ctx, "emptying a destination table before its copy", "table", dest.name.String(), "written_by_flo", ours)
	// TRUNCATE is refused for a table that foreign keys of others point at, even if those are empty, and
	// needs a privilege of its own. https://www.postgresql.org/docs/current/sql-truncate.html
	err = simple(ctx, pg, "SAVEPOINT flo_empty; TRUNCATE TABLE "+dest.from)
	if err == nil {
		return nil
	}
	if state := pgsession.SQLState(err); state != "0A000" && state != "42501" {
		return err
	}
	return simple(ctx, pg, "ROLLBACK TO SAVEPOINT flo_empty; DELETE FROM "+dest.from)
}

// WriteChunk copies a chunk's bytes as they are. A chunk that was written before is skipped.
func (s *Sink) WriteChunk(ctx context.Context, ch *sink.CopyChunk) error {
	return s.with(ctx, func(c *session, st *sink.Start) error {
		if ch.Table.Relation == nil {
			return errShape
		}
		if ch.Epoch != st.Epoch {
			return sink.Permanent(fmt.Errorf("sink/postgres: chunk of epoch %d, opened for %d: %w", ch.Epoch, st.Epoch, sink.ErrLeaseLost))
		}
		c.bindings.trim()
		b, err := c.bind(ctx, ch.Table.Relation)
		if err != nil {
			return err
		}
		fresh, err := s.claim(ctx, c.pg, st, ch, b.table)
		if err != nil {
			return err
		}
		if !fresh {
			s.stats.skipped.Add(1)
			return commit(ctx, c.pg) // it has locked rows, so that it waits for the disk as a chunk does
		}
		copied, err := b.copyRows(ctx, c.pg, ch.Data, s.copyTarget(st, ch.Table, b))
		if err != nil {
			return tableError(b.table.name, err, "copying chunk "+ch.ID.String())
		}
		if n := uint64(max(copied, 0)); n != ch.Rows {
			return tableError(b.table.name, ErrCopyIncomplete, fmt.Sprintf("chunk %s has %d rows by its header, %d by COPY", ch.ID, ch.Rows, n))
		}
		if err := commit(ctx, c.pg); err != nil {
			return tableError(b.table.name, err, "committing chunk "+ch.ID.String())
		}
		s.stats.chunks.Add(1)
		s.stats.copied.Add(ch.Rows)
		return nil
	})
}

// copyRows writes the rows of a chunk into a table and gives their number.
func (b *binding) copyRows(ctx context.Context, pg *pgconn.PgConn, data []byte, into string) (int64, error) {
	if len(b.columns) == 0 {
		// Rows without columns, a line each. COPY takes no empty list, and without a list it means all
		// columns, which the destination may have: they get their defaults.
		rows := uint64(bytes.Count(data, []byte{'\n'}))
		return exec(ctx, pg, "INSERT INTO "+into+" SELECT FROM generate_series(1, $1::bigint)", number(rows))
	}
	tag, err := pg.CopyFrom(ctx, bytes.NewReader(data), b.copySQL(into))
	return tag.RowsAffected(), err
}

// copySQL is the COPY that takes the chunks of a relation.
func (b *binding) copySQL(into string) string {
	all := make([]int, len(b.columns))
	for i := range all {
		all[i] = i
	}
	return b.copyInto(into, all)
}

// copyInto is the COPY that takes some columns of a relation.
func (b *binding) copyInto(into string, columns []int) string {
	names := make([]string, len(columns))
	for n, i := range columns {
		names[n] = b.columns[i].quoted
	}
	return "COPY " + into + " (" + strings.Join(names, ", ") + ") FROM STDIN"
}

// claim begins the chunk's transaction and records it; false if it is recorded already. One round trip.
func (s *Sink) claim(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, ch *sink.CopyChunk, dest *table) (bool, error) {
	b, t := s.books, ch.Table
	who := func(args ...string) [][]byte {
		return text(append([]string{st.Group, st.Worker}, args...)...)
	}
	batch := &pgconn.Batch{}
	batch.ExecParams(begin, nil, nil, nil, nil)
	at := 1
	if ch.Lazy {
		batch.ExecParams(commitLazily, nil, nil, nil, nil)
		at++
	}
	batch.ExecParams("SELECT epoch FROM "+b.checkpoints+" WHERE group_name = $1 AND worker = $2 FOR KEY SHARE", who(), nil, nil, nil)
	batch.ExecParams("SELECT state FROM "+b.copies+` WHERE group_name = $1 AND worker = $2
		AND source = $3 AND incarnation = $4 AND attempt = $5 AND dest_schema = $6 AND dest_table = $7 FOR KEY SHARE`,
		who(number(t.Source), st.Incarnation, number(t.Attempt), dest.name.Schema, dest.name.Name), nil, nil, nil)
	batch.ExecParams("INSERT INTO "+b.chunks+` (group_name, worker, source, incarnation, attempt, range, first_row, rows)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
		who(number(t.Source), st.Incarnation, number(t.Attempt), number(ch.ID.Range), number(ch.ID.Row), number(ch.Rows)), nil, nil, nil)
	results, err := pg.ExecBatch(ctx, batch).ReadAll()
	if err != nil {
		return false, tableError(dest.name, err, "recording chunk "+ch.ID.String())
	}
	epoch, copies, insert := results[at], results[at+1], results[at+2]
	if len(epoch.Rows) != 1 {
		return false, fmt.Errorf("sink/postgres: the checkpoint's row is gone: %w", ErrCheckpointMoved)
	}
	if err := checkEpoch(epoch.Rows[0][0], *st); err != nil {
		return false, err
	}
	if len(copies.Rows) != 1 {
		return false, tableError(dest.name, ErrCopyNotBegun, "chunk "+ch.ID.String())
	}
	if string(copies.Rows[0][0]) == stateDone {
		return false, nil
	}
	return insert.CommandTag.RowsAffected() == 1, nil
}

// stateDone is the state of a copy that EndTable has counted.
const stateDone = "done"

// EndTable counts what was copied, and fails with ErrCopyIncomplete if that is not t.Chunks and t.Rows.
func (s *Sink) EndTable(ctx context.Context, t sink.CopyTable) error {
	return s.with(ctx, func(c *session, st *sink.Start) error {
		if t.Relation == nil {
			return errShape
		}
		if err := simple(ctx, c.pg, begin); err != nil {
			return err
		}
		if err := s.guard(ctx, c.pg, st, "FOR KEY SHARE"); err != nil {
			return err
		}
		var b *binding
		if s.isStaged(t) {
			var err error
			if b, err = c.bind(ctx, t.Relation); err != nil {
				return err
			}
		}
		if err := s.endTable(ctx, c.pg, st, t, b); err != nil {
			return err
		}
		return commit(ctx, c.pg)
	})
}

// endTable ends the copy; merged is where its rows go from the table that they stand in so far, nil if from none.
func (s *Sink) endTable(ctx context.Context, pg *pgconn.PgConn, st *sink.Start, t sink.CopyTable, merged *binding) error {
	b, name := s.books, t.Relation.Qualified()
	key := []string{st.Group, st.Worker, number(t.Source), st.Incarnation, number(t.Attempt)}
	const where = " WHERE group_name = $1 AND worker = $2 AND source = $3 AND incarnation = $4 AND attempt = $5"
	rows, err := query(ctx, pg, "SELECT state, chunks, rows FROM "+b.copies+where+" FOR UPDATE", key...)
	if err != nil {
		return tableError(name, err, "ending its copy")
	}
	if len(rows) != 1 {
		return tableError(name, ErrCopyNotBegun, "its end")
	}
	done := string(rows[0][0]) == stateDone
	counts := rows[0][1:]
	if !done {
		rows, err = query(ctx, pg, "SELECT count(*), coalesce(sum(rows), 0) FROM "+b.chunks+where, key...)
		if err != nil {
			return tableError(name, err, "counting its chunks")
		}
		counts = rows[0]
	}
	chunks, total := string(counts[0]), string(counts[1])
	if chunks != number(t.Chunks) || total != number(t.Rows) && !t.Filtered {
		return tableError(name, ErrCopyIncomplete, fmt.Sprintf("%s of %d chunks, %s of %d rows are there", chunks, t.Chunks, total, t.Rows))
	}
	if done {
		return nil
	}
	if merged != nil {
		if err := s.merge(ctx, pg, st, t, merged, total); err != nil {
			var named *TableError
			if errors.As(err, &named) {
				return err
			}
			return tableError(name, err, "merging its copy")
		}
	}
	if _, err := exec(ctx, pg, "DELETE FROM "+b.chunks+where, key...); err != nil {
		return tableError(name, err, "tidying its chunks")
	}
	if _, err := exec(ctx, pg, "UPDATE "+b.copies+" SET state = '"+stateDone+"', chunks = $6, rows = $7, updated_at = clock_timestamp()"+where,
		append(key, chunks, total)...); err != nil {
		return tableError(name, err, "ending its copy")
	}
	if _, err := exec(ctx, pg, "UPDATE "+b.structures+" SET shape = shape - 'flo_awaits' WHERE group_name = $1 AND worker = $2 AND kind = 'table' AND source = $3::oid AND shape ? 'flo_awaits'",
		st.Group, laneOwner(st.Worker), number(t.Source)); err != nil {
		return tableError(name, err, "ending its copy")
	}
	return nil
}
