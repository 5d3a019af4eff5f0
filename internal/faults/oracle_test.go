//go:build unix

package faults

import (
	"fmt"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/flotest"
)

// oracle is a slot of its own on the source, read at the end through SQL: PostgreSQL's own word on
// which transactions there were, in which order, with how many changes.
type oracle struct{ slot string }

// newOracle makes it before the first write that counts.
func newOracle(r *rig) *oracle {
	r.t.Helper()
	o := &oracle{slot: "oracle_" + r.group}
	must(r.t, execute(r.ctx, r.source, `CREATE PUBLICATION oracle FOR ALL TABLES`))
	value[string](r, r.source, `SELECT slot_name::text FROM pg_create_logical_replication_slot($1, 'pgoutput')`, o.slot)
	return o
}

type transaction struct {
	commit  decode.LSN
	changes uint64
}

// transactions gives those that committed at or behind a position and changed something that no copy holds:
// a table's changes count from its own copy's point on. The first byte of a message is its type, 'B' (66) carries
// the commit's LSN in its first eight bytes, changes their table's OID.
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
func (o *oracle) transactions(r *rig, from decode.LSN, points map[uint32]decode.LSN) []transaction {
	r.t.Helper()
	got := value[[]string](r, r.source, `
		WITH m AS MATERIALIZED (
			SELECT row_number() OVER () AS n, xid, get_byte(data, 0) AS kind, substr(data, 2, 8) AS head
			FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'oracle')
		), t AS (
			SELECT min(n) AS n, xid, max(encode(head, 'hex')) FILTER (WHERE kind = 66) AS head FROM m GROUP BY xid
		), c AS (
			SELECT xid, CASE WHEN kind = 84 THEN '00000000' ELSE encode(substr(head, 1, 4), 'hex') END AS oid, count(*) AS changes
			FROM m WHERE kind IN (68, 73, 84, 85) GROUP BY 1, 2
		)
		SELECT coalesce(array_agg(head || ' ' || oid || ' ' || changes ORDER BY n), '{}') FROM t JOIN c USING (xid)`, o.slot)
	must(r.t, execute(r.ctx, r.source, `SELECT pg_drop_replication_slot('`+o.slot+`')`))
	var txs []transaction
	for _, s := range got {
		var tx transaction
		var oid uint32
		if _, err := fmt.Sscanf(s, "%x %x %d", &tx.commit, &oid, &tx.changes); err != nil {
			r.t.Fatalf("%q: %v", s, err)
		}
		if tx.commit < max(from, points[oid]) {
			continue
		}
		if n := len(txs); n > 0 && txs[n-1].commit == tx.commit {
			txs[n-1].changes += tx.changes
			continue
		}
		txs = append(txs, tx)
	}
	return txs
}

// copyPoints gives the point of each table's copy, as the PostgreSQL sink has noted it.
func copyPoints(r *rig) map[uint32]decode.LSN {
	r.t.Helper()
	points := map[uint32]decode.LSN{}
	for _, s := range value[[]string](r, r.dest, `SELECT coalesce(array_agg(source || ' ' || point), '{}') FROM flo.copies`) {
		var oid uint32
		var text string
		_, err := fmt.Sscanf(s, "%d %s", &oid, &text)
		must(r.t, err)
		lsn, err := decode.ParseLSN(text)
		must(r.t, err)
		points[oid] = lsn
	}
	return points
}

// provesHistory compares a file sink's lines with the oracle's transactions, one by one, and the
// tables that the lines make with the source's.
func (o *oracle) provesHistory(r *rig, folder string, schema func(url string)) {
	r.t.Helper()
	h, err := readHistory(folder)
	must(r.t, err)
	var got []transaction
	for _, l := range h.changes {
		pos, err := l.position()
		must(r.t, err)
		if n := len(got); n > 0 && got[n-1].commit == pos.LSN {
			got[n-1].changes++
			continue
		}
		got = append(got, transaction{commit: pos.LSN, changes: 1})
	}
	want := o.transactions(r, h.point, copyPoints(r))
	r.logf("file: %d copied rows (attempt %d), %d changes in %d transactions, PostgreSQL decodes %d; the file went back %d times and repeated %d changes",
		len(h.copied), h.attempt, len(h.changes), len(got), len(want), h.again, h.repeats)
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			at := func(txs []transaction) string {
				if i < len(txs) {
					return fmt.Sprintf("%s with %d changes", txs[i].commit, txs[i].changes)
				}
				return "nothing"
			}
			r.t.Fatalf("transaction %d: the file has %s, PostgreSQL decodes %s", i, at(got), at(want))
		}
	}
	im, err := h.replay()
	must(r.t, err)
	rebuilt := flotest.Postgres(r.t).URL
	schema(rebuilt)
	must(r.t, im.load(r.ctx, rebuilt))
	flotest.Equal(r.t, r.ctx, r.source, rebuilt)
}
