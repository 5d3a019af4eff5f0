package webhook_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/sink"
	"github.com/pgflo/flo/sink/webhook"
)

// What a worker hands to the sink, and what the endpoint gets. In a program: flo.WithSink(hook).
func Example() {
	secret := []byte("shared with the receiver")
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2*webhook.DefaultMaxBytes))
		if err == nil {
			err = webhook.Verify(r.Header, body, secret, 5*time.Minute)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		fmt.Println(r.Header.Get(webhook.KeyHeader))
		fmt.Println(string(body))
	}))
	defer receiver.Close()

	hook, err := webhook.New(receiver.URL, webhook.WithSecret(secret), webhook.WithBearerToken("token"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer hook.Close(context.Background())

	text := &decode.Type{OID: 25, Schema: "pg_catalog", Name: "text"}
	users := &decode.Relation{Schema: "public", Name: "users", Identity: decode.IdentityDefault,
		Columns: []decode.Column{{Name: "id", Type: text, Key: true}}}
	err = hook.Write(context.Background(), &sink.Batch{Changes: []*decode.Change{{
		Op: decode.OpInsert, Ordinal: 1, Relation: users,
		Tx:  &decode.Tx{XID: 742, CommitLSN: 0x16B3748, CommitTime: time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)},
		New: decode.Row{decode.TextValue(text, []byte("u1"))},
	}}})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// 0/16B3748:1
	// [{"op":"insert","schema":"public","table":"users","key":{"id":"u1"},"new":{"id":"u1"},"lsn":"0/16B3748","ordinal":1,"xid":742,"commit_time":"2024-05-06T07:08:09Z"}]
}
