package flo

import (
	"context"
	"errors"

	"github.com/pgflo/flo/internal/bus"
	"github.com/pgflo/flo/internal/names"
	"github.com/pgflo/flo/internal/source"
	"github.com/pgflo/flo/state"
)

// joined reports whether all workers have what the stream says of every table that is asked for. With WithDDL a table joins
// the group some time after its CREATE TABLE has passed: until then what it holds is in no worker's position.
func (f *Flo) joined(ctx context.Context, stream *bus.Stream, store state.Store) (bool, error) {
	if !f.cfg.ddl || f.cfg.adopts() || f.cfg.mode != CopyAndStream {
		return true, nil
	}
	members, err := membersOf(ctx, stream, func(uint32) bool { return true })
	if err != nil || members == nil { // it doesn't say
		return err == nil, err
	}
	include, err := names.ParseAll(f.cfg.tables)
	if err != nil {
		return false, err
	}
	exclude, err := names.ParseAll(f.cfg.exclude)
	if err != nil {
		return false, err
	}
	conn, err := f.replicator.source.Connect(ctx)
	if err != nil {
		return false, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	asked, _, err := f.replicator.source.ResolveTables(ctx, conn, include, exclude)
	if err != nil {
		if transient(err) {
			return false, err
		}
		return true, nil // no table is there any more
	}
	var attempt uint32
	for _, t := range asked {
		began, has := members[t.OID]
		if !has {
			err := f.replicator.source.CheckJoin(ctx, conn, t, true)
			if errors.Is(err, source.ErrPrivilege) {
				continue // it can't join, of which the replicator warns
			}
			return false, err
		}
		attempt = max(attempt, began)
	}
	ws, err := store.Workers(ctx)
	if err != nil {
		return false, err
	}
	for i := range ws {
		if cp := &ws[i].Checkpoint; cp.Attempt < attempt || awaitsCopy(cp) {
			return false, nil
		}
	}
	return true, nil
}
