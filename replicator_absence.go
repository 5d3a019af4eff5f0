package flo

import (
	"context"
	"errors"
	"time"

	"github.com/pgflo/flo/state"
)

// absencePatience is how long NATS has to go without anything of a group that it has had, before that is believed.
const absencePatience = 5 * time.Second

// errAbsent ends sessions meanwhile.
var errAbsent = errors.New("flo: NATS has neither the group's stream nor its state any more, and had both while this replicator ran: " +
	"another server answers at its address, or it came back with an empty store; asking again")

// absence is what a replicator has seen of its group in NATS since Run began. A server that has nothing of it all of a
// sudden may be one that was given the address while the right one restarts. On that nothing is made at once, and nothing
// is concluded from it.
type absence struct {
	known bool      // NATS had the group's state
	since time.Time // when it had neither state nor stream for the first time; zero: it has
}

// seen is called when both are missing. It gives nil once that is to be believed.
func (a *absence) seen() error {
	if !a.known {
		return nil
	}
	if a.since.IsZero() {
		a.since = time.Now()
	}
	if time.Since(a.since) < absencePatience {
		return errAbsent
	}
	return nil
}

// stillThere is asked before a stream is made: the state that the lease was taken in has to be there still.
func (r *Replicator) stillThere(ctx context.Context, store state.Store) error {
	_, _, err := store.Lease(ctx, state.ReplicatorLease)
	if errors.Is(err, state.ErrNotFound) {
		if err := r.absence.seen(); err != nil {
			return err
		}
		return errAbsent
	}
	return err
}
