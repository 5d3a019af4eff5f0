package flo

import "sync"

// sequenceMarks tells up to which sequence everything is done, when things that begin in order are
// done out of order.
type sequenceMarks struct {
	mu   sync.Mutex
	open []*sequenceMark // begun, in order; done ones stay until all before them are done
	done uint64
}

type sequenceMark struct {
	seq  uint64
	done bool
}

// add begins something that belongs to a message. Sequences never fall.
func (s *sequenceMarks) add(seq uint64) *sequenceMark {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &sequenceMark{seq: seq}
	s.open = append(s.open, m)
	return m
}

// finish ends it. It gives the sequence up to which all is done, and whether it moved.
func (s *sequenceMarks) finish(m *sequenceMark) (seq uint64, moved bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m.done = true
	n := 0
	for n < len(s.open) && s.open[n].done {
		n++
	}
	if n == 0 {
		return s.done, false
	}
	s.done = s.open[n-1].seq
	if n < len(s.open) && s.open[n].seq == s.done {
		s.done-- // the rest of the same message is not done
	}
	s.open = append(s.open[:0], s.open[n:]...)
	return s.done, true
}
