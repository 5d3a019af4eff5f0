package main

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/pgflo/flo/sink"
)

// Events is the whole sink: it publishes each change as an event, for services that consume a stream.
type Events struct{ JS jetstream.JetStream }

// Write publishes the changes in order. JetStream has stored an event when Publish returns, so nil means
// durable, as the worker wants it. Behind an error the batch comes again: JetStream then drops those that
// it has, by their message ID.
func (s Events) Write(ctx context.Context, b *sink.Batch) error {
	for i, c := range b.Changes {
		event, err := c.AppendJSON(nil)
		if err != nil {
			return sink.Reject(i, err)
		}
		id := c.Position().String()
		if c.Copy != nil { // a row of the initial copy
			id = c.Copy.String()
		}
		_, err = s.JS.Publish(ctx, "events."+c.Op.String(), event, jetstream.WithMsgID(id))
		if errors.Is(err, nats.ErrMaxPayload) {
			return sink.Reject(i, err) // trying again doesn't make it smaller
		}
		if err != nil {
			return err
		}
	}
	return nil
}
