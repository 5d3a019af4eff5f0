package flo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/wire"
)

// anchor is the last transaction that the stream holds, which the server is asked to send once more: so a
// server that was restored from a cold copy of its data folder and has gone on beyond the stream, and which has the
// same system identifier and timeline, is told from the one that the stream was made from.
//
// A server whose slot was confirmed behind that transaction had it, and sends nothing of it.
type anchor struct {
	lsn  decode.LSN // of its commit; 0: there is none, or it was met
	end  decode.LSN // the stream's position
	time time.Time  // of its commit; zero if that is not known
	open bool       // the stream holds its beginning only
}

// anchorOf the tail; none if the tail names no transaction of this slot, or the publications were other ones when
// it was written, so that the server may leave the transaction out. None either where transactions come before their
// ends: one that is in the stream already would be staged again, and the relations that it describes be lost with it.
func (s *replication) anchorOf(ctx context.Context) anchor {
	if s.tail.LSN == 0 || s.made || s.r.cfg.streaming || s.r.unanchored.Load() || !s.tail.Open && s.tail.End < s.tail.LSN {
		return anchor{}
	}
	rec, err := s.store.Replicator(ctx)
	if err != nil || rec.LastCommit == 0 || rec.Incarnation != s.stream.Incarnation() || rec.Publications != publicationList(s.published) {
		return anchor{}
	}
	a := anchor{lsn: s.tail.LSN, end: s.tail.End, time: s.tailTime, open: s.tail.Open}
	if a.time.IsZero() && rec.LastCommit == a.lsn {
		a.time = rec.LastCommitTime
	}
	if !a.time.IsZero() {
		s.lastCommit.Store(&commitStamp{a.lsn, a.time})
	}
	return a
}

// above is the anchor, if a slot that stands at lsn can send it.
func (a anchor) above(lsn decode.LSN) anchor {
	if lsn > a.lsn {
		return anchor{}
	}
	return a
}

// publicationList is one text for the same publications.
func publicationList(published []string) string {
	list := make([]string, len(published))
	for i, name := range published {
		list[i] = names.Quote(name)
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// commitStamp is when a transaction was committed.
type commitStamp struct {
	lsn  decode.LSN
	time time.Time
}

// noteCommit keeps the last transaction's, for the record.
func (st *streaming) noteCommit(frame []byte) {
	switch frame[0] { // the packer has read it, too
	case 'C':
		if c, err := decode.ParseCommit(frame); err == nil {
			st.lastCommit.Store(&commitStamp{c.CommitLSN, c.CommitTime})
		}
	case 'c':
		if c, err := decode.ParseStreamCommit(frame); err == nil {
			st.lastCommit.Store(&commitStamp{c.CommitLSN, c.CommitTime})
		}
	}
}

// since is the position to ask the server for.
func (a *anchor) since() decode.LSN {
	if a.open { // it comes again anyway
		return 0
	}
	return a.lsn
}

// frame compares a Begin with the anchor.
func (a *anchor) frame(data []byte) error {
	if a.lsn == 0 || len(data) == 0 {
		return nil
	}
	at, when, err := beginning(data)
	if err != nil || at == 0 {
		return err
	}
	switch {
	case at > a.lsn:
		return a.missing(fmt.Sprintf("its next transaction is at %s", at))
	case at == a.lsn && !a.time.IsZero() && !when.Equal(a.time):
		return a.missing(fmt.Sprintf("the one there was committed at %s, not at %s", when.UTC().Format(time.RFC3339Nano), a.time.UTC().Format(time.RFC3339Nano)))
	case at == a.lsn:
		a.lsn = 0
	}
	return nil
}

// beginning gives the commit of a transaction that is sent from here on (or, if it was sent before its end, has been
// sent): Begin and Stream Commit.
func beginning(data []byte) (at decode.LSN, when time.Time, err error) {
	switch data[0] {
	case 'B':
		b, err := decode.ParseBegin(data)
		return b.CommitLSN, b.CommitTime, err
	case 'c':
		c, err := decode.ParseStreamCommit(data)
		return c.CommitLSN, c.CommitTime, err
	}
	return 0, when, nil
}

// keepalive says that the server has nothing more up to lsn.
func (a *anchor) keepalive(lsn decode.LSN) error {
	if a.lsn == 0 || lsn <= max(a.lsn, a.end) {
		return nil
	}
	return a.missing("it has nothing there up to " + lsn.String())
}

func (a *anchor) missing(instead string) error {
	return fmt.Errorf("%w: the stream holds a transaction committed at %s, which the server does not have: %s. It was restored from a backup, and has gone on from there; "+
		"changes may be missing: %s", ErrSourceChanged, a.lsn, instead, startOver)
}

// commitTime of the last transaction in a message, whose end may be in a later one: its Begin tells it, too.
func commitTime(body []byte) (at time.Time, err error) {
	err = wire.Walk(body, func(rec wire.Record) error {
		switch rec.Type {
		case 'B':
			b, err := decode.ParseBegin(rec.Data)
			at = b.CommitTime
			return err
		case 'C':
			c, err := decode.ParseCommit(rec.Data)
			at = c.CommitTime
			return err
		case wire.RecStreamed:
			var s wire.Streamed
			err := rec.JSON(&s)
			at = s.Time
			return err
		}
		return nil
	})
	return at, err
}
