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

// transactions gives those that committed at or behind a position and changed something. The first
// byte of a message is its type, 'B' (66) carries the commit's LSN in its first eight bytes.
// https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html
func (o *oracle) transactions(r *rig, from decode.LSN) []transaction {
	r.t.Helper()
	got := value[[]string](r, r.source, `
		WITH m AS MATERIALIZED (
			SELECT row_number() OVER () AS n, xid, get_byte(data, 0) AS kind, substr(data, 2, 8) AS head
			FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'oracle')
		), t AS (
			SELECT min(n) AS n, max(encode(head, 'hex')) FILTER (WHERE kind = 66) AS head, count(*) FILTER (WHERE kind IN (68, 73, 84, 85)) AS changes
			FROM m GROUP BY xid
		)
		SELECT coalesce(array_agg(head || ' ' || changes ORDER BY n) FILTER (WHERE changes > 0), '{}') FROM t`, o.slot)
	must(r.t, execute(r.ctx, r.source, `SELECT pg_drop_replication_slot('`+o.slot+`')`))
	var txs []transaction
	for _, s := range got {
		var tx transaction
		if _, err := fmt.Sscanf(s, "%x %d", &tx.commit, &tx.changes); err != nil {
			r.t.Fatalf("%q: %v", s, err)
		}
		if tx.commit >= from {
			txs = append(txs, tx)
		}
	}
	return txs
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
	want := o.transactions(r, h.point)
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
