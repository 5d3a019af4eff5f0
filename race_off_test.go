//go:build !race

package flo_test

const raceDetector = false
