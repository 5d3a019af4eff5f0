package flo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/wire"
	"github.com/pgflo/flo/sink"
)

// describe reads what the round's tables look like. It waits for their snapshot.
func (d *drainer) describe(ctx context.Context) error {
	subject := d.stream.CopyBeginSubject(d.round.attempt)
	looked := time.Now()
	for seq := uint64(1); ; {
		missing := 0
		for table := range d.unread {
			if d.tables[table] == nil {
				missing++
			}
		}
		if missing == 0 {
			break
		}
		m, err := d.stream.Next(ctx, seq, subject)
		if errors.Is(err, bus.ErrEmpty) {
			if time.Since(looked) > attemptPoll {
				looked = time.Now()
				if err := d.supersede(ctx); err != nil {
					return err
				}
			}
			if err := pollWait(ctx, beginPoll); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		seq = m.Seq + 1
		h, body, err := wire.Parse(m.Data)
		if err != nil {
			return fmt.Errorf("flo: copy message %d: %w", m.Seq, err)
		}
		if body, ok, _ := d.parts.add(m.Seq, &h, body); ok {
			if err := wire.Walk(body, func(rec wire.Record) error { return d.describeTable(ctx, rec) }); err != nil {
				return err
			}
		}
	}
	if d.round.base == d.round.attempt && len(d.dropped) == 0 { // this one has all tables
		d.warnOfUnmet(ctx)
	}
	return nil
}

// describeTable takes one record of what begins a round.
func (d *drainer) describeTable(ctx context.Context, rec wire.Record) error {
	if rec.Type == wire.RecDescribe {
		return d.parser.DescribeJSON(rec.Data)
	}
	var cb wire.CopyBegin
	if err := rec.JSON(&cb); err != nil {
		return err
	}
	rel, err := d.parser.Relation(cb.Relation)
	if err != nil || !d.unread[cb.Table] {
		return err
	}
	if err := d.letters.copiedAfresh(ctx, &cb); err != nil {
		return err
	}
	b, err := d.bind(ctx, rel)
	if err != nil {
		return &SinkError{Worker: d.opt.name, Copy: &decode.CopyID{Point: cb.Point, Table: cb.Table, Attempt: cb.Attempt}, Table: rel.Qualified(), Err: fmt.Errorf("rule: %w", err)}
	}
	schema, err := d.shapeOf(&cb)
	if err != nil {
		return err
	}
	d.tables[cb.Table] = &copyTable{in: rel, binding: b, table: sink.CopyTable{
		Relation: b.Out, From: rel, Source: cb.Table, Attempt: cb.Attempt, Point: cb.Point, Base: d.round.base, Kept: d.round.kept, Filtered: b.Copied != nil,
		Schema: schema,
	}}
	return nil
}

// shapeOf reads a table's structure, as the rules leave it; nil if the round doesn't tell.
func (d *drainer) shapeOf(cb *wire.CopyBegin) (*decode.SchemaChange, error) {
	if len(cb.Schema) == 0 {
		return nil, nil
	}
	s := &decode.SchemaChange{}
	if err := json.Unmarshal(cb.Schema, s); err != nil {
		return nil, fmt.Errorf("%w: structure of table %d: %w", wire.ErrFormat, cb.Table, err)
	}
	return d.rules.Schema(s)
}
