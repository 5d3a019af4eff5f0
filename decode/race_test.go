//go:build race

package decode_test

// raceEnabled: the race detector makes sync.Pool, which encoding/json uses, drop things at random.
const raceEnabled = true
