package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/deadletter"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/state"
)

// A resync replaces the group's stream by a new incarnation. Its steps, each of which may be its last:
//
//  1. the group's record says that the request is pending, and which incarnations will count no more;
//  2. the slot is dropped;
//  3. dead letters, the tables' names and the stream are deleted;
//  4. a stream is made whose metadata says which request it answers, and whose checkpoints it replaces;
//  5. the record says the same, and that nothing is pending.
//
// Before 4 the request is pending, and whoever has the lease next does all of them again; from 4 on the stream
// answers it, and nobody deletes it for that. Nothing is written to the stream before 5. What follows is what follows
// at a first start: no slot, and an empty stream.
type resync struct {
	r      *Replicator
	link   *link
	store  state.Store
	sys    source.System
	conn   *pgx.Conn
	stream *bus.Stream // nil: there is none
	fit    error       // why the stream can't be worked with; it can be replaced
	rec    state.Resync
	rev    uint64 // of the record
}

// resync starts the group over, if that was asked for and not done, or was left half done.
func (r *Replicator) resync(ctx context.Context, link *link, store state.Store, sys source.System, conn *pgx.Conn) error {
	x := &resync{r: r, link: link, store: store, sys: sys, conn: conn}
	var err error
	if x.stream, x.fit, err = openAny(ctx, r.cfg.bus(link)); err != nil {
		return err
	}
	if x.rec, x.rev, err = store.Resync(ctx); err != nil {
		return err
	}
	token, known := x.wanted()
	if token == "" {
		return nil
	}
	if known { // step 5 was left out
		return x.answered(ctx)
	}
	slots, err := x.slots(ctx)
	if err != nil {
		return err
	}
	r.source.Logger.WarnContext(ctx, "starting over: slot and stream are replaced, and everything is copied afresh", slog.String("token", token))
	steps := []func(context.Context) error{
		func(ctx context.Context) error { return x.pend(ctx, token) },
		func(ctx context.Context) error { return x.dropSlots(ctx, slots) },
		x.clear,
		x.create,
		x.answered,
	}
	for i := range len(steps) + 1 {
		if r.resyncing != nil {
			if err := r.resyncing(i); err != nil {
				return err
			}
		}
		if i == len(steps) {
			break
		}
		if err := steps[i](ctx); err != nil {
			return err
		}
	}
	return nil
}

// openAny opens the group's stream, also one whose settings flo can't work with; it gives nil if there is none.
func openAny(ctx context.Context, cfg bus.Config) (s *bus.Stream, unfit, err error) {
	s, err = bus.Open(ctx, cfg)
	var settings *bus.ConfigError
	switch {
	case errors.Is(err, bus.ErrNoStream):
		return nil, nil, nil
	case errors.As(err, &settings) && s != nil && s.Incarnation() != "":
		return s, err, nil
	}
	return s, nil, err
}

// wanted gives the request that is to be answered, "" if none is; known: by the stream that is there, and only the
// record doesn't say so yet.
func (x *resync) wanted() (token string, known bool) {
	answers := func(token string) bool { return x.stream != nil && x.stream.Resync().Answers(token) }
	if token = x.r.cfg.resync; token != "" && !x.rec.Answers(token) && !answers(token) {
		return token, false
	}
	if token = x.rec.Pending; token != "" {
		return token, answers(token)
	}
	return "", false
}

// slots gives the slots that the group has made, and refuses to touch others.
func (x *resync) slots(ctx context.Context) ([]string, error) {
	cfg := x.r.cfg
	var names []string
	rec, err := x.store.Replicator(ctx)
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return nil, err
	}
	if rec.Slot != "" && rec.Slot != cfg.slot && rec.System == x.sys.ID && rec.Database == x.sys.Database { // WithSlot was changed
		slot, err := x.r.source.Slot(ctx, x.conn, rec.Slot)
		if err == nil && x.fits(slot) {
			names = append(names, rec.Slot)
		} else if err != nil && !errors.Is(err, source.ErrSlotMissing) {
			return nil, err
		}
	}
	slot, err := x.r.source.Slot(ctx, x.conn, cfg.slot)
	if errors.Is(err, source.ErrSlotMissing) {
		return names, nil
	}
	if err != nil {
		return nil, err
	}
	elsewhere := rec.Slot != "" && (rec.System != x.sys.ID || rec.Database != x.sys.Database)
	if x.stream != nil {
		elsewhere = x.stream.System() != x.sys.ID || x.stream.Database() != x.sys.Database
	}
	remedy := fmt.Sprintf("to start over, choose another slot by WithSlot, or, if nobody needs this one, drop it: SELECT pg_drop_replication_slot('%s')", cfg.slot)
	if !x.fits(slot) {
		return nil, fmt.Errorf("%w: slot %q is of plugin %q and database %q, so it is not this group's; %s", ErrSlotLost, cfg.slot, slot.Plugin, slot.Database, remedy)
	}
	if elsewhere {
		return nil, fmt.Errorf("%w: slot %q exists at this source, and the group was made from another one, so that it may be another group's; %s", ErrSourceChanged, cfg.slot, remedy)
	}
	ours := rec.Slot == cfg.slot
	if rec.Slot == "" { // a group that has hardly lived, or whose bucket was deleted
		if ours, err = x.r.slotIsOurs(ctx, x.stream, x.store); err != nil {
			return nil, err
		}
	}
	if !ours && rec.Slot == "" && cfg.slot == defaultSlot(cfg.group) {
		// NATS has lost all that was known, and the slot is what is left of it, by its name and kind. One that is in
		// use is another's, or of a replicator that still runs.
		if slot.Active {
			return nil, fmt.Errorf("%w: slot %q is in use by process %d at the source, and nothing tells that it is this group's: stop what uses it, if that is a replicator of this group, "+
				"and start again; otherwise choose another group, or another slot by WithSlot", ErrSlotTaken, cfg.slot, slot.ActivePID)
		}
		ours = true
	}
	if !ours {
		return nil, fmt.Errorf("%w: slot %q exists at the source, and the group is not known to have made it; %s", ErrStreamLost, cfg.slot, remedy)
	}
	return append(names, cfg.slot), nil
}

// fits reports whether a slot is of the kind that flo makes, for this database.
func (x *resync) fits(slot source.SlotInfo) bool {
	return slot.Plugin == "pgoutput" && slot.Database == x.sys.Database
}

// pend is step 1.
func (x *resync) pend(ctx context.Context, token string) error {
	rec := x.rec
	if rec.Pending != "" && rec.Pending != token { // another request's, which this one answers too
		rec.Tokens = latest(rec.Tokens, rec.Pending)
	}
	rec.Pending = token
	if x.stream != nil {
		rec.Tokens = latest(rec.Tokens, x.stream.Resync().Tokens...)
		rec.Replaces = latest(rec.Replaces, append(slices.Clone(x.stream.Resync().Replaces), x.stream.Incarnation())...)
	}
	if old, err := x.store.Replicator(ctx); err == nil {
		rec.Replaces = latest(rec.Replaces, old.Incarnation)
	} else if !errors.Is(err, state.ErrNotFound) {
		return err
	}
	workers, err := x.store.Workers(ctx)
	if err != nil {
		return err
	}
	for i := range workers {
		rec.Replaces = latest(rec.Replaces, workers[i].Checkpoint.Incarnation)
	}
	return x.put(ctx, rec)
}

// latest adds what is new to a list of which only the end is kept.
func latest(list []string, add ...string) []string {
	for _, s := range add {
		if s != "" && !slices.Contains(list, s) {
			list = append(slices.Clip(list), s)
		}
	}
	return list[max(0, len(list)-state.ResyncMemory):]
}

func (x *resync) put(ctx context.Context, rec state.Resync) error {
	rec.Updated = time.Now().UTC()
	rev, err := x.store.PutResync(ctx, rec, x.rev)
	if err != nil {
		return err
	}
	x.rec, x.rev = rec, rev
	return nil
}

// still fails if another replicator has written the record since this one did: whoever goes on with the request, or
// has answered it, began with that. A replicator that was paused in front of a step learns so that the step, and what
// is there by now, is not its own any more.
func (x *resync) still(ctx context.Context) error {
	_, rev, err := x.store.Resync(ctx)
	if err == nil && rev != x.rev {
		err = fmt.Errorf("%w: another replicator has taken the resync over", state.ErrConflict)
	}
	return err
}

// dropSlots is step 2. A walsender of a replicator that no longer has the lease may still hold the slot.
func (x *resync) dropSlots(ctx context.Context, names []string) error {
	for _, name := range names {
		slot, err := x.r.source.Slot(ctx, x.conn, name)
		if errors.Is(err, source.ErrSlotMissing) {
			continue
		}
		if err != nil {
			return err
		}
		if err := x.still(ctx); err != nil {
			return err
		}
		if slot.Active {
			x.r.endWalsender(ctx, x.conn, slot.ActivePID)
		}
		if err := x.r.source.DropSlot(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// clear is step 3. The stream goes last: it tells whose the slot is. One that was never written to stays, since
// somebody may have made it for flo.
func (x *resync) clear(ctx context.Context) error {
	if err := x.still(ctx); err != nil {
		return err
	}
	if err := deadletter.Drop(ctx, x.link.js, x.r.cfg.group); err != nil {
		return err
	}
	if err := x.still(ctx); err != nil {
		return err
	}
	if err := x.store.ForgetTables(ctx); err != nil {
		return err
	}
	if x.stream == nil {
		return nil
	}
	if x.fit == nil && x.stream.System() == x.sys.ID && x.stream.Database() == x.sys.Database {
		info, err := x.stream.Info(ctx)
		if err != nil {
			return err
		}
		if info.LastSeq == 0 {
			return nil
		}
	}
	if err := x.still(ctx); err != nil {
		return err
	}
	if err := x.stream.Delete(ctx); err != nil {
		return err
	}
	x.stream = nil
	return nil
}

// create is step 4.
func (x *resync) create(ctx context.Context) error {
	if x.stream != nil {
		return nil
	}
	cfg := x.r.cfg.bus(x.link)
	cfg.Resync = bus.Resync{Token: x.rec.Pending, Tokens: latest(x.rec.Tokens, x.rec.Pending), Replaces: x.rec.Replaces}
	var err error
	x.stream, _, err = bus.Create(ctx, cfg, x.sys.ID, x.sys.Database)
	return err
}

// answered is step 5.
func (x *resync) answered(ctx context.Context) error {
	cfg := x.r.cfg
	if err := x.still(ctx); err != nil {
		return err
	}
	if err := x.store.PutReplicator(ctx, state.Replicator{
		Group: cfg.group, Incarnation: x.stream.Incarnation(), System: x.sys.ID, Database: x.sys.Database, Slot: cfg.slot, Mode: string(cfg.mode),
		Phase: string(PhaseStarting), Updated: time.Now().UTC(),
	}); err != nil {
		return err
	}
	rec := x.rec
	rec.Tokens = latest(rec.Tokens, rec.Pending)
	rec.Token, rec.Incarnation, rec.Pending = rec.Pending, x.stream.Incarnation(), ""
	rec.Replaces = slices.DeleteFunc(slices.Clone(rec.Replaces), func(s string) bool { return s == rec.Incarnation })
	return x.put(ctx, rec)
}
