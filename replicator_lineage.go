package flo

import (
	"context"
	"errors"

	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/pack"
	"github.com/pgflo/flo/internal/wire"
)

// The publications at the source say which tables the group has, but not whether their copies are in the stream: one that
// NATS rolled back may have lost the round through which a table joined. Markers say it, and are purged. So the same
// stands on a subject of its own, in front of each marker: whatever end the stream has lost, its last message of an attempt that
// the stream knows names the tables that it has.

// keepLineage publishes what the attempt's marker is about to say of the group's tables. A list that is too large for a
// message is left out: then the publications alone count.
func (s *replication) keepLineage(ctx context.Context, attempt, base uint32, latest map[uint32]uint32) error {
	body, err := wire.AppendJSON(room(), wire.RecRound, wire.NewRound(attempt, base, latest))
	if err != nil || len(body) > s.stream.MaxPayload() {
		return err
	}
	b := pack.NewBatch(wire.Header{Kind: wire.Staged, Session: s.id, Attempt: attempt}, body)
	s.lineageSeq, err = s.pub.PublishAt(ctx, s.stream.LineageSubject(), b.Messages(s.stream.MaxPayload()), nil)
	if err != nil {
		return s.publisherError(err)
	}
	return nil
}

// members gives the tables that the stream has, by its own word; nil if it doesn't say.
func (s *replication) members(ctx context.Context) (map[uint32]uint32, error) {
	if len(s.lineage.latest) > 0 {
		return s.lineage.latest, nil
	}
	return membersOf(ctx, s.stream, func(attempt uint32) bool { return attempt == s.attempt }) // not an older one, or one whose marker was lost
}

// membersOf gives the tables that the stream has by its last word of an attempt that counts, each with the attempt that
// copied it; nil if it doesn't say.
func membersOf(ctx context.Context, stream *bus.Stream, counts func(attempt uint32) bool) (latest map[uint32]uint32, err error) {
	for seq := uint64(1); ; {
		msg, err := stream.Next(ctx, seq, stream.LineageSubject())
		if errors.Is(err, bus.ErrEmpty) {
			return latest, nil
		}
		if err != nil {
			return nil, err
		}
		seq = msg.Seq + 1
		h, body, err := wire.Parse(msg.Data)
		if err != nil {
			return nil, err
		}
		if !counts(h.Attempt) {
			continue
		}
		if err := wire.Walk(body, func(rec wire.Record) error {
			var r wire.Round
			err := rec.JSON(&r)
			latest = r.Latest()
			return err
		}); err != nil {
			return nil, err
		}
	}
}

// forgotten gives the tables of the group that the stream has never had, or has lost with a round.
func (s *replication) forgotten(ctx context.Context, asked []uint32) (tables []uint32, err error) {
	if s.noCopy {
		return nil, nil
	}
	members, err := s.members(ctx)
	if err != nil || members == nil {
		return nil, err
	}
	for _, oid := range asked {
		if _, has := members[oid]; !has {
			tables = append(tables, oid)
		}
	}
	return tables, nil
}
