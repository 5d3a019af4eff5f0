package flo

// BeforeResyncStep has f called in front of each step of a resync, and behind the last; its error ends Run there.
func (r *Replicator) BeforeResyncStep(f func(step int) error) { r.resyncing = f }

// WithAttemptsAhead numbers copy attempts as a machine does whose clock runs ahead by so many seconds.
func WithAttemptsAhead(seconds uint32) ReplicatorOption {
	return func(c *config) { c.attemptAfter = func(before uint32) uint32 { return attemptAfter(before) + seconds } }
}

// WithAttemptsInSequence numbers copy attempts 1, 2, 3, for tests that count them.
func WithAttemptsInSequence() ReplicatorOption {
	return WithAttempts(func(before uint32) uint32 { return before + 1 })
}

// WithAttempts numbers copy attempts as f does.
func WithAttempts(f func(before uint32) uint32) ReplicatorOption {
	return func(c *config) { c.attemptAfter = f }
}
