package flo

import (
	"sync"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/pack"
)

// ackedPositions remembers which positions were stored when, so that the source is told each only a
// replay window later: a JetStream that syncs lazily may lose what it acknowledged last.
type ackedPositions struct {
	mu     sync.Mutex
	window time.Duration
	ring   []stored // oldest first, at most windowSamples
	last   decode.LSN
	told   decode.LSN
	all    bool // settle: confirm up to last
	spare  chan<- []byte
}

type stored struct {
	at  time.Time
	lsn decode.LSN
}

// windowSamples bounds the memory of a window: positions are sampled that finely.
const windowSamples = 256

// init starts the window anew: what the stream already holds was read back from it, and counts as
// stored now.
func (a *ackedPositions) init(window time.Duration, at decode.LSN) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.window = window
	if at != 0 {
		a.last = at
		a.ring = append(a.ring[:0], stored{time.Now(), at})
	}
}

func (a *ackedPositions) add(now time.Time, lsn decode.LSN) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if lsn <= a.last {
		return
	}
	a.last = lsn
	if a.window == 0 {
		return
	}
	// A sample stands for all positions up to it, so it bears the time of the last one; samples closer than
	// the window's resolution are merged into the newer.
	if n := len(a.ring); n > 1 && now.Sub(a.ring[n-2].at) < a.window/(windowSamples/2) {
		a.ring[n-1] = stored{now, lsn}
		return
	}
	if len(a.ring) == windowSamples {
		a.ring = append(a.ring[:0], a.ring[1:]...)
	}
	a.ring = append(a.ring, stored{now, lsn})
}

// settle lets the next confirmable give all that is stored.
func (a *ackedPositions) settle() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = true
}

// confirmable gives the position that the source may be told, and whether it is a new one.
func (a *ackedPositions) confirmable(now time.Time) (decode.LSN, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	lsn := a.told
	if a.window == 0 || a.all {
		lsn, a.all = a.last, false
	}
	for len(a.ring) > 0 && now.Sub(a.ring[0].at) >= a.window {
		lsn = max(lsn, a.ring[0].lsn)
		a.ring = append(a.ring[:0], a.ring[1:]...)
	}
	if lsn <= a.told {
		return a.told, false
	}
	a.told = lsn
	return lsn, true
}

// recycle gives a batch's memory back, unless it grew beyond the usual.
func (a *ackedPositions) recycle(b *pack.Batch) {
	buf := b.Buffer()
	if a.spare == nil || cap(buf) > 4*batchTarget {
		return
	}
	select {
	case a.spare <- buf:
	default:
	}
}
