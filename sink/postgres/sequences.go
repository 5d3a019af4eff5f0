package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pgsession"
)

// SequenceOption changes a default of SyncSequences.
type SequenceOption func(*sequenceSync)

type sequenceSync struct {
	lower            bool
	tables           map[decode.Name]decode.Name
	columns          map[[3]string]string
	passSrc, passDst func(context.Context) (string, error)
	bad              []error
}

// SequencesMayFall lets SyncSequences set a sequence back to where the source's is. Default: a destination's
// sequence that is further than the source's stays.
func SequencesMayFall() SequenceOption { return func(s *sequenceSync) { s.lower = true } }

// SequenceRoute says that a source table is called otherwise at the destination, as by rules.Route, so that
// the sequences which its columns own are found there; columns are pairs of names that differ, the source's
// first. Names are exact.
func SequenceRoute(source, destination decode.Name, columns ...[2]string) SequenceOption {
	return func(s *sequenceSync) {
		s.tables[source] = destination
		for _, c := range columns {
			s.columns[[3]string{source.Schema, source.Name, c[0]}] = c[1]
		}
	}
}

// SequencePasswords asks for passwords at each connect; nil leaves that of the connection string.
func SequencePasswords(source, destination func(ctx context.Context) (string, error)) SequenceOption {
	return func(s *sequenceSync) { s.passSrc, s.passDst = source, destination }
}

// Sequence is what SyncSequences has found of one sequence.
type Sequence struct {
	Source      decode.Name
	Destination decode.Name // zero if there is none
	Last        int64       // the source's last_value
	Called      bool        // and is_called: whether that value was given out
	Was         int64       // the destination's before
	Set         bool        // the destination's was changed
}

// SyncSequences sets the destination's sequences to where the source's stand, for a cut-over: logical
// replication leaves sequences out. Stop writing at the source, wait for the workers (WaitFor), and call it
// before the first write at the destination.
//
// A sequence that a column owns (serial, identity) goes to the one that the same column has at the
// destination, whatever its name; SequenceRoute says which table that is if it is called otherwise. Any other
// goes to the one of the same name. Sequences that the destination doesn't have come back with a zero
// Destination, and are no error. None is set lower (in its own direction) without SequencesMayFall. Extensions'
// sequences and those of schema flo are left alone.
//
// source and destination are URLs or keyword/value strings. The roles need USAGE of the schemas, SELECT on
// the sequences, and at the destination UPDATE too. The error joins all that failed; the others are set then.
func SyncSequences(ctx context.Context, source, destination string, opts ...SequenceOption) ([]Sequence, error) {
	src, err1 := pgsession.ParseConfig(source)
	dst, err2 := pgsession.ParseConfig(destination)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("sink/postgres: %w: %w", ErrInvalidOption, err)
	}
	return SyncSequencesConfig(ctx, src, dst, opts...)
}

// SyncSequencesConfig is SyncSequences for configurations that pgx.ParseConfig has made.
func SyncSequencesConfig(ctx context.Context, source, destination *pgx.ConnConfig, opts ...SequenceOption) (out []Sequence, err error) {
	if source == nil || destination == nil {
		return nil, fmt.Errorf("sink/postgres: %w: no connection configuration", ErrInvalidOption)
	}
	s := &sequenceSync{tables: map[decode.Name]decode.Name{}, columns: map[[3]string]string{}}
	for _, o := range opts {
		if o != nil {
			o(s)
		}
	}
	src, err := pgsession.Connect(ctx, source, pgsession.Options{AppName: "flo sequences", Password: s.passSrc})
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: source: %w", err)
	}
	defer goodbye(ctx, src)
	dst, err := pgsession.Connect(ctx, destination, pgsession.Options{AppName: "flo sequences", Password: s.passDst})
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: destination: %w", err)
	}
	defer goodbye(ctx, dst)
	found, err := readSequences(ctx, src.PgConn())
	if err != nil {
		return nil, fmt.Errorf("sink/postgres: the source's sequences: %w", err)
	}
	for _, q := range found {
		one, err := s.one(ctx, src.PgConn(), dst.PgConn(), q)
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if err != nil {
			if lacksPrivilege(err) {
				err = fmt.Errorf("%w: GRANT USAGE ON SCHEMA, and SELECT (at the destination UPDATE too) ON SEQUENCE: %w", ErrPrivilege, err)
			}
			s.bad = append(s.bad, fmt.Errorf("sink/postgres: sequence %s: %w", q.name, err))
		}
		out = append(out, one)
	}
	return out, errors.Join(s.bad...)
}

func goodbye(ctx context.Context, c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTimeout)
	defer cancel()
	_ = c.Close(ctx)
}

// sourceSequence is a sequence and the column that owns it.
type sourceSequence struct {
	name, table decode.Name
	column      string // "": none owns it
}

// readSequences lists those of users' schemas.
func readSequences(ctx context.Context, pg *pgconn.PgConn) ([]sourceSequence, error) {
	rows, err := query(ctx, pg, `SELECT n.nspname, c.relname, coalesce(tn.nspname, ''), coalesce(t.relname, ''), coalesce(a.attname, '')
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
		LEFT JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
		LEFT JOIN pg_class t ON t.oid = a.attrelid LEFT JOIN pg_namespace tn ON tn.oid = t.relnamespace
		WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname NOT IN ('flo', 'information_schema') AND n.nspname !~ '^pg_'
		AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e')
		ORDER BY 1, 2`)
	if err != nil {
		return nil, err
	}
	out := make([]sourceSequence, len(rows))
	for i, r := range rows {
		out[i] = sourceSequence{
			name:  decode.Name{Schema: string(r[0]), Name: string(r[1])},
			table: decode.Name{Schema: string(r[2]), Name: string(r[3])}, column: string(r[4]),
		}
	}
	return out, nil
}

// one sets one sequence.
func (s *sequenceSync) one(ctx context.Context, src, dst *pgconn.PgConn, q sourceSequence) (Sequence, error) {
	out := Sequence{Source: q.name}
	rows, err := query(ctx, src, "SELECT last_value, is_called FROM "+identOf(q.name))
	if err != nil {
		return out, fmt.Errorf("at the source: %w", err)
	}
	last, called := string(rows[0][0]), string(rows[0][1]) == "t"
	if out.Last, err = parseInt(last); err != nil {
		return out, err
	}
	out.Called = called
	name, err := s.find(ctx, dst, q)
	if err != nil || name == (decode.Name{}) {
		return out, err
	}
	out.Destination = name
	// One statement, so that a value given out meanwhile isn't given out again. Of equal values the one that
	// was given out is further.
	rows, err = query(ctx, dst, `SELECT q.last_value, s.seqincrement > 0, q.is_called, CASE WHEN `+s.further()+` THEN setval($1::regclass, $2::bigint, $3::boolean) END IS NOT NULL
		FROM `+identOf(name)+` q, pg_sequence s WHERE s.seqrelid = $1::regclass`, identOf(name), last, fmt.Sprint(called))
	if err != nil {
		return out, fmt.Errorf("at the destination, %s: %w", name, err)
	}
	if len(rows) != 1 {
		return out, fmt.Errorf("at the destination, %s: it is gone", name)
	}
	out.Set = string(rows[0][3]) == "t"
	out.Was, err = parseInt(string(rows[0][0]))
	return out, err
}

// further is the condition under which a sequence is set.
func (s *sequenceSync) further() string {
	if s.lower {
		return "q.last_value <> $2::bigint OR q.is_called <> $3::boolean"
	}
	return `CASE WHEN s.seqincrement > 0 THEN q.last_value < $2::bigint ELSE q.last_value > $2::bigint END
		OR q.last_value = $2::bigint AND $3::boolean AND NOT q.is_called`
}

func parseInt(text string) (n int64, err error) {
	if n, err = strconv.ParseInt(text, 10, 64); err != nil {
		return 0, fmt.Errorf("sink/postgres: a sequence's value: %w", err)
	}
	return n, nil
}

// find gives the destination's sequence.
func (s *sequenceSync) find(ctx context.Context, pg *pgconn.PgConn, q sourceSequence) (decode.Name, error) {
	if q.column != "" {
		table, column := q.table, q.column
		if to, ok := s.tables[table]; ok {
			table = to
		}
		if to, ok := s.columns[[3]string{q.table.Schema, q.table.Name, q.column}]; ok {
			column = to
		}
		rows, err := query(ctx, pg, `SELECT sn.nspname, q.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
			JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = $3 AND NOT a.attisdropped
			JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid = a.attnum
				AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
			JOIN pg_class q ON q.oid = d.objid AND q.relkind = 'S' JOIN pg_namespace sn ON sn.oid = q.relnamespace
			WHERE n.nspname = $1 AND c.relname = $2 ORDER BY d.deptype DESC LIMIT 1`, table.Schema, table.Name, column)
		if err != nil {
			return decode.Name{}, fmt.Errorf("at the destination: %w", err)
		}
		if len(rows) == 1 {
			return decode.Name{Schema: string(rows[0][0]), Name: string(rows[0][1])}, nil
		}
	}
	// One of the same name that another column owns is another sequence.
	there, err := yes(ctx, pg, `SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind = 'S' AND ($3 = '' OR NOT EXISTS (SELECT FROM pg_depend d
			WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))))`,
		q.name.Schema, q.name.Name, q.column)
	if err != nil || !there {
		return decode.Name{}, err
	}
	return q.name, nil
}
