// Package crashpoint names the moments between two steps of a pipeline at which the fault tests end or pause the
// process: each is a boundary behind which something is done, and the next thing is not.
//
// In a normal build Reached is an empty function that the compiler inlines to nothing. Under the build tag
// flocrash, which only the fault tests set, the environment variable Env arms one point.
package crashpoint

// Point is a boundary.
type Point string

// The boundaries, in the order in which a change meets them.
const (
	SlotMade      Point = "slot-made"      // the replication slot is there, the stream doesn't say so yet
	CopySent      Point = "copy-sent"      // a chunk of copied rows, or a table's end, is in the publisher's hands
	Received      Point = "received"       // a message of the walsender was read, and is nowhere else
	Staged        Point = "staged"         // a part of a transaction that is still open is on its way to JetStream
	StagedEnded   Point = "staged-ended"   // what was staged of one that has committed has its end, the transaction isn't in the stream
	Published     Point = "published"      // a batch is on its way to JetStream
	Acknowledged  Point = "acknowledged"   // JetStream has said that it is stored, nobody else knows
	Confirmed     Point = "confirmed"      // the source was told that it may forget
	Fetched       Point = "fetched"        // a worker has read a message of the stream
	CopyWritten   Point = "copy-written"   // the sink has a chunk of copied rows
	PartWritten   Point = "part-written"   // the sink has a part of a large transaction
	SinkCommitted Point = "sink-committed" // the sink has a batch for good, the worker has noted nothing
	Checkpointed  Point = "checkpointed"   // the worker's record says so
	Purged        Point = "purged"         // what all workers have was removed from the stream
)

// Points gives all of them.
func Points() []Point {
	return []Point{SlotMade, CopySent, Received, Staged, StagedEnded, Published, Acknowledged, Confirmed, Fetched, CopyWritten, PartWritten, SinkCommitted, Checkpointed, Purged}
}

// Env names the variable that arms a point: "<point>:<n>" ends the process by SIGKILL when the point is reached for
// the n-th time (from 1), "<point>:<n>:stop" pauses it by SIGSTOP.
const Env = "FLO_CRASHPOINT"
