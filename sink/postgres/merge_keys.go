package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
)

// A table of keys (see WithMergeCopy) says which of the destination's rows flo has brought: those of the last merge,
// and those that streamed changes have written since. It is brought up to date at the end of each batch, in its
// transaction: of the keys that the batch's changes name, those that stand in the destination now are flo's, for flo
// was the last to write them, and those that don't are nobody's. So it doesn't matter how the changes were applied.
//
// That holds as long as the table of keys is there, whether the option is set or not.

// knownKeys are the tables of keys of the open worker.
type knownKeys struct {
	mu     sync.Mutex
	tables map[string][]string // the key's columns, by the table's name
}

func (k *knownKeys) set(tables map[string][]string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tables = tables
}

// note adds or removes (nil) one.
func (k *knownKeys) note(name string, columns []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tables = maps.Clone(k.tables)
	if columns == nil {
		delete(k.tables, name)
		return
	}
	if k.tables == nil {
		k.tables = map[string][]string{}
	}
	k.tables[name] = columns
}

// all gives what must not be written to.
func (k *knownKeys) all() map[string][]string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tables
}

// readKeys reads the tables of keys whose names begin with a prefix, with the columns that make the key.
func (s *Sink) readKeys(ctx context.Context, pg *pgconn.PgConn, prefix string) (map[string][]string, error) {
	rows, err := query(ctx, pg, `SELECT c.relname, a.attname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE n.nspname = $1 AND c.relkind = 'r' AND starts_with(c.relname, $2) AND a.attname <> $3 ORDER BY c.oid, a.attnum`,
		s.config.schema, prefix, fromSource)
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: looking for tables of keys: %w", err)
	}
	var tables map[string][]string
	for _, r := range rows {
		if tables == nil {
			tables = map[string][]string{}
		}
		tables[string(r[0])] = append(tables[string(r[0])], string(r[1]))
	}
	return tables, nil
}

// maxKeySet is how many keys one statement names.
const maxKeySet = 4096

// touchedKeys are the keys that a batch's changes of one source table name.
type touchedKeys struct {
	binding *binding
	key     mergeKey
	arrays  [][]byte
	count   int
}

// bring notes what the changes in front of an index have brought.
func (w *writing) bring(to int) error {
	s := w.sink
	tables := s.keys.all()
	if len(tables) == 0 {
		return nil
	}
	st := s.start.Load()
	by := map[*binding]*touchedKeys{}
	for i, ch := range w.batch.Changes[:to] {
		if ch.Op != decode.OpInsert && ch.Op != decode.OpUpdate && ch.Op != decode.OpDelete {
			continue
		}
		b := s.main.bindings.get(ch.Relation)
		k, known := by[b]
		if !known {
			var err error
			if k, err = s.tracked(tables, st, b); err != nil {
				return &requestError{i, err}
			}
			by[b] = k
		}
		if k == nil {
			continue
		}
		if err := k.take(ch); err != nil {
			return &requestError{i, err}
		}
		if k.count >= maxKeySet {
			if err := k.send(w, st); err != nil {
				return err
			}
		}
	}
	for _, k := range by {
		if k == nil || k.count == 0 {
			continue
		}
		if err := k.send(w, st); err != nil {
			return err
		}
	}
	return nil
}

// tracked gives what is to be noted of a binding's changes; nil: nothing.
func (s *Sink) tracked(tables map[string][]string, st *sink.Start, b *binding) (*touchedKeys, error) {
	if b == nil {
		return nil, nil
	}
	columns, ok := tables[keysName(st, b.table.name)]
	if !ok {
		return nil, nil
	}
	key, err := b.mergeKey()
	if err == nil && !slices.Equal(key.names(b), columns) {
		err = tableError(b.table.name, ErrMergeKey, fmt.Sprintf("which was %s when its copy was merged: copy it afresh", strings.Join(columns, ", ")))
	}
	if err != nil {
		return nil, err
	}
	return &touchedKeys{binding: b, key: key, arrays: make([][]byte, len(key.cols))}, nil
}

// errKeyUnknown is a change that doesn't say which row it is about.
var errKeyUnknown = errors.New("the change doesn't name the key by which copies are merged")

// take adds the keys that a change names.
func (k *touchedKeys) take(ch *decode.Change) error {
	named := false
	for _, row := range [...]decode.Row{ch.Old, ch.New} {
		if row != nil && k.add(row, ch.Old) {
			named = true
		}
	}
	if !named {
		return tableError(k.binding.table.name, ErrMergeKey, errKeyUnknown.Error())
	}
	return nil
}

// add adds the key of one row, whose unchanged values stand in old; false if it hasn't all of it.
func (k *touchedKeys) add(row, old decode.Row) bool {
	values := make([][]byte, len(k.key.cols))
	for n, i := range k.key.cols {
		v := row[i]
		if v.Presence() == decode.Unchanged && old != nil {
			v = old[i]
		}
		if v.Presence() != decode.Present {
			return false
		}
		values[n] = v.Bytes()
	}
	for n, v := range values {
		k.arrays[n] = appendElement(k.arrays[n], v)
	}
	k.count++
	return true
}

// appendElement appends an element to an array in text format, whose closing brace is missing.
// https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO
func appendElement(array, v []byte) []byte {
	if len(array) == 0 {
		array = append(array, '{')
	} else {
		array = append(array, ',')
	}
	array = append(array, '"')
	for _, c := range v {
		if c == '"' || c == '\\' {
			array = append(array, '\\')
		}
		array = append(array, c)
	}
	return append(array, '"')
}

// send brings the table of keys up to date for the keys at hand.
func (k *touchedKeys) send(w *writing, st *sink.Start) error {
	b, keys := k.binding, w.sink.keysTable(st, k.binding.table.name)
	args, cols, match := "", "", ""
	oids := make([]uint32, len(k.arrays))
	for n := range k.arrays {
		k.arrays[n] = append(k.arrays[n], '}')
		oids[n] = textArray
		args += pick(n == 0, "$", ", $") + strconv.Itoa(n+1)
		cols += pick(n == 0, "c", ", c") + strconv.Itoa(n)
		c := b.columns[k.key.cols[n]]
		match += " AND x." + c.quoted + " " + k.key.ops[n] + " s.c" + strconv.Itoa(n) + "::" + c.typeName
	}
	set := "unnest(" + args + ") AS s (" + cols + ")"
	source := number(b.rel.OID)
	gone := "DELETE FROM " + keys + " AS x USING " + set + " WHERE x." + fromSource + " = " + source + match +
		" AND NOT EXISTS (SELECT FROM " + b.table.from + " AS d WHERE " + k.key.equal(b, "d", "x") + ")"
	there := "INSERT INTO " + keys + " (" + k.key.columns(b, "") + ", " + fromSource + ") SELECT " + k.key.columns(b, "x.") + ", " + source +
		" FROM " + b.table.from + " AS x, " + set + " WHERE true" + match + " ON CONFLICT DO NOTHING"
	for _, sql := range []string{gone, there} {
		if err := w.pipe().ask(-1, sql, k.arrays, oids); err != nil {
			return err
		}
	}
	k.arrays, k.count = make([][]byte, len(k.arrays)), 0
	return nil
}

// ask sends a statement with parameters in text format that is not prepared.
func (q *pipeline) ask(change int, sql string, params [][]byte, oids []uint32) error {
	q.p.SendQueryParams(sql, params, oids, nil, nil)
	return q.sent(request{change: change}, len(sql)+size(params))
}

// truncateMerged takes out what flo has brought of a source's rows, where the destination holds rows of others. It
// reports false for a table that is to be emptied as usual.
func (w *writing) truncateMerged(change int, rel *decode.Relation) (bool, error) {
	s, st := w.sink, w.sink.start.Load()
	b := s.main.bindings.get(rel)
	k, err := s.tracked(s.keys.all(), st, b)
	if err != nil || k == nil {
		return false, err
	}
	keys, source := s.keysTable(st, b.table.name), number(rel.OID)
	for _, sql := range []string{
		"DELETE FROM " + b.table.from + " AS d USING " + keys + " AS k WHERE k." + fromSource + " = " + source + " AND " + k.key.equal(b, "d", "k") +
			" AND NOT EXISTS (SELECT FROM " + keys + " AS o WHERE " + k.key.equal(b, "o", "k") + " AND o." + fromSource + " <> " + source + ")",
		"DELETE FROM " + keys + " WHERE " + fromSource + " = " + source,
	} {
		if err := w.pipe().run(change, sql); err != nil {
			return false, err
		}
	}
	return true, nil
}
