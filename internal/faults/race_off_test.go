//go:build !race

package faults

// underRace: the children are built like this binary.
const underRace = false
