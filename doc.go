// Package flo copies PostgreSQL tables and streams every change of them, in commit order, through
// NATS JetStream into sinks: another PostgreSQL database, a file, a function of yours.
//
//	f, err := flo.New(
//		flo.WithSource("postgres://flo@db.example/shop"),
//		flo.WithNATSURL("nats://nats.example"),
//		flo.WithGroup("shop"),
//		flo.WithTables("public.users", "public.orders"),
//		flo.WithSink(sink), // for example sink/postgres.New("postgres://flo@warehouse.example/shop")
//	)
//	if err != nil {
//		return err
//	}
//	return f.Run(ctx)
//
// A pipeline has two halves. The [Replicator] reads the source and fills the group's JetStream
// stream; it passes PostgreSQL's own messages on without decoding rows. A [Worker] reads the stream
// in order, decodes, applies rules, and writes batches to its sink. [New] gives both, to be run in
// one process by [Flo.Run], or one by one with [Flo.Replicator] and [Flo.Workers]; [NewReplicator]
// and [NewWorker] make one half alone, for processes of their own. Each option says whose it is, and
// options of the other half are ignored, so one list serves every process.
//
// # Guarantees
//
// A sink that keeps flo's checkpoint with its data (sink.Transactional, such as sink/postgres) holds
// exactly the source's committed state, up to the checkpoint, whichever process dies and whenever:
// nothing lost, nothing twice. Any other sink is given each change at least once, in commit order, and each
// change has a [Position] that never changes, to drop repeats by.
//
// The initial copy reads the snapshot that the replication slot exported, and the stream begins at that
// slot's consistent point: no row is missed or repeated between the two.
//
// The source is told that a position is safe only when JetStream has acknowledged every message up
// to it, and a replay window later if NATS doesn't sync what it acknowledges (see
// [WithReplayWindow]).
//
// Where changes may be missing (a lost slot, a source restored from a backup, a deleted stream), Run stops
// with an error that errors.Is finds ([ErrSlotLost], [ErrSourceChanged], [ErrGap], [ErrStreamLost])
// and whose text says what to do. What passes by itself, a lost connection or a restarting server,
// is tried again with a backoff, without limit; Status tells.
//
// A change that can never be decoded, ruled or applied stops its worker with a [SinkError], or becomes a dead letter
// that can be replayed: see [WithErrorPolicy].
//
// Memory is bounded by options, not by the size of a table, a transaction or a backlog. The largest
// single row is held as a whole.
//
// # Shutdown
//
// Run blocks until its context ends, then finishes what is under way: the replicator waits until
// JetStream has acknowledged what it has read, a worker until its sink has written the batch it holds.
// Within [WithStopTimeout] (10 seconds) it returns nil if all of that was done, and [ErrNotDrained] if
// JetStream or the sink did not answer in time; nothing is lost by that. A process may as well be
// killed: the next start goes on where the stream and the checkpoints stand. flo starts no goroutine
// before Run and leaves none behind, installs no signal handler, and writes nothing to standard output
// or standard error: give it a logger with [WithLogger].
//
// The slot, the publications, the stream and the state outlive Run; while the slot exists and no
// replicator runs, the source keeps its WAL. [Flo.Drop] removes them.
//
// # Waiting
//
// [Flo.WaitFor] returns when the workers have applied everything up to a position: for tests, and
// for a cut-over.
//
// # Packages
//
// Package sink holds the interfaces that a destination implements, and decode the changes it is
// given; rules transforms and filters changes; embednats runs a JetStream server inside the
// process; flotest gives tests a real PostgreSQL and a real JetStream.
package flo
