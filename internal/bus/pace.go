package bus

import "time"

// pace bounds what is under way by time, as the window does by bytes: on a slow link a whole window would stand for a
// long time in front of all else that goes over the connection, the renewals of leases among it. It measures by
// the acknowledgements, which come in the order of sending: what was unacknowledged when a message was sent, that
// one included, took until its answer to get through.
type pace struct {
	limit int // bytes that may be unacknowledged; a single message always may
	most  int // at most: the window
}

const (
	// paceTarget is within which time what is under way should be acknowledged. On a link on which the window
	// takes less, the window counts.
	paceTarget = time.Second
	// paceFirst is how many bytes may be under way before anything is known of the link.
	paceFirst = 1 << 20
	// paceLeast is how many bytes may be under way however slow the link seems.
	paceLeast = 64 << 10
)

func newPace(window int) pace { return pace{limit: min(window, paceFirst), most: window} }

// answered learns from an acknowledgement: ahead are the bytes that were unacknowledged when the message was
// sent, that one included, size is its own, and took is how long ago that was.
func (p *pace) answered(ahead, size int, took time.Duration) {
	switch {
	case took > paceTarget:
		p.limit = min(p.limit, max(paceLeast, int(float64(ahead)*float64(paceTarget)/float64(took))))
	case took < paceTarget/2 && ahead > p.limit/2: // the limit is what holds the rate down
		p.limit = min(p.limit+size, p.most)
	}
}
