// Package flocopy runs the parallel initial copy of tables under one exported snapshot.
//
// Several connections import the same snapshot, cut each table into page ranges by its real size, and
// read the ranges with COPY (SELECT …) TO STDOUT. Rows are never parsed: the bytes are cut at row ends
// into chunks and handed on as they came. Memory is flat: one chunk a connection, or one row where a
// row is larger than a chunk.
//
// # What it holds on the source
//
// The snapshot holds back vacuum as long as Run takes. While a connection reads ranges of a table it
// holds ACCESS SHARE on that table, as any SELECT does: writes go on, but TRUNCATE, DROP and most forms of
// ALTER TABLE wait. The lock is given back when the connection turns to another table or ends.
//
// # What makes a snapshot lie
//
// TRUNCATE, VACUUM FULL, CLUSTER and a rewriting ALTER TABLE replace a table's file, and a snapshot
// that is older than that sees it empty or with its rows on other pages. So after each range, its lock
// still held, the file that is there now is compared with the one that the snapshot sees; a difference
// is a RewrittenError, and the rows that were emitted must be thrown away.
// https://www.postgresql.org/docs/current/mvcc-caveats.html
package flocopy
