// Package faults holds the tests that kill flo and everything around it. Its replicators, workers and
// NATS servers are real processes: the test binary itself, started again in a role (child_test.go),
// ended by SIGKILL at moments that come from a seed, and started again. While that happens writers
// (workload_test.go) change the source in every way that makes replication hard; at the end the
// destination must equal the source row by row, and a file sink's lines must be exactly the changes
// that PostgreSQL itself decodes (oracle_test.go), in its order.
//
// The random runs (suite_test.go) draw a pipeline and its faults from a seed: kills at random moments and at the
// boundaries between two steps (package crashpoint), links that are cut, half-open, slow or narrow (link_test.go), sinks that
// reject, hang, or fail behind a success (faultysink_test.go), sessions that are terminated, servers that stop at once, a NATS that
// comes back with an older store, processes that are paused while others take over. The command campaign
// goes on with that for as long as it is told, and keeps ledger.jsonl.
//
// A failure prints its seed, and for a random run the command that repeats it: the same plan, though processes
// are scheduled otherwise each time. -kills and -runs make tests longer, -without and -faults random runs simpler,
// -shrink looks for the simplest one that still fails. -logs keeps the children's whole logs.
package faults
