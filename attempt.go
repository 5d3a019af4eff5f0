package flo

import "time"

// attemptEpoch is when the numbers of copy attempts begin.
var attemptEpoch = time.Date(2025, time.January, 1, 0, 0, 0, 0, time.UTC)

// attemptAfter numbers the attempt that follows another one. It follows the clock, in seconds, so that a stream that
// was rolled back behind the beginning of an attempt doesn't get another one of the same number: workers and sinks
// that have met the first would take the second for it, and its tables for copied.
func attemptAfter(before uint32) uint32 {
	return max(before+1, uint32(max(time.Since(attemptEpoch)/time.Second, 0)))
}

// newAttempts gives what numbers the attempts of one replicator: by the clock, and never twice the same, also not within
// a second in which the stream was rolled back.
func newAttempts() func(before uint32) uint32 {
	var last uint32
	return func(before uint32) uint32 {
		last = max(attemptAfter(before), last+1)
		return last
	}
}
