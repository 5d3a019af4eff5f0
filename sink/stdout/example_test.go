package stdout_test

import (
	"context"
	"fmt"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/stdout"
)

// What a worker hands to the sink, and what comes out. In a program: flo.WithSink(stdout.New()).
func Example() {
	text := &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}
	users := &decode.Relation{Schema: "public", Name: "users", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: text, Key: true}, {Name: "name", Type: text}}}
	s := stdout.New()
	err := s.Write(context.Background(), &sink.Batch{Changes: []*decode.Change{{
		Op: decode.OpInsert, Ordinal: 1, Relation: users,
		Tx:  &decode.Tx{XID: 742, CommitLSN: 0x16B3748, CommitTime: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)},
		New: decode.Row{decode.TextValue(text, []byte("u1")), decode.NullValue(text)},
	}}})
	if err != nil {
		fmt.Println(err)
	}
	// Output: {"op":"insert","schema":"public","table":"users","key":{"id":"u1"},"new":{"id":"u1","name":null},"lsn":"0/16B3748","ordinal":1,"xid":742,"commit_time":"2024-05-06T07:08:09Z"}
}

// For people: a change, indented.
func ExampleWithPretty() {
	text := &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}
	users := &decode.Relation{Schema: "public", Name: "users", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}
	s := stdout.New(stdout.WithPretty())
	err := s.Write(context.Background(), &sink.Batch{Changes: []*decode.Change{{
		Op: decode.OpDelete, Ordinal: 1, Relation: users, OldKey: true,
		Tx:  &decode.Tx{XID: 742, CommitLSN: 0x16B3748, CommitTime: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)},
		Old: decode.Row{decode.TextValue(text, []byte("u1"))},
	}}})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// {
	//   "op": "delete",
	//   "schema": "public",
	//   "table": "users",
	//   "key": {
	//     "id": "u1"
	//   },
	//   "old": {
	//     "id": "u1"
	//   },
	//   "lsn": "0/16B3748",
	//   "ordinal": 1,
	//   "xid": 742,
	//   "commit_time": "2024-05-06T07:08:09Z"
	// }
}
