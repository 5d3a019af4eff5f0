//go:build race

package flo_test

// raceDetector takes several times the memory.
const raceDetector = true
