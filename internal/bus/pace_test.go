package bus

import (
	"testing"
	"time"
)

// linkModel is a way on which bytes go one after the other.
type linkModel struct {
	now, free time.Duration
	rate      float64 // bytes a second
	answer    time.Duration
}

// send gives when a message is acknowledged.
func (l *linkModel) send(size int) time.Duration {
	l.free = max(l.free, l.now) + time.Duration(float64(size)/l.rate*float64(time.Second))
	return l.free + l.answer
}

// A publisher that always has more to send keeps a slow link busy with what takes about a second, and a fast one with
// the whole window, and finds the way from one to the other.
func TestPaceBoundsWhatIsUnderWayByTime(t *testing.T) {
	const size, window = 512 << 10, 8 << 20
	type sent struct {
		at, answered time.Duration
		ahead        int
	}
	p, l := newPace(window), &linkModel{answer: 2 * time.Millisecond}
	var flying []sent
	run := func(d time.Duration) (most time.Duration, throughput float64) {
		end, acked := l.now+d, 0
		for l.now < end {
			for len(flying) == 0 || (len(flying)+1)*size <= p.limit {
				flying = append(flying, sent{l.now, l.send(size), (len(flying) + 1) * size})
			}
			first := flying[0]
			flying = flying[1:]
			l.now = first.answered
			acked += size
			if l.now > end-d/2 { // it had half of the time to learn
				most = max(most, first.answered-first.at)
			}
			p.answered(first.ahead, size, first.answered-first.at)
		}
		return most, float64(acked) / d.Seconds()
	}
	for _, rate := range []float64{1e6, 1e9, 3e5, 1e7, 1e5} {
		l.rate = rate
		took, got := run(400 * time.Second)
		if bound := max(3*paceTarget/2, time.Duration(size/rate*float64(time.Second))) + 20*time.Millisecond; took > bound {
			t.Errorf("at %.0f bytes/s an answer took %s, want at most %s", rate, took, bound)
		}
		if got < 0.9*min(rate, window/0.02) {
			t.Errorf("at %.0f bytes/s it sends %.0f", rate, got)
		}
	}
	if small := newPace(4096); small.limit != 4096 {
		t.Errorf("a small window begins at %d", small.limit)
	}
}
