package flo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/wire"
)

// streamed takes a transaction that was published before it committed: the record stands for all of it. What it
// changed is read where it was staged.
func (f *feed) streamed(ctx context.Context, seq uint64, h *wire.Header, rec wire.Record) error {
	var s wire.Streamed
	if err := rec.JSON(&s); err != nil {
		return err
	}
	if f.tx != nil || f.pos.Open {
		return fmt.Errorf("%w: message %d: streamed transaction %d within another one", wire.ErrFormat, seq, s.XID)
	}
	f.skipping = false
	if s.Commit < f.pos.End {
		return nil
	}
	if f.batch.moved && s.Messages > 1 { // those before it don't wait for its end
		if err := f.emit(ctx); err != nil {
			return err
		}
	}
	r := &stagedReader{
		feed: f, record: &s, session: h.Session, subject: f.stream.StagedSubject(bus.StagedID{Session: h.Session, XID: s.XID}),
		missed: repositionError{have: f.pos, from: h.From, seq: seq},
		alive:  true, descriptions: map[tableName][]byte{},
	}
	for _, rel := range s.Relations {
		r.descriptions[tableName{rel.OID, rel.Name}] = rel.Description
	}
	f.tx = &decode.Tx{XID: s.XID, CommitLSN: s.Commit, CommitTime: s.Time, Origin: s.Origin}
	f.ordinal, f.handed = 0, false
	f.pos = wire.Point{LSN: s.Commit, End: f.pos.End, Open: true}
	if err := r.read(ctx); err != nil {
		return err
	}
	return f.end(ctx, seq, h, wire.Point{LSN: s.Commit, End: s.End})
}

// tableName is a table under one of its names.
type tableName struct {
	oid  uint32
	name decode.Name
}

// stagedReader reads the changes of a streamed transaction.
type stagedReader struct {
	*feed
	record       *wire.Streamed
	session      uint64
	subject      string
	missed       repositionError
	descriptions map[tableName][]byte
	parts        joiner
	alive        bool // the frames that come were not rolled back
}

const (
	// stagedDirect is up to how many staged messages are asked for one by one: a consumer is not worth it.
	stagedDirect = 4
	// stagedPatience is how long a staged message may stay away before the stream is asked for the last one.
	stagedPatience = 5 * time.Second
)

// read takes all of its messages, or fails with a repositionError if some are missing: then the stream was rolled
// back, and will be filled up again, or it has lost them.
func (r *stagedReader) read(ctx context.Context) error {
	next, done, err := r.source(ctx)
	if err != nil {
		return err
	}
	defer done()
	var last uint64
	for n := uint64(0); n < r.record.Messages; n++ {
		m, err := next()
		early := m.Seq == r.record.Last && n+1 < r.record.Messages
		if errors.Is(err, bus.ErrEmpty) || err == nil && (m.Seq > r.record.Last || early) {
			return r.lacks("%d of %d messages", n, r.record.Messages)
		}
		if err != nil {
			return err
		}
		if n == 0 && m.Seq != r.record.First {
			return r.lacks("the first message, %d", r.record.First)
		}
		last = m.Seq
		if err := r.message(ctx, &m); err != nil {
			return err
		}
	}
	if last != r.record.Last {
		return r.lacks("messages up to %d: the last of %d is %d", r.record.Last, r.record.Messages, last)
	}
	return nil
}

// lacks is the error of staged messages that are missing.
func (r *stagedReader) lacks(format string, args ...any) error {
	e := r.missed
	e.lacks = fmt.Sprintf("of transaction %d, staged in messages %d to %d, the stream lacks ", r.record.XID, r.record.First, r.record.Last) + fmt.Sprintf(format, args...)
	return &e
}

// complete looks for the last message, so that nobody waits for one that is not there.
func (r *stagedReader) complete(ctx context.Context) error {
	m, err := r.stream.Get(ctx, r.record.Last)
	if errors.Is(err, bus.ErrEmpty) || err == nil && m.Subject != r.subject {
		return r.lacks("the last message")
	}
	return err
}

// source gives what yields the messages one after the other, and what lets go of it.
func (r *stagedReader) source(ctx context.Context) (next func() (bus.Message, error), done func(), err error) {
	if r.record.Messages <= stagedDirect {
		seq := r.record.First
		return func() (bus.Message, error) {
			m, err := r.stream.Next(ctx, seq, r.subject)
			seq = m.Seq + 1
			return m, err
		}, func() {}, nil
	}
	if err := r.complete(ctx); err != nil {
		return nil, nil, err
	}
	reader := r.stream.Read(ctx, r.subject, r.record.First, bus.ReaderOptions{PullMaxBytes: prefetchBytes})
	return func() (bus.Message, error) {
		for {
			wait, cancel := context.WithTimeout(ctx, stagedPatience)
			m, err := reader.Next(wait)
			cancel()
			if err == nil || ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
				return m, err
			}
			if err := r.complete(ctx); err != nil {
				return m, err
			}
		}
	}, reader.Close, nil
}

// message takes one staged message.
func (r *stagedReader) message(ctx context.Context, m *bus.Message) error {
	h, body, err := wire.Parse(m.Data)
	if err != nil {
		return fmt.Errorf("flo: message %d of the stream: %w", m.Seq, err)
	}
	if h.Kind != wire.Staged || h.Session != r.session {
		return r.lacks("message %d: another one stands there", m.Seq)
	}
	body, ok, torn := r.parts.add(m.Seq, &h, body)
	if torn {
		return r.lacks("the beginning of what stands in message %d", m.Seq)
	}
	if !ok {
		return nil
	}
	rec := wire.Record{}
	for len(body) > 0 {
		if rec, body, err = wire.Next(body); err != nil {
			return fmt.Errorf("flo: message %d of the stream: %w", m.Seq, err)
		}
		if err := r.take(ctx, m.Seq, rec); err != nil {
			return err
		}
	}
	return nil
}

// take takes one record of a staged message.
func (r *stagedReader) take(ctx context.Context, seq uint64, rec wire.Record) error {
	if rec.Type == wire.RecSub {
		sub, err := wire.ParseSub(rec.Data)
		r.alive = !r.record.Aborted.Has(sub)
		return err
	}
	if !r.alive {
		return nil // with what described its tables: whoever else uses those has them described again
	}
	switch rec.Type {
	case 'Y':
		return r.parser.Type(rec.Data)
	case 'R':
		oid, name, err := decode.RelationName(rec.Data)
		if err != nil {
			return err
		}
		if d := r.descriptions[tableName{oid, name}]; d != nil {
			if err := r.parser.DescribeJSON(d); err != nil {
				return err
			}
		}
		_, err = r.parser.Relation(rec.Data)
		return err
	case 'I', 'U', 'D', 'T', 'M':
		return r.change(ctx, rec.Data)
	}
	return fmt.Errorf("%w: record %#x in staged message %d is not known: upgrade the worker", wire.ErrFormat, byte(rec.Type), seq)
}
