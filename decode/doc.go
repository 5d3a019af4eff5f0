// Package decode turns the bytes of PostgreSQL's logical replication (pgoutput) and of COPY into
// changes, rows and values, and those into JSON. It does no I/O.
//
//	p, a := decode.NewParser(), decode.NewArena()
//	err := p.DescribeJSON(description) // optional: ancestors, and types that aren't built in
//	rel, err := p.Relation(frame)      // 'R': the same pointer while nothing changes
//	c, err := p.Change(frame, a)       // 'I', 'U', 'D', 'T', 'M'
//	line, err := c.AppendJSON(nil)
//	a.Reset()                          // the batch is done: Clone what is kept
//
// Nothing is copied on the way: a Value is bytes of the message and a type. A value is Absent, Null,
// Unchanged or Present, four different things.
//
// A Value is parsed when it is asked, and not before: Int64, Numeric, Time, Array and so on each for their types,
// Any for all of them (its comment has the table). JSON and Debezium are the two Encoders: flo's own
// envelope and Debezium's.
package decode
