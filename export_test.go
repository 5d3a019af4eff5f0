package flo

// BeforeResyncStep has f called in front of each step of a resync, and behind the last; its error ends Run there.
func (r *Replicator) BeforeResyncStep(f func(step int) error) { r.resyncing = f }
