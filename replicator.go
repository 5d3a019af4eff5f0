package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/deadletter"
	"github.com/pgflo/flo/internal/pgsession"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/state"
)

// Replicator reads PostgreSQL and fills the group's JetStream stream. One is active at a time, by a lease
// in the group's state; another one stands by and takes over when the first is gone.
type Replicator struct {
	cfg     *config
	source  source.Config
	running atomic.Bool
	status  replicatorStatus
	// claimant takes the lease, one session after the other.
	claimant   *state.Claimant
	settle     atomic.Int64    // rises with each call of Settle
	last       context.Context // ends when a stop has to be over; of this Run
	distrusted atomic.Bool     // a slot was given up for what the source had forgotten while it made it
	afresh     atomic.Bool     // the next session begins another attempt, whatever the stream says
	// unanchored: the server could not decode the stream's last transaction again, so that it isn't asked for.
	unanchored atomic.Bool
	settled    atomic.Int64 // the calls that were seen to
	// unstreamed: transactions are read as a whole up to this commit LSN, whatever WithStreaming says.
	unstreamed atomic.Uint64

	absence    absence         // of all that NATS holds of the group; the session's
	described  map[uint32]bool // tables that the source has described in this Run, with WithDDL; one session at a time
	redescribe atomic.Bool     // they count no more: the event triggers were gone for a while

	resyncing func(step int) error // for tests: called in front of each step of a resync, and behind the last
}

// NewReplicator makes the half that reads PostgreSQL. It needs the replicator's options only,
// validates them, and does no I/O.
func NewReplicator(opts ...Option) (*Replicator, error) {
	c := newConfig(opts)
	c.validateCommon()
	c.validateReplicator()
	if err := errors.Join(c.errs...); err != nil {
		return nil, err
	}
	return newReplicator(c), nil
}

func newReplicator(c *config) *Replicator {
	logger := c.logger.With(slog.String("group", c.group), slog.String("half", "replicator"))
	return &Replicator{
		cfg:      c,
		claimant: state.NewClaimant(),
		source:   source.Config{Conn: c.source, Password: c.password, AppName: "flo " + c.group, SlotFailover: c.slotFailover, Logger: logger},
		status:   replicatorStatus{commonStatus: commonStatus{phase: PhaseStopped}},
	}
}

// errAgain ends a session that begins again at once; errFinished one that has nothing left to do.
var (
	errAgain    = errors.New("flo: the session begins again")
	errFinished = errors.New("flo: finished")
)

// sessionGrace is how long a session must have lived for the backoff to begin anew.
const sessionGrace = 3 * time.Second

// Run replicates until ctx ends (and returns nil once what was read is in the stream), until a
// CopyOnly copy is whole in the stream, or until an error that trying again can't mend. It waits
// without limit, with a backoff of up to 15 s, for databases and NATS to come back.
func (r *Replicator) Run(ctx context.Context) error {
	if !r.running.CompareAndSwap(false, true) {
		return ErrRunning
	}
	defer r.running.Store(false)
	r.unstreamed.Store(0)
	err := r.guarded(ctx, func(ctx context.Context) error {
		last, done := outliving(ctx, r.cfg.stopTimeout)
		defer done()
		r.last, r.described, r.absence = last, nil, absence{}
		return retry(ctx, r.source.Logger, &r.status.commonStatus, r.session)
	})
	r.status.stop(err)
	return err
}

// retry runs sessions until one ends for good.
func retry(ctx context.Context, log *slog.Logger, st *commonStatus, session func(context.Context) error) error {
	backoff := pgsession.Backoff{}
	for {
		began := time.Now()
		err := named(session(ctx))
		level, what := slog.LevelWarn, "interrupted, trying again"
		switch {
		case errors.Is(err, errFinished):
			st.set(PhaseFinished)
			return nil
		case err == nil:
			return nil
		case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)):
			return nil // the other half ended; its error is not this one's
		case errors.Is(err, errAgain):
			level, what = slog.LevelInfo, "the session begins again"
		case ctx.Err() != nil && errors.Is(err, ErrNotDrained):
			return err
		case ctx.Err() != nil && !fatal(err):
			return nil
		case !transient(err):
			log.ErrorContext(ctx, "stopped", slog.Any("error", err))
			return err
		}
		st.interrupted(ctx, log, level, what, err)
		if time.Since(began) > sessionGrace || errors.Is(err, errRound) {
			backoff.Reset()
		}
		if backoff.Wait(ctx) != nil {
			return nil
		}
	}
}

// minSourceVersion is the first that can publish a partition's changes under its own name or its root's
// (publish_via_partition_root), as server_version_num.
const minSourceVersion = 130000

// session connects both ends, decides where to begin, and replicates.
func (r *Replicator) session(ctx context.Context) error {
	r.status.set(PhaseConnecting)
	link, err := r.cfg.sessionNATS(ctx)
	if err != nil {
		return err
	}
	defer link.close()
	store, err := r.openState(ctx, link)
	if err != nil {
		return err
	}
	t, err := begin(ctx, r.claimant, store, state.ReplicatorLease, r.cfg, &r.status.commonStatus, r.source.Logger)
	if err != nil {
		return err
	}
	defer t.end()
	return t.retried(t.judge(r.replicate(t, link, store)))
}

// openState opens the group's state, or makes it for a group that is new: one that has a stream and no state has
// lost its workers' checkpoints.
func (r *Replicator) openState(ctx context.Context, link *link) (state.Store, error) {
	store, err := state.NewNATS(ctx, link.state, r.cfg.group, r.cfg.replicas, false)
	if err == nil {
		r.absence = absence{known: true}
	}
	if !errors.Is(err, state.ErrNotFound) {
		return store, err
	}
	stream, unfit, err := openAny(ctx, r.cfg.bus(link))
	if err == nil && stream != nil {
		if token := r.cfg.resync; token != "" && !stream.Resync().Answers(token) {
			return state.NewNATSForResync(ctx, link.state, r.cfg.group, r.cfg.replicas, token)
		}
		if err = unfit; err == nil {
			_, err = stream.Tail(ctx)
		}
		if err == nil {
			return nil, fmt.Errorf("%w: the group's stream is there, and its state bucket %q is not: it was deleted, and with it the checkpoints of sinks that keep none: %s",
				ErrStreamLost, state.BucketName(r.cfg.group), startOver)
		}
	}
	if err != nil && !errors.Is(err, bus.ErrEmpty) {
		return nil, err
	}
	if err := r.absence.seen(); err != nil {
		return nil, err
	}
	if store, err = state.NewNATS(ctx, link.state, r.cfg.group, r.cfg.replicas, true); err == nil {
		r.absence = absence{known: true}
	}
	return store, err
}

// replicate does what a session is for, as long as it has the lease.
func (r *Replicator) replicate(t *tenure, link *link, store state.Store) error {
	ctx := t.stop
	r.status.set(PhaseConnecting)
	sys, err := r.source.Identify(ctx)
	if err != nil {
		return err
	}
	if sys.Version < minSourceVersion {
		return fmt.Errorf("%w: it is PostgreSQL %d, flo needs 13 or later", ErrSourceSettings, sys.Version/10000)
	}
	if r.cfg.slotFailover && sys.Version < source.FailoverVersion {
		return fmt.Errorf("%w: WithSlotFailover needs PostgreSQL 17 or later, the source is %d: leave it out", ErrSourceSettings, sys.Version/10000)
	}
	conn, err := r.source.Connect(ctx)
	if err != nil {
		return err
	}
	s := &replication{r: r, work: t.work, log: r.source.Logger, link: link, sys: sys, store: store, conn: conn, id: newSession()}
	defer s.close()
	if err := r.resync(ctx, link, store, sys, conn); err != nil {
		return err
	}
	stream := r.cfg.bus(link)
	stream.Making = func(ctx context.Context) error { return r.stillThere(ctx, store) }
	if s.stream, _, err = bus.Create(ctx, stream, sys.ID, sys.Database); err != nil {
		return err
	}
	if err := s.readTail(ctx); err != nil {
		return err
	}
	fresh, err := s.decide(ctx)
	if err != nil {
		return err
	}
	if err := s.ensureDDL(ctx, conn); err != nil { // before a slot is made, so that nothing behind it goes unseen
		return err
	}
	if fresh {
		if err := s.begin(ctx); err != nil {
			return err
		}
	}
	if r.cfg.mode == CopyOnly {
		return s.copyOnly(ctx)
	}
	return s.run(ctx)
}

// Settle confirms to the source all that is in the stream, at once, without waiting for the replay
// window: for an upgrade or a cut-over, so that the slot holds no WAL that isn't needed. It needs a
// running replicator, and returns when the slot has moved or ctx ends.
func (r *Replicator) Settle(ctx context.Context) error {
	if !r.running.Load() {
		return fmt.Errorf("flo: Settle needs a running replicator: call Run first")
	}
	target := r.status.snapshot().Published
	conn, err := r.source.Connect(ctx)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	r.settle.Add(1)
	for {
		slot, err := r.source.Slot(ctx, conn, r.cfg.slot)
		if err != nil {
			return named(err)
		}
		if slot.ConfirmedFlush >= target {
			return nil
		}
		if err := pollWait(ctx, waitForPoll); err != nil {
			return fmt.Errorf("flo: settling at %s, confirmed %s: %w", target, slot.ConfirmedFlush, err)
		}
	}
}

// RemoveWorker frees what a worker that will not come back holds: the stream is no longer kept for it, WaitFor
// no longer waits for it, and its dead letters are deleted. If it does come back, it is a new worker. One that runs is refused: to be sure of one
// that died on another machine takes up to the lease's time. A name that no worker of the group has is ErrNoWorker.
func (r *Replicator) RemoveWorker(ctx context.Context, name string) error {
	link, err := r.cfg.connectNATS(ctx)
	if err != nil {
		return err
	}
	defer link.close()
	store, err := state.NewNATS(ctx, link.state, r.cfg.group, r.cfg.replicas, false)
	if err != nil {
		return err
	}
	hold, err := r.claim(ctx, store, state.WorkerLease(name), "worker "+strconv.Quote(name))
	if err != nil {
		return err
	}
	unknown := r.unknown(ctx, store, name)
	return errors.Join(dropLetters(ctx, link, r.cfg, name), store.DeleteWorker(ctx, name), hold.Release(ctx), unknown)
}

// unknown gives ErrNoWorker for a name that no worker has.
func (r *Replicator) unknown(ctx context.Context, store state.Store, name string) error {
	_, _, err := store.Worker(ctx, name)
	if !errors.Is(err, state.ErrNotFound) {
		return err
	}
	workers, err := store.Workers(ctx)
	if err != nil {
		return err
	}
	there := make([]string, len(workers))
	for i := range workers {
		there[i] = workers[i].Name
	}
	return fmt.Errorf("%w: %q; group %q has %q", ErrNoWorker, name, r.cfg.group, there)
}

// comesBack names the process of a holder that has left its lease to try again, once it has done so. It waits for that
// as long as the holder said; not for one of this process, which has ended by now, or is the caller's to stop.
func comesBack(ctx context.Context, store state.Store, lease string) (process string, err error) {
	var seen state.Lease
	for began := time.Now(); ; {
		l, _, err := store.Lease(ctx, lease)
		switch {
		case errors.Is(err, state.ErrNotFound):
			return "", nil
		case err != nil:
			return "", err
		case seen.Epoch != 0 && l.Epoch != seen.Epoch:
			return l.Process.String(), nil
		case !l.Released || l.Back == 0 || time.Since(began) >= l.Back || !l.Process.Elsewhere():
			return "", nil
		}
		seen = l
		if err := pollWait(ctx, waitForPoll); err != nil {
			return "", err
		}
	}
}

// claim takes the lease of something that must not run, and refuses if it does.
func (r *Replicator) claim(ctx context.Context, store state.Store, lease, what string) (*state.Hold, error) {
	if holder, err := comesBack(ctx, store, lease); err != nil {
		return nil, err
	} else if holder != "" {
		return nil, fmt.Errorf("flo: the group's %s runs in process %s, between two tries: stop it first", what, holder)
	}
	var active string
	wait, cancel := context.WithTimeout(ctx, r.cfg.lease+closeBound)
	defer cancel()
	hold, err := state.Acquire(wait, store, lease, r.cfg.lease, func(l state.Lease) { active = l.Process.String() })
	if err != nil && active != "" && ctx.Err() == nil {
		return nil, fmt.Errorf("flo: the group's %s runs in process %s: stop it first", what, active)
	}
	return hold, err
}

// claimAll takes all of the group's leases.
func (r *Replicator) claimAll(ctx context.Context, store state.Store) (holds []*state.Hold, err error) {
	h, err := r.claim(ctx, store, state.ReplicatorLease, "replicator")
	if err != nil {
		return nil, err
	}
	holds = append(holds, h)
	workers, err := store.Workers(ctx)
	for _, w := range workers {
		if h, err = r.claim(ctx, store, state.WorkerLease(w.Name), "worker "+strconv.Quote(w.Name)); err != nil {
			break
		}
		holds = append(holds, h)
	}
	return holds, err
}

// Drop removes what flo made for the group: slot, publications (not those of WithPublication), the event triggers of
// WithDDL if no other group of the database uses them, streams and state. Nothing of the group may run, in
// whatever process: then nothing is removed, and the error names it. What is gone already is no error.
//
// Sinks keep what they hold, a PostgreSQL destination its checkpoint too: the group's next start ends with ErrStreamLost
// unless it is given WithResync, or the checkpoint is deleted there.
func (r *Replicator) Drop(ctx context.Context) error {
	if r.running.Load() {
		return fmt.Errorf("flo: Drop while the replicator runs: stop it first")
	}
	link, err := r.cfg.connectNATS(ctx)
	if err != nil {
		return err
	}
	defer link.close()
	store, err := state.NewNATS(ctx, link.state, r.cfg.group, r.cfg.replicas, false)
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		return err
	}
	var holds []*state.Hold
	if err == nil {
		holds, err = r.claimAll(ctx, store)
		defer func() {
			for _, h := range holds {
				h.Release(ctx)
			}
		}()
		if err != nil {
			return err
		}
	}
	stream, _, err := openAny(ctx, r.cfg.bus(link))
	if err != nil {
		return err
	}
	mine, merr := r.slotIsOurs(ctx, stream, store)
	if merr != nil {
		return merr
	}
	if derr := r.dropSource(ctx, mine); derr != nil {
		return derr
	}
	if stream != nil {
		if err := stream.Delete(ctx); err != nil {
			return err
		}
	}
	if err := deadletter.Drop(ctx, link.js, r.cfg.group); err != nil {
		return err
	}
	if store == nil {
		return nil
	}
	if err := store.Drop(ctx); err != nil {
		return err
	}
	for _, h := range holds {
		h.Forget()
	}
	return nil
}

// slotIsOurs reports whether the group has made the slot, or was about to: its stream or its record says so. Of a
// group that has neither, nor a slot's name of its own choice, the slot bears the group's name.
func (r *Replicator) slotIsOurs(ctx context.Context, stream *bus.Stream, store state.Store) (bool, error) {
	if stream != nil {
		switch _, err := stream.Tail(ctx); {
		case err == nil:
			return true, nil
		case !errors.Is(err, bus.ErrEmpty):
			return false, err
		}
	}
	if store != nil {
		switch rec, err := store.Replicator(ctx); {
		case err == nil:
			return rec.Slot == r.cfg.slot, nil
		case !errors.Is(err, state.ErrNotFound):
			return false, err
		}
	}
	return r.cfg.slot == defaultSlot(r.cfg.group) && stream == nil, nil
}

// dropSource removes the slot, and then, if that could be done, the publications.
func (r *Replicator) dropSource(ctx context.Context, slotIsOurs bool) error {
	if slotIsOurs {
		if err := r.source.DropSlot(ctx, r.cfg.slot); err != nil {
			return err
		}
	} else {
		r.source.Logger.WarnContext(ctx, "a slot of this name, should there be one, stays: the group has never used it", slog.String("slot", r.cfg.slot))
	}
	return r.dropPublications(ctx)
}
