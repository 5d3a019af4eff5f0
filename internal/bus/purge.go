package bus

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/internal/crashpoint"
)

// PurgeChanges deletes the messages of `changes` below a sequence, always keeping the last one.
// verified is the last sequence that the caller's session knows to be in the stream.
//
// A purge of a whole stream beyond its last sequence moves that sequence up (nats-server
// filestore.go, PurgeEx and compact): a stream that came back with an older state would be wiped, and
// its numbers would lie. So only single subjects are purged, below what was verified, and only while
// the stream still reaches there: else ErrBeyondTail or ErrRolledBack.
func (s *Stream) PurgeChanges(ctx context.Context, below, verified uint64) error {
	tail, err := s.Tail(ctx)
	if errors.Is(err, ErrEmpty) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.purge(ctx, s.ChangesSubject(), min(below, tail.Seq), below, verified)
}

// PurgeRows deletes copied rows of all attempts below a sequence; what begins and ends the copies stays.
// verified is as in PurgeChanges.
func (s *Stream) PurgeRows(ctx context.Context, below, verified uint64) error {
	return s.purge(ctx, s.copyRowsFilter(), below, below, verified)
}

// PurgeCopy deletes all of an attempt's copy (0: of all attempts) below a sequence. verified is as in
// PurgeChanges.
func (s *Stream) PurgeCopy(ctx context.Context, attempt uint32, below, verified uint64) error {
	return s.purge(ctx, s.CopyFilter(attempt), below, below, verified)
}

// PurgeTable deletes a table's copied rows of one attempt. verified is as in PurgeChanges.
func (s *Stream) PurgeTable(ctx context.Context, attempt, table uint32, verified uint64) error {
	return s.purge(ctx, s.CopySubject(attempt, table), verified, verified, verified)
}

// DropCopies deletes the copies of all attempts up to and with last, the stream's last sequence as
// verified: a purge can only reach below it, so the message there, if it holds copied rows, is deleted by itself.
func (s *Stream) DropCopies(ctx context.Context, last uint64) error {
	if err := s.PurgeCopy(ctx, 0, last, last); err != nil || last == 0 {
		return err
	}
	m, err := s.Get(ctx, last)
	if errors.Is(err, ErrEmpty) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, _, ok := s.ParseCopySubject(m.Subject); !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := s.str.DeleteMsg(ctx, last); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("bus: delete message %d of stream %s: %w", last, s.name, s.failed(ctx, err))
	}
	return nil
}

func (s *Stream) purge(ctx context.Context, subject string, below, asked, verified uint64) error {
	if asked > verified {
		return fmt.Errorf("%w (below %d, verified %d)", ErrBeyondTail, asked, verified)
	}
	if below <= 1 {
		return nil
	}
	info, err := s.Info(ctx)
	if err != nil {
		return err
	}
	if info.LastSeq < verified {
		return fmt.Errorf("%w (last sequence %d, was at least %d)", ErrRolledBack, info.LastSeq, verified)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := s.str.Purge(ctx, jetstream.WithPurgeSubject(subject), jetstream.WithPurgeSequence(below)); err != nil {
		return fmt.Errorf("bus: purge stream %s: %w", s.name, s.failed(ctx, err))
	}
	crashpoint.Reached(crashpoint.Purged)
	return nil
}
