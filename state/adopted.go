package state

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
)

// Adopted is what a group remembers of the publications that somebody else owns: their tables, which are copied by
// now or being copied, each with what published it then.
type Adopted struct {
	Tables map[uint32][]uint32 `json:"tables"` // OIDs of the publications' entries, by the table's
}

const keyAdopted = "adopted"

// Adopted implements Store.
func (s *natsStore) Adopted(ctx context.Context) (a Adopted, err error) {
	_, err = s.get(ctx, keyAdopted, &a)
	return a, err
}

// PutAdopted implements Store.
func (s *natsStore) PutAdopted(ctx context.Context, a Adopted) error {
	value, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := s.kv.Put(ctx, keyAdopted, value); err != nil {
		return fmt.Errorf("state: write %s: %w", keyAdopted, err)
	}
	return nil
}

// Adopted implements Store.
func (m *Memory) Adopted(ctx context.Context) (Adopted, error) {
	if err := ctx.Err(); err != nil {
		return Adopted{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.adopted == nil {
		return Adopted{}, fmt.Errorf("%w: %s", ErrNotFound, keyAdopted)
	}
	return *m.adopted, nil
}

// PutAdopted implements Store.
func (m *Memory) PutAdopted(ctx context.Context, a Adopted) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.revision++
	m.adopted = &Adopted{Tables: maps.Clone(a.Tables)}
	return nil
}
