package flo

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	flocopy "github.com/pgflo/flo/copy"
	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/crashpoint"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/wire"
)

// copyTables copies the round's tables under one snapshot into the stream, and closes done when the last
// message is in the publisher's hands: whatever is published behind it stands behind it in the stream.
// Tables that were rewritten meanwhile are left for another round.
func (s *replication) copyTables(ctx context.Context, done chan<- struct{}) error {
	s.r.status.copying()
	if len(s.round) == 0 {
		close(done)
		return nil
	}
	if err := s.takeSnapshot(ctx); err != nil {
		return s.publisherError(err)
	}
	tables := make([]flocopy.Table, 0, len(s.round))
	for i := range s.round {
		t := &s.round[i]
		ft := flocopy.Table{OID: t.OID, Schema: t.Schema, Name: t.Name, RowFilter: t.RowFilter}
		for _, c := range t.Columns {
			ft.Columns = append(ft.Columns, c.Name)
		}
		tables = append(tables, ft)
	}
	var release sync.Once
	free := func() { release.Do(func() { s.slot.Release(ctx) }) }
	started := free
	if s.r.cfg.mode == CopyOnly {
		started = func() {} // the slot is temporary: it lives as long as its connection
	}
	defer free()
	var err error
	if len(tables) > 0 {
		err = s.copyThese(ctx, tables, started)
	}
	if err == nil && len(s.altered) > 0 {
		err = errAltered
	}
	var rewritten *flocopy.RewrittenError
	if errors.Is(err, errAltered) || errors.As(err, &rewritten) || errors.Is(err, flocopy.ErrDropped) {
		if perr := s.pub.Drained(ctx); perr != nil { // the tables that are whole stay so
			return s.publisherError(perr)
		}
		return fmt.Errorf("%w: %w", errRound, err)
	}
	if err != nil {
		return s.publisherError(err)
	}
	close(done)
	return nil
}

func (s *replication) copyThese(ctx context.Context, tables []flocopy.Table, started func()) error {
	return flocopy.Run(ctx, flocopy.Config{
		Connect:     s.r.source.Connect,
		Snapshot:    s.slot.Snapshot,
		Tables:      tables,
		Connections: s.r.cfg.copyConnections,
		ChunkBytes:  s.target() - copyRoom,
		Room:        copyRoom,
		Emit:        s.emitChunk,
		TableDone:   s.emitEnd,
		Started:     started,
		Progress:    s.r.status.progress,
	})
}

// errAltered says that tables were altered between their snapshot and their description.
var errAltered = errors.New("flo: tables were altered while their copy began")

// copyRoom is what a chunk leaves free before its rows for the message's and the record's heads, so that
// they become a message where they lie.
const copyRoom = wire.HeaderRoom + wire.CopyChunkRoom

func (s *replication) emitChunk(ctx context.Context, c flocopy.Chunk) error {
	chunk := wire.CopyChunk{
		ID:   decode.CopyID{Point: s.slot.Point, Table: c.Table.OID, Attempt: s.attempt, Range: c.Range, Row: c.Row},
		Rows: c.Rows, Data: c.Data[copyRoom:],
	}
	var room [wire.CopyChunkRoom]byte
	head := wire.AppendCopyChunkHead(room[:0], &chunk)
	at := copyRoom - len(head)
	copy(c.Data[at:], head)
	return s.putCopy(ctx, s.stream.CopySubject(s.attempt, c.Table.OID), c.Data[at-wire.HeaderRoom:])
}

func (s *replication) emitEnd(ctx context.Context, t *flocopy.Table, chunks, rows uint64) error {
	body, err := wire.AppendJSON(room(), wire.RecCopyEnd, wire.CopyEnd{Table: t.OID, Attempt: s.attempt, Chunks: chunks, Rows: rows})
	if err != nil {
		return err
	}
	return s.putCopy(ctx, s.stream.CopyEndSubject(s.attempt, t.OID), body)
}

func (s *replication) putCopy(ctx context.Context, subject string, body []byte) error {
	if err := s.gate.waitCopy(ctx); err != nil {
		return err
	}
	s.gate.add(len(body))
	at := wire.Point{End: s.slot.Point}
	b := pack.NewBatch(wire.Header{
		Kind: wire.Copy, Session: s.id, Attempt: s.attempt, Start: s.start, Timeline: s.tailTimeline(), From: at, To: at,
	}, body)
	err := s.pub.Publish(ctx, subject, b.Messages(s.stream.MaxPayload()), nil)
	crashpoint.Reached(crashpoint.CopySent)
	return err
}

// copyOnly copies, marks the end, and is done: there is nothing to stream.
func (s *replication) copyOnly(ctx context.Context) error {
	s.r.status.set(PhaseCopying)
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	g, gctx := errgroup.WithContext(work)
	g.Go(func() error { return s.upkeep(gctx) })
	g.Go(func() error {
		defer cancel()
		if err := s.copyTables(gctx, make(chan struct{})); err != nil {
			return err
		}
		body, err := wire.AppendJSON(room(), wire.RecCopyDone, wire.CopyDone{Attempt: s.attempt, Finished: true})
		if err != nil {
			return err
		}
		s.copyDone = true
		if err := s.put(gctx, body, s.tail); err != nil {
			return err
		}
		if err := s.pub.Drained(gctx); err != nil {
			return s.publisherError(err)
		}
		s.whole.Store(true)
		s.r.status.copied()
		return errFinished
	})
	return g.Wait()
}
