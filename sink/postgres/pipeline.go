package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// What is sent goes to the server every windowBytes, which then works at it while the client encodes more.
// A window is windowRequests of them: the answers to one are read when the next has been sent. Two are
// under way at most, so what the server has to say, which is little for each, always fits while pgconn
// writes.
const (
	windowBytes    = 128 << 10
	windowRequests = 512
)

// binaryFormat is the format of all of a statement's parameters.
var binaryFormat = []int16{1}

// request says what the next answer of the server is about.
type request struct {
	change  int // index into the batch, -1 if none
	step    *step
	prepare bool
	counted bool // no row met is a missing row
	rows    func(values [][]byte) error
	one     bool // no row met means that the checkpoint is gone
	set     *setRun
	met     func(n int64) error // is told how many rows a set's statement met
	done    func()              // it is a COMMIT, and is told of its success
}

// requestError is what went wrong, and with which change.
type requestError struct {
	change int
	err    error
}

func (e *requestError) Error() string { return e.err.Error() }
func (e *requestError) Unwrap() error { return e.err }

// pipeline sends statements without waiting for each one's answer.
// https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
type pipeline struct {
	p       *pgconn.Pipeline
	pg      *pgconn.PgConn
	queue   []request // what was sent, in order
	head    int       // the next one to be answered
	mark    int       // the end of the last window that was sent
	bytes   int       // in the present window
	missing func(change int) error
	name    func() string // of the next prepared statement
	// describe stands for every prepared statement. Saying that they give rows, which but one do not,
	// saves pgconn a Describe of each, and the server its answer; nobody reads what fields it names.
	describe pgconn.StatementDescription
}

func newPipeline(ctx context.Context, c *session, missing func(change int) error) *pipeline {
	return &pipeline{
		p: c.pg.StartPipeline(ctx), pg: c.pg, missing: missing, name: c.programs.name,
		describe: pgconn.StatementDescription{Fields: make([]pgconn.FieldDescription, 1)},
	}
}

// run sends a statement without parameters that is not prepared.
func (q *pipeline) run(change int, sql string) error {
	q.p.SendQueryParams(sql, nil, nil, nil, nil)
	return q.sent(request{change: change}, len(sql))
}

// commit ends the transaction, if all that was sent before succeeds.
func (q *pipeline) commit(done func()) error {
	q.p.SendQueryParams("COMMIT", nil, nil, nil, nil)
	return q.sent(request{change: -1, done: done}, 0)
}

// one sends a statement, prepared the first time, that has to meet the checkpoint's row.
func (q *pipeline) one(st *step, params [][]byte, rows func([][]byte) error) error {
	if !st.prepared {
		if err := q.prepare(-1, st); err != nil {
			return err
		}
	}
	q.describe.Name = st.name
	q.p.SendQueryStatement(&q.describe, params, nil, nil)
	return q.sent(request{change: -1, rows: rows, one: true}, size(params))
}

// prepare sends a step's statement, under a name never used before: after an error nobody knows whether
// the server has kept what it was sent.
func (q *pipeline) prepare(change int, st *step) error {
	st.name, st.prepared, st.ready = q.name(), true, false
	q.p.SendPrepare(st.name, st.sql, st.oids)
	return q.sent(request{change: change, step: st, prepare: true}, len(st.sql))
}

// execute sends a step's parameters.
func (q *pipeline) execute(change int, st *step, params [][]byte) error {
	q.describe.Name = st.name
	q.p.SendQueryStatement(&q.describe, params, nil, nil)
	return q.sent(request{change: change, step: st, counted: st.counted}, size(params))
}

// prepareSet is prepare for a set.
func (q *pipeline) prepareSet(r *setRun, st *step) error {
	st.name, st.prepared, st.ready = q.name(), true, false
	q.p.SendPrepare(st.name, st.sql, st.oids)
	return q.sent(request{change: r.change, step: st, prepare: true, set: r}, len(st.sql))
}

// executeSet sends a set's arrays.
func (q *pipeline) executeSet(r *setRun, st *step, params [][]byte, met func(n int64) error) error {
	q.describe.Name = st.name
	q.p.SendQueryStatement(&q.describe, params, binaryFormat, nil)
	return q.sent(request{change: r.change, step: st, set: r, met: met}, size(params))
}

// deallocate forgets a prepared statement.
func (q *pipeline) deallocate(name string) error {
	q.p.SendDeallocate(name)
	return q.sent(request{change: -1}, len(name))
}

func size(params [][]byte) int {
	n := 64
	for _, p := range params {
		n += 4 + len(p)
	}
	return n
}

func (q *pipeline) sent(r request, bytes int) error {
	q.queue = append(q.queue, r)
	q.bytes += bytes
	full := len(q.queue)-q.mark >= windowRequests
	if q.bytes < windowBytes && !full {
		return nil
	}
	q.p.SendFlushRequest()
	if err := q.p.Flush(); err != nil {
		return &requestError{-1, err}
	}
	q.bytes = 0
	if !full {
		return nil
	}
	before := q.mark
	q.mark = len(q.queue)
	if err := q.read(before); err != nil {
		return err
	}
	if q.head > windowRequests { // the answered part need not be kept
		n := copy(q.queue, q.queue[q.head:])
		clear(q.queue[n:])
		q.queue, q.mark, q.head = q.queue[:n], q.mark-q.head, 0
	}
	return nil
}

// read takes the answers to the requests in front of end.
func (q *pipeline) read(end int) error {
	for q.head < end {
		r := &q.queue[q.head]
		q.head++
		if err := q.answer(r); err != nil {
			if r.set != nil {
				err = &setError{r.set.binding, err}
			}
			return &requestError{r.change, err}
		}
	}
	return nil
}

func (q *pipeline) answer(r *request) error {
	results, err := q.p.GetResults()
	if err != nil {
		return err
	}
	switch res := results.(type) {
	case *pgconn.StatementDescription:
		if r.step != nil {
			r.step.ready = true
		}
	case *pgconn.CloseComplete:
	case *pgconn.ResultReader:
		for res.NextRow() {
			if r.rows != nil {
				if err := r.rows(res.Values()); err != nil {
					return err
				}
			}
		}
		tag, err := res.Close()
		if err != nil {
			return err
		}
		if r.done != nil {
			if tag.String() != "COMMIT" {
				return errRolledBack
			}
			r.done()
		}
		if r.one && tag.RowsAffected() == 0 {
			return fmt.Errorf("the checkpoint's row is gone: %w", ErrCheckpointMoved)
		}
		if r.met != nil {
			return r.met(tag.RowsAffected())
		}
		if r.counted && tag.RowsAffected() == 0 {
			return q.missing(r.change)
		}
	default:
		return fmt.Errorf("sink/postgres: the server's answer is a %T", results)
	}
	return nil
}

// finish waits for all answers.
func (q *pipeline) finish() error {
	if err := q.p.Sync(); err != nil {
		return &requestError{-1, err}
	}
	if err := q.read(len(q.queue)); err != nil {
		return err
	}
	if err := q.p.Close(); err != nil {
		return &requestError{-1, err}
	}
	return nil
}

// abandon gives the connection back after an error: the server skips to the Sync. A connection that broke is
// pgconn's own: it closes it on another goroutine, and writes to it there.
func (q *pipeline) abandon() {
	if !q.pg.IsClosed() {
		_ = q.p.Sync()
	}
	_ = q.p.Close()
}
