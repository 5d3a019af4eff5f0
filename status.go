package flo

import (
	"context"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	flocopy "github.com/pgflo/flo/copy"
	"github.com/pgflo/flo/decode"
)

// Phase is what a half is doing.
type Phase string

const (
	PhaseStopped      Phase = "stopped"
	PhaseConnecting   Phase = "connecting"
	PhaseWaiting      Phase = "waiting"       // a worker, for the stream's beginning
	PhaseStandby      Phase = "standby"       // another one of this name is active
	PhaseAhead        Phase = "ahead"         // a worker, for a stream that was rolled back to be filled up again
	PhaseStarting     Phase = "starting"      // tables and publications
	PhaseCreatingSlot Phase = "creating slot" // may wait for old transactions at the source: see Warnings
	PhaseCopying      Phase = "copying"
	PhaseStreaming    Phase = "streaming"
	PhaseRetrying     Phase = "retrying" // see LastError
	PhaseFinished     Phase = "finished" // CopyOnly: all is done
)

// Status of a pipeline, of the halves that run in this process.
type Status struct {
	Replicator ReplicatorStatus
	Workers    []WorkerStatus
}

// ReplicatorStatus is a replicator's state.
type ReplicatorStatus struct {
	Phase     Phase
	LastError string // of the last interruption, "" while there is none
	Retries   int    // interruptions since Run began
	Failing   Failing
	Warnings  []string
	Published LSN    // end of the last transaction (or idle position) that is in the stream
	Confirmed LSN    // what the source was told; trails by the replay window
	Changes   uint64 // published since Run began
	// Forged counts messages with flo's prefix that flo's event triggers did not write, with WithDDL: anybody may write
	// them, and they are left out. One that is read again after an interruption counts again.
	Forged    uint64
	CopyDone  bool // the initial copy is whole in the stream
	Tables    []TableStatus
	Idle      []IdleWorker // registered workers that don't run, and for which the stream is kept
	WALKept   int64        // bytes of WAL that the source keeps for the slot; see WithWALLimit
	WALStatus string       // the slot's wal_status: reserved, extended, unreserved or lost; "" while there is no slot
}

// Failing says for how long something has failed without success in between. Zero: nothing fails. From a minute
// on there is a warning in the log each time that it has doubled, at least once an hour.
type Failing struct {
	Since time.Time // of the first failure
	Tries int       // failures since then
}

// TableStatus is how far a table's copy into the stream is.
type TableStatus struct {
	Table  string // quoted as SQL wants it
	Bytes  int64  // on disk, when the copy began
	Rows   uint64
	Ranges int // page ranges planned
	Done   int // page ranges copied
}

// WorkerStatus is a worker's state.
type WorkerStatus struct {
	Name       string
	Phase      Phase
	LastError  string
	Retries    int
	Failing    Failing
	Applied    LSN       // end of the last transaction that the sink holds
	CommitTime time.Time // of that transaction, by the source's clock
	AppliedAt  time.Time
	Changes    uint64 // written since Run began, copied rows aside
	CopyRows   uint64 // copied rows written since Run began
	CopyTables int    // tables to copy in the present attempt
	CopiedSo   int    // of which are whole
	LagBytes   uint64 // WAL between what the replicator of this process published and Applied

	DeadLetters    int    // of this worker, stored by now; known while it runs
	LastDeadLetter string // reason of the one that was stored last, "" if there is none
}

// Status of both halves. It may be called at any time.
func (f *Flo) Status() Status {
	s := Status{Replicator: f.replicator.Status()}
	for _, w := range f.workers {
		ws := w.Status()
		if s.Replicator.Published > ws.Applied {
			ws.LagBytes = uint64(s.Replicator.Published - ws.Applied)
		}
		s.Workers = append(s.Workers, ws)
	}
	return s
}

// Status of the replicator.
func (r *Replicator) Status() ReplicatorStatus { return r.status.snapshot() }

// Status of the worker. LagBytes is 0: only Flo.Status knows the replicator.
func (w *Worker) Status() WorkerStatus { return w.status.snapshot() }

// commonStatus is what both halves have.
type commonStatus struct {
	mu      sync.Mutex
	phase   Phase
	active  string // who is, while this one stands by: host/pid
	lastErr string
	retries int
	failing Failing
	warned  time.Duration // how long it had failed when it was last warned of
}

func (s *commonStatus) set(p Phase) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.phase = p
	if p == PhaseStreaming || p == PhaseCopying {
		s.lastErr = ""
	}
}

// Phase is what the half is doing.
func (s *commonStatus) Phase() Phase {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase
}

// standby notes who is active, and reports whether that is news.
func (s *commonStatus) standby(active string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	news := s.phase != PhaseStandby || s.active != active
	s.phase, s.active = PhaseStandby, active
	return news
}

// interrupted notes a failure, and logs it: the first one at the given level, others at INFO, and a warning when it
// has lasted.
func (s *commonStatus) interrupted(ctx context.Context, log *slog.Logger, level slog.Level, what string, err error) {
	s.mu.Lock()
	s.phase, s.lastErr = PhaseRetrying, err.Error()
	s.retries++
	due := s.failing.add(time.Now(), &s.warned)
	f := s.failing
	s.mu.Unlock()
	switch {
	case f.Tries == 1:
		log.Log(ctx, level, what, slog.Any("error", err))
	case due:
		log.WarnContext(ctx, what+"; it has failed for long", slog.Any("error", err), slog.Time("since", f.Since), slog.Int("tries", f.Tries))
	default:
		log.InfoContext(ctx, what, slog.Any("error", err), slog.Int("tries", f.Tries))
	}
}

const (
	lastingFirst = time.Minute // after how long a failure is warned of
	lastingMost  = time.Hour   // and at least how often from then on
)

// add counts a failure, and reports whether a warning of its length is due.
func (f *Failing) add(now time.Time, warned *time.Duration) bool {
	if f.Tries++; f.Tries == 1 {
		f.Since, *warned = now, 0
	}
	lasted := now.Sub(f.Since)
	next := lastingFirst
	if *warned > 0 {
		next = *warned + min(*warned, lastingMost)
	}
	if lasted < next {
		return false
	}
	*warned = lasted
	return true
}

// passed notes that what failed has succeeded.
func (s *commonStatus) passed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = Failing{}
}

func (s *commonStatus) recovered() { s.set(PhaseStreaming) }

func (s *commonStatus) stop(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != PhaseFinished {
		s.phase = PhaseStopped
	}
	if err != nil {
		s.lastErr = err.Error()
	}
}

type replicatorStatus struct {
	commonStatus
	at     ReplicatorStatus // without what commonStatus holds
	tables map[string]TableStatus
}

func (s *replicatorStatus) update(f func(*ReplicatorStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.at)
}

func (s *replicatorStatus) snapshot() ReplicatorStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.at
	st.Phase, st.LastError, st.Retries, st.Failing = s.phase, s.lastErr, s.retries, s.failing
	st.Warnings = append([]string(nil), s.at.Warnings...)
	st.Idle = slices.Clone(s.at.Idle)
	st.Tables = make([]TableStatus, 0, len(s.tables))
	for _, t := range s.tables {
		st.Tables = append(st.Tables, t)
	}
	sort.Slice(st.Tables, func(i, j int) bool { return st.Tables[i].Table < st.Tables[j].Table })
	return st
}

// maxWarnings bounds the list; the log has them all.
const maxWarnings = 100

// warn adds a warning, and reports whether it is a new one.
func (s *replicatorStatus) warn(text string) (news bool) {
	s.update(func(st *ReplicatorStatus) {
		news = !slices.Contains(st.Warnings, text)
		if news && len(st.Warnings) < maxWarnings {
			st.Warnings = append(st.Warnings, text)
		}
	})
	return news
}

func (s *replicatorStatus) clearWarnings(prefix string) {
	s.update(func(st *ReplicatorStatus) {
		kept := st.Warnings[:0]
		for _, w := range st.Warnings {
			if !strings.HasPrefix(w, prefix) {
				kept = append(kept, w)
			}
		}
		st.Warnings = kept
	})
}

func (s *replicatorStatus) published(end decode.LSN, changes int) {
	s.update(func(st *ReplicatorStatus) {
		s.failing = Failing{}
		st.Published = max(st.Published, end)
		st.Changes += uint64(changes)
	})
}

func (s *replicatorStatus) forged() { s.update(func(st *ReplicatorStatus) { st.Forged++ }) }

func (s *replicatorStatus) confirmed(lsn decode.LSN) {
	s.update(func(st *ReplicatorStatus) { st.Confirmed = max(st.Confirmed, lsn) })
}

func (s *replicatorStatus) copying() {
	s.update(func(*ReplicatorStatus) { s.tables = map[string]TableStatus{} })
}

func (s *replicatorStatus) copied() {
	s.update(func(st *ReplicatorStatus) { st.CopyDone = true })
}

func (s *replicatorStatus) progress(p flocopy.Progress) {
	s.update(func(*ReplicatorStatus) {
		name := p.Table.String()
		s.tables[name] = TableStatus{Table: name, Bytes: p.Bytes, Rows: p.Rows, Ranges: int(p.Ranges), Done: int(p.RangesDone)}
	})
}

type workerStatus struct {
	commonStatus
	at WorkerStatus
}

func (s *workerStatus) update(f func(*WorkerStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.at)
}

func (s *workerStatus) snapshot() WorkerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.at
	st.Phase, st.LastError, st.Retries, st.Failing = s.phase, s.lastErr, s.retries, s.failing
	return st
}

func (s *workerStatus) applied(cp decode.Checkpoint) {
	s.update(func(st *WorkerStatus) { st.Applied = cp.End })
}

// wrote counts a batch that the sink has.
func (s *workerStatus) wrote(b *batch) {
	s.update(func(st *WorkerStatus) {
		s.failing = Failing{}
		st.Applied = max(st.Applied, b.Checkpoint.End)
		st.AppliedAt = time.Now()
		n := len(b.Changes)
		if n == 0 {
			return
		}
		if last := b.Changes[n-1]; last.Tx != nil {
			st.Changes += uint64(n)
			st.CommitTime = last.Tx.CommitTime
		}
	})
}

func (s *workerStatus) copying(tables int) {
	s.update(func(st *WorkerStatus) { st.CopyTables, st.CopiedSo = tables, 0 })
}

func (s *workerStatus) tableCopied() { s.update(func(st *WorkerStatus) { st.CopiedSo++ }) }

func (s *workerStatus) rowsCopied(n uint64) {
	s.update(func(st *WorkerStatus) {
		s.failing = Failing{}
		st.CopyRows += n
	})
}

// letters notes how many dead letters there are, and why the last one came about, if that is known.
func (s *workerStatus) letters(n int, reason string) {
	s.update(func(st *WorkerStatus) {
		st.DeadLetters = n
		if reason != "" || n == 0 {
			st.LastDeadLetter = reason
		}
	})
}
