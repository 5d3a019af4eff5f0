//go:build !linux

package main

import "time"

// processTime is not measured here.
func processTime() time.Duration { return 0 }

// serverTime is not measured here.
func serverTime(string) time.Duration { return 0 }

// resetPeak does nothing here.
func resetPeak() {}

// peakMemory is not measured here.
func peakMemory() int64 { return 0 }
