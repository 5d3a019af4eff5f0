package flo

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/pgflo/flo/internal/source"
)

// ALTER TYPE … ADD VALUE changes no table, so PostgreSQL sends no Relation message, and what the stream says
// of an enum may lack a label that its rows have. A worker whose rules need the label's place among the
// others asks the replicator.

// labelSubject is where a replicator answers questions for an enum's labels. It lies outside the stream.
func labelSubject(group string) string { return "flo-ask." + group + ".labels" }

// labelQuestion asks for the labels of an enum, by OID; labelAnswer has them, or says why not.
type labelQuestion struct {
	Type uint32 `json:"type"`
}

type labelAnswer struct {
	Labels []string `json:"labels,omitempty"`
	Error  string   `json:"error,omitempty"`
}

const (
	// labelQuestions is how many of them wait for an answer.
	labelQuestions = 16
	// labelBound is how long an answer may take.
	labelBound = 5 * time.Second
)

// answerLabels answers until ctx ends.
func (s *replication) answerLabels(ctx context.Context) error {
	asked := make(chan *nats.Msg, labelQuestions)
	subject := labelSubject(s.r.cfg.group)
	sub, err := s.link.nc.ChanSubscribe(subject, asked)
	if err != nil {
		return fmt.Errorf("flo: subscribing to %s: %w", subject, err)
	}
	defer sub.Unsubscribe()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-asked:
			var a labelAnswer
			if a.Labels, err = s.readLabels(ctx, m.Data); err != nil {
				a.Error = err.Error()
				s.log.WarnContext(ctx, "reading an enum's labels failed", slog.Any("error", err))
			}
			text, err := json.Marshal(a)
			if err == nil {
				err = m.Respond(text)
			}
			if err != nil {
				s.log.WarnContext(ctx, "a worker's question could not be answered", slog.Any("error", err))
			}
		}
	}
}

func (s *replication) readLabels(ctx context.Context, question []byte) ([]string, error) {
	var q labelQuestion
	if err := json.Unmarshal(question, &q); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, labelBound)
	defer cancel()
	conn, err := s.r.source.Connect(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return source.EnumLabels(ctx, conn, q.Type)
}
