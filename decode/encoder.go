package decode

// Encoder appends a change as JSON, for sinks that write text. What it appends is one JSON object on
// one line that begins with `{"op":"`, without a newline behind it; where the envelope has no single
// object for a change (Debezium's, for a TRUNCATE of several tables or a changed key) it is several of
// them, split by newlines. An object itself holds no newline. On an error nothing is appended.
//
// An Encoder keeps no state: it may be used by several goroutines, and gives the same text for the same change,
// but for a time stamp that its envelope asks for.
type Encoder func(dst []byte, c *Change) ([]byte, error)

// JSON is the Encoder of flo's own envelope, which Change.AppendJSON describes.
func JSON(dst []byte, c *Change) ([]byte, error) { return c.AppendJSON(dst) }
