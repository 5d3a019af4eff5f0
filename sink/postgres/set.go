package postgres

import (
	"encoding/binary"
	"slices"
	"strconv"

	"github.com/pgflo/flo/decode"
)

// A statement on a set takes its rows as arrays of text, one a column: unlike arrays of the column's own
// type those hold any type, arrays too, and need no escapes. They are sent in binary format, and each value
// becomes one of the column's type by the type's input function. Beside COPY into a temporary table and a
// statement that reads it, that is one round trip instead of two, none of its own in a pipeline, and there
// is no second heap to be written.
const textArray, textType = 1009, 25

// One statement takes so many rows, and about so many bytes, at most: the server holds them in memory a
// few times, and works at one statement while the next is made.
const (
	maxSetRows  = 4096
	maxSetBytes = 1 << 20
)

type setKind byte

// In the order in which the sets of a table are applied.
const (
	setDelete setKind = iota // rows that have to be there
	setPurge                 // rows that may be there
	setMove                  // rows that are given another key
	setUpdate
	setRenew  // inserts where a row has gone
	setInsert // inserts that overwrite a row that stands there
	setKinds
)

// setRun is rows of one table that are treated alike.
type setRun struct {
	binding *binding
	kind    setKind
	pattern string       // of its program
	columns []int        // relation columns that are given values
	keys    []decode.Row // of each row, where the key stands by which it is found; of inserts none
	rows    []decode.Row // of each row, its values; of deletes none
	change  int          // the first change that is about one of them
	single  bool         // of each row exactly one change has to meet it
}

func newSetRun(b *binding, kind setKind, pattern string, change int, row decode.Row) *setRun {
	run := &setRun{binding: b, kind: kind, pattern: pattern, change: change, single: true}
	for i := range row {
		if b.gives(kind, row, i) {
			run.columns = append(run.columns, i)
		}
	}
	return run
}

func (r *setRun) add(keys, row decode.Row, need int) {
	if keys != nil {
		r.keys = append(r.keys, keys)
	}
	if row != nil {
		r.rows = append(r.rows, row)
	}
	r.single = r.single && need == 1
}

// gives reports whether a column of a row is written.
func (b *binding) gives(kind setKind, row decode.Row, i int) bool {
	if p := row[i].Presence(); p != decode.Present && p != decode.Null || b.columns[i].generated {
		return false
	}
	return kind != setUpdate || !slices.Contains(b.keyCols, i)
}

// setPattern appends what tells the program of a kind of set on rows with the same columns from others.
// No change's pattern begins with 0.
func (b *binding) setPattern(dst []byte, kind setKind, row decode.Row) []byte {
	if kind == setRenew {
		kind = setInsert
	}
	dst = append(dst, 0, byte(kind))
	for i := range row {
		dst = append(dst, flag(b.gives(kind, row, i)))
	}
	return dst
}

// size gives the number of rows.
func (r *setRun) size() int { return max(len(r.keys), len(r.rows)) }

// counted reports whether each row has to be met.
func (r *setRun) counted() bool {
	return r.kind == setDelete || r.kind == setMove || r.kind == setUpdate
}

// program gives the statement for the run.
func (r *setRun) program() *program {
	if p := r.binding.programs[r.pattern]; p != nil {
		return p
	}
	c := compiler{binding: r.binding}
	switch b := r.binding; r.kind {
	case setDelete, setPurge:
		c.write("DELETE FROM ", b.table.from, " AS t USING ")
		where := c.joined()
		c.write(c.unnest(), where)
	case setMove, setUpdate:
		c.write("UPDATE ", b.table.from, " AS t SET ")
		for n, i := range r.columns {
			c.write(pick(n == 0, "", ", "), b.columns[i].quoted, " = ", c.element(source{col: i}))
		}
		where := c.joined()
		c.write(" FROM ", c.unnest(), where)
	case setRenew, setInsert:
		c.into(r.columns)
		for n, i := range r.columns {
			c.write(pick(n == 0, "SELECT ", ", "), c.element(source{col: i}))
		}
		c.write(" FROM ", c.unnest())
		if b.key != nil {
			c.onConflict(r.columns)
		}
	}
	c.end(r.counted())
	p := &program{binding: r.binding, pattern: r.pattern, steps: c.steps}
	r.binding.programs[r.pattern] = p
	return p
}

// element gives a column of the set, as a value of the table's column.
func (c *compiler) element(s source) string {
	at := slices.Index(c.params, s)
	if at < 0 {
		at = len(c.params)
		c.params = append(c.params, s)
		c.oids = append(c.oids, textArray)
	}
	return "s.c" + strconv.Itoa(at) + "::" + c.binding.columns[s.col].typeName
}

// joined is the condition that finds each row by its key.
func (c *compiler) joined() string {
	out := ""
	for n, i := range c.binding.keyCols {
		out += pick(n == 0, " WHERE ", " AND ") + "t." + c.binding.columns[i].quoted + " " + c.binding.keyOps[n] + " " + c.element(source{old: true, col: i})
	}
	return out
}

// unnest names the columns of the set, once all are known. With several arrays it can't be qualified;
// the session's search_path is pg_catalog.
// https://www.postgresql.org/docs/current/functions-array.html
func (c *compiler) unnest() string {
	args, names := "", ""
	for n := range c.params {
		args += pick(n == 0, "$", ", $") + strconv.Itoa(n+1)
		names += pick(n == 0, "c", ", c") + strconv.Itoa(n)
	}
	return "unnest(" + args + ") AS s (" + names + ")"
}

// part gives the end of the rows that go by one statement.
func (r *setRun) part(from int) int {
	bytes := 0
	end := min(r.size(), from+maxSetRows)
	for n := from; n < end; n++ {
		if r.rows != nil {
			for _, i := range r.columns {
				bytes += len(r.rows[n][i].Bytes())
			}
		}
		if bytes > maxSetBytes {
			return n + 1
		}
	}
	return end
}

// array appends one column of some rows as an array in binary format: dimensions, whether there are
// NULLs, the type, the length, the lower bound, and each element behind its length (array_recv in
// src/backend/utils/adt/arrayfuncs.c).
func (r *setRun) array(dst []byte, s source, from, to int) []byte {
	rows := r.rows
	if s.old {
		rows = r.keys
	}
	dst = binary.BigEndian.AppendUint32(dst, 1)
	dst = binary.BigEndian.AppendUint32(dst, 1)
	dst = binary.BigEndian.AppendUint32(dst, textType)
	dst = binary.BigEndian.AppendUint32(dst, uint32(to-from))
	dst = binary.BigEndian.AppendUint32(dst, 1)
	for _, row := range rows[from:to] {
		v := &row[s.col]
		if v.Presence() != decode.Present {
			dst = binary.BigEndian.AppendUint32(dst, ^uint32(0))
			continue
		}
		b := v.Bytes()
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(b)))
		dst = append(dst, b...)
	}
	return dst
}

// setApplier sends sets as statements.
type setApplier struct {
	session *session
	buf     []byte
	params  [][]byte
}

// apply sends one. met is given the number of rows that each statement was for, and that it met.
func (a *setApplier) apply(q *pipeline, r *setRun, met func(want, got int64) error) error {
	p := r.program()
	if err := a.session.use(q, p); err != nil {
		return err
	}
	st := p.steps[0]
	if !st.prepared {
		if err := q.prepareSet(r, st); err != nil {
			return err
		}
	}
	for from := 0; from < r.size(); {
		to := r.part(from)
		a.buf = a.buf[:0]
		ends := make([]int, 0, len(st.params))
		for _, s := range st.params {
			a.buf = r.array(a.buf, s, from, to)
			ends = append(ends, len(a.buf))
		}
		a.params = a.params[:0]
		start := 0
		for _, end := range ends {
			a.params = append(a.params, a.buf[start:end])
			start = end
		}
		want := int64(to - from)
		if err := q.executeSet(r, st, a.params, func(got int64) error { return met(want, got) }); err != nil {
			return err
		}
		from = to
	}
	return nil
}
