package flo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/pgflo/flo/decode"
	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/state"
)

// awaitsResync reports whether the stream that is there is about to be replaced: a request is pending, or the one
// that the worker knows of was not answered yet.
func (w *Worker) awaitsResync(ctx context.Context, stream *bus.Stream, store state.Store) (bool, error) {
	rec, _, err := store.Resync(ctx)
	if err != nil {
		return false, err
	}
	if rec.Pending != "" && !stream.Resync().Answers(rec.Pending) {
		return true, nil
	}
	token := w.cfg.resync
	return token != "" && !rec.Answers(token) && !stream.Resync().Answers(token), nil
}

// replaced gives the checkpoint with which the worker begins, and forgets one whose stream was replaced on purpose by
// the present one.
func (s *working) replaced(ctx context.Context, cp decode.Checkpoint) (decode.Checkpoint, error) {
	if cp.Incarnation == "" || cp.Incarnation == s.stream.Incarnation() {
		return cp, nil
	}
	rec, _, err := s.report.store.Resync(ctx)
	if err != nil {
		return cp, err
	}
	by := s.stream.Resync()
	if rec.Incarnation == s.stream.Incarnation() { // one that was made beforehand says nothing itself
		by.Token, by.Replaces = rec.Token, append(slices.Clone(by.Replaces), rec.Replaces...)
	}
	asked := s.cfg.resync != "" && s.cfg.resync == by.Token
	if !asked && !slices.Contains(by.Replaces, cp.Incarnation) {
		return cp, nil
	}
	s.log.WarnContext(ctx, "starting over: the group's stream was replaced (WithResync), and what the sink holds is of the old one",
		slog.String("stream", s.stream.Incarnation()), slog.String("checkpoint", cp.Incarnation))
	return decode.Checkpoint{}, nil
}

// followed makes a new session of the end of one whose stream was deleted in order to be replaced.
func (w *Worker) followed(ctx context.Context, store state.Store, incarnation string, err error) error {
	if !errors.Is(err, bus.ErrStreamGone) || ctx.Err() != nil {
		return err
	}
	rec, _, rerr := store.Resync(ctx)
	if rerr != nil || rec.Pending == "" && !slices.Contains(rec.Replaces, incarnation) {
		return err
	}
	return fmt.Errorf("%w: the group's stream is being replaced (WithResync): %w", errAgain, err)
}
