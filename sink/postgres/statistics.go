package postgres

import (
	"context"
	"time"

	"github.com/pgflo/flo/decode"
)

// statisticsAge is for how long what the catalog says of a table's size is believed.
const statisticsAge = time.Second

// weigh looks up, of the tables that changes are about, whether the server takes them for almost empty while
// they are not. A table looks like that when autovacuum has met it behind a transaction that wrote much to it and was
// rolled back, and so it does to the next attempt, until that has committed. A set is then planned as a loop over
// all of the table, with a search in the set for each of its rows: the table gets no sets as long as that is so.
// https://www.postgresql.org/docs/current/row-estimation-examples.html
func (s *Sink) weigh(ctx context.Context, changes []*decode.Change) error {
	if len(changes) < s.main.planner.reduced || s.config.rowByRow {
		return nil
	}
	now := time.Now()
	var last *decode.Relation
	for _, ch := range changes {
		if ch.Relation == nil || ch.Relation == last {
			continue
		}
		last = ch.Relation
		b := s.main.bindings.get(last)
		if b == nil || now.Sub(b.table.weighed) < statisticsAge {
			continue
		}
		// Fewer rows than pages, though a row takes a page at most.
		rows, err := query(ctx, s.main.pg, `SELECT coalesce(bool_or(relpages > 10 AND reltuples >= 0 AND reltuples < relpages), false) FROM pg_class
			WHERE relkind = 'r' AND (oid = $1::oid OR oid IN (SELECT relid FROM pg_partition_tree($1::oid::regclass)))`, b.table.oid)
		if err != nil {
			return tableError(b.table.name, err, "reading its statistics")
		}
		b.table.weighed, b.table.light = now, len(rows) == 1 && string(rows[0][0]) == "t"
	}
	return nil
}

// takesSets reports whether sets of changes to a table are worth trying.
func (b *binding) takesSets(batch uint64) bool { return batch >= b.sets.resume && !b.table.light }
