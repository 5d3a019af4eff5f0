package bus

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// StagedID names what a session has staged of a transaction.
type StagedID struct {
	Session uint64
	XID     uint32
}

// StagedSubject is the subject of a transaction's changes that were published before it ended.
func (s *Stream) StagedSubject(id StagedID) string {
	return s.prefix + "staged." + strconv.FormatUint(id.Session, 16) + "." + decimal(id.XID)
}

// StagedEndsSubject is the subject of what says how long staged messages are needed.
func (s *Stream) StagedEndsSubject() string { return s.prefix + "staged.ends" }

// Staged lists what is staged. It is all in memory at once: some hundred bytes a transaction.
func (s *Stream) Staged(ctx context.Context) ([]StagedID, error) {
	info, err := s.info(ctx, jetstream.WithSubjectFilter(s.prefix+"staged.*.*"))
	if err != nil {
		return nil, fmt.Errorf("bus: staged messages of stream %s: %w", s.name, err)
	}
	list := make([]StagedID, 0, len(info.State.Subjects))
	for subject := range info.State.Subjects {
		session, xid, ok := strings.Cut(strings.TrimPrefix(subject, s.prefix+"staged."), ".")
		a, err1 := strconv.ParseUint(session, 16, 64)
		b, err2 := strconv.ParseUint(xid, 10, 32)
		if ok && err1 == nil && err2 == nil {
			list = append(list, StagedID{a, uint32(b)})
		}
	}
	return list, nil
}

// PurgeStaged deletes what is staged of a transaction below a sequence. verified is as in PurgeChanges.
func (s *Stream) PurgeStaged(ctx context.Context, id StagedID, below, verified uint64) error {
	return s.purge(ctx, s.StagedSubject(id), below, below, verified)
}

// PurgeStagedEnds deletes from StagedEndsSubject below a sequence. verified is as in PurgeChanges.
func (s *Stream) PurgeStagedEnds(ctx context.Context, below, verified uint64) error {
	return s.purge(ctx, s.StagedEndsSubject(), below, below, verified)
}

// LineageSubject is the subject of what each round says of the group's tables, kept when its marker is purged.
func (s *Stream) LineageSubject() string { return s.prefix + "lineage" }

// PurgeLineage deletes from LineageSubject below a sequence. verified is as in PurgeChanges.
func (s *Stream) PurgeLineage(ctx context.Context, below, verified uint64) error {
	return s.purge(ctx, s.LineageSubject(), below, below, verified)
}
