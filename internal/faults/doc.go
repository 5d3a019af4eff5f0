// Package faults holds the tests that kill flo and everything around it. Its replicators, workers and
// NATS servers are real processes: the test binary itself, started again in a role (child_test.go),
// ended by SIGKILL at moments that come from a seed, and started again. While that happens writers
// (workload_test.go) change the source in every way that makes replication hard; at the end the
// destination must equal the source row by row, and a file sink's lines must be exactly the changes
// that PostgreSQL itself decodes (oracle_test.go), in its order.
//
// A failure prints its seed; the flag -seed runs it again, though the scheduling of processes differs.
// -kills and -runs make the runs longer.
package faults
