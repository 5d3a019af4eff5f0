package flo

import "testing"

// An attempt that a stream has forgotten must not be followed by another one of its number.
func TestAttemptsOfAStreamThatWasRolledBackHaveOtherNumbers(t *testing.T) {
	lost := attemptAfter(attemptAfter(0) - 1000) // begun a while ago, behind what a backup holds
	if next := attemptAfter(7); next < lost {
		t.Errorf("attempt %d behind %d", next, lost)
	}
	if now := attemptAfter(0); attemptAfter(now+5) != now+6 || attemptAfter(now) <= now {
		t.Error("attempts must rise")
	}
	again := newAttempts()
	if first, second := again(7), again(7); second <= first {
		t.Errorf("attempt %d behind %d, of a stream that was rolled back at once", second, first)
	}
}
