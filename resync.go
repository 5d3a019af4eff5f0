package flo

import (
	"unicode/utf8"
)

// WithResync asks for a fresh start of the group, once for each token: the way out of the stops that say that
// changes may be missing (ErrSlotLost, ErrUndecodable, ErrGap, ErrSourceChanged, ErrStreamLost, ErrStreamSettings, ErrHistoryGone). The
// token is any text of yours, a date or a ticket, of up to 200 bytes; "" asks for nothing.
//
// A replicator whose group doesn't know the token yet drops the group's slot, replaces the stream, and begins again
// as at the first start: with a copy of all tables, or under StreamOnly at now. The group then remembers the token
// (the last 64 of them): started with it again, or with an earlier one, the replicator does nothing more. One that
// is cut short is finished by the next replicator of the group, whatever its options say.
//
// Workers follow by themselves: the new stream says whose checkpoints it replaces. A PostgreSQL sink empties each
// table of what flo had brought there and copies afresh; other sinks are given everything again. A worker with this
// option waits until the group's replicator has done what the token asks for, and takes the new stream whatever the
// sink's checkpoint says.
//
// Where NATS has lost stream and state, a slot of the group's name and kind that nobody uses is taken for the group's;
// one that was named by WithSlot is left alone, and the error names the command that drops it. A stream whose settings
// were changed (ErrStreamSettings) is replaced too.
//
// A group of which NATS has lost everything, and one that was dropped, has forgotten its tokens too: leave the option
// out again when it has done its work.
func WithResync(token string) CommonOption { return func(c *config) { c.resync = token } }

// maxToken is the longest token, in bytes.
const maxToken = 200

func (c *config) validateResync() {
	if len(c.resync) > maxToken || !utf8.ValidString(c.resync) {
		c.bad("WithResync(%q): want at most %d bytes of UTF-8", c.resync, maxToken)
	}
}

// startOver is what errors say where nothing but a fresh start helps.
const startOver = "start over with a fresh copy: run WithResync and a new token, or call Drop first"
