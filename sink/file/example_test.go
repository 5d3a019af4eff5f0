package file_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/file"
)

// What a worker hands to the sink, and what stands in the file then. In a program:
// flo.WithSink(file.New("/var/lib/shop/changes")).
func Example() {
	dir, err := os.MkdirTemp("", "flo")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	text := &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}
	users := &decode.Relation{Schema: "public", Name: "users", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}
	s := file.New(dir)
	defer s.Close(context.Background())
	err = s.Write(context.Background(), &sink.Batch{Changes: []*decode.Change{{
		Op: decode.OpDelete, Ordinal: 1, Relation: users, OldKey: true,
		Tx:  &decode.Tx{XID: 742, CommitLSN: 0x16B3748, CommitTime: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)},
		Old: decode.Row{decode.TextValue(text, []byte("u1"))},
	}}})
	if err != nil {
		fmt.Println(err)
	}
	content, err := os.ReadFile(s.Path())
	fmt.Print(string(content), err)
	// Output:
	// {"op":"delete","schema":"public","table":"users","key":{"id":"u1"},"old":{"id":"u1"},"lsn":"0/16B3748","ordinal":1,"xid":742,"commit_time":"2024-05-06T07:08:09Z"}
	// <nil>
}

// Files by table, compressed when they are complete, and what a reader learns of them. In a program:
// flo.WithSink(file.New(dir, file.WithNames("{schema}.{table}/{seq}"), file.WithGzip(), file.WithRotateAge(time.Hour))).
func ExampleReadManifest() {
	dir, err := os.MkdirTemp("", "flo")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	text := &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}
	users := &decode.Relation{Schema: "public", Name: "users", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}
	s := file.New(dir, file.WithNames("{schema}.{table}/{seq}"), file.WithGzip(), file.WithRotateAge(time.Hour))
	tx := &decode.Tx{XID: 742, CommitLSN: 0x16B3748}
	err = s.Write(context.Background(), &sink.Batch{Changes: []*decode.Change{
		{Op: decode.OpInsert, Tx: tx, Ordinal: 1, Relation: users, New: decode.Row{decode.TextValue(text, []byte("u1"))}},
		{Op: decode.OpInsert, Tx: tx, Ordinal: 2, Relation: users, New: decode.Row{decode.TextValue(text, []byte("u2"))}},
	}})
	if err != nil {
		fmt.Println(err)
	}
	if err := s.Close(context.Background()); err != nil { // completes the files
		fmt.Println(err)
	}
	files, err := file.ReadManifest(dir)
	for _, f := range files {
		fmt.Println(f.File, f.Rows, f.First, f.Last)
	}
	fmt.Println(err)
	// Output:
	// public.users/00000001.jsonl.gz 2 0/16B3748:1 0/16B3748:2
	// <nil>
}
